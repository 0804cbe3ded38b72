"""A dual encoder over two encoders that stay as they are: one linear layer a side, trained in seconds from features on disk.

Shape letters: I images, T texts, V image tokens, L text tokens, D length of the vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from dcdctl.core import files
from dcdctl.core.errors import ModelError
from dcdctl.core.models import backbones
from dcdctl.core.models.backbones import EncoderPair, FeatureSpec, Projections, ProjectionSize
from dcdctl.core.models.checkpoint import WEIGHTS_FILE, check_complete, digest_of_model, save_own
from dcdctl.core.models.dual import DualModel
from dcdctl.core.models.overrides import check_no_text_encoder, read_overrides
from dcdctl.core.models.preprocess import Preprocess, check_text_length, check_vocabulary, hub_errors, load_tokenizer, num_text_positions
from dcdctl.core.models.protocols import ExportSpec, ImageBatch, States, TextBatch

ENCODER_DUAL_TYPE = "dcdctl-encoder-dual"


class EncoderDualNetwork(nn.Module):
    """Two encoders and two projections; the projections are untrained."""

    def __init__(self, vision: nn.Module, text: nn.Module, size: ProjectionSize) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        for encoder in (vision, text):
            backbones.drop_pooler(encoder)
        self.image_width = backbones.image_width(vision)
        self.projections = Projections(self.image_width, self.text_config.hidden_size, size)

    @property
    def vision_config(self) -> Any:
        return self.vision.config

    @property
    def text_config(self) -> Any:
        return self.text.config

    def to_table(self) -> dict[str, Any]:
        """What config.json holds."""
        sides = {"vision": self.vision_config.to_dict(), "text": self.text_config.to_dict()}
        for told in sides.values():
            told.pop("_name_or_path", None)  # where the encoder once came from, perhaps a folder of this machine
        return {**sides, "projection": dataclasses.asdict(self.projections.size)}


class EncoderDual(DualModel):
    """Embeds images and captions, or what its encoders made of them, into one space; made in eval mode, its encoders frozen."""

    network: EncoderDualNetwork

    def __init__(self, network: EncoderDualNetwork, preprocess: Preprocess, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__(network, preprocess, unused_keys)
        self.encoders.freeze()

    @property
    def digest(self) -> str:
        """The fingerprint of all weights and all settings that change a score."""
        settings = {**self.settings, **self.preprocess.settings, "heads": self.encoders.unseen_settings}
        return digest_of_model(self, settings, without="calibration")

    @property
    def encoders(self) -> EncoderPair:
        """Both encoders, whose features may be stored; they are always frozen."""
        return EncoderPair(self.network.vision, self.network.text, self.network.image_width, self.preprocess)

    @property
    def embedding_dim(self) -> int:
        return int(self.network.projections.size.projection_dim)

    @property
    def logit_scale(self) -> Tensor:
        """What cosines are multiplied by to be logits."""
        return self.network.projections.scale

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        return self.network.vision, self.network.text

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the projections; the encoders stay in eval mode."""
        super().train(mode)
        self.encoders.restore_eval_mode()
        return self

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D, of images or of their features."""
        features = self.encoders.image_features(images) if isinstance(images, ImageBatch) else images
        return self.network.projections.project_images(features.tokens)

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D, of captions or of their features."""
        features = self.encoders.text_features(texts) if isinstance(texts, TextBatch) else texts
        return self.network.projections.project_texts(features.tokens, features.mask)

    def export_spec(self) -> ExportSpec:
        """A class in a file of code, since transformers has none that reads stages, mean tokens and normalized features."""
        config = self.network.vision_config
        return ExportSpec(
            model_class="EncoderDualModel",
            processor_class="VisionTextDualEncoderProcessor",
            code="modeling_encoder_dual",
            timm_config=config if config.model_type == backbones.TIMM else None,
        )

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights."""
        save_own(self.network, {"model_type": ENCODER_DUAL_TYPE, **self.network.to_table()}, folder, half=half)


def dual_over(
    vision_ref: str, text_ref: str, size: ProjectionSize, *, max_text_len: int, features: FeatureSpec = FeatureSpec.DEFAULT, seed: int = 0
) -> EncoderDual:
    """A dual encoder over two pretrained encoders that stay frozen (folders or Hub ids); only the two projections are new.

    Arguments as in `build.scorer_over`. Equal seeds give equal weights; the global random state is not touched.
    """
    vision, text = backbones.load_vision(vision_ref, features), backbones.load_text(text_ref)
    tokenizer = load_tokenizer(text_ref, "model.text wants a text model with its tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = EncoderDualNetwork(vision, text, size)
    check_vocabulary(tokenizer, network.text_config.vocab_size)
    processor = backbones.load_processor(vision_ref, network.vision_config)
    length = min(max_text_len, num_text_positions(network.text_config))
    return EncoderDual(network, Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=length))


def from_folder(folder: Path, overrides: Mapping[str, Any], told: Mapping[str, Any]) -> EncoderDual:
    """The dual encoder of a folder that `save_network` and `Preprocess.save` wrote; `told` is its dcdctl.json."""
    wanted = read_overrides(overrides)
    check_no_text_encoder(wanted, folder)
    for name in ("image_size", "num_attention_heads"):
        if getattr(wanted, name) is not None:
            raise ModelError(f"{folder} is a dual encoder, whose {name} is fixed by its weights")
    table = files.read_json(folder / "config.json", error=ModelError, hint="save the model again")
    with hub_errors(str(folder), hint="save the model again"):
        weights = load_file(folder / WEIGHTS_FILE)
    with backbones.needing_timm(folder):
        vision, text = (AutoModel.from_config(AutoConfig.for_model(**table[name])) for name in ("vision", "text"))
    network = EncoderDualNetwork(vision, text, ProjectionSize(**table["projection"]))
    own = network.state_dict()
    check_complete(folder, set(own) - set(weights), "a dual encoder")
    network.load_state_dict({name: weights[name].to(own[name].dtype) for name in own})
    tokenizer = load_tokenizer(wanted.tokenizer or str(folder))
    check_vocabulary(tokenizer, network.text_config.vocab_size)
    processor = backbones.load_processor(str(folder), network.vision_config)
    length = check_text_length(wanted.max_text_len or told["max_text_len"], num_text_positions(network.text_config))
    return EncoderDual(network, Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=length))
