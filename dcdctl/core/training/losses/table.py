"""The `[loss]` table of a recipe, and every loss that it can name: losses of scores (`LOSSES`), with the batches that
they need, and losses of vectors (`VECTOR_LOSSES`).

To add one: a function in this package, an entry here, and a row in docs/losses.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from torch import Tensor

from dcdctl.core.config import ASCENDING, Count, Fraction, Positive, Share, settle_fields
from dcdctl.core.errors import ConfigError
from dcdctl.core.training.batches.batch import Batch
from dcdctl.core.training.losses import all_pairs, lists, official, vectors


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The `[loss]` table: the terms of the loss, and their settings."""

    terms: dict[str, Positive] = field(default_factory=lambda: {"dcd": 1.0})
    """Loss name (docs/losses.md) -> weight. All of them work on lists of candidates, or all of them on all pairs of a
    batch. Losses of vectors (embedding-...) go with both; alone they take batches of all pairs."""
    # 0.2, and 1 for the temperature, are constants of the released code.
    alpha: Share = 0.2
    """dcd, dcd-released: weight of the distillation term, in [0, 1]; the ground truth gets the rest. wsl-released:
    factor of that term."""
    temperature: Positive | Literal["auto"] = 1.0
    """T in the equations of docs/losses.md: divides the teacher's logits, and in some losses the student's too. auto:
    the one that `dcdctl inspect` recommends for the cache, or for the average of several."""
    weight_group: Count | None = None
    """dcd, dcd-released, wsl-released: consecutive lists of a batch among which their weights are normalized, as the
    released code does in the micro-batch of one device; the whole batch if not set, in which the weights of the
    distillation fade as it grows."""
    label_smoothing: Fraction = 0.0
    """infonce: share of the target that all pairs of the denominator get in equal parts, in [0, 1); the positive gets
    the rest."""
    dims: Annotated[tuple[Count, ...], ASCENDING] = ()
    """dual: widths at which the vectors must be good (Matryoshka). Each loss of scores is the mean of its values on the
    first numbers of the vectors, for each width. Losses of vectors take all numbers, and for a query encoder the first
    numbers of the teacher's too. Empty: the full width alone, which a list names as its last."""

    def __post_init__(self) -> None:
        settle_fields(self, "loss")
        unknown = [name for name in self.terms if name not in LOSSES and name not in VECTOR_LOSSES]
        if unknown or not self.terms:
            found, known = ", ".join(unknown) or "nothing", ", ".join([*LOSSES, *VECTOR_LOSSES])
            raise ConfigError(f"loss.terms has {found}", hint=f"known losses: {known}")
        if len({loss.on for loss in self.of_scores}) > 1:
            on_lists = ", ".join(name for name, loss in LOSSES.items() if loss.on == "lists")
            on_pairs = ", ".join(name for name, loss in LOSSES.items() if loss.on == "all pairs")
            raise ConfigError(
                "loss.terms mixes losses on candidate lists with losses on all pairs of a batch: "
                f"{', '.join(self.terms)}",
                hint=f"lists: {on_lists}; all pairs: {on_pairs}",
            )
        if self.temperature == "auto" and not self.needs_teacher:
            raise ConfigError(
                "loss.temperature is auto, and no loss of the recipe has a teacher: loss.terms has "
                f"{', '.join(self.terms)}",
                hint="leave it out, or add a loss that has a teacher, such as kl",
            )
        self._check_options()

    def _check_options(self) -> None:
        # A setting that no loss reads would have no effect, and nobody would notice.
        for name in OF_SOME_LOSSES:
            readers = [loss for loss, entry in LOSSES.items() if name in entry.options]
            value, value_if_unset = getattr(self, name), getattr(LossConfig, name)
            if value != value_if_unset and not self.terms.keys() & set(readers):
                unset = "none" if value_if_unset is None else value_if_unset
                raise ConfigError(
                    f"loss.{name} is {value}, and no loss of the recipe reads it: loss.terms has "
                    f"{', '.join(self.terms)}",
                    hint=f"set it to {unset}, or add one of {', '.join(readers)}",
                )

    @property
    def of_scores(self) -> list[Loss]:
        """The losses of the terms that compare scores."""
        return [LOSSES[name] for name in self.terms if name in LOSSES]

    @property
    def on_lists(self) -> bool:
        """Whether the terms work on candidate lists; otherwise on all pairs of a batch."""
        return any(loss.on == "lists" for loss in self.of_scores)

    @property
    def needs_teacher(self) -> bool:
        """Whether a term needs the teacher's scores."""
        return any(loss.teacher for loss in self.of_scores)

    @property
    def needs_bias(self) -> bool:
        """Whether a term needs a model whose logits have a bias."""
        return any(loss.bias for loss in self.of_scores)

    @property
    def with_positive(self) -> list[str]:
        """The terms that need a positive of each query."""
        return [name for name in self.terms if name in LOSSES and LOSSES[name].positive]

    @property
    def learns_from_scores_alone(self) -> bool:
        """Whether a term learns from the teacher without a positive."""
        return bool(set(self.terms) - set(self.with_positive) - set(self.own_terms))

    def with_terms(self, names: Collection[str], share: float) -> LossConfig:
        """The same loss with the terms of these names, each times `share`; without the settings that none of them
        reads."""
        terms = {name: weight * share for name, weight in self.terms.items() if name in names}
        read = {option for name in terms if name in LOSSES for option in LOSSES[name].options}
        unread: dict[str, Any] = {name: getattr(LossConfig, name) for name in OF_SOME_LOSSES if name not in read}
        return replace(self, terms=terms, **unread)

    @property
    def own_terms(self) -> dict[str, float]:
        """The terms that need no teacher, with their weights."""
        return {name: weight for name, weight in self.terms.items() if name in LOSSES and not LOSSES[name].teacher}

    @property
    def vector_terms(self) -> list[str]:
        """The terms that need a dual teacher's vectors."""
        return [name for name in self.terms if name in VECTOR_LOSSES]


@dataclass(frozen=True)
class TermInputs:
    """What a loss term is computed from."""

    student_RC: Tensor
    """The student's logits; on the teacher's scale for losses that are `calibrated`."""
    batch: Batch
    config: LossConfig
    all_IT: Tensor | None = None
    """A dual model's logits of all images of the batch with all its captions."""

    @property
    def temperature(self) -> float:
        """`loss.temperature` as a number; a training puts one in the place of auto."""
        assert self.config.temperature != "auto"
        return self.config.temperature

    @property
    def scored(self) -> tuple[Tensor, Tensor]:
        """The teacher's logits, 0 where it has not scored a pair, and where it has."""
        return self.batch.teacher_RC.nan_to_num(), ~self.batch.teacher_RC.isnan()


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of the table."""

    term: Callable[[TermInputs], Tensor]
    on: Literal["lists", "all pairs"]
    teacher: bool = False
    """Whether it needs the teacher's scores."""
    positive: bool = False
    """Whether it needs to know a positive of each query, which a pool has not."""
    calibrated: bool = False
    """Whether it compares logits with logits: then it sees a dual model's on the teacher's scale
    (`DualEncoder.calibration`)."""
    bias: bool = False
    """Whether a logit stands for the log-odds of its pair, for which a dual model needs a bias."""
    options: frozenset[str] = frozenset()
    """Fields of `LossConfig` that only some losses have and that this one reads; a recipe may set them only for such a
    loss."""


def _in_groups(t: TermInputs, loss: Callable[..., lists.Parts]) -> Tensor:
    """A released loss, of groups of `weight_group` lists."""
    alpha, group = t.config.alpha, t.config.weight_group
    return official.in_groups(loss, t.student_RC, t.batch.official_teacher_RC, alpha=alpha, group=group)


def _infonce_hard(t: TermInputs) -> Tensor:
    if t.all_IT is None:  # a fusion model's logits of the other lists' candidates would need a forward pass per pair
        return lists.ground_truth(t.student_RC, "softmax")
    assert t.batch.true_IT is not None
    return lists.infonce_hard(t.all_IT, t.batch.true_IT, t.batch.image_ix_RC, t.batch.text_ix_RC)


_WEIGHTED = frozenset({"alpha", "weight_group"})
LOSSES: dict[str, Loss] = {
    "dcd": Loss(
        term=lambda t: (
            lists.dcd(
                t.student_RC,
                t.batch.teacher_RC,
                alpha=t.config.alpha,
                temperature=t.temperature,
                group=t.config.weight_group,
            ).total
        ),
        on="lists",
        teacher=True,
        positive=True,
        calibrated=True,
        options=_WEIGHTED,
    ),
    "dcd-released": Loss(
        term=lambda t: _in_groups(t, official.dcd_official), on="lists", teacher=True, positive=True, options=_WEIGHTED
    ),
    "mse": Loss(
        term=lambda t: lists.mse(t.student_RC, t.batch.teacher_RC, temperature=t.temperature),
        on="lists",
        teacher=True,
        calibrated=True,
    ),
    "wsl": Loss(
        term=lambda t: lists.wsl(t.student_RC, t.batch.teacher_RC, temperature=t.temperature),
        on="lists",
        teacher=True,
        positive=True,
    ),
    "wsl-released": Loss(
        term=lambda t: _in_groups(t, official.wsl_official), on="lists", teacher=True, positive=True, options=_WEIGHTED
    ),
    "ground-truth": Loss(term=lambda t: lists.ground_truth(t.student_RC, "bce"), on="lists", positive=True),
    "ranking": Loss(term=lambda t: lists.ground_truth(t.student_RC, "softmax"), on="lists", positive=True),
    "infonce-hard": Loss(term=_infonce_hard, on="lists", positive=True),
    "infonce": Loss(
        term=lambda t: all_pairs.infonce(t.student_RC, t.batch.same_RC, label_smoothing=t.config.label_smoothing),
        on="all pairs",
        positive=True,
        options=frozenset({"label_smoothing"}),
    ),
    "sigmoid": Loss(
        term=lambda t: all_pairs.sigmoid(t.student_RC, t.batch.same_RC), on="all pairs", positive=True, bias=True
    ),
    "sigmoid-kl": Loss(
        term=lambda t: all_pairs.sigmoid_kl(t.student_RC, *t.scored, temperature=t.temperature),
        on="all pairs",
        teacher=True,
        bias=True,
    ),
    "kl": Loss(
        term=lambda t: all_pairs.kl(t.student_RC, *t.scored, temperature=t.temperature), on="all pairs", teacher=True
    ),
    "dcd-kl": Loss(
        term=lambda t: all_pairs.dcd_kl(t.student_RC, *t.scored, temperature=t.temperature),
        on="all pairs",
        teacher=True,
    ),
    "margin-mse": Loss(
        term=lambda t: all_pairs.margin_mse(t.student_RC, *t.scored, temperature=t.temperature),
        on="all pairs",
        teacher=True,
        calibrated=True,
    ),
}
OF_SOME_LOSSES = sorted(set().union(*(loss.options for loss in LOSSES.values())))
"""The settings that only some losses read. Their defaults stand for no setting."""
VECTOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "embedding-cosine": vectors.embedding_cosine,
    "embedding-mse": vectors.embedding_mse,
}
"""Losses that compare a dual student's projected vectors with a dual teacher's, on the batches of the other terms. The
mean of the images' term and of the captions' term enters the loss. A query encoder, whose images are the teacher's, has
the captions' term alone."""
