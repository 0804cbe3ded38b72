"""Pretrained encoders of transformers and timm as sequences of tokens.

The first token of a sequence stands for the whole: an encoder's class token, or the mean over the positions of its
feature map.

Shape letters: I images, T texts, V image tokens, L text tokens, W width of an encoder's tokens, C channels, h and w
sides of a feature map.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from dcdctl.core.errors import ModelError, first_line, require_extra
from dcdctl.core.models.checkpoint import check_complete, check_finite
from dcdctl.core.models.fingerprint import digest_of, text_settings
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.preprocess import Preprocess, fitted_preprocess, load_image_processor
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references import hub
from dcdctl.core.models.references.loading import hub_errors
from dcdctl.core.models.tokenizer import load_tokenizer, num_text_positions

TIMM = "timm_wrapper"
"""The model type of timm's models in transformers."""
LEVELS, GRID = "dcdctl_levels", "dcdctl_grid"
"""Entries of a vision encoder's configuration that hold its `FeatureSpec`, so that it is saved, loaded and part of
digests."""
Side = Literal["vision", "text"]
INPUTS: dict[Side, str] = {"vision": "pixel_values", "text": "input_ids"}
HINTS: dict[Side, str] = {
    "vision": "take a backbone that gives tokens or a feature map, such as ViT or DINOv2, or a CLIP-like model",
    "text": "take a text encoder such as BERT or RoBERTa, or a CLIP-like model",
}
NORMALIZED_AFTERWARDS = ("clip_vision_model", "metaclip_2_vision_model")
"""Vision encoders whose tokens are normalized by `post_layernorm`, as in METER; transformers normalizes only their
class token."""
CAUSAL = ("clip_text_model", "metaclip_2_text_model")
"""Text encoders of transformers in which a token attends to earlier ones only."""
BIDIRECTIONAL = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "chinese_clip_text_model")
"""Text encoders of transformers that take a mask of four dimensions as it is."""


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Which outputs of a frozen vision encoder are its features."""

    levels: tuple[int, ...] = ()
    """Stages appended to the encoder's output: entries of a timm model's feature_info, or of a transformer's hidden
    states."""
    grid: int | None = None
    """Side of the square grid to which a feature map is averaged; None keeps the size of the map."""
    size: int | None = None
    """Side in pixels of the input image, for timm's models with feature maps, which take any size; None keeps the
    encoder's own."""


AS_IT_IS = FeatureSpec()
"""The encoder's output alone."""


def load_pair(
    vision_ref: str, text_ref: str, features: FeatureSpec, max_text_len: int
) -> tuple[PreTrainedModel, PreTrainedModel, Preprocess]:
    """The pretrained encoders of two folders or Hub ids, and the preprocessing of their inputs."""
    vision, text = load_vision(vision_ref, features), load_text(text_ref)
    tokenizer = load_tokenizer(text_ref, "model.text names a text model with its tokenizer")
    processor = load_processor(vision_ref, vision.config)
    return vision, text, fitted_preprocess(tokenizer, processor, text.config, default=max_text_len)


def new_pair(table: Table, ref: object) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Untrained encoders of the configurations of a config.json (`NetworkOverEncoders.to_table`)."""
    with needing_timm(ref):
        vision = new_encoder(AutoConfig.for_model(**table["vision"]))
        text = new_encoder(AutoConfig.for_model(**table["text"]))
    return vision, text


def load_vision(ref: str, spec: FeatureSpec = AS_IT_IS) -> PreTrainedModel:
    """The pretrained vision encoder of a folder or Hub id: a backbone, or the vision side of a CLIP-like model.

    The spec is stored in the encoder's configuration. ModelError for a stage that the encoder does not have, or a size
    that it cannot take.
    """
    encoder = _load(ref, "vision")
    if spec.levels:
        widths = _level_widths(encoder)
        if any(not 0 <= level < len(widths) for level in spec.levels) or len(set(spec.levels)) < len(spec.levels):
            hint = "timm's models with feature maps and transformers have some"
            if widths:
                hint = f"known: 0 to {len(widths) - 1}, each once"
            raise ModelError(f"model.vision_levels is {list(spec.levels)}, not stages of {ref}", hint=hint)
        setattr(encoder.config, LEVELS, list(spec.levels))
    if spec.grid is not None:
        setattr(encoder.config, GRID, spec.grid)
    if spec.size is not None:
        if encoder.config.model_type != TIMM or _has_positions(encoder):
            raise ModelError(
                f"model.vision_size is for timm's models with feature maps, and {ref} is none", hint="leave it out"
            )
        encoder.config.pretrained_cfg["input_size"] = [3, spec.size, spec.size]
    return encoder


def load_text(ref: str) -> PreTrainedModel:
    """The pretrained text encoder of a folder or Hub id, or the text side of a CLIP-like model."""
    return _load(ref, "text")


def _load(ref: str, side: Side) -> PreTrainedModel:
    with hub_errors(ref, hint="name a folder or Hub id of an encoder of transformers or timm"), needing_timm(ref):
        source = hub.hub_source(ref)
        config = AutoConfig.from_pretrained(**source, trust_remote_code=False)
        part = getattr(config, f"{side}_config", None)
        if side == "text" and hasattr(part or config, "vocab_size"):
            num_text_positions(part or config)  # refuses T5 and other relative positions before weights are opened
        # The type is given, since transformers 5 otherwise keeps that of the file, which may be float16.
        whole, report = encoder_class(config).from_pretrained(
            **source, config=config, dtype=torch.float32, output_loading_info=True
        )
    # AutoModel knows the text side of CLIP alone, so the side of a model of two is taken from the whole.
    encoder = whole if part is None else getattr(whole, f"{side}_model", None)
    if encoder is None or (part is not None and not hasattr(transformers, type(encoder).__name__)):
        raise ModelError(
            f"{ref} is a {config.model_type} model, whose {side} side cannot be taken alone", hint=HINTS[side]
        )
    prefix = "" if part is None else f"{side}_model."
    missing = (name.removeprefix(prefix) for name in report["missing_keys"] if name.startswith(prefix))
    # A checkpoint may lack a pooler: only tokens are read.
    check_complete(ref, (name for name in missing if not name.startswith("pooler.")), f"its {side} encoder")
    check_finite(encoder.state_dict(), ref)
    _check_inputs(encoder, ref, side)
    return encoder


def _check_inputs(encoder: PreTrainedModel, ref: str, side: Side) -> None:
    """ModelError unless the encoder computes from pixels, or from token ids, alone."""
    read = {encoder.main_input_name: None}
    for name, parameter in inspect.signature(encoder.forward).parameters.items():
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            read[name] = None
    if list(read) != [INPUTS[side]]:
        problem = f"{ref} is a {encoder.config.model_type} model and reads {' and '.join(read)}"
        raise ModelError(f"{problem}, expected one that reads {INPUTS[side]} alone", hint=HINTS[side])


def new_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An untrained encoder of this configuration."""
    encoder = encoder_class(config)
    return AutoModel.from_config(config) if encoder is AutoModel else encoder(config)


def encoder_class(config: PreTrainedConfig) -> type[PreTrainedModel | AutoModel]:
    """What loads an encoder of this configuration: AutoModel, or a class that AutoModel does not know."""
    if type(config) in MODEL_MAPPING:
        return AutoModel
    # AutoModel knows few sides of CLIP-like models. Their classes are named as their configurations, such as
    # SiglipTextConfig.
    return getattr(transformers, type(config).__name__.removesuffix("Config") + "Model")


@torch.no_grad()
def check_sides(
    preprocess: Preprocess,
    vision: tuple[str, Callable[[ImageBatch], object]],
    text: tuple[str, Callable[[TextBatch], object]],
    hint: str = "",
) -> None:
    """ModelError, which names the encoder, if an image or a caption does not pass through it; each is a reference and
    what encodes. The `hint` is that of the side if it is empty."""
    size = preprocess.image_size_px
    sides: tuple[tuple[str, Side, Callable[[], object]], ...] = (
        (vision[0], "vision", lambda: vision[1](preprocess.images([Image.new("RGB", (size, size))]))),
        (text[0], "text", lambda: text[1](preprocess.texts(["a"]))),
    )
    for ref, side, encode in sides:
        try:
            encode()
        # Encoders have no common error for an input that they do not support.
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{ref} cannot be the {side} side of a model: {first_line(error)}", hint=hint or HINTS[side]
            ) from error


def load_processor(ref: str, config: PreTrainedConfig) -> BaseImageProcessor:
    """The image processor of a vision encoder's folder or Hub id; that of a timm model follows from its
    configuration."""
    if config.model_type != TIMM:
        return load_image_processor(ref)
    with needing_timm(ref):
        return transformers.TimmWrapperImageProcessor(
            pretrained_cfg=config.pretrained_cfg, architecture=config.architecture
        )


@contextmanager
def needing_timm(what: object) -> Iterator[None]:
    """MissingError if the block fails because timm is not installed."""
    try:
        yield
    except ImportError:
        require_extra("timm", "timm", needed_by=f"{what}, a timm model,")
        raise


def config_tables(vision: PreTrainedModel, text: PreTrainedModel) -> Table:
    """The configurations of two encoders for config.json, without the place that they were loaded from, which may be a
    local folder."""
    tables = {"vision": vision.config.to_dict(), "text": text.config.to_dict()}
    for table in tables.values():
        table.pop("_name_or_path", None)
    return tables


def spec_of(config: PreTrainedConfig) -> FeatureSpec:
    """The spec stored in a vision encoder's configuration; `size` is in the image processor's settings instead."""
    return FeatureSpec(levels=tuple(getattr(config, LEVELS, ())), grid=getattr(config, GRID, None))


def vision_tokens(encoder: PreTrainedModel, pixel_values: Tensor, width: int) -> Tensor:
    """Tokens of images, I x V x W: the encoder's output, with the stages of its spec appended along the width, position
    by position."""
    spec = spec_of(encoder.config)
    if spec.levels and encoder.config.model_type == TIMM:
        states, maps = encoder.timm_model.forward_intermediates(pixel_values, indices=list(spec.levels))
        # Earlier maps are larger: each position of the output gets the mean over the positions that it was computed
        # from.
        states = torch.cat(
            [states, *(functional.adaptive_avg_pool2d(stage, states.shape[2:]) for stage in maps)], dim=1
        )
        return to_tokens(states, width, spec.grid)
    output = encoder(pixel_values=pixel_values, output_hidden_states=bool(spec.levels))
    states = output.last_hidden_state
    if encoder.config.model_type in NORMALIZED_AFTERWARDS:
        states = encoder.post_layernorm(states)
    if spec.levels:
        states = torch.cat([states, *(output.hidden_states[level] for level in spec.levels)], dim=-1)
    return to_tokens(states, width, spec.grid)


def attention_mask(encoder: PreTrainedModel, texts: TextBatch) -> Tensor | None:
    """The mask for a text encoder of transformers, in a form of which it reads no number.

    Given one number per token, the encoder first asks whether there is padding, and waits for the GPU. Here the copy of
    the mask on the CPU answers that.
    """
    model_type = encoder.config.model_type
    if model_type in CAUSAL:
        # The padding is at the right, so no real token attends to it.
        return None
    # A graph must hold for any padding.
    is_traced = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined]
    if model_type not in BIDIRECTIONAL or encoder.config._attn_implementation != "sdpa" or is_traced:
        return texts.attention_mask
    if bool(texts.mask_on_cpu.all()):
        return None
    return texts.attention_mask.bool()[:, None, None, :]


def in_kernel_order(encoder: nn.Module, pixel_values: Tensor) -> Tensor:
    """Images for this encoder, channels last if it consists of convolutions.

    The kernels of CPUs and GPUs compute a pixel's channels together: 1.04 to 1.29 times as fast, and equal up to
    rounding.
    """
    kinds = [type(module) for module in encoder.modules()]
    # A ViT has one convolution, which cuts an image into patches.
    is_convolutional = kinds.count(nn.Conv2d) > kinds.count(nn.Linear)
    return pixel_values.contiguous(memory_format=torch.channels_last) if is_convolutional else pixel_values


def to_tokens(states: Tensor, width: int, grid: int | None = None) -> Tensor:
    """Tokens unchanged; a feature map, I x C x h x w or I x h x w x C, as its mean and then its positions.

    A square number of tokens is a map as well, since an encoder with a class token has one more. With `grid`, the
    positions of a map are averaged to grid x grid; the mean is still that of the whole map. ModelError for `grid`
    without a map.
    """
    if states.ndim == 3:
        side = math.isqrt(states.shape[1])
        if side**2 != states.shape[1]:
            if grid is not None:
                raise ModelError(
                    f"model.vision_grid is for encoders with feature maps, and this one gives {states.shape[1]} tokens"
                )
            return states
        states = states.unflatten(1, (side, side)).movedim(3, 1)
    elif states.shape[1] != width:
        states = states.movedim(3, 1)
    positions = states if grid is None else functional.adaptive_avg_pool2d(states, grid)
    return torch.cat([states.mean(dim=(2, 3))[:, None], positions.flatten(2).transpose(1, 2)], dim=1)


def layers_name(encoder: PreTrainedModel) -> str:
    """Dotted name of the layers or stages of a timm model, which has no list of them; empty for others."""
    if encoder.config.model_type != TIMM:
        return ""
    return next((f"timm_model.{name}" for name in ("blocks", "stages") if hasattr(encoder.timm_model, name)), "")


def image_width(encoder: PreTrainedModel) -> int:
    """Width W of a vision encoder's tokens, or the number of channels of its feature map, including the stages of its
    spec."""
    levels = spec_of(encoder.config).levels
    widths = _level_widths(encoder) if levels else []
    return _output_width(encoder) + sum(widths[level] for level in levels)


def _level_widths(encoder: PreTrainedModel) -> list[int]:
    """The width of each stage that can be appended to the output; empty if stages and output differ in their
    positions."""
    config = encoder.config
    if config.model_type == TIMM:
        # A model with tokens gives its stages as maps, without the class token.
        return [] if _has_positions(encoder) else [int(stage["num_chs"]) for stage in encoder.timm_model.feature_info]
    if not hasattr(config, "hidden_size") or getattr(config, "hidden_sizes", None) or getattr(config, "depths", None):
        return []
    # Hidden states start with the embeddings, before those of the layers.
    return [int(config.hidden_size)] * (int(config.num_hidden_layers) + 1)


def _has_positions(encoder: PreTrainedModel) -> bool:
    """Whether a timm model has tokens with position embeddings, whose number fixes the image size, and no feature
    map."""
    return hasattr(encoder.timm_model, "pos_embed")


def _output_width(encoder: PreTrainedModel) -> int:
    config = encoder.config
    if config.model_type == TIMM:
        return int(encoder.timm_model.num_features)
    for name in ("hidden_size", "num_features"):
        width = getattr(config, name, None)
        if width is not None:
            return int(width)
    sizes = getattr(config, "hidden_sizes", None)
    if not sizes:
        raise ModelError(
            f"the configuration of a {config.model_type} vision encoder does not give the width of its features",
            hint=HINTS["vision"],
        )
    return int(sizes[-1])


def pooled_width(text: PreTrainedModel) -> int:
    """Width of a text encoder's pooled output; SigLIP projects it inside."""
    return int(getattr(text.config, "projection_size", None) or text.config.hidden_size)


def drop_pooler(encoder: nn.Module) -> None:
    """Remove a pooler with parameters, which would never have a gradient where tokens alone are read."""
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        encoder.register_module("pooler", None)


class NetworkOverEncoders(nn.Module):
    """A network over a vision and a text encoder whose tokens alone are read; or, of texts, the pooled output alone."""

    vision: PreTrainedModel
    text: PreTrainedModel

    def __init__(self, vision: PreTrainedModel, text: PreTrainedModel, *, pools_texts: bool = False) -> None:
        super().__init__()
        self.vision, self.text, self.pools_texts = vision, text, pools_texts
        for encoder in (vision,) if pools_texts else (vision, text):
            drop_pooler(encoder)
        self.image_width = image_width(vision)

    def to_table(self) -> Table:
        """The contents of config.json, besides the model's type."""
        return config_tables(self.vision, self.text)


@dataclass(frozen=True)
class EncoderPair:
    """A vision and a text encoder of transformers or timm: the `encoders` of a model over both."""

    vision: PreTrainedModel
    text: PreTrainedModel
    image_width: int
    preprocess: Preprocess
    pools_texts: bool = False
    """Whether a caption has one feature, the pooled output of its encoder."""

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the features of an image and a caption."""
        both = nn.ModuleDict({"vision": self.vision, "text": self.text})
        # An entry only where it is true, so that stored features of tokens stay valid.
        pooled = {"features": self._kind} if self.pools_texts else {}
        config = {**config_tables(self.vision, self.text), **pooled}
        return digest_of(both, config=config, preprocess=self.preprocess.settings)

    @property
    def text_digest(self) -> str:
        """SHA-256 of all that decides the features of a caption."""
        config = {"text": config_tables(self.vision, self.text)["text"], "features": self._kind}
        return digest_of(self.text, config=config, preprocess=text_settings(self.preprocess.settings))

    @property
    def _kind(self) -> str:
        return "pooled" if self.pools_texts else "tokens"

    @property
    def text_width(self) -> int:
        """Width of the text features."""
        return pooled_width(self.text) if self.pools_texts else int(self.text.config.hidden_size)

    @property
    def is_frozen(self) -> bool:
        """Whether training leaves both encoders unchanged, as it does those of the paper's student."""
        parameters = (*self.vision.parameters(), *self.text.parameters())
        return not any(parameter.requires_grad for parameter in parameters)

    def freeze(self) -> None:
        """Leave both encoders unchanged in training, and in eval mode: their features may be computed once."""
        for encoder in (self.vision, self.text):
            encoder.requires_grad_(False).eval()

    def image_features(self, images: ImageBatch) -> States:
        """Features of I images, I x V x W."""
        pixels = in_kernel_order(self.vision, images.pixel_values)
        return States.of_full(vision_tokens(self.vision, pixels, self.image_width))

    def text_features(self, texts: TextBatch) -> States:
        """Features of T captions, T x L x W, or pooled ones, T x 1 x W."""
        # A model that attends to the padding gets no mask.
        mask = None if self.preprocess.pads_texts else attention_mask(self.text, texts)
        output = self.text(input_ids=texts.input_ids, attention_mask=mask)
        return (
            States.of_full(output.pooler_output[:, None])
            if self.pools_texts
            else texts.states(output.last_hidden_state)
        )
