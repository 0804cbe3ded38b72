"""The summary of a teacher cache, checked on a cache written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import make_corpus
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.artifacts import Build, seal_of
from dcdctl.core.teacher import cache, cache_format, summary
from dcdctl.core.teacher.cache_format import CACHE, Pairs
from dcdctl.core.teacher.candidate_lists import IMAGE_CANDIDATE, POSITIVE, TEXT_CANDIDATE

BOTH = TEXT_CANDIDATE | IMAGE_CANDIDATE
PAIRS = [
    (0, 0, 5.0, POSITIVE),
    (0, 1, 4.0, POSITIVE),
    (0, 2, 6.0, BOTH),
    (1, 0, -1.0, IMAGE_CANDIDATE),
    (1, 2, 2.0, POSITIVE),
    (2, 0, 5.0, BOTH),
    (2, 3, 7.0, POSITIVE),
]
"""Image, caption, score, role. Caption 2 of image 1 outranks the captions of image 0; image 2 ties with the image of
caption 0."""
CAPTIONS = [["a dog", "a <b>dog</b>"], ["a cat & a dog"], ["a bird"]]


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path / "corpus", CAPTIONS)


@pytest.fixture
def folder(tmp_path, corpus):
    folder = tmp_path / "cache"
    folder.mkdir()
    image, text, score, role = (np.array(column) for column in zip(*PAIRS, strict=True))
    cache_format.write_pairs(folder / "pairs-00000.parquet", Pairs(image, text, score.astype(np.float32), role))
    plan = {
        "format": 3,
        "corpus": corpus.fingerprint,
        "images": 3,
        "captions": 4,
        "images_per_shard": 256,
        "candidates": {"kind": "hard", "relative_margin": None},
    }
    build = Build(folder, plan, CACHE)
    build.note()
    name = "pairs-00000.parquet"
    build.seal(
        {"format": 3, "dropped": {"equal text": 2}, "files": {name: seal_of(folder / name, pairs=len(PAIRS))}}, [name]
    )
    return folder


def test_the_summary_equals_the_one_worked_out_by_hand(folder):
    result = summary.summarize_cache(cache.read_cache(folder), num_hardest=2)
    assert (result.num_images, result.num_captions, result.num_pairs, result.dropped) == (3, 4, 7, {"equal text": 2})
    # Images 0 and 2 have negatives: 6 beats 5, 5 does not beat 7.
    assert result.text_retrieval == summary.DirectionSummary(
        num_queries=2, num_negatives=2, positive_first=0.5, outranking=0.5
    )
    # Caption 0 (positive 5) has images 1 (-1) and 2 (5, a tie); caption 2 (positive 2) has image 0 (6).
    assert result.image_retrieval == summary.DirectionSummary(
        num_queries=2, num_negatives=3, positive_first=0.0, outranking=pytest.approx(2 / 3)
    )
    assert (sum(result.positives), sum(result.negatives)) == (4, 3)
    assert (result.edges[0], result.edges[-1]) == (-1.0, 7.0)
    assert result.hardest == [
        summary.Negative(image=0, text=2, score=6.0, own_text=0, own_score=5.0),
        summary.Negative(image=2, text=0, score=5.0, own_text=3, own_score=7.0),
    ]


def test_the_spread_equals_the_one_worked_out_by_hand(folder):
    """Lists of images: 5 6, 4 6, 7 5. Lists of captions: 5 -1 5, 2 6. The own pair is first."""
    found = summary.summarize_cache(cache.read_cache(folder)).spread
    assert found.num_lists == 5
    assert found.std == pytest.approx((0.5 + 1 + 1 + 8**0.5 + 2) / 5)
    # Two scores that differ by d have the entropy ln(1 + e^-d) + d / (1 + e^d): 0.5822, 0.3653 twice, 0.0901. For 5 -1
    # 5 it is 0.7018. The largest possible ones are ln 2 and ln 3.
    assert found.entropy_share == pytest.approx((0.8399 + 2 * 0.5271 + 0.1300 + 0.6388) / 5, abs=1e-4)


def run_cli(*arguments):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)


def test_inspect_prints_json_with_captions(folder, corpus):
    result = run_cli(folder, "--data", corpus.folder, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["num_pairs"] == 7
    assert document["hardest"][0]["caption"] == "a cat & a dog"
    assert document["hardest"][0]["own_caption"] == "a dog"
    assert document["hardest"][0]["image_id"] == "i0"
    assert document["spread"]["num_lists"] == 5


def test_inspect_shows_tables_with_captions(folder, corpus):
    result = run_cli(folder, "--data", corpus.folder)
    assert result.exit_code == 0, result.stderr
    assert "text retrieval: 2 queries, 2 negatives: positive first 50.0%, negatives above it 50.00%" in result.stdout
    assert "removed: 2 by equal text" in result.stdout
    assert "deviation 1.47 within a list, entropy 53% of the largest possible at temperature 1" in result.stdout
    temperature = summary.summarize_cache(cache.read_cache(folder)).spread.temperature
    assert f"loss.temperature: {temperature:g}, where the entropy is 50% of the largest possible" in result.stdout
    assert "a cat & a dog" in result.stdout


def test_another_corpus_is_refused(folder, tmp_path):
    other = make_corpus(tmp_path / "other", CAPTIONS[::-1])
    result = run_cli(folder, "--data", other.folder)
    assert result.exit_code == 1
    assert "was made with another corpus" in result.stderr
