"""Thumbnails between the lines of a terminal, by the graphics protocol of kitty or iTerm2.

https://sw.kovidgoyal.net/kitty/graphics-protocol and https://iterm2.com/documentation-images.html
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_LINES = 6
"""Height of an image in the terminal, in lines of text."""
SIDE_PX = 192
CHUNK = 4096
"""Maximum number of characters in one escape sequence of kitty's protocol."""
KITTY, ITERM = "kitty", "iterm2"
MULTIPLEXERS = ("TMUX", "STY", "ZELLIJ")
"""Set within tmux, screen and Zellij, which drop images or misplace them."""


def protocol(setting: str, environment: Mapping[str, str]) -> str | None:
    """The graphics protocol of a setting; "auto" detects it from the environment. None for "none", or if stdout is not
    a terminal."""
    if setting == "none" or not sys.stdout.isatty():
        return None
    return _detect(environment) if setting == "auto" else setting


def _detect(environment: Mapping[str, str]) -> str | None:
    """The graphics protocol that a terminal supports, by its name; None if it is not known to support one.

    >>> _detect({"TERM": "xterm-kitty"}), _detect({"TERM_PROGRAM": "WezTerm"}), _detect({"TERM": "xterm-256color"})
    ('kitty', 'iterm2', None)
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if any(name in environment for name in MULTIPLEXERS) or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return KITTY
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return ITERM
    return None


def escape_sequence(image: Image, protocol: str) -> str:
    """The escape sequence that draws an image, scaled down, at the cursor; it ends with a line break."""
    small = image.convert("RGB")
    small.thumbnail((2 * SIDE_PX, SIDE_PX))
    stream = io.BytesIO()
    # kitty's protocol has no JPEG.
    small.save(stream, "PNG" if protocol == KITTY else "JPEG")
    data = base64.b64encode(stream.getvalue()).decode()
    if protocol == KITTY:
        return _kitty(data)
    return (
        f"\x1b]1337;File=inline=1;size={len(stream.getvalue())};height={NUM_LINES};preserveAspectRatio=1:{data}\x07\n"
    )


def _kitty(data: str) -> str:
    """A PNG in chunks; every chunk but the last says that more follow, and the terminal sends no reply."""
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        keys = f"a=T,f=100,r={NUM_LINES},q=2," if number == 0 else ""
        parts.append(f"\x1b_G{keys}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(parts) + "\n"
