"""Evaluation of a model, or of a cascade of two, on a split: `evaluate_model` measures, `run_evaluation` does what
`dcdctl eval` does.

Everything that needs no model is checked first, then the corpus is opened, and the weights are loaded last.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dcdctl.core import artifacts, files, locks, models
from dcdctl.core.data import Corpus, share_split
from dcdctl.core.errors import ConfigError, CorpusError, ModelError
from dcdctl.core.evaluation import eccv, rankers, ranks, recall, result, vectors
from dcdctl.core.evaluation.files import check_copy, file_names, result_folder, write_evaluation, write_ranks
from dcdctl.core.evaluation.protocols import Fold, Protocol, SplitChoice, folds_of, open_split
from dcdctl.core.evaluation.rankers import EvalOptions, OnWorkload, RankingTask
from dcdctl.core.evaluation.ranking import Rankings, RankTable
from dcdctl.core.evaluation.result import Evaluation, Kind
from dcdctl.core.evaluation.vector_form import FormChoice, VectorForm
from dcdctl.core.files import shown, url_of
from dcdctl.core.models import FusionScorer, Model
from dcdctl.core.progress import Say, Track, silent, unsaid

DEFAULT = EvalOptions()


def evaluate_model(
    model: Model,
    corpus: Corpus,
    *,
    rerank: FusionScorer | None = None,
    options: EvalOptions = DEFAULT,
    track: Track = silent,
    on_workload: OnWorkload | None = None,
) -> Evaluation:
    """Rank every caption for every image and every image for every caption; `rerank` orders the first candidates again.

    `on_workload` receives the number of pairs and an estimate of the time, by a short trial, before a fusion scorer
    scores them. ModelError if `rerank` is given with a fusion scorer, stored features with a model that reads none, or
    a form of vectors with anything but a dual encoder alone.
    """
    started = time.perf_counter()
    if options.form != VectorForm() and (model.kind == "fusion" or rerank is not None):
        raise _no_vectors()
    task = RankingTask(corpus, options, folds_of(corpus, options.protocol), track, on_workload)
    if options.compute.features is not None and model.kind == "dual" and model.encoders is None and rerank is None:
        raise ModelError(
            "a dual encoder's features are its vectors, which are computed only once anyway",
            hint="leave --features out",
        )
    kind: Kind
    if model.kind == "fusion":
        if rerank is not None:
            raise ModelError("only a dual encoder's results can be re-ranked, and the model is a fusion scorer")
        kind, ranked = "fusion", rankers.rank_by_fusion(model, task)
    elif rerank is None:
        kind, ranked = "dual", rankers.rank_by_dual(model, task)
    else:
        kind, ranked = "cascade", rankers.rank_by_cascade(model, rerank, task)
    rankings = _concatenate(ranked.folds, task.folds)
    text_retrieval, image_retrieval = recall.mean_measures(ranked.folds)
    return Evaluation(
        text_retrieval=text_retrieval,
        image_retrieval=image_retrieval,
        rankings=rankings,
        table=RankTable(
            tuple(corpus.image_ids), corpus.caption_ids, corpus.caption_image, rankings.text.ranks, rankings.image.ranks
        ),
        kind=kind,
        protocol=options.protocol,
        depth=options.depths[-1] if kind == "cascade" else None,
        depths=ranked.depths,
        form=options.form,
        features=None if options.compute.features is None else "float16",
        precision=options.compute.precision,
        pairs_scored=ranked.num_pairs,
        seconds=time.perf_counter() - started,
        fingerprint=corpus.fingerprint,
        # Absolute, so that a report or a comparison finds the images from any folder.
        data=shown(corpus.folder if url_of(corpus.folder) else Path(corpus.folder).absolute()),
    )


def _concatenate(rankings: list[Rankings], folds: list[Fold]) -> Rankings:
    """The rankings of all folds, with candidates as indices of the corpus: captions for text retrieval, images for
    image retrieval."""
    text = ranks.concatenate([fold.text for fold in rankings], [fold.texts.start for fold in folds])
    return Rankings(text, ranks.concatenate([fold.image for fold in rankings], [fold.images.start for fold in folds]))


@dataclass(frozen=True, kw_only=True)
class EvalJob:
    """What to evaluate, and on which split."""

    model: str
    choice: SplitChoice
    rerank: str | None = None
    """Re-ranker of a cascade: a fusion scorer, or another dual encoder."""
    rerank_sets: tuple[str, ...] = ()
    """Settings of the re-ranker, such as "dtype=bfloat16"."""
    depth: str | None = None
    """Depth of the cascade, or several: "0,5,10"; None for that of the options."""
    model_sets: tuple[str, ...] = ()
    """Settings of the model, such as "image_size=384"."""
    with_eccv: bool = False
    """Also measure ECCV Caption and CrissCrossed Captions."""
    forms: FormChoice = field(default_factory=FormChoice)
    """How the vectors of a dual encoder are compared."""
    loaded: Model | None = None
    """The model itself, if it is in memory; `model` is then only what results call it."""


@dataclass(frozen=True)
class EvalOutcome:
    """What `run_evaluation` returns."""

    document: dict[str, Any]
    folder: Path | None
    """Folder of the results; None if they were not written."""


@dataclass(frozen=True)
class EvalPlan:
    """An evaluation whose settings are checked, with nothing opened yet."""

    job: EvalJob
    options: EvalOptions
    """With the depths of the job."""
    overrides: dict[str, Any]
    """Settings of the model."""
    rerank_overrides: dict[str, Any]
    """Settings of the re-ranker."""
    folder: Path | None
    """Where the results are written; None if they are only returned."""
    ranks: Path | None
    """File for another copy of the ranks."""


def resolve(job: EvalJob, options: EvalOptions, out: Path | None = None, ranks: Path | None = None) -> EvalPlan:
    """The plan of an evaluation. Opens no corpus and no weights.

    ModelError for a reference that names nothing, ConfigError for a wrong setting of the model or a wrong depth,
    MissingError if ECCV Caption is asked for and not installed, InputError if the results cannot be written.
    """
    options = replace(_with_depths(options, job), form=job.forms.single)
    overrides, rerank_overrides = (
        models.parse_overrides(job.model_sets),
        models.parse_overrides(job.rerank_sets, "rerank-set"),
    )
    if job.loaded is None:
        _check_model(job.model, overrides)
    elif overrides:
        raise ConfigError(
            "settings are for a model that is loaded by its name, and this one is in memory",
            hint="set them when you load it",
        )
    if job.rerank is not None:
        models.check_ref(job.rerank, rerank_overrides)
    elif rerank_overrides:
        raise ConfigError("--rerank-set sets up a re-ranker, and there is none", hint="add --rerank REF")
    if job.with_eccv:
        eccv.load_package()
    if options.form != VectorForm() and job.rerank is not None:
        raise _no_vectors()
    # Results by other vectors are not those of the run, and would replace them there.
    folder = result_folder(job.model, out) if options.form == VectorForm() and job.loaded is None else out
    if folder is not None:
        artifacts.run_of(folder)  # an error before any work if the run's own run.json is damaged
    for path in (folder, options.compute.features):
        if path is not None:
            files.check_output_folder(path)
    if ranks is not None:
        check_copy(ranks, folder, file_names(is_cascade=job.rerank is not None))
        files.check_output_file(ranks)
    return EvalPlan(job, options, overrides, rerank_overrides, folder, ranks)


def _check_model(ref: str, overrides: dict[str, Any]) -> None:
    """ModelError for a reference that names no model; a run that is not there may have to be made first."""
    try:
        models.check_ref(ref, overrides)
    except ModelError as error:
        if Path(ref).exists():
            raise
        raise ModelError(
            error.args[0], hint=f"make a run with `dcdctl distill`; {error.hint}".removesuffix("; ")
        ) from error


def run_evaluation(
    job: EvalJob,
    options: EvalOptions,
    *,
    out: Path | None = None,
    ranks: Path | None = None,
    track: Track = silent,
    on_workload: OnWorkload | None = None,
    say: Say = unsaid,
) -> EvalOutcome:
    """Evaluate and write: into `out`, or into the model's run if it is one; `ranks` is a file for another copy of the
    ranks.

    `say` gets a line if the model's run was trained on the split.

    Raises what `resolve` raises before anything is opened; StaleError while another evaluation writes into the same
    folder.
    """
    plan = resolve(job, options, out, ranks)
    # Before the model is loaded: of two evaluations into one folder, the second fails at once.
    with _claimed(plan.folder):
        corpus, protocol = _open_split(job, say)
        # Before the weights, because it may refuse the corpus, and it decides how many candidates are kept.
        judge = _judge(corpus, protocol) if job.with_eccv else None
        num_top = options.num_top if judge is None else max(options.num_top, judge.num_top)
        model = models.load(job.model, plan.overrides, track) if job.loaded is None else job.loaded
        reranker = None if job.rerank is None else models.load_scorer(job.rerank, plan.rerank_overrides, track)
        options = replace(plan.options, protocol=protocol, num_top=num_top)
        evaluation = evaluate_model(
            model, corpus, rerank=reranker, options=options, track=track, on_workload=on_workload
        )
        document = result.evaluation_document(evaluation, job.model, corpus.split)
        document |= {} if job.rerank is None else {"reranker": job.rerank}
        document |= {} if judge is None else judge.measure(evaluation.rankings)
        if plan.folder is not None:
            write_evaluation(plan.folder, document, evaluation, corpus)
        if ranks is not None:
            write_ranks(ranks, evaluation, corpus)
    return EvalOutcome(document, plan.folder)


def run_vector_table(
    job: EvalJob,
    options: EvalOptions,
    *,
    out: Path | None = None,
    ranks: Path | None = None,
    track: Track = silent,
    say: Say = unsaid,
) -> dict[str, Any]:
    """What shorter and quantized vectors cost, from one embedding of the split: a JSON-able document with a row for
    each form.

    The widths are those of the job; without any, those of `loss.dims` in the recipe of a run, or else halves of the
    full width.

    Raises what `resolve` raises before anything is opened; ModelError for a fusion scorer.
    """
    if (job.forms.kind, job.rerank, job.with_eccv, out, ranks) != ("float32", None, False, None, None):
        message = "--vector-table measures all kinds of vectors of one model, and writes no file"
        raise ConfigError(message, hint="leave --codes, --rerank, --eccv, --out and --ranks out")
    plan = resolve(replace(job, forms=FormChoice()), options)
    widths = job.forms.widths or vectors.trained_widths(job.model)
    corpus, protocol = _open_split(job, say)
    model = models.load(job.model, plan.overrides, track)
    if model.kind != "dual":
        raise _no_vectors()
    forms = vectors.forms_of(model.embedding_dim, widths, job.forms.rescore)
    task = RankingTask(corpus, replace(options, protocol=protocol), folds_of(corpus, protocol), track, None)
    ranked = rankers.rank_by_forms(model, forms, task)
    return {
        "model": job.model,
        "split": corpus.split,
        "images": corpus.num_images,
        "captions": corpus.num_captions,
        "protocol": {"name": protocol.name, "folds": protocol.num_folds, "ties": "count against the positive"},
        "precision": options.compute.precision,
        "corpus_fingerprint": corpus.fingerprint,
        "rows": vectors.table_rows(forms, ranked),
    }


def _no_vectors() -> ModelError:
    return ModelError(
        "forms of vectors are those of a dual encoder alone",
        hint="leave --dims, --codes, --rescore and --vector-table out",
    )


def _open_split(job: EvalJob, say: Say) -> tuple[Corpus, Protocol]:
    """The split of a job and its protocol; says so if the model was trained on the split."""
    corpus, protocol = open_split(job.choice)
    if (trained := _training_split(job.model, corpus)) is not None:
        say(
            f"{job.model} was trained on split {trained}: recalls on {corpus.split} do not show how it does on other "
            "images"
        )
    return corpus, protocol


def _training_split(ref: str, corpus: Corpus) -> str | None:
    """The split that a run was trained on, if it shares images with this one."""
    path = Path(ref, "run.json")
    inputs: dict[str, Any] = artifacts.read_document(path, hint="restore it").get("inputs", {}) if path.exists() else {}
    split = inputs.get("split", "")
    try:
        is_same = share_split(corpus.split, split) and Corpus.open(
            corpus.folder, split, inputs.get("images")
        ).fingerprint == inputs.get("corpus")
    except CorpusError:  # another data set, whose splits have the same names
        return None
    return split if is_same else None


def _judge(corpus: Corpus, protocol: Protocol) -> eccv.Judge:
    """ConfigError if the gallery is not the one that ECCV Caption judges."""
    if protocol.name != eccv.PROTOCOL:
        message = (
            f"ECCV Caption requires the protocol {eccv.PROTOCOL}, and {shown(corpus.folder)} is evaluated by "
            f"{protocol.name}"
        )
        raise ConfigError(message, hint="leave --eccv out")
    return eccv.open_judge(corpus)


def _with_depths(options: EvalOptions, job: EvalJob) -> EvalOptions:
    """The options with the depths that a job names."""
    if job.depth is None:
        return options
    if job.rerank is None:
        raise ConfigError(
            f"--depth {job.depth} is the number of candidates to re-rank, and there is no re-ranker",
            hint="add --rerank REF",
        )
    try:
        return replace(options, depths=tuple(sorted({int(word) for word in job.depth.split(",")})))
    except ValueError as error:
        raise ConfigError(
            f"--depth must be a number or a list of numbers, got {job.depth}", hint="for example --depth 0,5,10,20"
        ) from error


def _claimed(folder: Path | None) -> AbstractContextManager[None]:
    """A lock of the folder, if there is one."""
    return nullcontext() if folder is None else locks.lock(folder.resolve())
