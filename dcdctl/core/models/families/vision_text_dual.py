"""Dual encoders over a VisionTextDualEncoderModel of transformers, all or some of whose weights are trained; `clip`
loads them.

Shape letters: I images, T texts, W width of an encoder, D length of the vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, BeitConfig, BertConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from dcdctl.core.errors import ModelError
from dcdctl.core.models.checkpoint import save_pretrained
from dcdctl.core.models.dual import DualEncoder, unit_vectors
from dcdctl.core.models.fingerprint import digest_of, text_settings
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.lora import add_adapters
from dcdctl.core.models.model import TransformerSize, seeded
from dcdctl.core.models.networks import backbones
from dcdctl.core.models.networks.attention import set_hidden_dropout
from dcdctl.core.models.networks.backbones import config_tables
from dcdctl.core.models.networks.projections import MAX_LOGIT_SCALE
from dcdctl.core.models.networks.towers import (
    Tower,
    TrainedParts,
    depth_of,
    freeze_others,
    keep_layers,
    use_eval_mode_where_frozen,
)
from dcdctl.core.models.preprocess import (
    Preprocess,
    fitted_preprocess,
    load_image_processor,
    load_tokenizer,
    square_image_processor,
)
from dcdctl.core.models.protocols import ExportSpec

MAX_TEXT_LEN = 40
"""Tokens of a caption unless set otherwise, as in the official retrieval models."""
POSITION_STD = 0.2
"""Standard deviation of a new image encoder's position embeddings. A narrow encoder learns positions late if they are
small beside its patches."""


FROZEN_HINT = (
    "set model.frozen_encoders = true, or take a ViT, DINOv2, CLIP or SigLIP with a text encoder such as "
    "BERT or RoBERTa"
)


@dataclass(frozen=True, kw_only=True)
class DualSize(TransformerSize):
    """The dimensions of a new dual encoder: a vision transformer and a BERT of equal width."""

    num_vision_layers: int = 4
    num_text_layers: int = 2
    projection_dim: int = 128
    """Length of the vectors."""


@dataclass(frozen=True)
class FrozenTowers:
    """The `encoders` of a dual encoder whose towers are frozen and whose projections are trained.

    A feature is one pooled output for each image and each caption, or for late interaction the states of all tokens.
    Shape letters: I images, T texts, V and L tokens, W width of a tower.
    """

    model: VisionTextDual
    pools_texts: bool = True
    """Whether images and captions are pooled."""
    is_frozen = True

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the features. Projections do not count, so a trained model shares the
        features of its start."""
        vision, text = self.model.towers
        both = nn.ModuleDict({"vision": vision.module, "text": text.module})
        tables = config_tables(vision.module, text.module)
        return self._digest_of(both, tables, self.model.preprocess.settings, "text.")

    @property
    def text_digest(self) -> str:
        """SHA-256 of all that decides the features of a caption."""
        vision, text = self.model.towers
        table = {"text": config_tables(vision.module, text.module)["text"]}
        return self._digest_of(text.module, table, text_settings(self.model.preprocess.settings))

    def _digest_of(self, encoders: nn.Module, config: Any, preprocess: Any, prefix: str = "") -> str:
        text = self.model.towers[1]
        inside = text.projection.removeprefix(f"{text.name}.")
        kind = "pooled" if self.pools_texts else "tokens"
        settings = {"features": kind, "model_type": self.model.network.config.model_type}
        leave_out = f"{prefix}{inside}." if inside else ""
        return digest_of(encoders, config=config, preprocess=preprocess, settings=settings, leave_out=leave_out)

    @property
    def text_width(self) -> int:
        """Width of the text encoder's output."""
        return int(self.model.towers[1].module.config.hidden_size)

    def freeze(self) -> None:
        """Does nothing: `set_trained` has frozen them."""

    def image_features(self, images: ImageBatch) -> States:
        """Features of I images, I x 1 x W, or I x V x W."""
        return _one_token(self.model.pool_images(images)) if self.pools_texts else self.model.image_tokens(images)

    def text_features(self, texts: TextBatch) -> States:
        """Features of T captions, T x 1 x W, or T x L x W."""
        return _one_token(self.model.pool_texts(texts)) if self.pools_texts else self.model.text_tokens(texts)


def _one_token(pooled: Tensor) -> States:
    return States(pooled[:, None], torch.ones(len(pooled), 1, dtype=torch.bool, device=pooled.device))


@dataclass(frozen=True, kw_only=True)
class DualVariant:
    """How models of one type read captions, and what reads the models."""

    model_class: str
    processor_class: str
    max_text_len: int | None = None
    """Tokens of a caption, special ones included; None for as many as the model has positions."""
    text_position: int | None = None
    """The token that stands for a caption; None for the pooled output of the text encoder."""
    pads_texts: bool = False
    """Every caption is padded to the maximum length, and the model attends to the padding, as in its training."""


VARIANTS = {
    "vision-text-dual-encoder": DualVariant(
        model_class="VisionTextDualEncoderModel",
        processor_class="VisionTextDualEncoderProcessor",
        max_text_len=MAX_TEXT_LEN,
    ),
    "clip": DualVariant(model_class="CLIPModel", processor_class="CLIPProcessor"),
    "metaclip_2": DualVariant(model_class="MetaClip2Model", processor_class="CLIPProcessor"),
    "siglip": DualVariant(
        model_class="SiglipModel", processor_class="SiglipProcessor", text_position=-1, pads_texts=True
    ),
    # SigLIP 2 with variable resolution (NaFlex); with a fixed one it has the type siglip.
    "siglip2": DualVariant(
        model_class="Siglip2Model", processor_class="Siglip2Processor", text_position=-1, pads_texts=True
    ),
    # Both have a BERT with 512 positions for their captions, which were shorter in training: 52 tokens in
    # Chinese-CLIP's code, and 64 in the processor of ALIGN.
    "chinese_clip": DualVariant(
        model_class="ChineseCLIPModel", processor_class="ChineseCLIPProcessor", text_position=0, max_text_len=52
    ),
    "align": DualVariant(model_class="AlignModel", processor_class="AlignProcessor", text_position=0, max_text_len=64),
}
"""By `model_type` in config.json."""


class VisionTextDual(DualEncoder):
    """Embeds images and captions with a VisionTextDualEncoderModel of transformers."""

    network: Any  # a VisionTextDualEncoderModel, or another network of transformers with two encoders of these names
    _parts = TrainedParts()
    _adapted: Any = None
    """PEFT's model around the network, while it has adapters."""

    @property
    def embedding_dim(self) -> int:
        """Length D of the vectors."""
        return int(self.network.config.projection_dim)

    @property
    def logit_scale(self) -> Tensor:
        """Factor from cosine to logit; learned, 0-dimensional, at most 100."""
        return self.network.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D. ValueError for features, unless only projections are trained."""
        pooled_IW = self._stored(images)[:, 0] if isinstance(images, States) else self.pool_images(images)
        return unit_vectors(self.project_images(pooled_IW))

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D. ValueError for features, unless only projections are trained."""
        pooled_TW = self._stored(texts)[:, 0] if isinstance(texts, States) else self.pool_texts(texts)
        return unit_vectors(self.project_texts(pooled_TW))

    def pool_images(self, images: ImageBatch) -> Tensor:
        """What the image encoder gives for whole images, I x W, before the projection."""
        return self._image_output(images).pooler_output

    def pool_texts(self, texts: TextBatch) -> Tensor:
        """What the text encoder gives for whole captions, T x W, before the projection."""
        return self._pooled_texts(self._text_output(texts))

    def image_tokens(self, images: ImageBatch | States) -> States:
        """The last hidden states, I x N x W, and the unit vectors; of features without vectors."""
        if isinstance(images, States):
            return self._stored_tokens(images)
        output = self._image_output(images)
        tokens = output.last_hidden_state
        # A convolutional network has a map of states.
        tokens = tokens.flatten(2).mT if tokens.ndim == 4 else tokens
        mask = images.pixel_mask
        if images.grid is None or mask is None:
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        return States(tokens, mask.bool(), unit_vectors(self.project_images(output.pooler_output)))

    def text_tokens(self, texts: TextBatch | States) -> States:
        """The last hidden states, T x L x W, and the unit vectors; padding is no token, also if the model attends to
        it. Features are without vectors."""
        if isinstance(texts, States):
            return self._stored_tokens(texts)
        output = self._text_output(texts)
        return self._states_of(
            texts, output.last_hidden_state, unit_vectors(self.project_texts(self._pooled_texts(output)))
        )

    def _image_output(self, images: ImageBatch) -> Any:
        encoder = self.network.vision_model
        return encoder(pixel_values=backbones.in_kernel_order(encoder, images.pixel_values))

    def _text_output(self, texts: TextBatch) -> Any:
        encoder = self.network.text_model
        return encoder(input_ids=texts.input_ids, attention_mask=backbones.attention_mask(encoder, texts))

    def _pooled_texts(self, output: Any) -> Tensor:
        return output.pooler_output

    def project_images(self, pooled_IW: Tensor) -> Tensor:
        """Vectors of any length, I x D."""
        return self.network.visual_projection(pooled_IW)

    def project_texts(self, pooled_TW: Tensor) -> Tensor:
        """Vectors of any length, T x D."""
        return self.network.text_projection(pooled_TW)

    def _stored_tokens(self, features: States) -> States:
        # Vectors without numbers, because states with none are not encoded.
        return features.with_tokens(self._stored(features), features.tokens.new_empty(len(features), 0))

    def _stored(self, features: States) -> Tensor:
        if self.encoders is None:
            raise ValueError("this dual encoder takes pixels and tokens, not the features of an encoder")
        return features.tokens.float()

    @property
    def _encoder_modules(self) -> tuple[Any, ...]:
        return self.network.vision_model, self.network.text_model

    @property
    def towers(self) -> tuple[Tower, Tower]:
        """The image and the text encoder."""
        vision, text = self._encoder_modules
        return Tower("image", "network.vision_model", vision), Tower("text", "network.text_model", text)

    @property
    def encoders(self) -> FrozenTowers | None:
        """The towers, with pooled outputs as features, if only projections are trained; else None."""
        return FrozenTowers(self) if self._parts.which == "projections" else None

    def set_trained(self, parts: TrainedParts) -> None:
        """Let training change only these parts of both towers."""
        if parts.which == "lora":
            # Not as an attribute of the module, which would list every parameter twice.
            object.__setattr__(self, "_adapted", add_adapters(self.network, self.towers, parts))
        self._parts = parts
        freeze_others(self, self.towers, parts)
        self.train(self.training)

    def merge_adapters(self) -> None:
        """Add the adapters to the weights that they adapt, and remove them."""
        if self._adapted is not None:
            self.network = self._adapted.merge_and_unload()
            object.__setattr__(self, "_adapted", None)

    @property
    def digest(self) -> str:
        """SHA-256 of weights and settings; with adapters, that of the model that they are merged into."""
        if self._adapted is None:
            return super().digest
        merged = copy.deepcopy(self)
        merged.merge_adapters()
        return merged.digest

    def depth_of(self, parameter: str) -> int:
        """Distance of a parameter from the top of its tower."""
        return depth_of(self.towers, parameter)

    def keep_layers(self, vision: Sequence[int], text: Sequence[int]) -> None:
        """Remove all layers of the towers but these."""
        configs = self.network.config.vision_config, self.network.config.text_config
        for tower, kept, config in zip(self.towers, (vision, text), configs, strict=True):
            if kept:
                keep_layers(tower, kept, config)

    def train(self, mode: bool = True) -> Self:
        """Train mode, except for frozen parts, which have no dropout."""
        super().train(mode)
        use_eval_mode_where_frozen(self.network)
        return self

    def set_dropout(self, probability: float) -> None:
        """Set the hidden dropout of both encoders; ModelError if neither has any, as in CLIP."""
        if not sum(set_hidden_dropout(encoder, probability) for encoder in self._encoder_modules):
            types = " and ".join(encoder.config.model_type for encoder in self._encoder_modules)
            raise ModelError(
                f"no encoder of this dual encoder has dropout that can be set ({types})", hint="leave model.dropout out"
            )

    @property
    def variant(self) -> DualVariant:
        """What is particular to models of this type."""
        return VARIANTS[self.network.config.model_type]

    def export_spec(self) -> ExportSpec:
        """A class of transformers."""
        variant, length = self.variant, self.preprocess.max_text_len
        padded = length if variant.pads_texts else None
        return ExportSpec(
            model_class=variant.model_class, processor_class=variant.processor_class, padded_length=padded
        )

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights, as transformers reads them."""
        assert self._adapted is None, "adapters are merged before a model is saved"
        save_pretrained(self.network, folder, half=half)


def new_dual(size: DualSize, tokenizer: Any, seed: int = 0) -> VisionTextDual:
    """An untrained dual encoder for this tokenizer. Equal seeds give equal weights; the global random state is not
    touched."""
    shared = {
        "hidden_size": size.hidden_size,
        "num_attention_heads": size.num_attention_heads,
        "intermediate_size": size.intermediate_size,
        "hidden_dropout_prob": size.hidden_dropout_prob,
        "attention_probs_dropout_prob": 0.0,
        # The usual 0.02 suits a width of 768. In a narrow model it gives outputs that hardly depend on the input at the
        # start.
        "initializer_range": size.hidden_size**-0.5,
    }
    # The vector of an image is the mean over its patches. With little training data that is better than a class token.
    vision = BeitConfig(
        num_hidden_layers=size.num_vision_layers,
        image_size=size.image_size,
        patch_size=size.patch_size,
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,
        # In a BeitConfig 0 means no layer scale.
        layer_scale_init_value=0.0,
        drop_path_rate=0.0,
        **shared,
    )
    text = BertConfig(
        num_hidden_layers=size.num_text_layers,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=size.max_text_len,
        **shared,
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=size.projection_dim)
    with seeded(seed):
        network = VisionTextDualEncoderModel(config)
        nn.init.normal_(network.vision_model.embeddings.position_embeddings, std=POSITION_STD)
    processor = square_image_processor(size.image_size, size.image_mean, size.image_std)
    return VisionTextDual(
        network, Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=size.max_text_len)
    )


def dual_from_backbones(vision_ref: str, text_ref: str, projection_dim: int = 256, seed: int = 0) -> VisionTextDual:
    """A dual encoder over two pretrained backbones (folders or Hub ids); only the two projections are new.

    ModelError for a backbone that VisionTextDualEncoderModel cannot hold; `new_frozen_dual` takes more.
    """
    with seeded(seed):
        # In this order, because a pooler that a checkpoint lacks takes random numbers too.
        vision, text = backbones.load_vision(vision_ref), backbones.load_text(text_ref)
        for ref, side, encoder in ((vision_ref, "vision", vision), (text_ref, "text", text)):
            _check_trainable(ref, side, encoder.config)
        config = VisionTextDualEncoderConfig.from_vision_text_configs(
            vision.config, text.config, projection_dim=projection_dim
        )
        network = VisionTextDualEncoderModel(config, vision, text)
    tokenizer = load_tokenizer(text_ref)
    processor, text_config = load_image_processor(vision_ref), network.config.text_config
    model = VisionTextDual(network, fitted_preprocess(tokenizer, processor, text_config, default=MAX_TEXT_LEN))
    # A backbone without a pooled output, such as DistilBERT, fails here.
    sides = (vision_ref, model.embed_images), (text_ref, model.embed_texts)
    backbones.check_sides(model.preprocess, *sides, hint=FROZEN_HINT)
    return model


def _check_trainable(ref: str, side: str, config: Any) -> None:
    """ModelError for an encoder that transformers cannot read again as a side of a VisionTextDualEncoderModel."""
    problem = ""
    if backbones.encoder_class(config) is not AutoModel:
        problem = "AutoModel does not know it alone"
    elif not isinstance(getattr(config, "hidden_size", None), int):
        problem = "its configuration gives no hidden_size"
    if problem:
        message = (
            f"the {side} encoder of {ref} ({config.model_type}) cannot be trained in a "
            f"VisionTextDualEncoderModel: {problem}"
        )
        raise ModelError(message, hint=FROZEN_HINT)
