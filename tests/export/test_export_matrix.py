"""Every dual encoder in every format that holds it, loaded by its library in one process without dcdctl, and the other
formats refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from families import FAMILIES, late
from forks import LIBRARIES, run_forked
from huggingface_hub import constants
from origins import ORIGINS
from packaging.version import Version
from quick_libraries import operators_once
from read_back import READ, odd_pictures, rankings, recalls
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ModelError
from dcdctl.core.export import ExportJob, export

FORMATS = ("transformers", "sentence-transformers", "open-clip", "onnx")
OWN_FORMATS = {"open_clip": ("open-clip", "onnx"), "SentenceTransformer": ("sentence-transformers",)}
CLASSES = {
    **{
        "dual": "VisionTextDualEncoderModel",
        "frozen dual": "EncoderDualModel",
        "CLIP": "CLIPModel",
        "MetaCLIP 2": "MetaClip2Model",
    },
    **{"SigLIP": "SiglipModel", "SigLIP 2": "Siglip2Model", "Chinese-CLIP": "ChineseCLIPModel", "ALIGN": "AlignModel"},
}
"""The class of transformers, or of the code in the folder."""
DUALS = [name for name, origin in ORIGINS.items() if origin.kind == "dual"]
NO_PATCHES = [("SigLIP 2", "onnx")] if Version(torch.__version__) < Version("2.10") else []
"""What an older torch cannot export, and says so."""
HELD = [
    (name, to)
    for name in DUALS
    for to in OWN_FORMATS.get(name, ("transformers", "sentence-transformers", "onnx"))
    if (name, to) not in NO_PATCHES
]
IN_EVERY_RUN = [
    (name, to)
    for name, to in HELD
    if to != "onnx" and (to != "sentence-transformers" or name in ("SigLIP 2", "SentenceTransformer"))
]
"""The others are slow: torch takes 5 seconds to export a model. `LATE` has SigLIP 2 in ONNX, with patches, a mask and
padded captions, all that may go wrong."""
LENGTH = 9
"""Tokens of a caption, fewer than the models have positions for, as a recipe may set it."""
ALONE = """
from huggingface_hub import constants

constants.HF_HUB_OFFLINE = True
assert "dcdctl" not in sys.modules
sys.modules["dcdctl"] = None  # cannot be imported
rgb = [picture.convert("RGB") for picture in pictures]
"""
READ_BACK = f"""{ALONE}"""
READ_BACK += """

def embedders(name, space):
    model = space.get("model")
    if name.endswith("sentence-transformers"):
        return model.encode, model.encode
    if not name.endswith("open-clip"):
        return space["embed_images"], space["embed_texts"]
    stack, transform, tokenizer = space["torch"].stack, space["transform"], space["tokenizer"]
    return (
        lambda pictures: model.encode_image(stack(list(map(transform, pictures))), normalize=True).detach(),
        lambda texts: model.encode_text(tokenizer(texts), normalize=True).detach(),
    )


def facts_of(name, space):
    if name.endswith("onnx"):
        tokens = space["text_tower"].get_inputs()[0].shape[1]
        return space["image_tower"].get_modelmeta().custom_metadata_map | {"tokens": tokens}
    found = {field: getattr(space["model"], field, None) for field in ("logit_scale", "logit_bias")}
    return {"class": type(space["model"]).__name__, **{field: float(value) for field,
    value in found.items() if value is not None}}


for name, block in blocks.items():
    exec(block, space := {})
    embed_images, embed_texts = embedders(name, space)
    keep(name, images=embed_images(rgb), texts=embed_texts(captions), facts=json.dumps(facts_of(name, space)))
"""


@pytest.fixture(scope="module")
def gallery(scenes_corpus_dir) -> Corpus:
    return Corpus.open(scenes_corpus_dir, "test")


@pytest.fixture(scope="module")
def sources(gallery, tmp_path_factory) -> dict[str, Path]:
    """A student of each family as a training saves it, with captions of `LENGTH` tokens; the two other libraries' own
    folders."""
    root, folders = tmp_path_factory.mktemp("sources"), {}
    for name in DUALS:
        saved = ORIGINS[name].save(gallery.captions, root / "saved" / name.replace(" ", "-"))
        folders[name] = Path(saved) if name in OWN_FORMATS else root / name.replace(" ", "-")
        if name not in OWN_FORMATS:
            models.save(models.load(saved, {"max_text_len": LENGTH}), folders[name])
    return folders


def read_back(
    pairs: list[tuple[str, str]], sources: dict[str, Path], gallery: Corpus, place: Path
) -> dict[tuple[str, str], dict[str, Any]]:
    """Each export by the code on its model card, all in one process that cannot import dcdctl."""
    blocks = {}
    for name, to in pairs:
        folder = f"{name.replace(' ', '-')}-{to}"
        export.export_model(
            ExportJob(model=str(sources[name]), out=place / folder, to=to, data=gallery.folder, int8=False)
        )
        blocks[folder] = code_of(place / folder)
    run_blocks(blocks, READ_BACK, gallery, place)
    return {pair: dict(np.load(place / f"{folder}.npz")) for pair, folder in zip(pairs, blocks, strict=True)}


def code_of(folder: Path) -> str:
    """The code on the model card of an export."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def run_blocks(blocks: dict[str, str], script: str, gallery: Corpus, place: Path) -> None:
    """Run a script on the code of exports, in a process with the images and captions of the gallery."""
    (place / "pictures").mkdir()
    for image, picture in enumerate([*gallery.images(range(gallery.num_images)), *odd_pictures()]):
        picture.save(place / "pictures" / f"{image:03}.png")
        picture.save(place / "photo.png")
    (place / "captions.json").write_text(json.dumps(gallery.captions))
    (place / "blocks.json").write_text(json.dumps(blocks))
    run_forked(f"import os\nos.chdir({str(place)!r})\n{READ}{script}", imported=LIBRARIES)


def recalls_of_eval(ref: Path, gallery: Corpus, ranks: Path) -> dict[str, dict[str, float]]:
    words = [
        "eval",
        ref,
        "--data",
        gallery.folder,
        "--split",
        gallery.split,
        "--device",
        "cpu",
        "--json",
        "--out",
        ranks,
    ]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    return {
        name: {k: document[name][k] for k in ("R@1", "R@5", "R@10")} for name in ("text_retrieval", "image_retrieval")
    }


def check_exports(pairs: list[tuple[str, str]], sources: dict[str, Path], gallery: Corpus, place: Path) -> None:
    """AssertionError for an export whose vectors, recalls, class or logits differ from those of its source."""
    with operators_once():
        found = read_back(pairs, sources, gallery, place)
    for name in dict.fromkeys(name for name, _ in pairs):
        model, expected = (
            models.load_dual(sources[name]),
            recalls_of_eval(sources[name], gallery, place / f"{name}-evaluation"),
        )
        pictures = [picture.convert("RGB") for picture in [*gallery.images(range(gallery.num_images)), *odd_pictures()]]
        with torch.no_grad():
            images, texts = (
                model.embed_images(model.preprocess.images(pictures)),
                model.embed_texts(model.preprocess.texts(gallery.captions)),
            )
        assert (images @ texts.T).std() > 0.01
        for to in (to for one, to in pairs if one == name):
            read = found[name, to]
            np.testing.assert_allclose(read["images"], images, atol=5e-6, err_msg=f"images of {name}, {to}")
            np.testing.assert_allclose(read["texts"], texts, atol=5e-6, err_msg=f"captions of {name}, {to}")
            assert recalls(rankings(read, gallery)) == expected, (name, to)
            check_logits(json.loads(str(read["facts"])), model, name, to)
            check_by_dcdctl(place / f"{name.replace(' ', '-')}-{to}", model, gallery, is_onnx=to == "onnx")


def check_logits(facts: dict[str, Any], model: models.DualEncoder, name: str, to: str) -> None:
    """AssertionError if an export lacks the scale, the offset, the class or the number of tokens of its source."""
    if to == "onnx":
        assert facts["tokens"] == (model.export_spec().padded_length or "tokens")
        assert float(facts["logit_scale"]) == pytest.approx(float(model.logit_scale.detach()))
    if to in ("onnx", "transformers", "open-clip"):
        assert float(facts.get("logit_bias", 0)) == pytest.approx(
            0 if model.logit_bias is None else float(model.logit_bias.detach())
        )
    if to == "transformers":
        assert facts["class"] == CLASSES[name]


def check_by_dcdctl(folder: Path, model: models.DualEncoder, gallery: Corpus, *, is_onnx: bool) -> None:
    """AssertionError if dcdctl reads another model from an export, or computes other vectors from its ONNX files, as
    bench does."""
    if not is_onnx:
        assert models.load(folder).digest == model.digest, folder
        return
    assert not (folder / "int8").exists()
    onnx = models.OnnxTowers(folder, device=torch.device("cpu"))
    for count in (1, 3):
        images, texts = (
            model.preprocess.images(gallery.images(range(count))),
            model.preprocess.texts(gallery.captions[:count]),
        )
        assert models.check_onnx(onnx, model, images, texts) < 5e-6, folder


def test_each_export_ranks_like_eval_in_a_process_without_dcdctl(sources, gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_exports(IN_EVERY_RUN, sources, gallery, tmp_path)


@pytest.mark.slow
def test_each_other_export_ranks_like_eval_in_a_process_without_dcdctl(sources, gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_exports([pair for pair in HELD if pair not in IN_EVERY_RUN], sources, gallery, tmp_path)


LATE = [
    ("SigLIP", "sentence-transformers", 0.7),
    ("dual of two encoders", "sentence-transformers", 0.0),
    *([] if NO_PATCHES else [("SigLIP 2", "onnx", 0.0)]),
]
"""A model that attends to padded captions and has positions, two towers of different types, and images with padding."""
READ_LATE = f"""{ALONE}
for name, block in blocks.items():
    exec(block, space := {{}})
    if name.endswith("onnx"):
        keep(name, scores=space["maxsim"](space["embed_texts"](captions), space["embed_images"](rgb)))
        continue
    model = space["model"]
    keep(name, scores=model.similarity(model.encode_query(captions), model.encode_document(rgb)))
"""


def test_a_late_model_has_its_scores_in_a_process_without_dcdctl(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pictures = [picture.convert("RGB") for picture in [*gallery.images(range(gallery.num_images)), *odd_pictures()]]
    expected, blocks = {}, {}
    for name, to, position_norm in LATE:
        ref, out = tmp_path / name.replace(" ", "-"), tmp_path / f"{name.replace(' ', '-')}-{to}"
        dual = FAMILIES[name](gallery.captions, tmp_path / "parts" / name)
        model = late(dual, is_pooled=False, position_norm=position_norm)
        models.save(model, ref)
        with operators_once():
            done = export.export_model(ExportJob(model=str(ref), out=out, to=to, data=gallery.folder, int8=False))
        if to == "onnx":
            assert [check.precision for check in done.checks] == ["fp32"]
            for tower in out.glob("*.onnx"):
                facts = {entry.key: float(entry.value) for entry in onnx.load(tower).metadata_props}
                assert facts["logit_scale"] == pytest.approx(float(model.logit_scale.detach()))
            read = models.OnnxTowers(out, device=torch.device("cpu"))
        else:
            assert done.checks[0].largest_difference < 1e-4
            read = models.load(out)  # dcdctl reads the export as a multi-vector model
        assert done.kind == "late"
        for said in ("late-interaction (multi-vector)", "a vector of 6 numbers for each token", "MaxSim"):
            assert said in (out / "README.md").read_text()
        blocks[out.name] = code_of(out)
        index_IT = torch.cartesian_prod(torch.arange(len(pictures)), torch.arange(gallery.num_captions))
        for encoder in (model, read):
            scorer = model if to == "onnx" else encoder
            with torch.no_grad():
                images = encoder.encode_images(scorer.preprocess.images(pictures))
                texts = encoder.encode_texts(scorer.preprocess.texts(gallery.captions))
                logits_P = scorer.score_pairs(images, texts, *index_IT.T) / scorer.logit_scale
            scores_IT = logits_P.view(len(pictures), -1).numpy()
            np.testing.assert_allclose(scores_IT, expected.setdefault(out.name, scores_IT), atol=1e-5)
    run_blocks(blocks, READ_LATE, gallery, tmp_path)
    for name, scores_IT in expected.items():
        assert scores_IT.std() > 0.01
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npz")["scores"].T, scores_IT, atol=1e-5, err_msg=name)


REASONS = {
    (
        "open_clip",
        "transformers",
    ): "has no class for the networks and image transforms of open_clip; export it with --to open-clip",
    (
        "open_clip",
        "sentence-transformers",
    ): "sentence-transformers reads networks of transformers; export it with --to open-clip",
    (
        "SentenceTransformer",
        "transformers",
    ): "no class of transformers computes all of its modules; export it with --to sentence",
    (
        "SentenceTransformer",
        "onnx",
    ): "its modules prepare captions and images themselves, and no graph of tensors holds that",
    (
        "SentenceTransformer",
        "open-clip",
    ): "is no model of open_clip, which cannot read it; export it with --to sentence-transformers",
}


@pytest.mark.parametrize(
    ("name", "to"), [(name, to) for name in DUALS for to in FORMATS if (name, to) not in [*HELD, *NO_PATCHES]]
)
def test_a_format_that_cannot_hold_a_model_is_refused_with_the_reason(name, to, sources, tmp_path):
    reason = REASONS.get((name, to), "is no model of open_clip, which cannot read it; export it with --to transformers")
    with pytest.raises(ModelError, match=re.escape(reason)):
        export.export_model(ExportJob(model=str(sources[name]), out=tmp_path / "out", to=to))
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_sentence_transformers_is_not_traced(sources, tmp_path):
    """`models.export_onnx`, which `dcdctl bench` calls, refuses it as `dcdctl export` does."""
    with pytest.raises(
        ModelError, match="this model does not export to ONNX: its modules prepare captions and images themselves"
    ):
        models.export_onnx(models.load(sources["SentenceTransformer"]), tmp_path / "towers")
