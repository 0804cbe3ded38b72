"""Which queries a report shows, and how two models fare on all of them.

Q queries of a direction. A model wins a query where it ranks the best positive higher than the other does; it hits where that comes first.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcdctl.core.data import Corpus
from dcdctl.core.evaluation import DIRECTIONS, Answers, Direction
from dcdctl.core.progress import Track, silent
from dcdctl.core.report.report import Report, System

RANDOM_SHARE = 1 / 3
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Numbers of queries, of one model against another."""

    wins: int
    losses: int
    both_hit: int
    both_miss: int


def outcome(ours_Q: NDArray[np.int64], base_Q: NDArray[np.int64]) -> Outcome:
    """Compare ranks, from 1.

    >>> outcome(np.array([1, 1, 4, 9]), np.array([1, 3, 4, 2]))
    Outcome(wins=1, losses=1, both_hit=1, both_miss=2)
    """
    return Outcome(
        wins=int((ours_Q < base_Q).sum()),
        losses=int((ours_Q > base_Q).sum()),
        both_hit=int(((ours_Q == 1) & (base_Q == 1)).sum()),
        both_miss=int(((ours_Q > 1) & (base_Q > 1)).sum()),
    )


def choose(ranks: Sequence[NDArray[np.int64]], pairs: Sequence[tuple[int, int]], count: int, seed: int = SEED) -> list[int]:
    """Queries worth a look, most telling first: the largest wins and losses of each pair in turns, then a third drawn at random.

    `ranks` has an array (Q,) for each model, and a pair is two places in it. A win is as large as the ratio of the ranks: from the tenth
    place to the first is more than from the hundredth to the fiftieth. All queries where there are no more than `count`.
    """
    order_Q = np.random.default_rng(seed).permutation(len(ranks[0]))
    chosen: dict[int, None] = {}
    turns = [side for ours, base in pairs for side in _extremes(np.log(ranks[ours] / ranks[base]), order_Q)]
    telling = (query for turn in itertools.zip_longest(*turns) for query in turn if query is not None)
    for limit, queries in ((round(count * (1 - RANDOM_SHARE)), telling), (count, order_Q.tolist())):
        for query in queries:
            if len(chosen) >= limit:
                break
            chosen.setdefault(query)
    return list(chosen)


def _extremes(gain_Q: NDArray[np.float64], order_Q: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Queries with a gain below zero, lowest first, and those with one above, highest first; equal ones in the order given."""
    by_gain = order_Q[np.argsort(gain_Q[order_Q], kind="stable")]
    by_loss = order_Q[np.argsort(-gain_Q[order_Q], kind="stable")]
    return by_gain[gain_Q[by_gain] < 0].tolist(), by_loss[gain_Q[by_loss] > 0].tolist()


NUM_QUERIES = 60
"""Shown of each direction."""
NUM_PLACES = 5
"""First answers shown of each model."""
THUMBNAIL_PX = 96
WEBP_QUALITY = 70
PICTURES_AT_A_TIME = 64
WAYS: tuple[tuple[Direction, str], ...] = (("image", "images of a caption"), ("text", "captions of an image"))
SHOWS = {"all": "all", "wins": "{ours} wins", "losses": "{ours} loses", "both-hit": "both hit", "both-miss": "both miss"}
SHOWS_OF_ONE = {"all": "all", "both-hit": "hit", "both-miss": "miss"}


def gallery(report: Report, colours: dict[str, str], num_queries: int = NUM_QUERIES, track: Track = silent) -> str:
    """The section, HTML; empty where no model's first answers are known or no query is wanted."""
    systems = report.answering
    if not systems or not num_queries:
        return ""
    ranks = {way: [_answers(one).ranks(way) for one in systems] for way in DIRECTIONS}
    chosen = {way: choose(ranks[way], _pairs(systems) or [(0, 0)], num_queries) for way in DIRECTIONS}
    cards = [_card(report, systems, colours, way, query) for way, _ in WAYS for query in chosen[way]]
    counts = [f"{len(chosen[way]):,} of {len(ranks[way][0]):,} queries for {what}" for way, what in WAYS]
    wins = "the largest wins and losses of each model against the baseline and the teacher in turns, and a third "
    told = (
        f"{' and '.join(counts)} are here: {wins if len(systems) > 1 else ''}drawn at random (seed {SEED}). "
        f"Of each model the first {NUM_PLACES} answers; \N{CHECK MARK} is the query's own."
    )
    return "\n".join(
        [
            f"<p>{escape(told)}</p>",
            _store(report.corpus, _images(systems, chosen), track),
            _filters(systems),
            f'<ol id="query-list">{"".join(cards)}</ol>',
            '<p><button type="button" id="more" hidden></button></p>',
            _outcomes(systems),
        ]
    )


def _answers(system: System) -> Answers:
    assert system.answers is not None
    return system.answers


def _pairs(systems: Sequence[System]) -> list[tuple[int, int]]:
    """Who is compared with whom: students with the baseline, then with the teacher; where that is nobody, all with the last."""
    places: dict[str, list[int]] = {}
    for place, one in enumerate(systems):
        places.setdefault(one.role, []).append(place)
    bases = [*places.get("baseline", []), *places.get("teacher", [])]
    found = [(ours, base) for base in bases for ours in places.get("student", [])]
    return found or [(ours, len(systems) - 1) for ours in range(len(systems) - 1)]


def _images(systems: Sequence[System], chosen: dict[Direction, list[int]]) -> list[int]:
    """The pictures that are seen, ascending."""
    owner = _answers(systems[0]).table.caption_image
    found = {*chosen["text"], *(int(owner[query]) for query in chosen["image"])}
    for one in systems:
        found.update(_answers(one).top["image"].candidate_QK[chosen["image"], :NUM_PLACES].ravel().tolist())
    return sorted(found)


def _store(corpus: Corpus | None, images: Sequence[int], track: Track) -> str:
    """The pictures, each once."""
    if corpus is None:
        return ""
    symbols = []
    with track("read pictures", total=len(images), unit="images") as advance:
        for start in range(0, len(images), PICTURES_AT_A_TIME):
            some = images[start : start + PICTURES_AT_A_TIME]
            symbols += [_symbol(image, picture) for image, picture in zip(some, corpus.images(some), strict=True)]
            advance(len(some))
    return f'<svg class="store" width="0" height="0" aria-hidden="true">{"".join(symbols)}</svg>'


def _symbol(number: int, picture: Image.Image) -> str:
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=WEBP_QUALITY)
    source = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
    width, height = picture.size
    return f'<symbol id="p{number}" viewBox="0 0 {width} {height}"><image width="{width}" height="{height}" href="{source}"/></symbol>'


def _filters(systems: Sequence[System]) -> str:
    labels = [one.label for one in systems]
    ours, base = next(iter(_pairs(systems)), (0, 0))
    shows = SHOWS if len(systems) > 1 else SHOWS_OF_ONE
    parts = [
        _radios(
            "Show", "show", [(name, text.format(ours=f'<span class="ours">{escape(labels[ours])}</span>')) for name, text in shows.items()]
        ),
        _radios("Find", "way", [*((way, what) for way, what in WAYS), ("both", "both")]),
    ]
    if len(systems) > 1:
        selects = [
            f'<label>{said} <select name="{name}">{_options(labels, chosen)}</select></label>'
            for said, name, chosen in (("Compare", "ours", ours), ("with", "base", base))
        ]
        parts.append(f"<p>{' '.join(selects)}</p>")
    parts.append('<p><label>Words of the query <input type="search" name="words" autocomplete="off"></label></p>')
    return f'<form id="filters" hidden>{"".join(parts)}</form><p id="told" role="status"></p>'


def _radios(legend: str, name: str, choices: Iterable[tuple[str, str]]) -> str:
    """One of several, as a row of buttons; the first is chosen."""
    labels = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{"" if number else " checked"}><span>{text}</span></label>'
        for number, (value, text) in enumerate(choices)
    )
    return f"<fieldset><legend>{legend}</legend>{labels}</fieldset>"


def _options(labels: Sequence[str], chosen: int) -> str:
    return "".join(f"<option{' selected' if number == chosen else ''}>{escape(label)}</option>" for number, label in enumerate(labels))


def _outcomes(systems: Sequence[System]) -> str:
    """For the script: who wins how often on the whole split, for every pair of models; and their names."""
    table = {
        way: [[asdict(outcome(_answers(ours).ranks(way), _answers(base).ranks(way))) for base in systems] for ours in systems]
        for way in DIRECTIONS
    }
    sizes = {way: len(_answers(systems[0]).ranks(way)) for way in DIRECTIONS}
    document = json.dumps({"models": [one.label for one in systems], "sizes": sizes, "outcomes": table}, separators=(",", ":"))
    # Nothing that ends a script may stand in one.
    harmless = document.replace("<", "\\u003c")
    return f'<script type="application/json" id="outcomes">{harmless}</script>'


def _card(report: Report, systems: Sequence[System], colours: dict[str, str], way: Direction, query: int) -> str:
    answers = _answers(systems[0])
    image = query if way == "text" else int(answers.table.caption_image[query])
    texts = np.flatnonzero(answers.table.caption_image == image).tolist() if way == "text" else [query]
    lines = "".join(f'<p dir="auto">{escape(answers.captions[text])}</p>' for text in texts)
    about = f"<small>{escape(answers.table.image_ids[image])}</small>"
    asked = f'<div class="asked">{_picture(report, answers, image, is_own=False)}<div class="words">{lines}{about}</div></div>'
    ranks = " ".join(str(_answers(one).ranks(way)[query]) for one in systems)
    parts = "".join(_answer(report, one, colours[one.label], way, query) for one in systems)
    return f'<li class="query" data-way="{way}" data-ranks="{ranks}">{asked}<div class="answers">{parts}</div></li>\n'


def _answer(report: Report, system: System, colour: str, way: Direction, query: int) -> str:
    """The first answers of a model to a query."""
    answers, top = _answers(system), _answers(system).top[way]
    items = []
    rows = (top.candidate_QK, top.score_QK, top.is_own_QK)
    for candidate, score, is_own in zip(*(row[query, :NUM_PLACES].tolist() for row in rows), strict=True):
        if way == "text":
            mark = "<b>\N{CHECK MARK}</b> " if is_own else ""
            inside = f'<span dir="auto">{mark}{escape(answers.captions[candidate])}</span>'
        else:
            inside = _picture(report, answers, candidate, is_own=is_own)
        items.append(f'<li{" class=own" if is_own else ""} title="score {score:.4g}">{inside}</li>')
    kind = "texts" if way == "text" else "pictures"
    name = f"<span>{escape(system.label)}</span> <small>rank {answers.ranks(way)[query]:,}</small>"
    return f'<div class="answer" style="--mark:var(--{colour})"><p>{name}</p><ol class="{kind}">{"".join(items)}</ol></div>'


def _picture(report: Report, answers: Answers, image: int, *, is_own: bool) -> str:
    """A picture, or its name where pictures are not to be had."""
    name = escape(answers.table.image_ids[image])
    said = f"{name}, the query's own" if is_own else name
    mark = '<b aria-hidden="true">\N{CHECK MARK}</b>' if is_own else ""
    if report.corpus is None:
        return f"{mark}<span>{name}</span>"
    return f'<svg class="picture" role="img" aria-label="{said}"><use href="#p{image}"/></svg>{mark}'
