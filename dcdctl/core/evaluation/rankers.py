"""How each kind of model ranks the galleries of a split.

- dual: every image and caption is embedded once; scores are streamed.
- fusion: every pair goes through the fusion layers, in chunks of images. The positives are scored first, so that no score needs
  to be kept; each caption is encoded once and each image twice, which costs little beside its pairs.
- cascade: the dual encoder finds the first `depth` captions of each image and images of each caption, the fusion scorer puts
  these in a new order; what lies below them stays in the dual encoder's order. Of several depths the deepest is scored, and all
  follow from its scores.

Each fold of a protocol is a gallery of its own: a dual encoder embeds once all the same, a fusion scorer sees pairs within folds only.

Shape letters: I images, T texts (captions), P pairs, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core import scoring
from dcdctl.core.config import Ascending, AtLeast, NotEmpty, check_fields
from dcdctl.core.data import Corpus
from dcdctl.core.devices import ON_CPU, Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.evaluation import cascade, ranks, recall
from dcdctl.core.evaluation.cascade import DepthResult, Shortlists
from dcdctl.core.evaluation.protocols import WHOLE, Fold, Protocol
from dcdctl.core.evaluation.ranks import NUM_TOP, Rankings, Tally
from dcdctl.core.models import DualEncoder, FusionScorer
from dcdctl.core.progress import Advance, Track
from dcdctl.core.scoring import LOGIT_ROUNDING, PairScorer, Workload, dual_embedder, embed_all, open_source

Tell = Callable[[Workload], None]
"""Hears what a fusion scorer's work will take, before it starts."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How a model is evaluated."""

    protocol: Protocol = WHOLE
    depths: Annotated[tuple[Annotated[int, AtLeast(0)], ...], NotEmpty(), Ascending()] = (50,)
    """cascade: candidates of each query that are re-ranked, ascending; the numbers are those of the last, all are listed beside."""
    compute: Compute = ON_CPU
    num_top: int = NUM_TOP
    """Candidates of each query that are named."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.depths == (0,):
            raise ConfigError("depths must end above 0, got 0")


@dataclass(frozen=True)
class Work:
    """What is ranked, how, and who hears of it."""

    corpus: Corpus
    options: EvalOptions
    folds: list[Fold]
    track: Track
    tell: Tell | None

    def owner(self, fold: Fold) -> NDArray[np.int64]:
        """The image of each caption of a fold, counted within it."""
        return self.corpus.caption_image[fold.texts.start : fold.texts.stop] - fold.images.start


@dataclass(frozen=True)
class Found:
    """What came of it."""

    folds: list[Rankings]
    num_pairs: int = 0
    """Pairs that went through fusion layers."""
    depths: tuple[DepthResult, ...] = ()
    """cascade of several depths: each of them."""


def dual(model: DualEncoder, work: Work) -> Found:
    """By the cosines of a dual encoder."""
    return Found(_by_vectors(*_embed(model, work), work, work.options.num_top))


def fusion(scorer: FusionScorer, work: Work) -> Found:
    """By the logits of all pairs."""
    num_pairs = sum(len(fold.images) * len(fold.texts) for fold in work.folds)
    open_fold = _opened(scorer, work)
    # Images are encoded once for their positives and once for all other pairs.
    _tell(work, open_fold(work.folds[0]), num_pairs, 2 * work.corpus.num_images)
    with work.track("score", total=num_pairs, unit="pairs") as advance:
        return Found([_by_every_pair(open_fold(fold), work.owner(fold), work.options.num_top, advance) for fold in work.folds], num_pairs)


def cascaded(model: DualEncoder, scorer: FusionScorer, work: Work) -> Found:
    """By the logits of what a dual encoder finds, at the last depth; and what each depth brings, where there are several."""
    depths, num_top = work.options.depths, work.options.num_top
    image_ID, text_TD = _embed(model, work)
    firsts = _by_vectors(image_ID, text_TD, work, max(depths[-1], num_top))
    lists = [Shortlists(first, work.owner(fold), depths[-1]) for first, fold in zip(firsts, work.folds, strict=True)]
    num_pairs = sum(len(one.pair_P) for one in lists)
    open_fold = _opened(scorer, work)
    _tell(work, open_fold(work.folds[0]), num_pairs, work.corpus.num_images)
    with work.track("re-rank", total=num_pairs, unit="pairs") as advance:
        scores = [open_fold(fold).score(*one.pairs, advance) for fold, one in zip(work.folds, lists, strict=True)]

    def at(depth: int) -> list[Rankings]:
        return [one.reranked(scores_P, depth, num_top=num_top) for one, scores_P in zip(lists, scores, strict=True)]

    if len(depths) == 1:
        return Found(at(depths[-1]), num_pairs)
    times = cascade.query_ms(model, image_ID[: len(work.folds[0].images)], open_fold(work.folds[0]), work.corpus, depths)
    results = [_at_depth(depth, at(depth), ms, sum(one.num_pairs(depth) for one in lists)) for depth, ms in zip(depths, times, strict=True)]
    marked = [replace(one, is_on_front=is_on_front) for one, is_on_front in zip(results, cascade.on_front(results), strict=True)]
    return Found(at(depths[-1]), num_pairs, tuple(marked))


def _embed(model: DualEncoder, work: Work) -> tuple[Tensor, Tensor]:
    """The vectors of all images and all captions."""
    compute = work.options.compute
    embedder = dual_embedder(model, compute.device)
    # In a cascade the features may be the re-ranker's alone: a dual encoder without frozen encoders reads the corpus.
    source = open_source(work.corpus, model, compute if model.encoders is not None else replace(compute, features=None), work.track)
    # The vectors have length 1 already; normalizing them again would only move their last bits.
    vectors = embed_all(embedder, source, compute, normalize=False, track=work.track)
    return vectors.images_ID, vectors.texts_TD


def _by_vectors(image_ID: Tensor, text_TD: Tensor, work: Work, num_top: int) -> list[Rankings]:
    cut = ((image_ID[fold.images.start : fold.images.stop], text_TD[fold.texts.start : fold.texts.stop], fold) for fold in work.folds)
    return [ranks.rank_embeddings(images, texts, work.owner(fold), num_top=num_top) for images, texts, fold in cut]


def _by_every_pair(opened: PairScorer, owner_T: NDArray[np.int64], num_top: int, advance: Advance) -> Rankings:
    own_T = opened.score(owner_T, np.arange(len(owner_T)), advance)
    tally = Tally(own_T, owner_T, num_top=num_top, margin=LOGIT_ROUNDING)
    for chunk in _chunks(len(opened.images), scoring.IMAGE_CHUNK):
        is_own_IT = np.array(chunk)[:, None] == owner_T
        image_P, text_P = np.nonzero(~is_own_IT)
        scores_IT = np.tile(own_T, (len(chunk), 1))
        scores_IT[image_P, text_P] = opened.score(image_P + chunk.start, text_P, advance)
        tally.add(scores_IT, first_image=chunk.start)
    return Rankings(*tally.rankings())


def _opened(scorer: FusionScorer, work: Work) -> Callable[[Fold], PairScorer]:
    """What gives the scorer at work on a fold."""
    compute = work.options.compute
    scorer.to(compute.device).eval()
    source = open_source(work.corpus, scorer, compute, work.track)
    return lambda fold: PairScorer(scorer=scorer, source=source, images=fold.images, texts=fold.texts, compute=compute)


def _tell(work: Work, opened: PairScorer, num_pairs: int, num_images: int) -> None:
    if work.tell is not None:
        work.tell(opened.workload(num_pairs, num_images, work.corpus.num_captions))


def _at_depth(depth: int, folds: list[Rankings], ms_per_query: float, num_pairs: int) -> DepthResult:
    text, image = recall.mean_measures(folds)
    return DepthResult(depth=depth, text_retrieval=text, image_retrieval=image, ms_per_query=ms_per_query, num_pairs=num_pairs)


def _chunks(count: int, size: int, advance: Advance | None = None) -> Iterator[range]:
    """Ranges that cover 0 to `count`; `advance` hears of each when the next is asked for."""
    for start in range(0, count, size):
        chunk = range(start, min(start + size, count))
        yield chunk
        if advance is not None:
            advance(len(chunk))
