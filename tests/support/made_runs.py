"""Evaluation folders as `dcdctl eval`, `bench` and `distill` leave them, from made-up scores: nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_fakes import bench
from evaluations import document_of, reseal, write_json, write_metrics, write_ranks
from numpy.typing import NDArray

from dcdctl.core import artifacts, files
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus
from dcdctl.core.models import saved_folder
from dcdctl.core.training import recipe

NUM_TOP = 10


def scores_of(corpus: Corpus, skill: float, seed: int = 0) -> NDArray[np.float32]:
    """(I, T): noise, and `skill` more for pairs that belong together."""
    noise_IT = np.random.default_rng(seed).normal(size=(corpus.num_images, corpus.num_captions))
    return (noise_IT + skill * own_pairs(corpus)).astype(np.float32)


def own_pairs(corpus: Corpus) -> NDArray[np.bool_]:
    return corpus.caption_image[None, :] == np.arange(corpus.num_images)[:, None]


def write_evaluation(
    folder: Path, corpus: Corpus, scores_IT: NDArray[np.float32], *, model: str = "", prefix: str = "", **changes: Any
) -> Path:
    """ranks.parquet, top.parquet and result.json, or a cascade's with the prefix "cascade-"; `changes` are of the
    document."""
    folder.mkdir(parents=True, exist_ok=True)
    own_IT = own_pairs(corpus)
    sides = {"text": (scores_IT, own_IT), "image": (scores_IT.T, own_IT.T)}
    best = {direction: np.where(own, scores, -np.inf).max(axis=1) for direction, (scores, own) in sides.items()}
    ranks = {
        direction: 1 + ((scores >= best[direction][:, None]) & ~own).sum(axis=1)
        for direction, (scores, own) in sides.items()
    }
    scores = np.concatenate([best["text"], best["image"]]).astype(np.float32)
    write_ranks(folder / f"{prefix}ranks.parquet", corpus, ranks["text"], ranks["image"], score=scores)
    pd.concat([_top(direction, *sides[direction]) for direction in sides], ignore_index=True).to_parquet(
        folder / f"{prefix}top.parquet", index=False
    )
    document = {**document_of(corpus, ranks["text"], ranks["image"]), "model": model or str(folder), **changes}
    write_json(folder / ("cascade.json" if prefix else "result.json"), document)
    reseal(folder)
    return folder


def _top(direction: str, scores_QG: NDArray[np.float32], is_positive_QG: NDArray[np.bool_]) -> pd.DataFrame:
    order_QK = np.argsort(-scores_QG, axis=1, kind="stable")[:, :NUM_TOP]
    num_queries, k = order_QK.shape
    return pd.DataFrame(
        {
            "direction": direction,
            "query": np.repeat(np.arange(num_queries), k),
            "place": np.tile(np.arange(1, k + 1, dtype=np.int16), num_queries),
            "candidate": order_QK.ravel(),
            "score": np.take_along_axis(scores_QG, order_QK, axis=1).ravel(),
            "is_own": np.take_along_axis(is_positive_QG, order_QK, axis=1).ravel(),
        }
    )


def cascade_changes(reranker: str, depths: dict[int, tuple[float, float]]) -> dict[str, Any]:
    """What is changed in the document of a cascade; for each depth RSUM and milliseconds."""
    rows = [
        {
            "depth": depth,
            "text_retrieval": {},
            "image_retrieval": {},
            "rsum": rsum,
            "ms_per_query": ms,
            "pairs": 9,
            "on_front": True,
        }
        for depth, (rsum, ms) in depths.items()
    ]
    protocol = {
        "name": "whole",
        "folds": 1,
        "kind": "cascade",
        "depth": max(depths),
        "features": None,
        "ties": "count against the positive",
    }
    return {"reranker": reranker, "depths": rows, "protocol": protocol}


def write_run(folder: Path, name: str = "demo-dual", *, seed: int = 0, is_measured: bool = False) -> Path:
    """run.json and the metrics of thirty steps."""
    folder.mkdir(parents=True, exist_ok=True)
    config = recipe.load_recipe(name, [f"seed={seed}"])
    facts = {
        "what": "distill",
        "recipe": to_table(config),
        "inputs": {"corpus": 64 * "c", "split": "train", "cache": None, "start": 64 * "a", "precision": "float32"},
        "seed": seed,
        "command": ["dcdctl", "distill", name, "--data", "data/my scenes", "--out", str(folder)],
        "versions": {"dcdctl": "0.1.0", "torch": "2.6"},
    }
    write_json(folder / "run.json", facts)
    lines = []
    for step in range(0, 31, 10):
        parts = {term: weight * 2.0 / (1 + step) for term, weight in config.loss.terms.items()}
        line = {"step": step, "loss": sum(parts.values()), **parts, "lr": 1e-3 * (1 - step / 40), "seconds": 0.1}
        lines.append({**line, "val_rsum": 100.0 + step} if is_measured else line)
    write_metrics(folder, lines)
    return folder


def finish_run(folder: Path) -> Path:
    """The dcdctl.json of a model of the run, over the files that are in its folder; returns the folder of the run."""
    (folder / "model").mkdir(exist_ok=True)
    digest = files.digest_of(artifacts.read_document(folder / "run.json"))
    saved_folder.seal(folder / "model", {artifacts.RUN: digest, artifacts.FINGERPRINT: 64 * "f"})
    return folder


def write_bench(folder: Path, teacher_model: str, *, student_ms: float = 2.0, teacher_ms: float = 100.0) -> None:
    """bench.json, with a query among 1,000 images as given."""
    document = bench(gallery_sizes=(100, 1000), reference_gallery=1000).to_json()
    document |= {"student_model": str(folder), "teacher_model": teacher_model}
    document["machine"] = {"cpu": "Made-up CPU", "device": "cpu", "threads": 2, "torch": "2.6"}
    for side, ms, parameters in (("teacher", teacher_ms, 4_000_000), ("student", student_ms, 1_500_000)):
        document[side]["footprint"]["num_parameters"] = parameters
        for query in document[side]["queries"]:
            query |= {"seconds": ms * query["num_images"] / 1e6, "extrapolated": side == "teacher"}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", document)


def write_demo(folder: Path, corpus: Corpus) -> list[Path]:
    """A teacher that is no run, two students, a cascade of them, and a baseline; the teacher's folder first, the
    baseline's last."""
    teacher = write_evaluation(folder / "teacher", corpus, scores_of(corpus, 6), model="scenes-vilt")
    dual, fusion, alone = (folder / name for name in ("dual", "fusion", "dual-alone"))
    for number, (run, skill, recipe_name) in enumerate(
        [(dual, 1.5, "demo-dual"), (fusion, 3, "demo-fusion"), (alone, 1, "demo-dual-alone")], start=1
    ):
        write_run(run, recipe_name)
        write_evaluation(run, corpus, scores_of(corpus, skill, number))
        # No two timings of a teacher agree.
        write_bench(run, "scenes-vilt", student_ms=number, teacher_ms=80 + 20 * number)
    # Alone, the dual takes 2 ms among these images, and 1 ms among the 1,000 of its benchmark.
    depths = {0: (200.0, 2.0), 5: (300.0, 4.0), 10: (350.0, 7.5)}
    write_evaluation(dual, corpus, scores_of(corpus, 2.5, 9), prefix="cascade-", **cascade_changes(str(fusion), depths))
    return [teacher, dual, fusion, alone]
