"""The table of docs/models.md, made from the tiny models of families.py; run this file to write it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from families import FAMILIES, READ_ONLY
from paths import DOCS

from dcdctl.core import models
from dcdctl.core.errors import ModelError
from dcdctl.core.models import folders, load_save
from dcdctl.core.models.towers import TrainedParts

PAGE = DOCS / "models.md"
BEGIN, END = "<!-- models: written by tests/support/model_table.py -->\n", "<!-- /models -->"
CAPTIONS = ["a large red circle is left of a small blue square", "the tiny green star sits above the big pink heart", "a cross"]
OWN = "equal to its own oracle and after a round trip to disk, random weights"
LIBRARY = "equal to transformers' own output, random weights; no published weights tried"
TESTED = {
    "vilt": "equal to the outputs of the official code on its tiny checkpoints; equal to transformers, random weights",
    "dcdctl-co-attention": "METER: equal to the outputs of the official code on its tiny checkpoints; other pairs: " + OWN,
    "dcdctl-encoder-dual": OWN,
    "open_clip": "equal to open_clip's own vectors, random weights; no published weights tried",
    "SentenceTransformer": "equal to `SentenceTransformer.encode`, a CLIP with a dense layer, random weights; no published weights tried",
    "CrossEncoder": "equal to `CrossEncoder.predict` one pair at a time, a Qwen3-VL with random weights; no published weights tried",
}
"""How each family was tested, by model_type; the others are compared with the library that they come from."""
SOURCES = {
    "dcdctl-co-attention": "a run or a converted METER .ckpt",
    "dcdctl-encoder-dual": "a run over frozen encoders",
    "open_clip": "folder or Hub id of open_clip",
    "CrossEncoder": "folder or Hub id of sentence-transformers that reads images",
    "SentenceTransformer": "folder or Hub id of sentence-transformers that embeds images and texts",
}
"""What is loaded, where it is no folder of transformers."""


def built(root: Path) -> dict[str, Any]:
    """A tiny model of each family, by model_type."""
    found: dict[str, Any] = {}
    for name, build in FAMILIES.items():
        model = build(CAPTIONS, root / name)
        models.save(model, root / name / "model")
        found.setdefault(folders.type_of(root / name / "model"), model)
    return {**found, **{name: build(CAPTIONS, root / name) for name, build in READ_ONLY.items()}}


def table(by_type: dict[str, Any]) -> str:
    """One row for each family that loads."""
    rows = ["| family (`model_type`) | loads | teacher, re-ranker | student | export | tested how |", "|---|---|---|---|---|---|"]
    for model_type, family in load_save.FAMILIES.items():
        model = by_type[model_type]
        source = SOURCES.get(model_type, "folder or Hub id of transformers")
        export = f"`{model.export_spec().model_class}`" if model.export_spec().model_class else "read by dcdctl only"
        if model_type == folders.CROSS_ENCODER:
            export = "no"
        if library := model.export_spec().library:
            export = f"`--to {library}`"
        rows.append(
            f"| `{model_type}` | {source} | yes, {family.kind} | {_student(model)} | {export} | {TESTED.get(model_type, LIBRARY)} |"
        )
    return "\n" + "\n".join(rows) + "\n\n"


def _student(model: Any) -> str:
    try:
        if model.kind == "dual":
            model.set_trained(TrainedParts())
            return "dual"
        model.student([0])
    except ModelError:
        return "no"
    return "fusion, of fewer layers"


def parts(text: str) -> tuple[str, str, str]:
    """The page before the table, the table, and the page after it."""
    before, _, rest = text.partition(BEGIN)
    section, _, after = rest.partition(END)
    return before + BEGIN, section, END + after


if __name__ == "__main__":
    before, _, after = parts(PAGE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as root:
        PAGE.write_text(before + table(built(Path(root))) + after, encoding="utf-8")
