"""How the commands of an index show what they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dcdctl.cli.views.terminal import note, printable, show, show_csv, show_json
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.search import IndexChange, SameImages
    from dcdctl.core.stores import Upload

NUM_SKIPPED_SHOWN = 5
"""Damaged files that are named on the screen."""


def change_document(change: IndexChange) -> dict[str, Any]:
    """A change as plain values, for JSON."""
    index = change.index
    return {
        "index": str(index.folder),
        "images": index.num_images,
        "added": change.added,
        "removed": change.removed,
        "changed": change.changed,
        "moved": change.moved,
        "copied": change.copied,
        "unchanged": change.unchanged,
        "left_out": len(change.skipped),
        "left_out_by_kind": _by_kind(change.skipped),
        "dims": index.dim,
        "kind": index.kind,
        "keywords": index.has_keywords,
        "columns": index.columns.names,
        "notes": list(change.notes),
    }


def show_change(change: IndexChange) -> None:
    """Show what the index is now, and what was left out."""
    from dcdctl.core import search

    index = change.index
    _show_notes(change, change.skipped)
    if reason := search.text_side_note(index.document):
        note(f"note: {reason}")
    counts = _counts(added=change.added, removed=change.removed)
    words = " and by words" if index.has_keywords else ""
    empty = index.empty_columns
    columns = _listed(", columns", [name for name in index.columns.names if name not in empty])
    columns += _listed(", no values for", empty)
    if query := search.query_model_of(index.document):
        columns += f", texts by {printable(query)}"
    numbers = f"{index.dim} numbers {index.stored_type.per}"
    images = f"{counted(index.num_images, 'images')}{counts}"
    show(f"{images}, {numbers}, search by {index.kind}{words}{columns} -> {index.folder}")


def _listed(title: str, names: Sequence[str]) -> str:
    return f"{title} {', '.join(map(printable, names))}" if names else ""


def show_sync(change: IndexChange) -> None:
    """Show on one line what following the folders did, and of the files that are left out, which ones are new."""
    _show_notes(change, change.newly_skipped)
    done = _counts(
        added=change.added - change.copied,
        changed=change.changed,
        moved=change.moved,
        copied=change.copied,
        removed=change.removed,
        unchanged=change.unchanged,
    )
    show(f"{counted(change.index.num_images, 'images')}{done} -> {change.index.folder}")


def _show_notes(change: IndexChange, skipped: Sequence[Mapping[str, Any]]) -> None:
    """The files that are left out by kind, where all of them are listed, and the notes."""
    from dcdctl.core import data

    for line in data.left_out_lines(_by_kind(skipped)):
        note(line)
    # Only damaged files by name: of the others, the kind says it all.
    damaged = [file for file in skipped if file.get("kind") == data.DAMAGED.kind]
    for file in damaged[:NUM_SKIPPED_SHOWN]:
        note(f"  {file['path']!r}: {file['reason']}")
    if skipped:
        which = "each is" if len(skipped) == len(change.skipped) else f"{counted(len(change.skipped), 'files')} in all,"
        note(f"left out: {which} listed in {change.index.folder / str(change.index.document.skipped.file)}")
    for text in change.notes:
        note(f"note: {printable(text)}")


def _by_kind(skipped: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    from dcdctl.core import data

    # Files that an earlier version left out have no kind.
    return data.count_kinds(file.get("kind", "unreadable") for file in skipped)


def show_upload(uploaded: Upload) -> None:
    """Show what a store has now."""
    changes = _counts(sent=uploaded.sent, deleted=uploaded.deleted)
    show(f"{counted(uploaded.images, 'images')}{changes} -> {uploaded.location}")


def _counts(**counts: int) -> str:
    return "".join(f", {count:,} {action}" for action, count in counts.items() if count)


def show_copies(groups: Sequence[SameImages], *, as_json: bool, as_csv: bool) -> None:
    """Show groups of images that are the same: a table, a JSON document or CSV with a row per image."""
    if as_json:
        return show_json({"groups": [group.document() for group in groups]})
    if as_csv:
        return show_csv([{"group": number, **row} for number, group in enumerate(groups, 1) for row in group.rows()])
    for group in groups:
        how = "files of the same bytes" if group.same_bytes else "images that look alike"
        show(f"{len(group.images)} {how}")
        # Whole paths: two folders may have images of one name.
        for row in group.rows():
            num_bytes = "" if row["bytes"] is None else f"{row['bytes']:,}"
            show(f"{num_bytes:>14}  {printable(row['path'] or row['image'])}")
    num_more = sum(len(group.images) - 1 for group in groups)
    note(f"{counted(len(groups), 'groups')}, {counted(num_more, 'images')} beside the first of each; none is deleted")
