"""What a training reads, in three values, each complete when it exists: its plan; its data, opened and measured; and
the data as its model reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dcdctl.core.data import Corpus
from dcdctl.core.models import Model, Searchable
from dcdctl.core.progress import Say, Track
from dcdctl.core.teacher import TeacherScores
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.step_pairs import CorpusBatches, MixedBatches
from dcdctl.core.training.batches.stream import StreamBatches
from dcdctl.core.training.batches.texts import TextBatches, TextRows
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.initial_model import Start
from dcdctl.core.training.inputs import InputRefs, TeacherUse
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import Recipe
from dcdctl.core.training.runs import Run, TrainingJob

Batches = CorpusBatches | MixedBatches | StreamBatches | TextBatches
SaveFiles = Callable[[Run], None]
"""Writes files of the data into the folder of the run that starts."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training whose recipe and settings are checked, with nothing opened yet."""

    job: TrainingJob
    inputs: InputRefs
    recipe: Recipe
    options: TrainingOptions
    use: TeacherUse


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """The teacher models of a training, loaded."""

    start: Start = None
    duals: Sequence[tuple[str, Searchable]] = ()
    """The dual encoders, or the late-interaction model, that embed the data, by name."""
    vector_width: int | None = None
    """Width of their vectors, if the loss compares vectors."""


class TrainingData(Protocol):
    """The opened files of a training."""

    @property
    def plan(self) -> TrainingPlan:
        """What was asked for."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of the plan, adapted to the data (`adapted`)."""

    @property
    def preview(self) -> Preview:
        """How many steps the training has, and how its batches and caches fit the recipe."""

    @property
    def captions(self) -> Sequence[str]:
        """The captions from which a new model's word pieces are trained; of a large source those of its first
        window."""

    @property
    def validation(self) -> Mapping[str, Corpus | TextRows]:
        """The splits that the model is validated on, by name, or held-out texts; the first chooses the weights."""

    def load_teachers(self, track: Track) -> Teachers:
        """Load the weights of the teacher models. ConfigError before that, if the data cannot be trained on."""

    def facts(self, teachers: Teachers) -> dict[str, Any]:
        """What the run depends on besides its recipe and its start, for run.json."""

    def read(self, model: Model, teachers: Teachers, say: Say, track: Track) -> Prepared:
        """The data as this model reads them, with the scores or vectors that the teachers give them."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data of a training as its model reads them."""

    recipe: Recipe
    """The adapted recipe, with a number as the temperature."""
    preview: Preview
    """Measured with the scores that the batches are chosen by."""
    objective: PairObjective
    make_batches: Callable[[MicroBatchPlan, Run | None], Batches]
    """The batches of a started run, or with None those of a trial of the first step."""
    validation: Mapping[str, Corpus | TextRows]
    validation_teachers: Mapping[str, TeacherScores] = field(default_factory=dict)
    """The scores of these corpora that `validation.metric` agreement compares with."""
    collect: Callable[[], SaveFiles] | None = None
    """Collects the data's own files of a run, before there is a folder, so that a failure leaves none."""


class DataModule(Protocol):
    """A kind of data: captioned images and pools (`corpus_data`), shards (`stream_data`), or texts (`text_data`)."""

    def check(self, plan: TrainingPlan) -> None:
        """ConfigError for what such data cannot give; opens nothing."""

    def open_data(self, plan: TrainingPlan, track: Track, *, is_preview: bool = False) -> TrainingData:
        """The files of a training, opened and measured; images and scores are read later. A preview also counts what a
        training of a given length need not know."""
