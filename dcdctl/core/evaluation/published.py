"""An evaluation beside the recalls that others report of its model: the rows of `data_manifests/published.toml`, which
`models.published_rows` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dcdctl.core import models
from dcdctl.core.data import Direction
from dcdctl.core.evaluation.measures import RECALL_NAMES
from dcdctl.core.templates import Table

TOLERANCE = 0.3
"""Points within which a reported recall counts as reproduced."""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """An evaluation beside the recalls that others report of its model."""

    row: models.PublishedRow
    recalls: dict[str, tuple[float, float]]
    """The reported and the measured value of each recall that the row has, such as "text retrieval R@1"."""
    passes: bool
    """Whether all differences are within TOLERANCE."""


def compare_with_published(
    model: str, protocol: str, measured: Mapping[Direction, Mapping[str, float]]
) -> Reproduction | None:
    """The recalls that others report of a model by a protocol, and the measured ones; None if there are none."""
    for row in models.published_rows(model):
        if row.protocol == protocol:
            recalls = {}
            for direction in Direction:
                reported = row.recalls[direction.key]
                # Some report R@1 alone.
                for name, value in zip(RECALL_NAMES[: len(reported)], reported, strict=True):
                    recalls[f"{direction.title} {name}"] = (value, measured[direction][name])
            passes = all(round(abs(ours - theirs), 2) <= TOLERANCE for theirs, ours in recalls.values())
            return Reproduction(row=row, recalls=recalls, passes=passes)
    return None


def published_table(found: Reproduction) -> Table:
    """Reported and measured recalls, and whether they agree."""
    row = found.row
    verdict = f"PASS: all within {TOLERANCE} points."
    if not found.passes:
        verdict = (
            f"DIFFERS: not all within {TOLERANCE} points. The usual reasons are text case, padding, crop and split. "
            f"Published with: {'; '.join(row.conditions)}; the weights as released."
        )
    rows = []
    for name, (reported, measured) in found.recalls.items():
        rows.append([name, f"{reported:.2f}", f"{measured:.2f}", f"{measured - reported:+.2f}"])
    sources = ", ".join(row.sources)
    return Table(
        f"published: {row.models[0]}, {row.setting}, {row.ranking}, protocol {row.protocol}",
        ["", "published", "measured", "difference"],
        rows,
        f"{verdict} Source: {sources}",
    )
