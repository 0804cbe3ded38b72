"""Teachers that a model's order is compared with, and what each costs.

- dual encoder, late-interaction model: it encodes the split once, and all candidates of every query are compared.
- teacher cache: the pairs that it has scores of; no model is loaded. The order of a cross-encoder is that of its cache,
  so that all models are compared on the same candidates.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from dcdctl.core import artifacts, models
from dcdctl.core.data import Corpus, Direction, RaggedArray
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ModelError, StaleError
from dcdctl.core.evaluation import agreement, rankers
from dcdctl.core.evaluation.agreement import Agreements, Lookup
from dcdctl.core.evaluation.rankers import RankingTask
from dcdctl.core.models import Model
from dcdctl.core.places import shown
from dcdctl.core.progress import Track
from dcdctl.core.teacher import TeacherScores, command_to_compare, embed_corpus, read_cache


def is_cache(ref: str) -> bool:
    """Whether a teacher is named by the folder of its cache."""
    return artifacts.kind_of_folder(Path(ref)) == "a teacher cache"


def check_teacher(ref: str, data: Path, split: str) -> None:
    """An error for a reference that names no teacher, before anything is opened."""
    if is_cache(ref):
        read_cache(Path(ref))
    elif models.check_ref(ref) == "fusion":
        raise _no_order(ref, data, split)


def open_teacher(ref: str, corpus: Corpus, compute: Compute, track: Track) -> tuple[TeacherScores, str]:
    """The scores and the fingerprint of the teacher that a reference names: a model that embeds the corpus, or a
    teacher cache of it. StaleError for a cache of another corpus, ModelError for a cross-encoder."""
    if is_cache(ref):
        cache = read_cache(Path(ref))
        if cache.plan["corpus"] != corpus.fingerprint:
            raise StaleError(
                f"{ref} has the scores of other images or texts than {shown(corpus.folder)} ({corpus.split})",
                hint=f"make a cache of them: `{command_to_compare(corpus.folder, corpus.split, 'TEACHER', 'CACHE')}`",
            )
        return cache, str(cache.plan["teacher"])
    model = models.load(ref, track=track)
    if model.kind == "fusion":
        raise _no_order(ref, corpus.folder, corpus.split)
    embedded = embed_corpus([(ref, model)], corpus, compute, track=track)
    return embedded, model.digest


def agreement_of(model: Model, teacher: TeacherScores, task: RankingTask) -> Agreements:
    """The agreement of a model with a teacher on a corpus, which may be a pool."""
    return compare_with(teacher, rankers.order_of(model, task), task.corpus)


def compare_with(teacher: TeacherScores, ours: Lookup, corpus: Corpus) -> Agreements:
    """The agreement of a model's scores with a teacher's."""
    lists, pairs_fingerprint = {}, None
    if teacher.scored_pairs is not None:
        # The candidates of every query; scored pairs are sorted by image.
        image_P, text_P = teacher.scored_pairs
        by_text = np.argsort(text_P, kind="stable")
        lists = {
            Direction.TEXT: RaggedArray.from_sorted(image_P, text_P.astype(np.int64), corpus.num_images),
            Direction.IMAGE: RaggedArray.from_sorted(text_P[by_text], image_P[by_text], corpus.num_captions),
        }
        numbers_P2 = np.column_stack([image_P, text_P]).astype("<i8")
        pairs_fingerprint = hashlib.sha256(numbers_P2.tobytes()).hexdigest()
    return agreement.agree(ours, teacher.lookup, corpus, lists, pairs_fingerprint)


def _no_order(ref: str, data: Path, split: str) -> ModelError:
    return ModelError(
        f"{ref} is a cross-encoder, which scores the candidates of a cache",
        hint=f"make one, `{command_to_compare(data, split, ref, 'CACHE')}`, and name it: --against CACHE",
    )
