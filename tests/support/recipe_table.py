"""The table of docs/recipes.md, made from the heads of the recipes; run this file to write it."""

from __future__ import annotations

from paths import DOCS

from dcdctl.core.training import RecipeEntry, list_recipes

PAGE = DOCS / "recipes.md"
BEGIN, END = "<!-- recipes: written by tests/support/recipe_table.py -->\n", "<!-- /recipes -->"


def table() -> str:
    """One row for each recipe that comes with the package."""
    rows = ["| recipe | what for | needs | minutes | expected |", "|---|---|---|---|---|", *map(_row, list_recipes())]
    return "\n" + "\n".join(rows) + "\n\n"


def _row(entry: RecipeEntry) -> str:
    return f"| `{entry.name}` | {entry.description} | {entry.needs} | {entry.minutes} | {entry.expected} |"


def parts(text: str) -> tuple[str, str, str]:
    """The page before the table, the table, and the page after it."""
    before, _, rest = text.partition(BEGIN)
    section, _, after = rest.partition(END)
    return before + BEGIN, section, END + after


if __name__ == "__main__":
    before, _, after = parts(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(before + table() + after, encoding="utf-8")
