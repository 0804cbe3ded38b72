"""Places as users name them: local paths and URLs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from dcdctl.core.errors import InputError

# pathlib writes s3://bucket/x as s3:/bucket/x. A scheme has two letters or more: C:/ is a drive of Windows.
_URL = re.compile(r"((?:[A-Za-z]+::)*[A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
# A later link of a chain, of which pathlib makes the same; file:///PATH has no host, and file:/PATH is the same.
_LINK = re.compile(r"::(?!file:)([A-Za-z][A-Za-z0-9+.-]+):/+")
# Between the links of a chain, but not inside an IPv6 address.
_CHAINED = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]+:[:/])")


def url_of(place: str | Path) -> str | None:
    """The URL that a path or a text stands for; None for a local path, also as file:///PATH.

    >>> url_of(Path("s3://bucket/photos")), url_of("photos/a.tar"), url_of("file:///photos")
    ('s3://bucket/photos', None, None)
    """
    match = _URL.fullmatch(str(place))
    if match is None or match[1].lower() == "file":
        return None
    return _LINK.sub(r"::\1://", f"{match[1].lower()}://{match[2]}")


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
    try:
        links = [urlsplit(link) for link in links_of(url)]
    except ValueError:  # such as https://[::1/a.tar
        return f"{url.partition('/')[0]}//..."
    # `@` is part of hf://datasets/me/birds@main, whose host is "datasets".
    return "::".join(urlunsplit((link.scheme, link.netloc.rpartition("@")[2], link.path, "", "")) for link in links)


def links_of(url: str) -> list[str]:
    """The links of a chained URL of fsspec.

    >>> links_of("zip://a.tar::simplecache::s3://bucket/a.zip"), links_of("https://[fe80::1]/a.tar")
    (['zip://a.tar', 'simplecache', 's3://bucket/a.zip'], ['https://[fe80::1]/a.tar'])
    """
    return _CHAINED.split(url)


def in_utf8(name: str) -> str:
    """A name of the file system as any document can hold it; bytes that are not UTF-8 become question marks.

    >>> in_utf8("caf\\udce9.png"), in_utf8("café.png")
    ('caf?.png', 'café.png')
    """
    return name.encode("utf-8", "replace").decode()


def check_utf8(place: Path) -> None:
    """InputError for a path that is not UTF-8, which no document can name."""
    if in_utf8(str(place)) != str(place):
        raise InputError(f"the path {in_utf8(str(place))} is not UTF-8", hint="rename the file or folder")


def refuse_url(place: Path, why: str, hint: str) -> None:
    """InputError for a URL where only a path of this machine will do. Without it the path `s3:` would be made here."""
    if match := _URL.fullmatch(str(place)):
        # A Path has taken slashes out of s3:///photos.
        url = shown(place) if url_of(place) else f"{match[1]}:///{match[2]}"
        raise InputError(f"{url} is a URL, {why}", hint=hint)
