"""The workers of a Ray cluster, which is started here, compute what one process computes, to the bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
import torch
from encoders import make_pair
from made_caches import build_cache
from paths import ROOT, SUPPORT
from tiny import contents, make_wide_dual

from dcdctl.core import models
from dcdctl.core.engines import Compute, EngineChoice
from dcdctl.core.progress import Advance
from dcdctl.core.scoring import CorpusSource, dual_embedder, embed_all, open_or_build
from dcdctl.core.teacher import CandidateConfig, TextCacheJob, build, cache_texts

BATCH_SIZE = 64


@pytest.fixture
def cluster(monkeypatch) -> Iterator[tuple[Compute, list[str]]]:
    """Two workers of a cluster that `--engine ray` starts for this process, as where none runs; what a user is
    told."""
    num_threads = torch.get_num_threads()
    # Of the workers, which import what tests share.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(SUPPORT)]))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("dcdctl.core.engines.cluster.num_cores", lambda: 2 * num_threads)
    choice = EngineChoice(engine="ray", workers=2, cpus=num_threads)
    said: list[str] = []
    yield Compute.chosen(choice, device="cpu", batch_size=BATCH_SIZE, say=said.append), said
    ray.shutdown()


# Ray leaves files of its logs open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cluster_gives_the_bytes_of_one_process(cluster, corpus, teacher, tmp_path, monkeypatch):
    # One test, because a cluster and its workers take most of its time.
    cluster, said = cluster
    # Many tasks, so that some are left for the worker that is killed, however late the bar moves.
    monkeypatch.setattr(build, "IMAGES_PER_SHARD", 1)
    alone = Compute(batch_size=BATCH_SIZE)
    killed: list[int] = []

    @contextmanager
    def killing_one(label: str, *, total: int | None, unit: str) -> Iterator[Advance]:
        """A bar that ends a worker when it first moves."""

        def advance(count: int) -> None:
            if label == "score" and count and not killed:
                killed.append(ray.get(cluster.engine.actors[0].handle.describe.remote())["process"])
                os.kill(killed[0], signal.SIGKILL)

        yield advance

    config = CandidateConfig(per_query=4)
    one = build_cache(corpus, teacher, tmp_path / "alone", config, compute=alone)
    other = build_cache(corpus, teacher, tmp_path / "cluster", config, compute=cluster, track=killing_one)
    assert contents(other.folder) == contents(one.folder)
    assert killed
    assert said[0].startswith("no Ray cluster runs here: one was started")
    assert any("1 worker lost" in line for line in said)

    pair = make_pair(corpus.captions, tmp_path / "pair")
    stored = [open_or_build(tmp_path / f"features-{i}", corpus, pair, how) for i, how in enumerate((alone, cluster))]
    assert stored[0].parts == stored[1].parts

    dual = make_wide_dual(corpus.captions)
    embedder, source = dual_embedder(dual, torch.device("cpu")), CorpusSource(corpus, dual.preprocess)
    here, there = (embed_all(embedder, source, how) for how in (alone, cluster))
    assert torch.equal(here.images_ID, there.images_ID)
    assert torch.equal(here.texts_TD, there.texts_TD)

    models.save(dual, tmp_path / "dual")
    (tmp_path / "texts.txt").write_text("\n".join(sorted(set(corpus.captions))))
    cached = []
    for name, how in (("texts-alone", alone), ("texts-cluster", cluster)):
        job = TextCacheJob(out=tmp_path / name, teacher=str(tmp_path / "dual"), texts=[str(tmp_path / "texts.txt")])
        cached.append(contents(cache_texts(job, compute=how).folder))
    assert cached[0] == cached[1]
