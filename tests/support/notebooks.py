"""The notebooks of examples/: run this file to execute them and to write their outputs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TIMEOUT_S = 600
"""Of a cell, and of the start of a kernel; a busy machine takes many times as long as an idle one."""


def execute(path: Path, folder: Path) -> NotebookNode:
    """The notebook with the outputs of its cells, which ran in order in a folder. CellExecutionError if one fails."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    # Without times, which would differ in every execution.
    client = NotebookClient(notebook, timeout=TIMEOUT_S, startup_timeout=TIMEOUT_S, record_timing=False, resources=where)
    # tqdm misses the widgets of a notebook, and its warning would name a folder of this machine.
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        # The version of the Python that ran it says nothing to a reader.
        notebook.metadata.pop("language_info", None)
        nbformat.write(notebook, path)
