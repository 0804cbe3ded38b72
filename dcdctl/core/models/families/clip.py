"""CLIP and its relatives in transformers as dual encoders: MetaCLIP 2, SigLIP, SigLIP 2, Chinese-CLIP and ALIGN. `load`
reads these and the VisionTextDualEncoderModel.

Vectors and scores are those of the library's own class. The trained projections are kept, so a student that starts from
such a model has its zero-shot quality.

Shape letters: I images, T texts, W width of an encoder, D length of the vectors, N patches of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel
from transformers.models.align.modeling_align import AlignTextSelfAttention

from dcdctl.core.models.checkpoint import check_complete
from dcdctl.core.models.families.vision_text_dual import VARIANTS, VisionTextDual
from dcdctl.core.models.inputs import ImageBatch, TextBatch
from dcdctl.core.models.networks.attention import compute_by
from dcdctl.core.models.networks.backbones import attention_mask
from dcdctl.core.models.networks.projections import MAX_LOGIT_SCALE
from dcdctl.core.models.networks.towers import Tower, keep_statistics
from dcdctl.core.models.overrides import check_fixed_overrides, read_overrides
from dcdctl.core.models.preprocess import (
    FOLDER_HINT,
    Preprocess,
    fitted_preprocess,
    hub_errors,
    load_image_processor,
    load_own_tokenizer,
)


class FusedTextAttention(AlignTextSelfAttention):
    """The self-attention of ALIGN's BERT by torch's fused kernel, equal up to rounding; transformers computes it in
    four steps."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        """The tokens after attention, and no probabilities. The mask is added to the scores."""
        split = (
            linear(hidden_states).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        query, key, value = split
        mask = None if attention_mask is None else attention_mask.to(query.dtype)
        dropout = self.attention_dropout if self.training else 0.0
        context = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=self.scaling
        )
        return context.transpose(1, 2).flatten(2), None


class ClipDual(VisionTextDual):
    """Embeds images and captions with a CLIPModel of transformers, or a model of the same form."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__(network, preprocess, unused_keys)
        # The text encoders of the others use the fused kernel in transformers.
        if self.network.config.model_type == "align":
            compute_by(FusedTextAttention, AlignTextSelfAttention, self.network.text_model)

    @property
    def embedding_dim(self) -> int:
        """Length D of the vectors."""
        config = self.network.config
        # SigLIP has no projection of images: the vectors have the width of its image encoder.
        return int(getattr(config, "projection_dim", None) or config.vision_config.hidden_size)

    @property
    def logit_scale(self) -> Tensor:
        """Factor from cosine to logit; learned, 0-dimensional. Models that were trained as CLIP was have at most
        100."""
        network = self.network
        if network.config.model_type == "align":
            # It divides by a temperature where the others multiply by a scale.
            return torch.as_tensor(1 / network.temperature.reshape(()))
        # SigLIP stores a vector of one number.
        scale: Tensor = network.logit_scale.reshape(()).exp()
        return scale.clamp(max=MAX_LOGIT_SCALE) if self.logit_bias is None else scale

    @property
    def logit_bias(self) -> Tensor | None:
        """SigLIP's learned offset of all logits, 0-dimensional; None for the other models."""
        bias: Tensor | None = getattr(self.network, "logit_bias", None)
        return None if bias is None else bias.reshape(())

    def _image_output(self, images: ImageBatch) -> Any:
        # SigLIP 2 with variable resolution reads the grids too.
        if images.grid is None:
            return super()._image_output(images)
        pixels, mask = images.pixel_values, images.pixel_mask
        return self.network.vision_model(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=images.grid)

    def _text_output(self, texts: TextBatch) -> Any:
        encoder = self.network.text_model
        # A model that attends to the padding gets no mask, and all its captions have one length.
        mask = None if self.variant.pads_texts else attention_mask(encoder, texts)
        return encoder(input_ids=texts.input_ids, attention_mask=mask)

    def _pooled_texts(self, output: Any) -> Tensor:
        position = self.variant.text_position
        return output.pooler_output if position is None else output.last_hidden_state[:, position]

    def project_images(self, pooled_IW: Tensor) -> Tensor:
        """Vectors of any length, I x D; SigLIP and ALIGN have no projection of images."""
        projection = getattr(self.network, "visual_projection", None)
        return pooled_IW if projection is None else projection(pooled_IW)

    def project_texts(self, pooled_TW: Tensor) -> Tensor:
        """Vectors of any length, T x D; SigLIP has the projection in its text encoder."""
        projection = getattr(self.network, "text_projection", None)
        return self.network.text_model.head(pooled_TW) if projection is None else projection(pooled_TW)

    @property
    def towers(self) -> tuple[Tower, Tower]:
        """The image and the text encoder; SigLIP's has the projection inside."""
        image, text = super().towers
        inside = "" if hasattr(self.network, "text_projection") else "network.text_model.head"
        return image, dataclasses.replace(text, projection=inside)

    def train(self, mode: bool = True) -> Self:
        """Train mode, except for the BatchNorms of ALIGN."""
        super().train(mode)
        keep_statistics(self.network)
        return self


def load(ref: str, table: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> VisionTextDual:
    """The dual encoder of a transformers folder or Hub id; `table` are the user's overrides, `saved` is dcdctl.json, if
    there is one."""
    overrides = read_overrides(table)
    check_fixed_overrides(overrides, ref)
    with hub_errors(ref, hint=FOLDER_HINT):
        network, report = AutoModel.from_pretrained(
            ref, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    variant = VARIANTS[network.config.model_type]
    check_complete(ref, report["missing_keys"], f"a {variant.model_class}")
    tokenizer = load_own_tokenizer(ref, network.config, overrides.tokenizer)
    length = overrides.max_text_len or (saved["max_text_len"] if saved else None)
    preprocess = fitted_preprocess(
        tokenizer,
        load_image_processor(ref),
        network.config.text_config,
        max_text_len=length,
        default=variant.max_text_len,
    )
    preprocess = dataclasses.replace(preprocess, pads_texts=variant.pads_texts)
    dual_class = VisionTextDual if network.config.model_type == "vision-text-dual-encoder" else ClipDual
    return dual_class(network, preprocess, tuple(sorted(report["unexpected_keys"])))
