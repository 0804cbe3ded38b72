"""A model as a folder that transformers reads by itself, without dcdctl.

A dual encoder of one network is a VisionTextDualEncoderModel with its processor. One over two encoders (stages, mean of tokens,
normalized features) is none: its folder holds a file of code that transformers runs where `trust_remote_code=True` allows it.
A ViLT scorer is a ViltForImageAndTextRetrieval with its processor. A co-attention scorer has no class in transformers: its folder is
read by `models.load_fusion`.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoProcessor, ViltForImageAndTextRetrieval, ViltProcessor, VisionTextDualEncoderModel
from transformers import VisionTextDualEncoderProcessor as DualProcessor

from dcdctl.core import files, models
from dcdctl.core.export.check import Samples, Vectors
from dcdctl.core.models import (
    ENCODER_DUAL_TYPE,
    TIMM,
    CoAttentionScorer,
    DualModel,
    EncoderDual,
    Preprocess,
    ViltScorer,
    silence_transformers,
)

MODEL_CODE, PROCESSOR_CODE = "modeling_encoder_dual", "image_processing_encoder_dual"
EPS_SCALE = 2.0**10
"""Squared, it is as good as the ratio of ViLT's two epsilons, 1e6."""
_ASSETS = files.packaged("assets")


def write(model: Any, folder: Path) -> None:
    """Fill a folder that is not there yet."""
    network = _with_one_epsilon(model.network) if isinstance(model, ViltScorer) else model.network
    copied = type(model)(network, self_sufficient(model.preprocess))
    models.save(copied, folder)
    if isinstance(model, EncoderDual):
        _add_code(folder)
    if not isinstance(model, CoAttentionScorer):
        write_processor(model, copied.preprocess, folder)


def self_sufficient(preprocess: Preprocess) -> Preprocess:
    """The same, its files saying what otherwise `Preprocess` does: colours made RGB, captions cut to `max_text_len`."""
    tokenizer, processor = copy.deepcopy(preprocess.tokenizer), copy.deepcopy(preprocess.image_processor)
    tokenizer.model_max_length = preprocess.max_text_len
    processor.do_convert_rgb = True
    return replace(preprocess, tokenizer=tokenizer, image_processor=processor)


def write_processor(model: Any, preprocess: Preprocess, folder: Path) -> None:
    """What the AutoProcessor of transformers reads, beside the files of tokenizer and image processor."""
    kind = ViltProcessor if isinstance(model, ViltScorer) else DualProcessor
    if needs_timm(model):
        write_timm_processor(model, folder)
        files.write_json(folder / "processor_config.json", {"processor_class": kind.__name__})
        return
    with silence_transformers():
        kind(preprocess.image_processor, preprocess.tokenizer).save_pretrained(folder)
        # What reads image processors alone looks for them here.
        preprocess.image_processor.save_pretrained(folder)


def needs_code(model: Any) -> bool:
    """Whether its folder holds code that is run with `trust_remote_code`."""
    return isinstance(model, EncoderDual)


def needs_timm(model: Any) -> bool:
    """Whether its pictures are prepared by timm."""
    return isinstance(model, EncoderDual) and model.network.vision_config.model_type == TIMM


def embed(folder: Path, model: DualModel, samples: Samples) -> Vectors:
    """The vectors of samples by what transformers reads from a folder, and nothing else of ours."""
    code = needs_code(model)
    with silence_transformers():
        if code:
            network = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True, backend="pil")
        else:
            network = VisionTextDualEncoderModel.from_pretrained(folder).eval()
            processor = DualProcessor.from_pretrained(folder, backend="pil")
    with torch.no_grad():
        pixels = processor(images=samples.pictures, return_tensors="pt")["pixel_values"]
        tokens = processor(text=samples.captions, padding=True, truncation=True, return_tensors="pt")
        images = network.get_image_features(pixel_values=pixels).pooler_output
        texts = network.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    return Vectors(images, texts)


def score(folder: Path, model: models.ViltScorer | models.CoAttentionScorer, samples: Samples) -> Tensor:
    """The logits of each sample's picture with its caption, by what is read from a folder."""
    if isinstance(model, CoAttentionScorer):
        return scores_of(models.load_fusion(folder), samples)
    with silence_transformers():
        network = ViltForImageAndTextRetrieval.from_pretrained(folder).eval()
        processor = ViltProcessor.from_pretrained(folder, backend="pil")
    batch = processor(images=samples.pictures, text=samples.captions, padding=True, truncation=True, return_tensors="pt")
    # transformers draws the order of the patches.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits: Tensor = network(**batch).logits.squeeze(-1)
    return logits


def scores_of(model: Any, samples: Samples) -> Tensor:
    """The logits of each sample's picture with its caption, by the model itself."""
    device, ix = next(iter(model.parameters())).device, torch.arange(len(samples.captions))
    with torch.no_grad():
        images = model.encode_images(model.preprocess.images(samples.pictures).to(device))
        texts = model.encode_texts(model.preprocess.texts(samples.captions).to(device))
        logits: Tensor = model.score_pairs(images, texts, ix.to(device), ix.to(device)).cpu()
    return logits


def _add_code(folder: Path) -> None:
    """Put the code beside the weights, and say in config.json what is in it."""
    shutil.copyfile(_ASSETS / f"{MODEL_CODE}.py", folder / f"{MODEL_CODE}.py")
    path = folder / "config.json"
    table = files.read_json(path)
    classes = {"AutoConfig": f"{MODEL_CODE}.EncoderDualConfig", "AutoModel": f"{MODEL_CODE}.EncoderDualModel"}
    assert table["model_type"] == ENCODER_DUAL_TYPE
    files.write_json(path, {**table, "architectures": ["EncoderDualModel"], "auto_map": classes, "dtype": "float32"})


def write_timm_processor(model: Any, folder: Path) -> None:
    shutil.copyfile(_ASSETS / f"{PROCESSOR_CODE}.py", folder / f"{PROCESSOR_CODE}.py")
    config = model.network.vision_config
    table = {
        "image_processor_type": "TimmImageProcessor",
        "auto_map": {"AutoImageProcessor": f"{PROCESSOR_CODE}.TimmImageProcessor"},
        "architecture": config.architecture,
        "pretrained_cfg": config.pretrained_cfg,
    }
    files.write_json(folder / "preprocessor_config.json", table)


def _with_one_epsilon(network: ViltForImageAndTextRetrieval) -> ViltForImageAndTextRetrieval:
    """The same scores from a network whose text embeddings have the blocks' LayerNorm epsilon, the only one that transformers knows.

    Embeddings larger by a factor, all of them, are normalized as before with an epsilon larger by its square; a power of two loses no bit.
    """
    copied = copy.deepcopy(network)
    embeddings = copied.vilt.embeddings.text_embeddings
    if embeddings.LayerNorm.eps != copied.config.layer_norm_eps:
        with torch.no_grad():
            for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
                table.weight.mul_(EPS_SCALE)
        embeddings.LayerNorm.eps = copied.config.layer_norm_eps
    return copied
