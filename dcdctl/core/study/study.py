"""A study on the user's own data: does a teacher pay? Zero-shot, fine-tuned, distilled and a cascade, in one report.

    OUT/settings.json                what the study is about; another study is refused (`plan`)
    OUT/evaluations/zero-shot        the start
    OUT/cache                        the scores of a fusion teacher
    OUT/against                      the scores of a fusion teacher for a pool that is evaluated
    OUT/runs/fine-tuned-seed0        the recipe without the teacher's losses
    OUT/runs/fine-tuned-random-seed0 the same, with the batches of a training that has no cache
    OUT/cache-itself-seed0           the scores of the fine-tuned model, if the teacher has a cache
    OUT/runs/itself-seed0            the recipe with the fine-tuned model as its teacher
    OUT/runs/distilled-seed0-rounds  its rounds, if the recipe has `pool.rounds`
    OUT/runs/distilled-seed0         the recipe; with cascade.json, its first candidates re-ranked by the teacher
    OUT/study.json, OUT/report.html  the results

Every folder is as its own command writes it, and a step whose folder is finished is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from dcdctl.core import artifacts, evaluation, files, models, report, training
from dcdctl.core.artifacts import Document
from dcdctl.core.bench import QUICK, BenchJob, read_times, run_bench
from dcdctl.core.errors import as_user_error
from dcdctl.core.evaluation import CASCADE_FILES, MODEL_FILES, EvalJob, SavedAgreement, SavedEvaluation
from dcdctl.core.places import shown
from dcdctl.core.progress import Say, Track, Watch, silent, unsaid
from dcdctl.core.report import CASCADE, DISTILLED, TEACHER, ZERO_SHOT, Study
from dcdctl.core.scoring import Workload
from dcdctl.core.study.job import StudyJob
from dcdctl.core.study.plan import (
    AGAINST,
    FINE_TUNED,
    ITSELF,
    RANDOM,
    SETTINGS_FILE,
    Arm,
    StudyPlan,
    asked_inputs,
    resolve,
)
from dcdctl.core.teacher import CACHE, CacheCost, cache_scores
from dcdctl.core.training import Preview, Run

RESULT_FILE, PAGE_FILE = "study.json", "report.html"


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """What shows the progress of a study; by default nothing."""

    announce: Say = unsaid
    """Receives a line before each step."""
    say: Say = unsaid
    track: Track = silent
    watch: Watch | None = None
    on_estimate: Callable[[CacheCost], None] | None = None
    on_workload: Callable[[Workload], None] = lambda workload: None


UNSEEN = StudyView()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a study."""

    name: str
    makes: Literal["scores", "a training", "an evaluation", "times"]
    """What it is for; a training is evaluated too."""
    folder: Path
    is_done: Callable[[], bool]
    run: Callable[[StudyView], str | None]
    """Returns a line on what could not be done."""


def preview_study(job: StudyJob, track: Track = silent) -> Document:
    """What `run_study` would do, for JSON: its parts, and how many trainings, evaluations and caches they are.

    Opens the files that need no model, and writes nothing; raises what `run_study` raises before the first step.
    """
    plan = resolve(job)
    first = _preview_training(plan, track)
    # Without it, a number only if the recipe says so: epochs are counted when there is a cache.
    num_steps = plan.recipe.optimizer.steps if first is None else first.num_steps
    parts, makes = [], []
    for step in make_steps(plan):
        parts.append({"name": step.name, "folder": str(step.folder), "finished": step.is_done()})
        makes.append(step.makes)
    trainings = makes.count("a training")
    return {
        "trainings": trainings,
        "steps_per_training": num_steps,
        "evaluations": trainings + makes.count("an evaluation"),
        "caches": makes.count("scores"),
        **_preview_rounds(plan, first),
        "parts": parts,
    }


def _preview_rounds(plan: StudyPlan, first: Preview | None) -> Document:
    """How many pairs the teacher scores at most of what a student proposes: for all trainings, or in the rounds of each
    distillation."""
    if first is None or first.most_pairs is None:
        return {}
    if plan.in_rounds:
        return {"most_pairs": first.most_pairs, "rounds": first.rounds}
    # All trainings share the cache of one round.
    return {"most_pairs": first.most_pairs // first.rounds}


def run_study(job: StudyJob, view: StudyView = UNSEEN) -> Study:
    """Do the steps that are not finished, and write the report.

    ConfigError or ModelError for a recipe, a start or a teacher that does not fit; StaleError if the folder holds
    another study or anything else, or another process writes to it; and what the steps raise.
    """
    plan = resolve(job)
    _check_models(plan)
    # Before the teacher scores for hours: the batch is not larger than the split, and the validation split is there.
    _preview_training(plan, view.track)
    with files.lock(plan.out):
        plan.out.mkdir(parents=True, exist_ok=True)
        # Before the first result, so that a study that is interrupted is known by its settings.
        artifacts.write_document(plan.out / SETTINGS_FILE, plan.settings)
        left_out, steps = [], make_steps(plan)
        for number, step in enumerate(steps, start=1):
            is_done = step.is_done()
            done = " (finished before)" if is_done else ""
            view.announce(f"{number}/{len(steps)} {step.name}: {step.folder}{done}")
            if not is_done and (line := step.run(view)) is not None:
                left_out.append(line)
        study = _read(plan, left_out)
        artifacts.write_document(plan.out / RESULT_FILE, study.to_json())
        report.write_study_page(plan.out / PAGE_FILE, study)
    return study


def _check_models(plan: StudyPlan) -> None:
    """An error for a start or a teacher that cannot be fetched, which a later step would find."""
    start = plan.recipe.model.start
    if start != "new":
        with models.naming_uses({start: "give `--start DIR`"}):
            models.check_found(start, kind=plan.recipe.model.start_kind)
    models.check_found(plan.teacher, models.parse_overrides(plan.job.model_overrides))


def _preview_training(plan: StudyPlan, track: Track) -> Preview | None:
    """What the first training that needs no cache does, if there is one: it opens all files that do not depend on a
    teacher. With proposed candidates, the first distillation as it is by `dcdctl distill`: its model is made too."""
    seed = plan.job.seeds[0]
    if plan.in_rounds or plan.proposer is not None:
        job = plan.training_job(plan.arms[-1], seed)
        return training.preview(job, asked_inputs(plan.job), plan.training, track)
    for arm in plan.arms:
        if not arm.caches:
            return training.preview(plan.training_job(arm, seed), plan.inputs(arm, seed), plan.training, track)
    return None


def make_steps(plan: StudyPlan) -> list[Step]:
    """All steps in order. What they write is looked at when they are asked whether they are done."""
    steps, scores = [], {folder: _scores_step(plan, folder, ref) for folder, ref in plan.caches.items()}
    # First the scores that the start is compared with, if there are any.
    if (against := scores.pop(plan.out / AGAINST, None)) is not None:
        steps.append(against)
    if (start := plan.recipe.model.start) != "new":
        steps.append(_start_step(plan, start))
    if plan.proposer is None:
        steps += scores.values()
    for arm, seed, folder in plan.runs:
        if arm.name == ITSELF and plan.reranker is not None:
            ref = str(plan.run_folder(FINE_TUNED, seed))
            name = f"scores of {FINE_TUNED}, seed {seed}"
            steps.append(_scores_step(plan, plan.own_cache(seed), ref, name))
        steps.append(
            Step(
                name=f"{arm.name}, seed {seed}",
                makes="a training",
                folder=folder,
                is_done=partial(_is_evaluated, plan, folder),
                run=partial(_train, plan, arm, seed),
            )
        )
        if folder == plan.proposer:
            steps += scores.values()
        if arm.name == DISTILLED and plan.reranker is not None and plan.against is None:
            steps.append(_cascade_step(plan, seed, folder))
    # Last, because it times a model that an earlier step has trained.
    timed = plan.run_folder(DISTILLED, plan.job.seeds[0])
    steps.append(
        Step(
            name="time per query",
            makes="times",
            folder=timed,
            is_done=partial(_is_timed, plan, timed),
            run=partial(_time, plan, timed),
        )
    )
    return steps


def _scores_step(plan: StudyPlan, folder: Path, ref: str, name: str | None = None) -> Step:
    is_scored = (folder / CACHE.seal_file).exists
    split = f" for {plan.job.split}" if folder.name == AGAINST else ""
    name = name or f"scores of {ref}{split}"
    return Step(name=name, makes="scores", folder=folder, is_done=is_scored, run=partial(_score, plan, ref, folder))


def _start_step(plan: StudyPlan, ref: str) -> Step:
    """The evaluation of the start."""
    folder = plan.out / "evaluations" / ZERO_SHOT
    job = EvalJob(model=ref, data=plan.data, split=plan.job.split, against=plan.against)
    return Step(
        name=ZERO_SHOT,
        makes="an evaluation",
        folder=folder,
        is_done=partial(_is_evaluated, plan, folder),
        run=partial(_evaluate, plan, job, folder),
    )


def _cascade_step(plan: StudyPlan, seed: int, folder: Path) -> Step:
    job = plan.job
    # Depth 0 adds the time of the dual encoder alone; a list of depths is what makes an evaluation take times.
    cascade = EvalJob(
        model=str(folder),
        data=plan.data,
        split=job.split,
        rerank=plan.reranker,
        rerank_overrides=job.model_overrides,
        depth=(0, job.depth),
    )
    return Step(
        name=f"{CASCADE}, seed {seed}",
        makes="an evaluation",
        folder=folder,
        is_done=partial(_is_evaluated, plan, folder, is_cascade=True),
        run=partial(_evaluate, plan, cascade, None),
    )


def _score(plan: StudyPlan, ref: str, folder: Path, view: StudyView) -> None:
    cache_scores(plan.cache_job(ref, folder), track=view.track, on_estimate=view.on_estimate)


def _train(plan: StudyPlan, arm: Arm, seed: int, view: StudyView) -> None:
    """Train, unless that is finished, and evaluate."""
    folder = plan.run_folder(arm.name, seed)
    if not Run(folder).is_finished:
        options = plan.training
        # A trial may choose bfloat16. All runs take the choice of the first one, so that no difference comes from the
        # precision.
        first = Run(plan.runs[0][2])
        if options.tries_precision and first.folder != folder and first.is_finished:
            compute = replace(options.compute, precision=first.facts()["inputs"]["precision"])
            options = replace(options, compute=compute, tries_precision=False)
        job, inputs = plan.training_job(arm, seed), plan.inputs(arm, seed)
        training.train_in_rounds(job, inputs, options=options, track=view.track, watch=view.watch, say=view.say)
    evaluated = EvalJob(model=str(folder), data=plan.data, split=plan.job.split, against=plan.against)
    _evaluate(plan, evaluated, None, view)


def _evaluate(plan: StudyPlan, job: EvalJob, out: Path | None, view: StudyView) -> None:
    """The evaluation that `dcdctl eval` makes."""
    # In float32 whatever the cache has, as by `dcdctl eval`: recalls of all models stay comparable.
    job = replace(job, device=plan.job.device, batch_size=plan.job.batch_size, out=out)
    evaluation.run_evaluation(job, track=view.track, on_workload=view.on_workload, say=view.say)


def _time(plan: StudyPlan, folder: Path, view: StudyView) -> str | None:
    """Time the teacher and a distilled model. A failure, such as too little memory, leaves the times out and not the
    report."""
    size = plan.corpus.num_images
    try:
        timed = BenchJob(
            str(folder),
            plan.teacher,
            plan.data,
            split=plan.job.split,
            model_overrides=plan.job.model_overrides,
            device=plan.job.device,
            config=replace(QUICK, gallery_sizes=(size,), reference_gallery=size),
        )
        run_bench(timed, track=view.track)
    except Exception as error:
        if (reason := as_user_error(error)) is None:
            raise
        return f"times per query: {reason}"
    return None


def _is_evaluated(plan: StudyPlan, folder: Path, *, is_cascade: bool = False) -> bool:
    """Whether a folder has an evaluation on the split; another one, such as of another split, is made again."""
    if plan.against is not None:
        if (found := SavedAgreement.find(folder)) is None:
            return False
        of_pool = found.evaluation
        basis = of_pool.corpus_fingerprint, of_pool.split, found.agreement.teacher
        return basis == (plan.corpus.fingerprint, plan.corpus.split, plan.against)
    names = CASCADE_FILES if is_cascade else MODEL_FILES
    saved = SavedEvaluation.find(folder, names)
    if saved is None or not (folder / names.ranks).exists():
        return False
    numbers = saved.evaluation
    if (numbers.corpus_fingerprint, numbers.split) != (plan.corpus.fingerprint, plan.corpus.split):
        return False
    if not is_cascade:
        return True
    same = (numbers.protocol.depth, numbers.reranker) == (plan.job.depth, plan.reranker)
    return same and bool(numbers.reranked)


def _is_timed(plan: StudyPlan, folder: Path) -> bool:
    times = read_times(folder / "bench.json", "teacher")
    return times is not None and (times.teacher_model, times.num_images) == (plan.teacher, plan.corpus.num_images)


def _read(plan: StudyPlan, left_out: Sequence[str]) -> Study:
    """The results of a finished study."""
    job = plan.job
    folders: dict[str, Sequence[Path]] = {}
    if plan.recipe.model.start != "new":
        folders[ZERO_SHOT] = [plan.out / "evaluations" / ZERO_SHOT]
    for arm in plan.arms:
        folders[arm.name] = [plan.run_folder(arm.name, seed) for seed in job.seeds]
    timed_in = dict.fromkeys([*folders, TEACHER], folders[DISTILLED][0])
    # A start of more layers than its students is slower, and one of another kind takes other steps: their times are not
    # its own.
    model = plan.recipe.model
    if model.drops_layers or isinstance(model, training.LateConfig):
        timed_in.pop(ZERO_SHOT, None)
    if plan.reranker is not None and plan.against is None:
        folders[CASCADE] = folders[DISTILLED]
    folders[TEACHER] = []  # it is timed, and not evaluated
    rows = report.read_rows(folders, timed_in, by_agreement=plan.is_by_agreement)
    baselines = [arm.name for arm in plan.arms if arm.name != DISTILLED]
    contrasts = [
        *((DISTILLED, name) for name in baselines or [ZERO_SHOT]),
        *((name, ZERO_SHOT) for name in baselines),
        (CASCADE, DISTILLED),
    ]
    corpus, texts = plan.corpus, "texts" if plan.is_by_agreement else "captions"
    facts = [
        ("recipe", " ".join([str(job.recipe), *(f"--set {line}" for line in job.sets or ())])),
        ("start", plan.recipe.model.start),
        ("teacher", plan.teacher),
        ("trained on", f"{job.train_split} of {shown(plan.data)}"),
        ("measured on", f"{corpus.split}: {corpus.num_images:,} images, {corpus.num_captions:,} {texts}"),
        ("seeds", ", ".join(map(str, job.seeds))),
    ]
    return Study(
        rows=tuple(rows.values()),
        differences=tuple(report.compare_rows(rows, contrasts)),
        facts=tuple(facts),
        notes=tuple(_notes(plan)),
        left_out=(*left_out, *_not_asked_for(plan)),
    )


def _not_asked_for(plan: StudyPlan) -> Iterator[str]:
    """What the study leaves out by its settings."""
    if plan.against is not None:
        yield "recalls: the split is a pool, without captions of its images"
        return
    if plan.reranker is None:
        yield (
            "cascade: the teacher encodes each image once itself, so it can search all images as fast as it could "
            "re-rank the first ones"
        )
    yield "recalls of the teacher: `dcdctl eval TEACHER --data DIR --out FOLDER`, and `dcdctl compare`"


def _notes(plan: StudyPlan) -> Iterator[str]:
    """How the models were trained and measured, a fact per line."""
    several = len(plan.job.seeds) > 1
    if plan.against is not None:
        yield (
            f"Agreement with {plan.teacher}: how near its order of candidates the model's is. It favors models "
            "that learned from that teacher, and does not say how good the teacher is (docs/metrics.md)."
        )
    if plan.arms[0].name == DISTILLED:
        yield "There is no fine-tuned baseline: nothing can be learned from a pool without a teacher."
        if plan.in_rounds:
            yield (
                "Each distilled model is trained in rounds of its own: what it finds, starting with what the start "
                f"finds, {plan.teacher} scores, and it learns from these scores."
            )
    else:
        yield from _baseline_notes(plan)
    if plan.reranker is not None and plan.against is None:
        yield f"Cascade: the first {plan.job.depth} candidates of the distilled model, re-ranked by {plan.reranker}."
    if several:
        measured, total = ("Recalls", "RSUM") if plan.against is None else ("Measures", "nDCG@10")
        spread = f"\N{PLUS-MINUS SIGN} is the standard deviation of {total} over them"
        yield f"{measured} are means over the seeds; {spread}."
    else:
        yield "There is one seed: the intervals do not show how much another seed would change."
    yield (
        "Intervals: 95 % bootstrap, paired query by query, as in `dcdctl compare`; over seeds too where both "
        "models have several."
    )
    yield (
        "Planned: distilled compared with its baselines. The verdict takes the larger p-value of the bootstrap and of "
        "the t-test over seeds, adjusted for the number of baselines (Holm). "
        "Exploratory differences are not adjusted, and show what to test next."
    )
    if several and plan.arms[-1].caches:
        yield "All seeds share one cache, so no interval covers the draw of the candidates."
    yield (
        f"Query: one caption against the {plan.corpus.num_images:,} encoded images of the split, on "
        f"{plan.scoring.device}; "
        "~: extrapolated. Zero-shot, fine-tuned and distilled models of equal layers take the same time."
    )


def _baseline_notes(plan: StudyPlan) -> Iterator[str]:
    """How the baselines were trained."""
    recipe, losses = plan.recipe, " and ".join(training.own_terms(plan.recipe))
    added = "" if recipe.loss.own_terms else ", because the recipe has no loss without a teacher"
    yield f"Fine-tuned: the recipe without the teacher's losses, with {losses}{added}."
    yield "Start, steps, images, optimizer and seeds of fine-tuning are those of distillation."
    yield (
        "Taught by itself: distilled from the fine-tuned model of its seed in place of the teacher. What it gains, no "
        "knowledge of another model has brought."
    )
    if recipe.loss.on_lists:
        yield (
            f"A list of the baseline has {recipe.batch.hard_negatives} random negatives; distillation keeps as many of "
            f"{recipe.batch.random_negatives}, those that the teacher scores highest."
        )
    elif plan.caches:
        yield (
            "Fine-tuned and distilled have the same batches: neighborhoods of the cache, which need no score of "
            "the teacher."
        )
        yield (f"{RANDOM.capitalize()}: those of a training without a cache. The verdict is against the best baseline.")
        if plan.proposer is not None:
            yield (
                f"The candidates of the cache are what the model {RANDOM}, of seed {plan.job.seeds[0]} proposes. All "
                "trainings with a cache have these, and fine-tuned learns from no score of them."
            )
    else:
        yield "Fine-tuned and distilled have the same batches, which are random."
