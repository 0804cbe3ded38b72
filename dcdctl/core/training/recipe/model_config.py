"""The `[model]` table of a recipe: what is trained. `kind` chooses one of four tables, each with its own settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from dcdctl.core.config import (
    ASCENDING,
    Count,
    Fraction,
    Natural,
    NotNegative,
    OnlyIf,
    Repeated,
    Share,
    Width,
    between,
    defaults_under,
    flatten,
    settle_fields,
)
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import TrainedParts
from dcdctl.core.toml import apply_sets

if TYPE_CHECKING:  # a recipe has a model
    from dcdctl.core.training.recipe.recipe import Recipe

TEACHER = "teacher"
"""The value of `start` and `text` that stands for the teacher, and for its text side."""
LORA = TrainedParts(which="lora")
"""The defaults of adapters."""

# When a setting means something. A value that means nothing is refused, because it would have no effect.
_START_IS_NEW = OnlyIf(lambda model: model.start == "new", "model.start new, and it is {start}")
_START_IS_PRETRAINED = OnlyIf(lambda model: model.start != "new", "a pretrained model.start, and it is new")
_NEW_VISION = OnlyIf(lambda model: model.start == "new" and not model.vision, "new models without model.vision")
_NEW_TEXT = OnlyIf(lambda model: model.start == "new" and not model.text, "new models without model.text")
_NEW_LAYERS = OnlyIf(lambda model: model.has_new_layers, "new layers, and model.text or model.start brings its own")
_NEW_HEADS = OnlyIf(lambda model: model.has_new_heads, "new layers with attention, and this model has none")
_NEW_QUERY_LAYERS = OnlyIf(
    lambda model: model.start == "new" and (not model.text or not model.num_text_layers),
    "new layers, or 0 for none; `text` has its own (model.text_layers)",
)
_TWO_ENCODERS = "model.vision and model.text"
_TWO_FROZEN = f"{_TWO_ENCODERS}, with model.frozen_encoders or model.text teacher"
_OVER_TWO_FROZEN = OnlyIf(lambda model: model.is_over_two_frozen, f"new models over {_TWO_FROZEN}")
_FUSION_OVER_TWO_FROZEN = OnlyIf(lambda model: model.is_over_two_frozen, f"a new fusion model over {_TWO_FROZEN}")
_FUSION_OVER_TWO_ENCODERS = OnlyIf(
    lambda model: model.start != "new" or bool(model.vision),
    f"a model over two encoders: a METER, or {_TWO_ENCODERS}",
)
_NEW_DUAL_OVER_TWO_ENCODERS = OnlyIf(
    lambda model: model.start == "new" and bool(model.vision),
    f"a new model over {_TWO_ENCODERS}; of a pretrained start, model.trained projections keeps the encoders",
)
_PRETRAINED_TOWERS = OnlyIf(lambda model: model.has_pretrained_towers, "a dual encoder with a pretrained start")
_OWN_TEXT = OnlyIf(lambda model: not model.has_teacher_texts, "texts of its own, and model.text is teacher")
_PRETRAINED_TEXT = OnlyIf(lambda model: bool(model.text), "a pretrained model.text")
_LAST_LAYERS = OnlyIf(lambda model: model.trained == "last-layers", "model.trained last-layers, and it is {trained}")
_LORA = OnlyIf(lambda model: model.trained == "lora", "model.trained lora, and it is {trained}")

_OF_NEW_ENCODERS = (_NEW_VISION, _NEW_TEXT)
_OF_NEW_LAYERS = (_NEW_LAYERS, _NEW_HEADS)
_OF_NEW_MODELS = (
    *_OF_NEW_ENCODERS,
    *_OF_NEW_LAYERS,
    _NEW_QUERY_LAYERS,
    _START_IS_NEW,
    _OVER_TWO_FROZEN,
    _FUSION_OVER_TWO_FROZEN,
)


@dataclass(frozen=True, kw_only=True)
class AnyModelConfig:
    """The settings that all kinds of models have, and what a training asks of a kind."""

    may_start_from_teacher: ClassVar[bool] = False
    """Whether `start` may be teacher."""
    embeds_sides: ClassVar[bool] = True
    """Whether images and captions are encoded apart; otherwise each pair is read together."""
    learns_teacher_space: ClassVar[bool] = False
    """Whether the images are those of the teacher, as for a query encoder."""
    work_unit: ClassVar[Literal["pairs", "images", "texts"]] = "images"
    """What a step computes."""

    kind: str
    """fusion: reads an image and a caption together. dual: one vector per image and one per caption. late: one vector
    per token, compared by MaxSim; it starts from what a dual starts from, and settings of a dual hold for it. query: a
    text encoder in front of the images of a dual or late teacher, whose vectors it learns."""
    start: str = "new"
    """new: random weights of the sizes below, or `vision` and `text`. Anything else is the reference of the initial
    model. fusion: also teacher, the cached teacher, reduced to `layers`."""
    text: Annotated[str, _START_IS_NEW] = ""
    """start new: model reference of a pretrained text encoder; empty for a small new one. fusion: the co-attention
    layers between `vision` and `text` have hidden_size, num_layers, num_heads and dropout. query: alone; `teacher` for
    the teacher's own. dual: also `teacher`, for the teacher's text side, which stays unchanged: an image student."""
    hidden_size: Annotated[Width, _NEW_LAYERS] = 128
    """new models: width of the layers."""
    num_heads: Annotated[Width, _NEW_HEADS] = 4
    """new models: attention heads per layer."""
    # The length of METER and ViLT in retrieval.
    max_text_len: Annotated[Width, _START_IS_NEW, _OWN_TEXT] = 40
    """new models: maximum number of word pieces of a caption, special tokens included; the rest is cut off."""
    vocab_size: Annotated[int, between(1, 2**20), _NEW_TEXT] = 4000
    """new models: maximum number of word pieces, trained on the captions of the train split."""
    dropout: Fraction | None = None
    """Dropout in training. Not set: none in new layers, while pretrained models and the teacher keep their own. A
    number holds for both. ViLT, and a dual encoder that is trained as a whole: embeddings and sublayer outputs, while
    attention probabilities have none. Co-attention and METER: the fusion layers, attention probabilities included;
    trained encoders keep their own. Dual over frozen encoders: the features."""

    def __post_init__(self) -> None:
        if self.start == "teacher" and not self.may_start_from_teacher:
            raise ConfigError(
                f"a {self.kind} model cannot start from a fusion teacher",
                hint="set model.start to new, or to a dual encoder",
            )
        settle_fields(self, "model")
        if self.has_new_heads and self.hidden_size % self.num_heads:
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} is not a multiple of model.num_heads {self.num_heads}"
            )

    @property
    def starts_from_teacher(self) -> bool:
        """Whether the initial model is the fusion teacher of the scores."""
        return self.start == "teacher"

    @property
    def has_teacher_texts(self) -> bool:
        """Whether the texts are the teacher's and stay unchanged, as for an image student."""
        return False

    @property
    def has_new_layers(self) -> bool:
        """Whether the layers are new, of the sizes of this table."""
        return self.start == "new" and not self.text

    @property
    def has_new_heads(self) -> bool:
        """Whether these layers have attention."""
        return self.has_new_layers

    @property
    def trains_word_pieces(self) -> bool:
        """Whether the model is new and brings no tokenizer: its word pieces are trained on captions."""
        return self.start == "new" and not self.text

    @property
    def start_kind(self) -> Literal["fusion", "dual", "late", "query", "searchable"]:
        """The kind of model that `start` names."""
        return cast(Literal["fusion", "dual", "late", "query"], self.kind)

    @property
    def drops_layers(self) -> bool:
        """Whether the model has fewer layers than its start."""
        return False

    @property
    def num_weights(self) -> int:
        """At least so many a new model has: those of its layers, and of the vectors of its positions."""
        return 0

    @property
    def bytes_per_image(self) -> int:
        """At least what an image takes in a batch: its pixels, as float32."""
        return 0

    def check(self, recipe: Recipe) -> None:
        """ConfigError if another table of the recipe asks for what such a model has not."""


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig(AnyModelConfig):
    """The settings of models that read images themselves."""

    vision: Annotated[str, _START_IS_NEW] = ""
    """start new: model reference of a pretrained image encoder, which goes with `text`; empty for a small new one of
    the sizes below."""
    vision_levels: Annotated[tuple[Natural, ...], _OVER_TWO_FROZEN] = ()
    """frozen_encoders: stages of `vision` to read beside its output (for a timm model, entries of its feature_info)."""
    vision_grid: Annotated[Width | None, _OVER_TWO_FROZEN] = None
    """frozen_encoders: side of the square grid to which a feature map of `vision` is averaged; not averaged if not
    set."""
    vision_size: Annotated[Width | None, _OVER_TWO_FROZEN] = None
    """frozen_encoders: input side of `vision` in pixels (a timm model with feature maps); its own if not set."""
    frozen_encoders: bool = False
    """Keep vision and text unchanged, so that their features can be stored on disk (--features). fusion: the layers
    between them are trained; new dual: one linear layer per side."""
    average_with_start: Annotated[Share | Literal["auto"], _START_IS_PRETRAINED] = 0.0
    """Share s of the start's weights in the saved model: s times the start's plus 1 - s times the trained ones
    (WiSE-FT, Wortsman et al. 2022). It returns some of the zero-shot quality that a training costs. auto: the best of
    0, 0.1, ..., 1 on the validation corpora, within validation.max_loss_elsewhere if it is set."""
    num_layers: Annotated[Repeated, _NEW_LAYERS] = 6
    """fusion: layers; dual: layers of the image encoder."""
    image_size: Annotated[Width, _NEW_VISION] = 64
    """new models: side of the square input in pixels."""
    patch_size: Annotated[Width, _NEW_VISION] = 16
    """new models: side of a patch in pixels."""
    image_mean: Annotated[float, between(-1000, 1000), _NEW_VISION] = 0.5
    """new models: mean that normalizes the pixels of every channel, where white is 1."""
    image_std: Annotated[float, between(0.001, 1000), _NEW_VISION] = 0.5
    """new models: standard deviation that normalizes them."""

    def __post_init__(self) -> None:
        # Before the conditions of other fields, which read `vision` for both.
        if self.start == "new" and bool(self.vision) != bool(self.text):
            raise ConfigError(f"{_TWO_ENCODERS} go together, and one of them is empty")
        super().__post_init__()
        if self.trains_word_pieces and self.image_size % self.patch_size:
            raise ConfigError(
                f"model.image_size {self.image_size} is not a multiple of model.patch_size {self.patch_size}"
            )
        if self.average_with_start and self.drops_layers:
            raise ConfigError(
                "model.average_with_start averages with the start's weights, and a model of fewer layers does "
                "not compute what they do",
                hint="set it to 0, or keep all layers",
            )

    @property
    def num_weights(self) -> int:
        of_layers = _weights_of(self.num_layers, self.hidden_size) if self.has_new_layers else 0
        if not self.trains_word_pieces:
            return of_layers
        num_positions = (self.image_size // self.patch_size) ** 2 + self.max_text_len
        return of_layers + self.hidden_size * (num_positions + 3 * self.patch_size**2)

    @property
    def bytes_per_image(self) -> int:
        side = self.image_size if self.trains_word_pieces else self.vision_size or 0
        return 4 * 3 * side**2

    @property
    def is_over_two_frozen(self) -> bool:
        """Whether new layers are trained over two encoders, of which at least the text encoder is frozen."""
        return bool(self.vision) and (self.frozen_encoders or self.has_teacher_texts)


@dataclass(frozen=True, kw_only=True)
class FusionConfig(ImageTextConfig):
    """The `[model]` table of a fusion model: what is trained."""

    may_start_from_teacher = True
    embeds_sides = False
    work_unit = "pairs"

    kind: Literal["fusion"] = "fusion"
    start: str = "teacher"
    frozen_encoders: Annotated[bool, _FUSION_OVER_TWO_ENCODERS] = False
    layers: tuple[Natural, ...] = ()
    """fusion: layers of the initial model to keep, in order; empty for all."""
    dual_init: Annotated[str, _FUSION_OVER_TWO_FROZEN] = ""
    """fusion over frozen vision and text: a dual encoder over the same two, whose scaled cosine is added to the logit;
    empty for none."""

    @property
    def has_new_layers(self) -> bool:
        return self.start == "new"

    @property
    def drops_layers(self) -> bool:
        return bool(self.layers)

    def check(self, recipe: Recipe) -> None:
        refuse_vector_losses(recipe)


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig(ImageTextConfig):
    """The settings of dual encoders and of late interaction, which has the towers of one."""

    frozen_encoders: Annotated[bool, _NEW_DUAL_OVER_TWO_ENCODERS] = False
    trained: Annotated[Literal["all", "last-layers", "projections", "lora"], _PRETRAINED_TOWERS] = "all"
    """dual with a pretrained start: what is trained besides the projections and the logit scale. last-layers: the last
    `trained_layers` of each encoder, with its final norm; over two encoders, as of a run of `photos`, --features stores
    the states below them. projections: nothing; --features then stores the outputs of both encoders. lora: low-rank
    adapters of all linear layers of both encoders (extra peft), merged into the weights at the end."""
    trained_layers: Annotated[Repeated | None, _LAST_LAYERS] = None
    """last-layers: how many of each encoder."""
    lora_rank: Annotated[Width, _LORA] = LORA.rank
    """lora: rank r of the adapters."""
    lora_alpha: Annotated[Count, _LORA] = LORA.alpha
    """lora: an adapter of rank r adds lora_alpha / r times its product to a weight."""
    vision_layers: Annotated[tuple[Natural, ...], ASCENDING, _PRETRAINED_TOWERS] = ()
    """dual: layers of the start's image encoder to keep, counted from 0; empty for all."""
    text_layers: Annotated[tuple[Natural, ...], ASCENDING, _PRETRAINED_TOWERS] = ()
    """dual: layers of the start's text encoder to keep, counted from 0; empty for all."""
    projection_dim: Annotated[Width, _START_IS_NEW, _OWN_TEXT] = 256
    """dual: width of the vectors."""
    num_text_layers: Annotated[Repeated, _NEW_LAYERS] = 2
    """dual: layers of the text encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained == "last-layers" and self.trained_layers is None:
            raise ConfigError(
                "model.trained is last-layers, and model.trained_layers is not set",
                hint="set the number of layers, such as 4",
            )

    @property
    def num_weights(self) -> int:
        if not self.has_new_layers:
            return 0
        of_projections = 2 * self.hidden_size * self.projection_dim
        return super().num_weights + _weights_of(self.num_text_layers, self.hidden_size) + of_projections

    @property
    def has_pretrained_towers(self) -> bool:
        """Whether the start has pretrained encoders, parts of which can be trained."""
        return self.start != "new" or (bool(self.vision) and not self.frozen_encoders)

    @property
    def drops_layers(self) -> bool:
        return bool(self.vision_layers or self.text_layers)


@dataclass(frozen=True, kw_only=True)
class DualConfig(TwoTowerConfig):
    """The `[model]` table of a dual encoder: what is trained."""

    kind: Literal["dual"] = "dual"

    @property
    def has_teacher_texts(self) -> bool:
        return self.start == "new" and self.text == TEACHER

    def check(self, recipe: Recipe) -> None:
        if recipe.loss.dims and not recipe.loss.of_scores:
            raise ConfigError(
                f"loss.dims is for losses of scores, and loss.terms has {', '.join(recipe.loss.terms)}, which take "
                "vectors of full width",
                hint="leave loss.dims out, or add a loss of scores, such as infonce",
            )


@dataclass(frozen=True, kw_only=True)
class LateConfig(TwoTowerConfig):
    """The `[model]` table of a late-interaction model: what is trained."""

    OWN: ClassVar = ("token_dim", "position_norm", "pooled", "token_pooling")
    """The settings of the token vectors, which a dual encoder does not have."""

    kind: Literal["late"] = "late"
    token_dim: Width = 64
    """late: width of the token vectors."""
    position_norm: NotNegative = 0.0
    """late: length at the start of a learned vector for each place of an image, which is added to the token's vector;
    0 for none. Token vectors tell places too weakly to say what is left of what."""
    pooled: bool = False
    """late: add the dual encoder's scaled cosine to the logit, which trains the vectors that choose candidates."""
    token_pooling: Count = 1
    """late: an index stores the token vectors of an image divided by this number, as clusters; training and scores have
    all."""

    @property
    def start_kind(self) -> Literal["fusion", "dual", "late", "query", "searchable"]:
        """A dual encoder or a late-interaction model. To be averaged with, it must have all weights."""
        return "late" if self.average_with_start else "searchable"

    def check(self, recipe: Recipe) -> None:
        refuse_vector_losses(recipe)


@dataclass(frozen=True, kw_only=True)
class QueryConfig(AnyModelConfig):
    """The `[model]` table of a query encoder: what is trained."""

    learns_teacher_space = True
    work_unit = "texts"

    kind: Literal["query"] = "query"
    text_layers: Annotated[tuple[Natural, ...], ASCENDING, _PRETRAINED_TEXT] = ()
    """query: layers of `text` to keep, counted from 0; empty for all."""
    num_text_layers: Annotated[int, between(0, 1000), _NEW_QUERY_LAYERS] = 2
    """query: layers of a new text encoder; 0 for a static one, the mean of its tokens' vectors, also of those of
    `text`."""

    @property
    def has_new_heads(self) -> bool:
        return self.has_new_layers and self.num_text_layers > 0

    @property
    def num_weights(self) -> int:
        if not self.trains_word_pieces:
            return 0
        if not self.num_text_layers:
            return 4 * self.hidden_size**2
        return _weights_of(self.num_text_layers, self.hidden_size) + self.hidden_size * self.max_text_len

    @property
    def average_with_start(self) -> float:
        """No share: a query encoder's space is that of its teacher, and not that of its start."""
        return 0.0

    def check(self, recipe: Recipe) -> None:
        if recipe.pool.rounds is not None:
            raise ConfigError(
                "pool.rounds scores with --teacher, which embeds the images of a query encoder",
                hint="make a cache with `dcdctl cache-teacher`, and leave it out",
            )


ModelConfig = FusionConfig | DualConfig | LateConfig | QueryConfig


def _weights_of(num_layers: int, width: int) -> int:
    # 4 matrices of attention, and 2 of a feed-forward layer that is 4 times as wide.
    return num_layers * 12 * width**2


def refuse_vector_losses(recipe: Recipe) -> None:
    """ConfigError for a loss of one vector per image and per caption, which a model of this kind has not."""
    loss = recipe.loss
    dims = ["loss.dims"] if loss.dims else []
    for name in [*loss.vector_terms, *dims]:
        raise ConfigError(
            f"{name} is for vectors, and a {recipe.model.kind} model has none",
            hint="set model.kind to dual, or leave it out",
        )


def settings_of_new(table: Mapping[str, Any], sets: Sequence[str]) -> list[str]:
    """Assignments that unset what a recipe's `[model]` table says of a new model, where `sets` name a start or
    encoders in place of it. Encoders that the recipe keeps frozen stay so.

    >>> settings_of_new({"kind": "dual", "start": "new", "image_size": 32}, ["model.start=runs/dual"])
    ['model.image_size=64']
    """
    chosen = flatten(apply_sets({"model": table}, sets))
    kind = chosen.get("model.kind")
    names_start = table.get("start") == "new" and chosen.get("model.start", "new") != "new"
    names_text = not table.get("text") and bool(chosen.get("model.text"))
    conditions: tuple[OnlyIf, ...] = ()
    if names_start:
        conditions = _OF_NEW_MODELS
    elif names_text:
        # The fusion layers over two encoders are new.
        conditions = _OF_NEW_ENCODERS if kind == "fusion" else (*_OF_NEW_ENCODERS, *_OF_NEW_LAYERS)
    defaults: dict[str, Any] = {}
    for config in (FusionConfig, DualConfig, LateConfig, QueryConfig):
        defaults |= defaults_under(config, conditions)
    unset = [(name, defaults[name]) for name in table if name in defaults]
    lines = [f"model.{name}={'none' if value is None else json.dumps(value)}" for name, value in unset]
    if names_start and kind in ("dual", "late") and table.get("frozen_encoders"):
        lines += ["model.frozen_encoders=false", "model.trained=projections"]
    return lines
