"""The tables of a report, as Markdown and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from made_runs import scores_of, write_evaluation
from speed_ups import check_speed_ups

from dcdctl.core.data import Direction
from dcdctl.core.report import report, write
from dcdctl.core.report import tables as report_tables
from dcdctl.core.report.tables import SHOWN


def table_named(found, start):
    return next(table for table in report_tables.result_tables(found) if table.title.startswith(start))


def cells(table, row, column):
    line = next(line for line in table.rows if line[0].split("\n")[0] == row)
    return line[table.names.index(column)]


def test_a_recall_is_shown_with_its_interval(found):
    document = json.loads((found.models[1].folder / "result.json").read_text())
    low, high = document["intervals"]["image_retrieval"]["R@5"]
    value = document["image_retrieval"]["R@5"]
    assert cells(table_named(found, "Retrieval"), "dual", "image R@5") == f"{value:.1f}\n{low:.1f} to {high:.1f}"


def test_the_difference_is_signed_and_the_baseline_has_none(found):
    table = table_named(found, "Difference to dual-alone")
    rsum = found.models[1].comparison.difference.rsum
    assert cells(table, "dual", "RSUM").split("\n")[0] == f"{rsum.value:+.1f}"
    assert "dual-alone" not in {line[0].split("\n")[0] for line in table.rows}


@pytest.mark.parametrize(
    ("p_values", "shown", "word"),
    [
        ((0.00019, 0.0001), "0.00019", "Better"),
        ((0.0318, 0.2), "0.2", "Not shown to differ"),
        ((0.06, 0.01), "0.06", ""),
    ],
)
def test_the_first_sentence_has_the_p_value_of_the_table_which_both_tests_have_to_show(found, p_values, shown, word):
    system, base = found.models[1], found.models[-1]
    tests = dict(zip(("p_value", "sign_flip_p_value"), p_values, strict=True))
    changed = dataclasses.replace(system, comparison=dataclasses.replace(system.comparison, **tests))
    one = dataclasses.replace(found, models=(changed, base))
    assert cells(table_named(one, "Difference"), "dual", "p") == shown
    assert write.headline(one)[0].startswith(word or "Not shown to differ")
    assert write.headline(one)[0].endswith(f"p {shown}.")


def test_times_have_the_gallery_size_and_a_mark_if_extrapolated(found):
    table = table_named(found, "Size and speed")
    assert cells(table, "teacher", "ms per query") == "~100\namong 1,000 images"
    assert cells(table, "dual", "ms per query") == "1.00\namong 1,000 images"
    assert cells(table, "dual", "speed-up over the teacher") == "100\N{MULTIPLICATION SIGN}"
    check_speed_ups((row[2], row[3] if row[0] != "teacher\nteacher" else "1") for row in table.rows)
    # The dual's 1 ms and 5.5 ms for re-ranking; 100 / 6.5.
    assert cells(table, "dual + fusion, top 10", "ms per query") == "6.50\namong 1,000 images"
    assert cells(table, "dual + fusion, top 10", "speed-up over the teacher") == "15.4\N{MULTIPLICATION SIGN}"
    assert cells(table, "dual", "parameters") == "1.50 M"
    assert "Made-up CPU, 2 threads" in table.title


def test_the_report_opens_with_what_the_student_and_its_cascade_won_and_lost(found, tmp_path):
    dual, teacher = found.models[1].result.rsum, found.models[0].result.rsum
    changes = [(one.comparison.difference.rsum, one.comparison.trainings_p_value) for one in found.models[1:3]]
    verdicts = [
        f"Better: {name} against dual-alone, RSUM {change.value:+.1f} ({change.interval.low:.1f} to "
        f"{change.interval.high:.1f}), p {p_value:.2g}."
        for name, (change, p_value) in zip(("dual", "dual + fusion, top 10"), changes, strict=True)
    ]
    expected = [
        *verdicts,
        f"The dual student answers in 1.00 ms, 100 times faster than the teacher, and keeps {dual:.0f} of 600.",
        f"The cascade dual + fusion, top 10, answers in 6.50 ms, 15.4 times faster than the teacher, "
        f"and keeps {found.models[2].result.rsum:.0f} of 600.",
        f"600 is the highest sum of recalls (RSUM); the teacher has {teacher:.0f}; time: one caption among 1,000 "
        "encoded images.",
    ]
    assert write.headline(found) == expected
    write.write_markdown(tmp_path / "report.md", found)
    assert (tmp_path / "report.md").read_text().splitlines()[2] == expected[0]
    assert write.report_document(found)["headline"] == expected


def test_the_headline_has_the_first_student_and_its_first_cascade_alone(found):
    other = dataclasses.replace(found.models[2], label="another cascade")
    assert write.headline(dataclasses.replace(found, models=(*found.models, other))) == write.headline(found)


def test_a_student_without_a_teacher_reaches_its_recall(split, tmp_path):
    folder = write_evaluation(tmp_path / "run", split, scores_of(split, 1))
    found = report.read_report([folder])
    assert write.headline(found)[0] == f"The run baseline reaches {found.result.rsum:.0f} of 600."


def test_without_a_student_the_baseline_is_told_and_a_teacher_alone_is_not(found):
    teacher, baseline = found.models[0], found.models[-1]
    alone = dataclasses.replace(found, models=(teacher, baseline))
    first, *_ = write.headline(alone)
    assert first == (
        "The dual-alone baseline answers in 3.00 ms, 33.3 times faster than the teacher, and keeps "
        f"{baseline.result.rsum:.0f} of 600."
    )
    assert write.headline(dataclasses.replace(found, models=(teacher,))) == []


def test_markdown_has_every_table_with_rows_of_equal_length(found, tmp_path):
    write.write_markdown(tmp_path / "report.md", found)
    blocks = (tmp_path / "report.md").read_text().split("\n\n")
    tables = [block.strip().splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 3
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("| -:")
    # The model, RSUM, and the measures of both directions.
    assert tables[0][1] == "| --- |" + (1 + 2 * len(SHOWN)) * " ---: |"
    place = "/".join(found.corpus.folder.parts[-2:])
    assert f"- measured on: {place}, split test: 16 images, 80 captions" in blocks[2].replace("\\", "").splitlines()


def test_markdown_escapes_names(split, tmp_path):
    folder = write_evaluation(tmp_path / "a|b_*c*", split, scores_of(split, 1))
    write.write_markdown(tmp_path / "report.md", report.read_report([folder]))
    assert r"| a\|b\_\*c\* (baseline) |" in (tmp_path / "report.md").read_text()


def test_markdown_lists_missing_parts_with_their_commands(split, tmp_path):
    folder = write_evaluation(tmp_path / "run", split, scores_of(split, 1))
    write.write_markdown(tmp_path / "report.md", report.read_report([folder]))
    assert "- not timed (dcdctl bench): run\n" in (tmp_path / "report.md").read_text()


def test_the_document_is_what_was_measured(found):
    rows = {row["model"]: row for row in write.report_document(found)["models"]}
    assert list(rows) == [one.label for one in found.models]
    dual, system = rows["dual"], found.models[1]
    assert dual["rsum"] == system.result.rsum
    assert dual["text_R@1_low"] == system.result.recall(Direction.TEXT, "R@1").interval.low
    assert dual["rsum_difference_high"] == system.comparison.difference.rsum.interval.high
    assert dual["p_value"] == system.comparison.trainings_p_value
    assert (dual["corpus_fingerprint"], dual["role"], dual["ms_gallery_images"]) == (
        system.result.corpus_fingerprint,
        "student",
        1000,
    )
    assert "p_value" not in rows["dual-alone"]


def test_csv_read_back_is_the_document_and_what_was_not_measured_is_empty(found, tmp_path):
    write.write_csv(tmp_path / "report.csv", found)
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    documents = write.report_document(found)["models"]
    assert len(rows) == len(documents)
    for row, document in zip(rows, documents, strict=True):
        assert {name: cell for name, cell in row.items() if cell} == {
            name: str(value) for name, value in document.items() if value is not None
        }
    assert {row["model"]: row["p_value"] for row in rows}["dual-alone"] == ""


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_csv_has_no_name_that_a_spreadsheet_computes(split, tmp_path, monkeypatch, first):
    monkeypatch.chdir(tmp_path)
    name = f"{first}cmd|' calc'!A0"
    folders = [write_evaluation(Path(folder), split, scores_of(split, seed)) for seed, folder in enumerate((name, "b"))]
    found = report.read_report(folders, baseline=folders[1])
    write.write_csv(Path("report.csv"), found)
    with Path("report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["folder"] for row in rows] == [f"'{name}", "b"]
    assert [row["model"] for row in rows] == [f"'{name}", "b"]
    # Numbers below 0 stay numbers.
    difference = found.models[0].comparison.difference.rsum.interval.low
    assert (difference < 0, float(rows[0]["rsum_difference_low"])) == (True, difference)


def test_csv_keeps_a_folder_name_with_any_sign(split, tmp_path):
    folder = write_evaluation(tmp_path / "a\rb", split, scores_of(split, 1))
    write.write_csv(tmp_path / "report.csv", report.read_report([folder]))
    with (tmp_path / "report.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["folder"] == str(folder)
