"""The report of agreements with a teacher: on pools, and beside recalls."""

from __future__ import annotations

import csv

import pytest
from command_line import document_of, error_of, run
from evaluations import add_agreement, agreements_of, write_evaluation, write_pool_agreement, write_top
from made_runs import write_bench
from tiny import make_corpus

OURS, BASE = ([0.6, 0.4], [0.5] * 4), ([0.5, 0.3], [0.4] * 4)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the evaluations `base`, `ours` and `big` of one pool."""
    monkeypatch.chdir(tmp_path)
    for name, values in (("base", BASE), ("ours", OURS), ("big", ([1.0] * 2, [1.0] * 4))):
        write_pool_agreement(tmp_path / name, agreements_of(*values))
    return tmp_path


LINE = "report ours --baseline base --teacher-eval big --csv numbers.csv --to-markdown page.md"


def test_a_report_of_a_pool_has_the_agreement_and_its_difference(here):
    document = document_of(LINE)
    assert document["headline"] == [
        "Better: ours against base, nDCG@10 of agreement with the teacher +10.0 (10.0 to 10.0), p 0.031.",
        "The ours student keeps 50 of 100.",
        "100 is the highest agreement with the teacher (nDCG@10); the teacher has 100.",
    ]
    assert document["left_out"] == {"not timed (dcdctl bench)": "ours, base"}
    with (here / "numbers.csv").open(newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    ours = rows["ours"]
    # (50 + 50) / 2, 10 more than the base.
    numbers = {"ndcg": 50, "text_nDCG@10": 50, "text_nDCG@10_low": 40, "text_nDCG@10_high": 60, "image_spearman": 0.5}
    numbers |= {"ndcg_difference": 10, "ndcg_difference_low": 10, "ndcg_difference_high": 10, "p_value": 2 / 64}
    assert {name: float(ours[name]) for name in numbers} == pytest.approx(numbers)
    assert (ours["agreement_with"], ours["agreement_over"], ours["captions"]) == ("big", "all", "4")
    assert "rsum" not in ours
    markdown = (here / "page.md").read_text()
    for said in (
        "- measured by: agreement with big over all candidates; a tie counts against the model",
        "2 images, 4 texts",
        "| ours | 50.0 | 0.0 (0.0 to 0.0) | 50.0 (40.0 to 60.0) | 0.50 (0.40 to 0.60) |",
        "| ours | +10.0 (+10.0 to +10.0) | 0.031 | +0.0 (+0.0 to +0.0) | +10.0 (+10.0 to +10.0) | +0.10 (+0.10 to",
    ):
        assert said in markdown
    assert "RSUM" not in (here / "report.html").read_text()


def test_a_direction_without_queries_is_a_dash(here):
    for name, level in (("base", 0.4), ("ours", 0.5)):
        write_pool_agreement(here / name, agreements_of([], [level] * 4))
    run("report ours --baseline base --to-markdown page.md")
    assert "| ours | 50.0 | – | – | – | 0.0" in (here / "page.md").read_text()  # noqa: RUF001


def test_times_have_their_chart(here):
    for name in ("base", "ours"):
        write_bench(here / name, "big", student_ms=2.0, teacher_ms=100.0)
    run("report ours --baseline base")
    page = (here / "report.html").read_text()
    assert "Agreement against query time" in page
    assert "ours: 2 ms, nDCG@10 50.0" in page


OTHERWISE = {"teacher": {"teacher": "other"}, "split": {"split": "val"}, "corpus": {"corpus_fingerprint": "beef"}}


@pytest.mark.parametrize("what", OTHERWISE)
def test_agreements_that_cannot_be_compared_are_refused_and_nothing_is_written(here, what):
    write_pool_agreement(here / "other", agreements_of(*OURS), **OTHERWISE[what])
    said = error_of("report ours other")
    assert "other was evaluated on split" in said
    assert "report them apart" in said
    assert not (here / "report.html").exists()


def ranked(folder):
    corpus = make_corpus(folder.parent / f"{folder.name}-corpus", [["a", "b"], ["c", "d"]])
    write_evaluation(folder, corpus, [1, 1], [1, 1, 2, 1], corpus_fingerprint="c0ffee")
    write_top(folder / "top.parquet", corpus, [[0]] * 2, [[0]] * 4)
    return folder


def test_data_that_are_not_those_of_the_pool_are_refused(here):
    make_corpus(here / "else", [["a"], ["b"]])
    assert "the results are on split train of the corpus c0ffee" in error_of("report ours --data else")


def test_recalls_and_a_pool_are_two_reports(here):
    ranked(here / "ranks")
    said = error_of("report ours ranks")
    assert "by agreement with big" in said
    assert "protocol whole" in said


def test_of_recalls_and_a_pool_in_one_folder_the_recalls_are_shown(here):
    write_pool_agreement(ranked(here / "both"), agreements_of(*OURS))
    (model,) = document_of("report both")["models"]
    assert "rsum" in model
    assert "ndcg" not in model


def test_beside_recalls_each_teacher_has_a_table_of_its_own(here):
    for name, teacher in (("one", "big"), ("two", "big"), ("three", "other")):
        add_agreement(ranked(here / name), agreements_of(*OURS, [0, 0, 1, 1]), teacher)
    ranked(here / "four")
    document = document_of("report one two three four --to-markdown page.md")
    assert [model.get("ndcg") for model in document["models"]] == [pytest.approx(50)] * 3 + [None]
    assert all("rsum" in model for model in document["models"])
    markdown = (here / "page.md").read_text()
    by_big, by_other = (markdown.split(f"Agreement with {name}")[1].split("\n\n")[1] for name in ("big", "other"))
    assert [line.split()[1] for line in by_big.splitlines()[2:]] == ["one", "two"]
    assert [line.split()[1] for line in by_other.splitlines()[2:]] == ["three"]
