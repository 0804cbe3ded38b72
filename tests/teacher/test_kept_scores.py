"""The scores of a shard that a killed run has asked a teacher for: none is asked for again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_caches import build_cache
from tiny import contents

from dcdctl.core.engines import Compute
from dcdctl.core.errors import StaleError
from dcdctl.core.scoring.kept_scores import KeptScores
from dcdctl.core.teacher import CandidateConfig, build

CONFIG, COMPUTE = CandidateConfig(per_query=4), Compute(batch_size=32)


@pytest.fixture(autouse=True)
def _two_shards(monkeypatch):
    monkeypatch.setattr(build, "IMAGES_PER_SHARD", 16)


@pytest.fixture
def asked(teacher, monkeypatch) -> list[int]:
    """The number of pairs of each call of the teacher."""
    sizes: list[int] = []
    score = teacher.score_pairs

    def counted(images, texts, image_ix, text_ix):
        sizes.append(len(image_ix))
        return score(images, texts, image_ix, text_ix)

    monkeypatch.setattr(teacher, "score_pairs", counted)
    return sizes


def interrupt(teacher, monkeypatch, *, before_call: int) -> Callable[[], None]:
    """Let the teacher end the program at one of its calls; the result takes this back."""
    score, calls = teacher.score_pairs, iter(range(10**6))

    def score_or_die(*arguments):
        if next(calls) == before_call:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(teacher, "score_pairs", score_or_die)
    return lambda: monkeypatch.setattr(teacher, "score_pairs", score)


@pytest.fixture
def whole(corpus, teacher, tmp_path) -> Path:
    """A cache that nothing interrupted."""
    build_cache(corpus, teacher, tmp_path / "whole", CONFIG, compute=COMPUTE)
    return tmp_path / "whole"


def test_a_run_that_was_killed_often_asks_for_each_pair_once(corpus, teacher, whole, asked, tmp_path, monkeypatch):
    for before_call in (1, 2, 5):
        take_back = interrupt(teacher, monkeypatch, before_call=before_call)
        with pytest.raises(KeyboardInterrupt):
            build_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=COMPUTE)
        take_back()
    assert [path.name for path in (tmp_path / "cache").glob("asked-*")] in (["asked-00000.bin"], ["asked-00001.bin"])
    cache = build_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=COMPUTE)
    assert sum(asked) == cache.num_pairs
    assert contents(tmp_path / "cache") == contents(whole)


def test_what_is_cut_short_or_damaged_is_asked_for_again_and_nothing_else(
    corpus, teacher, whole, asked, tmp_path, monkeypatch
):
    take_back = interrupt(teacher, monkeypatch, before_call=3)
    with pytest.raises(KeyboardInterrupt):
        build_cache(corpus, teacher, tmp_path / "killed", CONFIG, compute=COMPUTE)
    take_back()
    before, first = sum(asked), asked[0]
    kept = (tmp_path / "killed" / "asked-00000.bin").read_bytes()
    assert len(kept) == 3 * (16 + 8 + 4 * 32 + 8)
    record = len(kept) // 3
    for damaged, num_kept in (
        (kept[:-1], 2),
        (kept[: record + 20], 1),
        (kept[:40] + bytes([kept[40] ^ 1]) + kept[41:], 0),
        (kept[: record + 5] + bytes([kept[record + 5] ^ 1]) + kept[record + 6 :], 1),
        (b"", 0),
    ):
        folder = shutil.copytree(tmp_path / "killed", tmp_path / "cache")
        (folder / "asked-00000.bin").write_bytes(damaged)
        asked.clear()
        cache = build_cache(corpus, teacher, folder, CONFIG, compute=COMPUTE)
        assert sum(asked) == cache.num_pairs - num_kept * first
        assert contents(folder) == contents(whole)
        shutil.rmtree(folder)
    assert before == 3 * first


def test_scores_that_are_not_finite_are_not_kept(corpus, teacher, whole, tmp_path, monkeypatch):
    score = teacher.score_pairs
    monkeypatch.setattr(teacher, "score_pairs", lambda *arguments: score(*arguments) * np.nan)
    with pytest.raises(StaleError, match="not finite"):
        build_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=COMPUTE)
    monkeypatch.setattr(teacher, "score_pairs", score)
    build_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=COMPUTE)
    assert contents(tmp_path / "cache") == contents(whole)


def test_a_batch_of_other_pairs_is_asked_for(tmp_path):
    kept = KeptScores.open(tmp_path / "kept")
    first, second = np.array([0, 1]), np.array([2, 3])
    assert kept.score(first, second, lambda: torch.tensor([0.5, 1.5])).tolist() == [0.5, 1.5]
    again = KeptScores.open(tmp_path / "kept")
    assert again.score(first, second, lambda: torch.zeros(2)).tolist() == [0.5, 1.5]
    assert again.score(second, first, lambda: torch.zeros(2)).tolist() == [0.0, 0.0]
    assert again.score(first[:1], second[:1], lambda: torch.ones(1)).tolist() == [1.0]
