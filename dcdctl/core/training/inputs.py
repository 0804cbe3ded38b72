"""What a training reads: a corpus, the caches of its teachers' scores, and the teachers themselves, by name.

A teacher model is one of two things. Dual encoders, or one late-interaction model, score the batches of a loss that
needs scores, where no cache does.
Otherwise the only one is the fusion scorer that the student starts from.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dcdctl.core import artifacts, models
from dcdctl.core.data import Corpus, is_stream, read_corpus_json, split_to_measure
from dcdctl.core.errors import ConfigError, ModelError, StaleError
from dcdctl.core.models import Scorer, Searchable
from dcdctl.core.places import shown
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher import OF_ANOTHER, TeacherCache, command_to_compare, read_cache
from dcdctl.core.training.negatives import check_margin
from dcdctl.core.training.recipe import Recipe

PROPOSALS = (
    "let the student propose what the teacher scores (--set candidates.kind=embedding --set candidates.model=start, "
    "on a pool also --set pool.rounds=2)"
)
"""What a teacher is asked for that cannot score every pair and has no cache."""
NamedKind = tuple[str, Literal["fusion", "dual", "late", "query"] | None]
"""The name of a teacher model and its kind; None for a Hub id, whose kind is not known before it is loaded."""


@dataclass(frozen=True, kw_only=True)
class InputRefs:
    """What a training reads, by name; ModelError if a teacher names no model, ConfigError for wrong model settings."""

    data: Path | Sequence[str] = ()
    """The folder of a prepared corpus, or its URL; or shards to stream: tars and Parquet files, as names, patterns and
    URLs; or nothing, where `caches` names a text cache."""
    split: str = "train"
    max_images: int | None = None
    pool: Path | None = None
    """A pool to learn from beside the captioned images of `data`: the folder of a corpus with a split `pool`, or whose
    split train is one."""
    caches: Sequence[Path] = ()
    """Each belongs to `data`, to `pool` or to a validation corpus, by the fingerprint in it."""
    teachers: Sequence[str] = ()
    model_set: Sequence[str] = ()
    """Settings that the teachers' files lack: image_size=384."""
    validation_data: Sequence[Path] = ()
    """The corpora to validate on, in place of that of `data`: the first chooses the weights."""

    def __post_init__(self) -> None:
        if self.overrides and not self.teachers:
            raise ConfigError(
                "--model-set is for the model named by --teacher, and none is named", hint="name it with --teacher"
            )
        # Looked up here, so that a reference that names nothing is an error before a corpus is opened.
        _ = self.teacher_kinds

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings of `model_set`."""
        return models.parse_overrides(self.model_set)

    @cached_property
    def teacher_kinds(self) -> Sequence[NamedKind]:
        """Each teacher with its kind."""
        return [(ref, models.check_ref(ref, self.overrides)) for ref in self.teachers]

    @property
    def places(self) -> list[str]:
        """What `data` names."""
        return [str(self.data)] if isinstance(self.data, Path) else list(self.data)

    @property
    def form(self) -> Literal["corpus", "stream", "texts"]:
        """A prepared corpus, shards to stream, or texts alone, without images."""
        if not self.places:
            return "texts"
        return "stream" if is_stream(self.places) else "corpus"

    @property
    def pool_place(self) -> tuple[Path, str]:
        """The folder and the split of the pool; the data themselves without `pool`."""
        if self.pool is None:
            return Path(*self.places), self.split
        return self.pool, "pool" if "pool" in read_corpus_json(self.pool).splits else "train"

    @property
    def measured(self) -> tuple[Path, str] | None:
        """The folder and the split to evaluate on; None where no corpus is named."""
        if not self.validation_data and self.form != "corpus":
            return None
        folder = self.validation_data[0] if self.validation_data else Path(*self.places)
        return folder, split_to_measure(folder, "" if self.validation_data else self.split)

    @property
    def has_images_alone(self) -> bool:
        """Whether the corpus to evaluate on is a folder of images without texts."""
        if self.measured is None:
            return False
        folder, split = self.measured
        return not read_corpus_json(folder).splits[split].captions

    def evaluation_of(self, model: str, *more: str, cache: str) -> str:
        """The commands that evaluate a model on `measured`, joined as a shell takes them.

        A pool has no recalls, but an agreement: with a teacher that embeds, or with the scores of another one, which
        the first command writes to `cache`.
        """
        if self.measured is None:
            return shlex.join(["dcdctl", "eval", model, "--data", "CORPUS", *more])
        folder, split = self.measured
        words = ["dcdctl", "eval", model, "--data", shown(folder), *([] if split == "test" else ["--split", split])]
        if not read_corpus_json(folder).splits[split].is_pool:
            return shlex.join([*words, *more])
        kinds = {teacher: kind or models.kind_of(teacher) for teacher, kind in self.teacher_kinds}
        embeds = [teacher for teacher, kind in kinds.items() if kind not in ("fusion", "query")]
        if embeds:
            return shlex.join([*words, "--against", embeds[0], *more])
        scores = command_to_compare(folder, split, next(iter(kinds), "TEACHER"), cache)
        return f"{scores} &&\n{shlex.join([*words, '--against', cache, *more])}"

    def options(self) -> list[str]:
        """The options of a command line that name the same."""
        return flags(
            *corpus_flags(self.places, self.split),
            ("--pool", None if self.pool is None else shown(self.pool)),
            *(("--cache", cache) for cache in self.caches),
            *(("--teacher", ref) for ref in self.teachers),
            *(("--validation-data", shown(folder)) for folder in self.validation_data),
            ("--max-images", self.max_images),
            *(("--model-set", text) for text in self.model_set),
        )

    def open(self) -> tuple[list[Corpus], list[TeacherCache]]:
        """The corpus, then the pool if there is one; and the caches, whose scores are read later."""
        corpora = [Corpus.open(Path(*self.places), self.split, self.max_images)]
        corpora += [] if self.pool is None else [Corpus.open(*self.pool_place)]
        return corpora, [read_cache(cache) for cache in self.caches]

    def load_teacher(self, caches: Sequence[TeacherCache], track: Track = silent) -> Scorer | None:
        """Load the teacher's weights; StaleError if the cache, or each of several, was made with another teacher.

        For scores from elsewhere the user's word counts that they are this teacher's.
        """
        if not self.teachers:
            return None
        (ref,) = self.teachers
        model = models.load_scorer(ref, self.overrides, track)
        if len(caches) == 1:
            caches[0].check_teacher(model.digest)
        # An average also has scores of other teachers; one of the caches must be this teacher's.
        elif caches and not any(cache.teacher_name or model.digest == cache.plan["teacher"] for cache in caches):
            raise StaleError(
                f"none of the caches was made with the teacher {ref}", hint="name the teacher whose scores are cached"
            )
        return model

    def load_dual_teachers(self, *, with_vectors: bool) -> list[tuple[str, Searchable]]:
        """Load the weights of all teachers; ModelError if one is neither a dual encoder nor, unless `with_vectors`, a
        late-interaction model."""
        kind: Literal["dual", "searchable"] = "dual" if with_vectors else "searchable"
        return [(ref, models.load_searchable(ref, self.overrides, kind=kind)) for ref in self.teachers]


def caches_of(corpora: Sequence[Corpus], caches: Sequence[TeacherCache]) -> list[list[TeacherCache]]:
    """The caches of each corpus, by the fingerprint in them; StaleError for one of no corpus."""
    prints = [corpus.fingerprint for corpus in corpora]
    for cache in caches:
        if cache.plan["corpus"] not in prints:
            artifacts.expect(cache.folder, cache.plan, {"corpus": prints[0]}, hint=OF_ANOTHER)
    groups = []
    for fingerprint in prints:
        groups.append([cache for cache in caches if cache.plan["corpus"] == fingerprint])
    return groups


Flag = tuple[str, object]


def flags(*named: Flag) -> list[str]:
    """The words of these options of a command line, without those that are None."""
    return [word for name, value in named if value is not None for word in (name, str(value))]


def corpus_flags(places: Iterable[str | Path], split: str) -> list[Flag]:
    """The options that name data and split; the default of the commands is left out."""
    return [*(("--data", shown(place)) for place in places), ("--split", None if split == "train" else split)]


@dataclass(frozen=True)
class TeacherUse:
    """What a training asks of the teacher models that are named."""

    scores_batches: bool
    """They score the batches; otherwise caches do, or nothing does."""
    embeds: bool
    """They are dual encoders, or a late-interaction model, that embed the data: to score the batches, for a loss of
    their vectors, or as the images of a query encoder. Otherwise the student starts from the one that is named."""

    @classmethod
    def of(cls, recipe: Recipe, inputs: InputRefs) -> TeacherUse:
        """By the recipe and what is named."""
        has_models = bool(inputs.teacher_kinds)
        # A model that starts from its teacher has a fusion teacher, which takes a forward pass per pair: its scores
        # come from a cache only.
        is_asked = recipe.needs_scores and not inputs.caches and not recipe.model.starts_from_teacher
        scores_batches = has_models and is_asked
        model = recipe.model
        needs_vectors = bool(recipe.loss.vector_terms) or model.learns_teacher_space or model.has_teacher_texts
        return cls(scores_batches, embeds=scores_batches or (has_models and needs_vectors))


def check_teachers(recipe: Recipe, inputs: InputRefs, use: TeacherUse) -> None:
    """ConfigError or ModelError if the recipe's loss has no scores or has them twice, or if a teacher is of the wrong
    kind."""
    losses, num_models = ", ".join(recipe.loss.terms), len(inputs.teacher_kinds)
    duals = [name for name, kind in inputs.teacher_kinds if kind in ("dual", "late")]
    kinds = {kind for _, kind in inputs.teacher_kinds}
    if duals and recipe.model.starts_from_teacher:
        raise ModelError(
            f"this model starts from its teacher, and {duals[0]} has no fusion layers",
            hint="name a fusion scorer with --teacher and its cache with --cache, or set model.start",
        )
    is_query = recipe.model.learns_teacher_space
    if is_query and (num_models != 1 or "fusion" in kinds):
        found = num_models or "none"
        raise ConfigError(
            f"a query encoder speaks the space of one model, and --teacher names {found}",
            hint="name a dual encoder or a late-interaction model, which embeds the images",
        )
    has_texts = recipe.model.has_teacher_texts
    if has_texts and (num_models != 1 or kinds & {"fusion", "late"}):
        raise ConfigError(
            f"model.text is teacher, the text side of one dual encoder, and --teacher names {num_models or 'none'}"
            + (" of another kind" if num_models == 1 else ""),
            hint="name one dual encoder with --teacher",
        )
    if recipe.loss.vector_terms and not is_query and (num_models != 1 or kinds & {"fusion", "late"}):
        raise ConfigError(
            f"loss {', '.join(recipe.loss.vector_terms)} needs the vectors of one dual teacher",
            hint="name one dual encoder with --teacher",
        )
    if recipe.needs_scores and not inputs.caches:
        if not use.scores_batches or "fusion" in kinds:
            asks = f"loss {losses}" if recipe.loss.needs_teacher else "pool.pseudo_positive_above"
            way = (
                "name a cache with --cache, which `dcdctl cache-teacher` makes, or with --teacher a dual encoder or a "
                "late-interaction model, which needs no cache"
            )
            # A fusion student scores pairs, and proposes none.
            if "fusion" in kinds and recipe.model.embeds_sides:
                way = f"{PROPOSALS}, or {way}"
            raise ConfigError(f"{asks} needs the teacher's scores", hint=way)
        check_margin(recipe)
    elif recipe.loss.vector_terms or is_query or has_texts:
        return
    elif duals and inputs.caches:
        raise ConfigError(
            f"--cache and --teacher {duals[0]} both give scores",
            hint="leave one out; to average both, cache that teacher too and name both caches",
        )
    elif duals:
        problem = f"{duals[0]} has no fusion layers to start from, and loss {losses} learns from no teacher"
        raise ModelError(problem, hint="leave --teacher out, or name a loss that has a teacher, such as kl")
    elif num_models > 1:
        raise ConfigError(
            f"--teacher names {num_models} models, expected the one that the student starts from",
            hint="several teachers are several --cache, or dual encoders without a cache",
        )
