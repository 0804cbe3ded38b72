"""A dual encoder over two pretrained encoders with a linear layer each. It is saved with the weights and needs only
transformers.

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
model.get_image_features(pixel_values).pooler_output                # unit vectors, images x D
model.get_text_features(input_ids, attention_mask).pooler_output    # unit vectors, texts x D
"""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

MAX_LOGIT_SCALE = 100.0
TIMM = "timm_wrapper"


class EncoderDualConfig(PreTrainedConfig):
    """The configurations of both encoders and of the projections, as plain tables."""

    model_type = "dcdctl-encoder-dual"

    def __init__(self, vision: Any = None, text: Any = None, projection: Any = None, **rest: Any) -> None:
        self.vision, self.text, self.projection = vision or {}, text or {}, projection or {}
        super().__init__(**rest)

    @property
    def projection_dim(self) -> Any:
        """Length of the vectors."""
        return self.projection.get("projection_dim")


def _new_encoder(config: Any) -> Any:
    if type(config) in transformers.MODEL_MAPPING:
        return AutoModel.from_config(config)
    # AutoModel knows few sides of CLIP-like models. Their classes are named as their configurations, such as
    # SiglipTextConfig.
    return getattr(transformers, type(config).__name__.removesuffix("Config") + "Model")(config)


class Projections(nn.Module):
    """A linear layer for each encoder, over normalized features or a pooled output, and the logit scale."""

    def __init__(self, image_width: int, text_width: int, dim: int, *, pools_texts: bool) -> None:
        super().__init__()
        self.image_projection = nn.Linear(image_width, dim)
        self.text_projection = nn.Linear(text_width, dim, bias=not pools_texts)
        self.logit_scale = nn.Parameter(torch.zeros(()))


class EncoderDualModel(PreTrainedModel):
    """Embeds images and captions into one space."""

    config_class = EncoderDualConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    # The pooler is not used, and the files of some encoders have none.
    _keys_to_ignore_on_load_missing = (r"(vision|text)\.pooler\..*",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision, self.text = (
            _new_encoder(AutoConfig.for_model(**dict(side))) for side in (config.vision, config.text)
        )
        self.pools_texts = config.projection.get("texts") == "pooled"
        for encoder in (self.vision,) if self.pools_texts else (self.vision, self.text):
            pooler = getattr(encoder, "pooler", None)
            if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
                encoder.register_module("pooler", None)
        self.levels = list(config.vision.get("dcdctl_levels", []))
        # SigLIP projects the pooled output inside.
        pooled_width = getattr(self.text.config, "projection_size", None) or self.text.config.hidden_size
        text_width = pooled_width if self.pools_texts else self.text.config.hidden_size
        self.projections = Projections(
            self._image_width(), text_width, config.projection_dim, pools_texts=self.pools_texts
        )
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        """`pooler_output`: unit vectors, I x D; `last_hidden_state`: the feature of each whole image, I x 1 x width."""
        features = self._image_features(pixel_values)
        return BaseModelOutputWithPooling(features[:, None], self._project(self.projections.image_projection, features))

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        """`pooler_output`: unit vectors, T x D, of the mean of the real tokens, or of the encoder's own pooled output;
        `last_hidden_state`: the tokens."""
        if self.pools_texts:
            output = self.text(input_ids=input_ids, attention_mask=attention_mask)
            vectors = functional.normalize(self.projections.text_projection(output.pooler_output), dim=-1)
            return BaseModelOutputWithPooling(output.last_hidden_state, vectors)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens = self.text(input_ids=input_ids, attention_mask=mask).last_hidden_state
        real = mask[:, :, None].to(tokens.dtype)
        mean = (tokens * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        return BaseModelOutputWithPooling(tokens, self._project(self.projections.text_projection, mean))

    def forward(self, input_ids: Any = None, pixel_values: Any = None, attention_mask: Any = None, **_: Any) -> Any:
        """Scaled cosines of every image with every caption."""
        images = self.get_image_features(pixel_values).pooler_output
        texts = self.get_text_features(input_ids, attention_mask).pooler_output
        logits = self.projections.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE) * texts @ images.T
        return CLIPOutput(logits_per_image=logits.T, logits_per_text=logits, text_embeds=texts, image_embeds=images)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every weight comes from the file."""

    @staticmethod
    def _project(projection: nn.Module, features: torch.Tensor) -> torch.Tensor:
        return functional.normalize(projection(functional.layer_norm(features, features.shape[-1:])), dim=-1)

    def _image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The class token, or the mean over the positions of a feature map, for the output and the other levels that
        are read."""
        if self.levels and self.vision.config.model_type == TIMM:
            states, maps = self.vision.timm_model.forward_intermediates(pixel_values, indices=self.levels)
            return torch.cat(
                [states, *(functional.adaptive_avg_pool2d(each, states.shape[2:]) for each in maps)], dim=1
            ).mean(dim=(2, 3))
        output = self.vision(pixel_values=pixel_values, output_hidden_states=bool(self.levels))
        states = output.last_hidden_state
        if self.vision.config.model_type in ("clip_vision_model", "metaclip_2_vision_model"):
            states = self.vision.post_layernorm(states)
        if self.levels:
            states = torch.cat([states, *(output.hidden_states[level] for level in self.levels)], dim=-1)
        if states.ndim == 3:
            # A square number of tokens is a feature map; encoders with a class token have one more.
            return states.mean(dim=1) if math.isqrt(states.shape[1]) ** 2 == states.shape[1] else states[:, 0]
        return states.mean(dim=(2, 3) if states.shape[1] == self._output_width() else (1, 2))

    def _image_width(self) -> int:
        config = self.vision.config
        if config.model_type == TIMM:
            return self._output_width() + sum(
                int(self.vision.timm_model.feature_info[level]["num_chs"]) for level in self.levels
            )
        return self._output_width() * (1 + len(self.levels))

    def _output_width(self) -> int:
        config = self.vision.config
        if config.model_type == TIMM:
            return int(self.vision.timm_model.num_features)
        width = getattr(config, "hidden_size", None) or getattr(config, "num_features", None)
        return int(config.hidden_sizes[-1] if width is None else width)
