"""URLs of stores: which program, where, and the name of the table.

    postgresql://user@host:5432/database?table=photos
    lancedb:FOLDER?table=photos, lancedb+s3://bucket/folder?table=photos

Passwords and keys come from the environment, or for PostgreSQL also from the URL; they are never shown.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from dcdctl.core.errors import InputError, require_extra
from dcdctl.core.places import shown, url_of
from dcdctl.core.search import FolderIndex, ImageIndex
from dcdctl.core.stores.protocol import Store
from dcdctl.core.stores.store_index import StoreIndex

_SCHEME = re.compile(r"([a-z]+)(?:\+([a-z0-9]+))?:(.*)", re.DOTALL)

_FORMS = {
    "postgres": "postgresql://user@host/database?table=NAME",
    "lancedb": "lancedb:FOLDER?table=NAME",
}
"""URLs as messages show them, by the file in this folder, which has the name of the extra. Its function `open_url`
makes the store of a `StoreUrl`."""
_PACKAGES = {"postgres": "psycopg", "lancedb": "lancedb"}
"""The first package of each extra, as it is imported."""
_SCHEMES = {"postgresql": "postgres", "postgres": "postgres", "lancedb": "lancedb"}


class StoreUrl:
    """The URL of a store, taken apart; InputError if that is not possible."""

    def __init__(self, url: str) -> None:
        try:
            url.encode()  # Python reads bytes of the command line that are not UTF-8 as characters that UTF-8 lacks
            self.parts = urlsplit(url)
        except ValueError as error:
            # Python's message may quote a password.
            raise InputError(
                f"the {url.partition(':')[0]} URL cannot be read: its host is malformed, or it is not UTF-8",
                hint="an IPv6 address stands in brackets: [::1]",
            ) from error
        # A plus sign is one in libpq too; only forms of the web write a blank so.
        self.parameters = parse_qsl(self.parts.query.replace("+", "%2B"), keep_blank_values=True)
        user, _, host = self.parts.netloc.rpartition("@")
        user = f"{user.partition(':')[0]}@" if user else ""
        slashes = "//" if url.partition(":")[2].startswith("//") else ""
        self.shown = f"{self.parts.scheme}:{slashes}{user}{host}{self.parts.path}"
        """Without password and parameters, which may be credentials."""
        if "@" in self.parts.path + self.parts.query + self.parts.fragment and not self.parts.scheme.startswith(
            "lancedb"
        ):
            # Not shown: what seems to be the host is the beginning of a password.
            raise InputError(
                f"the {self.parts.scheme} URL has an @ behind its host",
                hint="write / ? # and @ in a password or a name as %2F, %3F, %23 and %40",
            )

    def table(self, *, is_complete: bool) -> str:
        """The only parameter of this name; InputError with an example if there is none, or if the URL is not
        complete."""
        values = [value for name, value in self.parameters if name == "table" and value]
        if is_complete and len(values) == 1:
            return values[0]
        missing = "table" if is_complete else "place"
        form = _FORMS[_SCHEMES[self.parts.scheme.partition("+")[0]]]
        raise InputError(
            f"{self.shown} names no {missing}, or several", hint=f"such as {form.replace('NAME', 'photos')}"
        )


def _module_of(url: str) -> str | None:
    match = _SCHEME.fullmatch(url)
    return None if match is None else _SCHEMES.get(match[1])


def is_store(place: str) -> bool:
    """Whether a place is the URL of a store, not the folder of an index.

    >>> is_store("postgresql://localhost/photos?table=a"), is_store("indexes/photos"), is_store("https://host/corpus")
    (True, False, False)
    """
    return _module_of(place) is not None


def _no_store(place: str | Path) -> InputError:
    *forms, last = _FORMS.values()
    return InputError(f"{shown(place)!r} is not the URL of a store", hint=f"write {', '.join(forms)} or {last}")


def open_store(url: str) -> Store:
    """The store at a URL; nothing is read yet. InputError for another form of URL, MissingError without the packages of
    its extra."""
    if (name := _module_of(url)) is None:
        raise _no_store(url)
    parsed = StoreUrl(url)
    require_extra(name, _PACKAGES[name], needed_by=parsed.shown)
    # Imported only when a URL names it, because its packages are optional.
    module = importlib.import_module(f"dcdctl.core.stores.{name}")
    store: Store = module.open_url(parsed)
    return store


def open_index(place: str | Path, model: Path | None = None) -> ImageIndex:
    """The index in a folder or in a store; `model` is the folder of the model, if it is not where the store says.

    The errors of `FolderIndex.open`, `open_store` and `StoreIndex.open`.
    """
    if is_store(str(place)):
        return StoreIndex.open(open_store(str(place)), model)
    if url_of(place) is not None:
        raise _no_store(place)
    if model is not None:
        raise InputError(
            f"the index {place} has its model in it", hint="leave --model out: it is for a store on another machine"
        )
    return FolderIndex.open(Path(place).expanduser())
