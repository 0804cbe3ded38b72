"""What to make searchable: the job of `dcdctl photos` and `dcdctl.photos`."""

from __future__ import annotations

import os
import shlex
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated

from dcdctl.core.arguments import Ref, Refs, Settings, argument, configures, path, reads
from dcdctl.core.options import Out

if TYPE_CHECKING:
    from dcdctl.core.search import Library

DEFAULT_MODEL = "google/siglip2-base-patch32-256"
"""docs/models.md says why: its license, its published recalls and what a photo costs."""


@dataclass(frozen=True)
class PhotosJob:
    """A folder of photos, what is known about them, and the library that they become."""

    images: Annotated[Ref, argument("Folder of the photos.", "FOLDER")]
    captions: Annotated[
        Ref | None, argument("CSV file with one caption per row, image,caption: train on them.", "CAPTIONS")
    ] = None
    _: KW_ONLY
    out: Out
    model: Annotated[
        Ref | None,
        reads(
            "--model",
            "Without captions: the pretrained model, a folder, run or Hub id; with --teacher the start.",
            "REF",
            "model",
            show_default=f"{DEFAULT_MODEL}; that of the index if there is one",
        ),
    ] = None
    queries: Annotated[
        Refs | None,
        reads("--queries", "With --teacher: texts without an image, such as a log; repeatable.", "FILE"),
    ] = None
    teacher: Annotated[
        Ref | None,
        reads("--teacher", "With --queries: the model that finds photos for them, any reference.", "REF", "model"),
    ] = None
    overrides: Annotated[
        Settings | None,
        configures(
            "--set",
            "With a training: override a recipe field, model.vision=DIR; repeatable (`dcdctl recipes photos --all`).",
            "KEY=VALUE",
        ),
    ] = None
    progress: bool = False
    """Show bars. The command always shows them."""

    @property
    def library(self) -> Library:
        """Where all of it goes."""
        from dcdctl.core.search import Library

        return Library(path(self.out))

    @property
    def pretrained(self) -> str | None:
        """The model whose weights are taken as they are, or as the start of a training; None with captions, from which
        a model over two encoders learns."""
        if self.captions is not None:
            return None
        return DEFAULT_MODEL if self.model is None else os.fspath(self.model)

    def command(self, *words: Ref) -> str:
        """A command line of `photos` for this library."""
        return shlex.join(["dcdctl", "photos", *(os.fspath(word) for word in words), "--out", os.fspath(self.out)])
