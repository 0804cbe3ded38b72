"""Places as users name them: paths of this machine and URLs, and how messages show both."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from dcdctl.core.errors import InputError

# pathlib writes s3://bucket/x as s3:/bucket/x. A scheme has two letters or more: C:/ is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def url_of(place: str | Path) -> str | None:
    """The URL that a path or a text stands for; None for a local path, also as file:///PATH.

    >>> url_of(Path("s3://bucket/photos")), url_of("photos/a.tar"), url_of("file:///photos")
    ('s3://bucket/photos', None, None)
    """
    match = _URL.fullmatch(str(place))
    return None if match is None or match[1].lower() == "file" else f"{match[1].lower()}://{match[2]}"


def local_path(place: str | Path) -> Path:
    """The path of a local place."""
    match = _URL.fullmatch(str(place))
    return Path(place) if match is None else Path(f"/{match[2]}")


def shown(place: str | Path) -> str:
    """A place as messages and saved files name it: without user, password and query.

    >>> shown("https://me:secret@host/a.tar?signature=1"), shown("photos/a.tar"), shown(Path("hf://datasets/me/birds"))
    ('https://host/a.tar', 'photos/a.tar', 'hf://datasets/me/birds')
    """
    url = url_of(place)
    if url is None:
        return str(place)
    parts = urlsplit(url)
    # `@` is part of hf://datasets/me/birds@main, whose host is "datasets".
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def refuse_url(place: Path, why: str, hint: str) -> None:
    """InputError for a URL where only a path of this machine will do. Without it the path `s3:` would be made here."""
    if match := _URL.fullmatch(str(place)):
        raise InputError(f"{shown(place) if url_of(place) else f'{match[1]}:///{match[2]}'} is a URL, {why}", hint=hint)
