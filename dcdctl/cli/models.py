"""`dcdctl models`: the model families that load, and the models that have a name."""

from __future__ import annotations

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import show, show_entries, show_json, show_table


def list_models(json: Json = False) -> None:
    """List model families and named models. For each family: its kind and the extra that it needs."""
    from dcdctl.core import models
    from dcdctl.core.config import to_table

    families, teachers = models.list_families(), models.list_teachers()
    if json:
        listed = []
        for name, teacher in teachers.items():
            entry = {
                "name": name,
                "summary": teacher.summary,
                "weights": teacher.weights,
                "source": teacher.source,
                "license": teacher.license,
                "reported": [str(row) for row in models.published_rows(name)],
            }
            listed.append(entry)
        return show_json({"families": [to_table(it) for it in families], "teachers": listed})
    rows = []
    for family in families:
        state = f"loads, {family.hint}".removesuffix(", ") if family.loads else f"not installed: {family.hint}"
        rows.append([family.name, family.kind, family.needs or "-", state])
    show_table("model families: folders, runs and Hub ids", ["family", "kind", "needs", "state"], rows)
    show("")
    entries = []
    for name, teacher in teachers.items():
        facts = {
            "": teacher.summary,
            "weights": f"{teacher.weights}, {teacher.source}".removeprefix(", "),
            "license": teacher.license,
            "reported R@1/5/10": "; ".join(map(str, models.published_rows(name))),
        }
        entries.append((name, facts))
    show_entries("named models: --teacher NAME, or wherever a model is named", entries)
