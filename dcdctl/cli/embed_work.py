"""`dcdctl embed-work`: embed files of a list of images, as a task of any engine."""

from __future__ import annotations

import os
import time
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli import options
from dcdctl.cli.declare import Refs, many, path
from dcdctl.cli.option_groups import Passes
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.progress import Say
    from dcdctl.core.search import EmbedWorkJob


@dataclass(frozen=True)
class EmbedWork(Passes):
    """Files of a list of images, and the dual encoder that embeds them."""

    lists: Annotated[
        Refs,
        options.argument(
            "Files of the list of `index --plan-only`, or Parquet files of a corpus; folders or patterns.", "LIST"
        ),
        list[str],
    ]
    model: options.ModelRef
    out: options.OutFiles
    _: KW_ONLY
    batch_size: options.BatchSize = 32

    def job(self, say: Say) -> EmbedWorkJob:
        """What to embed, and where."""
        from dcdctl.core.search import EmbedWorkJob

        return EmbedWorkJob(
            lists=many(self.lists), model=os.fspath(self.model), out=path(self.out), compute=self.compute(say)
        )


def embed_work(arguments: EmbedWork, json: options.Json = False) -> None:
    """Embed files of a list of images, as a task of any engine. `index --vectors` makes an index of the vectors."""
    from dcdctl.core.data import left_out_lines
    from dcdctl.core.places import shown
    from dcdctl.core.search import embed_work as embed

    started = time.monotonic()
    embedded = embed(arguments.job(note), track=bar)
    if json:
        return show_json(
            {
                "vectors": shown(embedded.folder),
                "images": embedded.num_images,
                "left_out": sum(embedded.left_out.values()),
                "left_out_by_kind": embedded.left_out,
                "files": embedded.num_files,
                "already_there": embedded.num_there,
                "model": embedded.model,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
    for line in left_out_lines(embedded.left_out):
        note(line)
    there = f" ({embedded.num_there:,} already there)" if embedded.num_there else ""
    counts = f"{counted(embedded.num_images, 'images')} in {counted(embedded.num_files, 'files')}{there}"
    show(f"vectors of {counts} -> {shown(embedded.folder)}")
