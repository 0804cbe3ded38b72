"""Recalls that others report: the rows that ship with dcdctl, and `eval` of a tiny model that has a row."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from command_line import document_of, run
from duals import save_dual

import dcdctl
from dcdctl.core import artifacts, data, models
from dcdctl.core.data import Corpus
from dcdctl.core.evaluation.protocols import PAPER_PROTOCOLS
from dcdctl.core.models.references import published

SHIPPED = tomllib.loads((data.manifests_folder() / "published.toml").read_text(encoding="utf-8"))
TABLES = [row for family in SHIPPED["families"] for row in family["rows"]]
SOURCE = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(blob|tree)/[0-9a-f]{40}/[\w./-]+|arXiv:\d{4}\.\d{5}")
HUB_ID = "tiny/clip"


def row_of(name: str, protocol: str) -> models.PublishedRow:
    (row,) = [row for row in models.published_rows(name) if row.protocol == protocol]
    return row


# The rows that ship with dcdctl


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table['models'][0]}-{table['protocol']}")
def test_a_row_is_complete(table):
    for name in table["models"]:
        row = row_of(name, table["protocol"])  # one row for a model and a protocol
        assert row == row_of(table["models"][0], table["protocol"])
    assert row.protocol in {protocol.name for protocol in PAPER_PROTOCOLS}
    assert row.setting in ("zero-shot", "fine-tuned")
    assert row.ranking
    assert row.sources
    assert all(SOURCE.fullmatch(source) for source in row.sources)
    assert len(row.conditions) >= 3
    assert row.recalls.keys() == {"text_retrieval", "image_retrieval"}
    assert {len(recalls) for recalls in row.recalls.values()} in ({1}, {3})
    for recalls in row.recalls.values():
        assert all(low < high for low, high in pairwise((0, *recalls, 100)))
    assert all("/" in name or name.endswith(".ckpt") or name in published.list_teachers() for name in row.models)


def test_the_weights_of_a_named_teacher_are_in_its_row():
    known = published.list_teachers()
    for table in TABLES:
        for name in known.keys() & {*table["models"]}:
            assert (known[name].hub or known[name].url.rpartition("/")[2]) in table["models"]
    assert str(row_of("vilt-coco", "coco-5k")) == (
        "coco-5k: text retrieval 61.62/86.32/92.7, image retrieval 42.99/72.84/83.07"
    )


# How a model is recognized


def test_a_model_is_recognized_by_the_names_of_its_weights(tmp_path, monkeypatch):
    def protocols(ref: object) -> list[str]:
        return [row.protocol for row in models.published_rows(str(ref))]

    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_text('{"_name_or_path": "openai/clip-vit-base-patch32"}', encoding="utf-8")
    both = ["flickr30k-1k", "coco-5k"]
    assert protocols("openai/clip-vit-base-patch32") == protocols("openai/clip-vit-base-patch32@main") == both
    assert protocols(copy) == both
    (tmp_path / "vilt_irtr_coco.ckpt").touch()
    assert protocols(tmp_path / "vilt_irtr_coco.ckpt") == protocols("vilt-coco") == ["coco-5k"]
    (copy / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "vilt-coco").mkdir()  # a run with the name of its recipe
    monkeypatch.chdir(tmp_path)
    others = (
        "someone/clip-vit-base-patch32",
        copy,
        "scenes-vilt",
        "vilt-coco",
        tmp_path / "vilt-coco",
        "CLIP 1234abcd",
    )
    assert [protocols(other) for other in others] == [[]] * len(others)


# `eval` of a tiny model with a row


@pytest.fixture(scope="module")
def papers(scenes_corpus_dir, tmp_path_factory) -> Path:
    """The corpus, saying that its test split is that of Flickr30K."""
    folder = tmp_path_factory.mktemp("papers") / "corpus"
    shutil.copytree(scenes_corpus_dir, folder)
    index = artifacts.read_document(folder / "corpus.json")
    artifacts.write_document(folder / "corpus.json", {**index, "protocol": "Flickr30K 1K: tiny"})
    return folder


@pytest.fixture(scope="module")
def clip(papers, tmp_path_factory) -> Path:
    """A tiny CLIP of the Hub id HUB_ID."""
    folder = save_dual("CLIP", Corpus.open(papers, "test").captions, tmp_path_factory.mktemp("hub") / "clip")
    return renamed(folder, HUB_ID)


@pytest.fixture(scope="module")
def measured(clip, papers) -> dict[str, Any]:
    """What it reaches."""
    return document_of("eval", clip, "--data", papers)


@pytest.fixture
def publish(tmp_path, monkeypatch) -> Callable[..., None]:
    """Make the row of the model the only one."""

    def write(text_retrieval: Sequence[float], image_retrieval: Sequence[float]) -> None:
        lines = [
            "[[families]]",
            'setting = "zero-shot"',
            'ranking = "all pairs"',
            'sources = ["arXiv:2103.00020"]',
            'conditions = ["captions in lower case", "a center crop"]',
            "[[families.rows]]",
            f'models = ["{HUB_ID}"]',
            'protocol = "flickr30k-1k"',
            f"recalls.text_retrieval = {list(text_retrieval)}",
            f"recalls.image_retrieval = {list(image_retrieval)}",
        ]
        (tmp_path / "published.toml").write_text("\n".join(lines), encoding="utf-8")
        monkeypatch.setattr("dcdctl.core.data.manifests_folder", lambda: tmp_path)

    return write


def renamed(folder: Path, hub_id: str) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": hub_id}), encoding="utf-8")
    return folder


def recalls(document: dict[str, Any], direction: str) -> list[float]:
    return [document[f"{direction}_retrieval"][name] for name in ("R@1", "R@5", "R@10")]


def test_a_reproduced_row_passes(clip, papers, measured, publish):
    text, image = recalls(measured, "text"), recalls(measured, "image")
    publish([value - 0.3 for value in text], [value + 0.3 for value in image])
    shown = run("eval", clip, "--data", papers).stdout
    assert "published: tiny/clip, zero-shot, all pairs, protocol flickr30k-1k" in shown
    assert "PASS: all within 0.3 points. Source: arXiv:2103.00020" in " ".join(shown.split())
    (line,) = [line for line in shown.splitlines() if "image retrieval R@5" in line]
    assert re.findall(r"[+-]?\d+\.\d+", line) == [f"{image[1] + 0.3:.2f}", f"{image[1]:.2f}", "-0.30"]


def test_a_row_that_is_missed_names_the_usual_reasons_and_the_conditions(clip, papers, measured, publish):
    # R@1 alone, as some authors report.
    publish([measured["text_retrieval"]["R@1"]], [measured["image_retrieval"]["R@1"] + 0.31])
    shown = " ".join(run("eval", clip, "--data", papers).stdout.split())
    assert "DIFFERS: not all within 0.3 points. The usual reasons are text case, padding, crop and split." in shown
    assert "Published with: captions in lower case; a center crop; the weights as released. Source: arXiv" in shown
    assert "R@5" not in shown.partition("published: ")[2]


def test_a_wrong_normalization_of_pixels_is_found(clip, papers, measured, publish, tmp_path):
    publish(recalls(measured, "text"), recalls(measured, "image"))
    assert dcdctl.evaluate(clip, papers).published.passes
    wrong = shutil.copytree(clip, tmp_path / "wrong")
    (file,) = wrong.glob("*processor_config.json")
    settings = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r'"image_mean": \[[^]]*\]', '"image_mean": [0.0, 0.0, 0.0]', settings), encoding="utf-8")
    assert not dcdctl.evaluate(wrong, papers).published.passes


def test_the_document_has_the_row_on_stdout_and_not_in_the_file(clip, papers, measured, publish, tmp_path):
    assert "published" not in measured
    publish(recalls(measured, "text"), recalls(measured, "image"))
    document = document_of("eval", clip, "--data", papers, "--out", tmp_path / "out")
    found = document["published"]
    assert (found["row"]["models"], found["row"]["ranking"], found["passes"]) == ([HUB_ID], "all pairs", True)
    r1 = measured["text_retrieval"]["R@1"]
    assert found["recalls"]["text retrieval R@1"] == [r1, r1]
    assert "published" not in artifacts.read_document(tmp_path / "out" / "result.json")


@pytest.mark.parametrize("options", ["--max-images 9", "--protocol whole", "--split val", "--dims 4", "--codes int8"])
def test_what_was_measured_otherwise_is_not_compared(clip, papers, measured, publish, options):
    publish(recalls(measured, "text"), recalls(measured, "image"))
    assert "published" not in run(f"eval {clip} --data {papers} {options}").stdout


def test_a_cascade_is_not_compared(clip, papers, measured, publish):
    publish(recalls(measured, "text"), recalls(measured, "image"))
    assert "published" not in document_of("eval", clip, "--data", papers, "--rerank", clip, "--depth", 3)
