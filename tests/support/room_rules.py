"""The rooms of dcdctl/core in order, and what each may import."""

from __future__ import annotations

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "data": (),
    "models": ("data",),
    "scoring": ("data", "models"),
    "teacher": ("data", "models", "scoring"),
    "evaluation": ("data", "models", "scoring", "teacher"),
    "training": ("data", "models", "scoring", "teacher", "evaluation"),
    "bench": ("data", "models"),
    "search": ("data", "models", "scoring"),
    "stores": ("search",),
    "serve": ("data", "search", "stores"),
    "report": ("data", "teacher", "evaluation", "training", "bench", "search"),
    "export": ("data", "models", "scoring", "evaluation", "training", "bench", "report"),
    "study": ("data", "models", "scoring", "teacher", "evaluation", "training", "bench", "report"),
}
"""The rooms in order, and the earlier rooms that each one reads. Ground files are free to all."""
WHOLE = ("copies", "demo", "verify")
"""Files beside the rooms that use all of them."""
GROUND = (
    "errors",
    "progress",
    "places",
    "files",
    "locks",
    "artifacts",
    "config",
    "machine",
    "devices",
    "memory",
    "distributed",
    "templates",
)
"""The ground files in order; each imports only those before it."""
