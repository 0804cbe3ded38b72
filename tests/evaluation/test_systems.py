"""What can be named as a system, and what is refused."""

from __future__ import annotations

import pytest
from evaluations import write_evaluation, write_ranks, write_top
from tiny import make_corpus

from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation import compare

GOOD, BAD = ([1, 1, 2], [1, 1, 2, 1]), ([3, 9, 40], [2, 30, 12, 1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three images with 2, 1 and 1 captions."""
    return make_corpus(tmp_path_factory.mktemp("made") / "corpus", [["a", "b"], ["c"], ["d"]])


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A folder to work in, with an evaluation `good`."""
    monkeypatch.chdir(tmp_path)
    write_evaluation(tmp_path / "good", made, *GOOD)
    return tmp_path


def text_ranks(name):
    (system,) = compare.read_systems([name])
    return [table.text_ranks.tolist() for table in system.tables]


def test_a_folder_is_its_own_ranks_and_its_cascade_by_request(here, made):
    write_evaluation(here / "good", made, *BAD, cascade=True)
    alone, cascade = compare.read_systems(["good", "good:cascade"])
    assert [system.tables[0].text_ranks.tolist() for system in (alone, cascade)] == [GOOD[0], BAD[0]]
    assert [system.evaluation.protocol.kind for system in (alone, cascade)] == ["dual", "cascade"]


def test_a_folder_with_nothing_but_a_cascade_is_the_cascade(here, made):
    write_evaluation(here / "only", made, *BAD, cascade=True)
    assert text_ranks("only") == [BAD[0]]


def test_a_folder_whose_name_ends_like_a_cascade_is_itself(here, made):
    write_evaluation(here / "odd:cascade", made, *GOOD)
    write_evaluation(here / "odd,one", made, *BAD)
    assert text_ranks("odd:cascade") == [GOOD[0]]
    assert text_ranks("odd,one") == [BAD[0]]


def test_the_best_candidates_are_found_where_they_were_kept(here, made):
    write_top(here / "good" / "top.parquet", made, [[0]] * 3, [[0]] * 4)
    assert compare.read_systems(["good"])[0].runs[0].top["text"].candidate_QK.tolist() == [[0]] * 3


def test_names_with_commas_between_them_are_runs_of_one_system(here, made):
    write_evaluation(here / "bad", made, *BAD)
    assert text_ranks("good,bad,good/") == [GOOD[0], BAD[0], GOOD[0]]


OTHERWISE = {
    "the split is 'val' for bad, 'train' for good": {"split": "val"},
    "the protocol's name is 'coco-1k' for bad, 'whole' for good": {"name": "coco-1k"},
    "the protocol's folds is 5 for bad, 1 for good": {"folds": 5},
    "the corpus is 'beef' for bad": {"corpus_fingerprint": "beef"},
    "the protocol's ties is 'by luck' for bad": {"ties": "by luck"},
}


@pytest.mark.parametrize("message", OTHERWISE)
def test_what_was_measured_otherwise_is_refused_by_both_names(here, made, message):
    write_evaluation(here / "bad", made, *BAD, **OTHERWISE[message])
    with pytest.raises(
        StaleError, match=f"good and bad were evaluated differently: {message}.*evaluate both the same way"
    ):
        compare.read_systems(["good", "bad"])
    with pytest.raises(StaleError, match=message):
        compare.read_systems(["good,bad"])


def test_other_queries_are_refused_by_both_names(here, made, tmp_path):
    other = make_corpus(tmp_path / "other", [["a"], ["c"], ["d"]])
    write_evaluation(here / "other", other, [1, 1, 1], [1, 1, 1], corpus_fingerprint=made.fingerprint)
    with pytest.raises(
        StaleError,
        match=r"other has other queries than good: 3 images and 3 captions, not 3 images and 4 captions",
    ):
        compare.read_systems(["good", "other"])


@pytest.mark.parametrize(
    ("changes", "message"), [({"kind": "fusion"}, "the kind is 'fusion'"), ({"depth": 7}, "the depth is 7")]
)
def test_models_of_different_kinds_are_two_systems_and_not_one(here, made, changes, message):
    write_evaluation(here / "other", made, *BAD, **changes)
    assert len(compare.read_systems(["good", "other"])) == 2
    with pytest.raises(
        StaleError, match=f"good and other are not seeds of one system: {message} for other, .* name them as two"
    ):
        compare.read_systems(["good,other"])


def test_ranks_of_another_evaluation_than_the_result_are_refused(here, made):
    write_ranks(here / "good" / "ranks.parquet", made, *BAD)
    with pytest.raises(InputError, match=r"good/ranks\.parquet is damaged: .*, not .*; `dcdctl eval` writes"):
        compare.read_systems(["good"])


def test_what_is_not_there_is_the_users_error_and_says_what_makes_it(here, made):
    write_evaluation(here / "cut", made, *GOOD)
    (here / "cut" / "result.json").unlink()
    for name, message in {
        "good:cascade": "no finished evaluation in good; `dcdctl eval good --data DIR --rerank REF",
        "cut": "there is no finished evaluation in cut; `dcdctl eval cut",
    }.items():
        with pytest.raises(InputError, match=message):
            compare.read_systems([name])
