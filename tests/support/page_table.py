"""A part of a page of docs/ that a script writes, between two comments."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class PageTable(NamedTuple):
    """Where it is; `begin` and `end` are the comments around it."""

    page: Path
    begin: str
    end: str

    def parts(self) -> tuple[str, str, str]:
        """The page before the table, the table, and the page after it."""
        before, _, rest = self.page.read_text(encoding="utf-8").partition(self.begin)
        section, _, after = rest.partition(self.end)
        return before + self.begin, section, self.end + after

    def write(self, table: str) -> None:
        before, _, after = self.parts()
        self.page.write_text(before + table + after, encoding="utf-8")
