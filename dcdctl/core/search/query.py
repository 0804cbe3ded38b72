"""What an index is asked: texts and pictures, looked at before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dcdctl.core import data
from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.search.index import Index
from dcdctl.core.search.storage import INDEX_FILE

MAX_CHARACTERS = 10_000
"""Of a text. A model reads some dozen words; more than this is a file by mistake."""
MAX_FILE_BYTES = 512 * 2**20
"""Of a picture's file."""


def check_query(question: str | Path) -> None:
    """InputError for a question without an answer: a text, or the file of a picture."""
    if isinstance(question, Path):
        read_image(question)
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


def read_image(path: Path) -> Image.Image:
    """The picture of a file, upright and RGB; InputError where there is none."""
    try:
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
            raise InputError(f"{path} {found}, the file of a picture is wanted")
        if (num_bytes := path.stat().st_size) > MAX_FILE_BYTES:
            raise InputError(f"{path} has {num_bytes:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        return data.decode_image(path.read_bytes())
    except data.ImageError as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def looks_like_a_path(text: str) -> str:
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


@dataclass(frozen=True)
class Hit:
    """A picture that was found."""

    row: int
    image_id: str
    name: str
    score: float
    """Cosine of the query's vector and the picture's."""
    reranked: float | None = None
    """The second model's logit; None where it has not scored this picture."""


@dataclass(frozen=True)
class Answer:
    """What a query finds, best first, and how long that took; of several texts asked at once each has its share of the time."""

    hits: tuple[Hit, ...]
    encode_seconds: float
    find_seconds: float
    rerank_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """What the user should know about it: words that were not read, pictures that could not be scored."""


def image_of(index: Index, row: int) -> Image.Image | None:
    """The picture of a row, upright and RGB; None where it is gone, or no picture any more."""
    try:
        return data.decode_image(index.picture(row))
    except (MissingError, StaleError, data.ImageError):
        return None


def image_exists(index: Index, row: int) -> bool:
    """Whether the picture of a row is still where it was when it was indexed."""
    try:
        return bool(index.picture(row))
    except (MissingError, StaleError):
        return False


def answer_document(question: str | Path, answer: Answer, index: Index) -> dict[str, Any]:
    """An answer as plain values, for JSON."""
    kind = "image" if isinstance(question, Path) else "text"
    return {
        "query": {kind: as_text(str(question))},
        "index": {"folder": as_text(str(index.folder)), "images": index.num_images, "model": index.fingerprint},
        "hits": [_to_table(place, hit, index) for place, hit in enumerate(answer.hits, start=1)],
        "seconds": {"encode": answer.encode_seconds, "find": answer.find_seconds, "rerank": answer.rerank_seconds},
        "notes": list(answer.notes),
    }


def _to_table(place: int, hit: Hit, index: Index) -> dict[str, Any]:
    table = {"place": place, "row": hit.row, "image_id": hit.image_id, "name": hit.name, "score": hit.score, "reranked": hit.reranked}
    return {**table, "is_there": image_exists(index, hit.row)}
