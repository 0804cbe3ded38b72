"""All of dynamic contrastive distillation on the built-in corpus, in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcdctl.core import data, evaluation, files, models, report, training
from dcdctl.core.bench import BenchConfig, ModelPair, compare_saved
from dcdctl.core.data import Corpus
from dcdctl.core.devices import ON_CPU, Compute
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import EvalOptions, Evaluation
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher import TeacherCache, build_cache
from dcdctl.core.training import Inputs, TrainingJob, TrainingOptions

BUILT_IN_TEACHER = "scenes-vilt"
FUSION, DUAL, DUAL_ALONE = "demo-fusion", "demo-dual", "demo-dual-alone"
TEACHER_FOLDER = "teacher"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The size of the demo."""

    train_images: int = 1024
    """Few compared with the teacher's own training images, like a user's images compared with those of a pretrained model."""
    val_images: int = 32
    test_images: int = 64
    image_size_px: int = 64
    """Size of the images for the models; they are resized once, not in every step."""
    depths: tuple[int, ...] = (5, 10, 20)
    """Candidates per query that the cascade re-ranks, ascending; the table shows the last."""
    steps: int | None = None
    """Training steps of each student; None for those of the recipes."""
    measure_every: int = 50
    """Training steps between measurements on the validation split. They do not affect the training."""
    bench: BenchConfig = field(
        default_factory=lambda: BenchConfig(
            budget_s=1.0, num_repeats=10, batch_sizes=(32,), gallery_sizes=(100, 1000, 10000), num_fresh_processes=0, is_onnx_timed=False
        )
    )


DEFAULT = DemoConfig()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the final table."""

    model: str
    evaluation: Evaluation
    query_ms: float
    """One caption against the images of the reference gallery, encoded before."""
    speed_up: float


@dataclass(frozen=True)
class DemoResult:
    rows: list[Row]
    gallery_size: int
    machine: dict[str, Any]
    page: Path
    """The report."""

    def to_json(self) -> dict[str, Any]:
        """The table for JSON."""
        keys = ("images", "captions", "text_retrieval", "image_retrieval", "rsum")
        rows = []
        for row in self.rows:
            document = evaluation.evaluation_document(row.evaluation, row.model, "test")
            rows.append({"model": row.model, **{key: document[key] for key in keys}, "query_ms": row.query_ms, "speed_up": row.speed_up})
        return {"rows": rows, "gallery_size": self.gallery_size, "machine": self.machine}


@dataclass(frozen=True)
class MeasuredModels:
    """The models that are measured; the students by recipe."""

    teacher_ref: str
    teacher: Any
    students: dict[str, Any]


def run_demo(
    out: Path,
    *,
    train_teacher: bool = False,
    config: DemoConfig = DEFAULT,
    compute: Compute = ON_CPU,
    announce: Callable[[str], None] = lambda text: None,
    track: Track = silent,
) -> DemoResult:
    """Prepare, cache, distill two students, train one without the teacher, evaluate all and report; finished steps are not repeated.

    InputError if `out` holds something that is not a demo, or cannot be written.
    """
    _check_folder(out)
    announce("1. prepare: draw the corpus")
    data = _prepare(out, config, track)
    teacher_ref = BUILT_IN_TEACHER
    if train_teacher:
        announce("   train the teacher again: this takes long")
        teacher_ref = str(_train_teacher(out, compute, track))
    teacher = models.load_fusion(teacher_ref)
    announce("2. cache-teacher: score candidates once")
    cache = _cache(data, teacher, out, compute, track)
    announce("3. distill: a fusion student, a dual student, and the same dual student without the teacher")
    students = {name: _distill(name, data, out, teacher, cache, config, compute, track) for name in (FUSION, DUAL, DUAL_ALONE)}
    announce("4. eval and bench: recall in both directions, time per query")
    result = _measure(MeasuredModels(teacher_ref, teacher, students), Corpus.open(data, "test"), config, compute, out, track)
    announce("5. report: all results on one page")
    folders = [_folder(out, name) for name in (DUAL, FUSION)]
    report.write_report_page(result.page, report.read_report(folders, teacher=out / TEACHER_FOLDER, baseline=_folder(out, DUAL_ALONE)))
    return result


def _check_folder(out: Path) -> None:
    files.check_output_folder(out)
    # The folder `data` is what a demo writes first.
    if not files.is_vacant(out) and not (out / "data").is_dir():
        raise InputError(f"{out} holds something that is not a demo", hint="name an empty or a new folder with --out")


def _prepare(out: Path, config: DemoConfig, track: Track) -> Path:
    counts = {"train": config.train_images, "val": config.val_images, "test": config.test_images}
    source = data.find_manifest("scenes", [f"counts.{split}={count}" for split, count in counts.items()])
    options = data.PrepareOptions(image_size_px=config.image_size_px)
    data.prepare_corpus(source, out / "data", options=options, track=track)
    return out / "data"


def _train_teacher(out: Path, compute: Compute, track: Track) -> Path:
    options = TrainingOptions(compute=compute)
    first, last = training.PretrainingConfig(), training.GradingConfig()
    run = training.start_run(out / "teacher-pretrained", first, "pretrain-teacher", {}, resume=True)
    training.pretrain(run, first, options=options, track=track)
    scorer = models.load_fusion(run.folder)
    run = training.start_run(out / TEACHER_FOLDER, last, "grade-teacher", {"start": scorer.digest}, resume=True)
    training.grade(run, scorer, last, options=options, track=track)
    return run.folder


def _cache(data: Path, teacher: Any, out: Path, compute: Compute, track: Track) -> TeacherCache:
    candidates = training.load_recipe(DUAL).candidates
    return build_cache(Corpus.open(data, "train"), teacher.to(compute.device), out / "cache", candidates, compute=compute, track=track)


def _distill(
    name: str, data: Path, out: Path, teacher: Any, cache: TeacherCache, config: DemoConfig, compute: Compute, track: Track
) -> Any:
    # keep=last, because the measurements must not choose the weights.
    sets = [f"validation.every={config.measure_every}", "validation.keep=last"]
    sets += [] if config.steps is None else [f"optimizer.steps={config.steps}"]
    recipe = training.load_recipe(name)
    start = teacher if recipe.model.kind == "fusion" else None
    # Neighborhoods need the teacher's scores. Without them batches are random, which is also better for that student.
    inputs = Inputs(Corpus.open(data, "train"), [cache] if recipe.loss.needs_teacher else [], start)
    job = TrainingJob("distill", name, sets, _folder(out, name), resume=True)
    run = training.train(job, inputs, options=TrainingOptions(compute=compute), track=track)
    return models.load(run.folder)


def _measure(trained: MeasuredModels, corpus: Corpus, config: DemoConfig, compute: Compute, out: Path, track: Track) -> DemoResult:
    """Evaluate all five and time four, each in its folder. The time of the cascade is that of its dual encoder plus the re-ranking."""
    settings, students = config.bench, trained.students
    folders = {name: _folder(out, name) for name in students}
    # Depth 0 re-ranks nothing; the time of a depth is its difference from depth 0.
    options = EvalOptions(compute=compute, depths=(0, *config.depths))
    teacher = evaluation.evaluate_model(trained.teacher, corpus, options=options, track=track)
    _write_evaluation(out / TEACHER_FOLDER, trained.teacher_ref, teacher, corpus)
    evaluations, benches = {}, {}
    for name, student in students.items():
        evaluations[name] = evaluation.evaluate_model(student, corpus, options=options, track=track)
        _write_evaluation(folders[name], str(folders[name]), evaluations[name], corpus)
        pair = ModelPair(teacher=trained.teacher_ref, student=str(folders[name]), overrides={}, data=corpus.folder, split=corpus.split)
        benches[name] = compare_saved(pair, settings, device=compute.device, track=track)
    cascade = evaluation.evaluate_model(students[DUAL], corpus, rerank=students[FUSION], options=options, track=track)
    _write_evaluation(folders[DUAL], str(folders[DUAL]), cascade, corpus, reranker=str(folders[FUSION]))
    seconds = {name: bench.student.query(settings.reference_gallery, is_cached=True).seconds for name, bench in benches.items()}
    teacher_s = benches[DUAL].teacher.query(settings.reference_gallery, is_cached=True).seconds
    cascade_s = seconds[DUAL] + (cascade.depths[-1].ms_per_query - cascade.depths[0].ms_per_query) / 1000
    labels = [
        ("teacher (ViLT, 6 layers)", teacher, teacher_s),
        ("fusion student (3 layers), DCD", evaluations[FUSION], seconds[FUSION]),
        ("dual student, with the teacher's scores", evaluations[DUAL], seconds[DUAL]),
        ("the same dual, without a teacher", evaluations[DUAL_ALONE], seconds[DUAL_ALONE]),
        (f"cascade: dual, top {config.depths[-1]} by fusion student", cascade, cascade_s),
    ]
    rows = [Row(model=name, evaluation=measured, query_ms=1000 * s, speed_up=teacher_s / s) for name, measured, s in labels]
    result = DemoResult(rows, settings.reference_gallery, benches[DUAL].machine, out / "report.html")
    files.write_json(out / "demo.json", result.to_json())
    return result


def _folder(out: Path, name: str) -> Path:
    """The run folder of a student."""
    return out / name.removeprefix("demo-")


def _write_evaluation(folder: Path, model: str, measured: Evaluation, corpus: Corpus, **more: Any) -> None:
    """Write an evaluation into a folder, like `dcdctl eval`."""
    evaluation.write_evaluation(folder, {**evaluation.evaluation_document(measured, model, corpus.split), **more}, measured, corpus)
