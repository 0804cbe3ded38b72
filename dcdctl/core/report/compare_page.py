"""The page of a contest: its tables, and the queries whose ranks differ most, with pictures and what each side puts first.

Where a side has several runs, what it puts first is what its first run does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core.data import Corpus, read_corpus_json
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation import DIRECTIONS, Contest, Direction, Duel, Shift, Side
from dcdctl.core.report import compare_tables, html

NUM_PLACES = 5
"""Shown of each side."""
QUERY_PX = 160
PLACE_PX = 72
MAX_QUERIES = 80
"""On a page, of all duels together: it stays under 3 MB."""
_HOW_TO_READ = (
    "Below: queries whose ranks differ most, by their ratio. A \N{CHECK MARK} marks what is right. "
    "Where a side has several runs, the ranks are theirs in turn, and what it puts first is what its first run does."
)
_EVAL_AGAIN = "remove it, or run `dcdctl eval` again"
_TOP_COLUMNS = ("direction", "query", "place", "candidate", "score", "is_own")


@dataclass(frozen=True)
class _Place:
    """What a side puts at a place."""

    candidate: int
    """A caption index where the direction is "text", else an image index."""
    score: float
    is_own: bool


@dataclass(frozen=True, kw_only=True)
class _Query:
    """A query, and what both sides make of it: the base, then ours."""

    direction: Direction
    index: int
    letters: tuple[str, str]
    ranks: tuple[tuple[int, ...], tuple[int, ...]]
    places: tuple[list[_Place], list[_Place]]
    """Empty where they were not kept."""

    def image(self, corpus: Corpus) -> int:
        """The query, or what it looks for."""
        return self.index if self.direction == "text" else int(corpus.caption_image[self.index])


def open_corpus(contest: Contest, data: Path | None = None) -> Corpus:
    """The corpus whose images were queries: `data`, or the folder that an evaluation names.

    InputError where none is known, StaleError where it has other images or captions.
    """
    queries, document = contest.queries, contest.document
    folder = _known_folder(contest) if data is None else data
    splits = list(read_corpus_json(folder)["splits"]) if document is None else [document["split"]]
    for split in splits:
        corpus = Corpus.open(folder, split, len(queries.image_ids))
        if tuple(corpus.image_ids) == queries.image_ids and np.array_equal(corpus.caption_ids, queries.caption_ids):
            return corpus
    wanted = f"the {len(queries.image_ids):,} images and {len(queries.caption_ids):,} captions of the ranks"
    raise StaleError(f"{folder} does not have {wanted} in {' or '.join(splits)}", hint="name their corpus with --data DIR")


def write_comparison_page(path: Path, contest: Contest, corpus: Corpus) -> None:
    """Write one HTML file that shows it all."""
    queries = {title: some for duel in contest.duels for title, some in _queries(contest, duel) if some}
    all_queries = [query for some in queries.values() for query in some]
    large = _pictures(corpus, (query.image(corpus) for query in all_queries), QUERY_PX)
    of_places = (place.candidate for query in all_queries if query.direction == "image" for places in query.places for place in places)
    small = _pictures(corpus, of_places, PLACE_PX)
    parts = [
        html.facts(compare_tables.comparison_facts(contest)),
        html.heading("RSUM"),
        html.table(*compare_tables.comparison_summary(contest)),
    ]
    for duel in contest.duels:
        parts += [html.heading(f"{duel.letter} beside {contest.base}"), html.table(*compare_tables.comparison_details(contest, duel))]
        parts += map(html.paragraph, compare_tables.rank_changes(contest, duel))
    parts += map(html.paragraph, [*compare_tables.how_to_read(contest), _HOW_TO_READ])
    for title, some in queries.items():
        parts += [html.heading(title), *(_shown(query, corpus, large, small) for query in some)]
    html.write(path, f"Compared with {contest.sides[contest.base].name}", *parts)


def _known_folder(contest: Contest) -> Path:
    named = [
        member.document["data"]
        for side in contest.sides.values()
        for member in side.members
        if member.document is not None and "data" in member.document
    ]
    for folder in named:
        if Path(folder).is_dir():
            return Path(folder)
    found = f"the corpus of the evaluation, {named[0]}, is not there" if named else "the evaluations do not say where their corpus is"
    raise InputError(f"{found}, and the page shows its pictures", hint="name it with --data DIR")


def _queries(contest: Contest, duel: Duel) -> Iterator[tuple[str, list[_Query]]]:
    """Title and queries of each direction and way."""
    limit = max(1, MAX_QUERIES // (4 * len(contest.duels)))
    for direction in DIRECTIONS:
        shifts = duel.shifts[direction]
        kind = "images" if direction == "text" else "captions"
        for verb, some, count in (("better", shifts.better, shifts.num_better), ("worse", shifts.worse, shifts.num_worse)):
            shown = some[:limit]
            title = f"{duel.letter} {verb} than {contest.base}, {direction} retrieval: {len(shown):,} of {count:,} {kind}"
            yield title, _with_places(contest, duel, direction, shown)


def _with_places(contest: Contest, duel: Duel, direction: Direction, shifts: Iterable[Shift]) -> list[_Query]:
    shifts = list(shifts)
    num_candidates = len(contest.queries.caption_ids) if direction == "text" else len(contest.queries.image_ids)
    queries = [shift.query for shift in shifts]
    both = [_read_places(side, direction, queries, num_candidates) for side in (contest.sides[contest.base], duel.side)]
    return [
        _Query(
            direction=direction,
            index=shift.query,
            letters=(contest.base, duel.letter),
            ranks=(shift.base, shift.ours),
            places=(both[0].get(shift.query, []), both[1].get(shift.query, [])),
        )
        for shift in shifts
    ]


def _read_places(side: Side, direction: Direction, queries: list[int], num_candidates: int) -> dict[int, list[_Place]]:
    """The first places of each query, by the side's first run."""
    path = side.members[0].top
    if path is None or not queries:
        return {}
    try:
        table = pq.read_table(
            path.absolute(), columns=list(_TOP_COLUMNS), filters=[("direction", "==", direction), ("query", "in", queries)]
        )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a table of the first places ({error})", hint=_EVAL_AGAIN) from error
    found: dict[int, list[_Place]] = {}
    for row in table.sort_by([("query", "ascending"), ("place", "ascending")]).to_pylist():
        if not 0 <= row["candidate"] < num_candidates:
            raise StaleError(f"{path} has the candidate {row['candidate']} of {num_candidates:,}", hint=_EVAL_AGAIN)
        found.setdefault(row["query"], []).append(_Place(row["candidate"], row["score"], row["is_own"]))
    return {query: places[:NUM_PLACES] for query, places in found.items()}


def _pictures(corpus: Corpus, images: Iterable[int], side_px: int) -> dict[int, str]:
    """Each image once, in the order of the corpus, which is quickest to read."""
    return {
        image: html.picture(corpus.image(image), corpus.captions[corpus.captions_of(image)[0]], side_px) for image in sorted(set(images))
    }


def _shown(query: _Query, corpus: Corpus, large: dict[int, str], small: dict[int, str]) -> str:
    image = query.image(corpus)
    name = f"<small>{escape(corpus.image_ids[image])}</small>"
    if query.direction == "text":
        words = "".join(f'<li dir="auto">{escape(corpus.captions[text])}</li>' for text in corpus.captions_of(image))
        lead = html.captioned(large[image], f"{name}<ul>{words}</ul>")
    else:
        lead = f'<p dir="auto"><b>{escape(corpus.captions[query.index])}</b></p>' + html.captioned(large[image], name)
    columns = [
        f"<b>{letter}</b> rank{'s' * (len(ranks) > 1)} {', '.join(f'{rank:,}' for rank in ranks)}"
        + _placed(query.direction, places, corpus, small)
        for letter, ranks, places in zip(query.letters, query.ranks, query.places, strict=True)
    ]
    return html.beside(lead, *columns)


def _placed(direction: Direction, places: list[_Place], corpus: Corpus, small: dict[int, str]) -> str:
    if not places:
        return ""
    marks = ["\N{CHECK MARK} " if place.is_own else "" for place in places]
    if direction == "text":
        items = [
            f'<li><span dir="auto">{mark}{escape(corpus.captions[place.candidate])}</span> <small>{place.score:.3f}</small></li>'
            for mark, place in zip(marks, places, strict=True)
        ]
        return f"<ol>{''.join(items)}</ol>"
    figures = [
        html.captioned(small[place.candidate], f"<small>{mark}{place.score:.3f}</small>") for mark, place in zip(marks, places, strict=True)
    ]
    return f'<div class="strip">{"".join(figures)}</div>'
