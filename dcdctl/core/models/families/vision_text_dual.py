"""Dual encoders of transformers, all or some of whose weights are trained: any model with `get_image_features` and
`get_text_features`, such as CLIP, SigLIP or a VisionTextDualEncoderModel.

Vectors and scores are the library's own. The trained projections are kept, so a student that starts from such a model
has its zero-shot quality.

Shape letters: I images, T texts, W width of an encoder, D length of the vectors.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    PROCESSOR_MAPPING,
    AutoModel,
    AutoProcessor,
    BeitConfig,
    BertConfig,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dcdctl.core.errors import ModelError, first_line
from dcdctl.core.models.checkpoint import check_complete, save_pretrained
from dcdctl.core.models.dual import unit_vectors
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.model import TransformerSize, seeded
from dcdctl.core.models.networks import backbones
from dcdctl.core.models.networks.attention import set_hidden_dropout
from dcdctl.core.models.networks.over_encoders import FrozenTowers
from dcdctl.core.models.networks.towers import Tower, keep_layers
from dcdctl.core.models.overrides import read_overrides
from dcdctl.core.models.preprocess import Preprocess, fitted_preprocess, load_image_processor, square_image_processor
from dcdctl.core.models.protocols import ExportSpec, Table
from dcdctl.core.models.references.family_table import FAMILIES
from dcdctl.core.models.references.loading import FOLDER_HINT, hub_errors
from dcdctl.core.models.tokenizer import load_own_tokenizer, load_tokenizer
from dcdctl.core.models.tower_dual import TowerDual

MAX_TEXT_LEN = 40
"""Tokens of a caption unless set otherwise, as in the official retrieval models."""
# Chinese-CLIP and ALIGN have a BERT with 512 positions for their captions, which were shorter in training: 52 tokens in
# the code of Chinese-CLIP, and 64 in the processor of ALIGN.
TEXT_LENGTHS = {"vision-text-dual-encoder": MAX_TEXT_LEN, "chinese_clip": 52, "align": 64}
"""Tokens of a caption, special ones included, by `model_type`; others take as many as they have positions."""
PADS_TEXTS = ("siglip", "siglip2")
"""Types that attend to the padding of captions, all of which have the maximum length, as in their training."""
ATTENTION = {"align": "sdpa", "aimv2": "eager"}
"""Attention of text encoders where it is not the default of transformers: the fused kernel of the others for ALIGN; the
plain one for AIMv2, whose fused one has no causal mask for captions without padding (5.24)."""
POSITION_STD = 0.2
"""Standard deviation of a new image encoder's position embeddings. A narrow encoder learns positions late if they are
small beside its patches."""
LARGEST_DIFFERENCE = 1e-4
"""Between numbers of unit vectors of a network whose type is not tested, computed here and by its two methods."""
UNTESTED_HINT = "shorten captions by `--model-set max_text_len=N`, or name Python code of yours (module:function)"
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


class VisionTextDual(TowerDual):
    """Embeds images and captions with the two methods of a network of transformers."""

    network: Any  # a network with a `vision_model`, a `text_model` and the two methods
    preprocess: Preprocess

    def __init__(self, network: nn.Module, preprocess: Preprocess, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__(network, preprocess, unused_keys)
        config, text = self.network.config, self.network.text_model
        # SigLIP has no projection of images: the vectors have the width of its image encoder.
        self.embedding_dim = int(getattr(config, "projection_dim", None) or config.vision_config.hidden_size)
        text.config._attn_implementation = ATTENTION.get(config.model_type, text.config._attn_implementation)
        if config.model_type == "align":
            # Without this entry transformers takes the attention of a batch without padding for a causal one.
            for module in text.modules():
                module.is_causal = False

    @property
    def logit_scale(self) -> Tensor:
        """As of the others; ALIGN divides by a temperature where they multiply by a scale."""
        if hasattr(self.network, "temperature"):
            return torch.as_tensor(1 / self.network.temperature.reshape(()))
        return super().logit_scale

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D. ValueError for features, unless only projections are trained."""
        if isinstance(images, States):
            return unit_vectors(self._project(0, images))
        return unit_vectors(self.image_output(images).pooler_output)

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D. ValueError for features, unless only projections are trained."""
        if isinstance(texts, States):
            return unit_vectors(self._project(1, texts))
        return unit_vectors(self.text_output(texts).pooler_output)

    def image_tokens(self, images: ImageBatch | States) -> States:
        """The last hidden states, I x N x W, and the unit vectors; of features without vectors."""
        if isinstance(images, States):
            return self._stored_tokens(images)
        output = self.image_output(images)
        tokens = output.last_hidden_state
        # A convolutional network has a map of states.
        tokens = tokens.flatten(2).mT if tokens.ndim == 4 else tokens
        vectors = unit_vectors(output.pooler_output)
        if images.grid is None or images.pixel_mask is None:
            return States.of_full(tokens, vectors)
        return States(tokens, images.pixel_mask.bool(), vectors)

    def text_tokens(self, texts: TextBatch | States) -> States:
        """The last hidden states, T x L x W, and the unit vectors; padding is no token, also if the model attends to
        it. Features are without vectors."""
        if isinstance(texts, States):
            return self._stored_tokens(texts)
        output = self.text_output(texts)
        return self._states_of(texts, output.last_hidden_state, unit_vectors(output.pooler_output))

    def image_output(self, images: ImageBatch) -> BaseModelOutputWithPooling:
        """The network's output for images: their states, and vectors of any length as `pooler_output`."""
        pixels = backbones.in_kernel_order(self.network.vision_model, images.pixel_values)
        # SigLIP 2 with variable resolution reads the grids too.
        options = {}
        if images.grid is not None:
            options = {"pixel_attention_mask": images.pixel_mask, "spatial_shapes": images.grid}
        return self.network.get_image_features(pixel_values=pixels, **options)

    def text_output(self, texts: TextBatch) -> BaseModelOutputWithPooling:
        """The network's output for captions, in the form of `image_output`."""
        # A model that attends to the padding gets no mask, and all its captions have one length.
        mask = None if self.preprocess.pads_texts else backbones.attention_mask(self.network.text_model, texts)
        return self.network.get_text_features(input_ids=texts.input_ids, attention_mask=mask)

    @property
    def projections(self) -> tuple[nn.Module | None, nn.Module | None]:
        """What maps the pooled outputs of the image and the text encoder to vectors; None where they are vectors, as
        the images of SigLIP and ALIGN. SigLIP has the projection of texts in its text encoder."""
        network = self.network
        text = getattr(network, "text_projection", None) or getattr(network.text_model, "head", None)
        return getattr(network, "visual_projection", None), text

    def _project(self, side: int, features: States) -> Tensor:
        pooled, projection = self._stored(features)[:, 0], self.projections[side]
        return pooled if projection is None else projection(pooled)

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
        """The image and the text encoder; SigLIP's has the projection inside."""
        vision, text = self._encoder_modules
        inside = "network.text_model.head" if self.projections[1] is getattr(text, "head", 0) else ""
        return Tower("image", "network.vision_model", vision), Tower("text", "network.text_model", text, inside)

    @property
    def encoders(self) -> FrozenTowers | None:
        """The towers, with pooled outputs as features, if only projections are trained; else None."""
        return FrozenTowers(self) if self._parts.which == "projections" else None

    def keep_layers(self, vision: Sequence[int], text: Sequence[int]) -> None:
        """Remove all layers of the towers but these."""
        configs = self.network.config.vision_config, self.network.config.text_config
        for tower, kept, config in zip(self.towers, (vision, text), configs, strict=True):
            if kept:
                keep_layers(tower, kept, config)

    def set_dropout(self, probability: float) -> None:
        """Set the hidden dropout of both encoders; ModelError if neither has any, as in CLIP."""
        if not sum(set_hidden_dropout(encoder, probability) for encoder in self._encoder_modules):
            types = " and ".join(encoder.config.model_type for encoder in self._encoder_modules)
            raise ModelError(
                f"no encoder of this dual encoder has dropout that can be set ({types})", hint="leave model.dropout out"
            )

    def export_spec(self) -> ExportSpec:
        """A class of transformers."""
        return ExportSpec(
            model_class=type(self.network).__name__,
            processor_class=PROCESSOR_MAPPING[type(self.network.config)].__name__,
            padded_length=self.preprocess.max_text_len if self.preprocess.pads_texts else None,
        )

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights, as transformers reads them."""
        assert not self._adapted, "adapters are merged before a model is saved"
        save_pretrained(self.network, folder, half=half)


def new_dual(size: DualSize, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> VisionTextDual:
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


def dual_from_backbones(
    vision_ref: str, text_ref: str, projection_dim: int = 256, *, max_text_len: int = MAX_TEXT_LEN, seed: int = 0
) -> VisionTextDual:
    """A dual encoder over two pretrained backbones (folders or Hub ids); only the two projections are new. Captions
    have `max_text_len` tokens, or as many as the text encoder has positions.

    ModelError for a backbone that VisionTextDualEncoderModel cannot hold; `new_frozen_dual` takes more.
    """
    with seeded(seed):
        # In this order, because a pooler that a checkpoint lacks takes random numbers too.
        vision, text = backbones.load_vision(vision_ref), backbones.load_text(text_ref)
        for ref, side, encoder in ((vision_ref, "vision", vision), (text_ref, "text", text)):
            # transformers reads the sides again by AutoModel.
            is_known = backbones.encoder_class(encoder.config) is AutoModel
            if not (is_known and isinstance(getattr(encoder.config, "hidden_size", None), int)):
                problem = f"the {side} encoder of {ref} ({encoder.config.model_type}) cannot be trained in a"
                raise ModelError(f"{problem} VisionTextDualEncoderModel", hint=FROZEN_HINT)
        config = VisionTextDualEncoderConfig.from_vision_text_configs(
            vision.config, text.config, projection_dim=projection_dim
        )
        network = VisionTextDualEncoderModel(config, vision, text)
    tokenizer = load_tokenizer(text_ref)
    processor, text_config = load_image_processor(vision_ref), network.config.text_config
    model = VisionTextDual(network, fitted_preprocess(tokenizer, processor, text_config, default=max_text_len))
    # A backbone without a pooled output, such as DistilBERT, fails here.
    sides = (vision_ref, model.embed_images), (text_ref, model.embed_texts)
    backbones.check_sides(model.preprocess, *sides, hint=FROZEN_HINT)
    return model


def load(ref: str, table: Table, saved: Table | None = None) -> VisionTextDual:
    """The dual encoder of a transformers folder or Hub id; `table` are the user's overrides, `saved` is dcdctl.json, if
    there is one.

    A type that `family_table.FAMILIES` does not name is compared with its own two methods (`_check_vectors`).
    """
    overrides = read_overrides(table)
    with hub_errors(ref, hint=FOLDER_HINT):
        network, report = AutoModel.from_pretrained(
            ref, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    check_complete(ref, report["missing_keys"], f"a {type(network).__name__}")
    model_type = network.config.model_type
    tokenizer = load_own_tokenizer(ref, network.config, overrides.tokenizer)
    is_tested = model_type in FAMILIES
    preprocess = fitted_preprocess(
        tokenizer,
        load_image_processor(ref),
        network.config.text_config,
        max_text_len=overrides.max_text_len or (saved["max_text_len"] if saved else None),
        default=TEXT_LENGTHS.get(model_type) if is_tested else tokenizer.model_max_length,
    )
    preprocess = dataclasses.replace(preprocess, pads_texts=model_type in PADS_TEXTS)
    dual = VisionTextDual(network, preprocess, tuple(sorted(report["unexpected_keys"])))
    if not is_tested:
        _check_vectors(dual, ref)
        logging.getLogger("dcdctl").warning("%s loads; its family (%s) is not tested", ref, model_type)
    return dual


@torch.no_grad()
def _check_vectors(dual: VisionTextDual, ref: str) -> None:
    """ModelError unless an image, a short caption and one that is cut have the vectors that the network's two methods
    give for the output of its own processor."""
    network, length, kind = dual.network, dual.preprocess.max_text_len, dual.config["model_type"]
    # Not square and not of one color, so that resizing and cropping count.
    image, texts = Image.linear_gradient("L").resize((160, 96)).convert("RGB"), ["a dog", "a dog " * length]
    processor = AutoProcessor.from_pretrained(ref, backend="pil", trust_remote_code=False)
    try:
        vectors = dual.embed_images(dual.preprocess.images([image])), dual.embed_texts(dual.preprocess.texts(texts))
        expected = (
            network.get_image_features(**processor(images=[image], return_tensors="pt")).pooler_output,
            # The short caption alone, padded as the processor pads by itself.
            network.get_text_features(**processor(text=texts[:1], return_tensors="pt")).pooler_output,
        )
        sides = zip(vectors, expected, strict=True)
        differences = [float((ours[:1] - unit_vectors(theirs)).abs().max()) for ours, theirs in sides]
    # Networks have no common error for an input that they do not support.
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        problem = f"{ref} is a {kind} model, which does not embed an image, or a caption of {length} tokens"
        raise ModelError(f"{problem}: {first_line(error)}", hint=UNTESTED_HINT) from error
    # Not `>`, which would let a NaN pass.
    if not max(differences) <= LARGEST_DIFFERENCE:
        problem = f"{ref} is a {kind} model, whose vectors are not those of get_image_features and get_text_features"
        raise ModelError(f"{problem}: they differ by {max(differences):.1e}", hint=UNTESTED_HINT)
