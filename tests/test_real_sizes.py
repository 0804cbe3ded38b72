"""benchmarks/real_sizes.py with tiny models: its ratios are those of its times, and a stopped run resumes."""

from __future__ import annotations

import importlib
import re
import subprocess

import pytest
from paths import ROOT

from dcdctl.core import artifacts
from dcdctl.core.errors import StaleError

TEACHERS = ["meter-288", "blip-large"]


@pytest.fixture(scope="module")
def real_sizes():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("real_sizes")


@pytest.fixture(scope="module")
def work(real_sizes, tmp_path_factory):
    """The folder of a run with two teachers; the models of students are made once."""
    folder = tmp_path_factory.mktemp("sizes")
    for teacher in TEACHERS:
        document = real_sizes.measure(teacher, folder, real_sizes.Maker(is_toy=True))
        artifacts.write_document(folder / f"{teacher}.json", document)
    return folder


def test_speed_ups_are_the_ratios_of_the_times_beside_them(real_sizes, work):
    document = artifacts.read_document(work / "meter-288.json")
    teacher = document["teacher"]
    caption, largest = teacher["caption_s"]["value"], teacher["encoded_before"]["50"]["value"]
    assert teacher["encoded_before"]["1000"]["value"] == pytest.approx(caption + max(0, largest - caption) * 20)
    assert document["students"].keys() == real_sizes.STUDENTS.keys()
    for student in document["students"].values():
        alone = student["query_s"]["value"]
        for way, speed_ups in student["speed_ups"].items():
            seconds = {count: each["value"] for count, each in teacher[way].items()}
            expected = {"0": alone, "2": alone + seconds["2"], "5": alone + seconds["5"]}
            for count, cascade in expected.items():
                assert speed_ups[count]["value"] == pytest.approx(seconds["1000"] / cascade)
    with_images = teacher["encoded_before"]["5"]["value"] + 5 * teacher["image_s"]["value"]
    assert teacher["encoded_with_it"]["5"]["value"] == pytest.approx(with_images)


def test_captions_have_as_many_tokens_as_those_of_photos(work):
    for teacher in TEACHERS:
        document = artifacts.read_document(work / f"{teacher}.json")
        for model in (document["teacher"], *document["students"].values()):
            assert 12 <= model["caption_tokens"] <= 16


def test_a_finished_teacher_is_not_timed_again(real_sizes, work, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command[-1]))
    monkeypatch.setitem(real_sizes.TEACHERS, "later", real_sizes.TEACHERS["vilt"])
    with pytest.raises(StaleError):
        real_sizes.main(["--out", str(work), "--size", "toy", "--teachers", *TEACHERS, "later"])
    assert asked == ["later"]
    real_sizes.main(["--out", str(work), "--teachers", *TEACHERS])
    text = capsys.readouterr().out
    assert text == (work / "README.md").read_text()
    assert asked == ["later"]
    # A ratio with its interval for each teacher, of five students and of their first two and first five.
    ratios = re.findall(r"^\| .*x \(.*x \(.*\|$", text, re.MULTILINE)
    assert len(ratios) == 3 * len(real_sizes.STUDENTS) + 3
    assert text.count("| arithmetic: teacher on an ") == 4
    assert "nan" not in text
