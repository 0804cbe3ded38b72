"""Runs, checkpoints, saved models and evaluations to damage, and what reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from damage import Artifact
from made_runs import cascade_changes, finish_run, scores_of, write_bench, write_evaluation, write_run
from tiny import make_corpus, make_teacher, make_wide_dual
from torch import nn

from dcdctl.core import models, report
from dcdctl.core.evaluation import compare
from dcdctl.core.export import history
from dcdctl.core.training import checkpoints, runs
from dcdctl.core.training.recipe import Recipe

TEXTS = [[f"image {image} caption {k}" for k in range(2)] for image in range(12)]
CAPTIONS = [text for texts in TEXTS for text in texts]


def checkpoint_kind(folder: Path) -> Artifact:
    """The newest checkpoint and the best weights of a run in float16, read by a training that resumes."""
    for name, seed in (("made", 0), ("other", 1)):
        run = runs.start_run(folder / name, Recipe(seed=seed), "distill", {"corpus": "c"}, resume=False)
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=512.0)
        for step in (1, 2):
            model(torch.randn(5, 4)).square().sum().backward()
            optimizer.step()
            checkpoints.save_best(run, step, 100 + step / 3, model)
            checkpoints.save_checkpoint(run, step, model, optimizer, scaler)

    def read(path: Path) -> Any:
        model, best = (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)) for _ in range(2))
        optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
        run = runs.start_run(path, Recipe(), "distill", {"corpus": "c"}, resume=True)
        step = checkpoints.load_checkpoint(run, model, optimizer, scaler)
        checkpoints.load_best(run, best)
        return (
            step,
            model.state_dict(),
            optimizer.state_dict(),
            scaler.state_dict(),
            checkpoints.best_value(run),
            best.state_dict(),
        )

    return Artifact(
        folder / "made", folder / "other", read, is_part=lambda path: path.parent.name in ("best", "step-2")
    )


def fusion_kind(folder: Path) -> Artifact:
    return _saved(folder, lambda seed: make_teacher(CAPTIONS, seed))


def dual_kind(folder: Path) -> Artifact:
    def made(seed: int) -> models.DualEncoder:
        torch.manual_seed(seed)
        dual = make_wide_dual(CAPTIONS)
        with torch.no_grad():
            dual.network.text_projection.weight += seed
        return dual

    return _saved(folder, made)


def _saved(folder: Path, make: Callable[[int], models.Model]) -> Artifact:
    """A saved model, as a reference of any command."""
    for name, seed in (("made", 0), ("other", 1)):
        models.save(make(seed), folder / name)

    def read(path: Path) -> Any:
        models.check_ref(path)
        model = models.load(path)
        texts = model.preprocess.texts(CAPTIONS[:2])
        return model.digest, model.settings, model.state_dict(), texts.input_ids, model.preprocess.image_size_px

    return Artifact(folder / "made", folder / "other", read)


def _write_runs(folder: Path) -> None:
    """Two finished runs with logs, an evaluation, a cascade and a benchmark."""
    corpus = make_corpus(folder / "corpus", TEXTS)
    for name, seed in (("made", 0), ("other", 1)):
        run = folder / name
        finish_run(write_run(run, seed=seed, is_measured=True))
        write_evaluation(run, corpus, scores_of(corpus, 2, seed))
        write_evaluation(
            run,
            corpus,
            scores_of(corpus, 3, seed),
            prefix="cascade-",
            **cascade_changes("teacher", {5: (300.0, 4.0 + seed)}),
        )
        write_bench(run, "teacher", student_ms=2.0 + seed)


def report_kind(folder: Path) -> Artifact:
    _write_runs(folder)
    return Artifact(folder / "made", folder / "other", lambda path: report.read_report([path], data=folder / "corpus"))


def model_card_kind(folder: Path) -> Artifact:
    _write_runs(folder)
    names = ("run.json", "result.json", "bench.json")
    return Artifact(
        folder / "made",
        folder / "other",
        lambda path: history.read_history(str(path)),
        is_part=lambda path: path.name in names,
    )


def comparison_kind(folder: Path) -> Artifact:
    _write_runs(folder)
    names = (
        "result.json",
        "ranks.parquet",
        "top.parquet",
        "cascade.json",
        "cascade-ranks.parquet",
        "cascade-top.parquet",
    )

    def read(path: Path) -> Any:
        systems = compare.read_systems([str(path)]) + compare.read_systems([f"{path}:cascade"])
        return [(run.table, run.evaluation, run.top) for system in systems for run in system.runs]

    return Artifact(folder / "made", folder / "other", read, is_part=lambda path: path.name in names)


RUN_KINDS: dict[str, Callable[[Path], Artifact]] = {
    "checkpoint": checkpoint_kind,
    "saved fusion model": fusion_kind,
    "saved dual model": dual_kind,
    "run in a report": report_kind,
    "run in a model card": model_card_kind,
    "evaluation in a comparison": comparison_kind,
}
