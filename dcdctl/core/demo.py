"""All of dynamic contrastive distillation on the built-in corpus, in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dcdctl.core import data, evaluation, files, models, report, training
from dcdctl.core.bench import BenchConfig, ModelPair, ModelTimes, compare_saved
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.devices import ON_CPU, Compute
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import EvalOptions, Evaluation, Measured
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher import TeacherCache, build_cache
from dcdctl.core.training import OpenInputs, TrainingJob, TrainingOptions

BUILT_IN_TEACHER = "scenes-vilt"
FUSION, DUAL, DUAL_ALONE = "demo-fusion", "demo-dual", "demo-dual-alone"
CACHES = {DUAL: "cache", FUSION: "cache-fusion"}
"""Folder of the teacher's scores for each student. Scenes of one family are the best negatives for a fusion student,
not for a dual."""
TEACHER_FOLDER = "teacher"
RowName = Literal["teacher", "cascade", "dual", "dual alone", "fusion", "fusion cascade"]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The size of the demo."""

    train_images: int = 1024
    """Few compared with the teacher's own training images, like a user's images compared with those of a pretrained
    model."""
    val_images: int = 32
    test_images: int = 64
    image_size_px: int = 64
    """Size of the images for the models; they are resized once, not in every step."""
    depths: tuple[int, ...] = (5, 10, 20)
    """Candidates per query that the cascade re-ranks, ascending; the table shows the last."""
    steps: int | None = None
    """Training steps of each student; None for the recipes' own."""
    sets: tuple[str, ...] = ()
    """More settings of all students' recipes, as `dcdctl distill --set` takes them."""
    measure_every: int = 50
    """Training steps between measurements on the validation split. They do not affect the training."""
    bench: BenchConfig = field(
        default_factory=lambda: BenchConfig(
            budget_s=1.0,
            num_repeats=5,
            batch_sizes=(32,),
            gallery_sizes=(100, 1000, 10000),
            num_fresh_processes=0,
            is_onnx_timed=False,
        )
    )


DEFAULT = DemoConfig()


@dataclass(frozen=True, kw_only=True)
class QueryCost:
    """What a caption costs against a gallery of encoded images."""

    num_images: int
    ms: float
    speed_up: float
    """The teacher's time over this one."""
    ms_extrapolated: bool
    """Whether the time was computed from smaller galleries."""
    speed_up_extrapolated: bool
    """Whether this time or the teacher's was."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the final table."""

    name: RowName
    model: str
    """Its label."""
    evaluation: Evaluation
    query: QueryCost
    """Against the reference gallery."""
    large_query: QueryCost
    """Against the largest gallery."""

    def recall_at_1(self, direction: Direction) -> float:
        """R@1 of one direction, in percent."""
        return self.evaluation.measures(direction)["R@1"]


@dataclass(frozen=True)
class DemoResult:
    rows: list[Row]
    machine: dict[str, Any]
    page: Path
    """The report."""

    def row(self, name: RowName) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def summary(self) -> str:
        """What was won and what was lost, in words."""
        teacher, dual, alone, fusion = (self.row(name) for name in ("teacher", "dual", "dual alone", "fusion"))
        cascade = self.row("cascade")
        depth = cascade.evaluation.protocol.depth
        return "\n".join(
            [
                f"With the dual student's first {depth} re-ranked by the teacher, a search is {_speed(cascade)}. "
                f"{_recall(cascade, teacher)}.",
                f"Without re-ranking, the dual student is {_speed(dual)}. {_recall(dual, teacher)}.",
                f"{_effect_of_scores(dual, alone)}.",
                f"The fusion student is {_speed(fusion)}. {_recall(fusion, teacher)}.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """The table for JSON."""
        keys = ("images", "captions", "text_retrieval", "image_retrieval", "rsum")
        rows = []
        for row in self.rows:
            document = row.evaluation.document
            costs = {"query_ms": row.query.ms, "speed_up": row.query.speed_up, "large_gallery": asdict(row.large_query)}
            rows.append({"name": row.name, "model": row.model, **{key: document[key] for key in keys}, **costs})
        return {
            "rows": rows,
            "gallery_size": self.rows[0].query.num_images,
            "machine": self.machine,
            "summary": self.summary,
        }


@dataclass(frozen=True)
class _Demo:
    """Where a demo is made, how large, and on which device."""

    out: Path
    config: DemoConfig
    compute: Compute
    track: Track

    def corpus(self, split: str) -> Corpus:
        """A split of the drawn corpus."""
        return Corpus.open(self.out / "data", split)

    def folder(self, name: str) -> Path:
        """The run folder of a student."""
        return self.out / name.removeprefix("demo-")


def run_demo(
    out: Path,
    *,
    train_teacher: bool = False,
    config: DemoConfig = DEFAULT,
    compute: Compute = ON_CPU,
    announce: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> DemoResult:
    """Prepare, cache, distill two students, train one without the teacher, evaluate all and report; finished steps are
    not repeated.

    InputError if `out` holds something that is not a demo, or cannot be written.
    """
    files.check_output_folder(out)
    # The folder `data` is what a demo writes first.
    if not files.is_vacant(out) and not (out / "data").is_dir():
        raise InputError(f"{out} holds something that is not a demo", hint="name an empty or a new folder with --out")
    demo = _Demo(out, config, compute, track)
    announce("1. prepare: draw the corpus")
    counts = {"train": config.train_images, "val": config.val_images, "test": config.test_images}
    source = data.find_manifest("scenes", [f"counts.{split}={count}" for split, count in counts.items()])
    options = data.PrepareOptions(image_size_px=config.image_size_px)
    data.prepare_corpus(source, out / "data", options=options, track=track)
    teacher_ref = BUILT_IN_TEACHER
    if train_teacher:
        announce("   train the teacher again: this takes long")
        teacher_ref = str(_train_teacher(demo))
    teacher = models.load_fusion(teacher_ref)
    announce("2. cache-teacher: score the candidates of both kinds of students once")
    corpus, caches = demo.corpus("train"), {}
    for name, folder in CACHES.items():
        candidates = training.load_recipe(name, config.sets).candidates
        scorer = teacher.to(compute.device)
        caches[name] = build_cache(corpus, scorer, out / folder, candidates, compute=compute, track=track)
    announce("3. distill: a dual student, the same dual student without the teacher, and a fusion student")
    students = {
        name: _distill(demo, name, teacher_ref, teacher, caches.get(name)) for name in (DUAL, DUAL_ALONE, FUSION)
    }
    announce("4. eval and bench: recall in both directions, time per query")
    result = _measure(demo, teacher_ref, teacher, students)
    announce("5. report: all results on one page")
    folders = [demo.folder(name) for name in (DUAL, FUSION)]
    report.write_report_page(
        result.page, report.read_report(folders, teacher=out / TEACHER_FOLDER, baseline=demo.folder(DUAL_ALONE))
    )
    return result


def _train_teacher(demo: _Demo) -> Path:
    options, track = TrainingOptions(compute=demo.compute), demo.track
    first, last = training.PretrainingConfig(), training.GradingConfig()
    run = training.start_run(demo.out / "teacher-pretrained", first, "pretrain-teacher", {}, resume=True)
    training.pretrain(run, first, options=options, track=track)
    scorer = models.load_fusion(run.folder)
    run = training.start_run(demo.out / TEACHER_FOLDER, last, "grade-teacher", {"start": scorer.digest}, resume=True)
    training.grade(run, scorer, last, options=options, track=track)
    return run.folder


def _distill(demo: _Demo, name: str, teacher_ref: str, teacher: Any, cache: TeacherCache | None) -> Any:
    config = demo.config
    # keep=last, because the measurements must not choose the weights.
    sets = [f"validation.every={config.measure_every}", "validation.keep=last"]
    sets += [] if config.steps is None else [f"optimizer.steps={config.steps}"]
    sets += config.sets
    start = teacher if training.load_recipe(name).model.kind == "fusion" else None
    # Neighborhoods need the teacher's scores. Without them batches are random, which is also better for that student.
    inputs = OpenInputs(demo.corpus("train"), [] if cache is None else [cache], start, teacher_ref=teacher_ref)
    job = TrainingJob("distill", name, sets, demo.folder(name), resume=True)
    run = training.train_model(job, inputs, options=TrainingOptions(compute=demo.compute), track=demo.track)
    return models.load(run.folder)


def _measure(demo: _Demo, teacher_ref: str, teacher: Any, students: Mapping[str, Any]) -> DemoResult:
    """Evaluate all six and time the four that are not cascades, each in its folder; the cascade by the fusion student
    has none."""
    corpus, config, track = demo.corpus("test"), demo.config, demo.track
    folders = {name: demo.folder(name) for name in students}
    # Depth 0 re-ranks nothing; the time of a depth is its difference from depth 0.
    options = EvalOptions(compute=demo.compute, depths=(0, *config.depths))
    measured = evaluation.evaluate_model(teacher, corpus, options=options, track=track)
    of_teacher = _write_evaluation(demo.out / TEACHER_FOLDER, teacher_ref, measured)
    evaluations, benches = {}, {}
    for name, student in students.items():
        measured = evaluation.evaluate_model(student, corpus, options=options, track=track)
        evaluations[name] = _write_evaluation(folders[name], str(folders[name]), measured)
        pair = ModelPair(
            teacher=teacher_ref, student=str(folders[name]), overrides={}, data=corpus.folder, split=corpus.split
        )
        benches[name] = compare_saved(pair, config.bench, device=demo.compute.device, track=track)
    cascades = [
        evaluation.evaluate_model(students[DUAL], corpus, rerank=scorer, options=options, track=track)
        for scorer in (teacher, students[FUSION])
    ]
    by_teacher = _write_evaluation(folders[DUAL], str(folders[DUAL]), cascades[0], reranker=teacher_ref)
    by_fusion = cascades[1].evaluation(str(folders[DUAL]), reranker=str(folders[FUSION]))
    times = benches[DUAL].teacher
    depth, num_layers = config.depths[-1], len(training.load_recipe(FUSION).model.layers)
    labels: list[tuple[RowName, str, Evaluation, ModelTimes]] = [
        ("teacher", "teacher (ViLT, 6 layers)", of_teacher, times),
        ("cascade", f"dual, top {depth} by the teacher", by_teacher, benches[DUAL].student),
        ("dual", "dual, with the teacher's scores", evaluations[DUAL], benches[DUAL].student),
        ("dual alone", "dual, without a teacher", evaluations[DUAL_ALONE], benches[DUAL_ALONE].student),
        ("fusion", f"fusion student ({num_layers} layers), DCD", evaluations[FUSION], benches[FUSION].student),
        ("fusion cascade", f"dual, top {depth} by the fusion student", by_fusion, benches[DUAL].student),
    ]
    rows = [_row(name, label, measured, student, times, config.bench) for name, label, measured, student in labels]
    result = DemoResult(rows, benches[DUAL].machine, demo.out / "report.html")
    files.write_json(demo.out / "demo.json", result.to_json())
    return result


def _row(
    name: RowName, label: str, measured: Evaluation, student: ModelTimes, teacher: ModelTimes, config: BenchConfig
) -> Row:
    """A row of the table. A cascade takes the time of its dual encoder, which `student` has, and that of re-ranking."""
    # Re-ranking has the same number of candidates in a gallery of any size.
    rerank_s = (measured.depths[-1].ms_per_query - measured.depths[0].ms_per_query) / 1000 if measured.depths else 0.0

    def cost(num_images: int) -> QueryCost:
        of_student, of_teacher = (times.query(num_images, is_cached=True) for times in (student, teacher))
        seconds = of_student.seconds + rerank_s
        return QueryCost(
            num_images=num_images,
            ms=1000 * seconds,
            speed_up=of_teacher.seconds / seconds,
            ms_extrapolated=of_student.extrapolated,
            speed_up_extrapolated=of_student.extrapolated or of_teacher.extrapolated,
        )

    costs = (cost(config.reference_gallery), cost(max(config.gallery_sizes)))
    return Row(name=name, model=label, evaluation=measured, query=costs[0], large_query=costs[1])


def _write_evaluation(folder: Path, model: str, measured: Measured, **more: Any) -> Evaluation:
    """Write an evaluation into a folder, like `dcdctl eval`."""
    return evaluation.write_evaluation(folder, measured.evaluation(model, **more), measured)


def _speed(row: Row) -> str:
    """How fast a query is compared with the teacher alone, over both galleries."""
    words = [f"{_comparison(row.query)} the teacher alone over {_gallery(row.query)}"]
    if row.large_query.num_images != row.query.num_images:
        words.append(f"{_comparison(row.large_query)} it over {_gallery(row.large_query)}")
    return " and ".join(words)


def _comparison(cost: QueryCost) -> str:
    ratio = max(cost.speed_up, 1 / cost.speed_up)
    digits = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return "as fast as" if digits == "1.0" else f"{digits} times {'faster' if cost.speed_up > 1 else 'slower'} than"


def _gallery(cost: QueryCost) -> str:
    return f"{cost.num_images:,} images{' (extrapolated)' if cost.speed_up_extrapolated else ''}"


def _recall(row: Row, base: Row) -> str:
    """What R@1 has lost or won against another row."""
    changes = {direction: row.recall_at_1(direction) - base.recall_at_1(direction) for direction in Direction}
    words = {direction: f"{_points(abs(change))} in {direction} retrieval" for direction, change in changes.items()}
    lost, won = (
        [words[direction] for direction in Direction if _is_change(sign * changes[direction])] for sign in (-1, 1)
    )
    parts = [f"{verb} {' and '.join(side)}" for verb, side in (("loses", lost), ("gains", won)) if side]
    return f"R@1 {' but '.join(parts)}" if parts else "R@1 loses nothing"


def _effect_of_scores(dual: Row, alone: Row) -> str:
    """What the teacher's scores brought to the dual student."""
    change = dual.evaluation.rsum - alone.evaluation.rsum
    if not _is_change(abs(change)):
        return "The teacher's scores did not change the dual student's RSUM"
    verb = "raised" if change > 0 else "lowered"
    return f"The teacher's scores {verb} the dual student's RSUM by {_points(abs(change))}"


def _is_change(value: float) -> bool:
    """Whether a gain is more than zero in the digits that are shown."""
    return float(f"{value:.1f}") > 0


def _points(value: float) -> str:
    digits = f"{value:.1f}".removesuffix(".0")
    return f"{digits} point{'' if digits == '1' else 's'}"
