"""`dcdctl change`: change an index without embedding."""

from __future__ import annotations

import typer

from dcdctl.cli.options import IndexFolder, Json
from dcdctl.cli.views.index import change_document, show_change
from dcdctl.cli.views.terminal import bar, note, show_json
from dcdctl.core.search import Changes


def change(index: IndexFolder, changes: Changes, json: Json = False) -> None:
    """Change what an index has or how it is searched. Nothing is embedded again; `dcdctl sync` follows its folders."""
    from dcdctl.core import search, training

    if changes == Changes():
        raise typer.BadParameter("name what to change: --set, --metadata, --drop-column, --query-model or --remove")
    if changes.remove:
        search.check_removable(index, changes.remove)
    training.say_of_query_model(changes.query_model, note)
    changed = search.change_index(index, changes, track=bar)
    if json:
        show_json(change_document(changed))
    else:
        show_change(changed)
