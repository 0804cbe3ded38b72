"""Evaluation of a model, or of a cascade of two, on a split: `evaluate_model` measures, `run_evaluation` does what
`dcdctl eval` does.

Everything that needs no model is checked first, then the corpus is opened, and the weights are loaded last.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from dcdctl.core import artifacts, files, models
from dcdctl.core.arguments import optional_path, optional_ref, path
from dcdctl.core.data import Corpus, Direction, share_split
from dcdctl.core.errors import ConfigError, CorpusError, ModelError
from dcdctl.core.evaluation import against as teachers
from dcdctl.core.evaluation import eccv, rankers, ranks, relevance, vectors
from dcdctl.core.evaluation.agreement import Lookup
from dcdctl.core.evaluation.document import (
    FULL_VECTORS,
    TIES,
    Agreement,
    Depth,
    Evaluation,
    HowMeasured,
    PoolEvaluation,
    VectorForm,
)
from dcdctl.core.evaluation.files import write_evaluation
from dcdctl.core.evaluation.job import EvalJob
from dcdctl.core.evaluation.measured import Measured
from dcdctl.core.evaluation.measures import NDCG, mean_measures
from dcdctl.core.evaluation.protocols import Protocol, open_split
from dcdctl.core.evaluation.rankers import EvalOptions, OnWorkload, RankingTask
from dcdctl.core.evaluation.ranking import Rankings, RankTable
from dcdctl.core.models import Model, Scorer
from dcdctl.core.places import shown
from dcdctl.core.progress import Say, Track, silent, unsaid

DEFAULT = EvalOptions()
RERANK_SET = "rerank-set"


def evaluate_model(
    model: Model,
    corpus: Corpus,
    *,
    rerank: Scorer | None = None,
    options: EvalOptions = DEFAULT,
    track: Track = silent,
    on_workload: OnWorkload | None = None,
) -> Measured:
    """Rank every caption for every image and every image for every caption; `rerank` orders the first candidates again.

    `on_workload` receives the number of pairs and an estimate of the time, by a short trial, before a fusion scorer
    scores them. ModelError if `rerank` is given with a fusion scorer, stored features with a model that reads none, or
    a form of vectors with anything but a dual encoder alone.
    """
    started, num_pairs, depths = time.perf_counter(), 0, tuple[Depth, ...]()
    _check_options(model, rerank, options)
    task = RankingTask(corpus, options, track, on_workload)
    order: Lookup | None = None
    if rerank is not None:
        folds, num_pairs, depths = rankers.rank_by_cascade(model, rerank, task)
    elif model.has_one_vector:
        embedded = rankers.embed(model, task, [options.form])
        folds = rankers.rank_embedded(embedded, task, options.form)
        order = rankers.vector_order(embedded) if options.keeps_order else None
    else:
        kept_IT = np.empty((corpus.num_images, corpus.num_captions), np.float32) if options.keeps_order else None
        folds, num_pairs = rankers.rank_by_fusion(model, task, kept_IT)
        order = None if kept_IT is None else lambda image_ix, text_ix: kept_IT[image_ix, text_ix]
    # The rankings of all folds, with candidates as indices of the corpus.
    rankings = Rankings(
        ranks.concatenate([fold.text for fold in folds], [fold.texts.start for fold in task.folds]),
        ranks.concatenate([fold.image for fold in folds], [fold.images.start for fold in task.folds]),
    )
    return Measured(
        corpus=corpus,
        protocol=_how(model, rerank, options),
        **mean_measures(folds),
        rankings=rankings,
        table=RankTable.of(corpus, rankings),
        depths=depths,
        pairs_scored=num_pairs,
        seconds=time.perf_counter() - started,
        order=order,
    )


def _how(model: Model, rerank: Scorer | None, options: EvalOptions) -> HowMeasured:
    return HowMeasured(
        name=options.protocol.name,
        folds=options.protocol.num_folds,
        kind=model.kind if rerank is None else "cascade",
        depth=None if rerank is None else options.depths[-1],
        features=None if options.compute.features is None else "float16",
        ties=TIES,
        precision=options.compute.precision,
        vectors=options.form,
    )


def _check_options(model: Model, rerank: Scorer | None, options: EvalOptions) -> None:
    is_dual_alone = model.has_one_vector and rerank is None
    if options.form != FULL_VECTORS and not is_dual_alone:
        raise _no_vectors()
    if options.compute.features is not None and is_dual_alone and model.encoders is None:
        raise ModelError(
            "a dual encoder's features are its vectors, which are computed only once anyway",
            hint="leave --features out",
        )
    if rerank is not None and not model.keeps_states:
        raise ModelError(
            "a re-ranker orders what a model finds that encodes images once, and the model is a fusion scorer",
            hint="name a dual encoder or a late-interaction model, or leave --rerank out",
        )


def resolve(job: EvalJob, say: Say = unsaid) -> tuple[EvalOptions, Path | None]:
    """How a job is evaluated, and the folder of its results, None if they are only returned: a model in memory and
    forms of vectors write none of themselves. Opens no corpus and no weights.

    ModelError for a reference that names nothing, ConfigError for a wrong setting of the model or a wrong depth,
    MissingError if ECCV Caption is asked for and not installed, InputError if the results cannot be written.
    """
    compute = job.compute(say)
    form = VectorForm(dims=job.dims, kind=job.vectors, rescore=job.rescore)
    options = EvalOptions(compute=compute, form=form, depths=job.depths or DEFAULT.depths)
    overrides = models.parse_overrides(job.model_overrides)
    rerank_overrides = models.parse_overrides(job.rerank_overrides, RERANK_SET)
    if job.ref is not None:
        models.check_ref(job.ref, overrides)
    elif overrides:
        raise ConfigError(
            "settings are for a model that is loaded by its name, and this one is in memory",
            hint="set them when you load it",
        )
    if job.rerank is not None:
        models.check_ref(os.fspath(job.rerank), rerank_overrides)
    elif rerank_overrides or job.depths:
        raise ConfigError("--rerank-set and --depth are for a re-ranker, and there is none", hint="add --rerank REF")
    if job.against is not None:
        if job.rerank is not None or form != FULL_VECTORS:
            raise ConfigError(
                "--against compares the order of a model alone, by its full vectors",
                hint="leave --rerank, --dims, --codes and --rescore out",
            )
        teachers.check_teacher(os.fspath(job.against), path(job.data), job.split)
    if job.eccv:
        eccv.load_package()
    if form != FULL_VECTORS and job.rerank is not None:
        raise _no_vectors()
    folder, run = optional_path(job.out), job.ref
    if job.query_model is not None:
        # Not the run of the large model, whose own results are there.
        models.check_ref(run := os.fspath(job.query_model), kind="query")
    # Results by other vectors do not describe the run, and would replace its own there.
    if folder is None and form == FULL_VECTORS and run is not None and Path(run, "run.json").exists():
        folder = Path(run)
    if folder is not None:
        models.run_of(folder)  # an error before any work if the run's own run.json is damaged
    for written in filter(None, (folder, compute.features)):
        files.check_output_folder(written)
    return options, folder


def run_evaluation(
    job: EvalJob, *, track: Track = silent, on_workload: OnWorkload | None = None, say: Say = unsaid
) -> Evaluation | PoolEvaluation:
    """Evaluate and write what a job asks for; of a pool, the agreement with a teacher alone. `say` gets a line if the
    model's run was trained on the split.

    Raises what `resolve` raises before anything is opened; StaleError while another evaluation writes into the same
    folder.
    """
    options, folder = resolve(job, say)
    # Before the model is loaded: of two evaluations into one folder, the second fails at once.
    with nullcontext() if folder is None else files.lock(folder.resolve()):
        corpus, protocol = _open_split(job, say)
        # Before the weights, because it may refuse the corpus, and it decides how many candidates are kept.
        judge = eccv.open_judge(corpus, protocol) if job.eccv else None
        graded_file = optional_path(job.relevance)
        graded = None if graded_file is None else relevance.read_relevance(graded_file, corpus)
        num_top = options.num_top
        if judge is not None:
            num_top = max(num_top, judge.num_top)
        if graded is not None:
            num_top = max(num_top, relevance.NUM_TOP)
        options = replace(options, protocol=protocol, num_top=num_top, keeps_order=job.against is not None)
        model, about = _load(job, track)
        overrides = models.parse_overrides(job.rerank_overrides, RERANK_SET)
        rerank, teacher_ref = optional_ref(job.rerank), optional_ref(job.against)
        reranker = None if rerank is None else models.load_scorer(rerank, overrides, track)
        against = None
        if teacher_ref is not None:
            against = teachers.open_teacher(teacher_ref, corpus, options.compute, track)
        task = RankingTask(corpus, options, track, on_workload)
        if corpus.is_pool:
            assert against is not None
            teacher, fingerprint = against
            started = time.perf_counter()
            by_query = teachers.agreement_of(model, teacher, task)
            of_pool = PoolEvaluation(
                **PoolEvaluation.facts(corpus),
                model=job.name,
                **about,
                protocol=_how(model, None, options),
                agreement=Agreement.of(by_query, str(teacher_ref), fingerprint),
                seconds=time.perf_counter() - started,
            )
            return of_pool if folder is None else write_evaluation(folder, of_pool, agreements=by_query)
        measured = evaluate_model(model, corpus, rerank=reranker, options=options, track=track, on_workload=on_workload)
        if graded is not None:
            measured = _with_ndcg(measured, graded)
        more = about
        if judge is not None:
            more = {**about, **judge.measure(measured.rankings)}
        agreements = None
        if against is not None and measured.order is not None:
            teacher, fingerprint = against
            agreements = teachers.compare_with(teacher, measured.order, corpus)
            more["agreement"] = Agreement.of(agreements, str(teacher_ref), fingerprint)
        if graded_file is not None:
            more["relevance"] = artifacts.sha256_of(graded_file)
        evaluation = measured.evaluation(job.name, reranker=rerank, **more)
        return evaluation if folder is None else write_evaluation(folder, evaluation, measured, agreements)


def _load(job: EvalJob, track: Track) -> tuple[Model, artifacts.Document]:
    """The model to evaluate, and what the document says of its query encoder."""
    kind: Any = None if job.query_model is None else "searchable"
    model: Model
    if isinstance(job.model, str | os.PathLike):
        model = models.load(job.name, models.parse_overrides(job.model_overrides), track, kind=kind)
    else:
        model = job.model
    query_model = optional_ref(job.query_model)
    if query_model is None:
        return model, {}
    joined = models.with_queries(cast(models.Searchable, model), query_model)
    return joined, {"query_model": query_model, "query_fingerprint": joined.digest}


def _with_ndcg(measured: Measured, graded: relevance.Relevance) -> Measured:
    """The measured recalls, with the nDCG@10 of all queries that have a relevant candidate."""
    changes: dict[str, Any] = {}
    ndcg = {}
    for direction in Direction:
        _, gallery = direction.query_first(measured.corpus.num_images, measured.corpus.num_captions)
        ndcg[direction] = ndcg_Q = graded.ndcg(direction, measured.rankings.of(direction), gallery)
        of_recalls = measured.text_retrieval if direction == Direction.TEXT else measured.image_retrieval
        changes[direction.key] = {**of_recalls, NDCG.name: 100 * float(np.nanmean(ndcg_Q))}
    return replace(measured, table=replace(measured.table, ndcg=ndcg), **changes)


def run_vector_table(job: EvalJob, *, track: Track = silent, say: Say = unsaid) -> artifacts.Document:
    """What shorter and quantized vectors cost, from one embedding of the split: a JSON-able document with a row for
    each form.

    The widths come from `loss.dims` in the recipe of a run; without it, they are halves of the full width.

    Raises what `resolve` raises before anything is opened; ModelError for a fusion scorer.
    """
    options, _ = resolve(job, say)
    given = (options.form, job.rerank, job.eccv, job.out, job.against, job.relevance)
    if given != (FULL_VECTORS, None, False, None, None, None):
        raise ConfigError(
            "--vector-table measures all kinds of vectors of one model, and writes no file",
            hint="leave all options of one evaluation out",
        )
    corpus, protocol = _open_split(job, say)
    model, _ = _load(job, track)
    if not model.has_one_vector:
        raise _no_vectors()
    widths = vectors.facts_of(job.name, "recipe").get("loss", {}).get("dims", ())
    forms = vectors.forms_of(model.embedding_dim, widths)
    task = RankingTask(corpus, replace(options, protocol=protocol), track)
    embedded = rankers.embed(model, task, forms)
    ranked = [rankers.rank_embedded(embedded, task, form) for form in forms]
    return {
        "model": job.name,
        **Evaluation.facts(corpus),
        "protocol": {"name": protocol.name, "folds": protocol.num_folds, "ties": TIES},
        "precision": options.compute.precision,
        "rows": vectors.table_rows(forms, ranked),
    }


def _no_vectors() -> ModelError:
    return ModelError(
        "forms of vectors are those of a dual encoder alone",
        hint="leave --dims, --codes, --rescore and --vector-table out",
    )


def _open_split(job: EvalJob, say: Say) -> tuple[Corpus, Protocol]:
    """The split of a job and its protocol; says so if the model was trained on the split."""
    corpus, protocol = open_split(path(job.data), job.split, job.protocol, job.max_images)
    if corpus.is_pool:
        where = f"split {corpus.split} of {shown(corpus.folder)} is a pool"
        if job.against is None:
            raise CorpusError(
                f"{where}, whose images and texts are not paired: there are no recalls",
                hint="compare with a teacher: --against TEACHER",
            )
        if not (corpus.num_images and corpus.num_captions):
            missing = "texts" if corpus.num_images else "images"
            raise CorpusError(f"{where} without {missing}: nothing can be ranked")
        if job.relevance is not None:
            raise ConfigError(f"{where}, which has no ranks", hint="leave --relevance out")
    if (job.against, job.relevance) != (None, None) and protocol.num_folds > 1:
        raise ConfigError(
            f"--against and --relevance are for one gallery, and the protocol {protocol.name} has {protocol.num_folds}",
            hint="add --protocol whole",
        )
    if (trained := _training_split(job.name, corpus)) is not None:
        say(
            f"{job.name} was trained on split {trained}: recalls on {corpus.split} do not show how it does on other "
            "images"
        )
    return corpus, protocol


def _training_split(ref: str, corpus: Corpus) -> str | None:
    """The split that a run was trained on, if it shares images with this one."""
    inputs = vectors.facts_of(ref, "inputs")
    split = inputs.get("split", "")
    try:
        is_same = share_split(corpus.split, split) and Corpus.open(
            corpus.folder, split, inputs.get("images")
        ).fingerprint == inputs.get("corpus")
    except CorpusError:  # another data set, whose splits have the same names
        return None
    return split if is_same else None
