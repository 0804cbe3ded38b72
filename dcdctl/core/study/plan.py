"""What a study does, from its request to its plan: the trainings, their fair baselines, and the settings that name it.

A fair baseline differs from distillation in the teacher alone. It has the same start, steps, images, optimizer and
seeds. A training on a pool has none, because nothing can be learned from a pool without a teacher.

- Losses on all pairs, with a cache: batches are neighborhoods of the cache. They need no score of the teacher, so the
  baseline has them too. But neighborhoods may suit the teacher's losses better than InfoNCE, and a user without a
  teacher has random batches. So a second baseline has those, and the verdict is against the better of the two.
- Losses on all pairs, with dual teachers: both trainings have the same random batches.
- Losses on lists: distillation keeps the negatives that the teacher scores highest. The baseline draws as many at
  random.

A recipe with `candidates.model` start has a student propose what a fusion teacher scores. For captioned images that is
the baseline without a cache, of the first seed; all trainings with a cache then share what it proposed. For a pool it
is the start, and each distillation has its own rounds.

The control is taught by itself: the same training with the fine-tuned model of its seed in place of the teacher
(born-again networks, Furlanello et al. 2018). It tells the knowledge of a teacher from the regularization by soft
targets, which every model can give. It is a baseline too, because it needs no teacher.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dcdctl.core import artifacts, files, models, training
from dcdctl.core.arguments import named, path
from dcdctl.core.artifacts import Document
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, share_split
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.report import DISTILLED
from dcdctl.core.study.job import StudyJob
from dcdctl.core.teacher import START, CacheJob
from dcdctl.core.toml import assignments
from dcdctl.core.training import InputRefs, Recipe, TrainingJob, TrainingOptions

FORMAT = 1
SETTINGS_FILE = "settings.json"
FINE_TUNED, RANDOM, ITSELF = "fine-tuned", "fine-tuned, random batches", "taught by itself"
"""The baselines."""
AGAINST = "against"
"""The folder of a fusion teacher's scores of a pool that is evaluated."""
PARTS = ("cache", AGAINST, "evaluations", "runs")
"""The folders of results."""
NEXT = "name another folder with --out"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train the start: a baseline, or the distillation."""

    name: str
    sets: tuple[str, ...]
    caches: tuple[Path, ...] = ()
    teachers: tuple[str, ...] = ()
    """Teachers that give scores or vectors without a cache."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A study whose settings are checked, with no weights opened yet."""

    job: StudyJob
    out: Path
    data: Path
    teacher: str
    training: TrainingOptions
    scoring: Compute
    """How the teacher scores its cache. Evaluations take its batch size, in float32."""
    recipe: Recipe
    """With the start; its seed is no run's."""
    arms: tuple[Arm, ...]
    """The baselines, then the distillation."""
    caches: Mapping[Path, str]
    """The teacher of each cache."""
    reranker: str | None
    """The teacher, if it is a fusion teacher, which re-ranks."""
    proposer: Path | None
    """The run that proposes what the teacher scores, where the recipe leaves that to a student of the captions."""
    in_rounds: bool
    """Whether the teacher scores in the rounds of each distillation what the recipe needs."""
    corpus: Corpus
    """The evaluated split."""
    is_by_agreement: bool
    """Whether that split is a pool, on which models are compared by their agreement with the teacher."""
    settings: Document

    @property
    def runs(self) -> list[tuple[Arm, int, Path]]:
        """Arm, seed and folder of each training, seed by seed, but first the one that proposes candidates."""
        runs = []
        for seed in self.job.seeds:
            runs += [(arm, seed, self.run_folder(arm.name, seed)) for arm in self.arms]
        return sorted(runs, key=lambda run: run[2] != self.proposer)

    def run_folder(self, name: str, seed: int) -> Path:
        return _run_folder(self.out, name, seed)

    def own_cache(self, seed: int) -> Path:
        """The folder of the scores of a fine-tuned model for the student that it teaches, as candidates of a fusion
        teacher have scores of a cache."""
        return self.out / f"cache-itself-seed{seed}"

    @property
    def against(self) -> str | None:
        """What the models of a pool are compared with: a dual teacher, or the cache of a fusion teacher."""
        if not self.is_by_agreement:
            return None
        return self.teacher if self.reranker is None else str(self.out / AGAINST)

    def inputs(self, arm: Arm, seed: int) -> InputRefs:
        """What a training reads. ModelError for the control of a dual teacher before its own teacher is trained."""
        model_set = assignments(self.job.model_overrides) if arm.teachers else ()
        caches, teachers = arm.caches, arm.teachers
        if arm.name == ITSELF and self.reranker is None:
            teachers = (str(self.run_folder(FINE_TUNED, seed)),)
        elif arm.name == ITSELF:
            caches = (self.own_cache(seed),)
        return InputRefs(
            data=self.data, split=self.job.train_split, caches=caches, teachers=teachers, model_set=model_set
        )

    def training_job(self, arm: Arm, seed: int) -> TrainingJob:
        """A training that resumes if it was interrupted."""
        folder = self.run_folder(arm.name, seed)
        return TrainingJob("distill", named(self.job.recipe), (*arm.sets, f"seed={seed}"), folder, resume=True)

    def cache_job(self, ref: str, folder: Path) -> CacheJob:
        """The scores of a teacher for the recipe's candidates."""
        is_against, candidates = folder.name == AGAINST, self.recipe.candidates
        if candidates.model == START:
            # The models of a pool are compared before any of them is trained.
            has_run = self.proposer is not None and not is_against
            candidates = candidates.proposed_by(str(self.proposer) if has_run else self.recipe.model.start)
        return CacheJob(
            teacher=ref,
            data=self.data,
            split=self.job.split if is_against else self.job.train_split,
            out=folder,
            candidates=candidates,
            model_set=assignments(self.job.model_overrides) if ref == self.teacher else (),
            compute=self.scoring,
        )


def resolve(job: StudyJob) -> StudyPlan:
    """The plan of a study. Reads the recipe, the corpus's index, and the checksums of local models; loads no
    weights."""
    out, data, teacher = path(job.out), path(job.data), os.fspath(job.teacher)
    options = job.options(batch_size=job.batch_size)
    # A precision that is not auto holds for the teacher's cache too; only trainings read stored features.
    scoring = replace(options.compute, features=None)
    recipe, sets = _recipe(job)
    overrides = models.parse_overrides(job.model_overrides)
    if len(set(job.seeds)) < len(job.seeds) or min(job.seeds) < 0:
        raise ConfigError(
            f"--seeds must be different numbers of at least 0, got {','.join(map(str, job.seeds))}",
            hint="such as 0,1,2",
        )
    if recipe.model.start != "new":
        models.check_ref(recipe.model.start, kind=recipe.model.start_kind)
    kind = models.check_ref(teacher, overrides) or models.kind_of(teacher) or "fusion"
    reranker = teacher if kind == "fusion" else None
    corpus, evaluated = Corpus.open(data, job.train_split), Corpus.open(data, job.split)
    trains_on_pool, is_by_agreement = corpus.is_pool, evaluated.is_pool
    if is_by_agreement and overrides and reranker is None:
        raise ConfigError(
            f"split {job.split} is a pool, on which models are compared by their agreement with the teacher, which is "
            "opened without --model-set",
            hint="leave --model-set out",
        )
    # The only baseline of a training on a pool is its start.
    if trains_on_pool and recipe.model.start == "new":
        raise ConfigError(
            f"recipe {job.recipe} starts from new weights, which have no zero-shot quality",
            hint="name a start with --start",
        )
    rounds = training.plan_rounds(asked_inputs(job), recipe)
    in_rounds = rounds is not None and trains_on_pool
    caches = {} if reranker is None or in_rounds else {out / "cache": reranker}
    arms = [] if trains_on_pool else list(_baselines(recipe, sets, tuple(caches)))
    proposer = None
    if rounds is not None and caches:
        (name,) = [arm.name for arm in arms if not arm.caches and arm.name != ITSELF]
        proposer = _run_folder(out, name, job.seeds[0])
    teachers = () if caches else (teacher,)
    arms.append(Arm(name=DISTILLED, sets=sets, caches=tuple(caches), teachers=teachers))
    if reranker is not None and is_by_agreement:
        if recipe.candidates.model == START and recipe.model.start == "new":
            raise ConfigError(
                f"candidates.model is start, which proposes what models are compared by on split {job.split}, a pool, "
                "and model.start is new: a model with random weights proposes at random",
                hint="name a start with --start, or another --split",
            )
        caches[out / AGAINST] = reranker
    if caches:
        recipe.candidates.require_packages()
    plan = StudyPlan(
        job=job,
        out=out,
        data=data,
        teacher=teacher,
        training=options,
        scoring=scoring,
        recipe=recipe,
        arms=tuple(arms),
        caches=caches,
        reranker=reranker,
        proposer=proposer,
        in_rounds=in_rounds,
        corpus=evaluated,
        is_by_agreement=is_by_agreement,
        settings=_settings(job, options, scoring, recipe, (corpus, evaluated), proposer),
    )
    _check_folder(plan)
    # All of them before the first step: each also looks at its own run folder.
    for arm, seed, _ in plan.runs:
        if arm.name != ITSELF:  # its teacher is trained by the study
            training.resolve_rounds(plan.training_job(arm, seed), plan.inputs(arm, seed), plan.training)
    return plan


def asked_inputs(job: StudyJob) -> InputRefs:
    """What the distillation reads without a cache."""
    return InputRefs(
        data=path(job.data),
        split=job.train_split,
        teachers=(os.fspath(job.teacher),),
        model_set=assignments(job.model_overrides),
    )


def _run_folder(out: Path, name: str, seed: int) -> Path:
    name = name.replace(", ", "-").removesuffix(" batches").removeprefix("taught by ")
    return out / "runs" / f"{name}-seed{seed}"


def _recipe(job: StudyJob) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with the start, and the overrides that make it; ConfigError for arm that a study cannot use."""
    ref, sets = named(job.recipe), tuple(job.sets or ())
    for line in sets:
        if line.partition("=")[0].strip() == "seed":
            raise ConfigError(f"--set {line} sets one seed, and a study trains several", hint="name them with --seeds")
    given = training.load_recipe(ref, sets)
    if given.model.kind == "fusion":
        problem = (
            f"recipe {job.recipe} trains a fusion model, and a study needs a student that can search without its "
            "teacher"
        )
        raise ConfigError(problem, hint="take a recipe with model.kind dual or late")
    if not given.loss.needs_teacher and not given.loss.vector_terms:
        raise ConfigError(
            f"recipe {job.recipe} learns from no teacher: loss.terms has {', '.join(given.loss.terms)}",
            hint="add a loss that has a teacher, such as kl: --set 'loss.terms={ infonce = 1.0, kl = 1.0 }'",
        )
    if job.start is not None:
        # Quoted, because a path may hold what TOML would read otherwise.
        sets = (*sets, f"model.start={json.dumps(os.fspath(job.start))}")
    return training.load_recipe(ref, sets), sets


def _baselines(recipe: Recipe, sets: tuple[str, ...], caches: tuple[Path, ...]) -> Iterator[Arm]:
    """The recipe without the teacher's losses, with the batches of the distillation where they need no score of the
    teacher."""
    alone = (*sets, *training.sets_of_captions(recipe))
    if recipe.loss.on_lists or not caches:
        yield Arm(name=FINE_TUNED, sets=alone)
    else:
        yield Arm(name=FINE_TUNED, sets=(*sets, *training.sets_of_own_loss(recipe)), caches=caches)
        yield Arm(name=RANDOM, sets=alone)
    yield Arm(name=ITSELF, sets=sets)


def _settings(
    job: StudyJob,
    options: TrainingOptions,
    scoring: Compute,
    recipe: Recipe,
    corpora: Sequence[Corpus],
    proposer: Path | None,
) -> Document:
    """Everything that changes a number. The seeds only add results, but the first one may propose candidates."""
    if share_split(job.train_split, job.split):
        raise ConfigError(
            f"the study trains on {job.train_split} and evaluates on {job.split}", hint="name another --split"
        )
    validation, compute, teacher = recipe.validation, options.compute, os.fspath(job.teacher)
    if validation.every and validation.keep == "best" and share_split(validation.split, job.split):
        problem = (
            f"validation.split is {validation.split}, on which the best weights are chosen, and the study "
            f"evaluates on {job.split}"
        )
        raise ConfigError(problem, hint="name another --split, or set validation.split")
    return {
        "format": FORMAT,
        "recipe": {name: value for name, value in to_table(recipe).items() if name != "seed"},
        "start": {"ref": recipe.model.start, "digest": _digest(recipe.model.start)},
        "teachers": [{"ref": teacher, "digest": _digest(teacher)}],
        "model_set": list(assignments(job.model_overrides)),
        "corpora": {corpus.split: corpus.fingerprint for corpus in corpora},
        "depth": job.depth,
        "precision": {
            "training": "auto" if options.tries_precision else compute.precision,
            "cache": scoring.precision,
        },
        "features": None if compute.features is None else "float16",
        **({} if proposer is None else {"proposer": proposer.name}),
    }


def _digest(ref: str) -> str | None:
    """Identifies the version of a local model: SHA-256 over its files; None for a model that is not local."""
    path = models.path_of(ref)
    if path.is_file():
        return artifacts.sha256_of(path)
    folder = path / "model" if (path / "model").is_dir() else path
    # dcdctl.json lists the SHA-256 of all files of a saved model.
    if (sealed := folder / models.SETTINGS_FILE).exists():
        return artifacts.sha256_of(sealed)
    parts = sorted(part for part in folder.rglob("*") if part.is_file() and not part.name.startswith("."))
    if not parts:
        return None
    return files.digest_of({str(part.relative_to(folder)): artifacts.sha256_of(part) for part in parts})


def _check_folder(plan: StudyPlan) -> None:
    """StaleError if the folder holds another study, or something else; InputError if it cannot be written to."""
    out = plan.out
    files.check_output_folder(out)
    path = out / SETTINGS_FILE
    if path.exists():
        # A study that failed before its first result, as by a wrong start, may be named again with other settings.
        found: list[Path] = []
        for folder in PARTS:
            found += (out / folder).rglob("[!.]*")
        if not any(other.is_file() for other in found):
            return
        document = artifacts.read_document(path, FORMAT, hint="delete the folder, or name another one with --out")
        artifacts.expect(out, document, plan.settings, hint=NEXT)
    elif not files.is_vacant(out):
        raise StaleError(f"{out} holds something that is not a study", hint=NEXT)
