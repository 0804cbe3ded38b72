"""`dcdctl index`: embed images once and make them searchable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from dcdctl.cli.declare import Ref, optional_ref, path
from dcdctl.cli.option_groups import Machine
from dcdctl.cli.options import (
    BatchSize,
    Engine,
    Json,
    Precision,
    QueryRef,
    Workers,
    argument,
    configures,
    reads,
    reads_split,
)
from dcdctl.cli.views.index import change_document, show_change
from dcdctl.cli.views.terminal import bar, note, show_json, tasks_shown

if TYPE_CHECKING:
    import pyarrow as pa

    from dcdctl.core.engines import Compute
    from dcdctl.core.progress import Say
    from dcdctl.core.search import IndexConfig, IndexJob

Metadata: TypeAlias = "Ref | pa.Table | None"
Settings: TypeAlias = "IndexConfig | None"
MetadataFile = Annotated[
    Metadata,
    configures(
        "--metadata", "Columns for conditions: CSV or Parquet with a column image and others, such as year.", "FILE"
    ),
    Path,
]
SearchSets = Annotated[
    list[str] | None,
    configures("--set", "Override a search setting: kind=flat, keywords=true, exif=place; repeatable.", "KEY=VALUE"),
]
Vectors = Annotated[
    list[str] | None,
    reads(
        "--vectors",
        "Take the vectors of the images from Parquet files, in place of embedding; folder or pattern; repeatable.",
        "FILE",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Embedding(Machine):
    """How to embed images: by this process, those of torchrun or the workers of an engine."""

    workers: Workers = None
    engine: Engine = None
    batch_size: BatchSize = 32

    def compute(self, say: Say, precision: str = "fp32") -> Compute:
        """What to embed on, as the core takes it."""
        from dcdctl.core.engines import Compute, EngineChoice

        return Compute.chosen(
            EngineChoice.parse(self.engine),
            device=self.device,
            precision=precision,
            batch_size=self.batch_size,
            workers=self.workers,
            say=say,
        )


@dataclass(frozen=True)
class NewIndex(Embedding):
    """A model, images, and the folder of their index."""

    model: Annotated[Ref, argument("Dual or late-interaction model: a run folder, or another reference.", "MODEL"), str]
    images: Annotated[Ref, reads("--images", "Folder of images, or a folder written by `dcdctl prepare`.", "DIR"), Path]
    out: Annotated[Ref, configures("--out -o", "Folder of the new index.", "INDEX"), Path]
    _: KW_ONLY
    settings: Settings = None
    """The command line has `--set`."""
    precision: Precision = "fp32"
    split: Annotated[str | None, reads_split(show_default="all")] = None
    query_model: QueryRef = None
    metadata: MetadataFile = None

    def job(self, say: Say, sets: Sequence[str] = (), vectors: Sequence[str] = ()) -> IndexJob:
        """The new index, as the core takes it."""
        from dcdctl.core.search import IndexJob

        if self.query_model is not None:
            say_of_query_model(os.fspath(self.query_model), say)
        return IndexJob(
            model=os.fspath(self.model),
            images=path(self.images),
            out=path(self.out),
            split=self.split,
            sets=tuple(sets),
            vectors=tuple(vectors),
            metadata=table_or_path(self.metadata),
            query_model=optional_ref(self.query_model),
            compute=self.compute(say, self.precision),
        )


def say_of_query_model(ref: str, say: Say) -> None:
    """Say if a query encoder is far from its teacher, before it answers every search."""
    from dcdctl.core import training

    if text := training.note_of_query_model(ref):
        say(text)


def table_or_path(metadata: Metadata) -> Path | pa.Table | None:
    """Metadata as the core takes it."""
    return path(metadata) if isinstance(metadata, str | os.PathLike) else metadata


def index(
    new: NewIndex,
    sets: SearchSets = None,
    vectors: Vectors = None,
    json: Json = False,
) -> None:
    """Make images searchable. A model embeds the images of a folder or a corpus once."""
    from dcdctl.core import search

    with tasks_shown(json=json):
        change = search.build_index(new.job(note, sets or (), vectors or ()), track=bar)
        if json:
            show_json(change_document(change))
        else:
            show_change(change)
