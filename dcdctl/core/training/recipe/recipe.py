"""A recipe: one experiment, with everything that can change a number, in one TOML file.

Its tables are `[candidates]` (the pairs that the teacher scores), `[teachers]`, `[model]` (what is trained), `[loss]`,
`[batch]`, `[pool]`, `[stream]` (the order of a training on shards), `[optimizer]` and `[validation]`. Every field has
a default, every key can be set on the command line (`--set loss.alpha=0.5`), and run.json stores the resolved recipe.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NoReturn

from dcdctl.core.config import (
    ASCENDING,
    DISTINCT,
    NOT_EMPTY,
    Count,
    Fraction,
    Natural,
    Positive,
    Share,
    apply_sets,
    at_least,
    between,
    build,
    changed_fields,
    check_fields,
    parse_toml,
    read_toml,
    to_table,
)
from dcdctl.core.data import Direction, StreamConfig
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import TrainedParts
from dcdctl.core.teacher import CandidateConfig
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.recipe.packaged import check_recipe_name, names

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
    max_text_len: int = 40
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
        if self.kind != "fusion" and self.layers:
            raise ConfigError(
                f"model.layers chooses layers of a fusion model, and model.kind is {self.kind}",
                hint="choose layers of a dual encoder with model.vision_layers and model.text_layers",
            )
        if self.kind != "fusion" and self.start == "teacher":
            raise ConfigError(
                f"a {self.kind} model cannot start from a fusion teacher",
                hint="set model.start to new, or to a dual encoder",
            )
        if self.text and self.start != "new":
            raise ConfigError(f"model.vision and model.text are for model.start new, and it is {self.start}")
        if self.frozen_encoders and self.start == "new" and not self.vision:
            raise ConfigError(
                "model.frozen_encoders is for a model over two encoders: a METER, or model.vision and model.text"
            )
        if (self.vision_levels or self.vision_grid or self.vision_size) and not (self.vision and self.frozen_encoders):
            raise ConfigError(
                "model.vision_levels, vision_grid and vision_size are for new models over model.vision and model.text",
                hint="set model.frozen_encoders, and name both encoders",
            )
        if self.dual_init and not (self.kind == "fusion" and self.vision and self.frozen_encoders):
            raise ConfigError(
                "model.dual_init is for a new fusion model over model.vision and model.text, with model.frozen_encoders"
            )
        self._check_query()
        self._check_start()
        self._check_trained()

    def _check_query(self) -> None:
        """ConfigError for settings that a query encoder does not have."""
        for name in NOT_OF_QUERY if self.kind == "query" else ():
            if getattr(self, name) != getattr(ModelConfig, name):
                raise ConfigError(f"model.{name} is set, and a query encoder has none", hint="leave it out")

    @property
    def start_kind(self) -> Literal["fusion", "dual", "late", "query"] | None:
        """The kind of model that `start` names; None for a late student's, a dual encoder or a late one. To be averaged
        with, it must have all weights."""
        return None if self.kind == "late" and not self.average_with_start else self.kind

    @property
    def _is_pretrained_dual(self) -> bool:
        if self.kind == "query":
            return bool(self.text)
        return self.kind != "fusion" and (self.start != "new" or (bool(self.vision) and not self.frozen_encoders))

    def _check_start(self) -> None:
        """ConfigError for settings of the start that this kind of model does not have."""
        for name in ("vision_layers", "text_layers"):
            if getattr(self, name) and not self._is_pretrained_dual:
                raise ConfigError(
                    f"model.{name} is for a dual encoder with a pretrained start",
                    hint="leave it out, or set model.start",
                )
        if self.average_with_start != "auto" and not between(0, 1).admits(self.average_with_start):
            raise ConfigError(f"model.average_with_start must lie in [0, 1] or be auto, got {self.average_with_start}")
        if self.average_with_start and self.start == "new":
            raise ConfigError(
                "model.average_with_start is for a pretrained model.start, and it is new", hint="set it to 0"
            )
        if self.average_with_start and (self.layers or self.vision_layers or self.text_layers):
            raise ConfigError(
                "model.average_with_start averages with the start's weights, and a model of fewer layers does "
                "not compute what they do",
                hint="set it to 0, or keep all layers",
            )

    def _check_trained(self) -> None:
        """ConfigError for a choice of trained parts that this kind of model does not have, or that its own settings
        contradict."""
        if self.trained != "all" and not self._is_pretrained_dual:
            raise ConfigError(
                f"model.trained is {self.trained}, which is for a dual encoder with a pretrained start",
                hint="set it to all; model.frozen_encoders trains the layers over two encoders",
            )
        if self.trained == "last-layers" and self.trained_layers is None:
            raise ConfigError(
                "model.trained is last-layers, and model.trained_layers is not set",
                hint="set the number of layers, such as 4",
            )
        if self.trained_layers is not None and self.trained != "last-layers":
            raise ConfigError(
                f"model.trained_layers is for model.trained last-layers, and it is {self.trained}", hint="leave it out"
            )
        if (self.lora_rank, self.lora_alpha) != (LORA.rank, LORA.alpha) and self.trained != "lora":
            raise ConfigError(
                f"model.lora_rank and model.lora_alpha are for model.trained lora, and it is {self.trained}",
                hint="leave them out",
            )


@dataclass(frozen=True, kw_only=True)
class TeachersConfig:
    """The `[teachers]` table: how several caches are averaged."""

    weights: tuple[Positive, ...] = ()
    """Share of each cache, in the order of --cache; empty for equal shares. Scores are brought to one scale, then
    averaged."""

    def __post_init__(self) -> None:
        check_fields(self, "teachers")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The `[batch]` table: what one optimizer step sees."""

    size: Annotated[int, at_least(2)] = 32
    """Queries (lists) or images, each with one caption (all pairs)."""
    # The released code draws 15 for COCO and 63 for Flickr30K, and keeps 7 of them.
    random_negatives: Count = 15
    """Lists: negatives drawn at random for a query, before the hardest are kept. Queries with fewer cached candidates
    are left out."""
    hard_negatives: Count = 7
    """Lists: negatives kept, the hardest by the teacher's score, at most random_negatives. Without a cache all drawn
    ones are kept."""
    directions: Annotated[tuple[Direction, ...], NOT_EMPTY, DISTINCT] = tuple(Direction)
    """text: an image with candidate captions (the only direction of the released code); image: a caption with candidate
    images."""
    negatives: Literal["random", "mined"] = "random"
    """Lists without a cache: random ones from the whole corpus, or those of `[candidates]`, mined once before the first
    step. A query with too few mined ones gets random ones too."""

    def __post_init__(self) -> None:
        check_fields(self, "batch")


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The `[pool]` table: what a step sees of a pool, images and texts of which none belong together."""

    weight: Annotated[float, between(0, 1, "()")] = 0.5
    """With captioned images too (--pool): the pool's share of the loss; theirs is the rest."""
    images: Count | None = None
    """All pairs: images of the pool in a step; as many as batch.size if not set."""
    texts: Count | None = None
    """All pairs: texts of the pool in a step; as many as images if not set."""
    pseudo_positive_above: float | None = None
    """Take a text and its best image, by the teacher, for a pair if the score is above this: losses that need a
    positive then learn from the pool too. Unset: they do not."""
    rounds: Count | None = None
    """Without a cache: let --teacher score the `[candidates]` of the pool, train, and from the second round on mine
    further ones with the student. Unset: the scores come from --cache, or from a dual --teacher for every pair."""
    max_pairs: Count | None = None
    """rounds: pairs that the teacher scores in all, in equal parts; all candidates if not set."""

    def __post_init__(self) -> None:
        check_fields(self, "pool")
        if self.max_pairs is not None and self.max_pairs < (self.rounds or 0):
            raise ConfigError(f"pool.max_pairs is {self.max_pairs}, fewer than pool.rounds", hint="set it higher")
        if self.max_pairs is not None and self.rounds is None:
            raise ConfigError(
                "pool.max_pairs is the budget of pool.rounds, which is not set",
                hint="set pool.rounds, or make a cache with `dcdctl cache-teacher --max-pairs`",
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The `[optimizer]` table: how the weights are trained, and for how long."""

    # All defaults but lr, lr_factors and save_every are as in DCD's released training.
    lr: Positive = 1e-4
    """Learning rate at its highest."""
    lr_factors: dict[str, Positive] = field(default_factory=dict)
    """Part of the model (a component of its parameters' dotted names, such as text_layers) -> factor of the learning
    rate."""
    layer_decay: Annotated[float, between(0, 1, "(]")] = 1.0
    """dual: factor of the learning rate from one layer to the one below it. Projections and final norms have the whole
    rate, the last layer of N this factor, and the embeddings its power N + 1."""
    weight_decay: Annotated[float, at_least(0)] = 0.01
    """Not applied to biases and LayerNorms."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """AdamW: decay of the averages of the gradient and of its square."""
    epochs: Positive = 10.0
    """Passes over the captions (lists) or images (all pairs); ignored if `steps` is set."""
    steps: Count | None = None
    """Optimizer steps, in place of epochs."""
    warmup_share: Share = 0.1
    """Share of the steps in which the learning rate rises from 0; then it falls to 0."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls to 0 after the warm-up: linear, or cosine."""
    max_grad_norm: Positive | None = None
    """Clip the gradient to this norm; no clipping if not set."""
    save_every: Count = 500
    """Steps between checkpoints; the two newest are kept."""

    def __post_init__(self) -> None:
        check_fields(self, "optimizer")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The `[validation]` table: how a model is validated during its training."""

    every: Natural = 0
    """Steps between validations, the last of which is always at the end; 0 for none, or with --validation-data for the
    last one alone."""
    at_start: bool = False
    """Also validate before the first step; always with several --validation-data. The start's recalls are logged as
    start_..., and its weights may be the best ones."""
    split: str = "val"
    """Split of the training corpus, or of each --validation-data; an error if the training reads it too (--split
    train+val)."""
    max_images: Count | None = None
    """Only the first images of the split, and their captions. A fusion model scores every image with every caption, so
    a few hundred images are practical."""
    metric: Literal["rsum", "agreement"] = "rsum"
    """What is measured. rsum: the sum of recalls. agreement: nDCG@10 against the order of the training's teacher, for
    which a corpus may be a pool. A teacher that is no dual encoder needs a cache of the split (--cache)."""
    keep: Literal["best", "last"] = "best"
    """The weights that become the model: the best ones by `metric` on the first corpus, or the last."""
    max_loss_elsewhere: Annotated[float, at_least(0)] | None = None
    """RSUM points that the model may lose on any --validation-data after the first, from its start. A training that
    loses more ends there, and the best weights before become the model. With model.average_with_start auto it goes to
    its end, and the average keeps the bound."""

    def __post_init__(self) -> None:
        check_fields(self, "validation")
        if self.at_start and not self.every:
            raise ConfigError(
                "validation.at_start is set, and validation.every is 0",
                hint="set validation.every to a number of steps",
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All tables of an experiment."""

    description: str = ""
    """What the recipe trains, in one line."""
    seed: Natural = 0
    """Seed of new weights, batches and dropout."""
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        has_vectors = self.model.kind in ("dual", "query")
        if self.loss.vector_terms and not has_vectors:
            raise ConfigError(
                f"loss {', '.join(self.loss.vector_terms)} compares vectors, and a {self.model.kind} model has none",
                hint="set model.kind to dual, or leave it out",
            )
        if self.loss.dims and not self.loss.of_scores and self.model.kind != "query":
            raise ConfigError(
                f"loss.dims is for losses of scores, and loss.terms has {', '.join(self.loss.terms)}, which take "
                "vectors of full width",
                hint="leave loss.dims out, or add a loss of scores, such as infonce",
            )
        if self.loss.dims and not has_vectors:
            widths = ", ".join(map(str, self.loss.dims))
            raise ConfigError(
                f"loss.dims is {widths}, which are widths of vectors, and a {self.model.kind} model has none",
                hint="set model.kind to dual, or leave loss.dims out",
            )
        if self.pool.rounds is not None and self.model.kind == "query":
            raise ConfigError(
                "pool.rounds scores with --teacher, which embeds the images of a query encoder",
                hint="make a cache with `dcdctl cache-teacher`, and leave it out",
            )
        if self.stops_elsewhere and self.validation.keep == "last":
            raise ConfigError(
                "validation.max_loss_elsewhere ends a training at weights that lose more, and validation.keep is last",
                hint="set validation.keep to best, or model.average_with_start to auto",
            )
        if self.validation.metric == "agreement" and (
            self.validation.max_loss_elsewhere is not None or self.model.average_with_start == "auto"
        ):
            raise ConfigError(
                "validation.max_loss_elsewhere and model.average_with_start auto count points of RSUM, and "
                "validation.metric is agreement",
                hint="set validation.metric to rsum, or leave them out",
            )
        # Without a teacher all drawn negatives are kept.
        if self.loss.on_lists and self.loss.needs_teacher and self.batch.hard_negatives > self.batch.random_negatives:
            counts = f"{self.batch.hard_negatives} of {self.batch.random_negatives}"
            raise ConfigError(f"batch.hard_negatives must be at most batch.random_negatives, got {counts}")
        if self.optimizer.layer_decay < 1 and self.model.kind == "fusion":
            raise ConfigError(
                "optimizer.layer_decay is for dual encoders, and model.kind is fusion",
                hint="set it to 1; optimizer.lr_factors sets the rates of parts of a fusion model",
            )

    def __repr__(self) -> str:
        return changed_fields(self)

    @property
    def stops_elsewhere(self) -> bool:
        """Whether `validation.max_loss_elsewhere` may end the training; an average with the start keeps it."""
        return self.validation.max_loss_elsewhere is not None and self.model.average_with_start != "auto"


def require_recipe_of_cache() -> NoReturn:
    """ConfigError that lists the recipes whose `[candidates]` a cache can be made for."""
    # No default: one recipe's cache has four times the pairs that another one needs, or pairs that it cannot use.
    known = ", ".join(name for name in names() if "candidates" in read_toml(check_recipe_name(name)))
    raise ConfigError(
        "no --recipe is named, and its [candidates] say which pairs the teacher scores",
        hint=f"name the recipe that the student will be trained with, a .toml file or one of {known}",
    )


def load_recipe(ref: str | Recipe, sets: Sequence[str] = ()) -> Recipe:
    """A recipe by name, from a .toml file or in memory, with `key=value` overrides applied."""
    if isinstance(ref, Recipe):
        return build(Recipe, apply_sets(to_table(ref), sets)) if sets else ref
    return parse_toml(check_recipe_name(ref), functools.partial(build, Recipe), sets)
