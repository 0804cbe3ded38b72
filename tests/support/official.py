"""What the official code computed for the inputs of the fixtures, beside what dcdctl computes: models, pixels and
recalls.

tests/training/test_official.py and benchmarks/fidelity.py compare the two. The fixtures were made by METER
f4f0934, ViLT 762fd39 and DCD fbb5ff0 with transformers 4.6.0, in float32 on a CPU. `official_training` has DCD's
training.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from byte_level import byte_level_bpe
from matrix_ranks import rank_matrix
from paths import FIXTURES
from PIL import Image
from plain_scores import plain_score
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, RobertaConfig, ViltConfig, ViltForImageAndTextRetrieval

from dcdctl.core import models
from dcdctl.core.evaluation import measures
from dcdctl.core.models import FusionSize, ImageBatch, Preprocess, TextBatch
from dcdctl.core.models.families.coattention import CoAttentionNetwork
from dcdctl.core.models.families.coattention_scorer import resize_positions
from dcdctl.core.models.official import vilt as official_vilt
from dcdctl.core.models.official.meter import to_network
from dcdctl.core.models.preprocess import meter_image_processor, vilt_image_processor

BOUND = 1e-5


class Comparison(NamedTuple):
    """One tensor of ours and of the official code."""

    fixture: str
    part: str
    ours: Tensor
    official: Tensor
    bound: float = BOUND
    """Largest allowed value of `relative`."""

    @property
    def absolute(self) -> float:
        """Largest difference of two entries; infinite if only one of the tensors has NaN there."""
        ours, official = self.ours.detach().double(), self.official.double()
        if ours.shape != official.shape or not torch.equal(ours.isnan(), official.isnan()):
            return torch.inf
        return (ours - official).nan_to_num(0).abs().max().item()

    @property
    def relative(self) -> float:
        """The largest difference over the official tensor's largest entry."""
        return self.absolute / max(
            self.official.double().nan_to_num(0).abs().max().item(), torch.finfo(torch.float32).tiny
        )


def fixture_json(name: str) -> Any:
    """The contents of a fixture's JSON file."""
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def load(name: str, **overrides: Any) -> Any:
    """The scorer of a fixture's checkpoint, with any tokenizer, because the fixtures hold token ids."""
    with tempfile.TemporaryDirectory() as folder:
        byte_level_bpe(["a large red circle", "the small blue star"], 60).save_pretrained(folder)
        return models.load_fusion(FIXTURES / f"{name}.ckpt", {"tokenizer": folder, **overrides})


def load_meter(name: str) -> models.CoAttentionScorer:
    """The scorer of a METER fixture, with the image size and the text heads of the official run."""
    facts = fixture_json(name)
    heads = facts["text"]["num_attention_heads"]
    return load(name, image_size=facts["model"]["image_size"], **{"text.num_attention_heads": heads})


def pairs(num_images: int, num_texts: int) -> tuple[Tensor, Tensor]:
    """Image and caption of every pair, row by row of the score matrix."""
    return torch.arange(num_images).repeat_interleave(num_texts), torch.arange(num_texts).repeat(num_images)


def numbers(values: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tensor of JSON values, where NaN is a string."""
    if isinstance(values, list):
        return torch.stack([numbers(value, dtype) for value in values])
    return torch.tensor(float(values), dtype=dtype)


def watch(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """A dict that receives the output of each module whenever it runs."""
    outputs: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output[0] if isinstance(output, tuple) else output})
        )
    return outputs


@torch.no_grad()
def meter(name: str) -> Iterator[Comparison]:
    """Scores, and the output of every layer before them."""
    scorer, tensors = load_meter(name), load_file(FIXTURES / f"{name}.safetensors")
    official = {key.removeprefix("out."): tensor for key, tensor in tensors.items() if key.startswith("out.")}
    pixels, ids, mask = tensors["in.pixel_values"], tensors["in.input_ids"], tensors["in.attention_mask"]
    network = scorer.network
    outputs = watch(
        {
            "vit_after_ln_pre": network.vision.pre_layrnorm,
            **{f"vit_block_{i}": block for i, block in enumerate(network.vision.encoder.layers)},
            "vit_out": network.vision.post_layernorm,
            "text_embeddings": network.text.embeddings,
            **{f"text_layer_{i}": layer for i, layer in enumerate(network.text.encoder.layer)},
            "image_transformed": network.image_transform,
            "text_transformed": network.text_transform,
            **{f"cross_text_{i}": layer.feed_forward for i, layer in enumerate(network.text_layers)},
            **{f"cross_image_{i}": layer.feed_forward for i, layer in enumerate(network.image_layers)},
            "text_feats": network.text_layers[-1].feed_forward,
            "image_feats": network.image_layers[-1].feed_forward,
        }
    )
    network.rank_output.register_forward_pre_hook(lambda _, inputs: outputs.update(cls_feats=inputs[0]))
    yield Comparison(name, "scores", plain_score(scorer, pixels, ids, mask), official.pop("rank_score"))
    pooled = outputs.pop("cls_feats")
    for part, ours in zip(("pooled_text", "pooled_image"), pooled.chunk(2, dim=1), strict=True):
        yield Comparison(name, "pooled features", ours, official.pop(part))
    yield Comparison(name, "pooled features", pooled, official.pop("cls_feats"))
    for layer, ours in outputs.items():
        # The outputs at padded positions of a caption are arbitrary.
        rows = mask.bool() if "text" in layer else slice(None)
        yield Comparison(name, "layer outputs", ours[rows], official.pop(layer)[rows])
    positions = network.vision.embeddings.position_embedding.weight
    yield Comparison(name, "position table", positions, official.pop("positional_embedding_used"))
    yield Comparison(
        name,
        "scores, captions padded with id 0",
        plain_score(scorer, pixels, ids * mask, mask),
        official.pop("rank_score_pad0"),
    )
    matrix = official.pop("score_matrix_images_by_texts")
    scores = scorer(ImageBatch(pixels), TextBatch(ids, mask), *pairs(*matrix.shape)).view_as(matrix)
    yield Comparison(name, "pair scores", scores, matrix)
    assert not official, f"not compared: {sorted(official)}"


@torch.no_grad()
def vilt(name: str) -> Iterator[Comparison]:
    """Scores, and the caption part of every layer's output."""
    scorer, tensors = load(name), load_file(FIXTURES / f"{name}.safetensors")
    official = {key.removeprefix("out."): tensor for key, tensor in tensors.items() if key.startswith("out.")}
    pixels, area = tensors["in.pixel_values"], tensors["in.pixel_mask"]
    ids, mask = tensors["in.input_ids"], tensors["in.attention_mask"]
    network = scorer.network.vilt
    outputs = watch(
        {
            "text_embeddings": network.embeddings.text_embeddings,
            **{f"text_part_block_{i}": layer for i, layer in enumerate(network.encoder.layer)},
            "text_part_final_norm": network.layernorm,
            "cls_feats": network.pooler,
        }
    )
    yield Comparison(name, "scores", plain_score(scorer, pixels, ids, mask, area), official.pop("rank_score"))
    yield Comparison(name, "pooled features", outputs.pop("cls_feats"), official.pop("cls_feats"))
    for layer, ours in outputs.items():
        yield Comparison(name, "layer outputs", ours[:, : ids.shape[1]][mask.bool()], official.pop(layer)[mask.bool()])
    matrix = official.pop("score_matrix_images_by_texts")
    scores = scorer(ImageBatch(pixels, area), TextBatch(ids, mask), *pairs(*matrix.shape)).view_as(matrix)
    yield Comparison(name, "pair scores", scores, matrix)
    unpadded = official.pop("rank_score_unpadded")
    for i, (height, width) in enumerate(fixture_json(name)["image_sizes_hw"]):
        image, length = pixels[i : i + 1, :, :height, :width], int(mask[i].sum())
        words = ids[i : i + 1, :length], mask[i : i + 1, :length]
        yield Comparison(name, "scores, nothing padded", plain_score(scorer, image, *words), unpadded[i : i + 1])
        alone = scorer(ImageBatch(image), TextBatch(*words), torch.tensor([0]), torch.tensor([0]))
        yield Comparison(name, "pair scores, nothing padded", alone, unpadded[i : i + 1])
    assert not official, f"not compared: {sorted(official)}"


def position_tables(name: str) -> Iterator[Comparison]:
    """A position table of 4 x 4 patches at other sizes."""
    tables = load_file(FIXTURES / f"{name}.safetensors")
    given = tables.pop("in.table_4x4")
    for key, official in tables.items():
        yield Comparison(name, "position tables", resize_positions(given, int(key.rpartition("x")[2])), official)


def parameter_shapes(name: str) -> Iterator[Comparison]:
    """Shapes of a full-size checkpoint's parameters, renamed, and of the network's parameters of the same names."""
    facts = fixture_json(name)
    state = {key: torch.empty(shape, device="meta") for key, shape in facts.get("keys", facts).items()}
    with torch.device("meta"):
        if "keys" in facts:
            vision = CLIPVisionConfig(
                hidden_size=768, num_hidden_layers=11, image_size=facts["model"]["image_size"], patch_size=16
            )
            text = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
            network, (renamed, _) = CoAttentionNetwork.from_configs(vision, text, FusionSize()), to_network(state)
        else:
            network, (renamed, _) = ViltForImageAndTextRetrieval(ViltConfig()), official_vilt.to_transformers(state)
    own = dict(network.named_parameters())
    assert own.keys() == renamed.keys()
    for key, parameter in own.items():
        yield Comparison(
            name, "parameter shapes", torch.tensor(parameter.shape), torch.tensor(renamed[key].shape), bound=0
        )


RESIZED = 0.0 if int(PIL.__version__.split(".")[0]) >= 13 else 0.01
"""Pillow 13, with which the fixture was made, rounds some resized pixels otherwise than earlier ones, by one level."""


def pixels(name: str = "preprocess_a") -> Iterator[Comparison]:
    """Preprocessed images of several sizes and modes, for ViLT and METER."""
    facts, tensors = fixture_json(name), load_file(FIXTURES / f"{name}.safetensors")
    vilts = Preprocess(tokenizer=None, image_processor=vilt_image_processor(96), max_text_len=40)
    meters = Preprocess(
        tokenizer=None, image_processor=meter_image_processor(64), max_text_len=40, image_transform="meter"
    )
    for i in range(len(facts["images"])):
        values = tensors[f"in.{i}"].numpy()
        image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
        yield Comparison(
            name,
            "ViLT's pixels",
            vilts.images([image]).pixel_values[0],
            tensors[f"out.pixelbert96.{i}"],
            bound=RESIZED,
        )
        yield Comparison(
            name,
            "METER's pixels",
            meters.images([image]).pixel_values[0],
            tensors[f"out.clip64.{i}"],
            bound=RESIZED,
        )
    full_size = Preprocess(tokenizer=None, image_processor=vilt_image_processor(), max_text_len=40)
    for input_size, official in facts["pixelbert_384_output_hw_of_input_hxw"].items():
        height, width = map(int, input_size.split("x"))
        size = full_size.images([Image.new("RGB", (width, height))]).pixel_values.shape[2:]
        yield Comparison(name, "ViLT's sizes at 384", torch.tensor(size), torch.tensor(official), bound=0)


def recalls(name: str = "recall_a") -> Iterator[Comparison]:
    """Recall@1, 5 and 10 in both directions, as shares."""
    for case in fixture_json(name)["cases"]:
        rankings = rank_matrix(torch.tensor(case["scores_images_by_texts"]), np.array(case["text_owner"]))
        for kind, ranking in (("tr", rankings.text), ("ir", rankings.image)):
            ours = measures.recall_at_k(ranking.ranks)
            official = torch.tensor([case[f"{kind}_r{k}"] for k in measures.KS])
            yield Comparison(
                name, "recalls", torch.tensor([ours[f"R@{k}"] / 100 for k in measures.KS]), official, bound=1e-7
            )


COMPARISONS: dict[str, Callable[[], Iterator[Comparison]]] = {
    **{name: functools.partial(vilt, name) for name in ("vilt_tiny_a", "vilt_eps_a")},
    **{name: functools.partial(meter, name) for name in ("meter_tiny_a", "meter_eps_a", "dcd_step_a_teacher")},
    **{name: functools.partial(position_tables, name) for name in ("meter_tiny_a_posinterp", "meter_eps_a_posinterp")},
    **{
        name: functools.partial(parameter_shapes, name)
        for name in ("vilt_full_keys", "meter_full_384_keys", "meter_full_288_keys")
    },
    "preprocess_a": pixels,
    "recall_a": recalls,
}
