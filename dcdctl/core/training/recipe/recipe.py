"""A recipe: one experiment, with everything that can change a number, in one TOML file.

Its tables are `[candidates]` (the pairs that the teacher scores), `[teachers]`, `[model]` (what is trained), `[loss]`,
`[batch]`, `[captions]` (which of them count), `[pool]`, `[stream]` (the order of a training on shards), `[optimizer]`
and `[validation]`. Every field has a default, every key can be set on the command line (`--set loss.alpha=0.5`), and
run.json stores the resolved recipe.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NoReturn

from dcdctl.core.config import (
    DISTINCT,
    NOT_EMPTY,
    Count,
    Fraction,
    Logit,
    Natural,
    NotNegative,
    OneOf,
    OnlyIf,
    Positive,
    Repeated,
    Seed,
    Share,
    between,
    build,
    changed_fields,
    settle_fields,
    to_table,
)
from dcdctl.core.data import Direction, StreamConfig
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import CandidateConfig
from dcdctl.core.toml import apply_sets, parse_toml, read_toml
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.recipe.model_config import FusionConfig, ModelConfig, settings_of_new
from dcdctl.core.training.recipe.packaged import check_recipe_name, names

MOST_ROWS = 2**20
"""Images or lists of a batch, and negatives of a list."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The `[batch]` table: what one optimizer step sees."""

    size: Annotated[int, between(2, MOST_ROWS)] = 32
    """Queries (lists) or images, each with one caption (all pairs)."""
    # The released code draws 15 for COCO and 63 for Flickr30K, and keeps 7 of them.
    random_negatives: Annotated[int, between(1, MOST_ROWS)] = 15
    """Lists: negatives drawn at random for a query, before the hardest are kept. Queries with fewer cached candidates
    are left out."""
    hard_negatives: Annotated[int, between(1, MOST_ROWS)] = 7
    """Lists: negatives kept, the hardest by the teacher's score, at most random_negatives. Without a cache all drawn
    ones are kept."""
    directions: Annotated[tuple[Direction, ...], NOT_EMPTY, DISTINCT] = tuple(Direction)
    """text: an image with candidate captions (the only direction of the released code); image: a caption with candidate
    images."""
    negatives: Literal["random", "mined"] = "random"
    """Lists without a cache: random ones from the whole corpus, or those of `[candidates]`, mined once before the first
    step. A query with too few mined ones gets random ones too."""

    def __post_init__(self) -> None:
        settle_fields(self, "batch")

    def check_lists(self, loss: LossConfig) -> None:
        """ConfigError if more negatives are kept than drawn; without a teacher all drawn ones are kept."""
        if loss.on_lists and loss.needs_teacher and self.hard_negatives > self.random_negatives:
            counts = f"{self.hard_negatives} of {self.random_negatives}"
            raise ConfigError(f"batch.hard_negatives must be at most batch.random_negatives, got {counts}")


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """The `[captions]` table: which captions of a corpus count."""

    checked: Logit | Literal["auto"] | None = "auto"
    """With a teacher's scores: a caption counts only if its score with its own image is above this. The others count
    for the image that the teacher picks for them, if such picks can be expected to be right. auto: found from the
    scores with own and with other images; every caption counts if these tell nothing. Unset: every caption counts."""

    def __post_init__(self) -> None:
        settle_fields(self, "captions")


_AUTO_PICKS = OnlyIf(lambda pool: pool.pseudo_positive_above == "auto", "pool.pseudo_positive_above auto")


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The `[pool]` table: what a step sees of a pool, images and texts of which none belong together."""

    weight: Annotated[float, between(0, 1, "()")] = 0.5
    """With captioned images too (--pool): the pool's share of the loss; theirs is the rest."""
    images: Count | None = None
    """All pairs: images of the pool in a step; as many as batch.size if not set."""
    texts: Count | None = None
    """All pairs: texts of the pool in a step; as many as images if not set."""
    pseudo_positive_above: Logit | Literal["auto"] | None = None
    """Take a text and its best image, by the teacher, for a pair if the score is above this: losses that need a
    positive then learn from the pool too. auto: found from the scores, such that `precision` of the pairs can be
    expected to be right; no pair if none or few can. Unset: they do not."""
    precision: Annotated[float, between(0.5, 1), _AUTO_PICKS] = 0.8
    """pseudo_positive_above auto: share of the pairs that must be expected to be right, by the best two scores of each
    text, and by captioned images that are scored too."""
    rounds: Repeated | None = None
    """Without a cache: let --teacher score the `[candidates]` of the pool, train, and from the second round on mine
    further ones with the student. Unset: the scores come from --cache, or from a dual --teacher for every pair."""
    max_pairs: Count | None = None
    """rounds: pairs that the teacher scores in all, in equal parts; all candidates if not set."""

    def __post_init__(self) -> None:
        settle_fields(self, "pool")
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
    weight_decay: NotNegative = 0.01
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
        settle_fields(self, "optimizer")


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
    max_loss_elsewhere: NotNegative | None = None
    """RSUM points that the model may lose on any --validation-data after the first, from its start. A training that
    loses more ends there, and the best weights before become the model. With model.average_with_start auto it goes to
    its end, and the average keeps the bound."""

    def __post_init__(self) -> None:
        settle_fields(self, "validation")
        if self.at_start and not self.every:
            raise ConfigError(
                "validation.at_start is set, and validation.every is 0",
                hint="set validation.every to a number of steps",
            )

    def check_average(self, share: float | Literal["auto"]) -> None:
        """ConfigError if `model.average_with_start` and these settings contradict each other."""
        has_bound, is_auto = self.max_loss_elsewhere is not None, share == "auto"
        if has_bound and not is_auto and self.keep == "last":
            raise ConfigError(
                "validation.max_loss_elsewhere ends a training at weights that lose more, and validation.keep is last",
                hint="set validation.keep to best, or model.average_with_start to auto",
            )
        if (has_bound or is_auto) and self.metric == "agreement":
            raise ConfigError(
                "validation.max_loss_elsewhere and model.average_with_start auto count points of RSUM, and "
                "validation.metric is agreement",
                hint="set validation.metric to rsum, or leave them out",
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All tables of an experiment."""

    description: str = ""
    """What the recipe trains, in one line."""
    seed: Seed = 0
    """Seed of new weights, batches and dropout."""
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    model: Annotated[ModelConfig, OneOf("kind")] = field(default_factory=FusionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        settle_fields(self)
        self.model.check(self)
        self.validation.check_average(self.model.average_with_start)
        self.batch.check_lists(self.loss)

    def __repr__(self) -> str:
        return changed_fields(self)

    @property
    def needs_scores(self) -> bool:
        """Whether a teacher's scores are read: by a loss, or to pick the images of a pool's texts."""
        return self.loss.needs_teacher or self.pool.pseudo_positive_above is not None

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
    """A recipe by name, from a .toml file or in memory, with `key=value` overrides applied.

    An override that names a start in place of a new model unsets the settings of the new one.
    """
    if isinstance(ref, Recipe):
        table = to_table(ref)
        return build(Recipe, apply_sets(table, [*settings_of_new(table["model"], sets), *sets])) if sets else ref
    path = check_recipe_name(ref)
    model = read_toml(path).get("model")
    if isinstance(model, dict):
        sets = [*settings_of_new(model, sets), *sets]
    return parse_toml(path, functools.partial(build, Recipe), sets)
