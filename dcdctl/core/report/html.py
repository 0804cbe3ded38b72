"""HTML pages in one file each: images are embedded, and nothing is loaded from elsewhere.

The templates are in assets/templates.
"""

from __future__ import annotations

import base64
import io
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
