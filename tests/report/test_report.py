"""Runs and evaluations read back as one report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from evaluations import change_json
from made_runs import scores_of, write_bench, write_demo, write_evaluation, write_run

from dcdctl.core.errors import MissingError, StaleError
from dcdctl.core.evaluation import files, significance
from dcdctl.core.report import report
from dcdctl.core.report.tables import NOTHING, result_tables


@pytest.fixture(scope="module")
def demo(split, tmp_path_factory):
    """The folders of a demo, and a copy of them that stays as it is."""
    root = tmp_path_factory.mktemp("report")
    folders = write_demo(root / "demo", split)
    return folders, shutil.copytree(root / "demo", root / "intact")


@pytest.fixture
def folders(demo):
    """The folders of the demo, which a test may change."""
    own, intact = demo
    shutil.rmtree(own[0].parent)
    shutil.copytree(intact, own[0].parent)
    return own


def read_demo(folders: list[Path]) -> report.Report:
    return report.read_report(folders[1:-1], teacher=folders[0], baseline=folders[-1])


def change(path: Path, **changes: object) -> None:
    change_json(path, **changes)


def test_a_complete_demo_has_five_models_with_their_roles_and_no_missing_part(folders):
    found = read_demo(folders)
    assert [(one.label, one.role) for one in found.models] == [
        ("teacher", "teacher"),
        ("dual", "student"),
        ("dual + fusion, top 10", "student"),
        ("fusion", "student"),
        ("dual-alone", "baseline"),
    ]
    assert found.lacks == {}


def test_recalls_by_language_have_a_table(folders):
    recalls = {"R@1": 12.34, "R@5": 20.0, "R@10": 30.0}
    change(folders[1] / "result.json", image_recalls_by_label={"language": {"de": recalls, "unknown": recalls}})
    # A run that was never evaluated has no column.
    found = report.read_report(
        [*folders[1:-1], write_run(folders[0].parent / "new")], teacher=folders[0], baseline=folders[-1]
    )
    (table,) = (one for one in result_tables(found) if "language" in one.title)
    assert "new" not in table.columns
    dual = table.columns.index("dual")
    assert [(row[0], row[dual], row[dual + 1]) for row in table.rows] == [
        ("language: de", "12.3", NOTHING),
        ("language: unknown", "12.3", NOTHING),
    ]


def test_the_default_baseline_is_the_first_run_that_is_not_the_teacher(folders):
    teacher, dual, fusion, alone = folders
    assert report.read_report([dual, alone]).of_role("baseline").folder == dual
    assert report.read_report([teacher, fusion, dual], teacher=teacher).of_role("baseline").folder == fusion


def test_a_teacher_alone_is_not_a_baseline(folders):
    assert report.read_report([folders[0]], teacher=folders[0]).of_role("baseline") is None


def test_folders_of_equal_names_are_labeled_with_their_parent_folders(folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "other" / "dual")
    found = report.read_report([folders[1], tmp_path / "other" / "dual"])
    assert [one.label for one in found.models if not one.is_cascade] == ["demo/dual", "other/dual"]


def test_a_folder_given_twice_is_one_run(folders):
    assert len(report.read_report([folders[2], folders[2]]).models) == 1


def test_the_difference_to_the_baseline_is_that_of_the_comparison(folders):
    found = read_demo(folders)
    ours, base = (files.read_ranks(folder / "ranks.parquet") for folder in (folders[1], folders[-1]))
    assert next(one for one in found.models if one.label == "dual").comparison == significance.compare_ranks(
        [ours], [base]
    )
    assert found.of_role("baseline").comparison is None


def test_the_teachers_times_are_in_the_benchmarks_of_its_students(folders):
    found = read_demo(folders)
    assert found.of_role("teacher").times.query_ms == 100.0
    for folder in folders[1:]:
        change(folder / "bench.json", teacher_model="another")
    assert read_demo(folders).of_role("teacher").times is None


FUSION = {"name": "whole", "folds": 1, "kind": "fusion", "depth": None, "features": None, "ties": "count against"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus_fingerprint": 64 * "f"}, "corpus ffffffffffff"),
        ({"split": "val"}, "split val"),
        ({"protocol": {**FUSION, "name": "coco-1k", "folds": 5}}, "protocol coco-1k in 5 folds"),
    ],
)
def test_results_that_cannot_be_compared_are_refused_and_both_folders_named(folders, changes, said):
    change(folders[2] / "result.json", **changes)
    with pytest.raises(StaleError) as caught:
        read_demo(folders)
    assert str(folders[2]) in str(caught.value)
    assert str(folders[0]) in str(caught.value)
    assert said in str(caught.value)
    assert "split test" in str(caught.value)


def test_a_dual_a_fusion_and_a_cascade_are_one_protocol(folders):
    change(folders[2] / "result.json", protocol=FUSION)
    assert len(read_demo(folders).models) == 5


def test_an_empty_folder_is_refused_with_the_command_that_fills_it(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match=r"empty holds nothing to show") as caught:
        report.read_report([folders[1], tmp_path / "empty"])
    assert "dcdctl eval REF --data DIR --out" in str(caught.value)


def test_what_was_not_done_is_named_with_its_command_and_its_models(folders, tmp_path):
    run = write_run(tmp_path / "a run", "demo-dual")
    (folders[2] / "bench.json").unlink()
    found = report.read_report([*folders[1:], run], teacher=folders[0])
    assert found.lacks == {"not evaluated (dcdctl eval)": "a run", "not timed (dcdctl bench)": "fusion"}


def test_a_moved_corpus_is_a_missing_part_and_can_be_named(folders, split):
    for folder in folders:
        change(folder / "result.json", data="/nowhere")
    found = read_demo(folders)
    assert found.corpus is None
    assert list(found.lacks) == ["without images (--data DIR)"]
    again = report.read_report(folders, data=split.folder)
    assert again.corpus.fingerprint == split.fingerprint


def test_the_first_images_of_a_split_are_found_in_it(split, tmp_path):
    some = split.subset(5)
    folder = write_evaluation(tmp_path / "run", some, scores_of(some, 2))
    assert report.read_report([folder]).corpus.fingerprint == some.fingerprint


def test_a_different_corpus_is_refused(folders, corpus, tmp_path):
    folder = write_evaluation(tmp_path / "run", corpus, scores_of(corpus, 1), split="test")
    with pytest.raises(StaleError, match="the results are on split test of the corpus"):
        report.read_report([folder], data=corpus.folder)


def test_a_run_that_was_never_evaluated_is_shown_by_its_training(tmp_path):
    found = report.read_report([write_run(tmp_path / "run", seed=3)])
    assert found.result is None
    assert [(one.label, one.facts["recipe"]["seed"], len(one.metrics)) for one in found.trainings] == [("run", 3, 4)]
    assert found.lacks == {"not evaluated (dcdctl eval)": "run"}


def test_a_training_with_validation_misses_nothing(tmp_path, split):
    folder = write_run(tmp_path / "run", is_measured=True)
    write_evaluation(folder, split, scores_of(split, 2))
    write_bench(folder, "scenes-vilt")
    assert report.read_report([folder]).lacks == {}
