"""What a model started from, what its training changed, and the recalls of both: what was gained and lost, for the
model card.

Every number is one that the training logged or `dcdctl eval` saved. What was not measured is named, with the command
that measures it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core.data import Direction
from dcdctl.core.evaluation import KS, Evaluation
from dcdctl.core.export.history import RunHistory, is_same_model, public
from dcdctl.core.report import MissingPart

_NAMES = tuple((direction, k) for direction in Direction for k in KS)
"""The six recalls, in the order of the columns."""
COLUMNS = ("", *(f"{direction.title.capitalize()} R@{k}" for direction, k in _NAMES), "RSUM")


@dataclass(frozen=True)
class GainTable:
    """Recalls of the start and of the model on one split, and their differences."""

    measured_on: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The part of the card on the start of a dual encoder."""

    start: str
    trained: str
    columns: tuple[str, ...]
    tables: tuple[GainTable, ...]
    unknown: tuple[str, ...]
    """What was not measured, a sentence each."""


def lineage_of(history: RunHistory) -> Lineage | None:
    """The lineage of a run that started from a dual encoder; None for another model."""
    if history.start is None or history.facts is None:
        return None
    pairs = _pairs(history)
    tables = [*_validation_table(history), *(_table(history, start, own) for start, own in pairs)]
    return Lineage(
        start=_start_in_words(history.start, history.facts["inputs"]["start"]),
        trained=_trained_in_words(history.recipe),
        columns=COLUMNS,
        tables=tuple(tables),
        unknown=tuple(f"Not measured: {part.what} (`{part.command}`)." for part in _unknown(history, pairs)),
    )


def missing_gains(history: RunHistory) -> list[MissingPart]:
    """What the card lacks on the start, and the commands that measure it."""
    return [] if history.start is None else _unknown(history, _pairs(history))


def _start_in_words(start: str, digest: str) -> str:
    name, _, revision = start.partition("@")
    if Path(start).exists() or name.count("/") != 1:
        return f"{public(start)} (fingerprint {digest[:12]})"
    return f"{name}, {f'revision {revision}' if revision else 'no revision was given'} (fingerprint {digest[:12]})"


def _trained_in_words(recipe: dict[str, Any]) -> str:
    """Which weights the training changed, in sentences."""
    last = "layer" if recipe["model.trained_layers"] == 1 else f"{recipe['model.trained_layers']} layers"
    sentences = [
        {
            "all": "All weights were trained",
            "last-layers": f"The last {last} of both encoders, heads and projections were trained",
            "projections": "The projections were trained, and the encoders were not",
            "lora": f"Adapters of both encoders (LoRA, rank {recipe['model.lora_rank']}, alpha "
            f"{recipe['model.lora_alpha']}) and the "
            "projections were trained, and the adapters are merged into the weights",
        }[recipe["model.trained"]]
    ]
    kept = {side: recipe[f"model.{name}_layers"] for side, name in (("image", "vision"), ("text", "text"))}
    sentences += [
        f"The {side} encoder keeps only the layers {', '.join(map(str, layers))}"
        for side, layers in kept.items()
        if layers
    ]
    if share := recipe["model.average_with_start"]:
        average = (
            f"The weights are {share:g} times those of the start plus {1 - share:g} times the trained ones (WiSE-FT)"
        )
        sentences.append(average)
    return " ".join(f"{sentence}." for sentence in sentences)


def _pairs(history: RunHistory) -> list[tuple[Evaluation, Evaluation]]:
    """Evaluations of the start and of the model on the same basis."""
    assert history.start is not None
    starts = {each.basis: each for each in history.evaluations if is_same_model(each.model, history.start)}
    return [(starts[own.basis], own) for own in _own(history) if own.basis in starts]


def _own(history: RunHistory) -> list[Evaluation]:
    """The evaluations of the model, one for each basis."""
    named = [each for each in history.evaluations if is_same_model(each.model, history.ref)]
    return list({each.basis: each for each in ([] if history.result is None else [history.result]) + named}.values())


def _table(history: RunHistory, start: Evaluation, own: Evaluation) -> GainTable:
    before, after = ([*(each.measures(way)[f"R@{k}"] for way, k in _NAMES), each.rsum] for each in (start, own))
    return GainTable(f"On {history.measured_on(own)}, by `dcdctl eval`", _rows(before, after, "this model"))


def _validation_table(history: RunHistory) -> list[GainTable]:
    """The recalls of the validation before the first step and of the weights that were kept; empty if one of them was
    not measured."""
    logged, recipe = [line for line in history.metrics if "val_rsum" in line], history.recipe
    first = next((line for line in history.metrics if "start_rsum" in line), None)
    if first is None or not logged or history.facts is None:
        return []
    start = _logged(first, "start")
    kept, when = _logged(logged[-1], "val"), f"after step {logged[-1]['step'] + 1:,}"
    if recipe["validation.keep"] == "best":
        best = max(logged, key=lambda line: line["val_rsum"])
        # Later weights replace earlier ones only if they are better.
        is_start = best["val_rsum"] <= first["start_rsum"]
        kept, when = (
            (start, "before the first step") if is_start else (_logged(best, "val"), f"after step {best['step'] + 1:,}")
        )
    split, most = recipe["validation.split"], recipe["validation.max_images"]
    corpus = history.corpus_name(split, history.facts["inputs"]["validation"], most)
    before = ", before they were averaged with the start's" if recipe["model.average_with_start"] else ""
    return [
        GainTable(
            f"On {corpus}, split {split}, by the training's own validation, with the weights {when}{before}",
            _rows(start, kept, "trained weights"),
        )
    ]


def _logged(line: dict[str, Any], prefix: str) -> list[float]:
    return [*(float(line[f"{prefix}_{way}_r{k}"]) for way, k in _NAMES), float(line[f"{prefix}_rsum"])]


def _rows(start: Sequence[float], own: Sequence[float], name: str) -> tuple[tuple[str, ...], ...]:
    """The rows of a table; `name` is the label of the second.

    >>> _rows([50.0, 120.0], [52.5, 119.0], "this model")
    (('start', '50.00', '120.00'), ('this model', '52.50', '119.00'), ('difference', '+2.50', '-1.00'))
    """
    differences = [f"{after - before:+.2f}" for before, after in zip(start, own, strict=True)]
    return (
        ("start", *(f"{value:.2f}" for value in start)),
        (name, *(f"{value:.2f}" for value in own)),
        ("difference", *differences),
    )


def _unknown(history: RunHistory, pairs: Sequence[tuple[Evaluation, Evaluation]]) -> list[MissingPart]:
    """The recalls that were not measured, and the commands that measure them."""
    assert history.start is not None
    start, own_ref, found = public(history.start), public(history.ref), []
    measured = {own.basis for _, own in pairs}
    for own in _own(history):
        if own.basis not in measured:
            command = shlex.join(
                ["dcdctl", "eval", start, "--data", "DIR", "--split", own.split, "--out", "EVALUATION"]
            )
            found.append(MissingPart(f"recalls of the start on {history.measured_on(own)}", command))
    if not any(_is_elsewhere(history, own) for _, own in pairs):
        commands = (
            shlex.join(["dcdctl", "eval", ref, "--data", "OTHER", "--out", f"EVALUATION{i}"])
            for i, ref in ((1, start), (2, own_ref))
        )
        found.append(
            MissingPart("losses: recalls of the start and of this model on another corpus", " && ".join(commands))
        )
    return found


def _is_elsewhere(history: RunHistory, own: Evaluation) -> bool:
    """Whether an evaluation is known to be on another corpus than the training."""
    assert history.facts is not None
    inputs = history.facts["inputs"]
    trained_on, evaluated_on = (
        history.corpus(inputs["split"], inputs["corpus"], inputs.get("images")),
        history.corpus(own.split, own.corpus_fingerprint, own.images),
    )
    return trained_on is not None and evaluated_on is not None and trained_on[0].name != evaluated_on[0].name
