"""HTML pages in one file each: images are embedded, nothing is loaded from elsewhere, and light and dark modes are
supported.

The templates are in assets/templates.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dcdctl.core import files, templates

# At the size of a page the loss does not show, and a page embeds hundreds of images.
WEBP_QUALITY = 70


def write(path: Path, template: str, **values: object) -> None:
    """Write a page atomically; every value is escaped, unless it is `Markup`."""
    files.write_text(path, templates.render(template, **values))


@dataclass(frozen=True)
class EmbeddedImage:
    """A small image for a page."""

    source: str
    """A data: URI."""
    width: int
    height: int


def embed_image(image: Image.Image, side_px: int) -> EmbeddedImage:
    """An image whose longer side is at most `side_px`."""
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=WEBP_QUALITY)
    # Inside the page, so that it can be sent as one file.
    data = base64.b64encode(stream.getvalue()).decode()
    return EmbeddedImage(f"data:image/webp;base64,{data}", small.width, small.height)


@dataclass(frozen=True)
class Histogram:
    """Counts by bin of at most two series."""

    label: str
    """What the bins are."""
    bins: Sequence[str]
    counts: Mapping[str, Sequence[int]]
    """A count for each bin, by series."""

    @property
    def rows(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Each bin with its count in every series.

        >>> list(Histogram("words", ["1", "2"], {"a": [3, 4], "b": [5, 6]}).rows)
        [('1', (3, 5)), ('2', (4, 6))]
        """
        for number, label in enumerate(self.bins):
            yield label, tuple(series[number] for series in self.counts.values())

    @property
    def highest(self) -> int:
        """The largest count, at least 1."""
        return max(1, *(max(series, default=0) for series in self.counts.values()))
