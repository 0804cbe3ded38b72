"""Evaluations: how a model retrieves on a corpus, as numbers, as a document, and as the table of ranks that models are compared by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcdctl.core import files, models
from dcdctl.core.config import apply_sets
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.evaluation import eccv, rankers, ranks, recall, result
from dcdctl.core.evaluation.files import check_copy, file_names, result_folder, write_evaluation, write_ranks
from dcdctl.core.evaluation.protocols import Fold, Protocol, SplitChoice, folds_of, open_split
from dcdctl.core.evaluation.rankers import EvalOptions, Tell, Work
from dcdctl.core.evaluation.ranks import Rankings, RankTable
from dcdctl.core.evaluation.result import Evaluation, Kind
from dcdctl.core.models import FusionScorer, Model
from dcdctl.core.progress import Track, silent

DEFAULT = EvalOptions()


def load_models(
    ref: str, rerank: str | None = None, model_sets: Sequence[str] = (), track: Track = silent
) -> tuple[Model, FusionScorer | None]:
    """The model to evaluate, with settings such as "image_size=384", and the fusion scorer that re-ranks, if there is one."""
    scorer = _load(models.load, ref, apply_sets({}, model_sets), track)
    return scorer, None if rerank is None else _load(models.load_fusion, rerank, {}, track)


def evaluate_model(
    model: Model,
    corpus: Corpus,
    *,
    rerank: FusionScorer | None = None,
    options: EvalOptions = DEFAULT,
    track: Track = silent,
    tell: Tell | None = None,
) -> Evaluation:
    """Rank every caption for every image and every image for every caption; with `rerank`, the first of each anew.

    `tell` hears how many pairs there are and how long they will take, by a short trial, before a fusion scorer scores them.
    """
    started = time.perf_counter()
    work = Work(corpus, options, folds_of(corpus, options.protocol), track, tell)
    if options.compute.features is not None and model.kind == "dual" and model.encoders is None and rerank is None:
        raise ModelError("a dual encoder's features are its vectors, which are computed once in any case", hint="leave --features out")
    kind: Kind
    if model.kind == "fusion":
        if rerank is not None:
            raise ModelError("only a dual encoder's results can be re-ranked, and the model is a fusion scorer")
        kind, found = "fusion", rankers.fusion(model, work)
    elif rerank is None:
        kind, found = "dual", rankers.dual(model, work)
    else:
        kind, found = "cascade", rankers.cascaded(model, rerank, work)
    rankings = _joined(found.folds, work.folds)
    text_retrieval, image_retrieval = recall.mean_measures(found.folds)
    return Evaluation(
        text_retrieval=text_retrieval,
        image_retrieval=image_retrieval,
        rankings=rankings,
        table=RankTable(tuple(corpus.image_ids), corpus.caption_ids, corpus.caption_image, rankings.text.ranks, rankings.image.ranks),
        kind=kind,
        protocol=options.protocol,
        depth=options.depths[-1] if kind == "cascade" else None,
        depths=found.depths,
        features=None if options.compute.features is None else "float16",
        pairs_scored=found.num_pairs,
        seconds=time.perf_counter() - started,
        fingerprint=corpus.fingerprint,
        data=str(corpus.folder),
    )


def _joined(found: list[Rankings], folds: list[Fold]) -> Rankings:
    """Of all folds, by indices of the corpus: text retrieval's candidates are captions, image retrieval's are images."""
    text = ranks.joined([one.text for one in found], [fold.texts.start for fold in folds])
    return Rankings(text, ranks.joined([one.image for one in found], [fold.images.start for fold in folds]))


def _load(load: Callable[[str, dict[str, Any], Track], Any], ref: str, overrides: dict[str, Any], track: Track) -> Any:
    """A model; where there is none, the ModelError says how a run is made."""
    try:
        return load(ref, overrides, track)
    except ModelError as error:
        if Path(ref).exists():
            raise
        raise ModelError(error.args[0], hint=f"make a run with `dcdctl distill`; {error.hint}".removesuffix("; ")) from error


@dataclass(frozen=True, kw_only=True)
class EvalJob:
    """What is evaluated."""

    model: str
    choice: SplitChoice
    rerank: str | None = None
    """Fusion scorer of a cascade."""
    depth: str | None = None
    """Depth of the cascade, or several: "0,5,10"; None for that of the options."""
    model_sets: tuple[str, ...] = ()
    """Settings of the model, such as "image_size=384"."""
    with_eccv: bool = False
    """Measure by ECCV Caption and CrissCrossed Captions too."""


@dataclass(frozen=True)
class Outcome:
    document: dict[str, Any]
    folder: Path | None
    """Where the results are."""


def run_evaluation(
    job: EvalJob,
    options: EvalOptions,
    *,
    out: Path | None = None,
    ranks: Path | None = None,
    track: Track = silent,
    tell: Tell | None = None,
) -> Outcome:
    """Evaluate and write: into `out`, else into the model's run, if it is one; `ranks` is a file of one more copy of the ranks.

    StaleError while another evaluation writes into the same folder.
    """
    folder, options = result_folder(job.model, out), _with_depths(options, job)
    if ranks is not None:
        check_copy(ranks, folder, file_names(is_cascade=job.rerank is not None))
    with _claimed(folder):
        corpus, how = open_split(job.choice)
        judge = _judge(corpus, how) if job.with_eccv else None
        num_top = options.num_top if judge is None else max(options.num_top, judge.num_top)
        model, reranker = load_models(job.model, job.rerank, job.model_sets, track)
        options = replace(options, protocol=how, num_top=num_top)
        found = evaluate_model(model, corpus, rerank=reranker, options=options, track=track, tell=tell)
        document = result.evaluation_document(found, job.model, corpus.split)
        document |= {} if job.rerank is None else {"reranker": job.rerank}
        document |= {} if judge is None else judge.measure(found.rankings)
        if folder is not None:
            write_evaluation(folder, document, found, corpus)
        if ranks is not None:
            write_ranks(ranks, found, corpus)
    return Outcome(document, folder)


def _judge(corpus: Corpus, how: Protocol) -> eccv.Judge:
    if how.name != eccv.PROTOCOL:
        raise ConfigError(f"ECCV Caption is about {eccv.PROTOCOL}, and {corpus.folder} is evaluated by {how.name}", hint="leave --eccv out")
    return eccv.open_judge(corpus)


def _with_depths(options: EvalOptions, job: EvalJob) -> EvalOptions:
    """The options with the depths that a job names."""
    if job.depth is None:
        return options
    if job.rerank is None:
        raise ConfigError(f"--depth {job.depth} says how much is re-ranked, and nothing is", hint="add --rerank REF")
    try:
        return replace(options, depths=tuple(sorted({int(word) for word in job.depth.split(",")})))
    except ValueError as error:
        raise ConfigError(f"--depth {job.depth} is no number, and no list of them", hint="for example --depth 0,5,10,20") from error


def _claimed(folder: Path | None) -> AbstractContextManager[None]:
    return nullcontext() if folder is None else files.lock(folder.resolve())
