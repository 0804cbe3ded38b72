"""The dcdctl.json of a saved model: the settings that no other file holds, and the size and SHA-256 of every other
file.

`dcdctl verify` compares the files of a model by it, without torch and without a request to the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dcdctl.core import artifacts, files
from dcdctl.core.errors import ModelError
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references.folders import SETTINGS_FILE

FORMAT_VERSION = 2
REMAKE = "save it again with this dcdctl: `dcdctl convert`, `distill`, `index` or `export` makes such a folder"
NOT_KEPT = ("format", artifacts.FILES, artifacts.FINGERPRINT)
"""Entries that follow from the files: `seal_again` makes them from what is there."""
NOTES = ("*.md", "LICENSE*", ".*")
"""Files that may be added to a saved model, because no loader reads them."""


def seal(folder: Path, settings: Table) -> None:
    """Write dcdctl.json: the settings, and the size and SHA-256 of every other file."""
    listed = artifacts.list_files(folder, sorted(_file_names(folder)))
    artifacts.write_document(folder / SETTINGS_FILE, {"format": FORMAT_VERSION, **settings, artifacts.FILES: listed})


def seal_again(folder: Path) -> None:
    """Write dcdctl.json again with the settings that it has, after files of the folder were added or changed."""
    seal(folder, {key: value for key, value in read_seal(folder).items() if key not in NOT_KEPT})


def digest_of_files(folder: Path) -> str:
    """A digest of all files that decide what a model computes, without loading it.

    For a folder that `save` wrote it is made of the checksums in dcdctl.json, so that a damaged file is not taken for
    another model.
    """
    if (folder / SETTINGS_FILE).exists():
        return files.digest_of(listed_in(folder))
    return files.digest_of({name: artifacts.sha256_of(folder / name) for name in sorted(_file_names(folder))})


def _file_names(folder: Path) -> set[str]:
    """The files that dcdctl.json has to list: all but itself and NOTES, by their paths relative to the folder."""
    names = set()
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        # By every part of the path, because .cache/huggingface of a download holds files of any name.
        is_note = any(Path(part).match(note) for part in inside.parts for note in NOTES)
        if path.is_file() and not is_note:
            names.add(inside.as_posix())
    return names - {SETTINGS_FILE}


def read_settings(folder: Path) -> Table | None:
    """dcdctl.json; None if there is none. ModelError if a file of the folder is not as it was saved."""
    if not (folder / SETTINGS_FILE).exists():
        return None
    saved = read_seal(folder)
    listed = listed_in(folder)
    artifacts.check_files(folder, listed, error=ModelError, hint=REMAKE)
    for damage in _added(folder, listed):
        raise ModelError(damage, hint=REMAKE)
    return saved


def read_seal(folder: Path) -> Table:
    """The content of dcdctl.json; ModelError if it is damaged."""
    return artifacts.read_document(folder / SETTINGS_FILE, FORMAT_VERSION, error=ModelError, hint=REMAKE)


def saved_fingerprint(folder: Path) -> str | None:
    """The fingerprint that dcdctl.json gives, if it does."""
    return read_seal(folder).get(artifacts.FINGERPRINT)


def listed_in(folder: Path) -> dict[str, artifacts.Document]:
    """The files that dcdctl.json lists."""
    return artifacts.listed_files(folder / SETTINGS_FILE, read_seal(folder), error=ModelError, hint=REMAKE)


def find_damages(folder: Path) -> Iterator[str]:
    """What is wrong with the files of a folder that `save` wrote, and which files were added. ModelError for a damaged
    dcdctl.json."""
    listed = listed_in(folder)
    yield from artifacts.damages(folder, listed)
    yield from _added(folder, listed)


def _added(folder: Path, listed: Table) -> Iterator[str]:
    """Which files were added to a folder that `save` wrote."""
    for name in sorted(_file_names(folder) - set(listed)):
        yield f"{folder / name} was added to a saved model, and a loader might read it"
