"""Sizes in config.json that no model has: one line that names the file, before anything is built."""

from __future__ import annotations

import json
import shutil

import pytest
from encoders import save_text, save_vision
from families import FAMILIES
from safetensors.torch import load_file, save_file

from dcdctl.core import models
from dcdctl.core.errors import ModelError
from dcdctl.core.models import hub_errors
from dcdctl.core.models.networks import backbones

DEEP = "[" * 10_000 + "]" * 10_000


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    """Folders of transformers: a ViLT, a dual encoder, and the encoders of a new model."""
    root = tmp_path_factory.mktemp("plain")
    for family in ("vilt", "dual"):
        models.save(FAMILIES[family](corpus.captions, root), root / family)
        (root / family / "dcdctl.json").unlink()
    save_vision("tokens", root / "vision")
    save_vision("clip", root / "clip")
    save_text("bert", corpus.captions, root / "text")
    return root


LOADERS = {
    "vilt": models.load,
    "dual": models.load,
    "vision": lambda folder: backbones.load_vision(str(folder)),
    "clip": lambda folder: backbones.load_vision(str(folder)),
    "text": lambda folder: models.dual_from_backbones(str(folder.parent / "encoder"), str(folder)),
}
FIELDS = [
    ("vilt", "hidden_size"),
    ("vilt", "num_hidden_layers"),
    ("dual", "text_config.hidden_size"),
    ("dual", "vision_config.image_size"),
    ("dual", "projection_dim"),
    ("vision", "hidden_size"),
    ("clip", "vision_config.num_hidden_layers"),
    ("text", "max_position_embeddings"),
]


def with_value(folders, tmp_path, name, field, text):
    """A copy of a folder whose config.json has this JSON in a field."""
    shutil.copytree(folders / "vision", tmp_path / "encoder")
    folder = tmp_path / name
    shutil.copytree(folders / name, folder)
    config = json.loads((folder / "config.json").read_text())
    *parents, leaf = field.split(".")
    table = config
    for parent in parents:
        table = table[parent]
    table[leaf] = "HERE"
    (folder / "config.json").write_text(json.dumps(config).replace('"HERE"', text))
    return folder


@pytest.mark.parametrize(
    "text", ["1000000000", "-1", '"x"', "[1, [2]]", DEEP], ids=["large", "negative", "text", "list", "deep"]
)
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_size_that_no_model_has_is_named_with_its_file(folders, tmp_path, name, field, text):
    folder = with_value(folders, tmp_path, name, field, text)
    problem = " is not JSON" if text == DEEP else rf": {field} is .*, expected a "
    with pytest.raises(ModelError, match=rf"^{folder}/config\.json{problem}") as raised:
        LOADERS[name](folder)
    assert "\n" not in str(raised.value)


def test_a_list_in_place_of_a_size_is_named_with_the_folder(folders, tmp_path):
    folder = with_value(folders, tmp_path, "vilt", "hidden_size", "[16]")
    with pytest.raises(ModelError, match=rf"cannot load {folder}: .*'hidden_size': \S.*\[16\]"):
        models.load(folder)


def test_a_size_that_is_null_is_left_to_the_library(folders, tmp_path):
    folder = with_value(folders, tmp_path, "vilt", "num_key_value_heads", "null")
    assert models.load(folder).kind == "fusion"


def test_missing_weights_are_not_allocated_in_a_size_from_config_json(folders, tmp_path):
    folder = with_value(folders, tmp_path, "dual", "projection_dim", str(2**30))
    weights = load_file(folder / "model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if "projection" not in key},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"projection_dim is 1073741824, expected a number from 0 to 8,192"):
        models.load(folder)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is too little memory for {}"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is too little memory for {}"),
        (RuntimeError("can't start new thread"), "no further thread can be started, for lack of memory or "),
    ],
)
def test_too_little_memory_for_a_model_is_no_fault_of_its_files(tmp_path, error, message):
    with (
        pytest.raises(ModelError, match=message.format(tmp_path)) as raised,
        hub_errors(str(tmp_path), hint="give a folder that holds config.json"),
    ):
        raise error
    assert "config.json" not in str(raised.value)
