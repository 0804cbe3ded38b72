"""The table of docs/models.md, made from the models that tests build and run; run this file to write it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import official
from families import FAMILIES, READ_ONLY
from origins import ORIGINS
from page_table import PageTable
from paths import DOCS, FIXTURES

from dcdctl.core.errors import ModelError
from dcdctl.core.models.networks.towers import TrainedParts
from dcdctl.core.models.references import family_table, folders

PLACE = PageTable(DOCS / "models.md", "<!-- models: written by tests/support/model_table.py -->\n", "<!-- /models -->")
CAPTIONS = [
    "a large red circle is left of a small blue square",
    "the tiny green star sits above the big pink heart",
    "a cross",
]
SOURCES = {
    "dcdctl-co-attention": "a run or a converted METER .ckpt",
    "dcdctl-encoder-dual": "a run over frozen encoders",
    "open_clip": "folder or Hub id of open_clip",
    "dcdctl-late": "a run",
    "MultiVectorEncoder": "folder or Hub id of sentence-transformers or PyLate that reads images",
    "CrossEncoder": "folder or Hub id of sentence-transformers that reads images",
    "SentenceTransformer": "folder or Hub id of sentence-transformers that embeds images and texts",
    "module:function": "a Python function of yours",
}
"""What is loaded, where it is no folder of transformers."""
OFFICIAL: dict[str, Any] = {
    "ViLT .ckpt": lambda: official.load("vilt_tiny_a"),
    "METER .ckpt": lambda: official.load_meter("meter_tiny_a"),
    "DCD .ckpt": lambda: official.load("dcd_step_a_student", image_size=24, **{"text.num_attention_heads": 2}),
}
"""Checkpoints of the official code, by form. tests/models/test_official.py compares every one in the fixtures."""


def built(root: Path) -> dict[str, Any]:
    """A tiny model of each family that the contract test covers, by model_type, and of each form of checkpoint."""
    found: dict[str, Any] = {}
    for name, build in FAMILIES.items():
        if " over " not in name and " from " not in name:  # other encoders of the same family
            model = build(CAPTIONS, root / name)
            found.setdefault(folders.LATE if model.kind == "late" else model.config["model_type"], model)
    return (
        found
        | {name: build(CAPTIONS, root / name) for name, build in READ_ONLY.items()}
        | {form: load() for form, load in OFFICIAL.items()}
    )


def table(by_type: dict[str, Any]) -> str:
    """One row for each family that loads, each form of checkpoint, and Python functions."""
    rows = [
        "| family (`model_type`) | loads | teacher, re-ranker | student | export | tested how |",
        "|---|---|---|---|---|---|",
    ]
    # A query encoder is no model of its own: docs/query-students.md.
    types = [name for name, family in family_table.FAMILIES.items() if family.kind != "query"]
    for model_type in [*types, *OFFICIAL, "module:function"]:
        model, form = by_type.get(model_type), "a checkpoint of the official code" if model_type in OFFICIAL else ""
        source = form or SOURCES.get(model_type, "folder or Hub id of transformers")
        cells = [
            f"`{model_type}`",
            source,
            _commands(model_type),
            _student(model),
            _export(model_type, model),
            _tested(model_type),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    named = "`aimv2`, `altclip`, `clipseg`: equal to transformers' own forward pass; saved by transformers"
    rows.append(
        "| others of transformers with `get_image_features` and `get_text_features` | folder or Hub id of transformers "
        f"| loads, family not tested | dual | its own class | {named} |"
    )
    return "\n" + "\n".join(rows) + "\n\n"


def _commands(model_type: str) -> str:
    """The kind of scorer, if every command runs with one in tests/cli/test_every_family.py."""
    kinds = {origin.model_type: origin.kind for origin in ORIGINS.values()}
    return f"yes, {kinds[model_type]}" if model_type in kinds else "loads; commands not tested"


def _tested(model_type: str) -> str:
    """What the logits were compared with, and who saved the model."""
    checkpoints = [
        path for path in FIXTURES.glob("*.ckpt") if path.name.startswith(model_type.partition(" ")[0].lower() + "_")
    ]
    found = (
        [f"equal to outputs of the official code, {len(checkpoints)} tiny checkpoints"]
        if model_type in OFFICIAL
        else []
    )
    found += [
        f"equal to {each.equal_to}; saved by {each.saved_by}"
        for each in ORIGINS.values()
        if each.model_type == model_type
    ]
    return "; ".join(found)


def _export(model_type: str, model: Any) -> str:
    if model is None or model_type == folders.CROSS_ENCODER:
        return "no"
    spec = model.export_spec()
    if model_type == folders.LATE:
        return "`--to sentence-transformers`"
    if spec.library:
        return f"`--to {spec.library}`"
    return f"`{spec.model_class}`" if spec.model_class else "read by dcdctl only"


def _student(model: Any) -> str:
    if model is None:
        return "no"
    try:
        if model.as_dual is not None:
            model.as_dual.set_trained(TrainedParts())
            return str(model.kind)
        if model.kind != "fusion":
            return "no"
        model.student([0])
    except ModelError:
        return "no"
    return "fusion, of fewer layers"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        PLACE.write(table(built(Path(root))))
