"""The candidates of every query: the pairs of images and captions that the teacher scores.

The candidates of an image are captions, and of a caption images. The positives (the captions of an image, the
image of a caption) are always candidates and are not drawn; a pool has none. Every result is a function of the corpus
and the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dcdctl.core import models, scoring
from dcdctl.core.config import (
    DISTINCT,
    MOST,
    NOT_EMPTY,
    Count,
    Fraction,
    Natural,
    Repeated,
    Seed,
    between,
    settle_fields,
)
from dcdctl.core.data import Corpus, Direction, Indices, RaggedArray
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import ConfigError, CorpusError
from dcdctl.core.places import shown
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher import budget, miners
from dcdctl.core.teacher.cache_format import Pairs
from dcdctl.core.teacher.candidate_lists import Candidates
from dcdctl.core.teacher.embedded import embed_corpus
from dcdctl.core.teacher.false_negatives import FalseNegativeFilter, Reasons, false_negative_filter
from dcdctl.core.teacher.miners import Miner, PairFilter, clusters
from dcdctl.core.teacher.scores import TeacherScores

_MINED = 255
"""The reason against a random candidate that was mined; no reason of a filter."""


START = "start"
"""As `candidates.model`: what the student starts from."""


@dataclass(frozen=True, kw_only=True)
class CandidateConfig:
    """The `[candidates]` table: the pairs that the teacher scores."""

    kind: Literal["random", "lexical", "embedding", "blocks"] = "random"
    """random: negatives drawn separately for each query, as in the released code. lexical: by BM25; an image is
    represented by its captions, and in a pool by the words of its path and its columns. embedding: by the vectors of
    `model`. blocks: images are grouped into blocks, and every caption of a block is scored against every image of it. A
    batch of one block then has a teacher score for every pair. A block of a pool has the texts nearest to its images by
    `model`, else random ones."""
    per_query: Count = 15
    """All kinds except blocks: negatives per query and direction. Take many more than batch.random_negatives, or every
    list of a query has the same ones."""
    random_per_query: Natural = 0
    """embedding, lexical: so many of `per_query` are random, so that the teacher also scores what no miner proposes."""
    directions: Annotated[tuple[Direction, ...], NOT_EMPTY, DISTINCT] = tuple(Direction)
    """text: caption candidates for each image (the only direction of the released code); image: image candidates for
    each caption."""
    model: str = ""
    """embedding: a run of a dual encoder or of late interaction, a CLIP-like model or a text encoder (not for a pool).
    blocks: the same but late interaction, instead of the words of the captions. start: in the rounds of a training, a
    student of the captioned images, which is trained first, or without any the student's own start."""
    duplicate_bits: Annotated[int, between(0, 64, "[)")] | None = None
    """Images whose 64-bit difference hashes differ in at most this many bits count as duplicates: neither is a negative
    for the other's captions, in a cache and in the batches of a training; in a pool, for the texts that the teacher
    picked it for. Unset: duplicates are not searched for."""
    relative_margin: Fraction | None = None
    """Removes negatives whose score, as a sigmoid, is above that of the mean score of the query's positives times (1 -
    margin). Unset: no margin."""
    block_size: Annotated[int, between(2, MOST)] = 32
    """blocks: images per block."""
    rounds: Repeated = 1
    """blocks: how often all images are grouped again."""
    group_size: Count = 4
    """blocks: size of the clusters of similar images that are put into one block together; 1 for none, as in a pool
    without a `model`."""
    captions_per_image: Count = 5
    """blocks: captions per image that are used in each round; in a pool, texts of a block per image."""
    seed: Seed = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        settle_fields(self, "candidates")
        if self.kind == "embedding" and not self.model:
            raise ConfigError(
                "candidates.kind embedding needs candidates.model", hint="name a dual encoder, a CLIP or a text encoder"
            )
        if self.random_per_query >= self.per_query:
            raise ConfigError(
                f"candidates.random_per_query must be less than per_query, got {self.random_per_query} of "
                f"{self.per_query}"
            )
        if self.random_per_query and self.kind in ("random", "blocks"):
            raise ConfigError(
                f"candidates.random_per_query is for mined candidates, and the kind is {self.kind}",
                hint="set candidates.kind to embedding or lexical",
            )

        if self.model == START and self.kind in ("random", "lexical"):
            raise ConfigError(
                f"candidates.model is start, and no model proposes candidates of kind {self.kind}",
                hint="set candidates.kind to embedding, or leave the model out: --set candidates.model=",
            )

    def proposed_by(self, ref: str) -> CandidateConfig:
        """These candidates by a model in the place of `start`."""
        # A folder may have that name.
        return replace(self, model=f"./{START}" if ref == START else ref)

    def check_model(self) -> None:
        """ConfigError for a model that only the rounds of a training have, ModelError for one of the wrong kind."""
        if self.model == START:
            raise ConfigError(
                "candidates.model is start, which proposes candidates in the rounds of a training alone",
                hint="let `dcdctl distill --teacher REF` score in its rounds, or name a model, such as a finished run: "
                "--set candidates.model=RUN; for a cache that --against names, take --recipe pool-distilled",
            )
        if self.model:
            scoring.check_embedder(self.model, takes_late=self.kind == "embedding")

    def require_packages(self) -> None:
        """MissingError if these candidates need a package that is not installed."""
        if self.kind == "lexical":
            miners.load_bm25s()


def check_candidates(corpus: Corpus, config: CandidateConfig) -> None:
    """CorpusError for a pool that has no pairs, ConfigError for settings that need the positives that it lacks."""
    if not corpus.is_pool:
        return
    name = f"the pool {shown(corpus.folder)} (split {corpus.split})"
    for what, count in (("images", corpus.num_images), ("texts", corpus.num_captions)):
        if not count:
            raise CorpusError(f"{name} has no {what}, and a teacher scores pairs of both")
    if config.relative_margin is not None:
        raise ConfigError(
            f"candidates.relative_margin is {config.relative_margin:g} and needs positives, which {name} lacks",
            hint="use a recipe without candidates.relative_margin",
        )
    if config.kind == "lexical":
        _words_of_images(corpus)


def most_pairs(corpus: Corpus, config: CandidateConfig, *, num_texts: int | None = None) -> int:
    """The most pairs that these candidates can have, positives included, by the counts of a corpus alone. `num_texts`
    are those that get candidates, of all.

    There are fewer where both directions or several rounds propose the same pair, and where a false negative leaves a
    place empty; otherwise as many.
    """
    num_images, num_all, own = corpus.num_images, corpus.num_captions, int(not corpus.is_pool)
    num_drawn = 0
    for direction in map(Direction, config.directions):
        queries, gallery = direction.query_first(num_images, num_all)
        if direction == Direction.IMAGE and num_texts is not None:
            queries = num_texts
        num_drawn += queries * min(config.per_query, gallery - own)
    if config.kind == "blocks":
        size, per_image = min(config.block_size, num_images), config.captions_per_image
        # Of all images and those that fill the last block again, less what images lack that have fewer captions.
        used = per_image * size * -(-num_images // size) - own * max(0, per_image * num_images - num_all)
        num_drawn = config.rounds * (size - own) * used
    return min(num_images * num_all, own * num_all + num_drawn)


def most_per_query(corpus: Corpus, config: CandidateConfig, direction: Direction, max_pairs: int | None = None) -> int:
    """The most candidates that any query of a direction can have, by the counts of a corpus alone."""
    if direction not in config.directions:
        return 0
    own = int(not corpus.is_pool)
    _, gallery = direction.query_first(corpus.num_images, corpus.num_captions)
    if config.kind == "blocks":
        if corpus.is_pool:
            return gallery
        # An image that fills the last block is in two blocks of a round.
        images = 2 * config.rounds * (min(config.block_size, corpus.num_images) - 1)
        return min(gallery - 1, images * config.captions_per_image if direction == Direction.TEXT else images)
    count = min(config.per_query, gallery - own)
    if max_pairs is None:
        return count
    # All queries have as many before one has another one more (`budget`).
    sides = [each.query_first(corpus.num_images, corpus.num_captions)[0] for each in config.directions]
    return min(count, max(max_pairs - own * corpus.num_captions, 0) // max(sides) + 1)


def fewest_pairs(corpus: Corpus, config: CandidateConfig) -> int:
    """The smallest budget with which a cache of these candidates can be made: the pairs that are always scored and one
    more, or a whole block."""
    own = 0 if corpus.is_pool else corpus.num_captions
    if config.kind != "blocks":
        return own + 1
    size = min(config.block_size, corpus.num_images)
    texts = min(size * config.captions_per_image, corpus.num_captions)
    return own + texts * (size if corpus.is_pool else size - 1)


def draw_candidates(
    corpus: Corpus,
    config: CandidateConfig,
    *,
    compute: Compute = ON_CPU,
    max_pairs: int | None = None,
    scored: Pairs | None = None,
    sure_above: float | None = None,
    track: Track = silent,
) -> Candidates:
    """The negatives of every query of a corpus, without false negatives.

    With `max_pairs` as many as leave at most so many pairs to score, positives included (`budget`); pairs that are
    `scored` already are free, and their scores tell where the vectors of `model` disagree with the teacher. A text with
    a score above `sure_above` gets no further images, of any kind but blocks.
    """
    proposer = _open_proposer(corpus, config, compute, track)
    is_unsure_T = np.ones(corpus.num_captions, dtype=bool)
    if scored is not None and sure_above is not None:
        is_unsure_T[scored.text[scored.score > sure_above]] = False
    if max_pairs is None and config.kind != "blocks":
        return mine_candidates(corpus, config, proposer.vectors, track).of_texts(is_unsure_T)
    scored_P = np.empty(0, np.int64) if scored is None else scored.image * corpus.num_captions + scored.text
    count = None if max_pairs is None else budget.num_candidates(corpus, max_pairs, scored_P)
    if config.kind == "blocks":
        assert not isinstance(proposer.vectors, TeacherScores)
        return _draw_blocks(corpus, config, proposer.vectors, count, scored_P, track)
    assert count is not None
    weights = {Direction.TEXT: np.ones(corpus.num_images), Direction.IMAGE: np.ones(corpus.num_captions)}
    if scored is not None and len(scored) and proposer.logits is not None:
        student_P = proposer.logits(scored.image, scored.text)
        for direction, ones_Q in weights.items():
            query_P, _ = direction.query_first(scored.image, scored.text)
            weights[direction] = budget.disagreement(query_P, scored.score, student_P, num_queries=len(ones_Q))
    mined = mine_candidates(corpus, config, proposer.vectors, track).of_texts(is_unsure_T)
    return budget.within_budget(mined, count, scored_P, weights, seed=config.seed)


@dataclass(frozen=True, kw_only=True)
class _Proposer:
    """What `candidates.model` says of the pairs of a corpus."""

    vectors: scoring.Vectors | TeacherScores | None = None
    """The vectors of the corpus, or by late interaction the scores of all its pairs."""
    logits: Callable[[Indices, Indices], NDArray[np.floating]] | None = None
    """The logits of images with captions, by a model that has a scale."""


def _open_proposer(corpus: Corpus, config: CandidateConfig, compute: Compute, track: Track) -> _Proposer:
    """The model of a recipe, which encodes the corpus once for both directions and for all rounds."""
    if not config.model:
        return _Proposer()
    if config.kind == "embedding" and scoring.is_late(config.model):
        named = [(config.model, models.load_searchable(config.model))]
        scores = embed_corpus(named, corpus, compute.plain(), track=track)
        return _Proposer(vectors=scores, logits=scores.lookup)
    embedder = scoring.load_embedder(config.model, compute.device)
    vectors = scoring.embed_corpus(embedder, corpus, track, compute)

    def logits(image_P: Indices, text_P: Indices) -> NDArray[np.floating]:
        pair_ix = torch.from_numpy(image_P), torch.from_numpy(text_P)
        # On the CPU, where it takes the pairs in parts: a cache has millions.
        products_P = models.pair_products(vectors.images_ID.cpu(), vectors.texts_TD.cpu(), *pair_ix).numpy()
        return embedder.logit_scale * products_P

    return _Proposer(vectors=vectors, logits=logits if embedder.logit_scale else None)


def mine_candidates(
    corpus: Corpus,
    config: CandidateConfig,
    vectors: scoring.Vectors | TeacherScores | None = None,
    track: Track = silent,
) -> Candidates:
    """Candidates mined separately for each query, of every kind except blocks. The kind embedding needs `vectors`, or
    of late interaction the scores of all pairs."""
    num_images, num_texts = corpus.num_images, corpus.num_captions
    # The released code may draw captions of the same image as negatives; here they are removed.
    false_negatives = false_negative_filter(corpus, config.duplicate_bits, track)
    lists = {Direction.TEXT: RaggedArray.empty(num_images), Direction.IMAGE: RaggedArray.empty(num_texts)}
    num_dropped = np.zeros(256, dtype=np.int64)
    ranks: dict[Direction, NDArray[Any]] = {}
    for direction in map(Direction, config.directions):
        sizes = direction.query_first(num_images, num_texts)
        reason_against = false_negatives if direction == Direction.TEXT else false_negatives.for_captions
        num_mined = config.per_query - config.random_per_query
        miner = _miner(corpus, config, direction, vectors)
        key_P, rank_P, dropped = miners.mine(miner, *sizes, num_mined, reason_against)
        ranks[direction] = rank_P + 0.5
        num_dropped += dropped
        if config.random_per_query:
            other_P, rank_P, dropped = _random_others(config, direction, sizes, key_P, reason_against)
            num_dropped += dropped
            # In steps as wide as the lists are long, so that a budget keeps the shares of mined and random ones.
            steps = num_mined * (rank_P + 0.5) / config.random_per_query
            order = np.argsort(keys := np.concatenate([key_P, other_P]))
            key_P, ranks[direction] = keys[order], np.concatenate([ranks[direction], steps])[order]
        lists[direction] = RaggedArray.from_sorted(key_P // sizes[1], key_P % sizes[1], sizes[0])
    return Candidates(lists[Direction.TEXT], lists[Direction.IMAGE], _counts(false_negatives, num_dropped), ranks)


def _random_others(
    config: CandidateConfig, direction: Direction, sizes: tuple[int, int], mined_P: Indices, reason_against: PairFilter
) -> tuple[Indices, Indices, Indices]:
    """Random candidates that were not mined: their sorted keys, as those of the mined ones; ranks; counts by reason."""
    # Above all keys, so that a search never ends behind the last.
    mined_P = np.append(mined_P, np.iinfo(np.int64).max)

    def reason_against_others(queries: Indices, values: Indices) -> Reasons:
        keys, reasons = queries * sizes[1] + values, reason_against(queries, values)
        reasons[mined_P[np.searchsorted(mined_P, keys)] == keys] = _MINED
        return reasons

    return miners.mine(_random_miner(config, direction, sizes), *sizes, config.random_per_query, reason_against_others)


def _random_miner(config: CandidateConfig, direction: Direction, sizes: tuple[int, int]) -> Miner:
    # Each direction has its own random draws.
    return miners.random_miner([config.seed, 1 if direction == Direction.TEXT else 2], *sizes)


def _counts(false_negatives: FalseNegativeFilter, num_dropped: Indices) -> dict[str, int]:
    return {name: int(num_dropped[reason]) for reason, name in enumerate(false_negatives.names, start=1)}


def _miner(
    corpus: Corpus, config: CandidateConfig, direction: Direction, vectors: scoring.Vectors | TeacherScores | None
) -> Miner:
    """The miner of a recipe for one direction."""
    if config.kind == "lexical":
        return miners.lexical_miner(*direction.query_first(_words_of_images(corpus), corpus.captions))
    if config.kind == "embedding":
        assert vectors is not None
        if isinstance(vectors, TeacherScores):
            lookup = vectors.lookup
            if direction == Direction.IMAGE:
                # A column of images and a row of texts, which are scored in blocks.
                return miners.score_miner(lambda texts, images: lookup(images.T, texts.T).T, corpus.num_images)
            return miners.score_miner(lookup, corpus.num_captions)
        return miners.embedding_miner(*direction.query_first(vectors.images_ID, vectors.texts_TD))
    return _random_miner(config, direction, direction.query_first(corpus.num_images, corpus.num_captions))


def _words_of_images(corpus: Corpus) -> list[str]:
    """What is written of each image: its captions, or in a pool its path and its columns; ConfigError if no word is in
    them."""
    words = []
    if not corpus.is_pool:
        for image in range(corpus.num_images):
            words.append(" ".join(corpus.captions[text] for text in corpus.captions_of(image)))
        return words
    rows = [{}] * corpus.num_images if corpus.columns is None else corpus.columns.to_pylist()
    for path, row in zip(corpus.image_paths, rows, strict=True):
        values = [str(value) for value in row.values() if value is not None]
        words.append(" ".join([path.rpartition(".")[0] or path, *values]))
    if not any(character.isalpha() for text in words for character in text):
        raise ConfigError(
            "candidates.kind is lexical, and the paths and columns of the pool's images have no words, such as "
            f"{words[0]!r}",
            hint="use candidates.kind embedding, or random",
        )
    return words


def _draw_blocks(
    corpus: Corpus,
    config: CandidateConfig,
    vectors: scoring.Vectors | None,
    count: int | None,
    scored_P: Indices,
    track: Track,
) -> Candidates:
    rng = np.random.default_rng([config.seed, 2])
    # The images of a pool without a model have no words to compare.
    size = 1 if corpus.is_pool and vectors is None else config.group_size
    groups = clusters(corpus, size, None if vectors is None else vectors.images_ID.cpu().numpy())
    image_parts, text_parts = [], []
    for _ in range(config.rounds):
        order = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
        blocks = _blocks(order, config.block_size)
        for images, texts in zip(blocks, _texts_of_blocks(rng, corpus, config, blocks, vectors), strict=True):
            image_parts.append(np.repeat(images, len(texts)))
            text_parts.append(np.tile(texts, len(images)))
    keys, first = np.unique(
        np.concatenate(image_parts) * corpus.num_captions + np.concatenate(text_parts), return_index=True
    )
    image, text = keys // corpus.num_captions, keys % corpus.num_captions
    false_negatives = false_negative_filter(corpus, config.duplicate_bits, track)
    reason = false_negatives(image, text)
    left_out = {}
    if count is not None:
        block = np.searchsorted(np.cumsum([len(part) for part in image_parts]), first, side="right")
        is_open = (reason == 0) & ~np.isin(keys, scored_P)
        num_blocks, left_out[budget.LEFT_OUT] = budget.num_blocks(count, block[is_open], len(image_parts))
        is_kept = block < num_blocks
        image, text, reason = image[is_kept], text[is_kept], reason[is_kept]
    image, text = image[reason == 0], text[reason == 0]
    sides = ((Direction.TEXT, image, text, corpus.num_images), (Direction.IMAGE, text, image, corpus.num_captions))
    texts_of_image, images_of_text = (
        RaggedArray.from_pairs(rows, values, count) if direction in config.directions else RaggedArray.empty(count)
        for direction, rows, values, count in sides
    )
    # A removed pair is missing in the lists of each direction.
    return Candidates(
        texts_of_image,
        images_of_text,
        _counts(false_negatives, np.bincount(reason, minlength=256) * len(config.directions)) | left_out,
    )


def _blocks(order: Indices, size: int) -> list[Indices]:
    """The images split into blocks of one size. The last block is padded with the first images, so that no query has
    few candidates."""
    size = min(size, len(order))
    num_blocks = -(-len(order) // size)
    return np.split(np.resize(order, num_blocks * size), num_blocks)


def _texts_of_blocks(
    rng: np.random.Generator,
    corpus: Corpus,
    config: CandidateConfig,
    blocks: list[Indices],
    vectors: scoring.Vectors | None,
) -> Iterable[Indices]:
    """The texts of each block: captions of its images; in a pool, each text in one block of a round while texts
    last."""
    if not corpus.is_pool:
        count = config.captions_per_image

        def some_captions(image: int) -> Indices:
            own = np.array(corpus.captions_of(int(image)), dtype=np.int64)
            return own if len(own) <= count else np.sort(rng.choice(own, count, replace=False))

        return (np.concatenate(list(map(some_captions, images))) for images in blocks)
    size = min(len(blocks[0]) * config.captions_per_image, corpus.num_captions)
    if vectors is None:
        order = rng.permutation(corpus.num_captions)
        return np.resize(order, len(blocks) * size).reshape(-1, size)
    centroids_BD = torch.stack([vectors.images_ID[torch.from_numpy(images)].mean(dim=0) for images in blocks])
    return miners.share_out(centroids_BD, vectors.texts_TD, size)
