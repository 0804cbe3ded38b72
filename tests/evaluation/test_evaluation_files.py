"""What `dcdctl eval` leaves behind, and what it never leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tables import OWNER, Numbers, make_dual, make_fusion

from dcdctl.core import artifacts, files
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import EvalOptions, Measured, evaluate
from dcdctl.core.evaluation import files as evaluation_files
from dcdctl.core.evaluation.files import SavedEvaluation
from dcdctl.core.evaluation.ranking import RankTable
from dcdctl.core.files import atomic

CORPUS = Numbers(OWNER)


@pytest.fixture(scope="module")
def alone() -> Measured:
    return evaluate.evaluate_model(make_dual(), CORPUS)


@pytest.fixture(scope="module")
def cascaded() -> Measured:
    return evaluate.evaluate_model(make_dual(), CORPUS, rerank=make_fusion(), options=EvalOptions(depths=(3,)))


def write(folder: Path, measured: Measured) -> None:
    evaluation_files.write_evaluation(folder, measured.evaluation("fake"), measured)


def test_the_table_of_ranks_names_every_query(tmp_path, alone):
    write(tmp_path, alone)
    table = pd.read_parquet(tmp_path / "ranks.parquet")
    assert list(table) == ["direction", "query", "image_id", "rank", "score", "caption_id", "caption"]
    text, image = table[table.direction == "text"], table[table.direction == "image"]
    assert text["rank"].tolist() == alone.table.text_ranks.tolist()
    assert image["rank"].tolist() == alone.table.image_ranks.tolist()
    assert text[["caption_id", "caption"]].isna().all(axis=None)
    assert table.caption_id.dtype == "Int64"
    assert image.image_id.tolist() == [f"image {owner}" for owner in OWNER]
    assert image.caption_id.tolist() == list(range(100, 118))
    assert image.caption.tolist() == CORPUS.captions


def test_languages_of_captions_come_back(tmp_path, alone):
    corpus = Numbers(OWNER)
    corpus.languages = ["de", None, "fr"] * 6
    write(tmp_path, replace(alone, table=RankTable.of(corpus, alone.rankings)))
    table = SavedEvaluation.load(tmp_path).table
    assert table.languages == ("de", None, "fr") * 6
    first = table.of_captions(np.arange(0, 18, 3))
    assert first.image_ranks.tolist() == alone.table.image_ranks[::3].tolist()
    assert [first.image_ids[image] for image in first.caption_image] == [f"image {owner}" for owner in OWNER[::3]]


def test_scores_are_those_of_the_best_positive(tmp_path, alone):
    write(tmp_path, alone)
    table, dual = pd.read_parquet(tmp_path / "ranks.parquet"), make_dual()
    cosines_IT = (dual.image_ID @ dual.text_TD.T).numpy()
    own_T = cosines_IT[OWNER, range(18)]
    assert table.score.dtype == np.float32
    assert table.score[table.direction == "image"].tolist() == pytest.approx(own_T.tolist(), abs=1e-6)
    best = [max(own_T[text] for text in range(18) if OWNER[text] == image) for image in range(10)]
    assert table.score[table.direction == "text"].tolist() == pytest.approx(best, abs=1e-6)


def test_the_first_candidates_of_every_query_are_rows(tmp_path, alone):
    write(tmp_path, alone)
    table, dual = pd.read_parquet(tmp_path / "top.parquet"), make_dual()
    types = {"query": "int64", "place": "int16", "candidate": "int64", "score": "float32", "is_own": "bool"}
    assert {name: str(kind) for name, kind in table.dtypes.items() if name != "direction"} == types
    for direction, scores_QG in (("text", dual.image_ID @ dual.text_TD.T), ("image", dual.text_TD @ dual.image_ID.T)):
        part = table[table.direction == direction]
        expected = scores_QG.topk(10, dim=1)
        assert part["query"].tolist() == np.repeat(np.arange(len(scores_QG)), 10).tolist()
        assert part.place.tolist() == list(range(1, 11)) * len(scores_QG)
        assert part.candidate.tolist() == expected.indices.ravel().tolist()
        assert part.score.tolist() == pytest.approx(expected.values.ravel().tolist(), abs=1e-6)
    owner = np.array(OWNER)
    is_text = table.direction == "text"
    images, texts = (
        np.where(is_text, table["query"], table.candidate),
        np.where(is_text, table.candidate, table["query"]),
    )
    assert table.is_own.tolist() == (owner[texts] == images).tolist()


@pytest.mark.parametrize("fixture", ["alone", "cascaded"])
def test_the_first_own_candidate_stands_at_the_rank(tmp_path, fixture, request):
    write(tmp_path, request.getfixturevalue(fixture))
    prefix = "" if fixture == "alone" else "cascade-"
    ranks, top = (pd.read_parquet(tmp_path / f"{prefix}{name}.parquet") for name in ("ranks", "top"))
    first = top[top.is_own].groupby(["direction", "query"]).place.min().rename("place").reset_index()
    joined = ranks.merge(first, on=["direction", "query"], how="left")
    assert (joined.place.fillna(0) == joined["rank"].where(joined["rank"] <= 10, 0)).all()
    assert joined.place.notna().sum() > 20


def test_a_cascade_leaves_the_dual_encoders_own_files_alone(tmp_path, alone, cascaded):
    write(tmp_path, alone)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, cascaded)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name in before} == before
    assert {path.name for path in tmp_path.iterdir()} - set(before) == {
        "cascade-ranks.parquet",
        "cascade-top.parquet",
        "cascade.json",
    }


@pytest.mark.parametrize("failing", ["ranks.parquet", "top.parquet", "result.json"])
def test_an_evaluation_that_fails_while_it_writes_leaves_no_numbers_of_other_ranks(
    tmp_path, alone, failing, monkeypatch
):
    other = evaluate.evaluate_model(make_fusion(), CORPUS)
    write(tmp_path, alone)
    real = files.atomic_path

    def full(path: Path):
        if path.name == failing:
            raise OSError("the disk is gone")
        return real(path)

    with monkeypatch.context() as patch:
        for module in (files, atomic):
            patch.setattr(module, "atomic_path", full)
        with pytest.raises(OSError, match="gone"):
            write(tmp_path, other)
    assert not (tmp_path / "result.json").exists()
    write(tmp_path, other)
    assert json.loads((tmp_path / "result.json").read_text())["protocol"]["kind"] == "fusion"


def test_tables_that_a_document_does_not_list_are_not_read(tmp_path, alone):
    write(tmp_path, alone)
    document = artifacts.read_document(tmp_path / "result.json")
    del document["files"]["top.parquet"]
    artifacts.write_document(tmp_path / "result.json", document)
    with pytest.raises(InputError, match=r"result\.json lists no top\.parquet"):
        assert SavedEvaluation.load(tmp_path).top


def test_the_document_of_another_evaluation_is_refused(tmp_path, alone):
    write(tmp_path, alone)
    document = artifacts.read_document(tmp_path / "result.json")
    document["files"] = {"cascade-ranks.parquet": document["files"]["ranks.parquet"]}
    artifacts.write_document(tmp_path / "result.json", document)
    with pytest.raises(InputError, match=r"result\.json lists no ranks\.parquet"):
        assert SavedEvaluation.load(tmp_path).table
