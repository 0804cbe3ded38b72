"""The charts of a report and their data."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from evaluations import change_json
from made_runs import scores_of, write_demo, write_evaluation, write_run

from dcdctl.core.report import charts as report_charts
from dcdctl.core.report import report


def titles(charts):
    return [re.findall("<figcaption>(.*?)</figcaption>", one)[0] for one in charts]


def told(chart):
    return re.findall("<desc[^>]*>(.*?)</desc>", chart)[0]


def test_points_are_benchmarks_of_models_and_depths_of_cascades(found):
    said = told(report_charts.speed_against_recall(found))
    rsum = {one.label: one.result.rsum for one in found.models}
    assert f"teacher: 100 ms, RSUM {rsum['teacher']:.1f}" in said
    assert f"fusion: 2 ms, RSUM {rsum['fusion']:.1f}" in said
    # Among the 1,000 images of the benchmarks: 1 ms for the dual, and 2 and 5.5 ms for re-ranking.
    assert "top 5: 3 ms, RSUM 300.0" in said
    assert "dual + fusion, top 10: 6.5 ms, RSUM 350.0" in said


def test_the_broken_line_joins_the_points_that_no_other_is_left_of_and_above(found):
    chart = report_charts.speed_against_recall(found)
    # After the axes come the line, then the points, which cover it; the y of an SVG grows downward.
    line, after = re.findall(r'<path d="([^"]*)"[^>]*stroke-dasharray[^>]*>(.*)', chart)[0]
    legend = after.index("legend_1")
    points = [(float(x), float(y)) for x, y in re.findall(r'<use xlink:href="\S+" x="(\S+)" y="(\S+)"', after[:legend])]
    front = [(x, y) for x, y in points if not any(a <= x and b <= y for a, b in points if (a, b) != (x, y))]
    assert 1 < len(front) < len(points) == 6
    assert [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", line)] == sorted(front)


def test_a_cascade_without_the_time_of_its_dual_alone_is_not_on_the_axis_of_another_gallery(split, tmp_path):
    folders = write_demo(tmp_path / "demo", split)
    depths = json.loads((folders[1] / "cascade.json").read_text())["depths"]
    change_json(folders[1] / "cascade.json", depths=[row for row in depths if row["depth"]])
    found = report.read_report(folders[1:], teacher=folders[0])
    chart = report_charts.speed_against_recall(found)
    assert "dual + fusion" not in chart
    assert "ms per query among 1,000 images" in chart


def test_a_single_point_gives_no_chart(split, tmp_path):
    folder = write_evaluation(tmp_path / "run", split, scores_of(split, 1))
    assert report_charts.speed_against_recall(report.read_report([folder])) is None


def test_a_loss_with_several_parts_is_drawn_with_them_and_a_single_loss_once(found):
    dual, fusion, _, _ = report_charts.training_curves(found)
    assert told(dual) == (
        "all: from 1.2 at step 0 to 0.03871 at step 30; infonce: from 0.6 at step 0 to 0.01935 at step 30; "
        "margin-mse: from 0.6 at step 0 to 0.01935 at step 30"
    )
    assert told(fusion).count("from") == 1
    assert told(fusion).startswith("dcd: from 2 at step 0")


def test_the_recalls_of_the_start_are_no_parts_of_a_loss(found):
    first, *others = found.trainings
    start = {f"start_R@{k}_{side}": 1.0 for side in ("text", "image") for k in (1, 5, 10)} | {"start_rsum": 6.0}
    validated = replace(first, metrics=[{**first.metrics[0], **start}, *first.metrics[1:]])
    charts = report_charts.training_curves(replace(found, trainings=(validated, *others)))
    assert told(charts[0]) == told(report_charts.training_curves(found)[0])


def test_recall_is_drawn_for_trainings_with_validation(tmp_path):
    runs = [write_run(tmp_path / name, is_measured=is_measured) for name, is_measured in (("a", True), ("b", False))]
    charts = report_charts.training_curves(report.read_report(runs))
    assert titles(charts) == ["Loss of a", "Loss of b", "Recall on the validation split", "Learning rate"]
    assert told(charts[2]) == "a: from 100 at step 0 to 130 at step 30"


def test_scores_are_drawn_for_models_and_not_for_cascades(found):
    scores = report_charts.scores(found)
    assert titles(scores["image"]) == [
        f"{name}: images of a caption" for name in ("teacher", "dual", "fusion", "dual-alone")
    ]
    assert titles(scores["text"])[0] == "teacher: captions of an image"
