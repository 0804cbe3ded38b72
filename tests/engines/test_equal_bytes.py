"""Several processes of this machine compute what one computes, to the bit."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import make_pair
from families import FAMILIES, late, with_noise
from image_files import png, put
from made_caches import build_cache
from tiny import contents, make_wide_dual

from dcdctl.core import models
from dcdctl.core.data import PrepareOptions, find_manifest, prepare_corpus
from dcdctl.core.engines import Compute, EngineChoice
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import EvalOptions, evaluate_model
from dcdctl.core.progress import unsaid
from dcdctl.core.scoring import open_or_build
from dcdctl.core.scoring import pairs as of_pairs
from dcdctl.core.search import IndexJob, build_index, part_files
from dcdctl.core.search import embed as of_index
from dcdctl.core.teacher import CandidateConfig, TextCacheJob, build, cache_texts, text_cache

BATCH_SIZE = 64
FEW = CandidateConfig(per_query=4)


@pytest.fixture(scope="module")
def ways() -> tuple[Compute, Compute]:
    """This process, and two others that are kept for the tests of a module; with as many threads each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        choice = EngineChoice.parse("processes:2")
    alone = Compute(batch_size=BATCH_SIZE, workers=1)
    return alone, Compute.chosen(choice, device="cpu", batch_size=BATCH_SIZE, workers=1, say=unsaid)


@pytest.fixture(autouse=True)
def _many_tasks(monkeypatch):
    monkeypatch.setattr(build, "IMAGES_PER_SHARD", 5)
    monkeypatch.setattr(text_cache, "TEXTS_PER_PART", 60)
    monkeypatch.setattr(part_files, "ROWS_PER_PART", 7)
    monkeypatch.setattr(of_index, "MOST_SENT_IMAGES", 2)


def test_a_cache_of_pairs(ways, corpus, teacher, tmp_path):
    one, two = (build_cache(corpus, teacher, tmp_path / str(i), FEW, compute=how) for i, how in enumerate(ways))
    assert len(list(one.folder.glob("pairs-*"))) == 7
    assert contents(two.folder) == contents(one.folder)


@pytest.mark.parametrize("kind", ["dual", "late"])
def test_a_cache_of_a_teacher_whose_states_are_kept(ways, corpus, tmp_path, kind):
    dual = make_wide_dual(corpus.captions)
    models.save(dual if kind == "dual" else with_noise(late(dual)), tmp_path / "model")
    scorer = models.load_scorer(str(tmp_path / "model"))
    one, two = (build_cache(corpus, scorer, tmp_path / str(i), FEW, compute=how) for i, how in enumerate(ways))
    assert contents(two.folder) == contents(one.folder)


def test_a_cache_by_a_teacher_that_groups_pairs_by_image_in_parts_of_a_shard(ways, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "IMAGES_PER_SHARD", 20)
    monkeypatch.setattr(of_pairs, "IMAGE_CHUNK", 8)
    matcher = FAMILIES["BLIP"](corpus.captions, tmp_path)
    assert matcher.groups_by_image
    sent: list[tuple[int, int]] = []
    alone, two = ways

    class Counted:
        sends_tasks = True

        def map(self, tasks: Any, make_worker: Any, advance: Any) -> Any:
            return two.engine.map(noting(tasks), make_worker, advance)

    def noting(tasks: Any) -> Any:
        for task in tasks:
            sent.append((task.shard, task.num_parts))
            yield task

    one = build_cache(corpus, matcher, tmp_path / "one", FEW, compute=alone)
    other = build_cache(corpus, matcher, tmp_path / "two", FEW, compute=replace(two, engine=Counted()))
    # The longest shard first: of 20 images, and of 12.
    assert sent == [(0, 3)] * 3 + [(1, 2)] * 2
    assert contents(other.folder) == contents(one.folder)


def test_a_cache_of_texts(ways, corpus, tmp_path):
    models.save(make_wide_dual(corpus.captions), tmp_path / "dual")
    (tmp_path / "texts.txt").write_text("\n".join(sorted(set(corpus.captions))))
    places = {"teacher": str(tmp_path / "dual"), "texts": [str(tmp_path / "texts.txt")]}
    one, two = (cache_texts(TextCacheJob(out=tmp_path / str(i), **places), compute=how) for i, how in enumerate(ways))
    assert len(one.part_sizes) > 1
    assert contents(two.folder) == contents(one.folder)


def test_stored_features(ways, corpus, tmp_path):
    pair = make_pair(corpus.captions, tmp_path / "pair")
    one, two = (open_or_build(tmp_path / f"features-{i}", corpus, pair, how) for i, how in enumerate(ways))
    assert two.parts == one.parts


@pytest.mark.parametrize("kind", ["dual", "late"])
def test_an_index_of_vectors_or_tokens(ways, corpus, tmp_path, kind):
    dual = make_wide_dual(corpus.captions)
    models.save(dual if kind == "dual" else with_noise(late(dual, is_pooled=False)), tmp_path / "model")
    photos = put(tmp_path / "photos", {f"{seed:02}.png": png(seed) for seed in range(17)} | {"no.png": b"no image"})
    found = []
    for number, how in enumerate(ways):
        job = IndexJob(model=str(tmp_path / "model"), images=photos, out=tmp_path / str(number))
        found.append((build_index(job, compute=how).skipped, contents(tmp_path / str(number))))
    assert found[0] == found[1]


def test_numbers_of_an_evaluation(ways, corpus, teacher):
    for model in (teacher, make_wide_dual(corpus.captions)):
        one, two = (evaluate_model(model, corpus, options=EvalOptions(compute=how)) for how in ways)
        assert (two.text_retrieval, two.image_retrieval) == (one.text_retrieval, one.image_retrieval)
        for rows in ("text_ranks", "image_ranks"):
            assert np.array_equal(getattr(two.table, rows), getattr(one.table, rows))


def test_a_corpus(ways, tmp_path):
    source = find_manifest("scenes", ["counts.train=9", "counts.val=2", "counts.test=2", "side_px=16"])
    for number, how in enumerate(ways):
        options = PrepareOptions(workers=1, shard_size=4)
        prepare_corpus(source, tmp_path / str(number), options=options, engine=how.engine)
    assert contents(tmp_path / "1") == contents(tmp_path / "0")


def test_a_disk_that_fills_up_in_the_middle_keeps_what_was_written(ways, corpus, teacher, tmp_path, monkeypatch):
    one, two = ways
    expected = build_cache(corpus, teacher, tmp_path / "one", FEW, compute=one).folder
    write, written = build.write_pairs, []

    def fill_up(path: Path, pairs: Any) -> None:
        if not np.isnan(pairs.score).any():
            written.append(path)
            if len(written) == 3:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, pairs)

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_pairs", fill_up)
        with pytest.raises(InputError, match=r"there is no room left for .*; make room and run the same"):
            build_cache(corpus, teacher, tmp_path / "two", FEW, compute=two)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("pairs-*.parquet")}
    assert len(kept) == 2
    again = build_cache(corpus, teacher, tmp_path / "two", FEW, compute=two).folder
    assert contents(again) == contents(expected)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in again.iterdir()}.items()
