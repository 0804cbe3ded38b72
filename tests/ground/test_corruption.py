"""Damaged files of every kind of artifact: reading gives an error that names a file, or the intact result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from damage import NAMED, Artifact, as_new_process, count_outcomes, damages, replaced
from damaged_runs import RUN_KINDS
from encoders import make_pair
from made_index import unit_vectors, update, write_index
from noise_index import CAPTIONS, make_index
from tiny import make_corpus, make_teacher

from dcdctl.core import files
from dcdctl.core.data import Corpus, PrepareOptions, find_manifest, prepare_corpus, summarize_corpus
from dcdctl.core.scoring import features, open_or_build
from dcdctl.core.search import Changes, ColumnChanges, FolderIndex, IndexSearcher, commit, keywords, parse_where
from dcdctl.core.teacher import CandidateConfig, build, read_cache, summarize_cache
from dcdctl.core.training import negatives
from dcdctl.core.training.recipe import BatchConfig, Recipe
from dcdctl.core.verify import verify

pytestmark = pytest.mark.usefixtures("_duals_read_once")

TRIALS = 2
"""Damages of each kind for each file."""
MANY_TRIALS = 150
TEXTS = [[f"image {image} caption {k}" for k in range(2)] for image in range(12)]


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
            build.build_cache(corpus, teacher, folder / name, CandidateConfig(per_query=3, seed=seed))
    plan, subset = read_cache(folder / "made").plan, corpus.subset(9)

    def read(path: Path) -> Any:
        cache = read_cache(path, corpus=corpus, teacher=teacher.digest)
        scores = cache.lookup(np.arange(12)[:, None], np.arange(24))
        reused = build.reusable_pairs(path, subset, {**plan, "corpus": subset.fingerprint})
        return scores, cache.candidates, summarize_cache(read_cache(path)), reused, cache.score_P, cache.role_P

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
        update(index.folder, Changes(columns=ColumnChanges(metadata=metadata)))
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
            index.vectors(rows),
            names,
            index.column_table().to_pydict(),
            commit.skipped_of(path, index.document),
        )

    return Artifact(folder / "made", folder / "other", read)


def model_of_index_kind(folder: Path) -> Artifact:
    """The model of an index, read for the images of a search."""
    index, other = make_index(folder / "made"), make_index(folder / "other")

    def read(path: Path) -> Any:
        searcher = IndexSearcher.open(path, device="cpu")
        return [
            (hit.name, hit.score) for hit in replace(searcher, texts=searcher.encoder.load()).by_text(CAPTIONS[0]).hits
        ]

    return Artifact(index, other, read, is_part=lambda path: path.parent.name == "model")


def text_side_of_index_kind(folder: Path) -> Artifact:
    """The text side of the model of an index, read by a search."""
    index, other = make_index(folder / "made"), make_index(folder / "other")

    def read(path: Path) -> Any:
        return [(hit.name, hit.score) for hit in IndexSearcher.open(path, device="cpu").by_text(CAPTIONS[0]).hits]

    return Artifact(index, other, read, is_part=lambda path: path.parent.name == "text")


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
    "features": features_kind,
    "image index": index_kind,
    "model of an image index": model_of_index_kind,
    "text side of an image index": text_side_of_index_kind,
    "mined negatives": negatives_kind,
    **RUN_KINDS,
}


@pytest.fixture(autouse=True)
def _graphs_are_compared_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """usearch must not see a damaged graph: it would end the process by a signal."""
    usearch = pytest.importorskip("usearch.index")
    restore = usearch.Index.restore
    intact: dict[str, str] = {}

    def guarded(path: str, *arguments: Any, **options: Any) -> Any:
        # The first reading of each graph is of an intact artifact.
        assert intact.setdefault(path, files.sha256_of(Path(path))) == files.sha256_of(Path(path)), (
            f"usearch maps the damaged {path}"
        )
        return restore(path, *arguments, **options)

    monkeypatch.setattr(usearch.Index, "restore", guarded)


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Artifact]:
    """A kind and an artifact of it, whose files every trial leaves as they were."""
    return request.param, KINDS[request.param](tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("count", [TRIALS, pytest.param(MANY_TRIALS, marks=pytest.mark.slow)])
def test_a_damaged_file_is_named_or_harmless(made, count, record_property):
    kind, artifact = made
    outcomes = count_outcomes(artifact, np.random.default_rng(count), count)
    for (damage, outcome), number in sorted(outcomes.items()):
        record_property(f"{kind}, {damage}, {outcome}", number)  # shown by --junitxml FILE -o junit_family=legacy
    assert outcomes.total() > 2 * count * len(artifact.files)  # not 3, because zeros over zeros are no damage
    # Harmless are changed spaces in JSON.
    assert sum(number for (_, outcome), number in outcomes.items() if outcome == NAMED) > 0.9 * outcomes.total()


DOCUMENTS = {
    *(
        "corpus.json",
        "cache.json",
        "features.json",
        "plan.json",
        "index.json",
        "run.json",
        "dcdctl.json",
        "result.json",
    ),
    *("cascade.json", "bench.json", "metrics.json", "checkpoint.json"),
}
"""Files that no other file lists: they have a checksum of their content, which does not depend on spaces."""
NOT_ALONE = {"mined negatives", "model of an image index", "run in a model card", "evaluation in a comparison"}
"""Not recognized without the rest of the run, or the same folder as another kind."""


@pytest.mark.parametrize("count", [1, pytest.param(MANY_TRIALS // 3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("made", [kind for kind in KINDS if kind not in NOT_ALONE], indirect=True)
def test_verify_finds_every_damage_of_a_listed_file(made, count, record_property):
    kind, artifact = made
    as_new_process()
    expected, trials = verify(artifact.folder).problems, Counter[str]()
    for damage, contents in damages(artifact, np.random.default_rng(count), count):
        intact = {path: path.read_bytes() for path in contents}
        with replaced(contents) as is_changed:
            if not is_changed:
                continue
            is_found = verify(artifact.folder).problems != expected
        if not is_found:
            assert all(
                path.name in DOCUMENTS and json.loads(contents[path]) == json.loads(intact[path]) for path in contents
            ), damage
        trials["found" if is_found else "harmless"] += 1
    for outcome, number in trials.items():
        record_property(f"verify of {kind}, {outcome}", number)
    assert verify(artifact.folder).problems == expected
