"""The table of docs/recipes.md, made from the heads of the recipes; run this file to write it."""

from __future__ import annotations

from page_table import PageTable
from paths import DOCS

from dcdctl.core.training import RecipeEntry, list_recipes

PLACE = PageTable(
    DOCS / "recipes.md", "<!-- recipes: written by tests/support/recipe_table.py -->\n", "<!-- /recipes -->"
)


def table() -> str:
    """One row for each recipe that comes with the package."""
    rows = ["| recipe | what for | needs | minutes | expected |", "|---|---|---|---|---|", *map(_row, list_recipes())]
    return "\n" + "\n".join(rows) + "\n\n"


def _row(entry: RecipeEntry) -> str:
    return f"| `{entry.name}` | {entry.description} | {entry.needs} | {entry.minutes} | {entry.expected} |"


if __name__ == "__main__":
    PLACE.write(table())
