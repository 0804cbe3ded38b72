"""Where the checkout and the fixtures are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS, FIXTURES, SUPPORT = ROOT / "docs", ROOT / "tests" / "fixtures", ROOT / "tests" / "support"
