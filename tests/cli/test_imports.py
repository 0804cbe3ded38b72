"""The heavy packages that each command imports, in children of one interpreter that has imported none of them.

That interpreter runs the commands that import none itself, so that its children find what is light imported. Commands
that load a model import torch and the modelling code of transformers, which takes seconds. Their children come from a
fork that has imported both, and the test lists what each of them imports besides.
"""

from __future__ import annotations

import json
import os
import shlex
from importlib.metadata import version

import pytest
from command_line import QUICK_BENCH
from every_command import COMMANDS, inside, make_stage
from forks import LIBRARIES, run_forked
from tiny import run_script

from dcdctl.cli.app import COMMANDS as ALL

HEAVY = (
    *(
        "torch",
        "transformers",
        "torch._dynamo",
        "torch._inductor.codecache",
        "onnxruntime",
        "onnx",
        "onnxscript",
        "pandas",
        "scipy",
    ),
    *(
        "torchvision",
        "timm",
        "open_clip",
        "sentence_transformers",
        "sklearn",
        "matplotlib",
        "tensorboard",
        "huggingface_hub",
        "datasets",
    ),
)
LIGHT = {
    "recipes": [],
    "inspect index": ["pandas"],  # by Arrow, for the summary of columns
    "sync index": ["pandas"],
    "verify corpus": [],
    "verify index": [],
    "verify run": [],
    "search index dog": ["onnxruntime"],
    "inspect corpus": ["pandas"],
    "inspect cache": ["pandas"],
    "verify cache": [],
    "verify evaluation": ["pandas"],
    "prepare --csv pairs.csv --images photos --out NEW --workers 1": ["pandas"],
    "models": ["huggingface_hub"],
    "compare evaluation evaluation2": ["pandas"],
    "report evaluation evaluation2 run --out page.html": ["matplotlib", "pandas"],
}
"""Neither torch nor transformers."""
MODELS = ("torch", "transformers", "torch._dynamo", "scipy", "torchvision", "huggingface_hub")
"""What the first class of a model of transformers imports; the last three are imported where they are installed.

transformers decides by itself that it needs them: its attention masks take a class of torch._dynamo, its losses of
object detection take scipy, and its image processors torchvision. A plain installation has neither scipy nor
torchvision.
"""
OF_OLDER = ("sklearn", "torch._inductor.codecache") if version("transformers").startswith("5.18") else ()
"""What the oldest transformers that is allowed imports besides."""
BESIDES = {
    "convert": [],
    "search --image": ["onnxruntime"],
    "eval": ["pandas"],
    "bench": ["pandas"],
    "cache-teacher": ["pandas"],
    "work": ["pandas"],
    "cache-texts": ["pandas"],
    "distill": ["pandas", "tensorboard"],
    "export": ["pandas"],
    "index": ["onnxruntime", "onnx", "pandas"],
    "change": ["pandas"],
    "duplicates": [],
}
"""Commands of `every_command`, and the heavy packages besides `MODELS`."""
ELSEWHERE = {"demo", "photos", "study", "finetune-teacher", "serve", "upload"}
"""demo, photos and study run the other commands; finetune-teacher trains as distill does; serve is in
tests/serve/test_processes.py, and upload in tests/cli/test_stores_command.py."""
SCRIPT = """
import gc, importlib, importlib.util, json, os, shutil, sys
gc.disable()
import dcdctl.cli.app

class SetAside:
    # An imported package that is not among the modules until somebody imports it, which then takes no time.
    def __init__(self, package):
        importlib.import_module(package)
        self.modules = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == package}
        self.package = package
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self, is_package=True) if name == self.package else None

    def create_module(self, spec):
        return self.modules[self.package]

    def exec_module(self, module):
        sys.modules.update(self.modules)

def in_child(work):
    sys.stdout.flush()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        work()
        sys.stdout.flush()
        os._exit(0)

def imported():
    return [name for name in json.loads(sys.argv[4]) if name in sys.modules]

def run(words, before):
    shutil.rmtree("NEW", ignore_errors=True)
    sys.stdout.flush()
    standard = os.dup(1), os.dup(2)
    for stream in (1, 2):
        os.dup2(os.open("output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    try:
        dcdctl.cli.app.app(words)
    except SystemExit as end:
        assert not end.code, words
    sys.stdout.flush()
    for stream, own in zip((1, 2), standard):
        os.dup2(own, stream)
        os.close(own)
    print(json.dumps(sorted(set(imported()) - set(before))))

def run_all(commands, before):
    for words, heavy in commands:
        in_child(lambda: run(words, before)) if heavy else run(words, before)

os.chdir(sys.argv[1])
SetAside("pandas")
if sys.argv[3] == "models":
    import dcdctl.core.models.families.vision_text_dual
    print(json.dumps(before := sorted(imported())))
else:
    before = []
run_all(json.loads(sys.argv[2]), before)
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return make_stage(tmp_path_factory.mktemp("stage"))


def test_every_command_is_in_a_list():
    assert {words.split()[0] for words in (*LIGHT, *BESIDES)} | ELSEWHERE == {name for name, *_ in ALL}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is forked for each command")
def test_a_command_imports_only_the_heavy_packages_that_it_needs(stage):
    light = [(words.split(), names) for words, names in LIGHT.items()]
    lines = {**COMMANDS, "bench": f"{COMMANDS['bench']} {QUICK_BENCH}"}
    heavy = [(shlex.split(lines[name]), names) for name, names in BESIDES.items()]
    with inside(stage):
        light_lines = run_script(SCRIPT, stage, json.dumps(light), "none", json.dumps(HEAVY)).splitlines()
        printed, _ = run_forked(SCRIPT, stage, json.dumps(heavy), "models", json.dumps(HEAVY), imported=LIBRARIES)
    found, (before, *besides) = list(map(json.loads, light_lines)), map(json.loads, printed.splitlines())
    assert dict(zip(LIGHT, found, strict=True)) == {words: sorted(names) for words, names in LIGHT.items()}
    assert set(before) <= {*MODELS, *OF_OLDER}
    assert dict(zip(BESIDES, besides, strict=True)) == {name: sorted(names) for name, names in BESIDES.items()}
