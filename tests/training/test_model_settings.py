"""Every setting of `[model]` with every kind of start: it changes the model, or it is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from duals import save_dual
from families import FAMILIES, frozen_dual, refs
from torch import nn

from dcdctl.core import models
from dcdctl.core.errors import DcdError
from dcdctl.core.training import initial_model
from dcdctl.core.training.recipe import DualConfig, FusionConfig, LateConfig, QueryConfig, load_recipe

OTHER_VALUES: dict[str, Any] = {
    "hidden_size": 48,
    "num_heads": 2,
    "max_text_len": 9,
    "vocab_size": 60,
    "dropout": 0.37,
    "vision_levels": [1],
    "vision_grid": 2,
    "vision_size": 64,
    "frozen_encoders": True,
    "num_layers": 3,
    "image_size": 48,
    "patch_size": 8,
    "image_mean": 0.4,
    "image_std": 0.3,
    "layers": [0],
    "trained": "projections",
    "trained_layers": 1,
    "lora_rank": 3,
    "lora_alpha": 5,
    "vision_layers": [1],
    "text_layers": [1],
    "projection_dim": 10,
    "num_text_layers": 1,
    "token_dim": 10,
    "position_norm": 0.6,
    "pooled": True,
    "token_pooling": 2,
}
"""Of every setting that makes a model, a value that is not its default."""
NO_MODEL = {"kind", "start", "text", "vision", "dual_init", "average_with_start"}
"""Settings that name a model, and the average of the trained weights with the start's."""
SIZES = ["model.hidden_size=32", "model.num_layers=2", "model.vocab_size=100", "model.image_size=32"]
CONFIGS = {"fusion": FusionConfig, "dual": DualConfig, "late": LateConfig, "query": QueryConfig}


def saved(model: Any, folder: Path) -> Path:
    models.save(model, folder / "start")
    return folder / "start"


def two_encoders(captions: list[str], folder: Path, *sets: str, vision: str = "tokens") -> list[str]:
    vision, text = refs(captions, folder, vision)
    return ["model.start=new", f"model.vision={vision}", f"model.text={text}", *sets]


def of_family(name: str) -> Callable[[list[str], Path], list[str]]:
    return lambda captions, folder: [f"model.start={saved(FAMILIES[name](captions, folder), folder)}"]


def clip(captions: list[str], folder: Path) -> list[str]:
    return [f"model.start={save_dual('CLIP', captions, folder / 'clip')}"]


def query_start(captions: list[str], folder: Path) -> list[str]:
    space = models.QuerySpace.of(teacher_of_queries(captions, folder))
    tokenizer = models.word_piece(captions, 100)
    query = models.new_query(space, models.QuerySize(num_layers=0), tokenizer=tokenizer)
    return [f"model.start={saved(query, folder)}"]


def teacher_of_queries(captions: list[str], folder: Path) -> Any:
    return FAMILIES["dual"](captions, folder / "teacher")


# The settings of stages and feature maps are those of a dual encoder over the same.
STARTS: dict[str, tuple[str, Callable[[list[str], Path], list[str]]]] = {
    "a new ViLT": ("fusion", lambda captions, folder: ["model.start=new", *SIZES]),
    "fusion over two encoders": ("fusion", two_encoders),
    "a ViLT": ("fusion", of_family("vilt")),
    "a co-attention model": ("fusion", of_family("co-attention")),
    "a BLIP": ("fusion", of_family("BLIP")),
    "a new dual encoder": ("dual", lambda captions, folder: ["model.start=new", *SIZES, "model.num_text_layers=2"]),
    "a dual encoder over two": ("dual", two_encoders),
    "a dual encoder over a feature map": (
        "dual",
        lambda captions, folder: two_encoders(captions, folder, "model.frozen_encoders=true", vision="timm map"),
    ),
    "a CLIP": ("dual", clip),
    "an open_clip": ("dual", of_family("open_clip SigLIP")),
    "a dual run over two": (
        "dual",
        lambda captions, folder: [f"model.start={saved(frozen_dual(captions, folder, 'tokens'), folder)}"],
    ),
    "late over a CLIP": ("late", clip),
    "late over a dual run over two": (
        "late",
        lambda captions, folder: [f"model.start={saved(frozen_dual(captions, folder, 'tokens'), folder)}"],
    ),
    "a new late model": ("late", lambda captions, folder: ["model.start=new", *SIZES, "model.num_text_layers=2"]),
    "a late model": (
        "late",
        of_family("late from CLIP"),
    ),
    "a static query encoder": (
        "query",
        lambda captions, folder: ["model.start=new", "model.num_text_layers=0", "model.vocab_size=100"],
    ),
    "a new query encoder": ("query", lambda captions, folder: ["model.start=new", "model.vocab_size=100"]),
    "a query encoder over another": (
        "query",
        lambda captions, folder: ["model.start=new", f"model.text={refs(captions, folder, 'tokens')[1]}"],
    ),
    "a query encoder": ("query", query_start),
}


def description(model: Any) -> Any:
    """All that a setting may change: weights, settings, preprocessing, what is trained, and dropout."""
    modules = model.network.modules()
    return (
        model.digest,
        [name for name, parameter in model.network.named_parameters() if parameter.requires_grad],
        [module.p for module in modules if isinstance(module, nn.Dropout)],
        getattr(model, "token_pooling", 1),
    )


@pytest.mark.parametrize("start", STARTS)
def test_a_setting_changes_the_model_or_is_refused(start, corpus, tmp_path):
    captions = corpus.captions
    kind, sets_of = STARTS[start]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[model]\nkind = "{kind}"\n[loss]\nterms = {{ infonce = 1.0 }}\n')
    sets = sets_of(captions, tmp_path)
    teacher = teacher_of_queries(captions, tmp_path) if kind == "query" else None

    def made(*more: str) -> Any:
        return description(initial_model.make_model(load_recipe(str(recipe), [*sets, *more]), captions, teacher))

    plain, ignored = made(), []
    for field in dataclasses.fields(CONFIGS[kind]):
        setting = f"model.{field.name}={str(OTHER_VALUES.get(field.name)).lower()}"
        if field.name in NO_MODEL or setting in sets:
            continue
        try:
            changed = made(setting)
        except DcdError:
            continue
        if changed == plain:
            ignored.append(field.name)
    assert ignored == []
