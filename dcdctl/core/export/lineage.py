"""What a model started from, what its training changed, and the recalls of both: what was gained and lost, for the
model card.

Every number is one that the training logged or `dcdctl eval` saved. What was not measured is named, with the command
that measures it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcdctl.core.data import Direction
from dcdctl.core.evaluation import KS
from dcdctl.core.export.history import RunHistory, is_same_model, public
from dcdctl.core.report import MissingPart

_NAMES = tuple((direction, k) for direction in Direction for k in KS)
"""The six recalls, in the order of the columns."""
COLUMNS = ("", *(f"{direction.title.capitalize()} R@{k}" for direction, k in _NAMES), "RSUM")


def lineage_of(history: RunHistory) -> dict[str, Any] | None:
    """The part of the card on the start of a dual encoder, for its template; None for a model without a start.

    `tables` have the recalls of the start and of the model on one split each, and their differences; `missing` are the
    recalls that were not measured (`MissingPart`).
    """
    if history.start is None or history.facts is None:
        return None
    name, _, revision = history.start.partition("@")
    words = f"{name}, {f'revision {revision}' if revision else 'no revision was given'}"
    # A folder of this machine, or a recipe's own name, has no revision on the Hub.
    if Path(history.start).exists() or name.count("/") != 1:
        words = public(history.start)
    tables, missing = _compared(history, history.start)
    return {
        "start": f"{words} (fingerprint {history.facts['inputs']['start'][:12]})",
        "trained": _trained_in_words(history),
        "columns": COLUMNS,
        "tables": [*_validation_tables(history), *tables],
        "missing": missing,
    }


def _trained_in_words(history: RunHistory) -> str:
    """Which weights the training changed, in sentences."""
    recipe = history.recipe
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
    share = recipe["model.average_with_start"]
    if share == "auto":
        # The last one logged is that of the saved model.
        share = next((line["share"] for line in reversed(history.metrics) if "share" in line), 0)
    if share:
        average = (
            f"The weights are {share:g} times those of the start plus {1 - share:g} times the trained ones (WiSE-FT)"
        )
        sentences.append(average)
    return " ".join(f"{sentence}." for sentence in sentences)


def _compared(history: RunHistory, start: str) -> tuple[list[dict[str, Any]], list[MissingPart]]:
    """A table for each evaluation of the model with one of its start on the same basis, and what was not measured."""
    starts = {each.basis: each for each in history.evaluations if is_same_model(each.model, start)}
    named = [each for each in history.evaluations if is_same_model(each.model, history.ref)]
    # An evaluation that the user names replaces the run's own on the same basis.
    students = {each.basis: each for each in ([] if history.result is None else [history.result]) + named}
    tables, missing, has_other_corpus = [], [], False
    for basis, student in students.items():
        if basis not in starts:
            words = ["eval", public(start), "--data", "DIR", "--split", student.split, "--out", "EVALUATION"]
            what = f"recalls of the start on {history.measured_on(student)}"
            missing.append(MissingPart(what, shlex.join(["dcdctl", *words])))
            continue
        before, after = (
            [*(each.measures(way)[f"R@{k}"] for way, k in _NAMES), each.rsum] for each in (starts[basis], student)
        )
        measured_on = f"On {history.measured_on(student)}, by `dcdctl eval`"
        tables.append({"measured_on": measured_on, "rows": _rows(before, after, "this model")})
        assert history.facts is not None
        inputs = history.facts["inputs"]
        trained_on = history.corpus(inputs["split"], inputs["corpus"], inputs.get("images"))
        evaluated_on = history.corpus(student.split, student.corpus_fingerprint, student.images)
        has_other_corpus |= bool(trained_on and evaluated_on and trained_on[0].name != evaluated_on[0].name)
    # What training on one corpus loses shows only on another one.
    if not has_other_corpus and "validation_elsewhere" not in (history.facts or {}).get("inputs", {}):
        commands = (
            shlex.join(["dcdctl", "eval", public(ref), "--data", "OTHER", "--out", f"EVALUATION{number}"])
            for number, ref in enumerate((start, history.ref), start=1)
        )
        what = "losses: recalls of the start and of this model on another corpus"
        missing.append(MissingPart(what, " && ".join(commands)))
    return tables, missing


def _validation_tables(history: RunHistory) -> list[dict[str, Any]]:
    """The recalls of the validation before the first step and of the weights that were kept, for each corpus; empty if
    one of them was not measured."""
    logged, recipe = [line for line in history.metrics if "val_rsum" in line], history.recipe
    first = next((line for line in history.metrics if "start_rsum" in line), None)
    if first is None or not logged or history.facts is None:
        return []
    kept, prefix, when = logged[-1], "val", f"weights after step {logged[-1]['step'] + 1:,}"
    if recipe["validation.keep"] == "best":
        best = max(logged, key=lambda line: line["val_rsum"])
        kept, when = best, f"weights after step {best['step'] + 1:,}"
        # Later weights replace earlier ones only if they are better.
        if best["val_rsum"] <= first["start_rsum"]:
            kept, prefix, when = first, "start", "weights before the first step"
    # The last is the saved model; earlier ones are other averages with the start.
    if saved := [line for line in history.metrics if "saved_rsum" in line]:
        kept, prefix, when = saved[-1], "saved", "saved weights"
    split, most, inputs = recipe["validation.split"], recipe["validation.max_images"], history.facts["inputs"]
    prints = {"": inputs["validation"]}
    prints |= {f"{name}/": digest for name, digest in inputs.get("validation_elsewhere", {}).items()}
    return [
        {
            "measured_on": f"On {history.corpus_name(split, fingerprint, most)}, split {split}, by the training's own "
            f"validation, with the {when}",
            "rows": _rows(
                _logged(first, f"{corpus}start"),
                _logged(kept, f"{corpus}{prefix}"),
                "trained weights" if prefix != "saved" else "this model",
            ),
        }
        for corpus, fingerprint in prints.items()
    ]


def _logged(line: dict[str, Any], prefix: str) -> list[float]:
    return [*(float(line[f"{prefix}_{way}_r{k}"]) for way, k in _NAMES), float(line[f"{prefix}_rsum"])]


def _rows(start: Sequence[float], student: Sequence[float], name: str) -> tuple[tuple[str, ...], ...]:
    """The rows of a table; `name` is the label of the second.

    >>> _rows([50.0, 120.0], [52.5, 119.0], "this model")
    (('start', '50.00', '120.00'), ('this model', '52.50', '119.00'), ('difference', '+2.50', '-1.00'))
    """
    differences = [f"{after - before:+.2f}" for before, after in zip(start, student, strict=True)]
    return (
        ("start", *(f"{value:.2f}" for value in start)),
        (name, *(f"{value:.2f}" for value in student)),
        ("difference", *differences),
    )
