"""The script of docs/export.md: MTEB reads an exported folder, and finds the recalls of `dcdctl eval` on the same
split."""

from __future__ import annotations

import ast
import importlib.util
import json
import re

import pytest
from duals import save_dual
from paths import DOCS
from tiny import run_script
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.data import Corpus
from dcdctl.core.export import ExportJob, export

OFFLINE = """
import os, sys
os.chdir(sys.argv[1])
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": os.path.abspath("hub"),
"MTEB_CACHE": os.path.abspath("mteb")}
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mteb") is None, reason="mteb is not installed; it is part of the extra dev"
)
def test_mteb_finds_the_recalls_of_eval(scenes_corpus_dir, tmp_path):
    clip = save_dual("CLIP", Corpus.open(scenes_corpus_dir, "test").captions, tmp_path / "clip")
    words = [
        "eval",
        clip,
        "--data",
        scenes_corpus_dir,
        "--split",
        "test",
        "--device",
        "cpu",
        "--json",
        "--out",
        tmp_path / "evaluation",
    ]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    export.export_model(
        ExportJob(
            model=str(clip), out=tmp_path / "student-sentences", to="sentence-transformers", data=scenes_corpus_dir
        )
    )

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scenes").symlink_to(scenes_corpus_dir)
    scripts = re.findall(r"```python\n(.*?)```", (DOCS / "export.md").read_text(encoding="utf-8"), re.DOTALL)
    (script,) = [script for script in scripts if "class CaptionsSearchImages" in script]
    lines = dict(line.split(" ", 1) for line in run_script(OFFLINE + script, tmp_path).splitlines() if " {" in line)
    for task, key in (("ImagesSearchCaptions", "text_retrieval"), ("CaptionsSearchImages", "image_retrieval")):
        assert ast.literal_eval(lines[task]) == {f"R@{k}": round(document[key][f"R@{k}"], 2) for k in (1, 5, 10)}
    assert 0 < document["image_retrieval"]["R@1"] < 100
