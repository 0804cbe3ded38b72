"""Models of open_clip: the vectors and scores of open_clip itself, from folders that it wrote and in folders that it
reads."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
from duals import vectors_of
from open_clips import LENGTH, OPEN_CLIPS, save_open_clip
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import BertConfig

from dcdctl.core import models
from dcdctl.core.errors import MissingError, ModelError
from dcdctl.core.models import TrainedParts
from dcdctl.core.models.networks.open_clip_towers import find_towers
from dcdctl.core.models.networks.towers import depth_of
from dcdctl.core.training.loop import make_optimizer
from dcdctl.core.training.recipe import OptimizerConfig

CAPTIONS = [
    "a dog runs over grass",
    "Two people, walking!",
    "a man with a red hat stands before a house and looks at the sea",
    "a dog",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each kind."""
    return {kind: save_open_clip(kind, CAPTIONS, tmp_path_factory.mktemp("open_clip")) for kind in OPEN_CLIPS}


@pytest.fixture(params=OPEN_CLIPS)
def folder(request, saved):
    return saved[request.param]


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
    expected_IT = network.logit_scale.exp() * expected_ID @ expected_TD.T + (
        0 if network.logit_bias is None else network.logit_bias
    )
    rows, columns = torch.tensor([0, 2, 2]), torch.tensor([3, 0, 1])
    scorer = models.load_scorer(folder)
    states = (
        scorer.encode_images(model.preprocess.images(images)),
        scorer.encode_texts(model.preprocess.texts(CAPTIONS)),
    )
    assert_close(scorer.score_pairs(*states, rows, columns), expected_IT[rows, columns].detach(), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_token_states_are_what_open_clip_pools(folder, photos):
    dual = models.load_dual(folder)
    network, visual = dual.network, dual.network.visual
    images, texts = dual.preprocess.images(photos), dual.preprocess.texts([*CAPTIONS, "no!!"])
    of_images, of_texts = dual.image_tokens(images), dual.text_tokens(texts)
    assert_close(of_images.vectors, dual.embed_images(images))
    assert_close(of_texts.vectors, dual.embed_texts(texts))
    assert of_images.is_full
    # Start, words and end: the exclamation marks of CLIP's own tokenizer have the id that it pads with, at times.
    lengths = [len(dual.preprocess.tokenizer(text)["input_ids"]) for text in [*CAPTIONS, "no!!"]]
    assert of_texts.mask.sum(dim=1).tolist() == [min(length, dual.preprocess.max_text_len) for length in lengths]
    assert of_texts.mask.int().diff(dim=1).max() <= 0  # padding is at the end
    if hasattr(visual, "attn_pool") and visual.attn_pool is None:
        visual.output_tokens = True
        assert_close(of_images.tokens, visual(images.pixel_values)[1])
    if hasattr(visual, "trunk"):  # the mean over the positions of the last map, before its last convolution
        side = visual.trunk.forward_features(images.pixel_values).shape[2]
        assert of_images.tokens.shape[1] == side**2
    if hasattr(network, "text") and getattr(network.text, "cls_emb", None) is None:
        network.text.output_tokens = True
        assert_close(of_texts.tokens, network.text(texts.input_ids)[1])
    elif not hasattr(network, "text"):
        last = of_texts.tokens[torch.arange(5), of_texts.mask.sum(dim=1) - 1]
        assert_close(torch.nn.functional.normalize(last @ network.text_projection, dim=-1), of_texts.vectors)


def test_a_saved_model_is_a_folder_of_open_clip(folder, photos, tmp_path):
    model = models.load_dual(folder)
    models.save(model, tmp_path / "model")
    _, images_ID, texts_TD = own_vectors(tmp_path / "model", photos, CAPTIONS)
    expected_ID, expected_TD = vectors_of(model, photos, CAPTIONS)
    assert_close(images_ID, expected_ID, rtol=1e-5, atol=1e-5)
    assert_close(texts_TD, expected_TD, rtol=1e-5, atol=1e-5)
    assert models.load_dual(tmp_path / "model").digest == model.digest
    models.save(model, tmp_path / "model", half=True)  # in place of the same
    half = models.load_dual(tmp_path / "model")
    assert models.saved_fingerprint(tmp_path / "model") == half.digest
    assert_close(vectors_of(half, photos, CAPTIONS)[0], expected_ID, rtol=0, atol=5e-3)


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
        {"preprocess_cfg": {"resize_mode": "longest"}},
        {"text_cfg": {"tokenizer_kwargs": {"clean": "lower"}}},
        {"text_cfg": {"no_causal_mask": False}},
    ],
)
def test_every_setting_of_open_clip_is_in_the_digest(changes, saved, tmp_path):
    folder = saved["open_clip SigLIP"]
    assert models.load_dual(edit(folder, tmp_path, **changes)).digest != models.load_dual(folder).digest


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
    with pytest.raises(
        ModelError, match=r"holds a\.bin, b\.bin, expected one file of weights; name the right one open_clip_model\.saf"
    ):
        models.load_dual(tmp_path)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    with pytest.raises(ModelError, match="has no model_cfg with embed_dim, vision_cfg and text_cfg"):
        models.load_dual(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingError, match=r"needs open-clip, which is not installed; pip install 'open_clip_torch>="):
        models.load_dual(tmp_path)


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("open_clip ViT", {"max_text_len": 10}, "takes no max_text_len; it takes tokenizer"),
        ("open_clip ViT", {"image_size": 64}, "takes no image_size"),
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
    with pytest.raises(
        ModelError, match=r"the tokenizer gives the id \d+, but the model's embedding table has \d+ rows"
    ):
        model.preprocess.texts(["word199 word198"])
    with pytest.raises(ModelError, match="cuts long captions by reduction_mask=random, which is for training"):
        models.load_dual(edit(folder, tmp_path, text_cfg={"tokenizer_kwargs": {"reduction_mask": "random"}}))


def test_a_size_that_no_weight_has_is_refused_before_the_network_is_built(saved, tmp_path):
    with pytest.raises(
        ModelError, match=r"open_clip_config\.json: model_cfg\.text_cfg\.width is 1000000, expected a number from 0 to"
    ):
        models.load_dual(edit(saved["open_clip ViT"], tmp_path, text_cfg={"width": 1_000_000}))


def test_tokens_of_a_long_text_are_counted_and_padding_is_no_word(saved):
    for kind, length in (("open_clip ViT", 77), ("open_clip SigLIP", LENGTH)):
        preprocess = models.load_dual(saved[kind]).preprocess
        assert preprocess.max_text_len == length
        ids = preprocess.texts(["a dog"]).input_ids[0]
        assert len(ids) == length
        assert len(set(ids.tolist()) - set(preprocess.tokenizer.all_special_ids)) == 2
        assert len(preprocess.tokenizer("a dog " * 50)["input_ids"]) == 102


PROJECTIONS = {
    "open_clip ViT": {"visual.proj", "text_projection"},
    "open_clip SigLIP": {"visual.proj", "text.text_projection.weight", "text.text_projection.bias"},
    "open_clip with timm": {"visual.head.proj.weight", "text.text_projection"},
    "open_clip with BERT": {"visual.proj", "text.proj.0.weight", "text.proj.2.weight"},
    "open_clip CoCa": {"visual.proj", "text.text_projection"},
}
LAST = re.compile(
    r"(visual\.)?(text\.)?transformer\.resblocks\.1\.|text\.transformer\.encoder\.layer\.1\.|visual\.trunk\.blocks\.4\.|"
    r"visual\.(ln_post|attn_pool)\.|(text\.)?ln_final\.|visual\.trunk\.(conv_head|bn2)\."
)
"""The last of two layers of each encoder, and the last of five stages of the convolutional one, with what follows
them."""


def changed_by_a_step(model, photos):
    """The names of the weights that one step on four pairs changes; those of a decoder, which embeds nothing, never
    do."""
    images, texts = model.preprocess.images(photos), model.preprocess.texts(CAPTIONS)
    pairs = models.PairBatch(images, texts, torch.arange(4)[:, None], torch.arange(4)[:, None])
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    optimizer = make_optimizer(model.train(), OptimizerConfig(lr=1e-3, weight_decay=0.0))
    # Squares, because a softmax would cancel the bias.
    model.logits(model.outputs(pairs), pairs)[1].square().mean().backward()
    optimizer.step()
    return {name for name, tensor in model.network.state_dict().items() if not torch.equal(before[name], tensor)}


@pytest.mark.parametrize("kind", OPEN_CLIPS)
def test_a_step_changes_the_parts_that_are_trained(kind, saved, photos):
    def after(which, num_layers=0):
        model = models.load_dual(saved[kind])
        model.set_trained(TrainedParts(which=which, num_layers=num_layers))
        return model, changed_by_a_step(model, photos)

    _, everything = after("all")
    assert not any("running" in name for name in everything)  # the statistics of BatchNorm
    scales = {"logit_scale", "logit_bias"} & everything
    assert after("projections")[1] == PROJECTIONS[kind] | scales
    model, last = after("last-layers", 1)
    assert last == PROJECTIONS[kind] | scales | {name for name in everything if LAST.match(name)}
    depths = {name: depth_of(find_towers(model.network), f"network.{name}") for name in everything}
    assert {name for name, depth in depths.items() if depth <= 1} == last
    # Embeddings and stem lie below all layers, and every weight of a tower is somewhere.
    stems = {name for name in everything if re.search(r"embedding|conv1|conv_stem|trunk\.bn1|ln_pre|cls_emb", name)}
    assert {depths[name] for name in stems if "trunk" not in name} == {3}
    assert {depths[name] for name in stems if "trunk" in name} <= {6}


def test_the_tokenizer_of_a_folder_runs_no_code_though_its_configuration_asks_for_it(saved, tmp_path, monkeypatch):
    asks = {"tokenizer_kwargs": {"trust_remote_code": True}}
    folder = edit(saved["open_clip with BERT"], tmp_path, text_cfg=asks)
    given, make = [], open_clip.tokenizer.HFTokenizer
    monkeypatch.setattr(
        open_clip.tokenizer, "HFTokenizer", lambda *args, **options: given.append(options) or make(*args, **options)
    )
    models.load_dual(folder)
    assert [options["trust_remote_code"] for options in given] == [False]


def test_frozen_layers_of_bert_have_no_dropout(saved):
    model = models.load_dual(saved["open_clip with BERT"])
    model.set_trained(TrainedParts(which="last-layers", num_layers=1))
    layers = model.train().network.text.transformer.encoder.layer
    assert [layer.output.dropout.training for layer in layers] == [False, True]


@pytest.mark.parametrize(
    ("name", "layers", "projection"),
    [
        ("fastvit_mci0", "stages", "head.fc"),
        ("vit_base_mci_224", "blocks", "head"),
        ("vit_base_patch16_siglip_224", "blocks", "head"),
    ],
)
def test_the_encoders_of_mobileclip_and_siglip_have_layers(name, layers, projection):
    with torch.device("meta"):
        trunk = timm.create_model(name, num_classes=8)
    text = SimpleNamespace(transformer=torch.nn.Module())
    tower, _ = find_towers(SimpleNamespace(visual=SimpleNamespace(trunk=trunk), text=text))
    prefix, found = tower.layers
    assert prefix == f"network.visual.trunk.{layers}"
    assert len(found) == (4 if layers == "stages" else 12)
    projections = {each for each, _ in trunk.named_parameters() if not tower.contains(f"network.visual.trunk.{each}")}
    assert projections == {f"{projection}.weight", f"{projection}.bias"}
    depths = {each: tower.depth_of(f"network.visual.trunk.{each}") for each, _ in trunk.named_parameters()}
    assert {depth for each, depth in depths.items() if each.startswith(("stem", "patch_embed", "pos_embed"))} == {
        len(found) + 1
    }
    assert {depth for each, depth in depths.items() if each.startswith(("final_conv", "norm", "attn_pool"))} == {0}


def test_parts_that_open_clip_lacks_are_named(saved):
    model = models.load_dual(saved["open_clip ViT"])
    with pytest.raises(
        ModelError, match=r"model.trained is lora, and the attention of open_clip .*; set model.trained to last-layers"
    ):
        model.set_trained(TrainedParts(which="lora"))
    with pytest.raises(ModelError, match=r"model.trained_layers is 3, and the image encoder has 2 layers"):
        model.set_trained(TrainedParts(which="last-layers", num_layers=3))
    model.network.visual = open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 8, heads=2, image_size=32, width=8)
    with pytest.raises(
        ModelError, match=r"the image encoder \(ModifiedResNet\) has no list of layers; set model.trained to all"
    ):
        model.set_trained(TrainedParts(which="projections"))
    model.set_trained(TrainedParts())
    assert all(parameter.requires_grad for parameter in model.parameters())
