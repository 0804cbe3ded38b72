"""Dual encoders: one vector an image, one a caption, over transformers.VisionTextDualEncoderModel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, BeitConfig, BertConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.models.attention import enable_checkpointing
from dcdctl.core.models.backbones import MAX_LOGIT_SCALE
from dcdctl.core.models.checkpoint import digest_of_model, save_pretrained
from dcdctl.core.models.overrides import check_no_text_encoder, read_overrides
from dcdctl.core.models.preprocess import (
    Preprocess,
    check_text_length,
    check_vocabulary,
    hub_errors,
    load_image_processor,
    load_tokenizer,
    num_text_positions,
    square_image_processor,
)
from dcdctl.core.models.protocols import Encoders, ExportSpec, ImageBatch, Pairs, States, TextBatch, select_rows

MAX_TEXT_LEN = 40
PLACE_STD = 0.2
"""Of a new image encoder's position embeddings: a narrow one whose places are quieter than its patches learns them late."""


@dataclass(frozen=True, kw_only=True)
class DualSize:
    """The dimensions of a dual encoder made from nothing: a vision transformer and a BERT of one width."""

    hidden_size: int = 128
    num_vision_layers: int = 4
    num_text_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 512
    projection_dim: int = 128
    """Length of the vectors."""
    image_size: int = 64
    """Side of the square that images are resized to, in pixels."""
    patch_size: int = 16
    image_mean: float = 0.5
    image_std: float = 0.5
    """Pixels of every channel, white being 1, have this subtracted and are divided by this."""
    max_text_len: int = MAX_TEXT_LEN
    hidden_dropout_prob: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}")
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")


class Calibration(nn.Module):
    """A factor above 0 and an offset, both learned, that bring a dual model's logits to a teacher's scale; at first they change nothing.

    They serve losses that compare logits with logits, and change no order: they are no part of the model's fingerprint or of what is saved.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor) -> Tensor:
        """The logits on the teacher's scale, in float32."""
        return self.log_scale.exp() * logits.float() + self.offset


class DualModel(nn.Module, ABC):
    """Base of the dual encoders; created in eval mode. `unused_keys` are the entries of a checkpoint that embedding does not need."""

    kind: Literal["dual"] = "dual"
    network: nn.Module

    def __init__(self, network: nn.Module, preprocess: Preprocess, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess
        self.unused_keys = unused_keys
        self.calibration = Calibration()
        self.eval()

    @property
    def encoders(self) -> Encoders | None:
        """See `DualEncoder.encoders`; None unless a family has them."""
        return None

    @property
    @abstractmethod
    def digest(self) -> str:
        """See `DualEncoder.digest`."""

    @property
    @abstractmethod
    def embedding_dim(self) -> int:
        """See `DualEncoder.embedding_dim`."""

    @property
    @abstractmethod
    def logit_scale(self) -> Tensor:
        """See `DualEncoder.logit_scale`."""

    @abstractmethod
    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """See `DualEncoder.embed_images`."""

    @abstractmethod
    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """See `DualEncoder.embed_texts`."""

    @property
    @abstractmethod
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        """The vision and the text encoder in the network."""

    def checkpoint_activations(self) -> None:
        """Compute activations of trained encoders again in the backward pass; ModelError where no encoder can."""
        if not enable_checkpointing(self._encoder_modules):
            raise ModelError("the encoders of this model cannot compute activations again", hint="leave --checkpoint-activations out")

    @abstractmethod
    def export_spec(self) -> ExportSpec:
        """See `DualEncoder.export_spec`."""

    def export_copy(self) -> Self:
        """The same network, with preprocessing files that need no dcdctl."""
        return type(self)(self.network, self.preprocess.self_contained())

    @property
    def settings(self) -> dict[str, Any]:
        """What the files of a saved model do not say without us."""
        return {"kind": "dual", "max_text_len": self.preprocess.max_text_len}

    def forward(self, images: ImageBatch | States, texts: TextBatch | States) -> tuple[Tensor, Tensor]:
        """The vectors of a batch, I x D and T x D."""
        return self.embed_images(images), self.embed_texts(texts)

    def outputs(self, pairs: Pairs) -> tuple[Tensor, ...]:
        """The vectors of all images and texts, I x D and T x D, float32."""
        images_ID, texts_TD = self(pairs.images, pairs.texts)
        return images_ID.float(), texts_TD.float()

    def logits(self, outputs: Sequence[Tensor], pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The logits of the pairs, R x C, and of all images with all texts, I x T."""
        images_ID, texts_TD = outputs
        all_IT = self.logit_scale * images_ID @ texts_TD.T
        position_RC = pairs.image_ix_RC * all_IT.shape[1] + pairs.text_ix_RC
        return select_rows(all_IT.flatten(), position_RC.flatten()).view(position_RC.shape), all_IT

    def calibrate(self, logits: Tensor) -> Tensor:
        """The logits on the teacher's scale, float32."""
        calibrated: Tensor = self.calibration(logits)
        return calibrated


class VisionTextDual(DualModel):
    """Embeds images and captions with a VisionTextDualEncoderModel of transformers."""

    network: VisionTextDualEncoderModel

    @property
    def digest(self) -> str:
        """The fingerprint of all weights and all settings that change a score."""
        configs = (self.network.config.vision_config, self.network.config.text_config)
        heads = [getattr(config, "num_attention_heads", None) for config in configs]
        return digest_of_model(self, {**self.settings, **self.preprocess.settings, "heads": heads}, without="calibration")

    @property
    def embedding_dim(self) -> int:
        """Length D of the vectors."""
        return int(self.network.config.projection_dim)

    @property
    def logit_scale(self) -> Tensor:
        """Factor from cosine to logit; learned, 0-dimensional, at most 100."""
        return self.network.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D. ValueError for features."""
        if isinstance(images, States):
            raise ValueError("this dual encoder takes pixels, not the features of an encoder")
        return functional.normalize(self.network.get_image_features(pixel_values=images.pixel_values).pooler_output, dim=-1)

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D. ValueError for features."""
        if isinstance(texts, States):
            raise ValueError("this dual encoder takes tokens, not the features of an encoder")
        output = self.network.get_text_features(input_ids=texts.input_ids, attention_mask=texts.attention_mask)
        return functional.normalize(output.pooler_output, dim=-1)

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        return self.network.vision_model, self.network.text_model

    def export_spec(self) -> ExportSpec:
        """A class of transformers."""
        return ExportSpec(model_class="VisionTextDualEncoderModel", processor_class="VisionTextDualEncoderProcessor")

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights, as transformers reads them."""
        save_pretrained(self.network, folder, half=half)


def new_dual(size: DualSize, tokenizer: Any, seed: int = 0) -> VisionTextDual:
    """An untrained dual encoder for this tokenizer; the same weights for the same seed, the global random state untouched."""
    shared = {
        "hidden_size": size.hidden_size,
        "num_attention_heads": size.num_attention_heads,
        "intermediate_size": size.intermediate_size,
        "hidden_dropout_prob": size.hidden_dropout_prob,
        "attention_probs_dropout_prob": 0.0,
        # The usual 0.02 is made for a width of 768; a narrow model would start with outputs that hardly depend on its input.
        "initializer_range": size.hidden_size**-0.5,
    }
    # The image's vector is the mean over its patches: from little data this learns more than a class token that has to collect them.
    vision = BeitConfig(
        num_hidden_layers=size.num_vision_layers,
        image_size=size.image_size,
        patch_size=size.patch_size,
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,
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
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = VisionTextDualEncoderModel(config)
        nn.init.normal_(network.vision_model.embeddings.position_embeddings, std=PLACE_STD)
    processor = square_image_processor(size.image_size, size.image_mean, size.image_std)
    return VisionTextDual(network, Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=size.max_text_len))


def dual_from_backbones(
    vision_ref: str, text_ref: str, projection_dim: int = 256, max_text_len: int = MAX_TEXT_LEN, seed: int = 0
) -> VisionTextDual:
    """A dual encoder over two pretrained backbones (folders or Hub ids); only the two projections are new."""
    for ref in (vision_ref, text_ref):
        with hub_errors(ref, hint="name a local folder or a Hub id of a transformers model"):
            AutoConfig.from_pretrained(ref)
    with torch.random.fork_rng(devices=[]), hub_errors(vision_ref, hint=f"with {text_ref} as its text side"):
        torch.default_generator.manual_seed(seed)
        network = VisionTextDualEncoderModel.from_vision_text_pretrained(vision_ref, text_ref, projection_dim=projection_dim)
    network = network.float()
    tokenizer = load_tokenizer(text_ref)
    check_vocabulary(tokenizer, network.config.text_config.vocab_size)
    length = min(max_text_len, num_text_positions(network.config.text_config))
    model = VisionTextDual(network, Preprocess(tokenizer=tokenizer, image_processor=load_image_processor(vision_ref), max_text_len=length))
    _check_pooled(model, text_ref)
    return model


def from_transformers(ref: str, overrides: Mapping[str, Any], told: Mapping[str, Any] | None = None) -> VisionTextDual:
    """The dual encoder of a transformers folder or Hub id; `told` is the folder's dcdctl.json, if we wrote it."""
    wanted = read_overrides(overrides)
    check_no_text_encoder(wanted, ref)
    for name in ("image_size", "num_attention_heads"):
        if getattr(wanted, name) is not None:
            found = f"{ref} is a dual encoder, whose {name} is fixed by its weights"
            raise ModelError(found, hint="a dual encoder takes max_text_len and tokenizer")
    with hub_errors(ref, hint="give a folder that holds config.json, model.safetensors, tokenizer and preprocessor_config.json"):
        network, report = VisionTextDualEncoderModel.from_pretrained(ref, dtype=torch.float32, output_loading_info=True)
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise ModelError(f"{ref} lacks {len(names)} parameters of a dual encoder: {', '.join(names[:8])}")
    tokenizer = load_tokenizer(wanted.tokenizer or ref)
    check_vocabulary(tokenizer, network.config.text_config.vocab_size)
    most = num_text_positions(network.config.text_config)
    length = wanted.max_text_len or (told["max_text_len"] if told else min(MAX_TEXT_LEN, most))
    preprocess = Preprocess(tokenizer=tokenizer, image_processor=load_image_processor(ref), max_text_len=check_text_length(length, most))
    return VisionTextDual(network, preprocess)


def _check_pooled(model: VisionTextDual, text_ref: str) -> None:
    """ModelError for a text backbone without a pooled output, such as DistilBERT."""
    try:
        with torch.no_grad():
            model.embed_texts(model.preprocess.texts(["a"]))
    except (AttributeError, TypeError) as error:
        raise ModelError(f"{text_ref} gives no pooled output", hint="take a text model with a pooler, such as BERT or RoBERTa") from error
