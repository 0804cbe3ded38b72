"""Pages of HTML in one file: no network, light and dark, readable on a phone. All text that is handed in is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from dcdctl.core import files

JPEG_QUALITY = 75
# Where there is a script, the browser fetches nothing, whatever is in the page.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)


def write(path: Path, title: str, *parts: str, style: str = "", script: str = "") -> None:
    """Write a page whole or not at all: the title as its heading, then the parts, which are HTML; with CSS and JavaScript of its own."""
    named = f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    head = f'<meta charset="utf-8">{_POLICY if script else ""}{named}'
    styles = _STYLE + (f"<style>\n{style}</style>" if style else "")
    body = f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + (f"\n<script>\n{script}</script>" if script else "")
    files.write_text(path, f'<!doctype html>\n<html lang="en"><head>{head}{styles}</head>\n<body>{body}</body></html>\n')


def heading(text: str) -> str:
    """The heading of a section.

    >>> heading("a < b")
    '<h2>a &lt; b</h2>'
    """
    return f"<h2>{escape(text)}</h2>"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values."""
    return table((), rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table whose first column names the rows; without a head where there are no names of columns. What follows a line break is small."""
    head = "<tr>" + "".join(f'<th scope="col">{escape(column)}</th>' for column in columns) + "</tr>" if columns else ""
    lines = [f'<tr><th scope="row">{_cell(name)}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in cells)}</tr>' for name, *cells in rows]
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}{head}{"".join(lines)}</table></div>'


def _cell(text: str) -> str:
    """The HTML of a cell.

    >>> _cell("a < b\\nsurely")
    'a &lt; b<br><small>surely</small>'
    """
    first, line_break, rest = text.partition("\n")
    return escape(first) + (f"<br><small>{escape(rest)}</small>" if line_break else "")


def histogram(label: str, bins: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    """Bars to the right, one bin a row, and the counts beside them; at most two kinds of things are counted, each of its own colour."""
    most = max(1, *(count for series in counts.values() for count in series))
    rows = []
    for name, *row in zip(bins, *counts.values(), strict=True):
        bars = "".join(
            f'<div class="bar s{i}" style="width:{100 * count / most:.2f}%" title="{count:,} {escape(kind)}"></div>'
            for i, (kind, count) in enumerate(zip(counts, row, strict=True))
        )
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="bars">{bars}</td>{"".join(f"<td>{count:,}</td>" for count in row)}</tr>'
        )
    kinds = "".join(f'<th scope="col" class="t{i}">{escape(kind)}</th>' for i, kind in enumerate(counts))
    return f'<table class="histogram"><tr><th scope="col">{escape(label)}</th><td></td>{kinds}</tr>{"".join(rows)}</table>'


def paragraph(text: str) -> str:
    """Text as it is."""
    return f"<p>{escape(text)}</p>"


def picture(image: Image.Image, alt: str, side_px: int) -> str:
    """A picture, its longer side at most `side_px`; `alt` is what is read out in its place."""
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img alt="{escape(alt)}" {size} src="data:image/jpeg;base64,{data}">'


def captioned(picture: str, text: str) -> str:
    """A picture with HTML below it."""
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"


def card(image: Image.Image, alt: str, text: str, side_px: int) -> str:
    """A picture as `picture` makes it, with HTML below it."""
    return captioned(picture(image, alt, side_px), text)


def cards(figures: Sequence[str]) -> str:
    """Cards side by side, as many as the screen is wide."""
    return '<div class="cards">' + "\n".join(figures) + "</div>"


def beside(lead: str, *columns: str) -> str:
    """HTML with columns of equal width to its right; one below the other where the screen is narrow."""
    return f'<section class="beside"><div>{lead}</div>{"".join(f"<div>{column}</div>" for column in columns)}</section>'


_STYLE = """<style>
:root { color-scheme: light dark; --text: #222; --page: #fff; --quiet: #666; --line: #ddd; --s0: #2a7; --s1: #c63; --t0: #184; --t1: #a31 }
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --page: #16181b; --quiet: #999; --line: #3a3d42; --s0: #2a7; --s1: #d74; --t0: #5c9; --t1: #f96 }
}
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; color: var(--text); background: var(--page) }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2rem }
.wide { overflow-x: auto } table { border-collapse: collapse }
th, td { text-align: left; vertical-align: top; padding: .2rem 1.2rem .2rem 0 } th { font-weight: 600 }
.wide tr + tr { border-top: 1px solid var(--line) } .wide td { overflow-wrap: anywhere; min-width: 6rem }
.histogram { width: 100%; max-width: 48rem; font-variant-numeric: tabular-nums }
.histogram th, .histogram td { padding-top: 0; padding-bottom: 0; line-height: 1.3 }
.histogram td + td, .histogram td + th { text-align: right; width: 1%; padding-right: .8rem }
.histogram th:first-child { text-align: right; white-space: nowrap; width: 1%; padding-right: .6rem }
.bars { vertical-align: middle } .bar { height: .5rem; margin: 1px 0; border-radius: 0 2px 2px 0 }
.s0 { background: var(--s0) } .s1 { background: var(--s1) } .t0 { color: var(--t0) } .t1 { color: var(--t1) }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13.5rem), 1fr)); gap: 1.5rem 1.2rem }
.beside { display: grid; grid-template-columns: 15rem 1fr 1fr; gap: .3rem 1.5rem; padding: .8rem 0; border-top: 1px solid var(--line) }
@media (max-width: 44rem) { .beside { grid-template-columns: 1fr } }
.beside div { min-width: 0 } .beside p { margin-top: 0 } .beside ol { margin: .3rem 0; padding-left: 1.4rem }
.beside ul { font-size: smaller; color: var(--quiet) }
.strip { display: flex; flex-wrap: wrap; gap: .4rem; margin: .3rem 0 }
figure { margin: 0; break-inside: avoid } img { max-width: 100%; height: auto; border-radius: 4px; display: block }
figcaption { overflow-wrap: anywhere }
figcaption p { margin: .3rem 0 } figcaption ul { margin: .3rem 0; padding-left: 1.1rem } i, small { color: var(--quiet) }
</style>"""
