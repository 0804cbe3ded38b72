"""What an index is asked: texts and pictures, looked at before a model is loaded."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dcdctl.core import pictures
from dcdctl.core.errors import InputError
from dcdctl.core.index_files import INDEX_FILE

MAX_CHARACTERS = 10_000
"""Of a text. A model reads some dozen words; more than this is a file by mistake."""
MAX_FILE_BYTES = 512 * 2**20
"""Of a picture's file."""


def check(question: str | Path) -> None:
    """InputError for a question without an answer: a text, or the file of a picture."""
    if isinstance(question, Path):
        read_picture(question)
    else:
        checked_text(question)


def checked_text(text: str) -> str:
    """A text without the space around it; InputError where nothing is left, or what is left is no text, or a whole file."""
    words = text.strip()
    if not words:
        raise InputError("the query is empty, a text is wanted", hint='for example "a dog in the snow"')
    if len(words) > MAX_CHARACTERS:
        raise InputError(f"the query has {len(words):,} characters, at most {MAX_CHARACTERS:,} are read", hint="a sentence is enough")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise InputError("the query holds bytes that are no UTF-8 text", hint="use a UTF-8 terminal or file") from error
    return words


def read_picture(path: Path) -> Image.Image:
    """The picture of a file, upright and RGB; InputError where there is none."""
    try:
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
            raise InputError(f"{path} {found}, the file of a picture is wanted")
        if (num_bytes := path.stat().st_size) > MAX_FILE_BYTES:
            raise InputError(f"{path} has {num_bytes:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        return pictures.decode(path.read_bytes())
    except pictures.PictureError as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def told_of(text: str) -> str:
    """What to tell of a text that was perhaps meant as something else; empty where there is nothing to tell."""
    try:
        if (Path(text) / INDEX_FILE).is_file():
            return f"{text} is an index, and taken for a text: INDEX comes first"
        if Path(text).suffix and Path(text).is_file():
            return f"{text} is a file, and taken for a text: --image {text} finds what looks like it"
    except OSError:  # too long for a name
        pass
    return ""


def as_text(name: str) -> str:
    """A name as text: bytes in it that are none, as file names may have, are replaced.

    >>> as_text("caf\\udce9.jpg") == "caf\\ufffd.jpg"
    True
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
