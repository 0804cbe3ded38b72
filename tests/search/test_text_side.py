"""The text side that an index holds: searches by texts without torch, the same answers, and old indices."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from made_index import build, searcher_of, update
from noise_index import CAPTIONS
from open_clips import save_open_clip
from tiny import run_script

from dcdctl.core import artifacts
from dcdctl.core.models import TextTower, text_export
from dcdctl.core.search import IndexSearcher
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.storage import text_side_note
from dcdctl.core.search.torch_models import DualVectors

pytestmark = pytest.mark.usefixtures("_duals_read_once")

LONG = " ".join([CAPTIONS[0]] * 20)


def without_text_side(index, folder):
    """A copy of an index as an earlier version made it."""
    shutil.copytree(index, folder)
    shutil.rmtree(folder / "text")
    document = artifacts.read_document(folder / "index.json")
    del document["text"]
    artifacts.write_document(folder / "index.json", document)
    return folder


def one_more(index, folder):
    """A folder with one image."""
    folder.mkdir()
    shutil.copy(index.parent / "images" / "plain.png", folder)
    return folder


def test_a_search_by_a_text_imports_no_torch_and_answers_as_torch_does(noise_index, tmp_path):
    script = """
import json, sys
from dcdctl.cli.app import app
for text in json.loads(sys.argv[2]):
    try:
        app(["search", sys.argv[1], text, "--json"])
    except SystemExit as end:
        assert not end.code
    print("-----")
print(sorted({"torch", "transformers", "scipy", "sklearn", "pandas", "matplotlib", "torchvision"} & set(sys.modules)))
"""
    texts = [*CAPTIONS, "\u72d7", LONG]
    *answers, imported = run_script(script, noise_index, json.dumps(texts)).split("-----\n")
    assert imported.strip() == "[]"
    old = searcher_of(without_text_side(noise_index, tmp_path / "old"))
    assert isinstance(old.texts, DualVectors)
    notes = set()
    for text, printed in zip(texts, answers, strict=True):
        expected, found = old.by_text(text), json.loads(printed)
        assert [hit["row"] for hit in found["hits"]] == [hit.row for hit in expected.hits]
        assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in expected.hits], abs=1e-5)
        assert found["notes"] == list(expected.notes)
        notes |= set(expected.notes)
    assert len(notes) == 3  # unknown words, a text that is cut, and texts that fit no image


def test_the_model_is_loaded_for_an_image_a_reranker_and_another_device(noise_index):
    searcher = searcher_of(noise_index, device="auto")
    assert isinstance(searcher.texts, TextTower)
    assert not searcher.encoder.is_loaded
    name = searcher.by_text(CAPTIONS[0], 1).hits[0].name
    assert not searcher.encoder.is_loaded
    assert searcher.ask(noise_index.parent / "images" / name, 1).hits[0].name == name
    assert searcher.encoder.is_loaded
    assert isinstance(searcher_of(noise_index, rerank=str(noise_index.parent / "dual")).texts, DualVectors)


def test_an_index_holds_the_weights_of_its_text_side_once(noise_index):
    listed = artifacts.read_document(noise_index / "text" / "text.json")["weights"]
    assert list(listed) == ["model/model.safetensors"]


def test_a_model_without_a_text_side_keeps_the_reason_and_is_searched_with_torch(tmp_path, noise_index):
    ref = save_open_clip("open_clip SigLIP", CAPTIONS, tmp_path)
    config = json.loads((ref / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["strip_sep_token"] = True  # by Python code
    (ref / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    index = build(ref, noise_index.parent / "images", tmp_path / "index", IndexConfig())
    assert index.document.text.files == ()
    assert "is Python code" in index.document.text.refused
    assert not (index.folder / "text").exists()
    assert isinstance(IndexSearcher.for_index(index, device="cpu").texts, DualVectors)
    more = update(index.folder, add=one_more(noise_index, tmp_path / "more"))
    assert (more.num_images, more.document.text) == (13, index.document.text)


@pytest.mark.parametrize("package", text_export.TEXT_PACKAGES)
def test_without_a_package_an_index_is_made_without_a_text_side_and_gets_one_later(
    noise_index, tmp_path, monkeypatch, package
):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        index = build(noise_index.parent / "dual", noise_index.parent / "images", tmp_path / "index", IndexConfig())
    assert index.document.text is None
    assert "packages onnx and onnxruntime were missing" in text_side_note(index.document)
    assert isinstance(searcher_of(index.folder).texts, DualVectors)
    changed = update(index.folder, add=one_more(noise_index, tmp_path / "more"))
    assert text_side_note(changed.document) == ""
    assert isinstance(searcher_of(index.folder).texts, TextTower)


def test_without_onnx_runtime_texts_are_searched_with_torch(noise_index, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert isinstance(searcher_of(noise_index).texts, DualVectors)
