"""Which run and which model the documents of a run folder belong to."""

from __future__ import annotations

from pathlib import Path

from dcdctl.core import artifacts, files
from dcdctl.core.errors import DcdError, StaleError
from dcdctl.core.models.protocols import Table

MODEL = "model_fingerprint"
"""The entry of a document in a run folder that names the run's model."""


def read_run(folder: Path, *, error: type[DcdError] = StaleError) -> tuple[artifacts.Document, artifacts.Document]:
    """run.json of a run, and dcdctl.json of its model, empty for an unfinished run; `error` also if the model is
    another run's."""
    path, model = folder / "run.json", folder / "model"
    facts = artifacts.read_document(path, error=error, hint="restore it, or train into another folder")
    hint = f"restore {model}, or train into another folder"
    saved = artifacts.read_document(model / "dcdctl.json", error=error, hint=hint) if model.is_dir() else {}
    if saved and saved.get(artifacts.RUN) != files.digest_of(facts):
        raise error(f"{model} does not belong to the run of {path.name} beside it", hint=hint)
    return facts, saved


def run_of(folder: Path) -> artifacts.Document:
    """What a document says of the run in whose folder it lies: the SHA-256 of run.json, and the fingerprint of its
    model; nothing outside of runs."""
    if not (folder / "run.json").exists():
        return {}
    facts, saved = read_run(folder)
    document: artifacts.Document = {artifacts.RUN: files.digest_of(facts)}
    if saved:
        document[MODEL] = saved.get(artifacts.FINGERPRINT)
    return document


def expect_run(path: Path, document: Table, *, error: type[DcdError], hint: str) -> None:
    """`error` if a document lies in the folder of a run and was written for another one, or for another model."""
    for key, value in run_of(path.parent).items():
        if document.get(key) != value:
            other = "run of run.json" if key == artifacts.RUN else "model in the folder model"
            raise error(f"{path} does not belong to the {other} beside it", hint=hint)
