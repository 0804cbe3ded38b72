"""Which pairs of images and captions the teacher scores.

A query's candidates are the things it is compared with: captions for an image, images for a caption. Its positives (the captions
of an image, the image of a caption) always belong to them and are not drawn. Everything is a function of the corpus and the seed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dcdctl.core import scoring
from dcdctl.core.config import AtLeast, Between, Count, Distinct, NotEmpty, Positive, check_fields
from dcdctl.core.data import Corpus, Direction, RaggedArray
from dcdctl.core.devices import CPU
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import Vectors
from dcdctl.core.teacher import miners
from dcdctl.core.teacher.false_negatives import FalseNegativeFilter, image_hashes
from dcdctl.core.teacher.miners import Index, Miner, PairFilter, clusters

POSITIVE, TEXT_CANDIDATE, IMAGE_CANDIDATE = 1, 2, 4
"""Roles of a pair: the caption is one of the image's; it is a candidate of the image's query; the image is one of the caption's query."""
_WORD = re.compile(r"[^\W_]+")
SIMPLE_KINDS = ("random", "lexical", "embedding")


@dataclass(frozen=True, kw_only=True)
class CandidateConfig:
    """The `[candidates]` table of a recipe."""

    kind: Literal["random", "lexical", "embedding", "blocks", "mixed"] = "random"
    """random: negatives drawn for each query alone, as in the paper. lexical: by BM25, an image standing for its captions. embedding: by
    the vectors of `model`. mixed: `shares` of these. blocks: images are gathered in blocks and every caption of a block is scored against
    every image of it, so that a batch made of one block has a teacher score for every pair."""
    per_query: Count = 15
    """All but blocks: negatives for each query, in each direction. (The paper: 63 on Flickr30K, 15 on COCO.)"""
    directions: Annotated[tuple[Direction, ...], NotEmpty(), Distinct()] = tuple(Direction)
    """text: captions are sought for each image (the paper's only ones); image: images for each caption."""
    shares: dict[str, Positive] = field(default_factory=dict)
    """mixed: kind -> its share of per_query."""
    model: str = ""
    """embedding: a run of a dual encoder, a CLIP-like model or a text encoder. blocks: likewise, in place of the captions' words."""
    duplicate_bits: Annotated[int, Between(0, 64, "[)")] | None = None
    """Pictures whose 64-bit difference hashes differ in at most this many bits are taken as one: neither is a negative for the other's
    captions. Not looked for where it is not set."""
    absolute_margin: float | None = None
    """A negative whose score is above the mean score of its query's positives minus this is no candidate. Not asked where not set."""
    relative_margin: Annotated[float, Between(0, 1, "[)")] | None = None
    """The same with sigmoids of the scores: above the positives' times 1 minus this, in [0, 1)."""
    block_size: Annotated[int, AtLeast(2)] = 32
    """blocks: images in a block."""
    rounds: Count = 1
    """blocks: how often the images are gathered anew."""
    group_size: Count = 4
    """blocks: images that are near each other are put into a block together, this many at a time; 1 for none."""
    captions_per_image: Count = 5
    """blocks: captions of each image that take part, in each round."""
    seed: Annotated[int, AtLeast(0)] = 0

    def __post_init__(self) -> None:
        check_fields(self, "candidates")
        if (self.kind == "embedding" or "embedding" in self.shares) and not self.model:
            raise ConfigError("candidates.kind embedding needs candidates.model", hint="name a dual encoder, a CLIP or a text encoder")
        self._check_shares()

    def require_packages(self) -> None:
        """MissingError if these candidates need a package that is not installed."""
        if "lexical" in (self.kind, *self.shares):
            miners.load_bm25s()

    def _check_shares(self) -> None:
        if bool(self.shares) != (self.kind == "mixed"):
            raise ConfigError(
                "candidates.shares is for candidates.kind mixed, which needs it", hint="shares = { random = 0.5, lexical = 0.5 }"
            )
        for name, share in self.shares.items():
            if name not in SIMPLE_KINDS:
                raise ConfigError(f"candidates.shares has {name} = {share}", hint=f"known: {', '.join(SIMPLE_KINDS)}")


@dataclass(frozen=True)
class Candidates:
    """The negatives of every query: captions of each image, images of each caption."""

    texts_of_image: RaggedArray
    images_of_text: RaggedArray
    dropped: dict[str, int] = field(default_factory=dict)
    """PairFilter -> pairs that would be candidates but for it, of both directions."""

    def pairs(self, caption_image: Index) -> tuple[Index, Index, NDArray[np.uint8]]:
        """All pairs to score, positives included, each once, by image and then caption: image, caption and the sum of its roles."""
        num_texts = len(caption_image)
        # One number a pair and role, so that one sort in place does it all: there may be 40 million.
        coded = np.concatenate(
            [
                (caption_image * num_texts + np.arange(num_texts)) * 8 + POSITIVE,
                (self.texts_of_image.rows * num_texts + self.texts_of_image.values) * 8 + TEXT_CANDIDATE,
                (self.images_of_text.values * num_texts + self.images_of_text.rows) * 8 + IMAGE_CANDIDATE,
            ]
        )
        coded.sort()
        starts = np.flatnonzero(np.concatenate([[True], coded[1:] >> 3 != coded[:-1] >> 3]))
        role = np.bitwise_or.reduceat((coded & 7).astype(np.uint8), starts)
        keys = coded[starts] >> 3
        return keys // num_texts, keys % num_texts, role


def draw_candidates(corpus: Corpus, config: CandidateConfig, *, device: torch.device = CPU, track: Track = silent) -> Candidates:
    """The negatives of every query of a corpus; never a caption of the query's own image nor one with the same text."""
    found = scoring.embed_corpus(scoring.load_embedder(config.model, device), corpus, track) if config.model else None
    return _draw_blocks(corpus, config, found, track) if config.kind == "blocks" else mine_candidates(corpus, config, found, track)


def text_classes(captions: list[str]) -> Index:
    """A number for each caption, the same for captions that differ in case, spacing and punctuation only."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(" ".join(_WORD.findall(text.lower())), len(seen)) for text in captions], dtype=np.int64)


def mine_candidates(corpus: Corpus, config: CandidateConfig, found: Vectors | None = None, track: Track = silent) -> Candidates:
    """The candidates of each query by itself, of every kind but blocks; `found` are the vectors that embedding goes by."""
    num_images, num_texts = corpus.num_images, corpus.num_captions
    guards = _guards(corpus, config, track)
    lists = {Direction.TEXT: RaggedArray.empty(num_images), Direction.IMAGE: RaggedArray.empty(num_texts)}
    num_dropped = np.zeros(256, dtype=np.int64)
    for direction in config.directions:
        sizes = (num_images, num_texts) if direction == Direction.TEXT else (num_texts, num_images)
        guard = guards if direction == Direction.TEXT else guards.for_captions
        result = miners.mine(_miner(corpus, config, direction, found, guard), *sizes, config.per_query, guard)
        lists[direction] = RaggedArray.from_sorted(result.queries, result.candidates, sizes[0])
        num_dropped += result.num_dropped
    return Candidates(lists[Direction.TEXT], lists[Direction.IMAGE], _told(guards, num_dropped))


def _guards(corpus: Corpus, config: CandidateConfig, track: Track) -> FalseNegativeFilter:
    hash_I = None if config.duplicate_bits is None else image_hashes(corpus, track)
    return FalseNegativeFilter(corpus.caption_image, text_classes(corpus.captions), hash_I, config.duplicate_bits or 0)


def _told(guards: FalseNegativeFilter, num_dropped: Index) -> dict[str, int]:
    return {name: int(num_dropped[reason]) for reason, name in enumerate(guards.names, start=1)}


def _miner(corpus: Corpus, config: CandidateConfig, direction: Direction, found: Vectors | None, guard: PairFilter) -> Miner:
    """The miner of a recipe for one direction."""
    seed = [config.seed, SIMPLE_KINDS.index("random") + (1 if direction == Direction.TEXT else 2)]
    sizes = (corpus.num_images, corpus.num_captions) if direction == Direction.TEXT else (corpus.num_captions, corpus.num_images)

    def simple(kind: str) -> Miner:
        if kind == "lexical":
            of_image = [" ".join(corpus.captions[text] for text in corpus.captions_of(image)) for image in range(corpus.num_images)]
            return miners.lexical_miner(*((of_image, corpus.captions) if direction == Direction.TEXT else (corpus.captions, of_image)))
        if kind == "embedding" and found is not None:
            both = (found.images_ID, found.texts_TD) if direction == Direction.TEXT else (found.texts_TD, found.images_ID)
            return miners.embedding_miner(*both)
        return miners.random_miner(seed, *sizes)

    if config.kind != "mixed":
        return simple(config.kind)
    counts = miners.split_by_shares(config.per_query, list(config.shares.values()))
    return miners.mixed_miner([(simple(kind), count) for kind, count in zip(config.shares, counts, strict=True)], guard)


def _draw_blocks(corpus: Corpus, config: CandidateConfig, found: Vectors | None, track: Track) -> Candidates:
    rng = np.random.default_rng([config.seed, 2])
    groups = clusters(corpus, config.group_size, None if found is None else found.images_ID.cpu().numpy())
    image_parts, text_parts = [], []
    for _ in range(config.rounds):
        order = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
        for images in _blocks(order, config.block_size):
            texts = np.concatenate([_some_captions(rng, corpus, int(i), config.captions_per_image) for i in images])
            image_parts.append(np.repeat(images, len(texts)))
            text_parts.append(np.tile(texts, len(images)))
    keys = np.unique(np.concatenate(image_parts) * corpus.num_captions + np.concatenate(text_parts))
    image, text = keys // corpus.num_captions, keys % corpus.num_captions
    guards = _guards(corpus, config, track)
    reason = guards(image, text)
    image, text = image[reason == 0], text[reason == 0]
    texts_of_image, images_of_text = RaggedArray.empty(corpus.num_images), RaggedArray.empty(corpus.num_captions)
    if Direction.TEXT in config.directions:
        texts_of_image = RaggedArray.from_pairs(image, text, corpus.num_images)
    if Direction.IMAGE in config.directions:
        images_of_text = RaggedArray.from_pairs(text, image, corpus.num_captions)
    return Candidates(texts_of_image, images_of_text, _told(guards, np.bincount(reason, minlength=256) * len(config.directions)))


def _blocks(order: Index, size: int) -> list[Index]:
    """The images cut into blocks of one size; the last is filled up from the first images, so that no query is left with few others."""
    size = min(size, len(order))
    num_blocks = -(-len(order) // size)
    return np.split(np.resize(order, num_blocks * size), num_blocks)


def _some_captions(rng: np.random.Generator, corpus: Corpus, image: int, count: int) -> Index:
    own = np.array(corpus.captions_of(image), dtype=np.int64)
    return own if len(own) <= count else np.sort(rng.choice(own, count, replace=False))
