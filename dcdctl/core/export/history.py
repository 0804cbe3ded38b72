"""How a model was trained, and how good and fast it is, by the files of its run."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dcdctl.core.artifacts import Document
from dcdctl.core.bench import QueryTimes, read_times
from dcdctl.core.config import flatten
from dcdctl.core.data import CORPUS_FILE, Corpus, CorpusDocument, read_corpus_json
from dcdctl.core.errors import DcdError
from dcdctl.core.evaluation import Evaluation, SavedEvaluation
from dcdctl.core.training import Run


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """What the files of a run say; `ref` is what the user exports."""

    ref: str
    facts: Document | None = None
    """run.json."""
    result: Evaluation | None = None
    times: QueryTimes | None = None
    data: tuple[Path, ...] = ()
    """Folders where its corpora may be."""

    @property
    def recipe(self) -> Document:
        """Every field of the recipe by its dotted name."""
        return flatten(self.facts["recipe"]) if self.facts is not None else {}

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


def read_history(ref: str, data: Path | None = None) -> RunHistory:
    """The history in a run folder, empty for a model that is no run."""
    folder = Path(ref)
    facts = Run(folder).facts() if (folder / "run.json").exists() else None
    saved, times = SavedEvaluation.find(folder), read_times(folder / "bench.json", "student")
    result = None if saved is None else saved.evaluation
    # The user's folder first; the folders that files name may be gone, or of another machine.
    evaluated_on = Path(result.data) if result is not None and result.data else None
    named = [data, evaluated_on, *option_values(facts, "--data")]
    corpora = dict.fromkeys(path for path in named if path is not None and (path / CORPUS_FILE).exists())
    return RunHistory(ref=ref, facts=facts, result=result, times=times, data=tuple(corpora))


def public(word: str) -> str:
    """A word of a command line or a recipe without the folders of this machine.

    >>> public("/home/me/runs/dual"), public("model.vision=/data/vision"), public("data/scenes"), public("kl=0.5")
    ('dual', 'model.vision=vision', 'data/scenes', 'kl=0.5')
    """
    # Relative folders stay: they say nothing of the machine, and the command needs them.
    return re.sub(r"(^|=)[/~](?:[^/]*/)*(?=[^/])", r"\1", word)


def option_values(facts: Document | None, option: str) -> list[Path]:
    """The values of an option on a run's command line."""
    command = [] if facts is None else list(facts["command"])
    return [Path(value) for word, value in pairwise(command) if word == option]
