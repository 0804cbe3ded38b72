"""`dcdctl upload`: bring a store up to an index."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from dcdctl.cli.options import IndexFolder, Json
from dcdctl.cli.views.index import show_upload
from dcdctl.cli.views.terminal import bar, show_json
from dcdctl.core.arguments import argument, configures


def upload(
    index: IndexFolder,
    url: Annotated[str, argument("URL of the store: PostgreSQL or LanceDB (docs/indexing.md).", "URL")],
    replace: Annotated[
        bool, configures("--replace", "Fill the store again, in place of the images of another index.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring a store up to an index. It gets the images that it lacks, and loses those that the index has no more."""
    from dcdctl.core import search, stores

    store = stores.open_store(url)
    uploaded = stores.upload_index(search.open_to_change(index), store, replace=replace, track=bar)
    if json:
        show_json({"index": index, **asdict(uploaded)})
    else:
        show_upload(uploaded)
