"""How a model was trained, and how good and fast it is, by the files of its run and by evaluations that the user
names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dcdctl.core.bench import QueryTimes, read_times
from dcdctl.core.config import flatten
from dcdctl.core.data import CORPUS_FILE, Corpus, CorpusDocument, read_corpus_json
from dcdctl.core.errors import ConfigError, DcdError
from dcdctl.core.evaluation import Evaluation, SavedEvaluation
from dcdctl.core.training import Run


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """What the files of a run say; `ref` is what the user exports."""

    ref: str
    facts: dict[str, Any] | None = None
    """run.json."""
    result: Evaluation | None = None
    evaluations: tuple[Evaluation, ...] = ()
    """Evaluations of the model or its start, in folders that the user names."""
    times: QueryTimes | None = None
    data: tuple[Path, ...] = ()
    """Folders where its corpora may be."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Every field of the recipe by its dotted name."""
        return flatten(self.facts["recipe"]) if self.facts is not None else {}

    @property
    def start(self) -> str | None:
        """The reference of the dual encoder that it started from; None for a model without one."""
        start = self.recipe.get("model.start", "new")
        # `teacher` copies a fusion scorer, which has no recalls of a dual encoder to compare with.
        return None if start in ("new", "teacher") else str(start)

    def corpus(self, split: str, fingerprint: str) -> CorpusDocument | None:
        """corpus.json of a corpus; None if no folder holds the same."""
        for folder in self.data:
            document = read_corpus_json(folder)
            # A corpus that was moved or changed is as good as none: the card then gives its fingerprint.
            with suppress(DcdError):
                if Corpus.open(folder, split).fingerprint == fingerprint:
                    return document
        return None

    def corpus_name(self, split: str, fingerprint: str) -> str:
        """The name of a corpus, or its fingerprint if no folder holds it, nor for the first images of a split."""
        corpus = self.corpus(split, fingerprint)
        return f"a corpus with the fingerprint {fingerprint[:12]}" if corpus is None else corpus.name

    def measured_on(self, result: Evaluation) -> str:
        """The corpus and protocol of an evaluation, in words."""
        corpus = self.corpus_name(result.split, result.corpus_fingerprint)
        protocol = "" if result.protocol.name == "whole" else f", protocol {result.protocol.name}"
        return f"{corpus}, split {result.split}: {result.images:,} images, {result.captions:,} captions{protocol}"


def read_history(ref: str, data: Path | None = None, evaluations: Sequence[Path] = ()) -> RunHistory:
    """The history in a run folder, empty for a model that is no run; `evaluations` are folders of `dcdctl eval --out`.

    ConfigError for an evaluation of neither the model nor its start.
    """
    folder = Path(ref)
    facts = Run(folder).facts() if (folder / "run.json").exists() else None
    saved, times = SavedEvaluation.find(folder), read_times(folder / "bench.json", "student")
    result = None if saved is None else saved.evaluation
    history = RunHistory(ref=ref, facts=facts, result=result, times=times)
    if evaluations and history.start is None:
        raise ConfigError(
            f"--evaluation is for a run that started from a dual encoder, and {ref} is none", hint="leave it out"
        )
    others = [_read_evaluation(path, history) for path in evaluations]
    # The user's folder first; the folders that files name may be gone, or of another machine.
    named = [
        data,
        *(Path(each.data) for each in (result, *others) if each is not None and each.data),
        *option_values(facts, "--data"),
    ]
    corpora = dict.fromkeys(path for path in named if path is not None and (path / CORPUS_FILE).exists())
    return replace(history, evaluations=tuple(others), data=tuple(corpora))


def _read_evaluation(path: Path, history: RunHistory) -> Evaluation:
    summary = SavedEvaluation.load(path).evaluation
    known = [history.ref] + ([] if history.start is None else [history.start])
    if not any(is_same_model(summary.model, ref) for ref in known):
        raise ConfigError(
            f"--evaluation {path} is of {summary.model}, expected an evaluation of {' or '.join(known)}",
            hint="leave it out",
        )
    return summary


def is_same_model(ref: str, other: str) -> bool:
    """Whether two references are equal, or name the same folder; a run is its model folder."""
    if ref == other:
        return True
    folders = [
        path / "model" if (path / "run.json").exists() else path for path in (Path(ref), Path(other)) if path.exists()
    ]
    # Resolved, because a folder may be named relatively, absolutely or by a link.
    return len(folders) == 2 and folders[0].resolve() == folders[1].resolve()


def public(word: str) -> str:
    """A word of a command line or a recipe without the folders of this machine.

    >>> public("/home/me/runs/dual"), public("model.vision=/data/vision"), public("data/scenes"), public("kl=0.5")
    ('dual', 'model.vision=vision', 'data/scenes', 'kl=0.5')
    """
    # Relative folders stay: they say nothing of the machine, and the command needs them.
    return re.sub(r"(^|=)[/~](?:[^/]*/)*(?=[^/])", r"\1", word)


def option_values(facts: dict[str, Any] | None, option: str) -> list[Path]:
    """The values of an option on a run's command line."""
    command = [] if facts is None else list(facts["command"])
    return [Path(value) for word, value in pairwise(command) if word == option]
