"""The teacher's scores as a training reads them, from the folder that `build` writes and `cache_format` describes.

Opening reads two small files. The shards are read, after their checksums are compared, when a pair is first requested.
Scores are found by image and caption index, never by position; there is no fallback for a missing score.

Shape letters: P pairs of the whole cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcdctl.core import artifacts
from dcdctl.core.data import Corpus, Flags, Indices, RaggedArray, Scores, Values
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.teacher.cache_format import CACHE, TEACHER_NAME, pairs_name, read_pairs, shards_of
from dcdctl.core.teacher.candidate_lists import POSITIVE, ROLES, Candidates
from dcdctl.core.teacher.scores import AverageScores, TeacherScores, in_range


class _KeyedPairs(NamedTuple):
    """The pairs of a cache, ascending by their keys: one number instead of two, because there may be 40 million."""

    key_P: Indices
    """Image * captions + caption."""
    score_P: Scores
    role_P: NDArray[np.uint8]


class TeacherCache(TeacherScores):
    """Scored pairs, sorted by image and text, and the candidate lists derived from them."""

    def __init__(self, folder: Path, plan: artifacts.Document, seal: artifacts.Document) -> None:
        self.folder, self.plan, self.seal = folder, plan, seal
        self.num_images, self.num_texts = int(plan["images"]), int(plan["captions"])
        self._shards = [pairs_name(shard) for shard in range(len(shards_of(plan)))]
        self.num_pairs = sum(seal["files"][name]["pairs"] for name in self._shards)

    def __repr__(self) -> str:
        return (
            f"TeacherCache({str(self.folder)!r}: {self.num_pairs:,} pairs of {self.num_images:,} images and "
            f"{self.num_texts:,} captions)"
        )

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def teacher_name(self) -> str | None:
        """Who gave the scores, if they come from elsewhere (`external_scores`); None for scores that dcdctl
        computed."""
        return self.plan.get(TEACHER_NAME)

    def check_teacher(self, fingerprint: str) -> None:
        """StaleError if the scores are of another teacher than this one. For scores from elsewhere the user's word
        counts."""
        if self.teacher_name is None:
            artifacts.expect(self.folder, self.plan, {"teacher": fingerprint})

    @property
    def image_P(self) -> Indices:
        return self._pairs.key_P // self.num_texts

    @property
    def text_P(self) -> Indices:
        return self._pairs.key_P % self.num_texts

    @property
    def score_P(self) -> Scores:
        return self._pairs.score_P

    @property
    def role_P(self) -> NDArray[np.uint8]:
        return self._pairs.role_P

    @property
    def scored_pairs(self) -> tuple[Indices, Indices]:
        """The images and the captions of all pairs, sorted."""
        return self.image_P, self.text_P

    @property
    def has_drawn_pairs(self) -> bool:
        """Whether the candidates are random images, or blocks, most of whose images are."""
        return self.plan["candidates"]["kind"] in ("random", "blocks")

    def lookup(self, image_ix: Indices, text_ix: Indices) -> Scores:
        """The scores of these pairs, in their shape; NaN for pairs that the teacher has not scored."""
        images, texts = np.broadcast_arrays(*in_range(image_ix, text_ix, self.num_images, self.num_texts))
        if not images.size or not self.num_pairs:
            return np.full(images.shape, np.nan, dtype=np.float32)
        keys = images * self.num_texts + texts
        # A key above all others would point behind the last pair.
        pairs = self._pairs
        position = np.minimum(np.searchsorted(pairs.key_P, keys), self.num_pairs - 1)
        return np.where(pairs.key_P[position] == keys, pairs.score_P[position], np.float32(np.nan))

    @cached_property
    def candidates(self) -> Candidates:
        """The negatives of every query, without those that score too close to the query's positives (the margin of the
        plan)."""
        image_P, text_P = self.scored_pairs
        margin = self.plan["candidates"]["relative_margin"]
        lists, num_near = [], 0
        for direction, role in ROLES.items():
            query_P, value_P = direction.query_first(image_P, text_P)
            count, _ = direction.query_first(self.num_images, self.num_texts)
            is_candidate = (self.role_P & role) > 0
            if margin is not None:
                is_near = is_candidate & self._is_near(query_P, count, margin)
                num_near += int(is_near.sum())
                is_candidate &= ~is_near
            # Stable, so that the images of a caption stay sorted.
            order = np.flatnonzero(is_candidate)
            order = order[np.argsort(query_P[order], kind="stable")]
            lists.append(RaggedArray.from_sorted(query_P[order], value_P[order], count))
        return Candidates(lists[0], lists[1], {} if margin is None else {"margin": num_near})

    def _is_near(self, query_P: NDArray[Any], num_queries: int, margin: float) -> Flags:
        """Whether a pair's score is within a margin of the mean score of its query's positives, as sigmoids."""
        is_positive = (self.role_P & POSITIVE) > 0
        sums = np.bincount(query_P[is_positive], self.score_P[is_positive], num_queries)
        mean_P = (sums / np.maximum(np.bincount(query_P[is_positive], minlength=num_queries), 1))[query_P]
        is_near: Flags = _sigmoid(self.score_P) > _sigmoid(mean_P) * (1 - margin)
        return is_near

    @cached_property
    def _pairs(self) -> _KeyedPairs:
        """Every pair, read from the shards."""
        keys: list[Indices] = []
        scores: list[Scores] = []
        roles: list[NDArray[np.uint8]] = []
        for name in self._shards:
            path = self.folder / name
            pairs = read_pairs(CACHE.checked(path, self.seal["files"][name]["sha256"]))
            # The teacher's scores are checked when they are written; other programs may write NaN, which would count as
            # not scored.
            if num_bad := int(np.count_nonzero(~np.isfinite(pairs.score))):
                raise CACHE.damaged(path, f"{num_bad:,} of its {len(pairs):,} scores are not finite")
            keys.append(pairs.image * self.num_texts + pairs.text)
            scores.append(pairs.score)
            roles.append(pairs.role)
        return _KeyedPairs(np.concatenate(keys), np.concatenate(scores), np.concatenate(roles))


OF_ANOTHER = "name a cache of this corpus and split, which `dcdctl cache-teacher --split NAME` makes"


def read_cache(folder: Path, *, corpus: Corpus | None = None, teacher: str | None = None) -> TeacherCache:
    """The cache in a folder.

    `corpus` and `teacher` (a fingerprint) are what the reader expects. StaleError names both sides if they differ, and
    a file that is damaged; MissingError if there is no finished cache, or if a file of it is missing.
    """
    cache = TeacherCache(folder, *CACHE.open(folder))
    if corpus is not None:
        artifacts.expect(folder, cache.plan, {"corpus": corpus.fingerprint}, hint=OF_ANOTHER)
    if teacher is not None:
        cache.check_teacher(teacher)
    return cache


def _sigmoid(logits: NDArray[Any]) -> Values:
    import torch  # for a margin alone: caches are inspected and verified without it

    # In float64: in float32 the sigmoid of every logit above about 17 is 1, and a margin could not tell them apart.
    return torch.from_numpy(np.asarray(logits, dtype=np.float64)).sigmoid().numpy()


class TeacherEnsemble(AverageScores):
    """The teachers of several caches as one. Its candidates are the first cache's that all teachers have
    scored."""

    noun = "caches"
    teachers: Sequence[TeacherCache]

    @property
    def scored_pairs(self) -> tuple[Indices, Indices]:
        """The images and the captions of the first cache's pairs that all teachers have scored."""
        first = self.teachers[0]
        return first.image_P[self._is_shared], first.text_P[self._is_shared]

    @property
    def has_drawn_pairs(self) -> bool:
        """Whether the first cache has drawn ones, whose pairs count."""
        return self.teachers[0].has_drawn_pairs

    @cached_property
    def candidates(self) -> Candidates:
        """The first cache's candidates that all teachers have scored."""
        return self.teachers[0].candidates.where(
            lambda *pair: ~np.isnan([cache.lookup(*pair) for cache in self.teachers]).any(axis=0)
        )

    @cached_property
    def _scores_KP(self) -> Scores:
        """Scores of every teacher for the pairs of the first cache."""
        first = self.teachers[0]
        return np.stack([cache.lookup(*first.scored_pairs) for cache in self.teachers])

    @cached_property
    def _is_shared(self) -> Flags:
        shared: Flags = np.logical_and.reduce(~np.isnan(self._scores_KP))
        if not shared.any():
            raise StaleError("no pair is scored in all caches", hint="make both with the same candidates")
        return shared

    @cached_property
    def _moments(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each teacher's scores."""
        shared = self._scores_KP[:, self._is_shared].astype(np.float64)
        # A teacher whose scores are all equal has no spread to divide by.
        return [(float(scores.mean()), float(scores.std()) or 1.0) for scores in shared]


def read_caches(caches: Sequence[TeacherCache]) -> TeacherCache | TeacherEnsemble | None:
    """None, the only cache, or an ensemble of several caches.

    ConfigError if two caches hold the same scores.
    """
    if len(caches) < 2:
        return caches[0] if caches else None
    # By content: the paths of one folder may differ by a link or a spelling, and a copy counts its teacher twice as
    # well.
    folders: dict[str, Path] = {}
    for cache in caches:
        content = json.dumps(cache.seal["files"], sort_keys=True)
        if content in folders:
            raise ConfigError(
                f"{folders[content]} and {cache.folder} are one cache, by the checksums of their files",
                hint="name each cache once",
            )
        folders[content] = cache.folder
    return TeacherEnsemble(caches)
