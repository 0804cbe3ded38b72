"""`dcdctl prepare`: turn captioned images into a corpus."""

from __future__ import annotations

from typing import Annotated, Any

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import bar, note, show, show_entries, show_json
from dcdctl.core.arguments import reads
from dcdctl.core.data import PrepareJob


def prepare(
    job: PrepareJob,
    json: Json = False,
    show_list: Annotated[bool, reads("--list", "List the data sets and stop.")] = False,
) -> None:
    """Turn captioned images into a corpus. They are downloaded, checked, sharded and fingerprinted."""
    from dcdctl.core import data
    from dcdctl.core.config import to_table

    if show_list:
        return _show_data_sets(data.list_data_sets(), json)
    summary = data.make_corpus(job, track=bar, say=note)
    return show_json(to_table(summary)) if json else show(str(summary))


def _show_data_sets(data_sets: list[dict[str, Any]], json: bool) -> None:
    if json:
        return show_json({"data_sets": data_sets})
    entries = []
    for entry in data_sets:
        facts = {
            "": entry["summary"],
            "images": ", ".join(f"{name} {counts['images']:,}" for name, counts in entry["expected"].items()),
            "sources": ", ".join(source["name"] for source in entry["sources"]),
            "license": entry["license"],
        }
        entries.append((entry["name"], facts))
    show_entries("data sets: dcdctl prepare NAME", entries)
