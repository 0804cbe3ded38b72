"""What an index answers, and as a document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dcdctl.core import pictures
from dcdctl.core.errors import MissingError, StaleError
from dcdctl.core.index import Index
from dcdctl.core.search_query import as_text


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


def picture_of(index: Index, row: int) -> Image.Image | None:
    """The picture of a row, upright and RGB; None where it is gone, or no picture any more."""
    try:
        return pictures.decode(index.picture(row))
    except (MissingError, StaleError, pictures.PictureError):
        return None


def is_there(index: Index, row: int) -> bool:
    """Whether the picture of a row is still where it was when it was indexed."""
    try:
        return bool(index.picture(row))
    except (MissingError, StaleError):
        return False


def to_document(question: str | Path, answer: Answer, index: Index) -> dict[str, Any]:
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
    return {**table, "is_there": is_there(index, hit.row)}
