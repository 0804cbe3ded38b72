"""The charts of a report: how the trainings went, how fast and how good the models are, how they score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dcdctl.core import charts
from dcdctl.core.answers import DIRECTIONS, Direction
from dcdctl.core.charts import NUM_COLOURS, About, Series
from dcdctl.core.report import Report, System, Training

NUM_BINS = 36
_NO_PART = {"step", "loss", "lr", "seconds"}
"""What is logged beside the parts of a loss."""


def colours(report: Report) -> dict[str, str]:
    """The colour of each label: the teacher's and the baseline's are those of text, the others have one each as long as there are any."""
    labels = dict.fromkeys([*(one.label for one in report.systems), *(one.label for one in report.trainings)])
    roles = {one.label: one.role for one in report.systems}
    others = iter(range(len(labels)))
    fixed = {"teacher": "text", "baseline": "quiet"}
    return {label: fixed[roles[label]] if roles[label] in fixed else f"c{next(others) % NUM_COLOURS}" for label in labels}


def training_curves(report: Report) -> list[str]:
    """A chart of the loss and its parts for each training, then recall and learning rate of all."""
    logged = [one for one in report.trainings if one.metrics]
    shared = [
        ("recall", "Recall on the validation split", "val_rsum", "RSUM"),
        ("rate", "Learning rate", "lr", "learning rate"),
    ]
    found = [_loss(number, one) for number, one in enumerate(logged)]
    for name, title, key, label in shared:
        series = [_curve(one, key, one.label, colours(report)[one.label]) for one in logged if any(key in line for line in one.metrics)]
        if series:
            about = About(name=f"training-{name}", title=title, description=_ends(series), x_label="step", y_label=label)
            found.append(charts.lines(about, series))
    return found


def _loss(number: int, training: Training) -> str:
    parts = [key for key in training.metrics[0] if key not in _NO_PART and not key.startswith("val_")]
    # A loss of one part is that part.
    keys = ["loss", *parts] if len(parts) > 1 else ["loss"]
    names = {"loss": "all" if len(parts) > 1 else (parts or ["loss"])[0]}
    series = [
        _curve(training, key, names.get(key, key), "text" if key == "loss" else f"c{place}") for place, key in enumerate(keys, start=-1)
    ]
    about = About(name=f"loss-{number}", title=f"Loss of {training.label}", description=_ends(series), x_label="step", y_label="loss")
    return charts.lines(about, series)


def _curve(training: Training, key: str, label: str, colour: str) -> Series:
    points = [(line["step"], line[key]) for line in training.metrics if key in line]
    return Series(label=label, colour=colour, x=[x for x, _ in points], y=[y for _, y in points])


def _ends(series: Iterable[Series]) -> str:
    return "; ".join(f"{one.label}: from {one.y[0]:.4g} at step {one.x[0]} to {one.y[-1]:.4g} at step {one.x[-1]}" for one in series)


def speed_against_recall(report: Report) -> str:
    """Milliseconds a query against RSUM, every depth of a cascade a point; empty where there are no two points."""
    colour = colours(report)
    found = [series for one in report.systems if (series := _speed_and_recall(one, colour[one.label])) is not None]
    points = [(x, y, name) for series in found for x, y, name in zip(series.x, series.y, series.names, strict=True)]
    if len(points) < 2:
        return ""
    told = "; ".join(f"{name}: {x:,.3g} ms, RSUM {y:.1f}" for x, y, name in sorted(points))
    title = "Speed against recall; the broken line joins what nothing else beats in both"
    about = About(name="speed-recall", title=title, description=told, x_label="ms per query, logarithmic", y_label="RSUM")
    return charts.scatter(about, found, front([(x, y) for x, y, _ in points]))


def _speed_and_recall(system: System, colour: str) -> Series | None:
    result, times = system.result, system.times
    if result is not None and result.depths:
        points = [(one.query_ms, one.rsum, f"top {one.depth}") for one in result.depths]
        points[-1] = (*points[-1][:2], system.label)
    elif result is not None and times is not None:
        points = [(times.query_ms, result.rsum.value, system.label)]
    else:
        return None
    x, y, names = zip(*points, strict=True)
    return Series(label=system.label, colour=colour, x=x, y=y, names=names)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which none is both as fast and better, fastest first.

    >>> front([(3.0, 9.0), (1.0, 5.0), (2.0, 4.0)])
    [(1.0, 5.0), (3.0, 9.0)]
    """
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def scores(report: Report) -> dict[Direction, list[str]]:
    """By direction a chart a model: the scores of what is right, and of the hardest of what is not.

    A cascade's scores are of two models, and not drawn.
    """
    drawn = [one for one in report.answering if one.answers is not None and one.answers.own_scores and not one.is_cascade]
    return {way: [_scores(f"scores-{way}-{number}", way, one) for number, one in enumerate(drawn)] for way in DIRECTIONS}


def _scores(name: str, way: Direction, system: System) -> str:
    assert system.answers is not None
    own_Q, other_Q = system.answers.own_scores[way], system.answers.top[way].hardest_negative_Q
    other_Q = other_Q[~np.isnan(other_Q)]
    edges = np.histogram_bin_edges(np.concatenate([own_Q, other_Q]), NUM_BINS)
    above, below = (
        Series(label=label, colour=colour, x=[], y=np.histogram(values, edges)[0].tolist())
        for label, colour, values in (("its own", "c0", own_Q), ("hardest other", "c1", other_Q))
    )
    told = f"its own: median {np.median(own_Q):.3g}; hardest other: median {np.median(other_Q):.3g}" if len(other_Q) else ""
    title = f"{system.label}: {'captions of an image' if way == 'text' else 'images of a caption'}"
    about = About(name=name, title=title, description=told, x_label="score", y_label="queries")
    return charts.mirrored(about, edges.tolist(), above, below)
