"""Students that start from a pretrained dual encoder: its recalls before the first step, the parts that are trained,
and its average."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from duals import DUALS, save_dual
from families import frozen_dual
from open_inputs import OpenInputs
from safetensors.torch import load_file
from torch.testing import assert_close
from training_steps import KilledError, killed_after

from dcdctl.core import models, training
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, MissingError, ModelError, StaleError
from dcdctl.core.evaluation import evaluate
from dcdctl.core.models.networks.towers import depth_of
from dcdctl.core.progress import silent
from dcdctl.core.training import TrainingJob, TrainingOptions, initial_model, recipe, runs, wise_ft
from dcdctl.core.training.loop import make_optimizer

STEPS = [
    "model.kind=dual",
    "model.layers=[]",
    "batch.size=8",
    "loss.terms={ infonce = 1.0 }",
    "optimizer.steps=3",
    "optimizer.lr=1e-3",
]
STEPS += ["optimizer.warmup_share=0.0", "optimizer.weight_decay=0.0"]


@pytest.fixture(scope="module")
def start_of(corpus, tmp_path_factory) -> Callable[[str], Path]:
    """The tiny model of a kind in two layers per tower, saved again by us: transformers changes some unused weights
    when it loads one."""

    @functools.cache
    def save_start(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("start") / "start"
        models.save(models.load_dual(save_dual(kind, corpus.captions, folder)), folder)
        return folder

    return save_start


@pytest.fixture(scope="module", params=DUALS)
def start(request, start_of) -> Path:
    return start_of(request.param)


@pytest.fixture(scope="module")
def projected(start, corpus, tmp_path_factory) -> runs.Run:
    """A run from each start, of three steps."""
    folder = tmp_path_factory.mktemp("projected") / "run"
    return train(
        corpus,
        start,
        folder,
        "model.trained=projections",
    )


@pytest.fixture(scope="module")
def clip(start_of) -> Path:
    return start_of("CLIP")


@pytest.fixture(scope="module")
def siglip(start_of) -> Path:
    return start_of("SigLIP")


def train(
    corpus: Corpus,
    start: Path,
    folder: Path,
    *sets: str,
    features: Path | None = None,
    resume: bool = False,
    watch: Any = None,
) -> runs.Run:
    job = TrainingJob("distill", "tiny-student", [*STEPS, f"model.start={start}", *sets], folder, resume)
    return training.train_model(
        job, OpenInputs(corpus, [], None), options=TrainingOptions(compute=Compute(features=features)), watch=watch
    )


def make(start: Path | str, *sets: str) -> Any:
    return initial_model.make_model(
        recipe.load_recipe("tiny-student", [*STEPS, f"model.start={start}", *sets]), [], None
    )


def trained_names(model: Any) -> set[str]:
    return {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}


def vectors(model: Any, corpus: Corpus) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        images, texts = (
            model.preprocess.images([corpus.image(i) for i in range(4)]),
            model.preprocess.texts(corpus.captions[:6]),
        )
        return model.embed_images(images), model.embed_texts(texts)


def changed(run: runs.Run, start: Path) -> set[str]:
    """The names of the saved weights that differ from those of the start."""
    before, after = (load_file(folder / "model.safetensors") for folder in (start, run.model_folder))
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_before_the_first_step_a_student_has_the_recalls_of_its_start(clip, corpus, tmp_path, scenes_corpus_dir):
    measured = ["validation.every=3", "validation.at_start=true", "validation.keep=last"]
    run = train(corpus, clip, tmp_path / "run", "model.trained=projections", *measured)
    line, *others = run.metrics()
    model = models.load_dual(clip)
    expected = evaluate.evaluate_model(model, Corpus.open(scenes_corpus_dir, "val"))
    for direction, percents in (("text", expected.text_retrieval), ("image", expected.image_retrieval)):
        assert {f"R@{k}": line[f"start_{direction}_r{k}"] for k in (1, 5, 10)}.items() <= percents.items()
    assert line["start_rsum"] == expected.rsum
    assert not any(name.startswith("start_") for other in others for name in other)
    assert run.facts()["inputs"]["start"] == model.digest


def test_the_start_may_be_the_best_model_of_its_run(clip, corpus, tmp_path):
    run = train(corpus, clip, tmp_path / "run", "validation.every=3", "validation.at_start=true", "optimizer.lr=10.0")
    line = run.metrics()[-1]
    assert line["val_best_rsum"] == run.metrics()[0]["start_rsum"] > line["val_rsum"]
    assert not changed(run, clip)


def test_projections_are_trained_alone(start, projected):
    expected = {
        "logit_scale",
        "logit_bias",
        "temperature",
        "visual_projection.weight",
        "text_projection.weight",
        "text_projection.bias",
    }
    expected |= {"text_model.head.weight", "text_model.head.bias"}  # SigLIP
    assert changed(projected, start) == expected & load_file(start / "model.safetensors").keys()


def test_the_last_layer_is_trained_with_final_norms_and_projections(clip):
    names = trained_names(make(clip, "model.trained=last-layers", "model.trained_layers=1"))
    outside = {name for name in names if ".layers.1." not in name}
    norms = {"vision_model.post_layernorm", "text_model.final_layer_norm"}
    assert outside == {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")} | {
        "logit_scale", "visual_projection.weight", "text_projection.weight",
    }  # fmt: skip
    # Attention with four projections, two norms and an MLP of two layers, a weight and a bias each, in each tower.
    assert len(names - outside) == 2 * 16


def test_a_siglip_head_is_trained_with_the_last_layers(siglip):
    names = trained_names(make(siglip, "model.trained=last-layers", "model.trained_layers=1"))
    assert {"vision_model.head.probe", "text_model.head.weight", "logit_bias"} <= names
    assert not any(".layers.0." in name or "embeddings" in name for name in names)


def test_frozen_parts_have_no_dropout_and_trained_ones_have(corpus, start_of):
    folder = start_of("Chinese-CLIP")
    for sets, is_random in (
        (["model.trained=projections"], False),
        (["model.trained=last-layers", "model.trained_layers=1"], True),
    ):
        model = make(folder, *sets).train()
        texts = [vectors(model, corpus)[1] for _ in range(2)]
        assert torch.equal(*texts) != is_random, sets
    assert not model.network.text_model.embeddings.dropout.training
    assert model.network.text_model.encoder.layer[1].output.dropout.training


def test_the_learning_rate_falls_with_the_distance_from_the_top(start):
    model = make(start)
    prefix = "network.text_model."
    layer = (
        "encoder.layer"
        if "layer.0" in str(list(model.state_dict())) and hasattr(model.network.text_model.encoder, "layer")
        else "encoder.layers"
    )
    depths = {name: depth_of(model.towers, name) for name, _ in model.named_parameters()}
    assert {depth for name, depth in depths.items() if name.startswith(f"{prefix}{layer}.1.")} == {1}
    assert {depth for name, depth in depths.items() if name.startswith(f"{prefix}{layer}.0.")} == {2}
    assert {depth for name, depth in depths.items() if name.startswith(f"{prefix}embeddings.")} == {3}
    rest = {
        name
        for name in depths
        if not name.startswith((f"{prefix}encoder.", f"{prefix}embeddings.", "network.vision_model."))
    }
    assert {depths[name] for name in rest} == {0}
    optimizer = make_optimizer(model, recipe.OptimizerConfig(lr_factors={"text_model": 4.0}))
    factors = {id(p): group["lr_factor"] for group in optimizer.param_groups for p in group["params"]}
    by_name = dict(model.named_parameters())
    assert {factors[id(by_name[name])] for name in depths if name.startswith(f"{prefix}embeddings.")} == {4.0}
    assert factors[id(model.calibration.offset)] == 1


def test_layers_of_the_towers_are_kept_with_their_weights(start, corpus, tmp_path):
    whole = models.load_dual(start)
    if whole.config["model_type"] == "align":
        with pytest.raises(
            ModelError,
            match=r"model.vision_layers chooses layers, and those of the image encoder \(align_vision_model\) differ",
        ):
            make(start, "model.vision_layers=[0]")
        model = make(start, "model.text_layers=[1]")
    else:
        model = make(start, "model.vision_layers=[1]", "model.text_layers=[1]")
    models.save(model, tmp_path / "model")
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "model"))
    for name, tensor in after.items():
        source = name.replace("layers.0.", "layers.1.").replace("layer.0.", "layer.1.")
        assert torch.equal(tensor, before[source]), name
    assert sum("layer" in name for name in after) < sum("layer" in name for name in before)
    # The library builds the model from the saved configuration alone.
    kept = vectors(model, corpus)
    for vector, expected in zip(vectors(models.load_dual(tmp_path / "model"), corpus), kept, strict=True):
        assert torch.equal(vector, expected)
    assert not torch.allclose(kept[1], vectors(whole, corpus)[1])


def test_layers_that_a_tower_lacks_are_named(clip):
    with pytest.raises(ModelError, match=r"model.text_layers is \[0, 2\], and the text encoder has layers 0 to 1"):
        make(clip, "model.text_layers=[0, 2]")
    with pytest.raises(ModelError, match=r"model.trained_layers is 3, and the image encoder has 2 layers"):
        make(clip, "model.trained=last-layers", "model.trained_layers=3")


@pytest.fixture(scope="module")
def plain(clip, corpus, tmp_path_factory) -> runs.Run:
    """A run from the CLIP, of all weights."""
    return train(corpus, clip, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_saved_weights_are_the_average_of_start_and_end(clip, plain, corpus, tmp_path, share):
    averaged = train(corpus, clip, tmp_path / "averaged", f"model.average_with_start={share}")
    start, end, found = (
        load_file(folder / "model.safetensors") for folder in (clip, plain.model_folder, averaged.model_folder)
    )
    assert averaged.facts()["recipe"]["model"]["average_with_start"] == share
    for name, tensor in found.items():
        assert torch.equal(
            tensor, (1 - share) * end[name] + share * start[name] if tensor.is_floating_point() else start[name]
        ), name
    assert any(not torch.equal(start[name], end[name]) for name in start)


def test_a_start_that_has_changed_is_not_averaged(clip, corpus, tmp_path, monkeypatch):
    make_model = initial_model.make_model
    made = []

    def make_another(*arguments: Any) -> Any:
        made.append(make_model(*arguments))
        if len(made) > 1:
            made[-1].network.logit_scale.data += 1
        return made[-1]

    monkeypatch.setattr(initial_model, "make_model", make_another)
    monkeypatch.setattr(wise_ft, "make_model", make_another)
    with pytest.raises(StaleError, match=r"has changed since the run started .*; restore it"):
        train(corpus, clip, tmp_path / "run", "model.average_with_start=0.5")


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "Chinese-CLIP"])
def test_lora_starts_at_the_start_and_is_merged_into_its_weights(kind, corpus, start_of, tmp_path):
    folder = start_of(kind)
    model, start = (
        make(folder, "model.trained=lora", "model.lora_rank=2", "model.lora_alpha=6"),
        models.load_dual(folder),
    )
    assert model.digest == start.digest
    start_vectors = vectors(start, corpus)
    for vector, expected in zip(vectors(model, corpus), start_vectors, strict=True):
        assert_close(vector, expected, rtol=0, atol=1e-6)
    towers = {name for name in trained_names(model) if ".layer" in name}
    assert towers
    assert all(".lora_A." in name or ".lora_B." in name for name in towers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    adapted, digest = vectors(model, corpus), model.digest
    assert not torch.allclose(adapted[0], start_vectors[0], atol=1e-3)
    weights = dict(model.network.named_parameters())
    name = next(name for name in weights if name.endswith(".lora_A.default.weight")).removesuffix(
        ".lora_A.default.weight"
    )
    base, a, b = (
        weights[f"{name}.{part}"].detach().clone()
        for part in ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    )
    assert a.shape[0] == 2
    model.merge_adapters()
    models.save(model, tmp_path / "model")
    loaded = models.load_dual(tmp_path / "model")
    assert loaded.digest == model.digest == digest
    # An adapter adds alpha / r B A.
    assert_close(loaded.network.state_dict()[f"{name}.weight"], base + 3 * b @ a, rtol=1e-6, atol=1e-7)
    for vector, expected in zip(vectors(loaded, corpus), adapted, strict=True):
        assert_close(vector, expected, rtol=0, atol=1e-5)


def test_a_run_with_adapters_is_saved_without_them_and_may_be_averaged(clip, corpus, tmp_path):
    run = train(corpus, clip, tmp_path / "run", "model.trained=lora", "validation.every=2")
    names = changed(run, clip)  # equal names: nothing of the adapters is saved
    assert {"visual_projection.weight", "text_projection.weight"} <= names
    assert all(name.endswith("weight") for name in names - {"logit_scale"})
    assert sum("layers" in name for name in names) == 2 * 2 * 6
    averaged = train(
        corpus, clip, tmp_path / "averaged", "model.trained=lora", "validation.every=2", "model.average_with_start=0.5"
    )
    start, end, found = (
        load_file(folder / "model.safetensors") for folder in (clip, run.model_folder, averaged.model_folder)
    )
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert_close(found[name], (start[name] + end[name]) / 2)


def test_a_killed_run_with_adapters_resumes_to_the_same_model(clip, corpus, tmp_path):
    sets = ["model.trained=lora", "optimizer.steps=4", "optimizer.save_every=2"]

    with pytest.raises(KilledError):
        train(corpus, clip, tmp_path / "killed", *sets, watch=killed_after(3))
    checkpoint = load_file(tmp_path / "killed" / "checkpoints" / "step-2" / "weights.safetensors")
    assert any(".lora_B." in name and tensor.any() for name, tensor in checkpoint.items())
    resumed, whole = (
        train(corpus, clip, tmp_path / "killed", *sets, resume=True),
        train(corpus, clip, tmp_path / "whole", *sets),
    )
    files = [run.model_folder / "model.safetensors" for run in (resumed, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_vectors_from_pooled_features_equal_those_from_inputs(start, corpus):
    model = make(start, "model.trained=projections")
    images, texts = (
        model.preprocess.images([corpus.image(i) for i in range(4)]),
        model.preprocess.texts(corpus.captions[:6]),
    )
    with torch.no_grad():
        features = model.encoders.image_features(images), model.encoders.text_features(texts)
        assert [states.tokens.shape[1] for states in features] == [1, 1]
        found = model.embed_images(features[0]), model.embed_texts(features[1])
    for vector, expected in zip(found, vectors(model, corpus), strict=True):
        assert torch.equal(vector, expected)
    # A trained model reads the features of its start; other towers have other features.
    digest = model.encoders.digest
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad:
            parameter.data += 1
        elif "text_model.encoder" in name:
            last = parameter
    assert model.encoders.digest == digest
    last.data += 1
    assert model.encoders.digest != digest


@pytest.mark.parametrize(
    ("kind", "student"), [("CLIP", "dual"), ("SigLIP", "dual"), ("CLIP", "late"), ("ALIGN", "late")]
)
def test_projections_are_trained_from_stored_features(kind, student, corpus, start_of, tmp_path):
    start, sets = start_of(kind), ["model.trained=projections", f"model.kind={student}"]
    stored = train(corpus, start, tmp_path / "stored", *sets, features=tmp_path / "features")
    plain = train(corpus, start, tmp_path / "plain", *sets)
    losses = [[line["loss"] for line in run.metrics()] for run in (stored, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]  # rounded to float16
    assert losses[0][-1] != losses[0][0]
    (folder,) = (tmp_path / "features").iterdir()
    dual = models.load_dual(start)
    num_tokens = corpus.num_captions
    if student == "late":
        num_tokens = int(dual.text_tokens(dual.preprocess.texts(corpus.captions)).mask.sum())
    width = dual.towers[1].module.config.hidden_size
    assert folder.joinpath("texts-00000.npy").stat().st_size == 128 + 2 * width * num_tokens


def test_features_of_trained_towers_are_refused(clip, corpus, tmp_path):
    for sets in ([], ["model.trained=lora"]):
        with pytest.raises(ModelError, match="no encoders of its own"):
            train(corpus, clip, tmp_path / "run", *sets, features=tmp_path / "features")


def test_peft_is_required_before_weights_are_opened(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        MissingError, match=r"model.trained lora needs peft, .*; pip install 'peft>=0.18', or set model.trained to"
    ):
        train(corpus, Path("owner/clip"), tmp_path / "run", "model.trained=lora")


def test_a_dual_encoder_without_such_parts_is_named(corpus, tmp_path):
    models.save(frozen_dual(corpus.captions, tmp_path, "map"), tmp_path / "model")
    with pytest.raises(
        ModelError,
        match="is for dual encoders of transformers, such as CLIP and SigLIP, and this is a dcdctl-encoder-dual",
    ):
        make(tmp_path / "model", "model.vision_layers=[0]")


@pytest.fixture(scope="module")
def over_two(corpus, tmp_path_factory) -> Path:
    """A dual encoder over two encoders, as a run of the recipe `photos` has."""
    folder = tmp_path_factory.mktemp("over-two")
    models.save(frozen_dual(corpus.captions, folder, "tokens"), folder / "model")
    return folder / "model"


@pytest.mark.parametrize(
    ("sets", "changed"),
    [
        ([], {"vision", "text", "projections"}),
        (["model.trained=last-layers", "model.trained_layers=1"], {"vision", "text", "projections"}),
        (["model.trained=lora"], {"vision", "text", "projections"}),
        (["model.trained=projections"], {"projections"}),
    ],
    ids=["all", "last layers", "adapters", "projections"],
)
def test_the_encoders_of_a_dual_run_over_two_are_trained_as_asked(over_two, corpus, tmp_path, sets, changed):
    start = models.load_dual(over_two)
    for found, expected in zip(vectors(make(over_two, *sets), corpus), vectors(start, corpus), strict=True):
        assert_close(found, expected, rtol=0, atol=1e-6)
    run = train(corpus, over_two, tmp_path / "run", *sets)
    before, after = start.network.state_dict(), models.load_dual(run.folder).network.state_dict()
    assert before.keys() == after.keys()
    different = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".")[0] for name in different} == changed
    if not sets:
        # All that has a gradient: a transformer's tokens do not depend on its class token's pooler.
        assert len(different) > 0.9 * len(before)
    has_features = changed == {"projections"}
    assert make(over_two, *sets).encoders.is_frozen == has_features


def test_a_start_in_place_of_a_new_model_unsets_its_sizes_and_keeps_encoders_frozen(over_two):
    photos = recipe.load_recipe("photos", [f"model.start={over_two}"]).model
    assert (photos.vision, photos.text, photos.vision_grid, photos.projection_dim) == ("", "", None, 256)
    assert (photos.trained, photos.frozen_encoders) == ("projections", False)
    assert recipe.load_recipe("photos", [f"model.start={over_two}", "model.trained=all"]).model.trained == "all"
    with pytest.raises(ConfigError, match=r"model\.projection_dim is for model\.start new, and it is "):
        recipe.load_recipe("photos", [f"model.start={over_two}", "model.projection_dim=64"])
    # A text encoder in place of new layers.
    assert recipe.load_recipe("query-kl", ["model.text=a/b"]).model.hidden_size == 128


@pytest.mark.parametrize(("sets", "is_told"), [([], True), (["model.trained=projections"], False)])
def test_a_start_over_frozen_encoders_that_are_trained_is_told(corpus, tmp_path, sets, is_told):
    models.save(frozen_dual(corpus.captions, tmp_path, "map"), tmp_path / "model")
    said: list[str] = []
    recipe_of = recipe.load_recipe("tiny-student", [*STEPS, f"model.start={tmp_path / 'model'}", *sets])
    model = initial_model.load_start(recipe_of, corpus.captions, None, None, said.append, silent)
    assert any(parameter.requires_grad for parameter in model.network.vision.parameters()) == is_told
    assert any("--set model.trained=projections keeps them frozen" in line for line in said) == is_told
