"""`dcdctl export`: a model in the format of another library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcdctl.cli.options import FormerOut, Json, ModelRef, ModelSet, NewOut, new_folder
from dcdctl.cli.views.terminal import amount, bar, note, show, show_json

if TYPE_CHECKING:
    from dcdctl.core.export import Exported

To = Annotated[
    str,
    typer.Option(
        "--to", help="transformers, sentence-transformers, open-clip or onnx (docs/export.md).", metavar="FORMAT"
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Corpus to check the export on; by default that of the evaluation, or scenes.", metavar="DIR"
    ),
]
Int8 = Annotated[bool, typer.Option("--int8/--no-int8", help="With --to onnx: also write towers with int8 weights.")]
Evaluations = Annotated[
    list[Path] | None,
    typer.Option(
        "--evaluation",
        help="Folder of `dcdctl eval --out` of its start or itself, for the card. Repeatable.",
        metavar="DIR",
    ),
]
License = Annotated[
    str | None, typer.Option("--license", help="License of the weights, as the Hub names it: apache-2.0.", metavar="ID")
]
PushToHub = Annotated[
    str | None, typer.Option("--push-to-hub", help="Push the folder to this repository.", metavar="OWNER/NAME")
]
Private = Annotated[bool, typer.Option("--private", help="With --push-to-hub: create a private repository.")]


def export(
    model: ModelRef,
    to: To,
    former_out: FormerOut = None,
    out: NewOut = None,
    data: Data = None,
    int8: Int8 = True,
    evaluation: Evaluations = None,
    license_id: License = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    model_set: ModelSet = None,
    json: Json = False,
) -> None:
    """Write a model for another library. A model card is added, and the outputs are compared with those of the
    original."""
    from dcdctl.core.export import ExportJob, export_model, push_options

    push = push_options(push_to_hub, is_private=private)
    named, sets = tuple(evaluation or ()), tuple(model_set or ())
    folder = new_folder(out, former_out)
    job = ExportJob(
        ref=model,
        out=folder,
        to=to,
        data=data,
        with_int8=int8,
        license=license_id,
        push=push,
        model_sets=sets,
        evaluations=named,
    )
    outcome = export_model(job, bar)
    if json:
        return show_json(outcome.to_json())
    _show(outcome)


def _show(outcome: Exported) -> None:
    from dcdctl.core.export import checks_in_words

    show(f"{outcome.kind} model for {outcome.to} -> {outcome.folder} ({amount(outcome.num_bytes, 'bytes')})")
    show(f"checked on {outcome.checked_on}: {checks_in_words(outcome.checks)}")
    for part in outcome.missing:
        note(f"missing in its model card: {part.what}: `{part.command}`")
    if outcome.page is not None:
        show(f"pushed: {outcome.page}")
