"""`dcdctl models`: the model families that load, and the teachers that have a name."""

from __future__ import annotations

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import show, show_entries, show_json, show_table


def list_models(json: Json = False) -> None:
    """List model families and named teachers. For each family: its kind and the extra that it needs."""
    from dcdctl.core import models
    from dcdctl.core.config import to_table

    families, teachers = models.list_families(), models.list_teachers()
    if json:
        facts = ("summary", "weights", "source", "license")
        listed = [
            {
                "name": name,
                **{fact: getattr(it, fact) for fact in facts},
                "reported": [*map(str, models.published_rows(name))],
            }
            for name, it in teachers.items()
        ]
        return show_json({"families": [to_table(it) for it in families], "teachers": listed})
    rows = [
        [
            it.name,
            it.kind,
            it.needs or "-",
            f"loads, {it.hint}".removesuffix(", ") if it.loads else f"not installed: {it.hint}",
        ]
        for it in families
    ]
    show_table("model families: folders, runs and Hub ids", ["family", "kind", "needs", "state"], rows)
    show("")
    entries = [
        (
            name,
            {
                "": it.summary,
                "weights": f"{it.weights}, {it.source}".removeprefix(", "),
                "license": it.license,
                "reported R@1/5/10": "; ".join(map(str, models.published_rows(name))),
            },
        )
        for name, it in teachers.items()
    ]
    show_entries("teachers: --teacher NAME", entries)
