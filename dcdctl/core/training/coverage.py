"""How a training's batches and caches fit its recipe, measured before the first step.

Three questions: in what the candidates of a cache differ from the recipe's, how many queries have enough candidates
(`Coverage`), and how many different negatives a query meets in all its lists (`DifferentNegatives`). A cache with as
many candidates as are drawn shows a query the same few negatives in every list, however long the training is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from dcdctl.core import progress
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, Direction, counted_corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import START, CacheJob, CheckedCaptions, TeacherCache, fewest_pairs, most_per_query
from dcdctl.core.training.batches.lists import CandidateLists
from dcdctl.core.training.batches.step_pairs import Coverage, StepPairs
from dcdctl.core.training.recipe import Recipe

MAX_QUERIES = 32
"""Images, and captions, whose negatives are counted."""
MAX_LISTS = 10_000
"""Fewer queries are counted if they have more lists than this in all: it takes half a second."""
MAX_DRAWN = 1_000_000
"""And fewer lists if they have more negatives than this in all, which are in memory together."""
NEARLY_ALL = 0.8
"""A list that draws at least this share of a query's candidates leaves little for the next one."""
DualTeachers = Literal["none", "embedded", "unread"]
"""Whether dual teachers score the batches without a cache, and whether their vectors of the corpus are there."""
FRESH = 10
"""Cached candidates per drawn one that a warning suggests; the recipes of the paper's data sets have as many."""


@dataclass(frozen=True, kw_only=True)
class DifferentNegatives:
    """How many different negatives the images, or the captions, of a corpus meet in a training: means over a sample of
    them."""

    queries: int
    """How many were counted."""
    lists: float
    """Lists of a query in all steps."""
    candidates: float
    """What the negatives of a list are drawn from."""
    drawn: int
    kept: int
    """Negatives of a list that the loss sees."""
    different: float
    """Different ones over all lists of a query."""

    @property
    def is_drained(self) -> bool:
        """Whether every list of a query draws all or nearly all of its candidates, and thus has the same negatives."""
        return self.lists >= 2 and self.drawn >= NEARLY_ALL * self.candidates

    def __str__(self) -> str:
        drawn = f"{self.drawn} of {shown(self.candidates)} candidates drawn, {self.kept} kept"
        return f"{shown(self.different)} different negatives in {shown(self.lists)} lists ({drawn})"


def count_different_negatives(lists: CandidateLists, num_steps: int) -> dict[Direction, DifferentNegatives]:
    """What each direction of the recipe shows a query in a training of `num_steps`."""
    # The key 2 separates the choice of queries from the draws of the batches, whose keys are 0 and 1.
    rng = np.random.default_rng([lists.seed, 2])
    config, counted = lists.config, {}
    max_lists = max(1, min(MAX_LISTS, MAX_DRAWN // config.random_negatives))
    for direction in config.directions:
        queries = lists.queries(direction)
        lists_per_query = num_steps * config.size / len(config.directions) / len(queries)
        num_queries = min(MAX_QUERIES, len(queries), max(1, int(max_lists / lists_per_query)))
        # Of more lists than may be counted, one query has the first ones.
        is_cut = lists_per_query > max_lists
        num_lists = max_lists * len(config.directions) * len(queries) if is_cut else num_steps * config.size
        queries = rng.choice(queries, num_queries, replace=False)
        samples = lists.samples_of(direction, queries, num_lists)
        pairs, kept = np.empty((0, 2), dtype=np.int64), config.random_negatives
        if len(samples):
            image_BN, text_BN, *_ = lists.kept(samples.tolist())
            kept = image_BN.shape[1] - 1
            pairs = np.stack([image_BN[:, 1:].ravel(), text_BN[:, 1:].ravel()], axis=1)
        counted[direction] = DifferentNegatives(
            queries=num_queries,
            lists=round(lists_per_query if is_cut else len(samples) / num_queries, 2),
            candidates=round(float(np.mean([lists.num_candidates(direction, int(query)) for query in queries])), 2),
            drawn=config.random_negatives,
            kept=kept,
            # A pair names its query and its negative.
            different=round(len(np.unique(pairs, axis=0)) / num_queries, 2),
        )
    return counted


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a training would do: its steps, and how its batches and caches fit its recipe."""

    recipe: Recipe
    batches_per_epoch: float | None
    """None for tars, whose samples are not known before they are read."""
    temperature: float | None = None
    """What `loss.temperature` auto stands for; None if the recipe has a number."""
    differences: Sequence[str] = ()
    """A line for each field in which the candidates of a cache differ from the recipe's."""
    has_cache: bool = False
    """Whether lists are drawn from the candidates of a cache."""
    coverage: Coverage | None = None
    """None without a cache, and for a loss without a teacher."""
    checked: CheckedCaptions | None = None
    """Which captions count, if scores tell."""
    dual_teachers: DualTeachers = "none"
    negatives: Mapping[Direction, DifferentNegatives] = field(default_factory=dict)
    """Empty where they are not counted."""
    adapted: Mapping[str, int] = field(default_factory=dict)
    """Recipe fields that are other than in the recipe, because the data have no more."""
    rounds: int = 1
    """Trainings such as this one, each on more scores (`rounds.train_in_rounds`)."""
    most_pairs: int | None = None
    """Pairs that the teacher scores in all rounds, at most; None without rounds."""
    pool_images: int = 0
    """Images of a pool that a step has beside those of the batch."""
    notes: Sequence[str] = ()
    """What the captions lack, and which weights are trained that need not be."""
    seconds: float | None = None
    """About how long the steps take, by a trial of a few images; None if it was not measured."""
    made_by: str = ""
    """The command that makes the corpus, if it is not there and only its counts are known."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        config = self.recipe.optimizer
        # Rounded down, as in the released code.
        return max(1, int(config.epochs * (self.batches_per_epoch or 0))) if config.steps is None else config.steps

    @property
    def work_per_step(self) -> tuple[str, int]:
        """What a step computes, and how many: pairs for a fusion model, texts for a query encoder, images for the
        others."""
        # These encode each image once, while a fusion model takes a forward pass per pair.
        recipe, config = self.recipe, self.recipe.batch
        if recipe.model.work_unit != "pairs":
            return recipe.model.work_unit, config.size + self.pool_images
        has_scores = self.has_cache or self.dual_teachers != "none"
        num_negatives = config.hard_negatives if has_scores else config.random_negatives
        return "pairs", config.size * (1 + num_negatives if recipe.loss.on_lists else config.size)

    def adaptations(self) -> Iterator[str]:
        """What the training has in place of the recipe's, if the data have no more."""
        if self.adapted:
            fields = ", ".join(f"{name} {value}" for name, value in self.adapted.items())
            rate = self.recipe.optimizer.lr
            yield f"adapted to the data, which have no more: {fields}; optimizer.lr is left at {rate:g}"

    def lines(self) -> Iterator[str]:
        """How the caches differ from the recipe, what they cover, and what the queries meet."""
        yield from self.notes
        yield from self.differences
        if self.most_pairs is not None:
            asked = f"the teacher scores {self.most_pairs:,} pairs at most"
            yield f"{progress.counted(self.rounds, 'rounds')}, each with a training such as this; {asked}"
        if self.coverage is not None:
            yield f"the cache covers {self.coverage}"
        if self.checked is not None:
            yield str(self.checked)
        if self.dual_teachers != "none":
            yield "the dual teacher scores every pair, so batches are drawn as without a teacher"
        if self.negatives:
            yield "; ".join(f"each {direction.query} meets {count}" for direction, count in self.negatives.items())

    def warnings(self) -> Iterator[str]:
        """A line if the corpus is only counted, and for each direction in which the cache is drawn empty, with the way
        out: more candidates."""
        if self.made_by:
            yield f"only counted, with every caption covered; `{self.made_by}` makes the corpus"
        for direction, count in self.negatives.items():
            if self.has_cache and count.is_drained:
                way = f"--set candidates.per_query={FRESH * count.drawn}"
                if self.recipe.candidates.kind == "blocks":
                    way = "by a larger candidates.block_size"
                yield (
                    f"warning: {count.drawn} of the {shown(count.candidates)} cached candidates of each "
                    f"{direction.query} are drawn for every list, so all {shown(count.lists)} lists have nearly the "
                    f"same negatives; cache {FRESH} for each drawn one, {way}"
                )

    def inputs(self) -> dict[str, Any]:
        """What a resumed run must find again, for run.json."""
        table: dict[str, Any] = {"different_candidates": list(self.differences)} if self.differences else {}
        if self.coverage is not None:
            table |= {
                "covered_queries": round(self.coverage.queries, 4),
                "scored_share": round(self.coverage.scored, 4),
            }
        if self.dual_teachers != "none":
            table |= {"covered_queries": 1.0, "scored_share": 1.0}
        return table

    def measured(self) -> dict[str, Any]:
        """The adapted fields, the counts of different negatives and which captions count, for run.json; not compared
        when a run resumes."""
        counts = {f"per_{direction.query}": asdict(count) for direction, count in self.negatives.items()}
        checked = {} if self.checked is None else self.checked.to_json()
        more = {"adapted": dict(self.adapted), "different_negatives": counts, "captions": checked}
        return {name: value for name, value in more.items() if value}

    def to_json(self) -> dict[str, Any]:
        """All facts by the names of run.json, and the warnings."""
        batches, config = self.batches_per_epoch, self.recipe.batch
        unit, per_step = self.work_per_step
        return {
            "steps": self.num_steps,
            "batches_per_epoch": batches,
            "epochs": None if batches is None else self.num_steps / batches,
            "batch_size": config.size,
            f"{unit}_per_step": per_step,
            "temperature": self.temperature,
            **({} if self.seconds is None else {"seconds": round(self.seconds, 1)}),
            **({} if self.most_pairs is None else {"rounds": self.rounds, "most_pairs": self.most_pairs}),
            **self.inputs(),
            **self.measured(),
            **({"notes": list(self.notes)} if self.notes else {}),
            "warnings": list(self.warnings()),
        }

    def facts(self) -> Iterator[str]:
        """What a dry run shows beside `lines` and the time: name and value of each fact."""
        yield from self.adaptations()
        for name, value in self.to_json().items():
            if isinstance(value, float | int) and name != "seconds":
                yield f"{name.replace('_', ' ')}: {value:,g}"


def measure_preview(
    recipe: Recipe,
    caches: Sequence[TeacherCache],
    pairs: StepPairs,
    *,
    dual_teachers: DualTeachers = "none",
    temperature: float | None = None,
) -> Preview:
    """What a training does on pairs that were chosen from these caches. Nothing is encoded."""
    counted = Preview(recipe=recipe, batches_per_epoch=pairs.batches_per_epoch)
    negatives: Mapping[Direction, DifferentNegatives] = {}
    # Grouping the images of all epochs of all pairs takes as long as the batches of the whole training take. A dual
    # teacher chooses among lists, and miners find negatives, when the training starts.
    if isinstance(pairs, CandidateLists) and recipe.batch.negatives != "mined" and dual_teachers != "unread":
        negatives = count_different_negatives(pairs, counted.num_steps)
    return replace(
        counted,
        temperature=temperature,
        differences=different_candidates(recipe, caches),
        has_cache=bool(caches),
        coverage=pairs.coverage(counted.num_steps) if caches and recipe.loss.needs_teacher else None,
        dual_teachers=dual_teachers,
        negatives=negatives,
    )


def different_candidates(recipe: Recipe, caches: Sequence[TeacherCache]) -> list[str]:
    """A line for each field in which the candidates of a cache differ from the recipe's. Not an error: scores of other
    candidates are correct too."""
    differences = []
    for number, cache in enumerate(caches, start=1):
        where = f"cache {number}" if len(caches) > 1 else "the cache"
        for name, expected in to_table(recipe.candidates).items():
            in_recipe, in_cache = json.dumps(expected), json.dumps(cache.plan["candidates"][name])
            # Any model may be what the student, or its start, came to be.
            if in_recipe != in_cache and not (name == "model" and expected == START):
                differences.append(f"candidates.{name} is {in_recipe} in the recipe and {in_cache} in {where}")
    return differences


def check_candidates_suffice(
    recipe: Recipe, corpus: Corpus, max_pairs: int | None = None, budget: str = "--max-pairs"
) -> None:
    """ConfigError if a training would refuse a cache of the recipe's own candidates, as far as counts tell: before a
    teacher scores them. `max_pairs` are those of the option or field `budget`."""
    config, needs_scores = recipe.candidates, recipe.loss.needs_teacher
    more = "set candidates.per_query" if max_pairs is None else f"set {budget}"
    fewest = fewest_pairs(corpus, config)
    # How many pairs a block of captioned images has depends on their captions.
    if config.kind == "blocks" and corpus.is_pool and max_pairs is not None and max_pairs < fewest:
        raise ConfigError(
            f"{budget} leaves {max_pairs:,} pairs for the first blocks, and each has {fewest:,}",
            hint=f"set {budget} higher, or candidates.block_size lower",
        )
    most = {each: most_per_query(corpus, config, each, max_pairs) for each in Direction}
    if recipe.loss.on_lists and needs_scores:
        count = recipe.batch.random_negatives
        # Of a small corpus, lists are as long as its candidates (`adapted`).
        needed = count + 1 if corpus.is_pool else count if count < corpus.num_images else 1
        for direction in recipe.batch.directions:
            if most[direction] < needed:
                raise ConfigError(
                    f"batch.random_negatives is {count}, and the candidates are {most[direction]} at most for each "
                    f"{direction.query}",
                    hint=f"{more} higher, or batch.random_negatives lower, and name the same directions in both tables",
                )
    if recipe.loss.temperature == "auto" and max(most.values()) < 1 + corpus.is_pool:
        raise ConfigError(
            "loss.temperature is auto, which is taken from queries with two scores, and no query has two",
            hint=f"set a number, or {more} higher",
        )


def check_cache_job(job: CacheJob, recipe: Recipe) -> None:
    """Raise what `check_candidates_suffice` raises for a cache; what it extends may have more candidates."""
    if job.extend is None:
        corpus = counted_corpus(job.data, job.split, job.max_images) or job.open_corpus()
        check_candidates_suffice(recipe, corpus, job.max_pairs)


def shown(number: float) -> str:
    """A number with one decimal, if it has decimals.

    >>> shown(50.0), shown(96.64), shown(1234)
    ('50', '96.6', '1,234')
    """
    return f"{number:,.1f}".removesuffix(".0")
