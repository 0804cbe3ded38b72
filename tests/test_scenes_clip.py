"""The built-in CLIP: its pretraining, what is in the package, and that its name stands wherever a model is named."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import scripts
import torch
from command_line import document_of, run
from torch.testing import assert_close
from transformers import AutoProcessor, CLIPModel

from dcdctl.core import models
from dcdctl.core.data import scenes
from dcdctl.core.models.networks import backbones
from dcdctl.core.scoring import load_embedder
from dcdctl.core.study import plan

scenes_clip = scripts.load("scenes_clip")
NAME = scenes_clip.NAME
FOLDER = models.path_of(NAME)


@pytest.fixture(scope="module")
def described() -> list[scenes.DescribedScene]:
    """Test scenes of the demo's corpus, each of another family."""
    return [scenes.describe_family(0, "test", index)[0] for index in range(12)]


def test_captions_of_the_web_name_objects_of_the_scene_by_color_and_shape(described):
    rng = random.Random(0)
    for item in described:
        known = {f"{thing.color} {thing.shape}" for thing in item.scene.objects}
        for caption in scenes_clip.web_captions(rng, item):
            assert {part.removeprefix("an ").removeprefix("a ") for part in caption.split(" and ")} <= known


def test_a_short_pretraining_leaves_a_half_precision_clip_and_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes_clip, "WEB_COUNTS", {"train": 8, "test": 4})
    monkeypatch.setattr(scenes_clip, "SETTINGS", {"optimizer.steps": 1, "batch.size": 4, "seed": 1})
    folder = scenes_clip.pretrain(tmp_path / "work")
    first = models.load_dual(folder).digest
    assert first != models.load_dual(tmp_path / "work" / "new").digest
    step = tmp_path / "work" / "run" / "metrics.jsonl"
    before = step.stat().st_mtime_ns
    assert models.load_dual(scenes_clip.pretrain(tmp_path / "work")).digest == first
    assert step.stat().st_mtime_ns == before
    # Of the same shapes as the model in the package.
    sizes = [CLIPModel.from_pretrained(path).num_parameters() for path in (folder, FOLDER)]
    assert sizes[0] == sizes[1]


def test_it_is_a_clip_that_transformers_reads(described):
    """The vectors are equal, from the same pixels and tokens."""
    photos, texts = [scenes.draw_scene(item.scene, 64) for item in described[:3]], ["a red square", "a blue circle"]
    model = models.load_dual(NAME)
    images_ID = model.embed_images(model.preprocess.images(photos))
    texts_TD = model.embed_texts(model.preprocess.texts(texts))
    network, processor = CLIPModel.from_pretrained(FOLDER).eval(), AutoProcessor.from_pretrained(FOLDER)
    with torch.no_grad():
        found = network(**processor(images=photos, text=texts, return_tensors="pt", padding=True))
    assert_close(images_ID, found.image_embeds, rtol=0, atol=1e-5)
    assert_close(texts_TD, found.text_embeds, rtol=0, atol=1e-5)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4 * 2**20


def test_zero_shot_it_finds_scenes_that_it_has_not_seen(described):
    """Among 12 scenes of other families; chance is 5 of the 60 captions."""
    model = models.load_dual(NAME)
    images_ID = model.embed_images(model.preprocess.images([scenes.draw_scene(item.scene, 64) for item in described]))
    texts_TD = model.embed_texts(model.preprocess.texts([one.text for item in described for one in item.statements]))
    own_T = torch.arange(len(described)).repeat_interleave(len(described[0].statements))
    assert (texts_TD @ images_ID.T).argmax(dim=1).eq(own_T).sum() >= 30


@pytest.mark.parametrize(
    "read",
    [
        lambda ref: models.check_ref(ref, kind="dual") == "dual",
        lambda ref: models.kind_of(ref) == "dual",
        lambda ref: load_embedder(ref, torch.device("cpu")).images is not None,
        lambda ref: backbones.load_vision(ref).config.image_size == 64,
        lambda ref: backbones.load_text(ref).config.hidden_size == 128,
        lambda ref: len(models.load_tokenizer(ref)) > 100,
        lambda ref: plan._digest(ref) is not None,
    ],
    ids=["start", "is dual", "candidates", "vision", "text", "tokenizer", "study"],
)
def test_its_name_stands_wherever_a_reference_is_read(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where nothing has this name
    assert read(NAME)


def test_commands_take_its_name(scenes_corpus_dir: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = document_of(f"eval {NAME} --data {scenes_corpus_dir}")
    assert named["rsum"] == document_of(f"eval {FOLDER} --data {scenes_corpus_dir}")["rsum"]
    run(f"index {NAME} --images {scenes_corpus_dir} --out index")
    assert len(document_of("search index 'a red square' -k 3")["hits"]) == 3
    sets = "--set optimizer.steps=1 --set batch.size=8"
    run(f"distill demo-dual-alone --data {scenes_corpus_dir} --out trained --set model.start={NAME} {sets}")
    assert models.load_dual("trained").network.config.projection_dim == scenes_clip.VECTOR
