"""`dcdctl duplicates`: the images of an index that are copies of each other, or look alike."""

from __future__ import annotations

from typing import Annotated

from dcdctl.cli.options import IndexFolder, Json, refuse
from dcdctl.cli.views.index import show_copies
from dcdctl.core.arguments import configures


def duplicates(
    index: IndexFolder,
    csv: Annotated[bool, configures("--csv", "Print CSV, a row per image.")] = False,
    json: Json = False,
) -> None:
    """List the images that are copies of each other or look alike. Nothing is removed."""
    from dcdctl.core.search import find_copies, open_to_change

    if json:
        refuse({"--csv": csv or None}, "and --json are two forms of the list: choose one")
    show_copies(find_copies(open_to_change(index)), as_json=json, as_csv=csv)
