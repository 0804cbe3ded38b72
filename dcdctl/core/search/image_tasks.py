"""The worker of `dcdctl work` that embeds the images of tasks, whose columns `embed` describes.

An index has the bytes of one process. Files that are no images are left out, as always; a machine that lacks the folder
of the images does none of its tasks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from dcdctl.core import config as configs
from dcdctl.core import models
from dcdctl.core.data import PackedImageFile
from dcdctl.core.engines import IMAGE_BYTES, Compute
from dcdctl.core.errors import InputError
from dcdctl.core.progress import Advance
from dcdctl.core.scoring import expect_digest
from dcdctl.core.search import exact
from dcdctl.core.search.embed import (
    KIND,
    NAME,
    PATH,
    REASON,
    STAMP,
    EmbeddedImages,
    EmbedWorker,
    ImagesToEmbed,
    PackedFiles,
    file_reader,
)
from dcdctl.core.search.entries import ImageSource
from dcdctl.core.search.exact import Element
from dcdctl.core.search.image_files import facts_table
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.part_files import SourceImage
from dcdctl.core.search.stored import STORED, StoredTokens, StoredType


@dataclass(frozen=True)
class EmbedTasks:
    """Does tasks of images."""

    worker: EmbedWorker

    @classmethod
    def make(cls, job: Mapping[str, Any], model: str, compute: Compute) -> EmbedTasks:
        """A worker with the model at a place, which must be the one of the job; StaleError if it is not."""
        models.check_ref(model, kind="searchable")
        loaded = models.load_searchable(model)
        expect_digest(model, loaded.digest, job)
        source, settings = ImageSource(**job["source"]), configs.build(IndexConfig, job["settings"])
        return cls(EmbedWorker(loaded, compute, source, job["dim"], settings).placed())

    @property
    def stored_type(self) -> StoredType:
        """What the index stores of an image."""
        return STORED[self.worker.model.kind]

    @property
    def element(self) -> Element:
        """The type of a vector or of a token, as the index has it."""
        codes = self.worker.settings.tokens.codes if self.stored_type is StoredTokens else "float16"
        return exact.token_type(self.worker.dim, codes)

    def start(self, rows: pa.Table, name: str) -> Callable[[Advance], pa.Table]:
        """Begin to read the images of a task, and return what embeds them."""
        if PATH in rows.column_names:
            images = list(self._of_folder(rows, name))
            read_file = file_reader(self.worker.source)
        elif IMAGE_BYTES in rows.column_names:
            ids = rows.column(NAME).to_pylist()
            images = [SourceImage(image_id=image_id, corpus_row=row) for row, image_id in enumerate(ids)]
            contents = map(PackedImageFile, rows.column(IMAGE_BYTES).to_pylist())
            read_file = PackedFiles(dict(zip(ids, contents, strict=True)), name)
        else:
            raise InputError(f"{name} has no bytes of images", hint="write the tasks without ?bytes=false")
        return partial(self._embed, images, self.worker.start(ImagesToEmbed(images, read_file)))

    def _of_folder(self, rows: pa.Table, name: str) -> Iterator[SourceImage]:
        """The images of a task; InputError where none of them is."""
        paths = rows.column(PATH).to_pylist()
        # Otherwise all images would be left out. Not Path.exists, which raises for a name that is too long.
        if not any(os.path.exists(path) for path in paths):  # noqa: PTH110
            raise InputError(
                f"no image of {name} is on this machine, such as {paths[0]!r:.200}",
                hint="make their folder available under the same path",
            )
        for row in rows.select([NAME, PATH, *STAMP]).to_pylist():
            path = PurePosixPath(row.pop(PATH)).relative_to(self.worker.source.path)
            yield SourceImage(**row, path=path.as_posix())

    def _embed(
        self, images: Sequence[SourceImage], finish: Callable[[Advance], EmbeddedImages], advance: Advance
    ) -> pa.Table:
        embedded = finish(advance)
        place = {id(image): row for row, image in enumerate(embedded.images)}
        rows = [place.get(id(image)) for image in images]
        # In the order of the images, as they were read.
        left_out = iter(embedded.skipped)
        skipped = [next(left_out) if row is None else None for row in rows]
        columns = {NAME: pa.array([image.image_id for image in images], pa.string())}
        stored = self.stored_type.joined(embedded.stored, self.element)
        for table in (stored.file_columns(), facts_table(embedded.facts)):
            taken = table.take(pa.array(rows, pa.int64()))
            columns |= dict(zip(taken.column_names, taken.columns, strict=True))
        columns[REASON] = pa.array([file and file.reason for file in skipped], pa.string())
        columns[KIND] = pa.array([file and file.kind for file in skipped], pa.string())
        return pa.table(columns)
