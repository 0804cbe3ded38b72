"""A training on a stream of shards: tars and Parquet files that are not prepared, and need not fit into memory or on
the disk.

The steps are those of `distill`, without what needs the whole corpus: caches, candidate lists, features.
RUN/shards.jsonl has a line for each shard that was read to its end. With it a resumed run starts in the middle of an
epoch without reading the earlier shards.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from dcdctl.core import distributed, files
from dcdctl.core.config import build
from dcdctl.core.data import Corpus, ShardCount, ShardStream, open_shards
from dcdctl.core.errors import ConfigError, MissingError
from dcdctl.core.models import Model
from dcdctl.core.progress import Say, Track, Watch, silent, step_bar, unsaid
from dcdctl.core.training import final_model, initial_model, loggers, loop, runs, trial
from dcdctl.core.training.batches.make import count_steps, work_per_step
from dcdctl.core.training.batches.sampler import check_size
from dcdctl.core.training.batches.stream import StreamBatches, StreamTeacher
from dcdctl.core.training.fit import Fit, Preview
from dcdctl.core.training.grad_cache import StepInfo
from dcdctl.core.training.inputs import InputRefs, check_teachers
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.objective import PairObjective, SelfTaughtObjective
from dcdctl.core.training.recipe import Recipe, load_recipe
from dcdctl.core.training.runs import Run, TrainingJob
from dcdctl.core.training.trial import Trial
from dcdctl.core.training.validation import Validation

PREPARE_HINT = "or prepare a corpus with `dcdctl prepare`"


@dataclass(frozen=True)
class _StreamTraining:
    """A training with everything opened and loaded."""

    recipe: Recipe
    options: TrainingOptions
    model: Model
    """The initial model, trained in place."""
    batches: StreamBatches
    validation: Corpus | None
    num_steps: int
    batches_per_epoch: float | None
    """None if the recipe sets the steps: nothing then counts the samples."""
    counted: _Counted

    @property
    def objective(self) -> PairObjective:
        ema = self.recipe.teachers.ema
        return PairObjective(self.recipe.loss) if ema is None else SelfTaughtObjective(self.recipe.loss, ema)

    def facts(self) -> dict[str, Any]:
        """What the run depends on besides its recipe, for run.json; a run resumes only with equal facts."""
        stream, teacher = self.batches.stream, self.batches.teacher
        return {
            "corpus": stream.fingerprint,
            "split": "stream",
            "shards": stream.versions(),
            "cache": None,
            "start": self.model.digest,
            "precision": self.options.compute.precision,
            "features": None,
            "validation": None if self.validation is None else self.validation.fingerprint,
            "steps": self.num_steps,
            **({} if teacher is None else {"teachers": [teacher.model.digest]}),
        }


def train(
    job: TrainingJob,
    refs: InputRefs,
    *,
    options: TrainingOptions,
    track: Track = silent,
    watch: Watch | None = None,
    say: Say = unsaid,
) -> Run:
    """Train a model on a stream and return its finished run; `watch` sees the steps, `say` gets a line for each choice
    of a trial.

    Raises what `resolve` raises before it opens anything, and then what the shards and the models raise.
    """
    recipe, options = resolve(job, refs, options)
    with distributed.lock(job.out):
        if Run(job.out).is_finished and job.resume:
            runs.check_folder(job.out, recipe, job.kind, resume=True)
            return Run(job.out)
        training = _open(recipe, options, refs, job, track)
        training = _settle(training, say)
        measured: dict[str, Any] = {
            "micro_batches": training.options.micro_batches,
            "batches_per_epoch": training.batches_per_epoch,
        }
        measured |= runs.equivalent_command(job, refs.options())
        with distributed.main_first():
            run = Run(job.out)
            if distributed.is_main():
                run = runs.start_run(job.out, recipe, job.kind, training.facts(), resume=job.resume, measured=measured)
                training.counted.move_to(run)
        with trial.memory_errors(training.options, recipe.batch.size):
            _run_steps(training, run, watch or step_bar(track))
    return run


def preview(job: TrainingJob, refs: InputRefs, options: TrainingOptions) -> Preview:
    """What `train` would do: its steps, and the shards. Looks up every shard, loads no model and writes nothing."""
    recipe, _ = resolve(job, refs, options)
    stream = _open_stream(recipe, refs)
    batches = stream.batches_per_epoch() if recipe.optimizer.steps is not None else _batches_per_epoch(stream)
    found = f"those of a batch, of a stream of {len(stream.shards):,} shards with {stream.num_bytes / 1e9:,.2f} GB"
    fit = Fit(
        recipe=recipe,
        differences=(),
        has_cache=False,
        coverage=None,
        has_dual_teachers=bool(refs.teachers),
        negatives={},
        not_counted=found,
    )
    return Preview(num_steps=count_steps(recipe, batches or 0), batches_per_epoch=batches, fit=fit)


def resolve(job: TrainingJob, refs: InputRefs, options: TrainingOptions) -> tuple[Recipe, TrainingOptions]:
    """The checked recipe and options. Opens no shard and no weights; ConfigError for whatever needs a prepared
    corpus."""
    recipe = load_recipe(job.recipe, job.sets)
    if problem := next(_needs_corpus(job, recipe, refs, options), None):
        found, hint = problem
        raise ConfigError(f"{found}, and --data names shards to stream", hint=f"{hint}, {PREPARE_HINT}")
    if options.wandb is not None:
        loggers.require()
    initial_model.check(recipe, has_teacher=False)
    check_teachers(recipe, refs)
    if len(refs.teachers) > 1:
        found = (
            f"--teacher names {len(refs.teachers)} models; their scores are averaged over a whole corpus, and a "
            "stream has none"
        )
        raise ConfigError(found, hint=f"name one, {PREPARE_HINT}")
    if recipe.validation.every and refs.validation_data is None:
        raise ConfigError(
            "validation.every is set, and a stream has no split to validate on",
            hint="name a corpus with --validation-data",
        )
    check_size(recipe.batch, options.micro_batch_plan)
    runs.check_folder(job.out, recipe, job.kind, resume=job.resume)
    return recipe, trial.recorded(Run(job.out), options)


def _needs_corpus(
    job: TrainingJob, recipe: Recipe, refs: InputRefs, options: TrainingOptions
) -> Iterator[tuple[str, str]]:
    """What the training asks for that a stream cannot give, with what to do."""
    if job.kind != "distill":
        yield "finetune-teacher draws negatives from the whole corpus", "use `dcdctl distill`"
    if refs.caches:
        yield (
            "--cache holds scores of the pairs of a corpus",
            "leave it out; a dual --teacher scores the batches of a stream",
        )
    if recipe.loss.on_lists:
        listed = ", ".join(recipe.loss.terms)
        yield (
            f"loss {listed} takes candidate lists, which are drawn from the whole corpus",
            "set loss.terms to infonce, or with a teacher to kl",
        )
    if recipe.model.kind == "fusion" and recipe.model.start == "teacher":
        yield "this model starts from the teacher of a cache", "name its start with model.start"
    if recipe.loss.temperature == "auto":
        yield "loss.temperature is auto, which is taken from a cache", "set a number"
    if recipe.batch.refresh_steps:
        yield "batch.refresh_steps adds candidates to a cache", "set it to []"
    if recipe.candidates.duplicate_bits is not None:
        yield "candidates.duplicate_bits compares the images of the whole corpus", "leave it out"
    if options.compute.features is not None:
        yield "--features stores the outputs for a whole corpus", "leave it out"
    if refs.split != "train":
        yield f"--split {refs.split} is a part of a corpus", "leave it out"
    if refs.max_images is not None:
        yield "--max-images counts the images of a corpus", "name fewer shards"


def _open_stream(recipe: Recipe, refs: InputRefs) -> ShardStream:
    return ShardStream(open_shards(refs.places), recipe.stream, recipe.batch.size, recipe.seed)


def _batches_per_epoch(stream: ShardStream) -> float:
    """Batches of an epoch, where `optimizer.steps` does not say how long the training is."""
    batches = stream.batches_per_epoch()
    if batches is None:
        found = "optimizer.epochs counts passes over the data, and tars do not say how many samples they have"
        raise ConfigError(found, hint="set optimizer.steps")
    return batches


def _open(recipe: Recipe, options: TrainingOptions, refs: InputRefs, job: TrainingJob, track: Track) -> _StreamTraining:
    """Open the shards and the corpus of the validation, and load the models."""
    stream, config = _open_stream(recipe, refs), recipe.validation
    if job.resume:
        # Before anything is read or loaded: a shard that has changed is the end.
        inputs = {"shards": stream.versions()}
        runs.check_folder(job.out, recipe, job.kind, resume=True, inputs=inputs)
    counted = _Counted.of_run(Run(job.out), len(stream.shards))
    stream.counts.update((count.shard, count.samples) for count in counted.counts)
    stream.on_count = counted.add
    batches_per_epoch = None if recipe.optimizer.steps else _batches_per_epoch(stream)
    num_steps = count_steps(recipe, batches_per_epoch or 0)
    validation = None
    if config.every:
        assert refs.validation_data is not None
        validation = Corpus.open(refs.validation_data, config.split, config.max_images)
    teacher = None
    if refs.teachers:
        ((_, dual),) = refs.load_dual_teachers(track)
        dual.to(options.compute.device).eval()
        teacher = StreamTeacher(dual, options.compute, bool(recipe.loss.vector_terms))
    captions = _captions(recipe, stream)
    model = initial_model.make_model(recipe, captions, None, track)
    initial_model.check_dims(recipe.loss.dims, model)
    if recipe.loss.vector_terms:
        assert teacher is not None
        assert model.kind == "dual"
        model.add_projection(teacher.model.embedding_dim)
    if recipe.teachers.ema is not None:
        assert model.kind == "dual"
        model.add_average()
    plan = replace(options.micro_batch_plan, by_side=recipe.model.kind == "dual")
    batches = StreamBatches(stream, model.preprocess, recipe.batch, plan, teacher)
    return _StreamTraining(recipe, options, model, batches, validation, num_steps, batches_per_epoch, counted)


def _captions(recipe: Recipe, stream: ShardStream) -> list[str]:
    """The captions from which a new model's word pieces are trained, those of the first window; empty for a model that
    brings its own."""
    if recipe.model.start != "new" or recipe.model.text:
        return []
    return [caption for sample in stream.first_window() for caption in sample.captions]


def _settle(training: _StreamTraining, say: Say) -> _StreamTraining:
    """The training with the settings that a trial of the first step chooses."""
    if training.options.checkpoint_activations:
        training.model.checkpoint_activations()
    info = StepInfo(step=0, num_steps=training.num_steps, seed=training.recipe.seed)
    network = cast(nn.Module, training.model)
    first = Trial(network, training.batches, training.objective, info, trial.precisions(training.options))
    options = trial.settle(training.options, first, say)
    return replace(training, options=options, batches=training.batches.with_plan(options.micro_batch_plan))


def _run_steps(training: _StreamTraining, run: Run, watch: Watch) -> None:
    """Train the model and save it."""
    recipe, options, measured = training.recipe, training.options, training.validation
    validate = None if measured is None else Validation(run, measured, recipe.validation, options.compute)
    unit, per_step = work_per_step(recipe, None)
    loop.train(
        run,
        cast(nn.Module, training.model),
        training.batches,
        training.objective,
        recipe.optimizer,
        num_steps=training.num_steps,
        seed=recipe.seed,
        options=options,
        validation=validate,
        watch=functools.partial(watch, unit=unit, per_step=per_step),
    )
    final_model.save_model(run, training.model, recipe, validate)


@dataclass
class _Counted:
    """The shards that were read to their ends: in memory until the run has started, then also in its folder."""

    counts: list[ShardCount]
    file: Path | None = None

    @staticmethod
    def of_run(run: Run, num_shards: int) -> _Counted:
        """What an earlier start of a run has counted; InputError for a damaged line, MissingError for a shard that is
        not there."""
        path = run.folder / runs.SHARDS_FILE
        counts = [build(ShardCount, line, runs.SHARDS_FILE) for line in runs.read_lines(path, runs.RECOUNT_SHARDS)]
        if outside := next((count.shard for count in counts if not 0 <= count.shard < num_shards), None):
            raise MissingError(
                f"{path} counts shard {outside}, and the stream has {num_shards}", hint=runs.RECOUNT_SHARDS
            )
        return _Counted(counts)

    def add(self, count: ShardCount) -> None:
        """Note a count."""
        self.counts.append(count)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8", newline="\n") as file:
                file.write(runs.log_line(asdict(count)))

    def move_to(self, run: Run) -> None:
        """Write the counts to the run's folder, and from now on each further one."""
        self.file = run.folder / runs.SHARDS_FILE
        # All of them, because a killed run may have left an incomplete last line.
        files.write_text(self.file, "".join(runs.log_line(asdict(count)) for count in self.counts))
