"""Caches of pools: candidates without positives, their scores, and their reuse for a larger pool."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoders import save_text
from forks import run_forked
from made_caches import build_cache
from task_work import plan, rows_of
from tiny import contents, make_corpus, make_pool, make_teacher, make_wide_dual, write_pool
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.artifacts import read_document, seal_of, write_document
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, CorpusError, ModelError
from dcdctl.core.integrity import verify
from dcdctl.core.scoring import CorpusSource, PairWorker, embed_with_model, score_pairs
from dcdctl.core.teacher import (
    CacheJob,
    CandidateConfig,
    Recheck,
    build,
    cache_facts,
    cache_scores,
    candidates,
    measure_spread,
    miners,
    read_cache,
    read_caches,
    recheck,
    spread,
    summarize_cache,
    take_scores,
)

COMPUTE = Compute(batch_size=64)
TEXTS = [[f"a {word} of thing {image}" for word in ("view", "photo")[: 1 + image % 2]] for image in range(12)]
CONFIG = CandidateConfig(per_query=4)


@pytest.fixture(scope="module", autouse=True)
def _sharded():
    """Small shards, so that a tiny pool has three of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "IMAGES_PER_SHARD", 5)
        yield


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Corpus:
    """Twelve images and 18 texts that belong to none of them."""
    return make_pool(tmp_path_factory.mktemp("pool") / "pool", TEXTS, has_colors=True)


@pytest.fixture(scope="module")
def reranker(pool) -> models.ViltScorer:
    return make_teacher(pool.captions)


@pytest.fixture(scope="module")
def folder(pool, reranker, tmp_path_factory) -> Path:
    """A finished cache; read-only."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    build_cache(pool, reranker, folder, CONFIG, compute=COMPUTE)
    return folder


@pytest.fixture(scope="module")
def dual(pool, tmp_path_factory) -> Path:
    """A saved dual encoder whose vectors differ."""
    folder = tmp_path_factory.mktemp("dual") / "dual"
    models.save(make_wide_dual(pool.captions), folder)
    return folder


def with_images(pool: Corpus, folder: Path, columns: pa.Table | None = None, **paths: str) -> Corpus:
    """A pool with other paths of its images, or columns."""
    folder.mkdir()
    document = read_document(pool.folder / "corpus.json", hint="")
    for name in document["splits"]["train"]["shards"]:
        table = pq.read_table(pool.folder / name["file"])
        images = [
            image | {"path": paths.get(f"i{i}", image["path"])} for i, image in enumerate(table["image"].to_pylist())
        ]
        place = table.schema.get_field_index("image")
        table = table.set_column(place, table.schema.field(place), pa.array(images, table.schema.field(place).type))
        pq.write_table(table, folder / name["file"])
        name |= seal_of(folder / name["file"], rows=len(table))
    name = document["splits"]["train"]["texts"]["file"]
    (folder / name).write_bytes((pool.folder / name).read_bytes())
    if columns is not None:
        pq.write_table(columns, folder / "columns-train.parquet")
        document["columns"] = {"train": {"file": "columns-train.parquet", **seal_of(folder / "columns-train.parquet")}}
    write_document(folder / "corpus.json", document)
    return Corpus.open(folder, "train")


def lists_of(drawn: candidates.Candidates, direction: Direction) -> list[list[int]]:
    lists = drawn.lists(direction)
    return [lists[query].tolist() for query in range(len(lists))]


def test_a_cache_of_a_pool_has_the_score_of_every_candidate_and_no_positive(pool, reranker, folder):
    cache = read_cache(folder, corpus=pool, teacher=reranker.digest)
    drawn = candidates.draw_candidates(pool, CONFIG)
    expected = {(image, text) for image, texts in enumerate(lists_of(drawn, Direction.TEXT)) for text in texts}
    assert len(expected) == 12 * 4
    expected |= {(image, text) for text, images in enumerate(lists_of(drawn, Direction.IMAGE)) for image in images}
    assert set(zip(cache.image_P.tolist(), cache.text_P.tolist(), strict=True)) == expected
    assert set(cache.role_P.tolist()) == {2, 4, 6}
    source = CorpusSource(pool, reranker.preprocess)
    scores = score_pairs(reranker, source, cache.image_P, cache.text_P.astype(np.int64), compute=COMPUTE)
    np.testing.assert_allclose(cache.lookup(*cache.scored_pairs), scores, atol=1e-5)
    for direction in Direction:
        assert lists_of(cache.candidates, direction) == lists_of(drawn, direction)
    assert list(verify(folder).problems) == []


SCRIPT = """
import sys
from pathlib import Path
from kills import kill_often
from made_caches import build_cache
from tiny import make_teacher
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.teacher import CandidateConfig, build
build.IMAGES_PER_SHARD = 2
pool = Corpus.open(Path(sys.argv[1]), "train")
def work(folder):
    build_cache(
        pool, make_teacher(pool.captions), folder, CandidateConfig(per_query=4), compute=Compute(batch_size=64)
    )
kill_often(work, Path(sys.argv[2]), Path(sys.argv[3]), num_kills=4)
"""


def test_a_cache_of_a_pool_that_is_killed_repeatedly_resumes_to_the_same_bytes(pool, tmp_path):
    run_forked(SCRIPT, pool.folder, tmp_path / "uninterrupted", tmp_path / "killed")
    assert len(contents(tmp_path / "uninterrupted")) == 3 + 6
    assert contents(tmp_path / "killed") == contents(tmp_path / "uninterrupted")


class PairCounter:
    """Counts the pairs that a teacher scores."""

    def __init__(self, monkeypatch) -> None:
        self.num_pairs, start = 0, PairWorker.start

        def counted(worker, pairs):
            self.num_pairs += len(pairs.image_P)
            return start(worker, pairs)

        monkeypatch.setattr(PairWorker, "start", counted)


def test_a_larger_pool_reuses_the_scores_of_equal_images_and_texts(pool, reranker, folder, tmp_path, monkeypatch):
    # Other numbers of all texts: the permutation of the larger pool is another one.
    larger = make_pool(tmp_path / "larger", [*TEXTS, ["new 1", "new 2"], ["new 3"]], has_colors=True)
    assert larger.image_bytes(3) == pool.image_bytes(3)
    assert larger.captions[: pool.num_captions] != pool.captions
    counter = PairCounter(monkeypatch)
    cache = build_cache(larger, reranker, tmp_path / "cache", CONFIG, compute=COMPUTE, extend=folder)
    old = read_cache(folder)
    texts = np.array([larger.captions.index(pool.captions[text]) for text in old.text_P.tolist()])
    np.testing.assert_array_equal(cache.lookup(old.image_P, texts), old.score_P)
    assert counter.num_pairs == cache.num_pairs - old.num_pairs
    drawn = candidates.draw_candidates(larger, CONFIG)
    for direction in Direction:
        ours = lists_of(cache.candidates, direction)
        assert all(set(some) <= set(own) for some, own in zip(lists_of(drawn, direction), ours, strict=True))


def test_a_pool_of_a_captioned_corpus_reuses_its_scores_without_their_positives(reranker, tmp_path, monkeypatch):
    captioned = make_corpus(tmp_path / "captioned", TEXTS, has_colors=True)
    pool = make_pool(tmp_path / "pool", TEXTS, has_colors=True)
    all_pairs = replace(CONFIG, per_query=99)
    build_cache(captioned, reranker, tmp_path / "old", all_pairs, compute=COMPUTE)
    counter = PairCounter(monkeypatch)
    cache = build_cache(pool, reranker, tmp_path / "new", all_pairs, compute=COMPUTE, extend=tmp_path / "old")
    assert (counter.num_pairs, cache.num_pairs) == (0, 12 * 18)
    assert set(cache.role_P.tolist()) == {6}


def test_equal_texts_of_a_pool_are_candidates_like_any(reranker, tmp_path):
    pool = make_pool(tmp_path / "pool", [["same text", "Same  text!"], ["same text"], ["other"]])
    cache = build_cache(pool, reranker, tmp_path / "cache", replace(CONFIG, per_query=99), compute=COMPUTE)
    assert lists_of(cache.candidates, Direction.TEXT) == [[0, 1, 2, 3]] * 3
    assert cache.seal["dropped"] == {"same image": 0, "equal text": 0}


def test_the_tasks_of_a_pool_give_a_cache_of_other_scores(pool, folder, tmp_path):
    own = read_cache(folder)
    job = CacheJob(data=pool.folder, out=tmp_path / "cache", candidates=CONFIG)
    num_pairs, _ = plan(job)
    assert num_pairs == own.num_pairs
    rows = rows_of(job).to_pylist()
    number_of = {number: index for index, number in enumerate(pool.caption_ids.tolist())}
    lines = []
    for row in rows:
        text = number_of[row["caption_id"]]
        assert row["caption"] == pool.captions[text]
        score = own.lookup(np.array([pool.image_ids.index(row["image_id"])]), np.array([text]))
        lines.append({"image_id": row["image_id"], "caption_id": row["caption_id"], "score": 2 * float(score[0]) + 1})
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cache = take_scores(job, [str(tmp_path / "scores.jsonl")], "elsewhere")
    np.testing.assert_allclose(cache.score_P, 2 * own.score_P + 1, rtol=1e-6)
    np.testing.assert_array_equal(cache.role_P, own.role_P)
    # Their standardized scores are equal; the average has the mean of both means and of both standard deviations.
    both = read_caches([own, cache])
    assert both is not None
    assert len(both.scored_pairs[0]) == own.num_pairs
    np.testing.assert_allclose(both.lookup(*both.scored_pairs), 1.5 * own.score_P + 0.5, atol=1e-4)


def test_verify_scores_pairs_of_a_pool_again(pool, reranker, folder, tmp_path):
    models.save(reranker, tmp_path / "teacher")
    job = Recheck(scores=20, data=pool.folder, teacher=tmp_path / "teacher", device="cpu")
    assert recheck(folder, job).largest_difference < 1e-4


def test_the_spread_of_a_pool_is_that_of_lists_of_candidates(folder):
    cache = read_cache(folder)
    per_query = [cache.candidates.lists(direction) for direction in Direction]
    stds = [
        np.std(cache.lookup(*direction.query_first(np.full(len(lists[query]), query), lists[query])))
        for direction, lists in zip(Direction, per_query, strict=True)
        for query in range(len(lists))
    ]
    measured = measure_spread(cache)
    assert measured.num_lists == 12 + 18
    assert measured.std == pytest.approx(np.mean(stds), rel=1e-5)
    assert measured.temperature is not None


def test_a_list_of_a_pool_has_as_many_pairs_as_one_with_an_own_pair(pool, reranker, tmp_path):
    many = replace(CONFIG, per_query=99, directions=(Direction.TEXT,))
    cache = build_cache(pool, reranker, tmp_path / "cache", many, compute=COMPUTE)
    lists = spread._lists(cache)
    assert lists.shape == (12, 16)
    assert not np.isnan(lists).any()


def test_a_single_candidate_of_a_pool_is_no_list(pool, reranker, tmp_path):
    one = replace(CONFIG, per_query=1, directions=(Direction.TEXT,))
    assert measure_spread(build_cache(pool, reranker, tmp_path / "cache", one, compute=COMPUTE)) is None


def test_inspect_shows_no_comparison_with_positives(folder):
    summary = summarize_cache(read_cache(folder))
    assert (sum(summary.positives), sum(summary.negatives), summary.hardest) == (0, summary.num_pairs, [])
    facts = dict(cache_facts(summary))
    assert facts["pairs"] == f"{summary.num_pairs:,} of a pool"
    assert facts["text retrieval"] == "12 queries, 48 candidates"
    assert "positive" not in "".join(facts.values())
    result = CliRunner().invoke(app, ["inspect", str(folder), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["text_retrieval"]["positive_first"] is None


def test_lexical_candidates_of_a_pool_are_found_by_paths_and_columns(tmp_path):
    texts = [["a dog runs"], ["the harbor of Kiel"], ["nothing else"]]
    columns = pa.table({"place": ["Kiel harbor", None, None], "year": [2019, 2020, 2021]})
    pool = with_images(make_pool(tmp_path / "made", texts), tmp_path / "named", columns, i2="pets/dog_01.jpg")
    drawn = candidates.draw_candidates(pool, CandidateConfig(kind="lexical", per_query=1))
    found = [pool.captions[texts[0]] for texts in lists_of(drawn, Direction.TEXT)]
    assert (found[0], found[2]) == ("the harbor of Kiel", "a dog runs")
    of_dog = lists_of(drawn, Direction.IMAGE)[pool.captions.index("a dog runs")]
    assert of_dog == [2]


def test_lexical_candidates_of_images_that_are_numbers_are_refused_before_the_teacher_is_loaded(pool, tmp_path):
    job = CacheJob(
        data=pool.folder,
        out=tmp_path / "cache",
        candidates=CandidateConfig(kind="lexical"),
        teacher="vilt-flickr30k",
    )
    with pytest.raises(ConfigError, match=r"have no words, such as '0'"):
        cache_scores(job)


def test_embedding_candidates_of_a_pool_are_the_nearest(pool, dual):
    config = CandidateConfig(kind="embedding", model=str(dual), per_query=3)
    drawn = candidates.draw_candidates(pool, config)
    model = models.load_dual(str(dual))
    vectors = embed_with_model(model, CorpusSource(pool, model.preprocess), torch.device("cpu"))
    scores = (vectors.images_ID @ vectors.texts_TD.T).numpy()
    assert lists_of(drawn, Direction.TEXT) == np.sort(np.argsort(-scores, axis=1)[:, :3]).tolist()
    assert lists_of(drawn, Direction.IMAGE) == np.sort(np.argsort(-scores.T, axis=1)[:, :3]).tolist()


def blocks_of(drawn: candidates.Candidates, size: int) -> list[tuple[list[int], list[int]]]:
    """The images and the texts of each block of candidates in which no image is in two blocks."""
    blocks: dict[tuple[int, ...], list[int]] = {}
    for image, texts in enumerate(lists_of(drawn, Direction.TEXT)):
        blocks.setdefault(tuple(texts), []).append(image)
    assert {len(images) for images in blocks.values()} == {size}
    return [(images, list(texts)) for texts, images in blocks.items()]


def test_a_block_of_a_pool_has_all_pairs_of_its_images_and_of_texts_that_no_other_has(pool):
    config = CandidateConfig(kind="blocks", block_size=4, captions_per_image=1)
    drawn = candidates.draw_candidates(pool, config)
    blocks = blocks_of(drawn, 4)
    assert [len(texts) for _, texts in blocks] == [4, 4, 4]
    assert len({text for _, texts in blocks for text in texts}) == 12
    assert sum(map(len, lists_of(drawn, Direction.IMAGE))) == 3 * 16
    other = candidates.draw_candidates(pool, replace(config, seed=1))
    assert blocks_of(other, 4) != blocks


def test_texts_of_a_pool_are_used_again_when_none_is_left(pool):
    drawn = candidates.draw_candidates(pool, CandidateConfig(kind="blocks", block_size=4, captions_per_image=3))
    counts = np.bincount([text for _, texts in blocks_of(drawn, 4) for text in texts], minlength=18)
    assert counts.tolist() == [2] * 18
    # A block has each text once at most, however many it asks for.
    every = candidates.draw_candidates(pool, CandidateConfig(kind="blocks", block_size=4, captions_per_image=50))
    assert lists_of(every, Direction.TEXT) == [list(range(18))] * 12


def shared_out(similarity_BT: np.ndarray, size: int) -> list[set[int]]:
    """The texts of each block by plain loops."""
    num_blocks, num_texts = similarity_BT.shape
    chosen: list[list[int]] = [[] for _ in range(num_blocks)]
    free = list(range(num_texts))
    while any(len(texts) < size for texts in chosen):
        wishes: dict[int, list[int]] = {}
        for text in free:
            able = [block for block in range(num_blocks) if len(chosen[block]) < size and text not in chosen[block]]
            if able:
                wishes.setdefault(max(able, key=lambda block: similarity_BT[block, text]), []).append(text)
        for block, texts in wishes.items():
            texts.sort(key=lambda text: -similarity_BT[block, text])
            for text in texts[: size - len(chosen[block])]:
                chosen[block].append(text)
                free.remove(text)
        if not wishes or not free:
            free = list(range(num_texts))
    return [set(texts) for texts in chosen]


@pytest.mark.parametrize(("num_texts", "size"), [(40, 5), (30, 6), (20, 7), (9, 9), (7, 5)])
@pytest.mark.parametrize("chunk", [3, 100])
def test_texts_are_shared_out_as_by_plain_loops(num_texts, size, chunk, monkeypatch):
    monkeypatch.setattr(miners, "_TEXTS_PER_CHUNK", chunk)
    rng = torch.Generator().manual_seed(num_texts)
    centroids_BD, texts_TD = torch.randn(5, 4, generator=rng), torch.randn(num_texts, 4, generator=rng)
    blocks = miners.share_out(centroids_BD, texts_TD, size)
    assert [len(texts) for texts in blocks] == [len(set(texts.tolist())) for texts in blocks] == [size] * 5
    assert [set(texts.tolist()) for texts in blocks] == shared_out((centroids_BD @ texts_TD.T).numpy(), size)
    counts = np.bincount(np.concatenate(blocks), minlength=num_texts)
    if 5 * size <= num_texts:
        assert counts.max() == 1
    elif size < num_texts:
        assert counts.min() >= 1


def test_blocks_of_a_model_have_the_texts_near_their_images(pool, dual):
    config = CandidateConfig(kind="blocks", model=str(dual), block_size=4, group_size=4, captions_per_image=1)
    blocks = blocks_of(candidates.draw_candidates(pool, config), 4)
    model = models.load_dual(str(dual))
    vectors = embed_with_model(model, CorpusSource(pool, model.preprocess), torch.device("cpu"))
    clusters = miners.clusters(pool, 4, vectors.images_ID.numpy())
    assert sorted(images for images, _ in blocks) == sorted(cluster.tolist() for cluster in clusters)
    centroids = torch.stack([vectors.images_ID[images].mean(dim=0) for images, _ in blocks])
    expected = shared_out((centroids @ vectors.texts_TD.T).numpy(), 4)
    assert [set(texts) for _, texts in blocks] == expected


def test_a_margin_which_needs_positives_is_refused_before_the_teacher_is_loaded(pool, tmp_path):
    config = replace(CONFIG, relative_margin=0.0)
    job = CacheJob(data=pool.folder, out=tmp_path / "cache", candidates=config, teacher="vilt-flickr30k")
    for make in (cache_scores, plan):
        with pytest.raises(
            ConfigError, match=r"candidates\.relative_margin is 0 and needs positives, which the pool .*pool"
        ):
            make(job)
    assert not (tmp_path / "cache").exists()


def test_a_pool_without_a_side_has_no_pairs(tmp_path):
    images = make_pool(tmp_path / "images", [[], []])
    entry = write_pool(images.folder, "texts", [["a", "b"]], np.random.default_rng(0)) | {"images": 0, "shards": []}
    write_document(images.folder / "corpus.json", {"format": 2, "name": "made", "splits": {"texts": entry}})
    texts = Corpus.open(images.folder, "texts")
    for corpus, what in ((images, "texts"), (texts, "images")):
        with pytest.raises(CorpusError, match=f"has no {what}"):
            candidates.check_candidates(corpus, CONFIG)


def test_a_text_encoder_does_not_embed_images_of_a_pool(pool, tmp_path):
    config = CandidateConfig(kind="embedding", model=save_text("bert", pool.captions, tmp_path / "text"))
    with pytest.raises(ModelError, match="images of a pool have none"):
        candidates.draw_candidates(pool, config)
