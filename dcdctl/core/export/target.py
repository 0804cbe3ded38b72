"""What an export target is: a library, or a runtime, that loads the exported folder without dcdctl."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from dcdctl.core.errors import ModelError
from dcdctl.core.export.check import NOT_WRITTEN, Check, Samples, compare_vectors, vectors_of
from dcdctl.core.export.job import ExportJob
from dcdctl.core.models import ExportSpec, Model
from dcdctl.core.scoring import Vectors

Task = Literal["feature-extraction", "sentence-similarity"]


class Target(ABC):
    """A value of `--to`: which models it holds, how its folder is written, checked and used. An object is one
    export."""

    name: ClassVar[str]
    tags: ClassVar[tuple[str, ...]] = ()
    """Tags of the model card."""
    task: ClassVar[Task] = "feature-extraction"
    """The pipeline tag of a dual encoder on the Hub."""
    no_fusion: ClassVar[str] = ""
    """Why a fusion model cannot be exported; empty if it can."""
    has_texts_alone: ClassVar[bool] = False
    """Whether the model is a query encoder, which has no images."""

    def __init__(self, job: ExportJob, model: Model, folder: Path) -> None:
        """`folder` is where the files are now: they get the name of `job.out` after their check."""
        # Any, because what a method needs depends on the kind, which `check` has seen before.
        self.model: Any = model
        self.job, self.folder, self.spec = job, folder, model.export_spec()

    @classmethod
    @abstractmethod
    def require(cls) -> None:
        """MissingError if a package is missing that writes or reads the folder."""

    @property
    def has_tokens(self) -> bool:
        """Whether the model gives a vector per token, as late interaction does."""
        return bool(self.model.kind == "late")

    @property
    def has_vectors(self) -> bool:
        """Whether the model encodes images and captions apart, as a cross-encoder does not."""
        return bool(self.model.keeps_states)

    def check(self) -> None:
        """ModelError, with the target that fits, for a model that this one cannot hold."""
        ref, spec = self.job.ref, self.spec
        if self.has_tokens:
            self._check_late()
        if self.name in spec.refusals:
            message = f"{ref} is a model of {spec.library}, and cannot be exported to {self.name}"
            raise ModelError(f"{message}: {spec.refusals[self.name]}", hint=f"export it with --to {spec.library}")
        if not self.has_vectors and self.no_fusion:
            raise ModelError(
                f"{ref} is a fusion model, which {self.no_fusion}",
                hint="export it with --to transformers, or a dual student to this format",
            )

    def _check_late(self) -> None:
        """ModelError for a late-interaction model that no format holds, or not this one."""
        message = f"{self.job.ref} is a late-interaction model, which is not exported to {self.name}"
        if self.model.as_dual is None:
            raise ModelError(f"{message}: its own library reads its folder", hint="read it with dcdctl")
        if self.model.vectors_scale is not None:
            reason = "MaxSim is not all of its score, the cosine of whole vectors counts too (model.pooled)"
            raise ModelError(f"{message}: {reason}", hint="read it with dcdctl")
        if self.no_tokens:
            # ONNX files hold the tokens of every network.
            raise ModelError(f"{message}: {self.no_tokens}", hint="export it with --to onnx")

    @property
    def no_tokens(self) -> str:
        """Why this format has none of its token vectors; empty if it has."""
        return "the forms for token vectors are those of sentence-transformers and onnx"

    @abstractmethod
    def write(self) -> None:
        """Write a model that `check` accepts into the folder, which is new."""

    @abstractmethod
    def embed(self, samples: Samples) -> Vectors:
        """The vectors of samples by the library alone, from the folder of a dual encoder."""

    def compare(self, samples: Samples) -> tuple[Check, ...]:
        """How close the library's results from the folder are to the model's; ModelError if they are not close
        enough."""
        exported, original = self.embed(samples), vectors_of(self.model, samples)
        return (compare_vectors("fp32", exported, original, hint=NOT_WRITTEN),)

    @property
    def library(self) -> str:
        """The library of the model card: no library of the Hub reads a co-attention scorer."""
        return self.name if self.spec.model_class or self.spec.library else "dcdctl"

    @property
    def title(self) -> str:
        """The first paragraph of the model card."""
        length, side = self.model.preprocess.max_text_len, self.model.preprocess.image_size_px
        inputs = f"It reads images of {side} px and captions of up to {length} tokens."
        if self.has_tokens:
            vectors = (
                f"a vector of {self.model.token_dim} numbers for each token of an image and of a caption, compared by "
                "MaxSim (the largest cosine to a token of the image, as a mean over the tokens of the caption)"
            )
            return f"A late-interaction (multi-vector) model for image-text retrieval: {vectors}. {inputs}"
        if self.has_vectors:
            width = self.model.embedding_dim
            vectors = f"it embeds images and captions as vectors of {width} numbers, which are compared by their cosine"
            return f"A dual encoder for image-text retrieval: {vectors}. {inputs}"
        return (
            "A cross-encoder for image-text retrieval: it reads an image and a caption together and scores how well "
            f"they match. {inputs}"
        )

    @abstractmethod
    def usage(self) -> str:
        """The Python code that loads the export and scores a caption with an image, for the model card."""

    @abstractmethod
    def requirements(self) -> list[str]:
        """The packages that the code needs, by their names for pip."""

    @property
    def folder_code(self) -> str:
        """For `usage`: the lines that set the variable `folder` to a local folder with the export."""
        if self.job.push_to_hub is None:
            return f'folder = "{self.job.name}"'
        return f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{self.job.name}")'

    @property
    def trust_code(self) -> str:
        """For `usage`: the argument that runs the code of the folder, if it has any."""
        return ", trust_remote_code=True" if self.spec.code else ""


def with_timm(packages: list[str], spec: ExportSpec) -> list[str]:
    """Packages that read images, and what the image transform of timm needs: torchvision comes with timm."""
    packages = [*packages, "pillow"]
    return packages if spec.timm_config is None else [*packages, "timm"]
