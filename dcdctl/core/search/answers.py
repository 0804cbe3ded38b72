"""Queries, which are checked before a model is loaded, and answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from dcdctl.core import data
from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.search.background import Background
from dcdctl.core.search.columns.where import Value
from dcdctl.core.search.combined import CombinedQuery
from dcdctl.core.search.protocol import Hit, ImageIndex

MAX_CHARACTERS = 10_000
"""Maximum length of a text. A model reads a few dozen words; a longer text is a file by mistake."""
MAX_CAPTION = 200
MAX_SHOWN = 40
"""Characters of a value of a column that are shown beside a hit."""


_OTHER_IMAGE = "search by another image file"


@dataclass(frozen=True)
class SearchAnswer:
    """The hits of a query, best first, and the time they took. Texts that are answered together share their time
    equally."""

    hits: tuple[Hit, ...]
    encode_seconds: float
    find_seconds: float
    rerank_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """What the user should know: a weak match, words that were not read, images that could not be scored."""
    background: Background | None = None
    """The scores of the index that mean nothing; None for the answer to an image, or of an index without images."""
    total: int | None = None
    """Of a list without a query: how many images meet the condition."""


@dataclass(frozen=True)
class Browse:
    """Images under a condition and in an order, as texts, in place of a query."""

    where: str | None = None
    order: str | None = None


Question = str | Path | CombinedQuery | Browse
"""What an answer is to: a text, the image in a file, several of them, or a list without a query."""


def check_query(question: str | Path | CombinedQuery) -> None:
    """InputError for a text or an image file that cannot be searched for."""
    if isinstance(question, CombinedQuery):
        for text in question.texts:
            checked_text(text)
        if isinstance(question.image, Path):
            read_image(question.image)
    elif isinstance(question, Path):
        read_image(question)
    else:
        checked_text(question)


def checked_text(text: str) -> str:
    """A text without surrounding white space; InputError if it is empty, too long or not Unicode."""
    words = text.strip()
    if not words:
        raise InputError("the query is empty, it must be a text", hint='for example "a dog in the snow"')
    if len(words) > MAX_CHARACTERS:
        raise InputError(
            f"the query has {len(words):,} characters, at most {MAX_CHARACTERS:,} are read", hint="a sentence is enough"
        )
    try:
        # Command-line bytes that are not UTF-8 reach Python as lone surrogates, which do not encode.
        words.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "the query holds bytes that are not UTF-8 text", hint="use a UTF-8 terminal or file"
        ) from error
    return words


def read_image(path: Path) -> Image.Image:
    """The image in a file, upright and RGB; InputError if there is none."""
    try:
        if not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
            raise InputError(f"{path} {problem}, it must be an image file")
        return data.decode_image(path.read_bytes())
    except data.ImageError as error:
        raise InputError(f"{path} cannot be used: {error}", hint=_OTHER_IMAGE) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", hint=_OTHER_IMAGE) from error


def query_image(question: Path | Image.Image) -> Image.Image:
    """The image in a file or in memory, upright and RGB; InputError if it cannot be used."""
    if isinstance(question, Path):
        return read_image(question)
    try:
        return data.upright_rgb(question)
    except data.ImageError as error:
        raise InputError(f"the query image cannot be used: {error}", hint=_OTHER_IMAGE) from error


def as_text(name: str) -> str:
    """A name as Unicode text: bytes that are not text, which file names may contain, are replaced.

    >>> as_text("caf\\udce9.jpg") == "caf\\ufffd.jpg"
    True
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def image_of(index: ImageIndex, row: int) -> Image.Image | None:
    """The image of a row, upright and RGB; None if its file is gone or is no longer an image."""
    try:
        return data.decode_image(index.image_bytes(row))
    except (MissingError, StaleError, data.ImageError):
        return None


def caption_of(index: ImageIndex, row: int) -> str:
    """The first caption of a row of a corpus, of which at most `MAX_CAPTION` characters; empty if there is none.

    The captions of a corpus are read with the first: ask where images are shown, not in a search.
    """
    return next(iter(index.captions(row)), "")[:MAX_CAPTION]


def columns_text(hit: Hit) -> str:
    """The columns of a hit that have a value, on one line: "year 2020, owner anna"; long texts are shortened."""
    return ", ".join(f"{name} {shown(value)}" for name, value in hit.columns.items() if value is not None)


def value_for_json(value: Value | None) -> Any:
    """A value of a column, if there is one, for JSON: dates and times as texts of ISO 8601."""
    return value.isoformat() if isinstance(value, date) else value


def shown(value: Value) -> str:
    """A value of a column as text of at most `MAX_SHOWN` characters.

    >>> shown(2.50), shown(True), shown(datetime(2024, 5, 1, 12, 30))
    ('2.5', 'yes', '2024-05-01 12:30')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.isoformat(" ", "minutes" if value.second == value.microsecond == 0 else "auto")
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def title_of(question: Question) -> str:
    """A query in words, as the title of a page.

    >>> title_of("a dog"), title_of(Path("photos/dog.jpg")), title_of(Browse(where="year = 2020", order="taken"))
    ('a dog', 'Images like dog.jpg', 'Images where year = 2020, by taken')
    """
    if isinstance(question, CombinedQuery):
        image = [f"like {question.image.name}"] if isinstance(question.image, Path) else []
        also, without = (f"also {text}" for text in question.also), (f"not {text}" for text in question.without)
        return ", ".join([*([question.text] if question.text else []), *image, *also, *without])
    if isinstance(question, Browse):
        where = "" if question.where is None else f" where {question.where}"
        return f"Images{where}" if question.order is None else f"Images{where}, by {question.order}"
    return f"Images like {question.name}" if isinstance(question, Path) else question


def query_document(question: Question) -> dict[str, Any]:
    """A query as plain values, for JSON."""
    if isinstance(question, CombinedQuery):
        parts = {"text": question.text, "image": None if question.image is None else str(question.image)}
        document: dict[str, Any] = {name: as_text(part) for name, part in parts.items() if part is not None}
        return document | {"also": list(map(as_text, question.also)), "not": list(map(as_text, question.without))}
    if isinstance(question, Browse):
        return {name: as_text(text) for name, text in vars(question).items() if text is not None}
    return {"image" if isinstance(question, Path) else "text": as_text(str(question))}


def answer_document(question: Question, answer: SearchAnswer, index: ImageIndex) -> dict[str, Any]:
    """An answer as plain values, for JSON."""
    hits = []
    for rank, hit in enumerate(answer.hits, start=1):
        columns = {name: value_for_json(value) for name, value in hit.columns.items()}
        path = None if hit.path is None else as_text(str(hit.path))
        hits.append({"place": rank, **vars(hit), "columns": columns, "path": path})
    return {
        "query": query_document(question),
        "index": {"folder": as_text(index.location), "images": index.num_images, "model": index.fingerprint},
        "hits": hits,
        "total": answer.total,
        "seconds": {"encode": answer.encode_seconds, "find": answer.find_seconds, "rerank": answer.rerank_seconds},
        "notes": list(answer.notes),
    }
