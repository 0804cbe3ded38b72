"""A command line of every command over one folder of tiny files, and the rights of an ordinary user."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from made_runs import scores_of, write_bench, write_evaluation
from PIL import Image
from tiny import make_models, make_teacher
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus, PrepareOptions, manifest, prepare_corpus

CPU = ["--device", "cpu"]
NEW = "NEW"
"""A folder that a trial may write; it is removed after the trial."""
DATA = ["--data", "corpus", "--split", "test"]
SETS = [word for sets in ["batch.size=2", "batch.random_negatives=1", "optimizer.steps=1"] for word in ("--set", sets)]
LISTS = ["--set", "batch.hard_negatives=1", "--set", "model.layers=[0]"]
SCORED = ["--teacher", "teacher", "--cache", "cache"]
ONE = ["--recipe", "tiny-student", "--set", "candidates.per_query=1"]
SCENES = [*(f"--set=counts.{split}=2" for split in ("train", "val", "test")), "--set=side_px=64"]
QUICK_BENCH = [
    *("--no-onnx", "--fresh-processes", "0", "--gallery-sizes", "100"),
    *("--reference-gallery", "100", "--batch-sizes", "1", "--repeats", "2"),
]
"""Options of `bench` that leave out what is no start: other processes, and most measurements."""
COMMANDS: dict[str, list[str]] = {
    "prepare": ["prepare", "manifest.toml", "--out", NEW, "--workers", "1"],
    "prepare csv": ["prepare", "--csv", "pairs.csv", "--images", "photos", "--out", NEW, "--workers", "1"],
    "prepare jsonl": ["prepare", "--jsonl", "pairs.jsonl", "--images", "photos", "--out", NEW, "--workers", "1"],
    "prepare karpathy": ["prepare", "--karpathy", "karpathy.json", "--images", "photos", "--out", NEW, "--workers",
    "1"],
    "prepare zip": ["prepare", "--csv", "pairs.csv", "--images", "photos.zip", "--out", NEW, "--workers", "1"],
    "prepare again": ["prepare", "scenes", *SCENES, "--out", "corpus", "--workers", "1"],
    "inspect corpus": ["inspect", "corpus"],
    "inspect cache": ["inspect", "cache"],
    "inspect index": ["inspect", "index"],
    "cache-teacher": ["cache-teacher", *DATA, "--teacher", "teacher", "--out", NEW, *ONE, *CPU],
    "cache-teacher --extend": ["cache-teacher", *DATA, "--teacher", "teacher", "--extend", "cache", "--out", NEW,
    *ONE, *CPU],
    "finetune-teacher": ["finetune-teacher", "recipe.toml", *DATA, "--out", NEW, *SETS, *CPU],
    "distill": ["distill", "tiny-student", *DATA, *SCORED, "--out", NEW, *SETS, *LISTS, *CPU],
    "distill --resume": ["distill", "tiny-student", *DATA, *SCORED, "--out", "run", "--resume", *SETS, *LISTS, *CPU],
    "convert": ["convert", "teacher", "--out", NEW],
    "eval": ["eval", "dual", *DATA, *CPU],
    "bench": ["bench", "dual", "--teacher", "teacher", *DATA, "--budget", "0.1", "--num-images", "2", *CPU],
    "compare": ["compare", "evaluation", "evaluation2", "--html", "compared.html", "--data", "corpus"],
    "report": ["report", "evaluation", "evaluation2", "run", "--out", "report.html"],
    "export": ["export", "dual", "--out", NEW, "--to", "transformers"],
    "index": ["index", "dual", "--images", "photos", "--out", NEW, "--workers", "0", *CPU],
    "index corpus": ["index", "dual", "--images", "corpus", "--split", "test", "--out", NEW, "--workers", "0", *CPU],
    "index --add": ["index", "index", "--add", "photos", "--workers", "0", *CPU],
    "search": ["search", "index", "a dog"],
    "search --image": ["search", "index", "--image", "photos/a.png"],
}  # fmt: skip


def make_stage(folder: Path) -> Path:
    """One of everything that a command reads."""
    sets = ["counts.train=2", "counts.val=2", "counts.test=2", "side_px=64"]
    prepare_corpus(manifest.find_manifest("scenes", sets), folder / "corpus", options=PrepareOptions(workers=1))
    corpus = Corpus.open(folder / "corpus", "test")
    models.save(make_teacher(corpus.captions), folder / "teacher")
    models.save(make_models(corpus.captions)[1], folder / "dual")
    (folder / "photos").mkdir()
    for name in "abc":
        Image.new("RGB", (40, 40)).save(folder / "photos" / f"{name}.png")
    shutil.make_archive(str(folder / "photos"), "zip", folder / "photos")
    rows = [("a.png", "a dog", "train"), ("b.png", "a cat", "val"), ("c.png", "a bird", "test")]
    (folder / "pairs.csv").write_text("image,caption,split\n" + "".join(",".join(row) + "\n" for row in rows))
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps(dict(zip(("image", "caption", "split"), row, strict=True))) + "\n" for row in rows)
    )
    images = [{"filename": name, "split": split, "sentences": [{"raw": text}]} for name, text, split in rows]
    (folder / "karpathy.json").write_text(json.dumps({"images": images, "dataset": "made"}))
    (folder / "manifest.toml").write_text('name = "made"\nformat = "scenes"\n[counts]\ntrain = 2\nval = 2\ntest = 2\n')
    shutil.copy(next(Path(models.__file__).parents[2].rglob("tiny-teacher.toml")), folder / "recipe.toml")
    for seed, name in enumerate(["evaluation", "evaluation2"]):
        write_evaluation(folder / name, corpus, scores_of(corpus, 3, seed))
    write_bench(folder / "evaluation", "teacher")
    with inside(folder):
        for name in ("cache-teacher", "distill", "index"):
            words = [
                {"cache-teacher": "cache", "distill": "run", "index": "index"}[name] if word == NEW else word
                for word in COMMANDS[name]
            ]
            made = CliRunner().invoke(app, words)
            assert made.exit_code == 0, made.output
    return folder


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def without_root() -> Iterator[bool]:
    """Without the right of root to read every file, as other users; False if this process cannot give it up."""
    if os.geteuid():
        yield True
        return
    if sys.platform != "linux":
        yield False
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        yield False
        return
    effective = data[0]
    data[0] = effective & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    has_changed = libc.capset(header, data) == 0
    try:
        yield has_changed
    finally:
        data[0] = effective
        libc.capset(header, data)
