"""What an export target is: a library, or a runtime, that loads the exported folder without dcdctl."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from dcdctl.core.errors import ModelError
from dcdctl.core.export.check import Check, Samples, SampleVectors, compare_vectors, vectors_of
from dcdctl.core.models import DualEncoder, ExportSpec, Model

Task = Literal["feature-extraction", "sentence-similarity"]


class Target(ABC):
    """A value of `--to`: which models it holds, how its folder is written, checked and used."""

    name: ClassVar[str]
    tags: ClassVar[tuple[str, ...]] = ()
    """Tags of the model card."""
    task: ClassVar[Task] = "feature-extraction"
    """The pipeline tag of a dual encoder on the Hub."""
    no_fusion: ClassVar[str] = ""
    """Why a fusion model cannot be exported; empty if it can."""

    @abstractmethod
    def require(self) -> None:
        """MissingError if a package is missing that writes or reads the folder."""

    def check(self, model: Model, ref: str) -> None:
        """ModelError, with the target that fits, for a model that this one cannot hold."""
        spec = model.export_spec()
        if self.name in spec.refusals:
            message = f"{ref} is a model of {spec.library}, and cannot be exported to {self.name}"
            raise ModelError(f"{message}: {spec.refusals[self.name]}", hint=f"export it with --to {spec.library}")
        if model.kind == "fusion" and self.no_fusion:
            raise ModelError(
                f"{ref} is a fusion model, which {self.no_fusion}",
                hint="export it with --to transformers, or a dual student to this format",
            )

    @abstractmethod
    def write(self, model: Any, folder: Path, *, with_int8: bool) -> None:
        """Write a model that `check` accepts into a new folder; only ONNX has int8 weights."""

    @abstractmethod
    def embed(self, model: DualEncoder, folder: Path, samples: Samples) -> SampleVectors:
        """The vectors of samples by the library alone, from a folder of `write`."""

    def compare(self, model: Any, folder: Path, samples: Samples) -> tuple[Check, ...]:
        """How close the library's results from the folder are to the model's; ModelError if they are not close
        enough."""
        exported, original = self.embed(model, folder, samples), vectors_of(model, samples)
        return (compare_vectors("fp32", exported, original, hint="nothing was written"),)

    @abstractmethod
    def usage(self, model: Model, name: str, folder: str) -> str:
        """The Python code that loads the export and scores a caption with an image, for the model card.

        `name` is its folder, or its repository on the Hub; `folder` are the lines that set the variable of that name to
        a local folder.
        """

    @abstractmethod
    def requirements(self, spec: ExportSpec) -> list[str]:
        """The packages that the code needs, by their names for pip."""


def trust(spec: ExportSpec) -> str:
    """The argument that runs the code of the folder, for the calls of `usage`."""
    return ", trust_remote_code=True" if spec.code else ""


def with_timm(packages: list[str], spec: ExportSpec) -> list[str]:
    """Packages that read images, and what the image transform of timm needs: torchvision comes with timm."""
    return [*packages, "pillow", *([] if spec.timm_config is None else ["timm"])]
