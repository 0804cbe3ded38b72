"""How each kind of model ranks the galleries of a split.

- dual: every image and caption is embedded once, and scores are streamed.
- fusion: every pair is scored, in chunks of images. The positives come first, so that no score needs to be kept. Each
  caption is encoded once and each image twice, which costs little compared with its pairs.
- cascade: the dual encoder finds the first `depth` captions of each image and images of each caption, and a fusion
  scorer, or another dual encoder as one, orders them; lower candidates keep the order of the first model. Only the
  deepest of several depths is scored: its scores give the others.

Each fold of a protocol is a gallery of its own. A dual encoder still embeds once; a fusion scorer scores only pairs
within a fold.

Shape letters: I images, T texts (captions), P pairs, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from dcdctl.core import scoring
from dcdctl.core.config import ASCENDING, NOT_EMPTY, Natural, settle_fields
from dcdctl.core.data import Corpus, Indices, Scores
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.evaluation import cascade
from dcdctl.core.evaluation.agreement import Lookup
from dcdctl.core.evaluation.document import FULL_VECTORS, Depth, VectorForm
from dcdctl.core.evaluation.measures import mean_measures, on_front, rsum
from dcdctl.core.evaluation.protocols import WHOLE, Fold, Protocol, folds_of
from dcdctl.core.evaluation.ranking import NUM_TOP, Rankings
from dcdctl.core.evaluation.ranks import RankCounter, checked_scores
from dcdctl.core.evaluation.vectors import rank_vectors
from dcdctl.core.models import DualEncoder, Model, Scorer, TextBatch
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import (
    LOGIT_ROUNDING,
    PairScorer,
    Vectors,
    Workload,
    dual_embedder,
    embed_all,
    finite_vectors,
    open_source,
)
from dcdctl.core.teacher import products_of

OnWorkload = Callable[[Workload], None]
"""Receives the cost of scoring, before a fusion scorer starts."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How a model is evaluated."""

    protocol: Protocol = WHOLE
    depths: Annotated[tuple[Natural, ...], NOT_EMPTY, ASCENDING] = (50,)
    """cascade: candidates per query that are re-ranked. The result is that of the last depth; all are listed beside
    it."""
    compute: Compute = ON_CPU
    num_top: int = NUM_TOP
    """Candidates of each query that are kept."""
    form: VectorForm = FULL_VECTORS
    """dual: how its vectors are compared."""
    keeps_order: bool = False
    """Keep what gives the model's score of any pair, for its agreement with a teacher; not of a cascade."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.depths == (0,):
            raise ConfigError("depths must end above 0, got 0")


@dataclass(frozen=True)
class RankingTask:
    """The galleries to rank, and how."""

    corpus: Corpus
    options: EvalOptions
    track: Track = silent
    on_workload: OnWorkload | None = None

    @cached_property
    def folds(self) -> list[Fold]:
        return folds_of(self.corpus, self.options.protocol)

    def image_T(self, fold: Fold) -> Indices:
        """The image of each caption of a fold, counted from the fold's first image."""
        return self.corpus.caption_image[fold.texts.start : fold.texts.stop] - fold.images.start


def embed(model: DualEncoder, task: RankingTask, forms: Sequence[VectorForm] = (FULL_VECTORS,)) -> Vectors:
    """The vectors of all images and all captions, to be ranked in these forms. ConfigError for a form that is too
    wide."""
    widest = max((form.dims for form in forms if form.dims is not None), default=None)
    if widest is not None and widest > model.embedding_dim:
        raise ConfigError(
            f"--dims is {widest}, and the vectors of the model have {model.embedding_dim} numbers",
            hint=f"at most --dims {model.embedding_dim}",
        )
    compute = task.options.compute
    embedder = dual_embedder(model, compute.device)
    # In a cascade the features may be the re-ranker's alone: a dual encoder without frozen encoders reads the corpus.
    reading = compute if model.encoders is not None else replace(compute, features=None)
    source = open_source(task.corpus, model, reading, task.track)
    # The vectors have length 1 already; normalizing them again would only move their last bits.
    return embed_all(embedder, source, compute, normalize=False, track=task.track)


def rank_embedded(
    vectors: Vectors, task: RankingTask, form: VectorForm = FULL_VECTORS, num_top: int = 0
) -> list[Rankings]:
    """The rankings of each fold by vectors in a form, with at least `num_top` candidates."""
    num_top, folds = max(num_top, task.options.num_top), []
    for fold in task.folds:
        images_ID = vectors.images_ID[fold.images.start : fold.images.stop]
        texts_TD = vectors.texts_TD[fold.texts.start : fold.texts.stop]
        folds.append(rank_vectors(images_ID, texts_TD, task.image_T(fold), form, num_top=num_top))
    return folds


def rank_by_fusion(scorer: Scorer, task: RankingTask, kept_IT: Scores | None) -> tuple[list[Rankings], int]:
    """The rankings of each fold by the logits of all pairs, and the number of pairs.

    `kept_IT` receives all logits, if the protocol has one fold.
    """
    num_pairs = sum(len(fold.images) * len(fold.texts) for fold in task.folds)
    open_fold = fold_scorers(scorer, task)
    # Images are encoded once for their positives and once for all other pairs.
    report_workload(task, open_fold(task.folds[0]), num_pairs, 2 * task.corpus.num_images)
    folds = _rank_all_pairs(open_fold, task, task.options.num_top, kept_IT)
    return folds, num_pairs


def order_of(model: Model, task: RankingTask) -> Lookup:
    """What gives a model's score of any pair, without ranks, for which captions need their images. A fusion scorer
    scores all pairs; ModelError for scores that are not finite."""
    if model.has_one_vector:
        return vector_order(embed(model, task))
    scorer, num_texts = fold_scorers(model, task)(task.folds[0]), task.corpus.num_captions
    scores_IT = np.empty((task.corpus.num_images, num_texts), np.float32)
    report_workload(task, scorer, scores_IT.size, task.corpus.num_images)
    with task.track("score", total=scores_IT.size, unit="pairs") as advance:
        chunks = _chunks_of(range(len(scores_IT)))
        pairs = ((np.repeat(images, num_texts), np.tile(np.arange(num_texts), len(images))) for images in chunks)
        for images, scores_P in zip(chunks, scorer.score_chunks(pairs, advance), strict=True):
            scores_IT[images] = checked_scores(scores_P).reshape(len(images), num_texts)
    return lambda image_ix, text_ix: scores_IT[image_ix, text_ix]


def vector_order(vectors: Vectors) -> Lookup:
    """What gives a dual encoder's cosine of any pair, from its vectors."""
    return partial(products_of, finite_vectors(vectors.images_ID).cpu(), finite_vectors(vectors.texts_TD).cpu())


def _first_stage(model: Model, task: RankingTask) -> tuple[list[Rankings], Callable[[TextBatch], Tensor]]:
    """The rankings of each fold by what finds the candidates of a cascade, and what gives the scores of a caption with
    the images of the first fold, which are encoded before."""
    # The result keeps `num_top` candidates, also at a smaller depth.
    num_top, fold = max(task.options.depths[-1], task.options.num_top), task.folds[0]
    if model.has_one_vector:
        vectors = embed(model, task)
        images_ID = vectors.images_ID[: len(fold.images)]
        ranked = rank_embedded(vectors, task, num_top=num_top)
        return ranked, lambda text: images_ID @ model.embed_texts(text).float()[0]
    open_fold = fold_scorers(model, task)
    ranked = _rank_all_pairs(open_fold, task, num_top)
    states, image_ix = open_fold(fold).encode_images(np.arange(len(fold.images))), torch.arange(len(fold.images))
    text_ix = torch.zeros_like(image_ix)
    return ranked, lambda text: model.score_pairs(states, model.encode_texts(text), image_ix, text_ix)


def rank_by_cascade(model: Model, scorer: Scorer, task: RankingTask) -> tuple[list[Rankings], int, tuple[Depth, ...]]:
    """The rankings of each fold by the logits of what a model that encodes items once finds, at the last depth; the
    number of scored pairs; with several depths, also what each gains and costs."""
    depths, num_top = task.options.depths, task.options.num_top
    firsts, scores_of = _first_stage(model, task)
    shortlists = []
    for first, fold in zip(firsts, task.folds, strict=True):
        shortlists.append(cascade.Shortlists(first, task.image_T(fold), depths[-1]))
    num_pairs = sum(len(shortlist.pair_P) for shortlist in shortlists)
    open_fold = fold_scorers(scorer, task)
    report_workload(task, open_fold(task.folds[0]), num_pairs, task.corpus.num_images)
    scored = []
    with task.track("re-rank", total=num_pairs, unit="pairs") as advance:
        for fold, shortlist in zip(task.folds, shortlists, strict=True):
            scored.append((shortlist, open_fold(fold).score(*shortlist.pairs, advance)))

    def at(depth: int) -> list[Rankings]:
        return [shortlist.rerank(scores_P, depth, num_top=num_top) for shortlist, scores_P in scored]

    if len(depths) == 1:
        return at(depths[-1]), num_pairs, ()
    times_ms = cascade.query_ms(model, scores_of, open_fold(task.folds[0]), task.corpus, depths)
    ranked = [at(depth) for depth in depths]
    measures = [mean_measures(folds) for folds in ranked]
    rsums = [rsum(**both) for both in measures]
    is_on_front = on_front(rsums, times_ms)
    results = []
    for number, depth in enumerate(depths):
        results.append(
            Depth(
                depth=depth,
                **measures[number],
                rsum=rsums[number],
                ms_per_query=times_ms[number],
                pairs=sum(shortlist.num_pairs(depth) for shortlist in shortlists),
                on_front=is_on_front[number],
            )
        )
    return ranked[-1], num_pairs, tuple(results)


def _rank_all_pairs(
    open_fold: Callable[[Fold], PairScorer], task: RankingTask, num_top: int, kept_IT: Scores | None = None
) -> list[Rankings]:
    """The rankings of each fold by the logits of all pairs."""
    num_pairs, folds = sum(len(fold.images) * len(fold.texts) for fold in task.folds), []
    with task.track("score", total=num_pairs, unit="pairs") as advance:
        for fold in task.folds:
            scorer, image_T = open_fold(fold), task.image_T(fold)
            positive_T = scorer.score(image_T, np.arange(len(image_T)), advance)
            counter = RankCounter(positive_T, image_T, num_top=num_top, margin=LOGIT_ROUNDING)
            # The positives have their scores already; all other pairs are scored now.
            chunks = _chunks_of(range(len(scorer.images)))
            others = (_others(images, image_T) for images in chunks)
            for images, scores_P in zip(chunks, scorer.score_chunks(others, advance), strict=True):
                image_P, text_P = _others(images, image_T)
                scores_IT = np.tile(positive_T, (len(images), 1))
                scores_IT[image_P - images[0], text_P] = scores_P
                counter.add(scores_IT, first_image=int(images[0]))
                if kept_IT is not None:
                    kept_IT[images] = scores_IT
            folds.append(counter.rankings())
    return folds


def _chunks_of(images: range) -> list[Indices]:
    """Images in the chunks of `PairScorer`."""
    step = scoring.IMAGE_CHUNK
    return [np.arange(first, min(first + step, images.stop)) for first in images[::step]]


def _others(images: Indices, image_T: Indices) -> tuple[Indices, Indices]:
    """The pairs of images with all captions but their own."""
    image_P, text_P = np.nonzero(images[:, None] != image_T)
    return images[image_P], text_P


def fold_scorers(scorer: Scorer, task: RankingTask) -> Callable[[Fold], PairScorer]:
    """A function that gives the pair scorer of a fold."""
    compute = task.options.compute
    scorer.to(compute.device).eval()
    read = open_source(task.corpus, scorer, compute, task.track)
    source = scoring.encode_corpus(scorer, read, compute, track=task.track)
    return lambda fold: PairScorer(scorer=scorer, source=source, images=fold.images, texts=fold.texts, compute=compute)


def report_workload(task: RankingTask, scorer: PairScorer, num_pairs: int, num_images: int) -> None:
    # The workers of a cluster may be faster than this process, or slower.
    if task.on_workload is not None and scorer.compute.of_worker is None:
        task.on_workload(scorer.workload(num_pairs, num_images, task.corpus.num_captions))
