"""Checkpoints of the official code: they load with any content beside the weights, and missing weights are named."""

from __future__ import annotations

import argparse
import contextlib
import enum
import functools
import json
import os
import pickle
import shlex
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import FIXTURES

from dcdctl.core import models
from dcdctl.core.errors import ModelError
from dcdctl.core.models.checkpoint import read_checkpoint
from dcdctl.core.models.official.vilt import to_transformers


@pytest.fixture
def tiny(official_model):
    return torch.load(official_model.checkpoint, weights_only=True)


def _reload(content, path, official_model, **overrides):
    torch.save(content, path)
    return models.load_fusion(path, {"tokenizer": official_model.tokenizer, **overrides})


def _has_equal_weights(first, second):
    parameters = zip(first.named_parameters(), second.named_parameters(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in parameters)


def test_a_full_size_checkpoint_has_no_unused_weights_except_known_ones():
    shapes = json.loads((FIXTURES / "vilt_full_keys.json").read_text())
    _, unused = to_transformers({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert len(shapes) == 163
    assert unused == ["itm_score.fc.bias", "itm_score.fc.weight", "text_embeddings.position_ids"]


def test_settings_are_read_from_the_checkpoint(official_model):
    scorer = official_model.scorer()
    assert scorer.preprocess.max_text_len == official_model.facts["config"]["max_text_len"]
    assert scorer.preprocess.image_size_px == 64
    assert scorer.network.config.num_attention_heads == 4
    assert scorer.network.config.hidden_dropout_prob == 0.1
    assert scorer.unused_keys == ("itm_score.fc.bias", "itm_score.fc.weight", "text_embeddings.position_ids")
    assert scorer.network.config.pad_token_id == 0  # the padding row gets no gradient


def test_weights_of_a_checkpoint_that_are_not_finite_are_named(official_model, tiny, tmp_path):
    tiny["state_dict"]["rank_output.bias"][0] = float("nan")
    with pytest.raises(
        ModelError, match=r"damaged\.ckpt: 1 of 1 numbers of the weights network\.rank_output\.bias are not finite"
    ):
        _reload(tiny, tmp_path / "damaged.ckpt", official_model)


def test_overrides_replace_settings_of_the_checkpoint(official_model):
    scorer = official_model.scorer(image_size=128, max_text_len=8)
    assert (scorer.preprocess.image_size_px, scorer.preprocess.max_text_len) == (128, 8)


def test_a_bare_state_dict_loads_with_given_heads(official_model, tiny, tmp_path):
    scorer = _reload(tiny["state_dict"], tmp_path / "bare.ckpt", official_model, num_attention_heads=4)
    assert _has_equal_weights(scorer, official_model.scorer())
    with pytest.raises(ModelError, match=r"does not give num_attention_heads.*--model-set num_attention_heads=N"):
        _reload(tiny["state_dict"], tmp_path / "bare.ckpt", official_model)
    with pytest.raises(ModelError, match="not a multiple of num_attention_heads 5"):
        _reload(tiny["state_dict"], tmp_path / "bare.ckpt", official_model, num_attention_heads=5)


def test_without_a_ranking_head_the_match_row_of_the_itm_head_is_used(official_model, tiny, tmp_path):
    state = {name: tensor for name, tensor in tiny["state_dict"].items() if not name.startswith("rank_output")}
    scorer = _reload({**tiny, "state_dict": state}, tmp_path / "pretrained.ckpt", official_model)
    assert torch.equal(scorer.network.rank_output.weight, state["itm_score.fc.weight"][1:])
    assert torch.equal(scorer.network.rank_output.bias, state["itm_score.fc.bias"][1:])


def test_unknown_weights_are_reported_as_unused(official_model, tiny, tmp_path):
    tiny["state_dict"]["mlm_score.bias"] = torch.zeros(3)
    tiny["state_dict"]["transformer.blocks.0.surprise.weight"] = torch.zeros(3)
    scorer = _reload(tiny, tmp_path / "more.ckpt", official_model)
    assert {"mlm_score.bias", "transformer.blocks.0.surprise.weight"} <= set(scorer.unused_keys)


def test_missing_weights_are_named(official_model, tiny, tmp_path):
    del tiny["state_dict"]["pooler.dense.bias"]
    with pytest.raises(ModelError, match=r"lacks 1 parameters of a ViLT scorer: vilt\.pooler\.dense\.bias"):
        _reload(tiny, tmp_path / "less.ckpt", official_model)
    del tiny["state_dict"]["text_embeddings.word_embeddings.weight"]
    with pytest.raises(ModelError, match=r"word_embeddings\.weight"):
        _reload(tiny, tmp_path / "less.ckpt", official_model)


class ReadOnlyDict(dict):
    """Sacred's read-only dictionary, which is pickled as a call with all its entries."""

    def __reduce__(self):
        return type(self), (dict(self),)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("name", "overrides"), [("vilt_tiny_a", {}), ("meter_tiny_a", {"text.num_attention_heads": 3})]
)
def test_a_checkpoint_loads_with_lightning_objects_beside_the_weights(
    name, overrides, is_zip, tokenizer_dir, tmp_path, monkeypatch
):
    lightning = types.ModuleType("absent_lightning")
    for kind, base in {"ModelCheckpoint": object, "AttributeDict": dict, "ReadOnlyDict": ReadOnlyDict}.items():
        setattr(lightning, kind, type(kind, (base,), {"__module__": "absent_lightning"}))
    lightning.Plugin = enum.Enum("Plugin", {"A": "a"}, type=str, module="absent_lightning")
    monkeypatch.setitem(sys.modules, "absent_lightning", lightning)
    content = torch.load(FIXTURES / f"{name}.ckpt", weights_only=True)
    config = lightning.ReadOnlyDict(content["hyper_parameters"]["config"])
    full = {
        **content,
        "callbacks": {lightning.ModelCheckpoint: {"best": OrderedDict(a=1)}},
        "hyper_parameters": lightning.AttributeDict(
            config=config, extra=argparse.Namespace(rate=np.float64(0.5), scale=np.arange(3))
        ),
        "plugins": {lightning.Plugin.A: {torch.float16, Path("runs")}},
        "optimizer_states": [
            {"state": defaultdict(list, {0: torch.zeros(2)}), "made_by": functools.partial(lightning.ModelCheckpoint)}
        ],
    }
    torch.save(full, tmp_path / "full.ckpt", _use_new_zipfile_serialization=is_zip)
    monkeypatch.delitem(sys.modules, "absent_lightning")
    settings = {"tokenizer": str(tokenizer_dir), **overrides}
    scorer = models.load_fusion(tmp_path / "full.ckpt", settings)
    assert _has_equal_weights(scorer, models.load_fusion(FIXTURES / f"{name}.ckpt", settings))
    assert scorer.preprocess.max_text_len == config["max_text_len"]
    assert [entry["best"] for entry in read_checkpoint(tmp_path / "full.ckpt")["callbacks"].values()] == [{"a": 1}]


class Hostile:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {
    r"(posix|nt)\.system": lambda marker: Hostile(os.system, f"mkdir {shlex.quote(str(marker))}"),
    r"(builtins|__builtin__)\.exec": lambda marker: Hostile(exec, f"import os; os.mkdir({str(marker)!r})"),
}
FORMATS = {
    "zip": torch.save,
    "legacy": functools.partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
}
NESTINGS = {
    "alone": lambda hostile: hostile,
    "nested": lambda hostile: {"hyper_parameters": {"config": [{"tokenizer": hostile}]}},
}


@pytest.mark.parametrize("nest", NESTINGS.values(), ids=NESTINGS)
@pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("name", "call"), CALLS.items(), ids=["system", "exec"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(name, call, save, nest, tmp_path):
    marker = tmp_path / "made-by-the-checkpoint"
    save(nest(call(marker)), tmp_path / "hostile.ckpt")
    with pytest.raises(ModelError, match=rf"hostile\.ckpt is refused: it asks for {name},.*a source you trust"):
        models.load(tmp_path / "hostile.ckpt")
    assert not marker.exists()
    with contextlib.suppress(RuntimeError):  # A plain pickle runs its code before torch finds that it is no checkpoint.
        torch.load(tmp_path / "hostile.ckpt", weights_only=False)
    assert marker.exists()


def test_a_tokenizer_of_another_model_is_refused(official_model, tmp_path):
    models.word_piece(["".join(map(chr, range(33, 127)))], 200).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"the tokenizer has \d+ tokens, but the model's embedding table has (120|90) rows"
    ):
        models.load(official_model.checkpoint, {"tokenizer": str(tmp_path)})


def test_a_max_text_len_above_the_text_positions_is_refused(official_model):
    with pytest.raises(ModelError, match=r"max_text_len is 30, but the model has 1[26] text positions"):
        official_model.scorer(max_text_len=30)


def test_without_the_hub_the_error_names_the_option_for_a_tokenizer_folder(official_model):
    with pytest.raises(ModelError, match=r"bert-base-uncased.*--model-set tokenizer=FOLDER"):
        models.load(official_model.checkpoint)
