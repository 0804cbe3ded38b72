"""Fingerprints: they see everything that changes a score, and nothing that depends on place, use or spelling."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VARIANTS, with_noise
from flips import CAPTIONS, Baseline, flips, images
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import (
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    EsmTokenizer,
    MobileViTImageProcessorPil,
    PreTrainedTokenizerFast,
)

from dcdctl.core import models
from dcdctl.core.models import fingerprint
from dcdctl.core.models.fingerprint import processor_settings, tokenizer_settings
from dcdctl.core.models.preprocess import square_image_processor

WORDS = [
    "a large red circle is left of a small blue square",
    "the tiny green star sits above the big pink heart",
    "a cross",
]
NUM_FLIPS = 2
"""Changes per model in the suite; `make test-slow` makes all."""
DISTINCT = ("vilt", "dual", "frozen dual", "co-attention over timm", "METER")
"""Variants that differ in their class, image transform or tokenizer."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a saved model of each variant, made once."""

    @cache
    def make(variant: str) -> Baseline:
        folder = tmp_path_factory.mktemp("variant")
        models.save(with_noise(VARIANTS[variant](WORDS, folder)), folder / "model")
        return Baseline(folder / "model")

    return make


def harmful(baseline: Baseline, chosen, scratch: Path) -> list[str]:
    """The changes that are not seen although they change a score, or that end in a traceback."""
    effects = [(str(flip), baseline.effect(flip, scratch)) for flip in chosen]
    return [f"{flip}: {effect}" for flip, effect in effects if effect not in ("refused", "seen", "equal")]


@pytest.mark.parametrize("count", [NUM_FLIPS, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_changed_field_is_refused_or_seen_or_changes_no_score(saved, variant, count, tmp_path):
    baseline = saved(variant)
    every = list(flips(baseline.folder))
    assert not harmful(baseline, random.Random(variant).sample(every, count or len(every)), tmp_path / "changed")


def both(model) -> tuple[str, str | None]:
    return model.digest, model.encoders and model.encoders.digest


def with_tokenizer(model, change):
    tokenizer = copy.deepcopy(model.preprocess.tokenizer)
    change(tokenizer)
    model.preprocess = dataclasses.replace(model.preprocess, tokenizer=tokenizer)


def with_processor(model, change):
    processor = copy.deepcopy(model.preprocess.image_processor)
    change(processor)
    model.preprocess = dataclasses.replace(model.preprocess, image_processor=processor)


def other_class(thing):
    thing.__class__ = type("Other", (type(thing),), {})


TOKENIZER_CHANGES = {
    "normalizer": lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", normalizers.Lowercase()),
    "pre-tokenizer": lambda tokenizer: setattr(tokenizer.backend_tokenizer, "pre_tokenizer", pre_tokenizers.Digits()),
    "post-processor": lambda tokenizer: setattr(tokenizer.backend_tokenizer, "post_processor", processors.Sequence([])),
    "added token": lambda tokenizer: tokenizer.add_tokens([AddedToken("star", lstrip=True)]),
    "model": lambda tokenizer: setattr(tokenizer.backend_tokenizer.model, "unk_token", "a"),
    "truncation side": lambda tokenizer: setattr(tokenizer, "truncation_side", "left"),
    "padding side": lambda tokenizer: setattr(tokenizer, "padding_side", "left"),
    "padding": lambda tokenizer: setattr(tokenizer, "pad_token", "a"),
    "special tokens in captions": lambda tokenizer: setattr(
        tokenizer, "split_special_tokens", not tokenizer.split_special_tokens
    ),
    "outputs": lambda tokenizer: setattr(tokenizer, "model_input_names", ["input_ids"]),
    "class": other_class,
}
PREPROCESS_CHANGES = {
    **{
        f"tokenizer: {name}": lambda model, change=change: with_tokenizer(model, change)
        for name, change in TOKENIZER_CHANGES.items()
    },
    "image processor: a setting": lambda model: with_processor(
        model, lambda processor: setattr(processor, "rescale_offset", True)
    ),
    "image processor: class": lambda model: with_processor(model, other_class),
    "image transform": lambda model: setattr(
        model, "preprocess", dataclasses.replace(model.preprocess, image_transform="other")
    ),
    "text length": lambda model: setattr(model, "preprocess", dataclasses.replace(model.preprocess, max_text_len=7)),
}


def configs(model) -> dict[str, Any]:
    """The configurations of a model's encoders, or that of the whole network."""
    if model.encoders is not None:
        return {"vision": model.encoders.vision.config, "text": model.encoders.text.config}
    config = model.network.config
    return {name: getattr(config, name) for name in ("vision_config", "text_config") if hasattr(config, name)} or {
        "": config
    }


@pytest.mark.parametrize("variant", DISTINCT)
def test_every_ingredient_changes_the_fingerprint(saved, variant):
    changes = dict(PREPROCESS_CHANGES)
    for name in configs(saved(variant).model):
        changes[f"configuration: {name}"] = lambda model, name=name: setattr(
            configs(model)[name], "setting_of_a_later_version", 3
        )
    for name in () if saved(variant).model.encoders is None else ("vision", "text"):
        changes[f"weights: {name}"] = lambda model, name=name: next(
            getattr(model.encoders, name).parameters()
        ).data.add_(1e-3)
    before = both(saved(variant).model)
    for name, change in changes.items():
        # The first ones replace `preprocess`, so that the copy may share the network.
        model = (copy.copy if name in PREPROCESS_CHANGES else copy.deepcopy)(saved(variant).model)
        change(model)
        after = both(model)
        assert after[0] != before[0], name
        assert before[1] is None or after[1] != before[1], name
    assert both(saved(variant).model) == before


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        (
            "co-attention",
            lambda model: setattr(model.network, "size", dataclasses.replace(model.network.size, num_heads=4)),
        ),
        ("vilt", lambda model: setattr(model.network.vilt.embeddings.text_embeddings.LayerNorm, "eps", 1e-6)),
        ("dual", lambda model: setattr(model.network.config, "setting_of_a_later_version", 3)),
        ("frozen dual", lambda model: model.network.projections.logit_scale.data.add_(1e-3)),
    ],
)
def test_what_comes_after_the_encoders_changes_only_the_fingerprint_of_the_model(saved, variant, change):
    model = copy.deepcopy(saved(variant).model)
    before = both(model)
    change(model)
    after = both(model)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_another_rule_and_other_tensors_give_another_fingerprint(monkeypatch):
    def digest(**tensors):
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return fingerprint.digest_of(module, config={}, preprocess={})

    zeros = torch.zeros(2, 3)
    digests = [
        digest(a=zeros),
        digest(b=zeros),
        digest(a=zeros.T),
        digest(a=zeros.int()),
        digest(a=zeros + 1),
        digest(a=zeros, b=zeros),
    ]
    monkeypatch.setattr(fingerprint, "VERSION", "dcdctl model 1")
    assert len({*digests, digest(a=zeros)}) == 7


@pytest.mark.parametrize("variant", DISTINCT)
def test_use_and_place_leave_the_fingerprint(saved, variant, tmp_path):
    folder = tmp_path / "elsewhere" / "model"
    shutil.copytree(saved(variant).folder, folder)
    model = models.load(folder)
    before = both(model)
    assert before == both(saved(variant).model)
    with torch.no_grad():
        model.outputs(
            models.PairBatch(
                model.preprocess.images(images()), model.preprocess.texts(CAPTIONS), *torch.zeros(2, 1, 2).long()
            )
        )
    model.train().to(memory_format=torch.channels_last)
    model.preprocess = dataclasses.replace(model.preprocess)  # which remembers no settings
    assert both(model) == before
    models.save(model, tmp_path / "again")
    assert both(models.load(tmp_path / "again")) == before
    models.save(model, tmp_path / "half", half=True)
    half = models.load(tmp_path / "half")
    assert half.digest != before[0]
    assert models.saved_fingerprint(tmp_path / "half") == half.digest
    assert both(model) == before
    models.save(half, tmp_path / "half again")
    assert both(models.load(tmp_path / "half again")) == both(half)


def test_spelling_leaves_the_fingerprint(saved, tmp_path):
    """The order of keys, and 1 for 1.0."""
    folder = tmp_path / "model"
    shutil.copytree(saved("co-attention").folder, folder)
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        table = json.loads((folder / name).read_text())
        if name == "preprocessor_config.json":
            table["size"] = {key: float(value) for key, value in table["size"].items()}
        (folder / name).write_text(json.dumps(dict(reversed(table.items())), indent=1))
    models.seal_again(folder)
    assert both(models.load(folder)) == both(saved("co-attention").model)
    assert processor_settings(square_image_processor(8, mean=0, std=1)) == processor_settings(
        square_image_processor(8, mean=0.0, std=1.0)
    )


@pytest.mark.parametrize(
    "name", ["hidden_dropout_prob", "_name_or_path", "transformers_version", "id2label", "initializer_range", "dtype"]
)
def test_settings_that_change_no_score_leave_the_fingerprint(saved, name):
    model = copy.deepcopy(saved("co-attention").model)
    before = both(model)
    setattr(model.encoders.text.config, name, {0: "x"} if name == "id2label" else 0.25)
    assert both(model) == before


@pytest.mark.parametrize(
    ("processor", "changed"),
    [
        (EfficientNetImageProcessorPil, {"rescale_offset": True}),
        (EfficientNetImageProcessorPil, {"include_top": False}),
        (ConvNextImageProcessorPil, {"crop_pct": 0.5}),
        (MobileViTImageProcessorPil, {"do_flip_channel_order": False}),
    ],
)
def test_a_setting_of_one_image_processor_changes_its_pixels_and_its_settings(processor, changed):
    size = {"shortest_edge": 32} if processor is not EfficientNetImageProcessorPil else {"height": 32, "width": 32}
    plain, other = (
        processor(size=size, crop_size={"height": 24, "width": 24}, **settings) for settings in ({}, changed)
    )
    pixels = [each(images=images()[:1], return_tensors="pt")["pixel_values"] for each in (plain, other)]
    assert not torch.equal(*pixels)
    assert processor_settings(plain) != processor_settings(other)


def test_a_tokenizer_read_by_the_backend_keeps_its_settings():
    """The backend reads some numbers one unit in the last place off."""
    generator = random.Random(0)
    pieces = [("<unk>", 0.0), *((f"w{i}", -20 * generator.random()) for i in range(500))]
    made = Tokenizer(Unigram(pieces, 0))
    read = Tokenizer.from_str(made.to_str())
    assert read.to_str() != made.to_str()
    pieces[7] = ("w6", pieces[7][1] - 1e-4)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<unk>")
    settings = []
    for tokenizer._tokenizer in (made, read, Tokenizer(Unigram(pieces, 0))):
        settings.append(tokenizer_settings(tokenizer))
    assert settings[0] == settings[1] != settings[2]


def test_a_tokenizer_without_a_backend_is_read_from_what_it_saves(tmp_path):
    def esm(*words: str, **settings: Any) -> EsmTokenizer:
        (tmp_path / "words").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *words]))
        return EsmTokenizer(str(tmp_path / "words"), **settings)

    tokenizer = esm("a", "b")
    settings = tokenizer_settings(tokenizer)
    tokenizer(["a"], padding="longest", truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (
        tokenizer_settings(models.load_tokenizer(str(tmp_path / "saved"))) == tokenizer_settings(tokenizer) == settings
    )
    changed = [esm("b", "a"), esm("a", "b", eos_token="<mask>"), esm("a", "b", padding_side="left")]
    assert settings not in map(tokenizer_settings, changed)
