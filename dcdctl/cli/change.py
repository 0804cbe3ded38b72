"""`dcdctl change`: change an index without embedding."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dcdctl.cli.declare import optional_ref
from dcdctl.cli.index import MetadataFile, SearchSets, say_of_query_model, table_or_path
from dcdctl.cli.options import IndexFolder, Json, QueryRef, configures, reads
from dcdctl.cli.views.index import change_document, show_change
from dcdctl.cli.views.terminal import bar, note, show_json


def change(
    index: IndexFolder,
    remove: Annotated[
        list[str] | None,
        reads(
            "--remove",
            "Remove an image by name, or several by a pattern; sync adds it again while its file is there; repeatable.",
            "NAME",
        ),
    ] = None,
    drop_column: Annotated[
        list[str] | None, configures("--drop-column", "Remove a column of the index; repeatable.", "NAME")
    ] = None,
    metadata: MetadataFile = None,
    sets: SearchSets = None,
    query_model: QueryRef = None,
    json: Json = False,
) -> None:
    """Change what an index has or how it is searched. Nothing is embedded again; `dcdctl sync` follows its folders."""
    from dcdctl.core import search

    if not any((remove, drop_column, metadata, sets, query_model)):
        raise typer.BadParameter("name what to change: --set, --metadata, --drop-column, --query-model or --remove")
    if remove:
        search.check_removable(index, remove)
    if query_model is not None:
        say_of_query_model(os.fspath(query_model), note)
    changes = search.Changes(
        sets=tuple(sets or ()),
        remove=tuple(remove or ()),
        drop_columns=tuple(drop_column or ()),
        metadata=table_or_path(metadata),
        query_model=optional_ref(query_model),
    )
    changed = search.change_index(index, changes, track=bar)
    if json:
        show_json(change_document(changed))
    else:
        show_change(changed)
