"""Every encoder as `model.vision` or `model.text` of every new model: it computes, trains, saves and loads, or it is
refused by name."""

from __future__ import annotations

import copy
import re
import warnings
from functools import cache

import pytest
import sides
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.testing import assert_close
from transformers import AutoModel, SiglipTextModel, logging

from dcdctl.core import models
from dcdctl.core.errors import ModelError
from dcdctl.core.models import PairBatch
from dcdctl.core.models.networks import backbones

ALONE = "cannot be taken alone"
NO_POSITIONS = "does not give its number of positions"
REFUSED = {
    (
        "vision",
        "siglip2",
    ): "reads pixel_values and pixel_attention_mask and spatial_shapes, expected one that reads pixel_values alone",
    ("vision", "align"): "does not give the width of its features",
    ("vision", "bridgetower"): ALONE,
    ("vision", "bert"): "reads input_ids, expected one that reads pixel_values",
    ("text", "bridgetower"): ALONE,
    ("text", "t5"): NO_POSITIONS,
    ("text", "t5 encoder"): NO_POSITIONS,
    ("text", "vit"): "reads pixel_values, expected one that reads input_ids",
}
"""What no model can hold, and what the error says."""
IN_NO_PAIR = "cannot be trained in a VisionTextDualEncoderModel"
NOT_TRAINED = {
    **{("vision", name): IN_NO_PAIR for name in ("metaclip_2", "align", "blip", "convnext")},
    ("text", "distilbert"): "cannot be the text side of a model",
    **{
        ("text", name): IN_NO_PAIR
        for name in ("siglip", "siglip2", "metaclip_2", "chinese_clip", "align", "blip", "siglip_text_model")
    },
}
"""What a VisionTextDualEncoderModel of transformers cannot hold besides."""
PAIRS = [
    *((vision, "bert") for vision in (*sides.BOTH, *sides.VISION, "bert")),
    *(("vit", text) for text in (*sides.BOTH, *sides.TEXT, "vit") if text != "bert"),
    *((name, name) for name in ("clip", "siglip", "metaclip_2")),
]
IX = torch.tensor([[0, 1], [1, 0]])


def fusion(vision, text):
    return models.new_coattention(
        vision, text, models.FusionSize(hidden_size=24, num_layers=1, num_heads=3), max_text_len=12
    )


def frozen_dual(vision, text):
    return models.new_frozen_dual(vision, text, models.ProjectionSize(projection_dim=8), max_text_len=12)


def trained_dual(vision, text):
    return models.dual_from_backbones(vision, text, projection_dim=8)


BUILDERS = [fusion, frozen_dual, trained_dual]


def refusal(build, vision, text):
    """What the error must say; None for a pair that works."""
    table = REFUSED if build is not trained_dual else {**REFUSED, **NOT_TRAINED}
    return table.get(("vision", vision)) or table.get(("text", text))


def cases():
    """Every refusal; of pairs that work one builder each in turns, as all builders read encoders by one function."""
    for number, pair in enumerate(PAIRS):
        for place, build in enumerate(BUILDERS):
            if refusal(build, *pair) or number % len(BUILDERS) == place:
                yield build, *pair


@pytest.fixture(scope="session")
def root(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    with warnings.catch_warnings(action="ignore"):
        sides.save_all(tokenizer, folder)
    logging.set_verbosity(verbosity)
    return folder


@pytest.fixture(scope="module")
def _counterparts_loaded_once(root):
    """The encoders that all others are paired with are copies of what was loaded once."""
    load, kept = backbones._load, {(str(root / "vit"), "vision"), (str(root / "bert"), "text")}
    load_once = cache(load)

    def load_or_copy(ref, side):
        return copy.deepcopy(load_once(ref, side)) if (ref, side) in kept else load(ref, side)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "_load", load_or_copy)
        yield


@pytest.mark.usefixtures("_counterparts_loaded_once")
@pytest.mark.parametrize(
    ("build", "vision", "text"), [*cases()], ids=lambda name: name if isinstance(name, str) else name.__name__
)
def test_a_pair_of_encoders_trains_and_loads_again_or_is_refused(
    build, vision, text, root, pil_images, captions, tmp_path
):
    refs = str(root / vision), str(root / text)
    if expected := refusal(build, vision, text):
        with pytest.raises(ModelError, match=re.escape(expected)) as caught:
            build(*refs)
        assert any(ref in str(caught.value) for ref in refs) or "encoder does not give" in str(caught.value)
        assert caught.value.hint
        return
    model = build(*refs)
    pairs = PairBatch(model.preprocess.images(pil_images[:2]), model.preprocess.texts(captions[:2]), IX, IX.T)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    functional.cross_entropy(model.logits(model.outputs(pairs), pairs)[0], torch.tensor([0, 0])).backward()
    optimizer.step()
    model.eval()
    changed = {
        name.split(".")[1] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    trained = {"vision_model", "text_model", "visual_projection", "text_projection", "logit_scale"}
    encoders = trained if build is trained_dual else {"vision", "text"}
    assert changed >= encoders if build is not frozen_dual else changed.isdisjoint(encoders) and changed
    models.save(model, tmp_path / "model")
    again = models.load(tmp_path / "model")
    assert again.digest == model.digest
    with torch.no_grad():
        assert torch.equal(again.logits(again.outputs(pairs), pairs)[0], model.logits(model.outputs(pairs), pairs)[0])


@pytest.mark.parametrize("name", [name for name in sides.BOTH if ("vision", name) not in REFUSED])
def test_the_vision_side_has_the_tokens_of_the_whole_model(name, root, pil_images):
    model = frozen_dual(str(root / name), str(root / "bert"))
    images = model.preprocess.images(pil_images)
    whole = AutoModel.from_pretrained(root / name).eval().vision_model
    with torch.no_grad():
        expected = whole(pixel_values=images.pixel_values).last_hidden_state
        if name in ("clip", "metaclip_2"):
            expected = whole.post_layernorm(expected)
        tokens = model.encoders.image_features(images).tokens
    # The tokens of an encoder without a class token form a square, whose mean comes first.
    assert_close(tokens[:, -expected.shape[1] :], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in sides.BOTH if ("text", name) not in REFUSED])
def test_the_text_side_has_the_tokens_of_the_whole_model(name, root, captions):
    model = frozen_dual(str(root / "vit"), str(root / name))
    texts = model.preprocess.texts(captions)
    whole = AutoModel.from_pretrained(root / name).eval().text_model
    with torch.no_grad():
        expected = whole(input_ids=texts.input_ids, attention_mask=texts.attention_mask).last_hidden_state
        tokens = model.encoders.text_features(texts).tokens
    # Padding has tokens that nothing reads, and that depend on how an encoder is told about it.
    real = texts.attention_mask.bool()
    assert_close(tokens[real], expected[real], rtol=0, atol=1e-6)


def test_a_text_encoder_saved_alone_is_the_side_of_its_own_model(root, tmp_path, captions):
    AutoModel.from_pretrained(root / "siglip").text_model.save_pretrained(tmp_path)
    assert SiglipTextModel.from_pretrained(tmp_path).config.model_type == "siglip_text_model"
    models.load_tokenizer(str(root / "siglip")).save_pretrained(tmp_path)
    alone, side = (frozen_dual(str(root / "vit"), ref) for ref in (str(tmp_path), str(root / "siglip")))
    with torch.no_grad():
        vectors = [model.embed_texts(model.preprocess.texts(captions)) for model in (alone, side)]
    assert torch.equal(*vectors)


def test_a_whole_model_that_lacks_weights_of_the_side_is_refused_and_of_the_other_side_is_not(root, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for path in (root / "clip").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("text_model.encoder.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert frozen_dual(str(folder), str(root / "bert")).encoders.text_width == 16
    with pytest.raises(ModelError, match=r"lacks 16 parameters of its text encoder: encoder\.layers\.0"):
        frozen_dual(str(root / "vit"), str(folder))
