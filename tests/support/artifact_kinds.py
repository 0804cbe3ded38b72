"""A finished artifact of every kind, to damage, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import numpy as np
import pyarrow as pa
import pytest
from damage import Artifact
from damaged_runs import RUN_KINDS, TEXTS
from encoders import make_pair
from made_caches import build_cache
from made_index import ragged, unit_vectors, update, write_index, write_late
from noise_index import CAPTIONS, make_index
from tiny import make_corpus, make_pool, make_teacher, make_wide_dual

from dcdctl.core import models
from dcdctl.core.data import Corpus, PrepareOptions, find_manifest, prepare_corpus, summarize_corpus
from dcdctl.core.scoring import features, open_or_build
from dcdctl.core.search import FolderIndex, IndexSearcher, commit, keywords, parse_where, storage
from dcdctl.core.teacher import (
    CandidateConfig,
    TextCacheJob,
    build,
    cache_texts,
    read_cache,
    read_text_cache,
    summarize_cache,
    text_cache,
)
from dcdctl.core.training import negatives
from dcdctl.core.training.batches.texts import TextRows
from dcdctl.core.training.recipe import BatchConfig, Recipe


def corpus_kind(folder: Path) -> Artifact:
    for name, seed in (("made", 0), ("other", 1)):
        source = find_manifest(
            "scenes", ["counts.train=5", "counts.val=2", "counts.test=0", "side_px=16", f"seed={seed}"]
        )
        prepare_corpus(source, folder / name, options=PrepareOptions(workers=1, shard_size=3))

    def read(path: Path) -> Any:
        splits = [Corpus.open(path, split) for split in ("train", "val")]
        columns = [[split.captions, split.image_ids, split.caption_ids, split.caption_image] for split in splits]
        return columns, [split.images(range(split.num_images)) for split in splits], summarize_corpus(path)

    return Artifact(folder / "made", folder / "other", read)


def cache_kind(folder: Path) -> Artifact:
    """A teacher cache, read as by training, `inspect`, and `--extend` for a part of the corpus."""
    corpus = make_corpus(folder / "corpus", TEXTS)
    teacher = make_teacher(corpus.captions)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "IMAGES_PER_SHARD", 5)
        for name, seed in (("made", 0), ("other", 1)):
            build_cache(corpus, teacher, folder / name, CandidateConfig(per_query=3, seed=seed))
    plan, subset = read_cache(folder / "made").plan, corpus.subset(9)

    def read(path: Path) -> Any:
        cache = read_cache(path, corpus=corpus, teacher=teacher.digest)
        scores = cache.lookup(np.arange(12)[:, None], np.arange(24))
        reused = build.reusable_pairs(path, subset, {**plan, "corpus": subset.fingerprint})
        return scores, cache.candidates, summarize_cache(read_cache(path)), reused, cache.score_P, cache.role_P

    return Artifact(folder / "made", folder / "other", read)


def text_cache_kind(folder: Path) -> Artifact:
    captions = [text for texts in TEXTS for text in texts]
    models.save(make_wide_dual(captions), folder / "dual")
    for name in ("made", "other"):
        (folder / f"{name}.txt").write_text("".join(f"{text} {name}\n" for text in captions))
        job = TextCacheJob(out=folder / name, teacher=str(folder / "dual"), texts=[str(folder / f"{name}.txt")])
        cache_texts(job)

    def read(path: Path) -> Any:
        cache = read_text_cache(path)
        return [cache.part(number) for number in range(len(cache.part_sizes))], cache.fingerprint

    return Artifact(folder / "made", folder / "other", read)


def token_cache_kind(folder: Path) -> Artifact:
    """A text cache of a late-interaction model in several parts, read as by a training."""
    models.save(families.late(make_wide_dual(CAPTIONS), is_pooled=False), folder / "late")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_cache, "TEXTS_PER_PART", 9)
        for name in ("made", "other"):
            (folder / f"{name}.txt").write_text("".join(f"{text} {name}\n" for texts in TEXTS for text in texts))
            cache_texts(
                TextCacheJob(out=folder / name, teacher=str(folder / "late"), texts=[str(folder / f"{name}.txt")])
            )

    def read(path: Path) -> Any:
        cache = read_text_cache(path)
        rows = TextRows(cache, Recipe(batch=BatchConfig(size=4)), holds_out=True)
        return rows.first_texts(), rows.held_out, text_cache.text_cache_facts(cache)[1:], cache.fingerprint

    return Artifact(folder / "made", folder / "other", read)


def pool_kind(folder: Path) -> Artifact:
    """Images and texts without pairing."""
    for name, texts in (("made", TEXTS), ("other", TEXTS[1:])):
        make_pool(folder / name, texts)

    def read(path: Path) -> Any:
        pool = Corpus.open(path, "train")
        return pool.captions, pool.languages, pool.image_ids, pool.images(range(pool.num_images)), pool.fingerprint

    return Artifact(folder / "made", folder / "other", read)


def features_kind(folder: Path) -> Artifact:
    corpora = [make_corpus(folder / f"corpus {first}", TEXTS[first:]) for first in (0, 1)]
    pair = make_pair(corpora[0].captions, folder / "pair")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(features, "IMAGES_PER_FILE", 8)
        made, other = (open_or_build(folder / "features", corpus, pair).folder for corpus in corpora)

    def read(path: Path) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(features, "IMAGES_PER_FILE", 8)
            stored = open_or_build(folder / "features", corpora[0], pair)
            return stored.images(range(12)), stored.texts(range(24))

    return Artifact(made, other, read)


def index_kind(folder: Path) -> Artifact:
    """An index with graphs over most of its rows, removed rows, skipped files, and columns."""
    for name, seed in (("made", 0), ("other", 1)):
        parts = np.split(unit_vectors(120, seed=seed), 3)
        index = write_index(folder / name, parts, removed=[3, 50 + seed], flat_up_to=30, segment_rows=50, keywords=True)
        skipped = [{"path": f"{seed}.txt", "reason": "no image", "source": 0}]
        commit.commit(index.folder, replace(index.document, generation=2), skipped=skipped)
        years = [2000 + row % (20 + seed) for row in range(120)]
        metadata = pa.table({"image": [f"{row}.png" for row in range(120)], "year": years})
        update(index.folder, metadata=metadata)
    queries = unit_vectors(4, seed=2).astype(np.float32)

    def read(path: Path) -> Any:
        index = FolderIndex.open(path)
        rows = np.arange(index.num_rows)
        names = [(index.image_id(row), index.name(row)) for row in rows[::8].tolist()]
        found = (
            index.nearest(queries, 5),
            index.search(queries, 3, parse_where("year > 2010", index.columns)),
            index.hybrid(["7 png"] * 4, queries, 5),
            keywords.read_words(path, index.document.keywords),
        )
        return (
            found,
            index.stored(rows).data,
            names,
            index.stored_columns.table().to_pydict(),
            storage.skipped_of(path, index.document),
        )

    return Artifact(folder / "made", folder / "other", read)


def model_of_index_kind(folder: Path) -> Artifact:
    """The model of an index, read for the images of a search."""
    index, other = make_index(folder / "made"), make_index(folder / "other")

    def read(path: Path) -> Any:
        searcher = IndexSearcher.for_index(FolderIndex.open(path), device="cpu")
        return [
            (hit.name, hit.score) for hit in replace(searcher, texts=searcher.encoder.load()).by_text(CAPTIONS[0]).hits
        ]

    return Artifact(index, other, read, is_part=lambda path: path.parent.name == "model")


def token_index_kind(folder: Path) -> Artifact:
    """An index of token vectors over centroids."""
    for name, seed in (("made", 0), ("other", 1)):
        write_late(folder / name, [4, 2, 5, 3, 6, 1, 4, 2 + seed], removed=[seed], flat_up_to=0)
    queries = [ragged([3], seed=seed) for seed in range(3)]

    def read(path: Path) -> Any:
        index = FolderIndex.open(path)
        rows = np.flatnonzero(index.is_live)
        return index.stored(rows).tokens_ND, [*map(index.image_id, rows)], [index.nearest(q[None], 3) for q in queries]

    return Artifact(folder / "made", folder / "other", read, is_part=lambda path: path.parent.name != "model")


def _save_queries(teacher: Any, folder: Path) -> list[str]:
    """A static query encoder, and one with a layer."""
    space, words = models.QuerySpace.of(teacher), models.word_piece(CAPTIONS, 60)
    for layers in (0, 1):
        size = models.QuerySize(hidden_size=16, num_layers=layers, max_text_len=12)
        models.save(models.new_query(space, size, tokenizer=words), folder / f"query-{layers}")
    return [str(folder / f"query-{layers}") for layers in (0, 1)]


def query_kind(folder: Path) -> Artifact:
    """A saved query encoder, read in front of its teacher."""
    dual = make_wide_dual(CAPTIONS)
    made, other = map(Path, _save_queries(dual, folder))

    def read(path: Path) -> Any:
        model = models.with_queries(dual, path)
        texts = model.preprocess.texts(CAPTIONS)
        return model.digest, model.settings, model.state_dict(), texts.input_ids, model.embed_texts(texts).detach()

    return Artifact(made, other, read)


def query_of_index_kind(folder: Path) -> Artifact:
    """The text side of an index that a query encoder has, searched."""
    index, other = make_index(folder / "made"), make_index(folder / "other")
    queries = _save_queries(models.load_searchable(folder / "made" / "dual"), folder)
    for place, query in zip((index, other), queries, strict=True):
        update(place, query_model=query)
    return _text_side(index, other)


def text_side_of_index_kind(folder: Path) -> Artifact:
    """The text side of the model of an index, read by a search."""
    return _text_side(make_index(folder / "made"), make_index(folder / "other"))


def _text_side(index: Path, other: Path) -> Artifact:
    def read(path: Path) -> Any:
        return [
            (hit.name, hit.score)
            for hit in IndexSearcher.for_index(FolderIndex.open(path), device="cpu").by_text(CAPTIONS[0]).hits
        ]

    return Artifact(index, other, read, is_part=lambda path: path.parent.name.startswith("text"))


def negatives_kind(folder: Path) -> Artifact:
    source: Any = SimpleNamespace(corpus=make_corpus(folder / "corpus", TEXTS))
    recipes = [
        Recipe(batch=BatchConfig(negatives="mined"), candidates=CandidateConfig(per_query=4, seed=seed))
        for seed in (0, 1)
    ]
    for name, recipe in zip(("made", "other"), recipes, strict=True):
        negatives.save_mined(folder / name, negatives.mine(source, recipe), source.corpus, recipe)
    return Artifact(folder / "made", folder / "other", lambda path: negatives.read_or_mine(path, source, recipes[0]))


KINDS: dict[str, Callable[[Path], Artifact]] = {
    "corpus": corpus_kind,
    "teacher cache": cache_kind,
    "text cache": text_cache_kind,
    "text cache of tokens": token_cache_kind,
    "pool": pool_kind,
    "features": features_kind,
    "image index": index_kind,
    "model of an image index": model_of_index_kind,
    "text side of an image index": text_side_of_index_kind,
    "index of tokens": token_index_kind,
    "query model of an image index": query_of_index_kind,
    "saved query model": query_kind,
    "mined negatives": negatives_kind,
    **RUN_KINDS,
}
