"""One `dcdctl eval`: from what is named to numbers and files."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcdctl.core import eccv, evaluation, evaluation_files, files
from dcdctl.core.corpus import Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import Track, silent
from dcdctl.core.protocol import Protocol, SplitChoice, open_split
from dcdctl.core.ranking import EvalOptions, Tell


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


def run(
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
    folder, options = evaluation_files.folder_of(job.model, out), _with_depths(options, job)
    if ranks is not None:
        evaluation_files.check_copy(ranks, folder, evaluation_files.names_of(is_cascade=job.rerank is not None))
    with _claimed(folder):
        corpus, how = open_split(job.choice)
        judge = _judge(corpus, how) if job.with_eccv else None
        num_top = options.num_top if judge is None else max(options.num_top, judge.num_top)
        model, reranker = evaluation.load_models(job.model, job.rerank, job.model_sets, track)
        options = replace(options, protocol=how, num_top=num_top)
        found = evaluation.evaluate(model, corpus, rerank=reranker, options=options, track=track, tell=tell)
        document = evaluation.to_document(found, job.model, corpus.split)
        document |= {} if job.rerank is None else {"reranker": job.rerank}
        document |= {} if judge is None else judge.measure(found.rankings)
        if folder is not None:
            evaluation_files.write(folder, document, found, corpus)
        if ranks is not None:
            evaluation_files.write_ranks(ranks, found, corpus)
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
