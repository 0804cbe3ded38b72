"""A training on a stream of shards: tars and Parquet files that are not prepared, and need not fit into memory or on
the disk.

A stream has no caches, candidate lists or features, which need the whole corpus. RUN/shards.jsonl has a line for each
shard that was read to its end. With it a resumed run starts in the middle of an epoch without reading the earlier
shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from dcdctl.core import distributed, files
from dcdctl.core.config import build
from dcdctl.core.data import Corpus, ShardCount, ShardStream, open_shards
from dcdctl.core.errors import ConfigError, MissingError
from dcdctl.core.models import Model
from dcdctl.core.progress import Say, Track
from dcdctl.core.teacher import EmbeddedScores, embed_corpus, embedding_plan
from dcdctl.core.training import runs, validation
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.step_pairs import check_images
from dcdctl.core.training.batches.stream import StreamBatches, StreamTeacher
from dcdctl.core.training.coverage import DualTeachers, Preview
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import Recipe
from dcdctl.core.training.runs import Run
from dcdctl.core.training.training_data import Prepared, SaveFiles, Teachers, TrainingPlan

LEAVE_OUT = "leave it out, or prepare a corpus with `dcdctl prepare`"


def check(plan: TrainingPlan) -> None:
    """ConfigError for whatever needs a prepared corpus; opens no shard."""
    recipe, refs = plan.recipe, plan.inputs
    losses = f"loss {', '.join(recipe.loss.terms)}"
    needs_corpus = (
        (plan.job.kind != "distill", "finetune-teacher", "use `dcdctl distill`"),
        (recipe.model.learns_teacher_space, "model.kind query", "set it to dual"),
        (recipe.model.has_teacher_texts, "model.text teacher", "name a text encoder"),
        (refs.pool is not None, "--pool", LEAVE_OUT),
        (bool(refs.caches), "--cache", "leave it out; a dual --teacher scores the batches of a stream"),
        (len(refs.teachers) > 1, "an average of several --teacher", "name one"),
        (recipe.loss.on_lists, losses, "set loss.terms to infonce, or with a teacher to kl"),
        (recipe.model.starts_from_teacher, "model.start teacher", "name another start"),
        (recipe.loss.temperature == "auto", "loss.temperature auto", "set a number"),
        (isinstance(recipe.captions.checked, int | float), "captions.checked", LEAVE_OUT),
        (recipe.candidates.duplicate_bits is not None, "candidates.duplicate_bits", LEAVE_OUT),
        (plan.options.compute.features is not None, "--features", LEAVE_OUT),
        (refs.split != "train", f"--split {refs.split}", LEAVE_OUT),
        (refs.max_images is not None, "--max-images", "name fewer shards"),
    )
    for is_asked, name, hint in needs_corpus:
        if is_asked:
            raise ConfigError(f"{name} needs a prepared corpus, and --data names shards to stream", hint=hint)
    if recipe.validation.every and not refs.validation_data:
        raise ConfigError(
            "validation.every is set, and a stream has no split to validate on",
            hint="name a corpus with --validation-data",
        )


class ShardLog:
    """The shards that were read to their ends: those of an earlier start of the run, then those of this one. It is kept
    in memory until the run has a folder, and there from then on."""

    def __init__(self, counts: Sequence[ShardCount]) -> None:
        self.counts = list(counts)
        self._run: Run | None = None

    def add(self, count: ShardCount) -> None:
        """A further shard."""
        self.counts.append(count)
        if self._run is not None:
            self._run.append(runs.SHARDS_FILE, asdict(count))

    def move_to(self, run: Run) -> None:
        """Write all counts into the folder of the run, because a killed one may have left an incomplete last line, and
        each further one when it is known."""
        lines = [run.log_line(asdict(count)) for count in self.counts]
        files.write_text(run.folder / runs.SHARDS_FILE, "".join(lines))
        self._run = run


@dataclass(frozen=True, kw_only=True)
class StreamData:
    """A stream of shards."""

    plan: TrainingPlan
    stream: ShardStream
    log: ShardLog
    validation: Mapping[str, Corpus]
    judged: Mapping[str, Corpus]
    """Those of `validation` that need the teacher."""
    preview: Preview

    @property
    def recipe(self) -> Recipe:
        """That of the plan: nothing is adapted to a stream, whose size may be unknown."""
        return self.plan.recipe

    @property
    def captions(self) -> Sequence[str]:
        """The captions of the first window, for a new model that has no word pieces of its own."""
        if not self.recipe.model.trains_word_pieces:
            return []
        return [caption for sample in self.stream.first_window() for caption in sample.captions]

    def load_teachers(self, track: Track) -> Teachers:
        """Load the dual teacher."""
        duals = self.plan.inputs.load_dual_teachers(with_vectors=True)
        width = None
        for _, dual in duals:
            assert dual.as_dual is not None
            width = dual.as_dual.embedding_dim if self.recipe.loss.vector_terms else None
        return Teachers(duals=duals, vector_width=width)

    def facts(self, teachers: Teachers) -> dict[str, Any]:
        """The versions of the shards, and the fingerprint of the teacher."""
        compute, duals = self.plan.options.compute, teachers.duals
        judged = {name: embedding_plan(duals, corpus, compute) for name, corpus in self.judged.items()}
        return {
            # First, because a message names the first difference.
            "shards": self.stream.versions(),
            "corpus": self.stream.fingerprint,
            "split": "stream",
            "cache": None,
            **validation.facts_of(self.validation, judged),
            "steps": self.preview.num_steps,
            **({"teachers": [dual.digest for _, dual in duals]} if duals else {}),
        }

    def read(self, model: Model, teachers: Teachers, say: Say, track: Track) -> Prepared:
        """Embed the validation corpora with the teacher, which then embeds each batch when it is read."""
        compute = self.plan.options.compute
        judged: dict[str, EmbeddedScores] = {}
        for name, corpus in self.judged.items():
            judged[name] = distributed.in_main(partial(embed_corpus, teachers.duals, corpus, compute, track))
        teacher = None
        for _, dual in teachers.duals:
            loaded = dual.to(compute.device).eval().as_dual
            assert loaded is not None
            teacher = StreamTeacher(loaded, compute, bool(self.recipe.loss.vector_terms))

        def make_batches(plan: MicroBatchPlan, run: Run | None) -> StreamBatches:
            # A trial keeps the window that it has read for the training.
            plan = replace(plan, by_side=self.recipe.model.embeds_sides)
            return StreamBatches(self.stream, model.preprocess, self.recipe.batch, plan, teacher)

        def collect() -> SaveFiles:
            return self.log.move_to

        return Prepared(
            recipe=self.recipe,
            preview=self.preview,
            objective=PairObjective(self.recipe.loss),
            make_batches=make_batches,
            validation=self.validation,
            validation_teachers=judged,
            collect=collect,
        )


def open_data(plan: TrainingPlan, track: Track, *, is_preview: bool = False) -> StreamData:
    """The shards of a plan, each looked up, and its validation corpora.

    The samples of Parquet files are counted, by their footers, if the recipe has epochs, and for a preview.

    ConfigError if the number of steps cannot be known, MissingError if an earlier start counted a shard that is
    not there, InputError for a damaged count.
    """
    recipe, refs = plan.recipe, plan.inputs
    check_images(recipe, recipe.batch.size)
    shards = open_shards(refs.places)
    log = ShardLog(_counted_before(Run(plan.job.out), len(shards)))
    counts = {count.shard: count.samples for count in log.counts}
    stream = ShardStream(shards, recipe.stream, recipe.batch.size, recipe.seed, counts=counts, on_count=log.add)
    validated = validation.open_corpora(recipe.validation, refs.validation_data)
    judged = validation.judged_corpora(recipe, validated)
    has_teacher = bool(refs.teachers)
    validation.check_judged(judged, judged if has_teacher else {})
    has_epochs = recipe.optimizer.steps is None
    batches = stream.batches_per_epoch() if is_preview or has_epochs else None
    if batches is None and has_epochs:
        raise ConfigError(
            "optimizer.epochs counts passes over the data, and tars do not say how many samples they have",
            hint="set optimizer.steps",
        )
    dual_teachers: DualTeachers = "embedded" if has_teacher else "none"
    preview = Preview(recipe=recipe, batches_per_epoch=batches, dual_teachers=dual_teachers)
    return StreamData(plan=plan, stream=stream, log=log, validation=validated, judged=judged, preview=preview)


def _counted_before(run: Run, num_shards: int) -> list[ShardCount]:
    """What an earlier start of the run has counted; InputError for a damaged line, MissingError for a shard that is not
    there."""
    lines = run.read_lines(runs.SHARDS_FILE, runs.RECOUNT_SHARDS)
    counts = [build(ShardCount, line, runs.SHARDS_FILE) for line in lines]
    for count in counts:
        if not 0 <= count.shard < num_shards:
            raise MissingError(
                f"{run.folder / runs.SHARDS_FILE} counts shard {count.shard}, and the stream has {num_shards}",
                hint=runs.RECOUNT_SHARDS,
            )
    return counts
