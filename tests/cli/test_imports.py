"""The heavy packages that each command imports, each in a child of one interpreter that has imported only the command line."""

from __future__ import annotations

import json
import os

import pytest
from every_command import inside, make_stage
from tiny import run_script

HEAVY = ("torch", "transformers", "torch._dynamo", "onnxruntime", "scipy", "torchvision", "sklearn", "matplotlib", "pandas", "datasets")
IMPORTED = {
    "recipes": [],
    "search index dog": ["onnxruntime"],
    "inspect index": [],
    "inspect corpus": ["pandas"],
    "prepare --csv pairs.csv --images photos --out prepared --workers 1": ["pandas"],
    "models": ["torch"],
    "compare evaluation evaluation2": ["torch", "pandas"],
    "report evaluation evaluation2 run --out page.html": ["torch", "matplotlib", "pandas"],
}
SCRIPT = """
import json, os, sys
import dcdctl.cli.app
os.chdir(sys.argv[1])
for words in json.loads(sys.argv[2]):
    sys.stdout.flush()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, words
        continue
    answer = os.dup(1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        dcdctl.cli.app.app(words.split())
    except SystemExit as end:
        assert not end.code, words
    os.write(answer, (json.dumps([name for name in json.loads(sys.argv[3]) if name in sys.modules]) + "\\n").encode())
    os._exit(0)
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return make_stage(tmp_path_factory.mktemp("stage"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is forked for each command")
def test_a_command_imports_only_the_heavy_packages_that_it_needs(stage):
    with inside(stage):
        lines = run_script(SCRIPT, stage, json.dumps(list(IMPORTED)), json.dumps(HEAVY)).splitlines()
    assert dict(zip(IMPORTED, map(json.loads, lines), strict=True)) == IMPORTED
