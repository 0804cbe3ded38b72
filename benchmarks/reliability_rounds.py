"""Hostile teachers, pools and settings of trainings in rounds, for benchmarks/reliability.py.

A training must refuse what it cannot learn from in one line, or end with finite weights and the scores that its teacher
gave.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import reliability_teachers as teachers
from PIL import Image
from reliability_changes import LINES as TRAININGS
from reliability_changes import PICKED
from reliability_trials import Ended, Stage, Trial, dcdctl, in_fork, outcome_of, sets

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import TeacherCache, read_cache

TEXTS = {
    "equal": ["a dog"] * 40,
    "one": ["a dog"],
    "two": ["a dog", "a cat"],
    "empty lines": ["a dog", "", " ", "\t", "a cat"] * 8,
    "punctuation": ["!", "?", ".", "...", "--"] * 8,
    "unknown words": [chr(0x4E00 + number) * 3 for number in range(40)],
    "long": [f"{number} " + "word " * 500 for number in range(40)],
    "control characters": [f"a\x07{number}\x1b[31m" for number in range(40)],
    "case and spaces": ["a dog", "A DOG", " a  dog ", "a dog."] * 10,
    "surrogates and joiners": [f"\U0001f468\u200d\U0001f469 {number}\u0301" for number in range(40)],
    "numbers": [str(10**number) for number in range(40)],
    "markup": [f"<script>{number}</script> [bold]" for number in range(40)],
}
"""Files of texts of a pool."""
IMAGES = {
    "one": lambda number: "one.png",
    "two": lambda number: f"{number % 2}.png",
    "equal": lambda number: f"same {number}.png",
    "noise": lambda number: f"{number}.png",
    "black": lambda number: f"black {number}.png",
    "of many sizes": lambda number: f"size {number}.png",
}
"""Folders of images of a pool, by the name of each of 12 files."""


def _image(name: str, number: int) -> Image.Image:
    if name.startswith("black"):
        return Image.new("RGB", (32, 32))
    seed = 0 if name.startswith("same") else number
    size = (1 + 7 * number, 1 + 300 // (1 + number)) if name.startswith("size") else (32, 32)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def hostile_rounds(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Teachers of every kind for every training, then pools of every kind of texts and images."""
    yield from _hostile_teachers(stage, rng, trials)
    yield from _hostile_pools(stage, rng, trials)


def _hostile_teachers(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    cases = list(itertools.product(("pool", "captions", "both"), [*teachers.ACCEPTED, *teachers.REFUSED]))
    for name, teacher in rng.sample(cases, min(trials, len(cases))):
        inputs = {"pool": stage.pool, "corpus": stage.corpus, "begin": stage.dual, "late": stage.late}
        line = [f"reliability_teachers:{teacher}" if word == "changing:judge" else word for word in TRAININGS[name]]
        ended = _trained(stage, inputs, line, teacher)
        outcome = "wrong" if ended.kind == "ok" and teacher in teachers.REFUSED else outcome_of(ended)
        yield f"hostile teacher, {name}", outcome, f"{teacher}: {ended}"


def _hostile_pools(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    cases = list(itertools.product(TEXTS, IMAGES, ("judge", "equal", "by_image"), ("picks", "scores")))
    for texts, images, teacher, learned in rng.sample(cases, min(trials, len(cases))):
        folder = stage.folder / "hostile pool"
        photos = folder / "images"
        photos.mkdir(parents=True)
        for number in range(12):
            name = IMAGES[images](number)
            _image(name, number).save(photos / name)
        (folder / "texts.txt").write_text("\n".join(TEXTS[texts]))
        pool = ("prepare", "--images", photos, "--queries", folder / "texts.txt", "--workers", 1, "--name", "pool")
        ended = in_fork(lambda folder=folder, pool=pool: dcdctl(*pool, "--out", folder / "pool"))
        if ended.kind == "ok":
            by_scores = sets("pool.pseudo_positive_above=none", "loss.terms={ kl = 1.0 }", "pool.max_pairs=150")
            line = [
                *PICKED,
                "--teacher",
                f"reliability_teachers:{teacher}",
                *(by_scores if learned == "scores" else ()),
            ]
            ended = _trained(stage, {"pool": folder / "pool", "begin": stage.dual}, line, teacher)
        yield f"hostile pool, by {learned}", outcome_of(ended), f"{texts} texts, {images} images, {teacher}: {ended}"
        shutil.rmtree(folder)


def _trained(stage: Stage, inputs: dict[str, Path], line: Sequence[object], teacher: str) -> Ended:
    """A training in a folder of its own; a traceback if its weights are not finite, or its scores not the teacher's."""
    out = stage.folder / "hostile rounds"
    out.mkdir()
    for name, source in inputs.items():
        (out / name).symlink_to(source)

    def work() -> str:
        os.chdir(out)
        dcdctl(*line)
        for run in [Path("run"), *Path("run-rounds").glob("run-*")]:
            weights = models.load(run).state_dict()
            assert all(tensor.isfinite().all() for tensor in weights.values()), f"{run} has weights that are not finite"
        of_pool = inputs["pool"] if "pool" in line else inputs["corpus"]
        for cache in map(read_cache, Path("run-rounds").glob("cache-*")):
            place = inputs["corpus"] if cache.folder.name == "cache-captions" else of_pool
            _check_scores(cache, Corpus.open(place, "train"), teacher)
        return ""

    ended = in_fork(work)
    shutil.rmtree(out)
    return ended


def _check_scores(cache: TeacherCache, corpus: Corpus, teacher: str) -> None:
    """AssertionError unless the scores of a cache are those of its teacher, for pairs here and there."""
    score = getattr(teachers, "judge" if teacher == "spoils_its_lists" else teacher)
    for pair in range(0, cache.num_pairs, 1 + cache.num_pairs // 40):
        image = corpus.image(int(cache.image_P[pair])).convert("RGB")
        expected = np.float32(float(score([image], [corpus.captions[cache.text_P[pair]]])[0]))
        assert np.isclose(cache.score_P[pair], expected, rtol=1e-6, atol=0), f"{cache.score_P[pair]}, not {expected}"
