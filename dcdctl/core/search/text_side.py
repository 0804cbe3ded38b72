"""The text side of an index's model for ONNX Runtime: made with the index, so that a search by a text starts without
torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dcdctl.core import artifacts, distributed, models
from dcdctl.core.errors import DcdError, ModelError
from dcdctl.core.search.storage import TEXT


def added(folder: Path, document: dict[str, Any], model: models.DualEncoder | None = None) -> dict[str, Any]:
    """index.json with the text side of the model, which is written into the folder if the index has none. Only the main
    process does so.

    Without `model`, that of the index is loaded. Nothing changes if it is gone or damaged, because a removal of images
    does not need it, and without the packages that export it. The index holds the reason why a model has no text side,
    so that it is not tried again.
    """
    if document.get("text") is not None or not models.exports_text_towers() or not distributed.is_main():
        return document
    try:
        model = model or models.load_dual(folder / "model")
    except DcdError:
        return document
    if model.digest != document["model"]["fingerprint"]:
        return document
    try:
        shutil.rmtree(folder / TEXT, ignore_errors=True)  # of a killed run
        models.export_text_tower(model, folder / TEXT)
    except ModelError as error:
        return {**document, "text": {"files": [], "refused": str(error.args[0])}}
    files = [{"file": path.name, **artifacts.seal_of(path)} for path in sorted((folder / TEXT).iterdir())]
    return {**document, "text": {"files": files, "refused": ""}}
