"""Teacher caches on disk: complete, reproducible, and refused for another corpus, teacher or plan."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from forks import run_forked
from made_caches import build_cache, plan_cache
from tiny import contents, make_corpus, make_teacher

from dcdctl.core import artifacts, models
from dcdctl.core.engines import Compute
from dcdctl.core.errors import MissingError, StaleError
from dcdctl.core.integrity import verify
from dcdctl.core.models.preprocess import vilt_image_processor
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.scoring import pairs as scoring_pairs
from dcdctl.core.teacher import (
    CandidateConfig,
    build,
    cache_format,
    candidate_lists,
    candidates,
    make,
    summary,
)
from dcdctl.core.teacher import cache as teacher_cache

CONFIG = CandidateConfig(per_query=4)
COMPUTE = Compute(batch_size=64)


@pytest.fixture(scope="module")
def sharded():
    """Small shards, so that a tiny corpus has several of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "IMAGES_PER_SHARD", 5)
        yield


@pytest.fixture(scope="module")
def folder(corpus, teacher, tmp_path_factory, sharded) -> Path:
    """A finished cache of seven shards, read-only; tests that write use `copied`."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    build_cache(corpus, teacher, folder, CONFIG, compute=COMPUTE)
    return folder


def at_size(corpus, image_size_px: int) -> models.ViltScorer:
    """The teacher with another image size."""
    teacher = make_teacher(corpus.captions)
    teacher.preprocess = dataclasses.replace(teacher.preprocess, image_processor=vilt_image_processor(image_size_px))
    return teacher


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_cache_holds_the_teachers_score_of_every_candidate(corpus, teacher, folder):
    cache = teacher_cache.read_cache(folder, corpus=corpus, teacher=teacher.digest)
    image, text, _ = candidates.draw_candidates(corpus, CONFIG).pairs(corpus.caption_image)
    assert cache.num_pairs == len(image)
    expected = scoring_pairs.score_pairs(
        teacher, CorpusSource(corpus, teacher.preprocess), image, text, compute=Compute(batch_size=24)
    )
    np.testing.assert_allclose(cache.lookup(image, text), expected, atol=1e-5)
    assert (np.diff(cache.image_P * 1000 + cache.text_P) > 0).all()
    drawn = candidates.draw_candidates(corpus, CONFIG)
    assert np.array_equal(cache.candidates.texts_of_image.values, drawn.texts_of_image.values)
    assert np.array_equal(cache.candidates.images_of_text.offsets, drawn.images_of_text.offsets)
    assert np.array_equal(cache.candidates.images_of_text.values, drawn.images_of_text.values)


def made_cache(folder: Path, pairs: dict[tuple[int, int], tuple[float, int]], size: tuple[int, int], **margins: float):
    """A function that opens a cache of these pairs, image and caption -> score and role, in shards of two images."""
    plan, seal = {"images": size[0], "captions": size[1], "images_per_shard": 2}, {}
    plan["candidates"] = {"relative_margin": None, **margins}
    for shard, images in enumerate(cache_format.shards_of(plan)):
        inside = [(image, text, *pair) for (image, text), pair in sorted(pairs.items()) if image in images]
        columns = [np.array([row[column] for row in inside]) for column in range(4)]
        name = cache_format.pairs_name(shard)
        cache_format.write_pairs(folder / name, cache_format.Pairs(*columns))
        seal[name] = artifacts.seal_of(folder / name, pairs=len(inside))
    return lambda: teacher_cache.TeacherCache(folder, plan, {"files": seal})


def test_an_unscored_pair_never_gets_the_score_of_the_next_image(tmp_path):
    """Each image is scored with captions of its own alone, so that past its end lie the next image's; image 2 has no
    pair at all."""
    scores = {(0, 0): 0.5, (0, 1): 1.5, (1, 2): 2.5, (1, 4): 3.5, (3, 5): 4.5, (4, 6): 5.5, (4, 7): 6.5}
    opened = made_cache(tmp_path, {pair: (score, candidate_lists.POSITIVE) for pair, score in scores.items()}, (5, 8))
    expected = np.array([[scores.get((i, t), np.nan) for t in range(8)] for i in range(5)], dtype=np.float32)
    np.testing.assert_array_equal(opened().lookup(*np.indices((5, 8))), expected)
    # Each pair in a cache that has read no other shard.
    for i, t in ((0, 2), (1, 5), (2, 5), (3, 6), (4, 0), (1, 0), (3, 4)):
        assert np.isnan(opened().lookup(np.array([i]), np.array([t]))).all()


TEXT, IMAGE = candidate_lists.TEXT_CANDIDATE, candidate_lists.IMAGE_CANDIDATE


def test_the_margin_by_hand(tmp_path):
    # Image 0 has captions 0 and 1, of mean 3; image 1 has caption 2, image 2 caption 3. Half of their sigmoids: 0.476,
    # 0.4999 and 0.134, the sigmoids of logits of -0.095, 0 and -1.86.
    pairs = {(0, 0): (2.0, 1), (0, 1): (4.0, 1), (1, 2): (9.0, 1), (2, 3): (-1.0, 1)}
    # A pair may be near for its image and not for its caption.
    pairs |= {
        (0, 2): (-0.05, TEXT | IMAGE),
        (0, 3): (-2.0, TEXT | IMAGE),
        (1, 0): (-0.2, TEXT | IMAGE),
        (1, 1): (0.1, TEXT),
        (2, 1): (-0.5, IMAGE),
    }
    cache = made_cache(tmp_path, pairs, (3, 4), relative_margin=0.5)()
    assert [cache.candidates.texts_of_image[image].tolist() for image in range(3)] == [[3], [0], []]
    # For caption 0 the mean is 2, of which half the sigmoid is 0.44: a logit of -0.24.
    assert [cache.candidates.images_of_text[text].tolist() for text in range(4)] == [[], [2], [0], [0]]
    assert cache.candidates.dropped == {"margin": 3}


def test_the_margin_tells_large_logits_apart(tmp_path):
    """In float32 the sigmoid of each of these logits is 1."""
    pairs = {
        (0, 0): (20.0, 1),
        (1, 1): (30.0, 1),
        (2, 2): (30.0, 1),
        (0, 1): (17.5, TEXT),
        (0, 2): (19.0, TEXT),
        (1, 0): (27.5, TEXT),
    }
    cache = made_cache(tmp_path, pairs, (3, 3), relative_margin=1e-8)()
    assert [cache.candidates.texts_of_image[image].tolist() for image in range(3)] == [[1], [], []]


def test_a_caption_index_out_of_range_is_an_error(folder):
    cache = teacher_cache.read_cache(folder)
    with pytest.raises(ValueError, match=r"\[0, 160\)"):
        cache.lookup(np.array([0]), np.array([160]))


def test_two_builds_give_the_same_bytes_and_a_finished_cache_is_not_rewritten(
    corpus, teacher, folder, tmp_path, sharded
):
    build_cache(corpus, teacher, tmp_path / "again", CONFIG, compute=COMPUTE)
    assert contents(tmp_path / "again") == contents(folder)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
    build_cache(corpus, teacher, tmp_path / "again", CONFIG, compute=COMPUTE)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()} == before


SCRIPT = """
import sys
from collections.abc import Iterable
from pathlib import Path
import torch
torch.set_num_threads(1)
from kills import kill_often
from made_caches import build_cache
from tiny import make_teacher
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.teacher import CandidateConfig, build
build.IMAGES_PER_SHARD = 2
corpus = Corpus.open(Path(sys.argv[1]), "train")
def work(folder):
    compute = Compute(batch_size=64)
    build_cache(corpus, make_teacher(corpus.captions), folder, CandidateConfig(per_query=4), compute=compute)
kill_often(work, Path(sys.argv[2]), Path(sys.argv[3]), num_kills=4)
"""


def test_a_build_killed_repeatedly_resumes_to_the_same_bytes(scenes_corpus_dir, tmp_path):
    run_forked(SCRIPT, scenes_corpus_dir, tmp_path / "uninterrupted", tmp_path / "killed")
    assert len(contents(tmp_path / "uninterrupted")) == 3 + 16
    assert contents(tmp_path / "killed") == contents(tmp_path / "uninterrupted")


def test_a_build_killed_while_it_wrote_the_plan_starts_again(corpus, teacher, folder, tmp_path, sharded):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "plan.json.77.partial").write_text("{")
    build_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=COMPUTE)
    assert contents(tmp_path / "cache") == contents(folder)


@pytest.fixture(scope="module")
def unfinished(corpus, teacher, tmp_path_factory, sharded) -> Path:
    """A cache whose build was killed when it had written three shards of seven; tests copy it."""
    folder, write = tmp_path_factory.mktemp("unfinished") / "cache", build.write_pairs

    def write_or_die(path, pairs):
        if path.name.startswith("pairs-00003"):
            raise KeyboardInterrupt
        write(path, pairs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "write_pairs", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            build_cache(corpus, teacher, folder, CONFIG, compute=COMPUTE)
    return folder


@pytest.mark.parametrize("name", ["planned-00003.parquet", "pairs-00001.parquet", "items.parquet", "dropped.json"])
def test_a_file_of_an_unfinished_cache_that_is_damaged_is_named(corpus, teacher, unfinished, tmp_path, name):
    path = shutil.copytree(unfinished, tmp_path / "cache") / name
    path.write_bytes(path.read_bytes().replace(b"0", b"1") if name == "dropped.json" else path.read_bytes()[:-1] + b"x")
    with pytest.raises(StaleError, match=rf"{name} is damaged: .*; delete"):
        build_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=COMPUTE)


def test_an_unfinished_cache_is_refused(copied, tmp_path):
    (copied / "cache.json").unlink()
    with pytest.raises(
        MissingError, match=r"the teacher cache in .* is not finished; run `dcdctl cache-teacher` again .*: it resumes"
    ):
        teacher_cache.read_cache(copied)
    with pytest.raises(
        MissingError, match=r"there is no teacher cache in .*absent \(no cache.json\); make one with `dcdctl cache-te"
    ):
        teacher_cache.read_cache(tmp_path / "absent")


def test_a_cache_of_another_corpus_or_teacher_is_refused_and_the_error_names_both(corpus, teacher, folder):
    few = corpus.subset(10)
    with pytest.raises(StaleError, match=f"another corpus \\({corpus.fingerprint[:12]}, not {few.fingerprint[:12]}\\)"):
        teacher_cache.read_cache(folder, corpus=few)
    other = make_teacher(corpus.captions, seed=1)
    with pytest.raises(StaleError, match=f"another teacher \\({teacher.digest[:12]}, not {other.digest[:12]}\\)"):
        teacher_cache.read_cache(folder, corpus=corpus, teacher=other.digest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": 10}, "another corpus"),
        ({"teacher": 1}, "another teacher"),
        ({"image_size": 96}, r"another image_size_px \(64, not 96\)"),
        ({"config": CandidateConfig(per_query=5)}, r"another candidates\.per_query \(4, not 5\)"),
        ({"compute": Compute(precision="bfloat16")}, r"another precision \(float32, not bfloat16\)"),
    ],
)
def test_a_build_with_another_plan_does_not_resume(corpus, teacher, copied, sharded, change, message):
    before = contents(copied)
    other = corpus.subset(change["corpus"]) if "corpus" in change else corpus
    scorer = at_size(corpus, change["image_size"]) if "image_size" in change else teacher
    scorer = make_teacher(corpus.captions, seed=1) if "teacher" in change else scorer
    with pytest.raises(StaleError, match=message):
        build_cache(other, scorer, copied, change.get("config", CONFIG), compute=change.get("compute", COMPUTE))
    assert contents(copied) == before


@pytest.mark.parametrize("name", ["pairs-00002.parquet", "items.parquet"])
def test_a_missing_file_is_named_and_the_hint_restores_it(name, corpus, teacher, folder, copied, sharded):
    (copied / name).unlink()
    with pytest.raises(
        MissingError, match=rf"{name} is missing; delete cache\.json there and run `dcdctl cache-teacher` again"
    ):
        teacher_cache.read_cache(copied)
    (copied / "cache.json").unlink()
    build_cache(corpus, teacher, copied, CONFIG, compute=COMPUTE)
    assert contents(copied) == contents(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(copied, bad):
    path, seal = copied / "pairs-00001.parquet", artifacts.read_document(copied / "cache.json")
    pairs = cache_format.read_pairs(path)
    score = pairs.score.copy()
    score[3] = bad
    cache_format.write_pairs(path, dataclasses.replace(pairs, score=score))
    seal["files"][path.name] = artifacts.seal_of(path, pairs=len(pairs))
    artifacts.write_document(copied / "cache.json", seal)
    cache = teacher_cache.read_cache(copied)
    with pytest.raises(
        StaleError, match=rf"pairs-00001\.parquet is damaged: 1 of its {len(pairs)} scores are not finite; delete"
    ):
        assert cache.score_P is None


def test_a_teacher_in_train_mode_is_scored_without_dropout(corpus, teacher, folder, tmp_path, sharded):
    teacher.train()
    build_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=COMPUTE)
    assert contents(tmp_path / "cache") == contents(folder)


def test_bfloat16_is_used_and_recorded(corpus, teacher, folder, tmp_path):
    compute = Compute(batch_size=64, precision="bfloat16")
    cache = build_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=compute)
    assert cache.plan["precision"] == "bfloat16"
    assert 1e-5 < np.abs(cache.score_P - teacher_cache.read_cache(folder).score_P).max() < 1


def test_the_metadata_records_what_scores_depend_on(folder, teacher):
    plan, seal = (json.loads((folder / name).read_text()) for name in ("plan.json", "cache.json"))
    assert (plan["split"], plan["images"], plan["captions"], plan["teacher"]) == ("train", 32, 160, teacher.digest)
    assert (plan["image_size_px"], plan["max_text_len"], plan["precision"]) == (64, 40, "float32")
    assert seal["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(seal["files"]) == {path.name for path in folder.glob("*.parquet")}


class PairCounter:
    """Counts the pairs that a teacher scores."""

    def __init__(self, teacher, monkeypatch):
        self.num_pairs, score = 0, teacher.score_pairs

        def counted(images, texts, image_ix, text_ix):
            self.num_pairs += len(image_ix)
            return score(images, texts, image_ix, text_ix)

        monkeypatch.setattr(teacher, "score_pairs", counted)


def test_an_extended_cache_scores_only_the_new_pairs(corpus, teacher, folder, tmp_path, sharded, monkeypatch):
    old = teacher_cache.read_cache(folder)
    more = CandidateConfig(per_query=9, seed=1)
    counter = PairCounter(teacher, monkeypatch)
    cache = build_cache(corpus, teacher, tmp_path / "cache", more, compute=COMPUTE, extend=folder)
    assert counter.num_pairs == cache.num_pairs - old.num_pairs > 0
    assert np.array_equal(cache.lookup(old.image_P, old.text_P), old.score_P)
    drawn = candidates.draw_candidates(corpus, more)
    for query in range(corpus.num_images):
        expected = set(drawn.texts_of_image[query].tolist()) | set(old.candidates.texts_of_image[query].tolist())
        assert set(cache.candidates.texts_of_image[query].tolist()) == expected


def test_extending_a_grown_corpus_matches_images_and_captions_by_content(
    corpus, teacher, tmp_path, sharded, monkeypatch
):
    few, compute = corpus.subset(20), Compute(batch_size=64)
    build_cache(few, teacher, tmp_path / "few", CONFIG, compute=compute)
    larger = ReversedCorpus(corpus)
    counter = PairCounter(teacher, monkeypatch)
    cache = build_cache(larger, teacher, tmp_path / "grown", CONFIG, compute=compute, extend=tmp_path / "few")
    old = teacher_cache.read_cache(tmp_path / "few")
    image, text = larger.image_of[old.image_P], larger.text_of[old.text_P]
    assert np.array_equal(cache.lookup(image, text), old.score_P)
    assert counter.num_pairs == cache.num_pairs - old.num_pairs


class ReversedCorpus:
    """A corpus with its images in reverse order."""

    def __init__(self, corpus):
        self.corpus, self.folder, self.split, self.is_pool = corpus, corpus.folder, corpus.split, False
        self.num_images, self.num_captions = corpus.num_images, corpus.num_captions
        self.fingerprint = "reversed" + corpus.fingerprint
        self.order = list(reversed(range(corpus.num_images)))
        texts = [list(corpus.captions_of(image)) for image in self.order]
        self.captions = [corpus.captions[text] for captions in texts for text in captions]
        self.caption_image = np.repeat(np.arange(self.num_images), [len(captions) for captions in texts])
        self.image_of, self.text_of = (
            np.argsort(self.order),
            np.argsort([text for captions in texts for text in captions]),
        )

    def images(self, image_ix):
        return self.corpus.images([self.order[int(image)] for image in image_ix])

    def image_bytes(self, image):
        return self.corpus.image_bytes(self.order[image])

    def captions_of(self, image):
        first, last = np.searchsorted(self.caption_image, [image, image + 1]).tolist()
        return range(first, last)


PAIRS = [[f"image {i} shows {word}" for word in ("this", "that")] for i in range(6)]
ALL = CandidateConfig(per_query=99)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Six images with two captions each; image 3 is a copy of image 0."""
    return make_corpus(tmp_path_factory.mktemp("twins") / "corpus", PAIRS, copies={3: 0})


@pytest.fixture(scope="module")
def all_scored(twins, teacher, tmp_path_factory):
    """A cache of every pair, made without looking for duplicates: those of images 0 and 3 are negatives."""
    return build_cache(twins, teacher, tmp_path_factory.mktemp("all") / "cache", ALL)


def lists_of(cache: teacher_cache.TeacherCache) -> tuple[list[list[int]], list[list[int]]]:
    """The candidates of every image, and of every caption."""
    lists = cache.candidates.texts_of_image, cache.candidates.images_of_text
    return tuple([part[i].tolist() for i in range(len(part))] for part in lists)  # type: ignore[return-value]


def test_an_extended_cache_keeps_scores_of_duplicates_and_not_their_roles(twins, teacher, all_scored, tmp_path):
    assert all_scored.candidates.texts_of_image[0].tolist() == list(range(2, 12))
    cache = build_cache(
        twins, teacher, tmp_path / "cache", dataclasses.replace(ALL, duplicate_bits=0), extend=all_scored.folder
    )
    not_of = {0: {0, 1, 6, 7}, 3: {0, 1, 6, 7}}
    texts = [
        [text for text in range(12) if text not in not_of.get(image, {2 * image, 2 * image + 1})] for image in range(6)
    ]
    images = [
        [image for image in range(6) if text not in not_of.get(image, {2 * image, 2 * image + 1})] for text in range(12)
    ]
    assert lists_of(cache) == (texts, images)
    assert cache.num_pairs == 72
    assert np.array_equal(cache.lookup(*np.ogrid[:6, :12]), all_scored.lookup(*np.ogrid[:6, :12]))
    found = summary.summarize_cache(cache)
    # 6 images x 12 captions without 12 positives and 4 pairs of duplicates
    assert (sum(found.positives), sum(found.negatives)) == (12, 56)
    assert found.dropped["near-duplicate images"] == 8


def test_an_extended_cache_has_candidates_of_the_new_directions_alone(twins, teacher, all_scored, tmp_path):
    only = CandidateConfig(per_query=1, directions=("image",))
    cache = build_cache(twins, teacher, tmp_path / "cache", only, extend=all_scored.folder)
    assert cache.candidates.texts_of_image.lengths.tolist() == [0] * 6
    assert cache.candidates.images_of_text.lengths.tolist() == [5] * 12
    assert cache.num_pairs == all_scored.num_pairs


@pytest.mark.parametrize(
    ("config", "change"), [(CandidateConfig(per_query=2), {"directions": ("image",)}), (ALL, {"duplicate_bits": 0})]
)
def test_an_extended_cache_with_pairs_that_are_no_candidates_any_more_is_intact(
    config, change, twins, teacher, tmp_path
):
    old = build_cache(twins, teacher, tmp_path / "old", config)
    config = dataclasses.replace(config, **change)
    cache = build_cache(twins, teacher, tmp_path / "cache", config, extend=old.folder)
    assert (cache.role_P == 0).any()
    assert verify(cache.folder).problems == []


@pytest.mark.parametrize(("kind", "are_drawn"), [("random", True), ("blocks", True), ("lexical", False)])
def test_a_cache_knows_whether_its_other_images_were_drawn(kind, are_drawn, corpus, teacher, tmp_path):
    config = dataclasses.replace(CONFIG, kind=kind, block_size=8)
    cache = build_cache(corpus, teacher, tmp_path / "cache", config, compute=COMPUTE)
    assert cache.has_drawn_pairs == are_drawn
    assert teacher_cache.TeacherEnsemble([cache, cache]).has_drawn_pairs == are_drawn


def test_a_margin_that_drops_is_counted_in_the_seal(corpus, teacher, tmp_path):
    config = dataclasses.replace(CONFIG, relative_margin=0.1)
    cache = build_cache(corpus, teacher, tmp_path / "cache", config, compute=COMPUTE)
    assert cache.seal["dropped"]["margin"] == cache.candidates.dropped["margin"] > 0


def test_the_margin_of_an_extended_cache_holds_for_old_candidates(twins, teacher, all_scored, tmp_path):
    none = CandidateConfig(per_query=1, relative_margin=0.999999)
    cache = build_cache(twins, teacher, tmp_path / "cache", none, extend=all_scored.folder)
    assert cache.candidates.texts_of_image.lengths.sum() == cache.candidates.images_of_text.lengths.sum() == 0
    assert cache.num_pairs == all_scored.num_pairs


def test_a_text_that_a_new_caption_makes_equal_is_no_candidate_of_the_extended_cache(
    twins, teacher, all_scored, tmp_path
):
    grown = make_corpus(tmp_path / "corpus", [PAIRS[0], [*PAIRS[1], PAIRS[2][1].upper()], *PAIRS[2:]])
    cache = build_cache(grown, teacher, tmp_path / "cache", CandidateConfig(per_query=1), extend=all_scored.folder)
    # Image 1 has captions 2, 3 and 4; captions 5 and 6 are those of image 2, and 4 equals 6.
    assert {4, 6}.isdisjoint(cache.candidates.texts_of_image[1].tolist())
    assert 1 not in cache.candidates.images_of_text[6]
    assert 5 in cache.candidates.texts_of_image[1]
    assert cache.lookup(np.array([1]), np.array([6])) == all_scored.lookup(np.array([1]), np.array([5]))


@pytest.mark.parametrize("change", ["teacher", "precision", "image_size_px"])
def test_a_cache_with_another_teacher_precision_or_image_size_is_not_extended(
    change, corpus, teacher, folder, tmp_path, sharded
):
    scorer = {"teacher": make_teacher(corpus.captions, seed=1), "image_size_px": at_size(corpus, 96)}.get(
        change, teacher
    )
    compute = Compute(batch_size=64, precision="bfloat16" if change == "precision" else "float32")
    with pytest.raises(StaleError, match=f"was made with another {change}"):
        build_cache(corpus, scorer, tmp_path / "cache", CONFIG, compute=compute, extend=folder)


def test_an_estimate_writes_no_shard_and_its_plan_may_be_replaced(corpus, teacher, folder, tmp_path, sharded):
    job = plan_cache(corpus, teacher, tmp_path / "cache", CandidateConfig(per_query=7), compute=COMPUTE)
    estimate = make.estimate_cost(job)
    assert estimate.num_pairs == estimate.num_to_score > 32 * 7
    assert estimate.pairs_per_s > 0
    assert estimate.seconds == pytest.approx(estimate.num_to_score / estimate.pairs_per_s)
    assert not list((tmp_path / "cache").glob("pairs-*"))
    build_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=COMPUTE)
    assert contents(tmp_path / "cache") == contents(folder)


def test_an_estimate_of_an_unfinished_cache_counts_the_pairs_that_have_a_score(
    corpus, teacher, folder, unfinished, tmp_path, sharded
):
    shutil.copytree(unfinished, tmp_path / "cache")
    estimate = make.estimate_cost(plan_cache(corpus, teacher, tmp_path / "cache", CONFIG, compute=COMPUTE))
    finished = teacher_cache.read_cache(folder)
    assert estimate.num_pairs == finished.num_pairs
    assert estimate.num_to_score == (finished.image_P >= 15).sum()  # three shards of five images are scored


def test_verify_scores_pairs_again_and_finds_a_wrong_score(corpus, teacher, folder, copied, sharded):
    assert make.verify_scores(folder, corpus, teacher, 50, compute=COMPUTE) < 1e-5
    path, seal = copied / "pairs-00002.parquet", artifacts.read_document(copied / "cache.json")
    pairs = cache_format.read_pairs(path)
    wrong = cache_format.Pairs(pairs.image, pairs.text, pairs.score + np.float32(0.01), pairs.role)
    path.unlink()
    cache_format.write_pairs(path, wrong)
    seal["files"][path.name] = artifacts.seal_of(path, pairs=len(wrong))
    artifacts.write_document(copied / "cache.json", seal)
    with pytest.raises(StaleError, match=r"image 1\d with caption \d+ scores -?\d+\.\d+, and the cache has"):
        make.verify_scores(copied, corpus, teacher, 1000, compute=COMPUTE)
    with pytest.raises(StaleError, match="another precision"):
        make.verify_scores(folder, corpus, teacher, 5, compute=Compute(precision="bfloat16"))


@pytest.mark.parametrize("listed", ["text", {"items.parquet": "/dev/zero"}])
def test_a_document_of_a_stranger_that_lists_no_files_is_refused(copied, listed):
    path = copied / "cache.json"
    artifacts.write_document(path, {**artifacts.read_document(path), "files": listed})
    with pytest.raises(StaleError, match=r"cache\.json does not list the size and the SHA-256 of the files beside it"):
        teacher_cache.read_cache(copied)
