"""The notebooks of examples/: run this file to execute them and to write their outputs."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from forks import run_forked, stop
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TIMEOUT_S = 600
"""Of a cell, and of the start of a kernel; a busy machine takes many times as long as an idle one."""


SMALLER = {
    '"optimizer.steps": 60': '"optimizer.steps": 5',
    **{
        '"counts.train": 64': '"counts.train": 32',
        '"counts.train": 96': '"counts.train": 32',
        '"counts.test": 32': '"counts.test": 16',
    },
}
"""Numbers of the notebooks, and those that a test runs them with: what is trained well need not be shown again."""


class _ForkedKernel:
    """What a kernel manager asks of the process of a kernel, for one that runs in a fork of the test process."""

    stdout = stderr = stdin = None

    def __init__(self, arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
        script = (
            "import os, sys\nos.chdir(sys.argv.pop())\nfrom ipykernel import kernelapp\nkernelapp.launch_new_instance()"
        )
        self._status = 1

        def run() -> None:
            run_forked(script, *arguments, folder, environment=environment)
            self._status = 0

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else self.wait()

    def wait(self) -> int:
        self._thread.join()
        return self._status

    def send_signal(self, number: int) -> None:
        """End a kernel that does not end by itself. Each is interrupted first, as if a cell were still running."""
        if number != signal.SIGINT:
            stop()


class _ForkingManager(AsyncKernelManager):
    """Starts no new Python, whose imports take seconds."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
        _, _, module, *arguments = kernel_cmd
        assert module == "ipykernel_launcher"
        self.provisioner.process = _ForkedKernel(arguments, options["cwd"], options["env"])
        self._reconcile_connection_info(self.provisioner.connection_info)


def execute_all(paths: Sequence[Path], folder: Path) -> dict[Path, NotebookNode]:
    """The notebooks with the outputs of their cells, by one kernel in a fork of the test process, with the numbers of
    `SMALLER`.

    All run in one folder, as a reader runs them, and each without the names of the one before. CellExecutionError if a
    cell fails.
    """
    notebooks, cells = {path: nbformat.read(path, as_version=4) for path in paths}, []
    whole = "".join(cell.source for notebook in notebooks.values() for cell in notebook.cells)
    assert [number for number in SMALLER if number not in whole] == []
    for path, notebook in notebooks.items():
        for cell in notebook.cells:
            cell.id = f"{path.stem}-{cell.id}"
            for number, smaller in SMALLER.items():
                cell.source = cell.source.replace(number, smaller)
        cells += [new_code_cell("%reset -f"), *notebook.cells]
    execute(
        new_notebook(cells=cells, metadata=notebooks[paths[0]].metadata), folder, kernel_manager_class=_ForkingManager
    )
    return notebooks


def execute(notebook: NotebookNode, folder: Path, **options: Any) -> None:
    """Run the cells of a notebook in order in a folder, and set their outputs. CellExecutionError if one fails."""
    where = {"metadata": {"path": str(folder)}}
    # Without times, which would differ in every execution.
    client = NotebookClient(
        notebook, timeout=TIMEOUT_S, startup_timeout=TIMEOUT_S, record_timing=False, resources=where, **options
    )
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
