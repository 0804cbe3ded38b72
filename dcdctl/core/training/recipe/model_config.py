"""The `[model]` table of a recipe: what is trained, and which settings each kind of model has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from dcdctl.core.config import ASCENDING, Count, Fraction, Natural, Positive, at_least, between, check_fields
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import TrainedParts

LORA = TrainedParts(which="lora")
"""The defaults of adapters."""
NOT_OF_QUERY = (
    *("vision", "frozen_encoders", "trained", "vision_layers", "average_with_start", "dual_init", "projection_dim"),
    *("token_dim", "position_norm", "pooled", "token_pooling"),
)
"""Settings of `[model]` that are for other kinds of models than query encoders."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `[model]` table: what is trained."""

    kind: Literal["fusion", "dual", "late", "query"] = "fusion"
    """fusion: reads an image and a caption together. dual: one vector per image and one per caption. late: one vector
    per token, compared by MaxSim; it starts from what a dual starts from, and settings of a dual hold for it. query: a
    text encoder in front of the images of a dual or late teacher, whose vectors it learns."""
    start: str = "teacher"
    """teacher: the cached teacher, reduced to `layers` (fusion only). new: random weights of the sizes below, or
    `vision` and `text`. Anything else is the reference of the initial model."""
    layers: tuple[int, ...] = ()
    """fusion: layers of the initial model to keep, in order; empty for all."""
    vision: str = ""
    """start new: model reference of a pretrained image encoder, which goes with `text`; empty for a small new one of
    the sizes below."""
    text: str = ""
    """The same for the text encoder. fusion: the co-attention layers between the two have hidden_size, num_layers,
    num_heads and dropout. query: alone; empty for a new one, `teacher` for the teacher's own."""
    vision_levels: tuple[int, ...] = ()
    """frozen_encoders: stages of `vision` to read beside its output (for a timm model, entries of its feature_info)."""
    vision_grid: Count | None = None
    """frozen_encoders: side of the square grid to which a feature map of `vision` is averaged; not averaged if not
    set."""
    vision_size: Count | None = None
    """frozen_encoders: input side of `vision` in pixels (a timm model with feature maps); its own if not set."""
    frozen_encoders: bool = False
    """Keep vision and text unchanged, so that their features can be stored on disk (--features). fusion: the layers
    between them are trained; dual: one linear layer per side."""
    trained: Literal["all", "last-layers", "projections", "lora"] = "all"
    """dual with a pretrained start: what is trained besides the projections and the logit scale. last-layers: the last
    `trained_layers` of each encoder, with its final norm. projections: nothing; --features then stores the outputs of
    both encoders. lora: low-rank adapters of all linear layers of both encoders (extra peft), merged into the weights
    at the end."""
    trained_layers: Count | None = None
    """last-layers: how many of each encoder."""
    lora_rank: Count = LORA.rank
    """lora: rank r of the adapters."""
    lora_alpha: Count = LORA.alpha
    """lora: an adapter of rank r adds lora_alpha / r times its product to a weight."""
    vision_layers: Annotated[tuple[int, ...], ASCENDING] = ()
    """dual: layers of the start's image encoder to keep, counted from 0; empty for all."""
    text_layers: Annotated[tuple[int, ...], ASCENDING] = ()
    """dual: layers of the start's text encoder to keep, counted from 0; empty for all. query: layers of `text`."""
    average_with_start: float | Literal["auto"] = 0.0
    """Share s of the start's weights in the saved model: s times the start's plus 1 - s times the trained ones
    (WiSE-FT, Wortsman et al. 2022). It returns some of the zero-shot quality that a training costs. auto: the best of
    0, 0.1, ..., 1 on the validation corpora, within validation.max_loss_elsewhere if it is set."""
    dual_init: str = ""
    """fusion over frozen vision and text: a dual encoder over the same two, whose scaled cosine is added to the logit;
    empty for none."""
    projection_dim: Count = 256
    """dual: width of the vectors."""
    token_dim: Count = 64
    """late: width of the token vectors."""
    position_norm: Annotated[float, at_least(0)] = 0.0
    """late: length at the start of a learned vector for each place of an image, which is added to the token's vector;
    0 for none. Token vectors tell places too weakly to say what is left of what."""
    pooled: bool = False
    """late: add the dual encoder's scaled cosine to the logit, which trains the vectors that choose candidates."""
    token_pooling: Count = 1
    """late: an index stores the token vectors of an image divided by this number, as clusters; training and scores have
    all."""
    hidden_size: Count = 128
    """new models: width of the layers."""
    num_layers: Count = 6
    """fusion: layers; dual: layers of the image encoder."""
    num_text_layers: Natural = 2
    """dual, query: layers of the text encoder; query: 0 for a static one, the mean of its tokens' vectors."""
    num_heads: Count = 4
    """new models: attention heads per layer."""
    image_size: Count = 64
    """new models: side of the square input in pixels."""
    patch_size: Count = 16
    """new models: side of a patch in pixels."""
    image_mean: float = 0.5
    """new models: mean that normalizes the pixels of every channel, where white is 1."""
    image_std: Positive = 0.5
    """new models: standard deviation that normalizes them."""
    # The length of METER and ViLT in retrieval.
    max_text_len: Count = 40
    """Maximum number of word pieces of a caption, special tokens included; the rest is cut off."""
    vocab_size: Count = 4000
    """new models: maximum number of word pieces, trained on the captions of the train split."""
    dropout: Fraction | None = None
    """Dropout in training. Not set: none in new layers, while pretrained models and the teacher keep their own. A
    number holds for both. ViLT, and a dual encoder that is trained as a whole: embeddings and sublayer outputs, while
    attention probabilities have none. Co-attention and METER: the fusion layers, attention probabilities included;
    trained encoders keep their own. Dual over frozen encoders: the features."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.kind != "query" and bool(self.vision) != bool(self.text):
            raise ConfigError("model.vision and model.text go together, and one of them is empty")
        if not self.num_text_layers and self.kind != "query":
            raise ConfigError("model.num_text_layers is 0, which is for model.kind query", hint="set it to 1 or more")
        if self.kind != "fusion" and self.start == "teacher":
            raise ConfigError(
                f"a {self.kind} model cannot start from a fusion teacher",
                hint="set model.start to new, or to a dual encoder",
            )
        for names, has_them, purpose in self._special():
            for name in () if has_them else names:
                if getattr(self, name) != getattr(ModelConfig, name):
                    raise ConfigError(f"model.{name} is for {purpose}", hint="leave it out")
        self._check_start()

    @property
    def start_kind(self) -> Literal["fusion", "dual", "late", "query", "searchable"]:
        """The kind of model that `start` names; of a late student a dual encoder or a late one. To be averaged with, it
        must have all weights."""
        return "searchable" if self.kind == "late" and not self.average_with_start else self.kind

    @property
    def _is_pretrained_dual(self) -> bool:
        has_encoders = self.start != "new" or (bool(self.vision) and not self.frozen_encoders)
        return bool(self.text) if self.kind == "query" else self.kind != "fusion" and has_encoders

    def _special(self) -> Iterator[tuple[Sequence[str], bool, str]]:
        """Settings that only some models have: their names, whether this model has them, and which ones do."""
        two_frozen = "model.vision and model.text, with model.frozen_encoders"
        is_over_two = bool(self.vision) and self.frozen_encoders
        yield NOT_OF_QUERY, self.kind != "query", "other models than a query encoder"
        yield ["layers"], self.kind == "fusion", "fusion models; a dual encoder has vision_layers and text_layers"
        yield ["text"], self.start == "new", f"model.start new, and it is {self.start}"
        yield ["average_with_start"], self.start != "new", "a pretrained model.start, and it is new"
        is_over_encoders = self.start != "new" or bool(self.vision)
        yield (
            ["frozen_encoders"],
            is_over_encoders,
            "a model over two encoders: a METER, or model.vision and model.text",
        )
        yield ["vision_levels", "vision_grid", "vision_size"], is_over_two, f"new models over {two_frozen}"
        yield ["dual_init"], is_over_two and self.kind == "fusion", f"a new fusion model over {two_frozen}"
        pretrained = "a dual encoder with a pretrained start"
        yield ["vision_layers", "text_layers", "trained"], self._is_pretrained_dual, pretrained
        yield ["trained_layers"], self.trained == "last-layers", f"model.trained last-layers, and it is {self.trained}"
        yield ["lora_rank", "lora_alpha"], self.trained == "lora", f"model.trained lora, and it is {self.trained}"

    def _check_start(self) -> None:
        """ConfigError for an average that the model's own settings contradict, or for a missing number of layers."""
        if self.average_with_start != "auto" and not between(0, 1).admits(self.average_with_start):
            raise ConfigError(f"model.average_with_start must lie in [0, 1] or be auto, got {self.average_with_start}")
        if self.average_with_start and (self.layers or self.vision_layers or self.text_layers):
            raise ConfigError(
                "model.average_with_start averages with the start's weights, and a model of fewer layers does "
                "not compute what they do",
                hint="set it to 0, or keep all layers",
            )
        if self.trained == "last-layers" and self.trained_layers is None:
            raise ConfigError(
                "model.trained is last-layers, and model.trained_layers is not set",
                hint="set the number of layers, such as 4",
            )
