"""The tables of rooms and files in docs/architecture.md, made from the docstrings; run this file to write them."""

from __future__ import annotations

import ast
from pathlib import Path

from page_table import PageTable
from paths import DOCS, ROOT
from room_rules import GROUND, MAY_IMPORT, WHOLE

CORE = ROOT / "dcdctl" / "core"
PLACE = PageTable(
    DOCS / "architecture.md", "<!-- rooms: written by tests/support/room_table.py -->\n", "<!-- /rooms -->"
)


def contract(path: Path) -> str:
    """The first sentence of a module's docstring."""
    code = path.read_text(encoding="utf-8")
    # The docstring alone takes a tenth of the time of the file.
    own = code[: code.index('"""', 3) + 3] if code.startswith('"""') else code
    text = " ".join((ast.get_docstring(ast.parse(own)) or "").split("\n\n")[0].split())
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


def tables() -> str:
    """The table of rooms, then a table of files per room."""
    lines = ["| # | room | contract | may import |", "|---|---|---|---|"]
    lines.append(f"| 0 | ground: {', '.join(GROUND)} | what every room may use | earlier ground files |")
    for number, (room, earlier) in enumerate(MAY_IMPORT.items(), start=1):
        lines.append(
            f"| {number} | `{room}/` | {contract(CORE / room / '__init__.py')} | {', '.join(['ground', *earlier])} |"
        )
    lines += [f"| | `{name}.py` | {contract(CORE / f'{name}.py')} | all rooms |" for name in WHOLE]
    lines += ["", "Which file holds what:", "", "| file | contract |", "|---|---|"]
    for folder in (*(f"{name}.py" for name in GROUND), *MAY_IMPORT):
        paths = [CORE / folder] if folder.endswith(".py") else sorted((CORE / folder).rglob("*.py"))
        for path in paths:
            if path != CORE / folder / "__init__.py":
                lines.append(f"| `{path.relative_to(CORE)}` | {contract(path)} |")
    return "\n" + "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    PLACE.write(tables())
