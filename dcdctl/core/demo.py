"""All of dynamic contrastive distillation on the built-in corpus, in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dcdctl.core import data, evaluation, files, models, report, training
from dcdctl.core.bench import BenchConfig, ModelPair, ModelTimes, compare_saved
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.devices import ON_CPU, Compute
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import EvalOptions, Evaluation, Measured
from dcdctl.core.progress import Say, Track, silent, unsaid
from dcdctl.core.teacher import CacheJob, cache_scores
from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions

BUILT_IN_TEACHER = "scenes-vilt"
FUSION, DUAL, DUAL_ALONE = "demo-fusion", "demo-dual", "demo-dual-alone"
CACHES = {DUAL: "cache", FUSION: "cache-fusion"}
"""Folder of the teacher's scores for each student. Scenes of one family are the best negatives for a fusion student,
not for a dual."""
TEACHER_FOLDER = "teacher"
RowName = Literal["teacher", "cascade", "dual", "dual alone", "fusion", "fusion cascade"]


@dataclass(frozen=True, kw_only=True)
class DemoJob:
    """Where a demo is made, how large, and on which device."""

    out: Path
    compute: Compute = ON_CPU
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

    def corpus(self, split: str) -> Corpus:
        """A split of the drawn corpus."""
        return Corpus.open(self.out / "data", split)

    def folder(self, name: str) -> Path:
        """The run folder of a student."""
        return self.out / name.removeprefix("demo-")


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
                "The teacher's scores changed the dual student's RSUM by "
                f"{dual.evaluation.rsum - alone.evaluation.rsum:+.1f}.",
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


def run_demo(job: DemoJob, *, announce: Say = unsaid, track: Track = silent) -> DemoResult:
    """Prepare, cache, distill two students, train one without the teacher, evaluate all and report; finished steps are
    not repeated.

    InputError if `job.out` holds something that is not a demo, or cannot be written.
    """
    out = job.out
    files.check_output_folder(out)
    # The folder `data` is what a demo writes first.
    if not files.is_vacant(out) and not (out / "data").is_dir():
        raise InputError(f"{out} holds something that is not a demo", hint="name an empty or a new folder with --out")
    announce("1. prepare: draw the corpus")
    counts = {"train": job.train_images, "val": job.val_images, "test": job.test_images}
    source = data.find_manifest("scenes", [f"counts.{split}={count}" for split, count in counts.items()])
    options = data.PrepareOptions(image_size_px=job.image_size_px)
    data.prepare_corpus(source, out / "data", options=options, track=track)
    teacher_ref = BUILT_IN_TEACHER
    teacher = models.load_fusion(teacher_ref).to(job.compute.device).eval()
    announce("2. cache-teacher: score the candidates of both kinds of students once")
    # Two caches, because each kind of student learns from other negatives.
    for name, folder in CACHES.items():
        candidates = training.load_recipe(name, job.sets).candidates
        cache_job = CacheJob(
            data=out / "data", out=out / folder, candidates=candidates, teacher=teacher_ref, compute=job.compute
        )
        cache_scores(cache_job, track=track)
    announce("3. distill: a dual student, the same dual student without the teacher, and a fusion student")
    students = {name: _distill(job, name, teacher_ref, track) for name in (DUAL, DUAL_ALONE, FUSION)}
    announce("4. eval and bench: recall in both directions, time per query")
    result = _measure(job, teacher_ref, teacher, students, track)
    announce("5. report: all results on one page")
    folders = [job.folder(name) for name in (DUAL, FUSION)]
    report.write_report_page(
        result.page, report.read_report(folders, teacher=out / TEACHER_FOLDER, baseline=job.folder(DUAL_ALONE))
    )
    return result


def _distill(job: DemoJob, name: str, teacher_ref: str, track: Track) -> Any:
    # keep=last, because the measurements must not choose the weights.
    sets = [f"validation.every={job.measure_every}", "validation.keep=last"]
    sets += [] if job.steps is None else [f"optimizer.steps={job.steps}"]
    sets += job.sets
    # Neighborhoods need the teacher's scores. Without them batches are random, which is also better for that student.
    inputs = InputRefs(
        data=job.out / "data",
        caches=[job.out / CACHES[name]] if name in CACHES else [],
        teachers=[teacher_ref] if training.load_recipe(name).model.kind == "fusion" else [],
    )
    training_job = TrainingJob("distill", name, sets, job.folder(name), resume=True)
    run = training.train_model(training_job, inputs, options=TrainingOptions(compute=job.compute), track=track)
    return models.load(run.folder)


def _measure(job: DemoJob, teacher_ref: str, teacher: Any, students: Mapping[str, Any], track: Track) -> DemoResult:
    """Evaluate all six and time the four that are not cascades, each in its folder; the cascade by the fusion student
    has none."""
    corpus = job.corpus("test")
    folders = {name: job.folder(name) for name in students}
    # Depth 0 re-ranks nothing; the time of a depth is its difference from depth 0.
    options = EvalOptions(compute=job.compute, depths=(0, *job.depths))
    measured = evaluation.evaluate_model(teacher, corpus, options=options, track=track)
    of_teacher = _write_evaluation(job.out / TEACHER_FOLDER, teacher_ref, measured)
    evaluations, benches = {}, {}
    for name, student in students.items():
        measured = evaluation.evaluate_model(student, corpus, options=options, track=track)
        evaluations[name] = _write_evaluation(folders[name], str(folders[name]), measured)
        pair = ModelPair(
            teacher=teacher_ref, student=str(folders[name]), overrides={}, data=corpus.folder, split=corpus.split
        )
        benches[name] = compare_saved(pair, job.bench, device=job.compute.device, track=track)
    cascades = [
        evaluation.evaluate_model(students[DUAL], corpus, rerank=scorer, options=options, track=track)
        for scorer in (teacher, students[FUSION])
    ]
    by_teacher = _write_evaluation(folders[DUAL], str(folders[DUAL]), cascades[0], reranker=teacher_ref)
    # Not written: the folder of the dual student holds one cascade, that of the teacher.
    by_fusion = cascades[1].evaluation(str(folders[DUAL]), reranker=str(folders[FUSION]))
    times = benches[DUAL].teacher
    depth, num_layers = job.depths[-1], len(training.load_recipe(FUSION).model.layers)
    labels: list[tuple[RowName, str, Evaluation, ModelTimes]] = [
        ("teacher", "teacher (ViLT, 6 layers)", of_teacher, times),
        ("cascade", f"dual, top {depth} by the teacher", by_teacher, benches[DUAL].student),
        ("dual", "dual, with the teacher's scores", evaluations[DUAL], benches[DUAL].student),
        ("dual alone", "dual, without a teacher", evaluations[DUAL_ALONE], benches[DUAL_ALONE].student),
        ("fusion", f"fusion student ({num_layers} layers), DCD", evaluations[FUSION], benches[FUSION].student),
        ("fusion cascade", f"dual, top {depth} by the fusion student", by_fusion, benches[DUAL].student),
    ]
    rows = [_row(name, label, measured, student, times, job.bench) for name, label, measured, student in labels]
    result = DemoResult(rows, benches[DUAL].machine, job.out / "report.html")
    files.write_json(job.out / "demo.json", result.to_json())
    return result


def _row(
    name: RowName, label: str, measured: Evaluation, student: ModelTimes, teacher: ModelTimes, config: BenchConfig
) -> Row:
    """A row of the table. A cascade takes the time of its dual encoder, which `student` has, and its re-ranking."""
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
    words = [
        f"{cost.speed_up:,.1f} times as fast as the teacher alone over {cost.num_images:,} images"
        + (" (extrapolated)" if cost.speed_up_extrapolated else "")
        for cost in (row.query, row.large_query)
    ]
    return " and ".join(words)


def _recall(row: Row, base: Row) -> str:
    """What R@1 has lost or won against another row."""
    changes = [
        f"{row.evaluation.measures(direction)['R@1'] - base.evaluation.measures(direction)['R@1']:+.1f} points in "
        f"{direction} retrieval"
        for direction in Direction
    ]
    return f"R@1 changes by {' and '.join(changes)}"
