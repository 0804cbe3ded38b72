"""`dcdctl export`: a model in the format of another library."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dcdctl.cli.declare import Ref, assignments, optional_path, path
from dcdctl.cli.options import Json, ModelRef, ModelSet, NewOut, configures, reads
from dcdctl.cli.views.terminal import amount, bar, show, show_json

if TYPE_CHECKING:
    from dcdctl.core.export import Exported
    from dcdctl.core.progress import Track


@dataclass(frozen=True)
class Export:
    """A model, and the folder to write for another library."""

    model: ModelRef
    out: NewOut
    # str for Typer, so that the core's error for a wrong word appears, with its hint.
    to: Annotated[
        Literal["transformers", "sentence-transformers", "open-clip", "onnx"],
        configures("--to", "transformers, sentence-transformers, open-clip or onnx (docs/export.md).", "FORMAT"),
        str,
    ]
    _: KW_ONLY
    data: Annotated[
        Ref | None,
        reads("--data", "Corpus to check the export on; by default that of the evaluation, or scenes.", "DIR"),
        Path,
    ] = None
    int8: Annotated[bool, configures("--int8/--no-int8", "With --to onnx: also write towers with int8 weights.")] = True
    license_id: Annotated[
        str | None, configures("--license", "License of the weights, as the Hub names it: apache-2.0.", "ID")
    ] = None
    push_to_hub: Annotated[
        str | None, configures("--push-to-hub", "Push the folder to this repository.", "OWNER/NAME")
    ] = None
    private: Annotated[
        bool, configures("--private/--public", "With --push-to-hub: who sees the repository, you alone or everybody.")
    ] = True
    model_overrides: ModelSet = None
    progress: bool = False
    """Show bars. The command always shows them."""

    def run(self, track: Track) -> Exported:
        """Write the folder and check it."""
        from dcdctl.core.export import ExportJob, export_model

        job = ExportJob(
            ref=os.fspath(self.model),
            out=path(self.out),
            to=self.to,
            data=optional_path(self.data),
            with_int8=self.int8,
            license=self.license_id,
            push_to=self.push_to_hub,
            private=self.private,
            model_sets=assignments(self.model_overrides),
        )
        return export_model(job, track)


def export(arguments: Export, json: Json = False) -> None:
    """Write a model for another library. A model card is added, and the outputs are compared with those of the
    original."""
    outcome = arguments.run(bar)
    if json:
        return show_json(outcome.to_json())
    _show(outcome)


def _show(outcome: Exported) -> None:
    from dcdctl.core.export import checks_in_words

    show(f"{outcome.kind} model for {outcome.to} -> {outcome.folder} ({amount(outcome.num_bytes, 'bytes')})")
    show(f"checked on {outcome.checked_on}: {checks_in_words(outcome.checks)}")
    if outcome.page is not None:
        show(f"pushed: {outcome.page}")
