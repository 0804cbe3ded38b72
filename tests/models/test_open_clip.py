"""Models of open_clip: the vectors and scores of open_clip itself, from folders that it wrote and in folders that it reads."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from open_clips import LENGTH, OPEN_CLIPS, save_open_clip
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import BertConfig

from dcdctl.core import models
from dcdctl.core.errors import MissingError, ModelError

CAPTIONS = ["a dog runs over grass", "Two people, walking!", "a man with a red hat stands before a house and looks at the sea", "a dog"]
SIZES = [(50, 70), (64, 31), (32, 32), (97, 40)]


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(4)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each kind."""
    return {kind: save_open_clip(kind, CAPTIONS, tmp_path_factory.mktemp("open_clip")) for kind in OPEN_CLIPS}


@pytest.fixture(params=OPEN_CLIPS)
def folder(request, saved):
    return saved[request.param]


@torch.no_grad()
def vectors_of(model, images, texts):
    return model.embed_images(model.preprocess.images(images)), model.embed_texts(model.preprocess.texts(texts))


@torch.no_grad()
def own_vectors(folder, images, texts):
    """Network, vectors of images and of texts by open_clip alone."""
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    network.eval()  # its BatchNorms
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels = torch.stack([transform(image) for image in images])
    return network, network.encode_image(pixels, normalize=True), network.encode_text(tokenizer(texts), normalize=True)


def test_vectors_and_logits_equal_those_of_open_clip(folder, photos):
    # Transparent and gray images are resized before they become RGB.
    images = [*photos, photos[0].convert("L"), photos[1].convert("RGBA")]
    images[-1].putalpha(Image.linear_gradient("L").resize(photos[1].size))
    network, expected_ID, expected_TD = own_vectors(folder, images, CAPTIONS)
    model = models.load_dual(folder)
    images_ID, texts_TD = vectors_of(model, images, CAPTIONS)
    assert_close(images_ID, expected_ID, rtol=1e-5, atol=1e-5)
    assert_close(texts_TD, expected_TD, rtol=1e-5, atol=1e-5)
    assert len(images_ID.round(decimals=3).unique(dim=0)) == 6
    assert len(texts_TD.round(decimals=3).unique(dim=0)) == 4
    expected_IT = network.logit_scale.exp() * expected_ID @ expected_TD.T + (0 if network.logit_bias is None else network.logit_bias)
    rows, columns = torch.tensor([0, 2, 2]), torch.tensor([3, 0, 1])
    scorer = models.load_scorer(folder)
    states = scorer.encode_images(model.preprocess.images(images)), scorer.encode_texts(model.preprocess.texts(CAPTIONS))
    assert_close(scorer.score_pairs(*states, rows, columns), expected_IT[rows, columns].detach(), rtol=1e-5, atol=1e-4)


def test_a_saved_model_is_a_folder_of_open_clip(folder, photos, tmp_path):
    model = models.load_dual(folder)
    models.save(model, tmp_path / "model")
    _, images_ID, texts_TD = own_vectors(tmp_path / "model", photos, CAPTIONS)
    expected_ID, expected_TD = vectors_of(model, photos, CAPTIONS)
    assert_close(images_ID, expected_ID, rtol=1e-5, atol=1e-5)
    assert_close(texts_TD, expected_TD, rtol=1e-5, atol=1e-5)
    assert models.load_dual(tmp_path / "model").digest == model.digest
    models.save(model, tmp_path / "model", half=True)  # in place of the same
    assert_close(vectors_of(models.load_dual(tmp_path / "model"), photos, CAPTIONS)[0], expected_ID, rtol=0, atol=5e-3)


def test_a_saved_text_encoder_of_transformers_needs_no_hub(saved, photos, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(saved["open_clip with BERT"], folder)
    expected = vectors_of(models.load_dual(folder), photos, CAPTIONS)
    models.save(models.load_dual(folder), tmp_path / "model")
    table = json.loads((tmp_path / "model" / "open_clip_config.json").read_text())
    shutil.copytree(table["model_cfg"]["text_cfg"]["hf_model_name"], tmp_path / "bert")
    BertConfig(num_hidden_layers=1).save_pretrained(table["model_cfg"]["text_cfg"]["hf_model_name"])  # of another size
    try:
        assert_close(vectors_of(models.load_dual(tmp_path / "model"), photos, CAPTIONS), expected)
    finally:
        shutil.copytree(tmp_path / "bert", table["model_cfg"]["text_cfg"]["hf_model_name"], dirs_exist_ok=True)


def edit(folder, tmp_path, **changes):
    """A copy of a folder with other entries in a part of its configuration."""
    shutil.copytree(folder, tmp_path / "edited")
    path = tmp_path / "edited" / "open_clip_config.json"
    table = json.loads(path.read_text())
    for part, entries in changes.items():
        (table if part == "preprocess_cfg" else table["model_cfg"])[part] |= entries
    path.write_text(json.dumps(table))
    return tmp_path / "edited"


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}},
        {"preprocess_cfg": {"resize_mode": "longest"}},
        {"preprocess_cfg": {"interpolation": "bilinear"}},
        {"text_cfg": {"tokenizer_kwargs": {"clean": "lower"}}},
        {"text_cfg": {"no_causal_mask": False}},
    ],
)
def test_every_setting_of_open_clip_is_in_the_digest(changes, saved, tmp_path):
    folder = saved["open_clip SigLIP"]
    assert models.load_dual(edit(folder, tmp_path, **changes)).digest != models.load_dual(folder).digest


def test_the_tokenizers_vocabulary_is_in_the_digest(saved, tmp_path):
    folder, words = saved["open_clip SigLIP"], tmp_path / "words"
    models.word_piece(["red green blue"], 100).save_pretrained(words)
    assert models.load_dual(folder, {"tokenizer": str(words)}).digest != models.load_dual(folder).digest


def test_weights_of_pickle_are_read_without_running_code(saved, photos, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(saved["open_clip ViT"], folder)
    state = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, folder / "epoch_32.pt")
    expected = vectors_of(models.load_dual(saved["open_clip ViT"]), photos, CAPTIONS)
    assert_close(vectors_of(models.load_dual(folder), photos, CAPTIONS), expected)

    class Hostile:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"state_dict": state, "hostile": Hostile()}, folder / "epoch_32.pt")
    with pytest.raises(ModelError, match=r"cannot load .*Weights only load failed"):
        models.load_dual(folder)


def test_a_missing_weight_is_an_error_and_an_extra_one_is_named(saved, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(saved["open_clip ViT"], folder)
    path = folder / "open_clip_model.safetensors"
    state = load_file(path)
    save_file(state | {"extra": torch.zeros(1)}, path)
    assert models.load_dual(folder).unused_keys == ("extra",)
    del state["text_projection"]
    save_file(state, path)
    with pytest.raises(ModelError, match="lacks 1 parameters of a model of open_clip: text_projection"):
        models.load_dual(folder)


def test_a_folder_without_the_right_files_says_what_is_missing(saved, tmp_path, monkeypatch):
    for name in ("a.bin", "b.bin"):
        torch.save({}, tmp_path / name)
    shutil.copy(saved["open_clip ViT"] / "open_clip_config.json", tmp_path)
    with pytest.raises(ModelError, match=r"holds a\.bin, b\.bin, expected one file of weights; name the right one open_clip_model\.saf"):
        models.load_dual(tmp_path)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    with pytest.raises(ModelError, match="has no model_cfg with embed_dim, vision_cfg and text_cfg"):
        models.load_dual(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingError, match=r"needs open-clip, which is not installed; pip install 'dcdctl\[open-clip\]'"):
        models.load_dual(tmp_path)


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("open_clip ViT", {"max_text_len": 10}, "is a model of open_clip, whose max_text_len is fixed by its weights"),
        ("open_clip ViT", {"image_size": 64}, "whose image_size is fixed by its weights"),
        ("open_clip ViT", {"tokenizer": "words"}, "has CLIP's own tokenizer, which takes no other vocabulary"),
    ],
)
def test_a_setting_that_the_weights_fix_is_refused(kind, setting, message, saved):
    with pytest.raises(ModelError, match=message):
        models.load_dual(saved[kind], setting)


def test_ids_without_an_embedding_and_random_cuts_are_refused(saved, tmp_path):
    folder = saved["open_clip with timm"]
    large = tmp_path / "large"
    models.word_piece([f"word{number} {chr(0x4E00 + number)}" for number in range(200)], 600).save_pretrained(large)
    model = models.load_dual(folder, {"tokenizer": str(large)})
    with pytest.raises(ModelError, match=r"the tokenizer gives the id \d+, but the model's embedding table has \d+ rows"):
        model.preprocess.texts(["word199 word198"])
    with pytest.raises(ModelError, match="cuts long captions by reduction_mask=random, which is for training"):
        models.load_dual(edit(folder, tmp_path, text_cfg={"tokenizer_kwargs": {"reduction_mask": "random"}}))


def test_a_size_that_no_weight_has_is_refused_before_the_network_is_built(saved, tmp_path):
    with pytest.raises(ModelError, match=r"open_clip_config\.json: model_cfg\.text_cfg\.width is 1000000, expected a number from 0 to"):
        models.load_dual(edit(saved["open_clip ViT"], tmp_path, text_cfg={"width": 1_000_000}))


def test_tokens_of_a_long_text_are_counted_and_padding_is_no_word(saved):
    for kind, length in (("open_clip ViT", 77), ("open_clip SigLIP", LENGTH)):
        preprocess = models.load_dual(saved[kind]).preprocess
        assert preprocess.max_text_len == length
        ids = preprocess.texts(["a dog"]).input_ids[0]
        assert len(ids) == length
        assert len(set(ids.tolist()) - set(preprocess.tokenizer.all_special_ids)) == 2
        assert len(preprocess.tokenizer("a dog " * 50)["input_ids"]) == 102


def test_training_steps_change_the_vectors_and_keep_the_statistics_of_batch_norm(saved, photos):
    model = models.load_dual(saved["open_clip with timm"])
    images, texts = model.preprocess.images(photos), model.preprocess.texts(CAPTIONS)
    pairs = models.Pairs(images, texts, torch.arange(4)[:, None], torch.arange(4)[:, None])
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    (-model.logits(model.outputs(pairs), pairs)[1].log_softmax(dim=1).diagonal().mean()).backward()
    optimizer.step()
    after = model.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "logit_scale" in changed
    assert any(name.startswith("visual.trunk") for name in changed)
    assert not any("running" in name for name in changed)
