"""What to export: the job of `dcdctl export` and `dcdctl.export`."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from dcdctl.core.arguments import Ref, configures, path, reads
from dcdctl.core.options import ModelRef, ModelSet, NewOut


@dataclass(frozen=True)
class ExportJob:
    """A model, and the folder to write for another library."""

    model: ModelRef
    out: NewOut
    to: Annotated[
        Literal["transformers", "sentence-transformers", "open-clip", "onnx"],
        configures("--to", "transformers, sentence-transformers, open-clip or onnx (docs/export.md).", "FORMAT"),
    ]
    _: KW_ONLY
    data: Annotated[
        Ref | None,
        reads("--data", "Corpus to check the export on; by default that of the evaluation, or scenes.", "DIR", "place"),
    ] = None
    int8: Annotated[bool, configures("--int8/--no-int8", "With --to onnx: also write towers with int8 weights.")] = True
    license_id: Annotated[
        str | None, configures("--license", "License of the weights, as the Hub names it: apache-2.0.", "ID")
    ] = None
    push_to_hub: Annotated[
        str | None, configures("--push-to-hub", "Push the folder to this repository.", "OWNER/NAME")
    ] = None
    # By default its owner alone: a model may have been trained on private photos.
    private: Annotated[
        bool, configures("--private/--public", "With --push-to-hub: who sees the repository, you alone or everybody.")
    ] = True
    model_overrides: ModelSet = None
    progress: bool = False
    """Show bars. The command always shows them."""

    @property
    def ref(self) -> str:
        """The reference of the model."""
        return os.fspath(self.model)

    @property
    def name(self) -> str:
        """Where others find the export: its repository on the Hub, or its folder."""
        return self.push_to_hub or path(self.out).resolve().name
