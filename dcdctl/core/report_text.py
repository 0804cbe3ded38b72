"""A report as Markdown, for people, and as CSV, for programs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dcdctl.core import files, report_page, report_tables
from dcdctl.core.answers import DIRECTIONS
from dcdctl.core.report import Report, System
from dcdctl.core.report_tables import RECALLS, Table
from dcdctl.core.results import Figure


def write_markdown(path: Path, report: Report) -> None:
    """What was measured, the tables, what is left out."""
    facts = [f"- {name}: {_plain(value)}" for name, value in report_page.facts_of(report)]
    gaps = ["## Left out", "", *(f"- {_plain(gap.what)}: {_code(gap.command)}" for gap in report.gaps)] if report.gaps else []
    tables = [_table(table) for table in report_tables.tables(report)]
    files.write_text(path, "\n".join(["# Report", "", *facts, "", *tables, *gaps]).rstrip("\n") + "\n")


def write_csv(path: Path, report: Report) -> None:
    """A row a model, not rounded; what was not measured is empty."""
    rows = [_numbers(system) for system in report.systems]
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, stream.getvalue())


def _table(table: Table) -> str:
    lines = [table.columns, ["---" for _ in table.columns], *table.rows]
    return "\n".join([f"{_plain(table.caption)}.", "", *(f"| {' | '.join(map(_cell, line))} |" for line in lines), ""])


def _cell(text: str) -> str:
    """A cell with its small print in brackets.

    >>> _cell("63.2\\n58.0 to 68.0"), _cell("a|b")
    ('63.2 (58.0 to 68.0)', 'a\\\\|b')
    """
    first, _, rest = _plain(text.partition("\n")[0]), "", _plain(text.partition("\n")[2])
    return f"{first} ({rest})" if rest else first


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in text)


def _code(text: str) -> str:
    """A code span, whatever is in it."""
    fence = "`" * (1 + max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _numbers(system: System) -> dict[str, object]:
    row: dict[str, object] = {"model": system.label, "role": system.role, "folder": str(system.folder)}
    if (result := system.result) is not None:
        row |= {
            "kind": result.kind,
            "depth": result.depth,
            "split": result.split,
            "images": result.num_images,
            "captions": result.num_captions,
        }
        row |= {"protocol": result.protocol, "corpus_fingerprint": result.fingerprint}
        for way, name in RECALLS:
            row |= _figure(f"{way}_{name}", result.retrieval[way].recalls[name])
        row |= _figure("rsum", result.rsum)
        row |= {f"{way}_mAP@R": result.retrieval[way].map_at_r for way in DIRECTIONS}
        row |= {f"{way}_median_rank": result.retrieval[way].median_rank for way in DIRECTIONS}
    if (times := system.times) is not None:
        row |= {"parameters": times.num_parameters, "ms_per_query": times.query_ms, "ms_extrapolated": times.is_extrapolated}
        row |= {"ms_gallery_images": times.num_images, "speed_up": times.speed_up}
    elif result is not None and result.depths:
        row |= {"ms_per_query": result.depths[-1].query_ms, "ms_extrapolated": False, "ms_gallery_images": result.num_images}
    if (found := system.comparison) is not None:
        rsum = found.difference.rsum
        row |= _figure("rsum_difference", Figure(rsum.value, rsum.interval)) | {"p_value": found.p_value}
    return row


def _figure(name: str, figure: Figure) -> dict[str, float]:
    if figure.interval is None:
        return {name: figure.value}
    return {name: figure.value, f"{name}_low": figure.interval.low, f"{name}_high": figure.interval.high}
