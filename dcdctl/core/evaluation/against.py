"""Teachers that a model's order is compared with, and what each costs.

- dual encoder, late-interaction model: it encodes the split once, and all candidates of every query are compared.
- teacher cache: the pairs that it has scores of; no model is loaded.
- fusion scorer: it scores a sample of the candidates of every query (`agreement.sampled_lists`), each pair once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dcdctl.core import artifacts, models
from dcdctl.core.data import Corpus, Index, Scores
from dcdctl.core.devices import Compute
from dcdctl.core.evaluation import agreement, rankers
from dcdctl.core.evaluation.agreement import Agreements, Lookup
from dcdctl.core.evaluation.rankers import RankingTask
from dcdctl.core.evaluation.ranks import checked_scores
from dcdctl.core.models import FusionScorer, Model
from dcdctl.core.progress import Track
from dcdctl.core.teacher import TeacherScores, embedded_teachers, read_cache


@dataclass(frozen=True, kw_only=True)
class Against:
    """A teacher of a corpus: its scores, or what computes them."""

    name: str
    fingerprint: str
    teacher: TeacherScores | FusionScorer


def is_cache(ref: str) -> bool:
    """Whether a teacher is named by the folder of its cache."""
    return artifacts.kind_of_folder(Path(ref)) == "a teacher cache"


def check_teacher(ref: str) -> None:
    """An error for a reference that names no teacher, before anything is opened."""
    if is_cache(ref):
        read_cache(Path(ref))
    else:
        models.check_ref(ref)


def open_teacher(ref: str, corpus: Corpus, compute: Compute, track: Track) -> Against:
    """The teacher that a reference names: a model that scores, or a teacher cache of the corpus. StaleError for a cache
    of another corpus."""
    if is_cache(ref):
        cache = read_cache(Path(ref), corpus=corpus)
        return Against(name=ref, fingerprint=cache.plan["teacher"], teacher=cache)
    model = models.load(ref, track=track)
    if model.kind == "fusion":
        return Against(name=ref, fingerprint=model.digest, teacher=model)
    embedded = embedded_teachers([(ref, model)], corpus, compute)
    embedded.embed(track)
    return Against(name=ref, fingerprint=model.digest, teacher=embedded)


def agreement_of(model: Model, teacher: TeacherScores | FusionScorer, task: RankingTask) -> Agreements:
    """The agreement of a model with a teacher on a corpus, which may be a pool."""
    return compare_with(teacher, rankers.order_of(model, task), task)


def compare_with(teacher: TeacherScores | FusionScorer, ours: Lookup, task: RankingTask) -> Agreements:
    """The agreement of a model's scores with a teacher's."""
    if not isinstance(teacher, TeacherScores):
        return _compare_sample(teacher, ours, task)
    pairs = teacher.scored_pairs
    lists = {} if pairs is None else agreement.scored_lists(*pairs, task.corpus)
    return agreement.agree(ours, teacher.lookup, task.corpus, "cached" if lists else "all", lists)


def _compare_sample(scorer: FusionScorer, ours: Lookup, task: RankingTask) -> Agreements:
    corpus, num_texts = task.corpus, task.corpus.num_captions
    lists = agreement.sampled_lists(ours, corpus)
    both = [direction.query_first(each.rows, each.values) for direction, each in lists.items()]
    # Once for both directions.
    key_P = np.unique(np.concatenate([images * num_texts + texts for images, texts in both]))
    # Features may be those of the model alone.
    compute = task.options.compute
    if scorer.encoders is None:
        compute = replace(compute, features=None)
    asked = replace(task, options=replace(task.options, compute=compute))
    opened = rankers.fold_scorers(scorer, asked)(task.folds[0])
    rankers.report_workload(asked, opened, len(key_P), corpus.num_images)
    with task.track("score with the teacher", total=len(key_P), unit="pairs") as advance:
        score_P = checked_scores(opened.score(*np.divmod(key_P, num_texts), advance))

    def teacher(image_ix: Index, text_ix: Index) -> Scores:
        return score_P[np.searchsorted(key_P, image_ix * num_texts + text_ix)]

    return agreement.agree(ours, teacher, corpus, "sampled", lists)
