"""The notebooks of examples/ run, and their outputs are small and name no folder of the machine that made them."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbformat import NotebookNode
from notebooks import NOTEBOOKS, execute_all

MAX_BYTES = 200_000
MACHINE = re.compile(r"""(?<=[\s"'(>=])/[A-Za-z_][\w.-]*/|file:/|[A-Z]:\\\\|site-packages|Traceback|Warning""")
"""An absolute path of any machine, or a message about one."""


def outputs_of(notebook: NotebookNode) -> list[list[tuple[str, frozenset[str]]]]:
    """The kind of each output of each cell of code, and its media types; messages, whose number varies, are left
    out."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        [(out.output_type, frozenset(out.get("data", ()))) for out in cell.outputs if out.output_type != "stream"]
        for cell in cells
    ]


def test_the_notebooks_run_and_show_what_their_files_show(tmp_path):
    for path, done in execute_all(NOTEBOOKS, tmp_path).items():
        assert outputs_of(done) == outputs_of(nbformat.read(path, as_version=4)), path
        html = [
            out.data["text/html"]
            for cell in done.cells
            for out in cell.get("outputs", ())
            if "text/html" in out.get("data", {})
        ]
        assert len(html) >= 3, path
        assert len(nbformat.writes(done)) < MAX_BYTES, path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_in_a_file_are_small_complete_and_of_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    assert not MACHINE.search(text)
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
