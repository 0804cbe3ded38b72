"""`dcdctl sync`: let an index follow its image folders, once or until Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli.options import IndexFolder, Json, refuse
from dcdctl.cli.views.index import change_document, show_change, show_sync
from dcdctl.cli.views.terminal import bar, note, show_error, show_json, tasks_shown
from dcdctl.core.arguments import reads
from dcdctl.core.options import reads_split
from dcdctl.core.search import Embedding, Vectors

if TYPE_CHECKING:
    from dcdctl.core.engines import Compute
    from dcdctl.core.search import IndexChange


def sync(
    index: IndexFolder,
    embedding: Embedding,
    add: Annotated[
        Path | None, reads("--add", "Add the images of a folder or a corpus; other folders are not read.", "DIR")
    ] = None,
    split: Annotated[str | None, reads_split(show_default="all")] = None,
    vectors: Vectors = None,
    moved: Annotated[
        tuple[Path, Path] | None,
        reads(
            "--moved",
            "An image folder, or a folder that it is in, is at another place now; nothing is embedded.",
            "OLD NEW",
        ),
    ] = None,
    watch: Annotated[bool, reads("--watch", "Keep following the image folders until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Follow the image folders of an index. New images are added, changed ones read again, and those that are gone
    removed."""
    from dcdctl.core import engines, search

    engines.EngineChoice.parse(embedding.engine)  # a wrong engine is an error also where nothing is to be done
    if add is None:
        refuse({"--split": split, "--vectors": vectors}, "is for images to add: name them with --add DIR")

    @cache  # with one engine, whose workers are kept
    def compute() -> Compute:
        return embedding.compute(note)

    def show_it(change: IndexChange, in_words: Callable[[IndexChange], None] = show_sync) -> None:
        if json:
            show_json(change_document(change), indent=None if watch else 2)
        else:
            in_words(change)

    with tasks_shown(json=json):
        done = []
        if moved is not None:
            done.append(search.move_images(index, *moved))
        if add is not None:
            done.append(search.add_images(index, add, split=split, vectors=vectors or (), compute=compute(), track=bar))
        if done:
            notes = [text for change in done for text in change.notes]
            show_it(replace(done[-1], notes=tuple(notes)), show_change)
        if watch:
            with suppress(KeyboardInterrupt):
                search.watch_index(index, show_it, show_error, compute=compute, track=bar)
        elif not done:
            show_it(search.sync_index(index, compute=compute, track=bar))
