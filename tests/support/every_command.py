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

import encoders
from command_line import run
from made_runs import scores_of, write_bench, write_evaluation
from PIL import Image
from tiny import make_models, make_teacher

from dcdctl.core import models
from dcdctl.core.data import Corpus, PrepareOptions, manifest, prepare_corpus

NEW = "NEW"
"""A folder that a trial may write; it is removed after the trial."""
DATA = "--data corpus --split test --device cpu"
SETS = "--set batch.size=2 --set batch.random_negatives=1 --set optimizer.steps=1"
STUDENT = (
    f"tiny-student {DATA} --teacher teacher --cache cache {SETS} --set batch.hard_negatives=1 --set model.layers=[0]"
)
SCORED = f"cache-teacher {DATA} --teacher teacher --out NEW --recipe tiny-student --set candidates.per_query=1"
SCENES = "--set counts.train=2 --set counts.val=2 --set counts.test=2 --set side_px=64"
PHOTOS = "--images photos --out NEW --workers 1"
COMMANDS = {
    "prepare": "prepare manifest.toml --out NEW --workers 1",
    "prepare csv": f"prepare --csv pairs.csv {PHOTOS}",
    "prepare jsonl": f"prepare --jsonl pairs.jsonl {PHOTOS}",
    "prepare karpathy": f"prepare --karpathy karpathy.json {PHOTOS}",
    "prepare zip": "prepare --csv pairs.csv --images photos.zip --out NEW --workers 1",
    "prepare again": f"prepare scenes {SCENES} --out corpus --workers 1",
    # One image to train on is too few: what comes before the training is tried.
    "photos": "photos photos pairs.csv --out NEW --set model.vision=vision --set model.text=text",
    "inspect corpus": "inspect corpus",
    "inspect cache": "inspect cache",
    "inspect index": "inspect index",
    "cache-teacher": SCORED,
    "cache-teacher --extend": f"{SCORED} --extend cache",
    "work": "work tasks --device cpu",
    "work images": "work images --workers 0 --device cpu",
    "cache-texts": "cache-texts --teacher dual --texts pairs.csv --out NEW --device cpu",
    "finetune-teacher": f"finetune-teacher recipe.toml {DATA} --out NEW {SETS}",
    "distill": f"distill {STUDENT} --out NEW",
    "distill --resume": f"distill {STUDENT} --out run --resume",
    "convert": "convert teacher --out NEW",
    "eval": f"eval dual {DATA}",
    "bench": f"bench dual --teacher teacher {DATA} --set budget_s=0.1 --set num_images=2",
    "compare": "compare evaluation evaluation2 --html compared.html --data corpus",
    "report": "report evaluation evaluation2 run --out report.html",
    "export": "export dual --out NEW --to transformers",
    "index": "index dual --images photos --out NEW --workers 0 --device cpu",
    "index corpus": "index dual --images corpus --split test --out NEW --workers 0 --device cpu",
    "change": "change index --set flat_up_to=40",
    "duplicates": "duplicates index",
    "sync --add": "sync index --add photos --workers 0 --device cpu",
    "search": "search index 'a dog'",
    "search --image": "search index --image photos/a.png",
}


def make_stage(folder: Path) -> Path:
    """One of everything that a command reads."""
    sets = SCENES.split()[1::2]
    prepare_corpus(manifest.find_manifest("scenes", sets), folder / "corpus", options=PrepareOptions(workers=1))
    corpus = Corpus.open(folder / "corpus", "test")
    models.save(make_teacher(corpus.captions), folder / "teacher")
    models.save(make_models(corpus.captions)[1], folder / "dual")
    encoders.save_vision("timm map", folder / "vision")
    encoders.save_text("bert", corpus.captions, folder / "text")
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
        for name, made in (("cache-teacher", "cache"), ("distill", "run"), ("index", "index")):
            run(COMMANDS[name].replace(NEW, made))
        run(f"{SCORED.replace(NEW, 'begun')} --engine files:tasks")
        run("index dual --images photos --out begun.index --device cpu --engine files:images")
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
