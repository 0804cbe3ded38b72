"""What a training reads, in three values, each complete when it exists: its plan; its data, opened and measured
(`corpus_data`, `stream_data`, `text_data`); and the data as its model reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dcdctl.core.data import Corpus
from dcdctl.core.models import Searchable
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
