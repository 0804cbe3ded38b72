"""What models refuse: settings, references and checkpoints."""

from __future__ import annotations

import json
from functools import partial

import pytest
import refusals
import torch
from refusals import Refusal
from transformers import BertConfig

from dcdctl.core import models
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.models import DualSize, ProjectionSize, ViltSize
from dcdctl.core.models.checkpoint import read_checkpoint
from dcdctl.core.models.references import folders
from dcdctl.core.models.tokenizer import check_text_length
from dcdctl.core.training.recipe import DualConfig, FusionConfig

OVERRIDES = [
    ({"size": 3}, r"unknown key model-set\.size; known keys here: image_size, max_text_len, tokenizer"),
    ({"image_size": "big"}, "model-set.image_size must be int, got 'big'"),
    ({"image_size": 0}, "image_size must lie in .*, got 0"),
    ({"max_text_len": 2}, "max_text_len must lie in"),
]
OVER_ENCODERS = {"start": "new", "vision": "v", "text": "t", "frozen_encoders": True}
FROM_DUAL = {**OVER_ENCODERS, "dual_init": "runs/dual"}
CONFIGS = [
    (FusionConfig, {**FROM_DUAL, "frozen_encoders": False}, r"model\.dual_init is for a new fusion model"),
    (FusionConfig, {**FROM_DUAL, "vision": "", "text": "", "frozen_encoders": False}, r"model\.dual_init is for"),
    (
        FusionConfig,
        {**FROM_DUAL, "vision": "", "text": "", "start": "runs/a"},
        r"model\.dual_init is for a new fusion model",
    ),
    (DualConfig, {"start": "new", "frozen_encoders": True}, "is for a new model over model.vision and model.text"),
    (DualConfig, {**OVER_ENCODERS, "vision_grid": 0}, r"model\.vision_grid must lie in .*, got 0"),
    (DualConfig, {**OVER_ENCODERS, "vision_size": 0}, r"model\.vision_size must lie in .*, got 0"),
    (
        DualConfig,
        {**OVER_ENCODERS, "frozen_encoders": False, "vision_levels": (1,)},
        r"model\.vision_\w+ is for new models over",
    ),
    (ProjectionSize, {"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1"),
    *(
        (size, wrong, says)
        for size in (ViltSize, DualSize)
        for wrong, says in (({"hidden_size": 30}, "num_attention_heads 4"), ({"image_size": 50}, "patch_size 16"))
    ),
]
REFERENCES = [
    ("weights.bin", r"weights\.bin is a file, but not a \.ckpt; a model is a run folder"),
    ("photos", r"is no model: it holds one\.png, and neither config\.json nor model/; a model is"),
    ("run", "run has no finished model; finish it with --resume"),
    ("bert", r"bert is a bert model, a family .*: vilt, .*clip.*`--teacher module:function`.*`--scores`"),
    ("absent", "absent does not exist; `dcdctl models` shows"),
    ("absent.ckpt", "absent.ckpt does not exist; `dcdctl models` shows"),
]
CHECKPOINTS = [
    ({"state_dict": {}}, "holds no weights"),
    ([1, 2], "holds no weights"),
    ({"state_dict": {"cross_modal_text_pooler.dense.weight": torch.zeros(2)}}, "is not a METER with CLIP and RoBERTa"),
    ({"conv1.weight": torch.zeros(2)}, r"no official checkpoint of ViLT or METER: it has conv1\.weight"),
]
CALLS = [
    *(("subprocess", "Popen"), ("importlib.util", "module_from_spec"), ("__builtin__", "getattr"), ("io", "open")),
    ("torch.serialization", "os.execv"),
]
"""Ways to run code from a pickle."""


@pytest.fixture
def places(tmp_path):
    """Files and folders that are no models."""
    (tmp_path / "weights.bin").touch()
    for folder, name in (("photos", "one.png"), ("run", "run.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    BertConfig().save_pretrained(tmp_path / "bert")
    classifier = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "config.json").write_text(json.dumps(classifier))
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))
    return tmp_path


def of_bytes(read, content: bytes):
    """Read a checkpoint of these bytes."""

    def load(tmp_path):
        (tmp_path / "some.ckpt").write_bytes(content)
        read(tmp_path / "some.ckpt")

    return load


def of_content(content):
    """Load a checkpoint of this content."""

    def load(tmp_path):
        torch.save(content, tmp_path / "other.ckpt")
        models.load(tmp_path / "other.ckpt")

    return load


def at(read, name: str):
    return lambda places: read(places / name)


ROWS = [
    *(Refusal(f"{wrong}", partial(models.load, "owner/absent", wrong), ConfigError, says) for wrong, says in OVERRIDES),
    Refusal("no value", partial(models.parse_overrides, ["image_size"]), ConfigError, "expects NAME=VALUE"),
    Refusal("no key", partial(models.parse_overrides, ["size=3"]), ConfigError, r"unknown key model-set\.size"),
    *(
        Refusal(f"{config.__name__} {fields}", partial(config, **fields), ConfigError, says)
        for config, fields, says in CONFIGS
    ),
    *(
        Refusal(f"{read.__name__} {name}", at(read, name), ModelError, says)
        for name, says in REFERENCES
        for read in (models.load, models.check_ref)
    ),
    Refusal("owner", partial(models.load, "owner/absent"), ModelError, "is no file or folder here"),
    Refusal("classifier", at(models.load, "classifier"), ModelError, "is a bert model"),
    Refusal("prompt", at(folders.text_pooling, ""), ModelError, "with prompt query, which is not computed here"),
    Refusal(
        "backbone",
        lambda places: models.dual_from_backbones(*[str(places / "absent")] * 2),
        ModelError,
        "name a folder",
    ),
    *(Refusal(f"content {content}", of_content(content), ModelError, says) for content, says in CHECKPOINTS),
    *(
        Refusal(f"bytes {content!r}", of_bytes(models.load, content), ModelError, "PyTorch .*download complete")
        for content in (b"", b"not found\n", b"PK\x03\x04 cut short")
    ),
    *(
        Refusal(
            f"{module}.{function}",
            of_bytes(read_checkpoint, f"c{module}\n{function}\n(tR.".encode()),
            ModelError,
            rf"it asks for {module}\.{function}",
        )
        for module, function in CALLS
    ),
    *(
        Refusal(
            f"{length} tokens", partial(check_text_length, length, 40), ModelError, "max_text_len must be at least 3"
        )
        for length in (-1, 0, 2)
    ),
    *(
        Refusal(f"layers {layers}", lambda vilt, layers=layers: vilt.student(layers), ModelError, "ascending")
        for layers in ([], [0, 4], [-1], [2, 1], [1, 1])
    ),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
