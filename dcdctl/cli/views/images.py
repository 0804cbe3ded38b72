"""Small pictures between the lines of a terminal that can show them, by kitty's graphics protocol or that of iTerm2.

https://sw.kovidgoyal.net/kitty/graphics-protocol and https://iterm2.com/documentation-images.html
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Mapping
from typing import Any

NUM_LINES = 6
"""Height of a picture in the terminal, in lines of text."""
SIDE_PX = 192
CHUNK = 4096
"""Characters that kitty takes at a time."""
KITTY, ITERM = "kitty", "iterm2"
MULTIPLEXERS = ("TMUX", "STY", "ZELLIJ")
"""Set within tmux, screen and Zellij, which swallow pictures or lose their place."""


def protocol(wanted: str, environment: Mapping[str, str]) -> str | None:
    """The protocol to use: what is wanted; for "auto" what the terminal says it can; None for none, and where stdout is no terminal."""
    if wanted == "none" or not sys.stdout.isatty():
        return None
    return _spoken(environment) if wanted == "auto" else wanted


def _spoken(environment: Mapping[str, str]) -> str | None:
    """What a terminal can, by what it is called.

    >>> _spoken({"TERM": "xterm-kitty"}), _spoken({"TERM_PROGRAM": "WezTerm"}), _spoken({"TERM": "xterm-256color"})
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


def drawn(picture: Any, spoken: str) -> str:
    """What draws a PIL picture, small, where the cursor is; a line break ends it."""
    small = picture.convert("RGB")
    small.thumbnail((2 * SIDE_PX, SIDE_PX))
    stream = io.BytesIO()
    small.save(stream, "PNG" if spoken == KITTY else "JPEG")
    data = base64.b64encode(stream.getvalue()).decode()
    if spoken == KITTY:
        return _kitty(data)
    return f"\x1b]1337;File=inline=1;size={len(stream.getvalue())};height={NUM_LINES};preserveAspectRatio=1:{data}\x07\n"


def _kitty(data: str) -> str:
    """A PNG in chunks, of which all but the last say that there are more; the terminal answers nothing."""
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        what = f"a=T,f=100,r={NUM_LINES},q=2," if number == 0 else ""
        parts.append(f"\x1b_G{what}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(parts) + "\n"
