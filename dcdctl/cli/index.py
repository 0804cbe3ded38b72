"""`dcdctl index`: embed images once and make them searchable."""

from __future__ import annotations

from dcdctl.cli.options import Json
from dcdctl.cli.views.index import change_document, show_change
from dcdctl.cli.views.terminal import bar, note, show_json, tasks_shown
from dcdctl.core.search import IndexJob


def index(new: IndexJob, json: Json = False) -> None:
    """Make images searchable. A model embeds the images of a folder or a corpus once."""
    from dcdctl.core import search, training

    training.say_of_query_model(new.query_model, note)
    with tasks_shown(json=json):
        change = search.build_index(new, track=bar, say=note)
        if json:
            show_json(change_document(change))
        else:
            show_change(change)
