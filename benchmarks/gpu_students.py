"""Students of benchmarks/gpu.py: a function says what each learns from, and the parts make their caches and train
them."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_machine import NAMES, Machine, Row, Work, compared, relative, scoring, with_peak
from safetensors.torch import load_file

import dcdctl
from dcdctl.core import devices, models
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.teacher import CacheJob, TextCacheJob, cache_scores, cache_texts, read_cache, read_text_cache
from dcdctl.core.teacher.make import TOLERANCES
from dcdctl.core.toml import assignments
from dcdctl.core.training import Run, checkpoints

LOSS_LIMITS = {"float32": 0.01, "bfloat16": 0.5}
"""The largest difference of a loss, as a share of how far the first steps move it: 1 if the gradient is lost."""
VECTOR_LIMITS = {"float32": 1e-3, "bfloat16": 0.1}
"""Of vectors that are stored in float16."""
PROCESSES_LIMIT = 1e-3
CHECKED_STEPS = 4
QUERY, QUERY_LATE = "query student of clip", "query student of late"


@dataclass(frozen=True, kw_only=True)
class Student:
    """What a student learns from, and what differs from its recipe."""

    teacher: str
    """The model whose scores, or vectors of texts, are cached."""
    overrides: dict[str, Any]
    recipe: str = "tiny-student"
    learns_vectors: bool = False
    is_of_pool: bool = False
    names_teacher: bool = False
    """Whether the training loads the teacher."""


def lists(machine: Machine) -> dict[str, Any]:
    """Lists of candidates as long as a batch."""
    size = machine.size.batch
    lists = {"candidates.per_query": size, "batch.random_negatives": size - 1}
    return {**lists, "batch.hard_negatives": max(1, (size - 1) // 2)}


def fusion(machine: Machine, teacher: str) -> Student:
    """The first and the last layer of its teacher."""
    last = (machine.size.fusion_layers if teacher == "meter" else machine.size.layers) - 1
    return Student(teacher=teacher, overrides={**lists(machine), "model.layers": [0, last]}, names_teacher=True)


def dual(machine: Machine) -> Student:
    """A CLIP that learns from itself."""
    own = {"model.kind": "dual", "model.layers": [], "model.start": machine.model("clip")}
    return Student(teacher="clip", overrides={**lists(machine), **own, "loss.terms": {"infonce": 1.0, "kl": 1.0}})


def late(machine: Machine) -> Student:
    """Late interaction over a CLIP, by the scores of a ViLT."""
    base = dual(machine).overrides
    return Student(teacher="vilt", overrides={**base, "model.kind": "late", "model.token_dim": machine.size.token_dim})


def of_pool(machine: Machine) -> Student:
    """A CLIP that learns from images without captions and texts without images, by the scores of a ViLT."""
    names = {"kind": "blocks", "block_size": machine.size.batch, "group_size": 1, "captions_per_image": 2}
    own = {f"candidates.{name}": value for name, value in names.items()} | {"loss.terms": {"kl": 1.0}}
    base = {name: value for name, value in dual(machine).overrides.items() if name.startswith("model.")}
    return Student(teacher="vilt", overrides={**base, **own}, is_of_pool=True)


def query(machine: Machine, teacher: str) -> Student:
    """A new text encoder for the images of a dual encoder, and a copy of the teacher's for those of a late one."""
    is_late = teacher == "late"
    own = {"model.text": "teacher" if is_late else "", "model.num_text_layers": 2, "validation.every": 0}
    return Student(
        teacher=teacher,
        overrides=own if is_late else {**own, "model.hidden_size": 256, "model.vocab_size": 200},
        recipe="query-static",
        learns_vectors=True,
        names_teacher=is_late,
    )


STUDENTS: dict[str, Callable[[Machine], Student]] = {
    "vilt": partial(fusion, teacher="vilt"),
    "meter": partial(fusion, teacher="meter"),
    "clip": dual,
    "late": late,
    "pool": of_pool,
    QUERY: partial(query, teacher="clip"),
    QUERY_LATE: partial(query, teacher="late"),
}


def overrides(machine: Machine, name: str, steps: int | None = None) -> dict[str, Any]:
    """All that differs from the recipe."""
    steps = steps or machine.size.steps
    optimizer = {"lr": machine.size.lr, "steps": steps, "save_every": steps // 2}
    shared = {f"optimizer.{name}": value for name, value in optimizer.items()}
    return {**shared, "batch.size": machine.size.batch, **STUDENTS[name](machine).overrides}


def corpus_of(machine: Machine, student: Student) -> Path:
    return machine.pool if student.is_of_pool else machine.data


def cached(machine: Machine, name: str, compute: Compute | None = None, *, again: bool = False) -> Path:
    """The folder of the scores, or of the vectors of texts, that a student learns from; made on first use."""
    student, compute = STUDENTS[name](machine), compute or machine.compute()
    what = "texts" if student.learns_vectors else "pool" if student.is_of_pool else "scores"
    key = (student.teacher, what, compute.device.type, compute.precision, str(compute.batch_size or "default"))
    out = machine.out / "cache" / "-".join(key)
    if again:
        shutil.rmtree(out, ignore_errors=True)
    job = {"out": out, "teacher": machine.model(student.teacher)}
    if student.learns_vectors:
        return cache_texts(TextCacheJob(**job, texts=[str(machine.data)]), compute=compute).folder
    candidates = dcdctl.load_recipe(student.recipe, overrides(machine, name)).candidates
    return cache_scores(
        CacheJob(**job, data=corpus_of(machine, student), candidates=candidates, compute=compute)
    ).folder


def train(machine: Machine, name: str, compute: Compute, *, steps: int = 0, **options: Any) -> Run:
    """A student's run, in place of the one before."""
    student, folder = STUDENTS[name](machine), machine.out / "runs" / name.replace(" ", "-")
    if not options.get("resume"):
        shutil.rmtree(folder, ignore_errors=True)
    return dcdctl.distill(
        dcdctl.load_recipe(student.recipe, overrides(machine, name, steps)),
        None if student.learns_vectors else corpus_of(machine, student),
        folder,
        cache=cached(machine, name),
        teacher=machine.model(student.teacher) if student.names_teacher else None,
        device=str(compute.device),
        precision=NAMES[compute.precision],
        **options,
    )


def losses(metrics: list[dict[str, Any]]) -> Any:
    """The logged losses: of the first step, of every tenth, and of the last."""
    return np.array([line["loss"] for line in metrics])


def trained(machine: Machine, name: str) -> Iterator[Row]:
    """A student's first losses on the device and on the CPU, the time of a step, and the memory."""
    # A CPU cannot notice that a batch does not fit: one image or caption at a time fits.
    is_split = not STUDENTS[name](machine).learns_vectors
    first, own = partial(train, machine, name, steps=CHECKED_STEPS), machine.size.batch if is_split else 1
    expected = losses(first(Compute(), accumulate=own).metrics())
    for compute in machine.computes:
        run, mib = with_peak(machine, partial(first, compute))
        difference = np.abs(losses(run.metrics()) - expected).max() / abs(expected[-1] - expected[0])
        if machine.size.steps > CHECKED_STEPS:
            run, mib = with_peak(machine, partial(train, machine, name, compute))
        what = f"distill, batch {machine.size.batch}, {NAMES[compute.precision]}"
        yield Row(
            model=name, what=f"{what}, first {CHECKED_STEPS} losses", difference=float(difference),
            limit=LOSS_LIMITS[compute.precision], unit="ms/step", peak_mib=mib,
            # The first line warms up.
            value=1000 * statistics.median(line["seconds"] for line in run.metrics()[1:]),
        )  # fmt: skip


def scored(machine: Machine, name: str) -> Iterator[Row]:
    """The rate of a student's cache, by precision and batch size, and some of its scores computed again on the CPU."""
    computes = machine.computes
    if STUDENTS[name](machine).teacher != "clip":
        computes += [machine.compute(batch_size=size) for size in machine.size.batch_sizes]
    if machine.is_gpu:
        cached(machine, name, again=True)  # the first pass loads libraries and selects kernels
    for compute in computes:
        yield cache_row(machine, name, compute)


def cache_row(machine: Machine, name: str, compute: Compute, what: str = "cache-teacher") -> Row:
    """The rate of a student's cache, and some of its scores computed again on the CPU."""
    student = STUDENTS[name](machine)
    corpus = Corpus.open(corpus_of(machine, student), "train")
    teacher = models.load_scorer(machine.model(student.teacher))
    work = partial(cached, machine, name, compute, again=True)
    (seconds, folder), mib = with_peak(machine, partial(devices.timed, work, machine.device))
    cache = read_cache(folder)
    chosen = np.random.default_rng(0).permutation(cache.num_pairs)[: machine.size.pairs]
    expected = scoring(teacher, corpus, cache.image_P[chosen], cache.text_P[chosen])(Compute())
    batch = "" if compute.batch_size is None else f", --batch-size {compute.batch_size}"
    return Row(
        model=name, what=f"{what}, {NAMES[compute.precision]}{batch}, {len(chosen)} pairs checked",
        difference=relative(cache.score_P[chosen], expected), limit=TOLERANCES[compute.precision],
        value=cache.num_pairs / seconds, unit="pairs/s", peak_mib=mib,
    )  # fmt: skip


def encoded(machine: Machine, name: str) -> Iterator[Row]:
    """The vectors of texts that a query student learns from."""

    def vectors(compute: Compute) -> Any:
        cache = read_text_cache(cached(machine, name, compute, again=True))
        parts = (cache.part(number) for number in range(len(cache.part_sizes)))
        return np.vstack([vector for part in parts for *_, vector in part]).astype(np.float32)

    work = {"run": vectors, "count": read_text_cache(cached(machine, name)).num_texts, "unit": "texts/s"}
    yield from compared(machine, Work(model=name, what="cache-texts", **work, limits=VECTOR_LIMITS))


def resumed(machine: Machine, name: str) -> Iterator[Row]:
    """A run that is stopped at a checkpoint and resumed, against one that is not stopped."""

    def weights(run: Run) -> Any:
        state = load_file(next((run.folder / "model").glob("*.safetensors")))
        return np.concatenate([tensor.float().numpy().ravel() for _, tensor in sorted(state.items())])

    whole, save = weights(train(machine, name, machine.compute())), checkpoints.save_checkpoint

    def stop(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        raise KeyboardInterrupt

    checkpoints.save_checkpoint = stop
    try:
        with suppress(KeyboardInterrupt):
            train(machine, name, machine.compute())
    finally:
        checkpoints.save_checkpoint = save
    difference = relative(weights(train(machine, name, machine.compute(), resume=True)), whole)
    # Sums on a GPU depend on the order of its threads.
    limit = 1e-3 if machine.is_gpu else 0.0
    what = "weights after a stop and --resume, against a run without a stop"
    yield Row(model=name, what=what, difference=difference, limit=limit)


def processes(machine: Machine) -> Iterator[Row]:
    """The losses of two processes, against one."""
    if torch.cuda.device_count() < 2 and not machine.uses_gloo:
        yield Row(model="clip", what="losses of two processes", note="fewer than two GPUs")
        return
    found, sets = [], assignments(overrides(machine, "clip"))
    for count in (1, 2):
        out = machine.out / "runs" / f"processes-{count}"
        shutil.rmtree(out, ignore_errors=True)
        words = ["distill", STUDENTS["clip"](machine).recipe, "--data", machine.data, "--out", out]
        words += ["--cache", cached(machine, "clip"), "--precision", "fp32", "--device", machine.device.type]
        words += [word for each in sets for word in ("--set", each)]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
        command = [sys.executable, *launcher, "-m", "dcdctl", *words]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found.append(losses([json.loads(line) for line in lines]))
    what = f"losses of two processes ({'NCCL' if machine.is_gpu else 'gloo'}) against one"
    yield Row(model="clip", what=what, difference=relative(found[1], found[0]), limit=PROCESSES_LIMIT)


def each(part: Callable[[Machine, str], Iterator[Row]], *names: str) -> Callable[[Machine], Iterator[Row]]:
    """A part that does the same with several students."""

    def rows(machine: Machine) -> Iterator[Row]:
        for name in names:
            yield from part(machine, name)

    return rows


def learned(machine: Machine, name: str) -> Iterator[Row]:
    """The cache of a student, and its training."""
    yield from (encoded if STUDENTS[name](machine).learns_vectors else scored)(machine, name)
    yield from trained(machine, name)
