"""`dcdctl index`: embed images once and make them searchable."""

from __future__ import annotations

import os
from typing import Annotated

from dcdctl.cli.options import Json, refuse
from dcdctl.cli.views.index import change_document, show_change
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.arguments import configures, path
from dcdctl.core.progress import counted
from dcdctl.core.search import IndexJob


def index(
    new: IndexJob,
    plan_only: Annotated[
        bool, configures("--plan-only", "Write the list of images to the folder OUT, for another engine to embed.")
    ] = False,
    json: Json = False,
) -> None:
    """Make images searchable. A model embeds the images of a folder or a corpus once."""
    if plan_only:
        others = {"--vectors": new.vectors, "--metadata": new.metadata, "--query-model": new.query_model}
        refuse(others, "and --plan-only are two steps: list the images first")
        return _plan(new, json)
    from dcdctl.core import search, training

    training.say_of_query_model(new.query_model, note)
    change = search.build_index(new, track=bar, say=note)
    if json:
        show_json(change_document(change))
    else:
        show_change(change)


def _plan(new: IndexJob, json: bool) -> None:
    from dcdctl.core.search import write_image_list

    listed = write_image_list(os.fspath(new.model), path(new.images), path(new.out))
    if json:
        return show_json(listed)
    counts = f"{counted(listed['images'], 'files')} in {counted(listed['files'], 'Parquet files')}"
    show(f"{counts}, model {listed['model'][:8]} -> {listed['list']}")
