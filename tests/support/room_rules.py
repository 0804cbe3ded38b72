"""The rooms of dcdctl/core in order, and what each may import."""

from __future__ import annotations

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "engines": (),
    "data": ("engines",),
    "models": ("engines", "data"),
    "scoring": ("engines", "data", "models"),
    "teacher": ("engines", "data", "models", "scoring"),
    "evaluation": ("engines", "data", "models", "scoring", "teacher"),
    "training": ("engines", "data", "models", "scoring", "teacher", "evaluation"),
    "bench": ("engines", "data", "models"),
    "search": ("engines", "data", "models", "scoring"),
    "stores": ("search",),
    "serve": ("engines", "data", "search", "stores"),
    "report": ("engines", "data", "teacher", "evaluation", "training", "bench", "search"),
    "export": ("engines", "data", "models", "scoring", "evaluation", "training", "bench", "report"),
    "photos": ("data", "models", "search", "training"),
    "study": ("engines", "data", "models", "scoring", "teacher", "evaluation", "training", "bench", "report"),
    "integrity": ("data", "models", "scoring", "teacher", "evaluation", "training", "bench", "search"),
}
"""The rooms in order, and the earlier rooms that each one reads. The ground is free to all."""
GROUND = (
    "errors",
    "arguments",
    "options",
    "progress",
    "places",
    "files",
    "artifacts",
    "config",
    "toml",
    "machine",
    "devices",
    "memory",
    "distributed",
    "templates",
)
"""The ground in order, files and rooms; each imports only those before it."""
GROUND_ROOMS = ("files", "artifacts")
"""Those of the ground that are rooms: they are imported through their faces too."""
ROOMS = (*GROUND_ROOMS, *MAY_IMPORT)
