"""What a training reads: its plan, and the contract of opened data: a corpus (`corpus_data`), a stream
(`stream_data`) or texts alone (`text_data`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dcdctl.core.devices import Compute
from dcdctl.core.models import Model
from dcdctl.core.progress import Track
from dcdctl.core.teacher import EmbeddedScores, EmbeddedTeacher, TeacherScores
from dcdctl.core.training import validation
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.step_pairs import CorpusBatches, MixedBatches
from dcdctl.core.training.batches.stream import StreamBatches
from dcdctl.core.training.batches.texts import TextBatches
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.inputs import InputRefs
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import Recipe
from dcdctl.core.training.runs import Run, TrainingJob

Batches = CorpusBatches | MixedBatches | StreamBatches | TextBatches


@dataclass(frozen=True)
class TrainingPlan:
    """A training whose recipe and settings are checked, with nothing opened yet."""

    job: TrainingJob
    inputs: InputRefs
    recipe: Recipe
    options: TrainingOptions


class TrainingData(ABC):
    """The opened files of a training. `load_teachers` and then `read_for` complete it, and measure it as soon as they
    can; its batches come last."""

    validation: Mapping[str, Any] = MappingProxyType({})
    """The splits that the model is validated on, by name, or held-out texts; the first chooses the weights."""
    validation_teachers: Mapping[str, TeacherScores] = MappingProxyType({})
    """The scores of these corpora that `validation.metric` agreement compares with."""
    temperature: float | None = None
    """What `loss.temperature` auto stands for; None if the recipe has a number."""
    teacher: Any = None
    """The model that the student starts from; of a query encoder its teacher, or its space alone."""
    vector_width: int | None = None
    """Width of the teachers' vectors, if the loss compares vectors."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.preview = Preview(recipe=plan.recipe, batches_per_epoch=None)
        """What `measure` found last."""

    @property
    def judged(self) -> Mapping[str, Any]:
        """The validation corpora that need the teacher: its scores, or the images that it embeds for a query
        encoder."""
        needs_teacher = self.recipe.validation.metric == "agreement" or self.recipe.model.kind == "query"
        return self.validation if needs_teacher else {}

    @property
    def captions(self) -> Sequence[str]:
        """The captions from which a new model's word pieces are trained; of a large source those of its first window,
        or none for a model that brings its own word pieces."""
        is_new = self.recipe.model.start == "new" and not self.recipe.model.text
        return self.first_texts() if is_new else []

    def first_texts(self) -> Sequence[str]:
        """The captions of the first window."""
        return ()

    @abstractmethod
    def measure(self, track: Track) -> Preview:
        """How many steps the training has, and how its batches and caches fit the recipe; loads no model."""

    def check(self) -> Iterator[str]:
        """What the user should know of what was measured, a line each; ConfigError if it cannot be trained on. Nothing
        of a stream, which has no caches that could cover too little."""
        return iter(())

    @abstractmethod
    def load_teachers(self, track: Track) -> None:
        """Load the weights of the teacher models."""

    @abstractmethod
    def read_for(self, model: Model, track: Track) -> None:
        """Read images and captions as this model does, and embed the corpus with dual teachers."""

    def embed(self, model: Model, teachers: Iterable[TeacherScores | None], track: Track) -> None:
        """Embed the corpora of these dual teachers, once; a query encoder gets their images."""
        for scores in teachers:
            if isinstance(scores, EmbeddedScores):
                scores.embed(track)
                if isinstance(scores, EmbeddedTeacher) and self.recipe.model.kind == "query":
                    model.known_images = {**model.known_images, scores.plan["corpus"]: scores.image_states}

    @abstractmethod
    def facts(self, start: str, compute: Compute) -> dict[str, Any]:
        """What the run depends on besides its recipe, for run.json; a run resumes only with equal facts. `start` is the
        digest of the initial model."""

    def more_facts(self, start: str, compute: Compute) -> dict[str, Any]:
        """Those of all kinds of data."""
        return {
            "start": start,
            "precision": compute.precision,
            # Stored features are rounded to float16, so they change numbers; their folder does not.
            "features": None if compute.features is None else "float16",
            **validation.facts_of(self.validation, self.validation_teachers),
        }

    def objective(self, config: LossConfig) -> PairObjective:
        """The loss, whose temperature is a number."""
        return PairObjective(config)

    @abstractmethod
    def batches(self, plan: MicroBatchPlan, run: Run | None = None) -> Batches:
        """The batches of a started run or, without one, of a trial of the first step."""

    def collect(self, compute: Compute, track: Track) -> Callable[[Run], None]:
        """What writes the data's own files into the folder of the run that starts; called before there is a folder, so
        that a failure leaves none."""
        return lambda run: None
