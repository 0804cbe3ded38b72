"""An answer as a page: the pictures that were found, best first, in one file."""

from __future__ import annotations

from html import escape
from pathlib import Path

from dcdctl.core import pages
from dcdctl.core.errors import InputError
from dcdctl.core.index import Index
from dcdctl.core.progress import Track, silent
from dcdctl.core.search_answers import Answer, Hit, picture_of
from dcdctl.core.search_query import as_text, read_picture

THUMBNAIL_PX = 240
_STYLE = """.gone { display: grid; place-content: center; height: 9rem; border: 1px dashed var(--line); color: var(--quiet) }
h1 { font-weight: 600 } .asked { max-width: 15rem }
"""


def write_page(path: Path, index: Index, question: str | Path, answer: Answer, track: Track = silent) -> None:
    """Write one HTML file of what an index answers to a text, or to the picture in a file; pictures are small, and in it.

    InputError where the file cannot be written.
    """
    asked = ""
    if isinstance(question, Path):
        asked = f'<div class="asked">{pages.picture(read_picture(question), "the picture that was asked for", THUMBNAIL_PX)}</div>'
    found = []
    with track("read pictures", total=len(answer.hits), unit="images") as advance:
        for place, hit in enumerate(answer.hits, start=1):
            found.append(_card(index, place, hit))
            advance(1)
    counts = f"{len(answer.hits):,} of {index.num_images:,} images, model {index.fingerprint[:8]}"
    title = f"Like {question.name}" if isinstance(question, Path) else question
    notes = [pages.paragraph(note) for note in answer.notes]
    try:
        pages.write(path, as_text(title), asked, pages.paragraph(counts), *notes, pages.cards(found), style=_STYLE)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", hint="name another file") from error


def _card(index: Index, place: int, hit: Hit) -> str:
    picture = picture_of(index, hit.row)
    scores = f"cosine {hit.score:.4f}" if hit.reranked is None else f"logit {hit.reranked:.3f} \N{MIDDLE DOT} cosine {hit.score:.4f}"
    below = f'<b>{place}</b> <span dir="auto">{escape(as_text(hit.name))}</span><br><small>{scores}</small>'
    if picture is None:
        return pages.captioned('<div class="gone">the picture is gone</div>', below)
    return pages.card(picture, as_text(hit.name), below, THUMBNAIL_PX)
