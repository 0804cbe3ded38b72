"""What a training reads, given in memory: in the place of `InputRefs`, which names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcdctl.core.data import Corpus
from dcdctl.core.models import FusionScorer, Model
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher import TeacherCache
from dcdctl.core.training import inputs


@dataclass(frozen=True)
class OpenInputs:
    """What a training reads, in memory: opened files, and loaded models."""

    corpus: Corpus
    caches: Sequence[TeacherCache]
    """Each of the corpus or of the pool."""
    teacher: FusionScorer | None
    """The model that a student starts from, if there is one."""
    dual_teachers: Sequence[Model] = ()
    """The models that score the batches, if no cache does."""
    validation_data: Sequence[Path] = ()
    pool: Corpus | None = None
    """A pool to learn from beside the captioned images of the corpus."""

    form = "corpus"
    max_images = None

    @property
    def places(self) -> list[str]:
        """The folder of the corpus."""
        return [str(self.corpus.folder)]

    @property
    def split(self) -> str:
        """The split of the corpus."""
        return self.corpus.split

    @property
    def teacher_kinds(self) -> list[inputs.NamedKind]:
        """All teacher models."""
        fusion: list[inputs.NamedKind] = [] if self.teacher is None else [("the teacher", "fusion")]
        return [*fusion, *((name, model.kind) for name, model in self.load_dual_teachers())]

    def options(self) -> list[str]:
        """The options of a command line that name the same; REF for a model without a name."""
        teachers = [*([] if self.teacher is None else ["REF"]), *("REF" for _ in self.dual_teachers)]
        pool = [] if self.pool is None else [("--pool", self.pool.folder)]
        named = [*(("--cache", cache.folder) for cache in self.caches), *(("--teacher", ref) for ref in teachers)]
        named += [("--validation-data", folder) for folder in self.validation_data]
        return inputs.flags(*inputs.corpus_flags([self.corpus.folder], self.corpus.split), *pool, *named)

    def open(self) -> tuple[list[Corpus], Sequence[TeacherCache]]:
        """The corpus, the pool and the caches, which are open."""
        return [self.corpus, *([] if self.pool is None else [self.pool])], self.caches

    def load_teacher(self, caches: Sequence[TeacherCache], track: Track = silent) -> FusionScorer | None:
        """The teacher, which is loaded."""
        return self.teacher

    def load_dual_teachers(self, *, with_vectors: bool = False) -> list[tuple[str, Model]]:
        """The dual teachers, which are loaded."""
        return [(f"dual teacher {number}", model) for number, model in enumerate(self.dual_teachers, start=1)]
