"""URLs of stores: which program, where, and the name of the table or collection.

    postgresql://user@host:5432/database?table=photos
    lancedb:FOLDER?table=photos, lancedb+s3://bucket/folder?table=photos
    qdrant://host:6333/photos, qdrants://host:6333/photos (TLS)

Passwords and keys come from the environment, or for PostgreSQL also from the URL; they are never shown.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from dcdctl.core import files
from dcdctl.core.errors import InputError, require_extra
from dcdctl.core.search import FolderIndex, ImageIndex
from dcdctl.core.stores.protocol import Store
from dcdctl.core.stores.store_index import StoreIndex

FORMS = "write postgresql://user@host/database?table=NAME, lancedb:FOLDER?table=NAME or qdrant://host/NAME"
QDRANT_PORT = 6333
_PLACES = ("host", "port", "table")
"""The parameters of PostgreSQL that are shown: they say where, and are no secrets."""
_SCHEME = re.compile(r"([a-z]+)(?:\+([a-z0-9]+))?:(.*)", re.DOTALL)


def is_store(place: str) -> bool:
    """Whether a place is the URL of a store, not the folder of an index.

    >>> is_store("postgresql://localhost/photos?table=a"), is_store("indexes/photos"), is_store("https://host/corpus")
    (True, False, False)
    """
    match = _SCHEME.fullmatch(place)
    return match is not None and match[1] in _OPENERS


def open_store(url: str) -> Store:
    """The store at a URL; nothing is read yet. InputError for another form of URL, MissingError without the packages of
    its extra."""
    match = _SCHEME.fullmatch(url)
    if match is None or match[1] not in _OPENERS:
        raise InputError(f"{files.shown(url)!r} is not the URL of a store", hint=FORMS)
    return _OPENERS[match[1]](url)


def open_index(place: str | Path, model: Path | None = None) -> ImageIndex:
    """The index in a folder or in a store; `model` is the folder of the model, if it is not where the store says.

    The errors of `FolderIndex.open`, `open_store` and `StoreIndex.open`.
    """
    if not is_store(str(place)):
        if files.url_of(place) is not None:
            raise InputError(f"{files.shown(place)!r} is not the URL of a store", hint=FORMS)
        if model is not None:
            raise InputError(
                f"the index {place} has its model in it", hint="leave --model out: it is for a store on another machine"
            )
        return FolderIndex.open(Path(place).expanduser())
    return StoreIndex.open(open_store(str(place)), model)


def location_of(place: str | Path) -> str:
    """A place as it is shown: the URL of a store without a password, or a folder."""
    return open_store(str(place)).location if is_store(str(place)) else str(place)


def _postgres(url: str) -> Store:
    require_extra("postgres", "psycopg", needed_by="a store in PostgreSQL")
    from dcdctl.core.stores.postgres import PostgresStore, TableName

    parts = urlsplit(url)
    asked = parse_qsl(parts.query, keep_blank_values=True)
    is_complete = bool(parts.path.strip("/"))
    table = _only(url, parts, "table", is_complete=is_complete, example="postgresql://user@host/database?table=photos")
    schema, _, name = table.rpartition(".")
    others = urlencode([(key, value) for key, value in asked if key != "table"])
    # postgresql:///database, whose server is found by libpq, loses its slashes in urlunsplit.
    conninfo = f"postgresql://{parts.netloc}{parts.path}" + (f"?{others}" if others else "")
    place = urlencode([(key, value) for key, value in asked if key in _PLACES], safe="/")
    return PostgresStore(conninfo, TableName(name, schema or None), f"{_shown(url)}?{place}")


def _shown(url: str) -> str:
    """A URL without password and parameters, which may be credentials.

    >>> _shown("postgresql://me:secret@host/photos?password=x")
    'postgresql://me@host/photos'
    """
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    user = f"{user.partition(':')[0]}@" if user else ""
    slashes = "//" if url.partition(":")[2].startswith("//") else ""
    return f"{parts.scheme}:{slashes}{user}{host}{parts.path}"


def _lance(url: str) -> Store:
    require_extra("lancedb", "lancedb", needed_by="a store in LanceDB")
    from dcdctl.core.stores.lancedb import LanceStore

    parts = urlsplit(url)
    protocol = parts.scheme.partition("+")[2]
    folder = (
        f"{protocol}://{parts.netloc}{parts.path}"
        if protocol
        else str(Path(f"{parts.netloc}{parts.path}").expanduser())
    )
    name = _only(
        url,
        parts,
        "table",
        is_complete=bool(parts.netloc if protocol else parts.path),
        example="lancedb:FOLDER?table=photos",
    )
    return LanceStore(folder, name, f"{_shown(url)}?table={name}")


def _qdrant(url: str) -> Store:
    require_extra("qdrant", "qdrant_client", needed_by="a store in Qdrant")
    from dcdctl.core.stores import qdrant

    parts = urlsplit(url)
    name, protocol = parts.path.strip("/"), "https" if parts.scheme == "qdrants" else "http"
    if not parts.netloc or not name or "/" in name:
        raise InputError(f"{_shown(url)} names no collection", hint="such as qdrant://host:6333/photos")
    server = f"{protocol}://{parts.hostname}:{parts.port or QDRANT_PORT}"
    return qdrant.QdrantStore(qdrant.connect(server, os.environ.get("QDRANT_API_KEY")), name, _shown(url))


def _only(url: str, parts: SplitResult, parameter: str, *, is_complete: bool, example: str) -> str:
    """The value of the only parameter of this name; InputError with an example if there is none, or if the URL is not
    complete."""
    found = [value for name, value in parse_qsl(parts.query, keep_blank_values=True) if name == parameter and value]
    if is_complete and len(found) == 1:
        return found[0]
    raise InputError(
        f"{_shown(url)} names no {parameter if is_complete else 'place'}, or several", hint=f"such as {example}"
    )


_OPENERS = {"postgresql": _postgres, "postgres": _postgres, "lancedb": _lance, "qdrant": _qdrant, "qdrants": _qdrant}
