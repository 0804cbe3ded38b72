"""The notebooks of examples/: run this file to execute them and to write their outputs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TIMEOUT_S = 600
"""Of a cell, and of the start of a kernel; a busy machine takes many times as long as an idle one."""


def execute_all(paths: Sequence[Path], folder: Path) -> dict[Path, NotebookNode]:
    """The notebooks with the outputs of their cells, by one kernel, whose imports take seconds.

    Each notebook runs in a folder of its own, and without the names of the one before. CellExecutionError if a cell fails.
    """
    notebooks, cells = {path: nbformat.read(path, as_version=4) for path in paths}, []
    for path, notebook in notebooks.items():
        (folder / path.stem).mkdir()
        for cell in notebook.cells:
            cell.id = f"{path.stem}-{cell.id}"
        cells += [new_code_cell("%reset -f"), new_code_cell(f"import os\nos.chdir({str(folder / path.stem)!r})\ndel os"), *notebook.cells]
    execute(new_notebook(cells=cells, metadata=notebooks[paths[0]].metadata), folder)
    return notebooks


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run the cells of a notebook in order in a folder, and set their outputs. CellExecutionError if one fails."""
    where = {"metadata": {"path": str(folder)}}
    # Without times, which would differ in every execution.
    client = NotebookClient(notebook, timeout=TIMEOUT_S, startup_timeout=TIMEOUT_S, record_timing=False, resources=where)
    # tqdm misses the widgets of a notebook, and its warning would name a folder of this machine.
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})


if __name__ == "__main__":
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        # The version of the Python that ran it says nothing to a reader.
        notebook.metadata.pop("language_info", None)
        nbformat.write(notebook, path)
