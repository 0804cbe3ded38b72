"""One of every kind of artifact in one folder."""

from __future__ import annotations

from pathlib import Path

import torch
from encoders import make_pair
from made_caches import build_cache
from made_index import unit_vectors, write_index
from made_runs import scores_of, write_bench, write_evaluation
from tiny import make_corpus, make_teacher, make_wide_dual
from torch import nn

from dcdctl.core import models
from dcdctl.core.scoring import open_or_build
from dcdctl.core.teacher import CandidateConfig
from dcdctl.core.training import checkpoints, loggers, runs
from dcdctl.core.training.recipe import Recipe

TEXTS = [[f"image {image} caption {k}" for k in range(2)] for image in range(12)]


def make_run(folder: Path, corpus_folder: Path) -> Path:
    """A finished run with two checkpoints, best weights, logs, an evaluation and a benchmark."""
    run = runs.start_run(folder, Recipe(), "distill", {"corpus": "c"}, resume=False)
    network = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    with loggers.open_logs(run, 0) as log:
        for step in (1, 2):
            log(step, {"loss": 1 / step})
            checkpoints.save_best(run, step, 100.0 + step, network)
            checkpoints.save_checkpoint(run, step, network, optimizer, torch.amp.GradScaler("cpu"))
        log(3, {"loss": 0.1})
    runs.finish(run, make_wide_dual([text for texts in TEXTS for text in texts]))
    write_bench(folder, "teacher")
    return folder


def make_all(root: Path) -> Path:
    """A corpus, a cache, features, indexes, a run with an evaluation, and a model."""
    corpus = make_corpus(root / "data" / "corpus", TEXTS)
    teacher = make_teacher(corpus.captions)
    build_cache(corpus, teacher, root / "data" / "cache", CandidateConfig(per_query=3))
    pair = make_pair(corpus.captions, root.parent / f"{root.name}-encoders")
    open_or_build(root / "data" / "features", corpus, pair)
    dual = make_wide_dual(corpus.captions)
    for index in ("index", "codes"):
        models.save(dual, root / index / "model")
    write_index(root / "index", [unit_vectors(8, dim=8)], removed=[3], fingerprint=dual.digest)
    codes = {"flat_up_to": 0, "segment_rows": 5}
    write_index(root / "codes", [unit_vectors(8, dim=8)], fingerprint=dual.digest, **codes)
    make_run(root / "run", corpus.folder)
    write_evaluation(root / "run", corpus, scores_of(corpus, 2))
    models.save(dual, root / "models" / "dual")
    return root
