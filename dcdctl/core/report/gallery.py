"""The queries that a report shows, and how often each model wins over each other one on all queries.

Q queries of a direction. A model wins a query if it ranks the best positive higher than the other model does; a hit is
rank 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dcdctl.core import templates
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.evaluation import RankTable, SavedEvaluation
from dcdctl.core.progress import Track
from dcdctl.core.report import html
from dcdctl.core.report.html import EmbeddedImage
from dcdctl.core.report.report import ModelResults, Report

NUM_QUERIES = 60
"""Queries shown for each direction."""
NUM_ANSWERS = 5
"""First answers shown for each model."""
# Two thirds are the most telling queries; without random ones a gallery would show failures only.
RANDOM_SHARE = 1 / 3
SEED = 0
# A photo can be recognized, and a page embeds hundreds of them.
THUMBNAIL_PX = 96
READ_BATCH = 64
"""Images read together."""
TITLES = ((Direction.IMAGE, "images of a caption"), (Direction.TEXT, "captions of an image"))
"""Both directions in the order of the page."""


def count_wins(ours_Q: NDArray[np.int64], base_Q: NDArray[np.int64]) -> dict[str, int]:
    """Numbers of queries, for one model against another, from ranks, which start at 1.

    >>> count_wins(np.array([1, 1, 4, 9]), np.array([1, 3, 4, 2]))
    {'wins': 1, 'losses': 1, 'both_hit': 1, 'both_miss': 2}
    """
    return {
        "wins": int((ours_Q < base_Q).sum()),
        "losses": int((ours_Q > base_Q).sum()),
        "both_hit": int(((ours_Q == 1) & (base_Q == 1)).sum()),
        "both_miss": int(((ours_Q > 1) & (base_Q > 1)).sum()),
    }


def choose(
    ranks: Sequence[NDArray[np.int64]], pairs: Sequence[tuple[int, int]], count: int, seed: int = SEED
) -> list[int]:
    """Query indices: the largest wins and losses of each pair in turn, largest first, then a third drawn at random.

    `ranks` has an array (Q,) for each model; a pair is two indices into it. The size of a win is the ratio of the
    ranks: from rank 10 to 1 is more than from rank 100 to 50. All queries if there are no more than `count`.
    """
    order_Q = np.random.default_rng(seed).permutation(len(ranks[0]))
    lists: list[list[int]] = []
    for ours, base in pairs:
        gain_Q = np.log(ranks[ours] / ranks[base])
        # Ties in a random order.
        by_size = order_Q[np.argsort(-np.abs(gain_Q[order_Q]), kind="stable")]
        lists += [by_size[gain_Q[by_size] < 0].tolist(), by_size[gain_Q[by_size] > 0].tolist()]
    extremes = []
    for turn in itertools.zip_longest(*lists):
        extremes += [query for query in turn if query is not None]
    chosen: dict[int, None] = {}
    for limit, queries in ((round(count * (1 - RANDOM_SHARE)), extremes), (count, order_Q.tolist())):
        for query in queries:
            if len(chosen) >= limit:
                break
            chosen.setdefault(query)
    return list(chosen)


@dataclass(frozen=True)
class FirstAnswer:
    """One of the first answers of a model to a query."""

    candidate: int
    """A caption index for text retrieval, else an image index."""
    text: str
    """The caption, or the id of the image."""
    score: float
    is_own: bool


@dataclass(frozen=True)
class ModelColumn:
    """The ranks and the first answers of a model for a query."""

    model: str
    ranks: Sequence[int]
    """In each of its runs."""
    answers: list[FirstAnswer]
    """Of its first run."""


@dataclass(frozen=True)
class Query:
    """A query of a page, with the answers of every model."""

    direction: Direction
    image: int
    """The query image, or the image of the query caption."""
    image_id: str
    captions: list[str]
    """The query caption, or the captions of the query image."""
    columns: list[ModelColumn]


def query_of(table: RankTable, direction: Direction, query: int, columns: list[ModelColumn]) -> Query:
    """A query of a split, by its index."""
    is_image = direction == Direction.TEXT
    image = query if is_image else int(table.caption_image[query])
    captions = captions_of(table, image) if is_image else [table.captions[query]]
    return Query(direction=direction, image=image, image_id=table.image_ids[image], captions=captions, columns=columns)


def captions_of(table: RankTable, image: int) -> list[str]:
    """The captions of an image."""
    return [table.captions[caption] for caption in np.flatnonzero(table.caption_image == image).tolist()]


def first_answers(table: RankTable, saved: SavedEvaluation, direction: Direction, query: int) -> list[FirstAnswer]:
    """The first answers to a query in an evaluation."""
    top, names = saved.top[direction], table.captions if direction == Direction.TEXT else table.image_ids
    candidates, scores = top.candidate_QK[query].tolist(), top.score_QK[query].tolist()
    is_positive, answers = top.is_positive_QK[query].tolist(), []
    for place, candidate in enumerate(candidates[:NUM_ANSWERS]):
        answers.append(FirstAnswer(candidate, names[candidate], scores[place], is_positive[place]))
    return answers


def make_gallery(report: Report, colors: dict[str, str], track: Track) -> Markup | None:
    """The gallery of a report; None if no model was evaluated."""
    models = report.ranked
    if not models:
        return None
    # A single model is compared with itself: there are no wins, so all of its queries are drawn at random.
    pairs = _pairs(models) or [(0, 0)]
    ranks, chosen = {}, {}
    outcomes: dict[Direction, list[list[dict[str, int]]]] = {}
    for direction in Direction:
        of_models = [model.ranked.table.ranks(direction) for model in models]
        ranks[direction], chosen[direction] = of_models, choose(of_models, pairs, NUM_QUERIES)
        outcomes[direction] = []
        for ours_Q in of_models:
            outcomes[direction].append([count_wins(ours_Q, base_Q) for base_Q in of_models])
    ours, base = pairs[0]
    return templates.render(
        "gallery.html",
        about=_about(chosen, ranks, is_comparison=len(models) > 1),
        models=[model.label for model in models],
        colors=[colors[model.label] for model in models],
        # The models that are compared at first.
        ours=ours,
        base=base,
        directions=TITLES,
        # The images that are shown, each once, by index.
        images=None if report.corpus is None else _embedded(report.corpus, _shown_images(models, chosen), track),
        queries=list(_queries(models, chosen)),
        # For the script.
        outcomes={
            "models": [model.label for model in models],
            "sizes": {direction: len(ranks[direction][0]) for direction in Direction},
            "outcomes": outcomes,
        },
    )


def _about(
    chosen: dict[Direction, list[int]], ranks: dict[Direction, list[NDArray[np.int64]]], *, is_comparison: bool
) -> str:
    counts = []
    for direction, title in TITLES:
        counts.append(f"{len(chosen[direction]):,} of {len(ranks[direction][0]):,} queries for {title}")
    shown, wins = " and ".join(counts), ""
    if is_comparison:
        wins = "the largest wins and losses of each model against the baseline and the teacher in turn, and a third "
    return (
        f"{shown} are shown: {wins}drawn at random (seed {SEED}). "
        f"For each model the first {NUM_ANSWERS} answers; \N{CHECK MARK} marks a positive."
    )


def _pairs(models: Sequence[ModelResults]) -> list[tuple[int, int]]:
    """The models that are compared: students with the baseline, then with the teacher; without these, all with the
    last."""
    by_role: dict[str, list[int]] = {}
    for number, model in enumerate(models):
        by_role.setdefault(model.role, []).append(number)
    bases = [*by_role.get("baseline", []), *by_role.get("teacher", [])]
    pairs = [(ours, base) for base in bases for ours in by_role.get("student", [])]
    return pairs or [(ours, len(models) - 1) for ours in range(len(models) - 1)]


def _shown_images(models: Sequence[ModelResults], chosen: dict[Direction, list[int]]) -> list[int]:
    """The indices of the images on the page, ascending."""
    by_caption = chosen[Direction.IMAGE]
    shown = {*chosen[Direction.TEXT], *models[0].ranked.table.caption_image[by_caption].tolist()}
    for model in models:
        shown.update(model.ranked.top[Direction.IMAGE].candidate_QK[by_caption, :NUM_ANSWERS].ravel().tolist())
    return sorted(shown)


def _embedded(corpus: Corpus, images: Sequence[int], track: Track) -> dict[int, EmbeddedImage]:
    embedded = {}
    with track("read images", total=len(images), unit="images") as advance:
        for start in range(0, len(images), READ_BATCH):
            batch = images[start : start + READ_BATCH]
            for index, image in zip(batch, corpus.images(batch), strict=True):
                embedded[index] = html.embed_image(image, THUMBNAIL_PX)
            advance(len(batch))
    return embedded


def _queries(models: Sequence[ModelResults], chosen: dict[Direction, list[int]]) -> Iterator[Query]:
    table = models[0].ranked.table
    for direction, _ in TITLES:
        for query in chosen[direction]:
            columns = []
            for model in models:
                rank = int(model.ranked.table.ranks(direction)[query])
                answers = first_answers(table, model.ranked, direction, query)
                columns.append(ModelColumn(model.label, [rank], answers))
            yield query_of(table, direction, query, columns)
