"""The teacher's scores on disk: whole, the same every time, and only for what they were made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import contents, make_teacher, run_script

from dcdctl.core import candidates, scoring, teacher_cache
from dcdctl.core.candidates import CandidateConfig
from dcdctl.core.errors import MissingError, StaleError
from dcdctl.core.features import CorpusSource
from dcdctl.core.teacher_cache import ScoringOptions

CONFIG = CandidateConfig(per_query=4)
OPTIONS = ScoringOptions(batch_size=64)


@pytest.fixture(scope="module")
def sharded():
    """Small shards, so that a tiny corpus has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_cache, "IMAGES_PER_SHARD", 5)
        yield


@pytest.fixture(scope="module")
def folder(corpus, teacher, tmp_path_factory, sharded) -> Path:
    """A finished cache of seven shards. Not to be written to."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    teacher_cache.build(corpus, teacher, folder, CONFIG, options=OPTIONS)
    return folder


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_cache_holds_the_teachers_score_of_every_candidate(corpus, teacher, folder):
    cache = teacher_cache.read(folder, corpus=corpus, teacher=teacher.digest)
    image, text = candidates.draw(corpus, CONFIG).pairs(corpus.caption_image)
    assert cache.num_pairs == len(image)
    expected = scoring.score_pairs(teacher, CorpusSource(corpus, teacher.preprocess), image, text, device=torch.device("cpu"), batch_size=8)
    np.testing.assert_allclose(cache.lookup(image, text), expected, atol=1e-5)
    assert (np.diff(cache.image_P * 1000 + cache.text_P) > 0).all()
    drawn = candidates.draw(corpus, CONFIG)
    assert np.array_equal(cache.candidates.texts_of_image.values, drawn.texts_of_image.values)
    assert np.array_equal(cache.candidates.images_of_text.offsets, drawn.images_of_text.offsets)
    assert np.array_equal(cache.candidates.images_of_text.values, drawn.images_of_text.values)


def test_lookup_is_by_index_and_nan_where_there_is_no_score(folder):
    cache = teacher_cache.read(folder)
    order = np.random.default_rng(0).permutation(cache.num_pairs)[:60].reshape(6, 10)
    assert np.array_equal(cache.lookup(cache.image_P[order], cache.text_P[order]), cache.score_P[order])
    scored = set(zip(cache.image_P.tolist(), cache.text_P.tolist(), strict=True))
    everything = np.indices((32, 160)).reshape(2, -1)
    is_nan = np.isnan(cache.lookup(everything[0], everything[1]))
    assert is_nan.sum() == 32 * 160 - cache.num_pairs
    assert all((pair in scored) != missing for pair, missing in zip(zip(*everything.tolist(), strict=True), is_nan, strict=True))


def test_a_caption_beyond_the_last_is_no_pair_of_the_next_image(folder):
    cache = teacher_cache.read(folder)
    with pytest.raises(ValueError, match=r"\[0, 160\)"):
        cache.lookup(np.array([0]), np.array([160]))


def test_made_twice_the_bytes_are_the_same(corpus, teacher, folder, tmp_path, sharded):
    teacher_cache.build(corpus, teacher, tmp_path / "again", CONFIG, options=OPTIONS)
    assert contents(tmp_path / "again") == contents(folder)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
    teacher_cache.build(corpus, teacher, tmp_path / "again", CONFIG, options=OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()} == before


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tiny import kill_often, make_teacher
from dcdctl.core import teacher_cache
from dcdctl.core.candidates import CandidateConfig
from dcdctl.core.corpus import Corpus
teacher_cache.IMAGES_PER_SHARD = 2
corpus = Corpus.open(Path(sys.argv[1]), "train")
def work(folder):
    options = teacher_cache.ScoringOptions(batch_size=64)
    teacher_cache.build(corpus, make_teacher(corpus.captions), folder, CandidateConfig(per_query=12), options=options)
print(kill_often(work, Path(sys.argv[2]), Path(sys.argv[3]), num_kills=6))
"""


def test_killed_again_and_again_it_ends_with_the_same_bytes(scenes_corpus_dir, tmp_path):
    killed = run_script(SCRIPT, scenes_corpus_dir, tmp_path / "whole", tmp_path / "killed")
    assert int(killed) >= 3
    assert len(contents(tmp_path / "whole")) == 3 + 16
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_killed_before_the_plan_had_its_name_it_starts_all_the_same(corpus, teacher, folder, tmp_path, sharded):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "plan.json.77.partial").write_text("{")
    teacher_cache.build(corpus, teacher, tmp_path / "cache", CONFIG, options=OPTIONS)
    assert contents(tmp_path / "cache") == contents(folder)


def test_an_unfinished_cache_is_refused(copied, tmp_path):
    (copied / "cache.json").unlink()
    with pytest.raises(MissingError, match="an unfinished teacher cache; run `dcdctl cache-teacher`"):
        teacher_cache.read(copied)
    with pytest.raises(MissingError, match="holds no teacher cache"):
        teacher_cache.read(tmp_path / "absent")


def test_a_cache_of_another_corpus_or_teacher_is_refused_with_both_named(corpus, teacher, folder):
    few = corpus.subset(10)
    with pytest.raises(StaleError, match=f"another corpus \\({corpus.fingerprint[:12]}, not {few.fingerprint[:12]}\\)"):
        teacher_cache.read(folder, corpus=few)
    other = make_teacher(corpus.captions, seed=1)
    with pytest.raises(StaleError, match=f"another teacher \\({teacher.digest[:12]}, not {other.digest[:12]}\\)"):
        teacher_cache.read(folder, corpus=corpus, teacher=other.digest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": 10}, "another corpus"),
        ({"teacher": 1}, "another teacher"),
        ({"config": CandidateConfig(per_query=5)}, r"another candidates .*\"per_query\": 4.*not .*\"per_query\": 5"),
        ({"options": ScoringOptions(precision="bfloat16")}, r"another precision \(float32, not bfloat16\)"),
    ],
)
def test_a_folder_of_another_plan_is_not_gone_on_with(corpus, teacher, copied, sharded, change, message):
    before = contents(copied)
    other = corpus.subset(change["corpus"]) if "corpus" in change else corpus
    scorer = make_teacher(corpus.captions, seed=1) if "teacher" in change else teacher
    with pytest.raises(StaleError, match=message):
        teacher_cache.build(other, scorer, copied, change.get("config", CONFIG), options=change.get("options", OPTIONS))
    assert contents(copied) == before


def test_a_folder_with_other_things_is_left_alone(corpus, teacher, tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(StaleError, match="not a teacher cache; name an empty or a new folder"):
        teacher_cache.build(corpus, teacher, tmp_path, CONFIG)
    assert contents(tmp_path) == {"thesis.txt": b"dear"}


def test_a_missing_shard_is_named_and_comes_back_as_the_hint_says(corpus, teacher, folder, copied, sharded):
    (copied / "pairs-00002.parquet").unlink()
    with pytest.raises(MissingError, match=r"lacks pairs-00002\.parquet; delete pairs-00002\.parquet and cache\.json"):
        teacher_cache.read(copied)
    (copied / "cache.json").unlink()
    teacher_cache.build(corpus, teacher, copied, CONFIG, options=OPTIONS)
    assert contents(copied) == contents(folder)


@pytest.mark.parametrize("name", ["pairs-00001.parquet", "candidates.parquet"])
def test_a_damaged_file_is_named(copied, name):
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(StaleError, match=rf"{name} is damaged: its SHA-256 is"):
        teacher_cache.read(copied)
    (copied / name).write_bytes(data[:-1])
    with pytest.raises(StaleError, match=rf"{name} is damaged: it has {len(data) - 1} bytes, not {len(data)}"):
        teacher_cache.read(copied)


def test_a_cache_of_another_format_is_refused(copied):
    plan = json.loads((copied / "plan.json").read_text())
    (copied / "plan.json").write_text(json.dumps({**plan, "format": 2}))
    with pytest.raises(StaleError, match="is of format 2, this dcdctl reads format 1"):
        teacher_cache.read(copied)


def test_a_teacher_in_train_mode_is_scored_without_dropout(corpus, teacher, folder, tmp_path, sharded):
    teacher.train()
    teacher_cache.build(corpus, teacher, tmp_path / "cache", CONFIG, options=OPTIONS)
    assert contents(tmp_path / "cache") == contents(folder)


def test_half_precision_is_honoured_and_recorded(corpus, teacher, folder, tmp_path):
    options = ScoringOptions(batch_size=64, precision="bfloat16")
    cache = teacher_cache.build(corpus, teacher, tmp_path / "cache", CONFIG, options=options)
    assert cache.plan["precision"] == "bfloat16"
    assert 1e-5 < np.abs(cache.score_P - teacher_cache.read(folder).score_P).max() < 1


def test_the_metadata_says_what_scores_depend_on(folder, teacher):
    plan, whole = (json.loads((folder / name).read_text()) for name in ("plan.json", "cache.json"))
    assert (plan["split"], plan["images"], plan["captions"], plan["teacher"]) == ("train", 32, 160, teacher.digest)
    assert (plan["image_size_px"], plan["max_text_len"], plan["precision"]) == (64, 40, "float32")
    assert whole["versions"]["torch"] == torch.__version__
    assert set(whole["files"]) == {path.name for path in folder.glob("*.parquet")}
