"""The heavy packages that each command imports, each in a child of one interpreter that has imported only the command line.

Commands that load a model import torch and the modelling code of transformers, which takes seconds. Their children come from a child that
has imported both once, and the test lists what each of them imports besides.
"""

from __future__ import annotations

import json
import os

import pytest
from every_command import COMMANDS, NEW, QUICK_BENCH, inside, make_stage
from tiny import run_script

from dcdctl.cli.app import COMMANDS as ALL

HEAVY = (
    *("torch", "transformers", "torch._dynamo", "torch._inductor.codecache", "onnxruntime", "onnx", "onnxscript", "pandas", "scipy"),
    *("torchvision", "timm", "open_clip", "sentence_transformers", "sklearn", "matplotlib", "tensorboard", "huggingface_hub", "datasets"),
)
LIGHT = {
    "recipes": [],
    "search index dog": ["onnxruntime"],
    "inspect index": [],
    "inspect corpus": ["pandas"],
    "inspect cache": ["pandas"],
    "verify corpus": [],
    "verify index": [],
    "verify run": [],
    "verify cache": ["pandas"],
    "verify evaluation": ["pandas"],
    "prepare --csv pairs.csv --images photos --out NEW --workers 1": ["pandas"],
    "models": ["huggingface_hub"],
    "compare evaluation evaluation2": ["pandas"],
    "report evaluation evaluation2 run --out page.html": ["matplotlib", "pandas"],
}
"""Neither torch nor transformers."""
MODELS = ("torch", "transformers", "torch._dynamo", "scipy", "torchvision", "huggingface_hub")
"""What the first class of a model of transformers imports; the last three are imported where they are installed.

transformers decides by itself that it needs them: its attention masks take a class of torch._dynamo, its losses of object detection
take scipy, and its image processors torchvision. A plain installation has neither scipy nor torchvision.
"""
BESIDES = {
    "search --image": [],
    "eval": ["pandas"],
    "bench": ["pandas"],
    "convert": [],
    "cache-teacher": ["pandas"],
    "distill": ["pandas", "tensorboard"],
    "export": ["pandas"],
    "index": ["onnxruntime", "onnx", "pandas"],
}
"""Commands of `every_command`, and the heavy packages besides `MODELS`."""
MORE = {"bench": QUICK_BENCH}
ELSEWHERE = {"demo", "study", "finetune-teacher", "serve"}
"""demo and study run the other commands; finetune-teacher trains as distill does; tests/serve/test_processes.py has `serve`."""
SCRIPT = """
import json, os, shutil, sys
import dcdctl.cli.app

def in_child(work):
    sys.stdout.flush()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        work()
        os._exit(0)

def imported():
    return [name for name in json.loads(sys.argv[4]) if name in sys.modules]

def run(words, before):
    shutil.rmtree("NEW", ignore_errors=True)
    answer = os.dup(1)
    for stream in (1, 2):
        os.dup2(os.open("output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    try:
        dcdctl.cli.app.app(words)
    except SystemExit as end:
        assert not end.code, words
    os.write(answer, (json.dumps(sorted(set(imported()) - set(before))) + "\\n").encode())

def run_with_models():
    import dcdctl.core.models.families.vision_text_dual
    print(json.dumps(sorted(before := imported())))
    for words in json.loads(sys.argv[3]):
        in_child(lambda: run(words, before))

os.chdir(sys.argv[1])
for words in json.loads(sys.argv[2]):
    in_child(lambda: run(words, []))
in_child(run_with_models)
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return make_stage(tmp_path_factory.mktemp("stage"))


def test_every_command_is_in_a_list():
    assert {words.split()[0] for words in (*LIGHT, *BESIDES)} | ELSEWHERE == {name for name, *_ in ALL}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is forked for each command")
def test_a_command_imports_only_the_heavy_packages_that_it_needs(stage):
    assert NEW == "NEW"
    light, heavy = [words.split() for words in LIGHT], [[*COMMANDS[name], *MORE.get(name, [])] for name in BESIDES]
    with inside(stage):
        lines = run_script(SCRIPT, stage, json.dumps(light), json.dumps(heavy), json.dumps(HEAVY)).splitlines()
    found = list(map(json.loads, lines))
    assert dict(zip(LIGHT, found, strict=False)) == {words: sorted(names) for words, names in LIGHT.items()}
    assert set(found[len(LIGHT)]) <= set(MODELS)
    assert dict(zip(BESIDES, found[len(LIGHT) + 1 :], strict=True)) == {name: sorted(names) for name, names in BESIDES.items()}
