"""A training on a stream of shards: tars and Parquet files that are not prepared, and need not fit into memory or on
the disk.

A stream has no caches, candidate lists or features, which need the whole corpus. RUN/shards.jsonl has a line for each
shard that was read to its end. With it a resumed run starts in the middle of an epoch without reading the earlier
shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from dcdctl.core import files
from dcdctl.core.config import build
from dcdctl.core.data import ShardCount, ShardStream, open_shards
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError, MissingError
from dcdctl.core.models import Model
from dcdctl.core.progress import Track
from dcdctl.core.teacher import embedded_teachers
from dcdctl.core.training import runs, validation
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.stream import StreamBatches, StreamTeacher
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.runs import Run
from dcdctl.core.training.training_data import TrainingData, TrainingPlan

LEAVE_OUT = "leave it out, or prepare a corpus with `dcdctl prepare`"


def check(plan: TrainingPlan) -> None:
    """ConfigError for whatever needs a prepared corpus; opens no shard."""
    recipe, refs = plan.recipe, plan.inputs
    losses = f"loss {', '.join(recipe.loss.terms)}"
    needs_corpus = (
        (plan.job.kind != "distill", "finetune-teacher", "use `dcdctl distill`"),
        (recipe.model.kind == "query", "model.kind query", "set it to dual"),
        (refs.pool is not None, "--pool", LEAVE_OUT),
        (bool(refs.caches), "--cache", "leave it out; a dual --teacher scores the batches of a stream"),
        (len(refs.teachers) > 1, "an average of several --teacher", "name one"),
        (recipe.loss.on_lists, losses, "set loss.terms to infonce, or with a teacher to kl"),
        (recipe.model.start == "teacher", "model.start teacher", "name another start"),
        (recipe.loss.temperature == "auto", "loss.temperature auto", "set a number"),
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


class StreamData(TrainingData):
    """A stream of shards, and the shards that an earlier start of the run has counted."""

    model: Model | None = None
    """What the batches are read for."""
    stream_teacher: StreamTeacher | None = None
    counted: list[ShardCount]
    """The shards that were read to their ends."""
    run: Run | None = None
    """Where each further one is written, once the run has started."""

    def __init__(self, plan: TrainingPlan) -> None:
        super().__init__(plan)
        self.refs = plan.inputs
        self.stream = ShardStream(
            open_shards(self.refs.places), plan.recipe.stream, plan.recipe.batch.size, plan.recipe.seed
        )
        self.validation = validation.open_corpora(plan.recipe.validation, self.refs.validation_data)
        validation.check_judged(self.judged, self.judged if self.has_scores else {})

    def first_texts(self) -> Sequence[str]:
        """The captions of the first window."""
        return [caption for sample in self.stream.first_window() for caption in sample.captions]

    @property
    def has_scores(self) -> bool:
        """Whether a dual teacher scores every pair."""
        return bool(self.refs.teachers)

    def measure(self, track: Track) -> Preview:
        """Look up every shard, and count their samples if they say how many they have."""
        # A training of a given length reads no footers of Parquet files, which a preview shows.
        is_counted = self.model is None or self.recipe.optimizer.steps is None
        batches = self.stream.batches_per_epoch() if is_counted else None
        if batches is None and self.recipe.optimizer.steps is None:
            raise ConfigError(
                "optimizer.epochs counts passes over the data, and tars do not say how many samples they have",
                hint="set optimizer.steps",
            )
        self.preview = Preview(
            recipe=self.recipe, batches_per_epoch=batches, dual_teachers="embedded" if self.has_scores else "none"
        )
        return self.preview

    def load_teachers(self, track: Track) -> None:
        """Load the dual teacher."""
        job, compute = self.plan.job, self.plan.options.compute
        self.counted = self._counted_before(Run(job.out))
        self.stream.counts.update((count.shard, count.samples) for count in self.counted)
        self.stream.on_count = self._count
        if self.has_scores:
            duals = self.refs.load_dual_teachers(with_vectors=True)
            embedded = {name: embedded_teachers(duals, corpus, compute) for name, corpus in self.judged.items()}
            for scores in embedded.values():
                scores.embed(track)
            self.validation_teachers = embedded
            ((_, dual),) = duals
            assert dual.kind == "dual"
            dual.to(compute.device).eval()
            self.stream_teacher = StreamTeacher(dual, compute, bool(self.recipe.loss.vector_terms))
            self.vector_width = dual.embedding_dim if self.recipe.loss.vector_terms else None

    def read_for(self, model: Model, track: Track) -> None:
        """Note whose preprocessing the batches have."""
        self.model = model
        self.measure(track)

    def facts(self, start: str, compute: Compute) -> dict[str, Any]:
        """The versions of the shards, and the fingerprint of the teacher."""
        teacher = self.stream_teacher
        return {
            # First, because a message names the first difference.
            "shards": self.stream.versions(),
            "corpus": self.stream.fingerprint,
            "split": "stream",
            "cache": None,
            **self.more_facts(start, compute),
            "steps": self.preview.num_steps,
            **({} if teacher is None else {"teachers": [teacher.model.digest]}),
        }

    def collect(self, compute: Compute, track: Track) -> Callable[[Run], None]:
        """The counts of the shards, each further one of which goes to the run's folder too."""

        def keep(run: Run) -> None:
            self.run = run
            # All of them, because a killed run may have left an incomplete last line.
            files.write_text(
                run.folder / runs.SHARDS_FILE, "".join(run.log_line(asdict(count)) for count in self.counted)
            )

        return keep

    def batches(self, plan: MicroBatchPlan, run: Run | None = None) -> StreamBatches:
        """The batches of the stream; a trial keeps the window that it has read for the training."""
        assert self.model is not None
        plan = replace(plan, by_side=self.recipe.model.kind != "fusion")
        return StreamBatches(self.stream, self.model.preprocess, self.recipe.batch, plan, self.stream_teacher)

    def _counted_before(self, run: Run) -> list[ShardCount]:
        """What an earlier start of the run has counted; InputError for a damaged line, MissingError for a shard that is
        not there."""
        lines = run.read_lines(runs.SHARDS_FILE, runs.RECOUNT_SHARDS)
        counts = [build(ShardCount, line, runs.SHARDS_FILE) for line in lines]
        num_shards = len(self.stream.shards)
        if outside := next((count.shard for count in counts if not 0 <= count.shard < num_shards), None):
            raise MissingError(
                f"{run.folder / runs.SHARDS_FILE} counts shard {outside}, and the stream has {num_shards}",
                hint=runs.RECOUNT_SHARDS,
            )
        return counts

    def _count(self, count: ShardCount) -> None:
        self.counted.append(count)
        if self.run is not None:
            self.run.append(runs.SHARDS_FILE, asdict(count))
