"""`dcdctl export` from a run to the results of other libraries in separate processes."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from encoders import make_pair, save_text, save_vision
from forks import LIBRARIES, run_forked
from paths import DOCS
from processes import make_once
from read_back import READ, odd_pictures, rankings, recalls
from tiny import contents, make_teacher, run_script
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import (
    ConfigError,
    CorpusError,
    ModelError,
)
from dcdctl.core.export import ExportJob, export, model_card, to_transformers

PAGE = DOCS / "export.md"
BLOCKS = {
    name[1]: block
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    if (name := re.search(r'"((?:dual|pair|vilt|co)-[a-z]+)"', block))
}
"""The page's Python, by the folder that it loads."""
JOBS = {
    "dual-transformers": ("dual", "transformers"),
    "pair-transformers": ("pair", "transformers"),
    "vilt-transformers": ("vilt", "transformers"),
    "co-attention": ("pair-scorer", "transformers"),
    "dual-sentences": ("dual", "sentence-transformers"),
    "pair-sentences": ("pair", "sentence-transformers"),
    "dual-onnx": ("dual", "onnx"),
}
BY_TORCH = f"""{READ}
assert "dcdctl" not in sys.modules
sys.modules["dcdctl"] = None  # cannot be imported
for name in ("dual-transformers", "pair-transformers"):
    exec(blocks[name], space := {{}})
    keep(name, images=space["embed_images"](pictures), texts=space["embed_texts"](captions), scores=space["scores"])
exec(blocks["vilt-transformers"], space := {{}})
keep("vilt-transformers", logits=space["score"](pictures, captions[: len(pictures)]))
assert "sentence_transformers" not in sys.modules
exec(blocks["dual-sentences"], space := {{}})
pictures = [picture.convert("RGB") if picture.mode == "RGBA" else picture for picture in pictures]
keep("dual-sentences", images=space["model"].encode(pictures), texts=space["model"].encode(captions),
scores=space["scores"])
model = space["SentenceTransformer"]("pair-sentences", trust_remote_code=True)
keep("pair-sentences", images=model.encode(pictures), texts=model.encode(captions))
del sys.modules["dcdctl"]
exec(blocks["co-attention"], space := {{}})
keep("co-attention", logits=space["score"](pictures, captions[: len(pictures)]).detach())
"""
WITHOUT_TORCH = f"""
import sys
from importlib.machinery import PathFinder


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ("torch", "torchvision", "timm") else PathFinder.find_spec(name, path,
        target)


sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
sys.modules["dcdctl"] = None
{READ}
exec(blocks["dual-onnx"], space := {{}})
keep("dual-onnx", images=space["embed_images"](pictures), texts=space["embed_texts"](captions), scores=space["scores"])
exec(blocks["dual-onnx"].replace('folder + "', 'folder + "/int8'), space := {{}})
keep("dual-onnx-int8", images=space["embed_images"](pictures), texts=space["embed_texts"](captions))
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="session")
def gallery(scenes_corpus_dir) -> Corpus:
    return Corpus.open(scenes_corpus_dir, "test")


@pytest.fixture(scope="session")
def sources(place, gallery, dual_run) -> dict[str, Path]:
    """A run of a dual encoder with its evaluation, and three models of other kinds."""
    size = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 48,
        "patch_size": 16,
        "max_text_len": 12,
    }
    runs = {"dual": dual_run} | {name: place / name for name in ("pair", "vilt", "pair-scorer")}
    refs = save_vision("timm map", place / "vision"), save_text("bert", gallery.captions, place / "text")
    spec = models.FeatureSpec(levels=(0, 2))
    models.save(
        models.new_frozen_dual(*refs, models.ProjectionSize(projection_dim=8), max_text_len=12, features=spec),
        runs["pair"],
    )
    models.save(make_teacher(gallery.captions, size=models.ViltSize(num_hidden_layers=2, **size)), runs["vilt"])
    models.save(make_pair(gallery.captions, place / "encoders"), runs["pair-scorer"])
    return runs


@pytest.fixture(scope="session")
def outcomes(place, sources, scenes_corpus_dir, onnx_student) -> dict[str, export.Exported]:
    (place / "dual-onnx").symlink_to(onnx_student.folder)
    found = {"dual-onnx": onnx_student}
    for name, (ref, to) in JOBS.items():
        if name not in found:
            found[name] = export.export_model(
                ExportJob(model=str(sources[ref]), out=place / name, to=to, data=scenes_corpus_dir)
            )
    return found


@pytest.fixture(scope="session")
def read_back(place, outcomes, gallery, tmp_path_factory) -> dict[str, Any]:
    """`by_the_code_of_the_docs`, computed once for all test processes."""
    return make_once(tmp_path_factory, "exports-read-back", lambda _: by_the_code_of_the_docs(place, gallery))


def by_the_code_of_the_docs(place: Path, gallery: Corpus) -> dict[str, Any]:
    """The results of each folder in processes that run the code of the docs; dcdctl is importable only for its own
    format."""
    (place / "pictures").mkdir()
    for image in range(gallery.num_images):
        gallery.image(image).save(place / "pictures" / f"{image:03}.png")
    for name, picture in enumerate(odd_pictures()):
        picture.save(place / "pictures" / f"odd-{name}.png")
        picture.save(place / "photo.png")
    (place / "captions.json").write_text(json.dumps(gallery.captions))
    (place / "blocks.json").write_text(json.dumps({**BLOCKS}))
    start = f"import os\nos.chdir({str(place)!r})\n"
    run_forked(start + BY_TORCH, imported=LIBRARIES)
    run_script(start + WITHOUT_TORCH)
    return {path.stem: dict(np.load(path)) for path in place.glob("*.npz")}


@pytest.mark.parametrize("name", ["dual-transformers", "dual-sentences", "dual-onnx"])
def test_a_fresh_process_ranks_like_eval(name, read_back, sources, gallery):
    ranks, kept = rankings(read_back[name], gallery), pd.read_parquet(sources["dual"] / "ranks.parquet")
    result = json.loads((sources["dual"] / "result.json").read_text())
    for way in ("text", "image"):
        assert list(ranks[way]) == list(kept[kept.direction == way]["rank"])
        assert recalls(ranks)[f"{way}_retrieval"] == {
            f"R@{k}": result[f"{way}_retrieval"][f"R@{k}"] for k in (1, 5, 10)
        }


def test_int8_moves_few_queries(read_back, sources, gallery):
    """One of 16 images, and one in twenty of 80 captions, may cross the cutoff of a recall: vectors turn by a degree or
    less."""
    result = json.loads((sources["dual"] / "result.json").read_text())
    found = recalls(rankings(read_back["dual-onnx-int8"], gallery))
    for name, allowed in (("text_retrieval", 100 / 16), ("image_retrieval", 5)):
        assert found[name] == pytest.approx({k: result[name][k] for k in found[name]}, abs=allowed + 1e-9)
    assert not np.array_equal(read_back["dual-onnx-int8"]["texts"], read_back["dual-onnx"]["texts"])


@pytest.mark.parametrize(
    "name", ["dual-transformers", "pair-transformers", "dual-sentences", "pair-sentences", "dual-onnx"]
)
def test_vectors_equal_the_models_also_for_transparent_images_and_long_captions(name, read_back, sources, gallery):
    model = models.load_dual(sources[name.partition("-")[0]])
    assert any(len(ids) > 12 for ids in model.preprocess.tokenizer(gallery.captions)["input_ids"])
    pictures = [*gallery.images(range(gallery.num_images)), *odd_pictures()]
    with torch.no_grad():
        images, texts = (
            model.embed_images(model.preprocess.images(pictures)),
            model.embed_texts(model.preprocess.texts(gallery.captions)),
        )
    np.testing.assert_allclose(read_back[name]["images"], images, atol=2e-6)
    np.testing.assert_allclose(read_back[name]["texts"], texts, atol=2e-6)


@pytest.mark.parametrize("name", ["vilt-transformers", "co-attention"])
def test_scores_of_a_fusion_student_equal_the_models(name, read_back, sources, gallery):
    scorer = models.load_fusion(sources[JOBS[name][0]])
    pictures = [*gallery.images(range(gallery.num_images)), *odd_pictures()]
    ix = torch.arange(len(pictures))
    images = scorer.encode_images(scorer.preprocess.images(pictures))
    texts = scorer.encode_texts(scorer.preprocess.texts(gallery.captions[: len(pictures)]))
    wanted = scorer.score_pairs(images, texts, ix, ix).detach().numpy()
    assert wanted.std() > 0.02
    np.testing.assert_allclose(read_back[name]["logits"], wanted, atol=1e-4)


@pytest.mark.parametrize("name", JOBS)
def test_the_card_has_the_code_of_the_docs(name, place, outcomes):
    card = (place / name / "README.md").read_text(encoding="utf-8")
    if name in BLOCKS:
        assert f"```python\n{BLOCKS[name]}```" in card
    assert not re.search(r"/(tmp|home|root)/", card)
    assert outcomes[name].num_bytes == sum(len(content) for content in contents(place / name).values())


def test_checks_report_what_was_compared(outcomes):
    assert [(one.precision, one.lowest_cosine > 0.9999) for one in outcomes["dual-sentences"].checks] == [
        ("fp32", True)
    ]
    fp32, int8 = outcomes["dual-onnx"].checks
    assert (fp32.precision, int8.precision) == ("fp32", "int8")
    assert fp32.lowest_cosine > int8.lowest_cosine > 0.98
    assert outcomes["dual-onnx"].checked_on == "16 images of scenes, split test"
    assert outcomes["co-attention"].checks[0].largest_difference == 0


def job_of(sources, tmp_path, **changes) -> ExportJob:
    return replace(ExportJob(model=str(sources["dual"]), out=tmp_path / "out", to="transformers"), **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"to": "gguf"},
            ConfigError,
            "--to gguf is not a format; known: transformers, sentence-transformers, open-clip, onnx",
        ),
        ({"model": "nowhere"}, ModelError, "nowhere does not exist"),
        ({"data": Path("nowhere")}, CorpusError, "nowhere"),
        (
            {"model": "vilt", "to": "onnx"},
            ModelError,
            "is a fusion model, which does not export to ONNX: its shapes depend on the data",
        ),
        (
            {"model": "pair-scorer", "to": "sentence-transformers"},
            ModelError,
            "is a fusion model, which has no vectors",
        ),
    ],
)
def test_a_refused_export_leaves_no_folder(changes, error, message, sources, tmp_path):
    if changes.get("model") in sources:
        changes = {**changes, "model": str(sources[changes["model"]])}
    with pytest.raises(error, match=re.escape(message)):
        export.export_model(job_of(sources, tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_an_export_with_other_vectors_is_refused(sources, tmp_path, monkeypatch):
    write = to_transformers.write

    def forgetful(model, folder):
        write(model, folder)
        torch.nn.init.normal_(model.network.text_projection.weight, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(to_transformers, "write", forgetful)
    with pytest.raises(
        ModelError,
        match=r"the exported fp32 model have a cosine of .* with those of the model, it must be at least 0.9999",
    ):
        export.export_model(job_of(sources, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_no_folder_and_the_next_one_cleans_up(sources, tmp_path, monkeypatch):
    job = job_of(sources, tmp_path)
    if not (child := os.fork()):
        torch.set_num_threads(1)  # a fork has no other threads to wait for
        monkeypatch.setattr(model_card, "write", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        export.export_model(job)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not job.out.exists()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] != []
    export.export_model(job)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_has_the_checks(sources, tmp_path):
    words = ["export", str(sources["pair-scorer"]), "--out", str(tmp_path / "out"), "--to", "transformers", "--json"]
    told = json.loads(CliRunner().invoke(app, words).stdout)
    assert (told["kind"], told["checks"]) == (
        "fusion",
        [{"precision": "fp32", "lowest_cosine": None, "largest_difference": 0.0}],
    )
    assert told["checked_on"] == "32 images of the built-in corpus"
