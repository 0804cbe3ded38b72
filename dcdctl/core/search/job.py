"""What to index, how its images are embedded, and what to change: the jobs of `dcdctl index`, of `dcdctl change` and of
`dcdctl.Index`."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from dcdctl.core.arguments import Ref, Refs, argument, configures, path, reads
from dcdctl.core.engines import Machine
from dcdctl.core.options import BatchSize, Engine, Precision, QueryRef, Workers, reads_split
from dcdctl.core.progress import Say, unsaid

if TYPE_CHECKING:  # torch and pyarrow
    import pyarrow as pa

    from dcdctl.core.engines import Compute
    from dcdctl.core.search.index_config import IndexConfig

Metadata: TypeAlias = "Ref | pa.Table | None"
SearchConfig: TypeAlias = "IndexConfig | None"
MetadataFile = Annotated[
    Metadata,
    configures(
        "--metadata",
        "Columns for conditions: CSV or Parquet with a column image and others, such as year.",
        "FILE",
        "path",
    ),
]
SearchSets = Annotated[
    list[str] | None,
    configures(
        "--set",
        "Override a search setting: keywords=true, exif=place; repeatable.",
        "KEY=VALUE",
        is_keyword=False,
    ),
]
Vectors = Annotated[
    list[str] | None,
    reads(
        "--vectors",
        "Take the vectors of the images from Parquet files, in place of embedding; folder or pattern; repeatable.",
        "FILE",
        is_keyword=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Embedding(Machine):
    """How to embed images: by this process or the workers of an engine."""

    workers: Workers = None
    engine: Engine = None
    batch_size: BatchSize = 32

    def compute(self, say: Say = unsaid, precision: str = "fp32") -> Compute:
        """Where and how to embed; a line to `say` for a precision that is slower than fp32 on this processor."""
        # Here, because torch takes a second to import.
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
class IndexJob(Embedding):
    """A model, images, and the folder of their index."""

    model: Annotated[
        Ref, argument("Dual or late-interaction model: a run folder, or another reference.", "MODEL", "model")
    ]
    images: Annotated[Ref, reads("--images", "Folder of images, or a folder written by `dcdctl prepare`.", "DIR")]
    out: Annotated[Ref, configures("--out -o", "Folder of the new index.", "INDEX")]
    _: KW_ONLY
    settings: SearchConfig = None
    """The command line has `sets`."""
    sets: SearchSets = None
    vectors: Vectors = None
    precision: Precision = "fp32"
    split: Annotated[str | None, reads_split(show_default="all")] = None
    query_model: QueryRef = None
    metadata: MetadataFile = None


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes of an index for which nothing is embedded: settings, removals and columns, then the query encoder."""

    remove: Annotated[
        list[str] | None,
        reads(
            "--remove",
            "Remove an image by name, or several by a pattern; sync adds it again while its file is there; repeatable.",
            "NAME",
        ),
    ] = None
    drop_columns: Annotated[
        list[str] | None, configures("--drop-column", "Remove a column of the index; repeatable.", "NAME")
    ] = None
    metadata: MetadataFile = None
    """The values of the images that it names replace those that they have."""
    sets: SearchSets = None
    query_model: QueryRef = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be changed."""
        return self == Changes()


@dataclass(frozen=True)
class WorkJob(Machine):
    """Files of tasks, and where this machine has their model."""

    files: Annotated[
        Refs,
        argument("Tasks that --engine files:DIR wrote: DIR/tasks-*, or the folder DIR.", "FILE", "place"),
    ]
    _: KW_ONLY
    model: Annotated[
        Ref | None,
        reads("--model", "The model of the tasks, if it has another place on this machine.", "REF", "model"),
    ] = None
    workers: Workers = None


def table_or_path(metadata: Metadata) -> Path | pa.Table | None:
    """Metadata in memory as they are, and a file by its path."""
    return path(metadata) if isinstance(metadata, str | os.PathLike) else metadata
