"""All of dynamic contrastive distillation on the built-in corpus, in minutes on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcdctl.core import data, evaluation, files, models, report, scoring, training
from dcdctl.core.bench import QUICK, Bench, BenchConfig, BenchJob, run_bench
from dcdctl.core.data import Corpus, Scores
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import EvalOptions, Evaluation
from dcdctl.core.models import Scorer
from dcdctl.core.progress import Say, Track, digits, silent, unsaid
from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions

BUILT_IN_TEACHER = "scenes-vilt"
RECIPE = "demo-picked"
TEACHER, CASCADE, PICKED, FEW, ALL = "teacher", "cascade", "picked", "few", "all"
STUDENTS = (FEW, PICKED, ALL)
"""The folders of the students, in the order in which they are trained."""
LABELS = {
    TEACHER: "teacher (ViLT, 6 layers)",
    CASCADE: "captions of {few} scenes and the teacher's picks, top {depth} by the teacher",
    PICKED: "captions of {few} scenes and the teacher's picks",
    FEW: "captions of {few} scenes",
    ALL: "captions of {train:,} scenes",
}
"""The rows of the final table. All students are the same late-interaction model, from the same start."""
BENCH = replace(QUICK, budget_s=3.0, num_repeats=5)
"""How queries are timed: three models against one teacher."""


@dataclass(frozen=True, kw_only=True)
class DemoJob:
    """Where a demo is made, how large, and on which device."""

    out: Path
    compute: Compute = ON_CPU
    train_images: int = 1024
    """Few compared with the teacher's own training images, like a user's images compared with those of a pretrained
    model."""
    few_images: int = 128
    """The first ones have captions. Images and captions of the others are a pool."""
    val_images: int = 32
    test_images: int = 1000
    """The gallery of a query. Students rank all of them with all their captions; the teacher would take an hour."""
    num_queries: int = 32
    """Captions, the first ones, for which the teacher too ranks the whole gallery."""
    image_size_px: int = 64
    """Size of the images for the models; they are resized once, not in every step."""
    depth: int = 5
    """Candidates per query that the cascade re-ranks."""
    steps: int | None = None
    """Training steps of each student; None for the recipe's own."""
    sets: tuple[str, ...] = ()
    """More settings of the recipe, as `dcdctl distill --set` takes them."""
    measure_every: int = 100
    """Training steps between measurements on the validation split. They do not affect the training."""
    bench: BenchConfig = BENCH


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the final table."""

    name: str
    """A key of `LABELS`."""
    model: str
    """Its label."""
    evaluation: Evaluation | None
    """Of all test images and their captions; None for the teacher."""
    gallery_recall: float
    """Image R@1 of the teacher's captions over the whole gallery, in percent."""
    query_ms: float
    """What a caption costs against the gallery, whose images are encoded."""
    speed_up: float
    """The teacher's time over this one."""

    @property
    def rsum(self) -> float:
        """The sum of the recalls of a student."""
        assert self.evaluation is not None
        return self.evaluation.rsum


@dataclass(frozen=True)
class DemoResult:
    rows: list[Row]
    gallery_size: int
    num_queries: int
    """Captions that the teacher too has looked for."""
    depth: int
    """Candidates that the teacher re-ranks in the cascade."""
    machine: dict[str, Any]
    page: Path
    """The report."""

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def summary(self) -> str:
        """What the teacher brought, in words."""
        teacher, cascade, picked, few, every = self.rows
        gain, share = picked.rsum - few.rsum, picked.rsum / every.rsum
        return "\n".join(
            [
                f"The teacher's picks brought {gain:+.1f} RSUM to a student of the {few.model}, which then has "
                f"{share:.0%} of the RSUM of a student of the {every.model}.",
                f"Over {self.gallery_size:,} images, this student is {digits(picked.speed_up)} times as fast as the "
                f"teacher; with its first {self.depth} re-ranked by the teacher it has an image R@1 of "
                f"{cascade.gallery_recall:.1f}, where the teacher has {teacher.gallery_recall:.1f}, and answers in "
                f"{digits(cascade.query_ms)} ms in place of {digits(teacher.query_ms)} ms.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """The table for JSON."""
        keys = ("images", "captions", "text_retrieval", "image_retrieval", "rsum")
        rows = []
        for row in self.rows:
            found = {} if row.evaluation is None else {key: row.evaluation.document[key] for key in keys}
            costs = {"gallery_recall": row.gallery_recall, "query_ms": row.query_ms, "speed_up": row.speed_up}
            rows.append({"name": row.name, "model": row.model, **found, **costs})
        return {
            "rows": rows,
            "gallery_size": self.gallery_size,
            "num_queries": self.num_queries,
            "machine": self.machine,
            "summary": self.summary,
        }


def run_demo(job: DemoJob, *, announce: Say = unsaid, track: Track = silent) -> DemoResult:
    """Prepare, train a student of few captions, let it propose what the teacher scores, train another one with the
    teacher's picks and one with all captions, evaluate all and report; finished steps are not repeated.

    InputError if `job.out` holds something that is not a demo, or cannot be written.
    """
    out = job.out
    files.check_output_folder(out)
    # The folder `data` is what a demo writes first.
    if not files.is_vacant(out) and not (out / "data").is_dir():
        raise InputError(f"{out} holds something that is not a demo", hint="name an empty or a new folder with --out")
    announce(f"1. prepare: draw the corpus; of {job.few_images} scenes the captions are known, of the others not")
    counts = {"train": job.train_images, "val": job.val_images, "test": job.test_images}
    source = data.find_manifest("scenes", [f"counts.{split}={count}" for split, count in counts.items()])
    options = data.PrepareOptions(image_size_px=job.image_size_px)
    data.prepare_corpus(source, out / "data", options=options, track=track)
    _prepare_pool(job, track)
    announce("2. distill: a student of few captions")
    _train(job, FEW, track)
    announce("3. distill: it proposes images for the texts, the teacher scores them, and a student learns from both")
    _train(job, PICKED, track)
    announce("4. distill: a student of all captions, to compare with")
    _train(job, ALL, track)
    announce("5. eval and bench: recall in both directions, time per query")
    result = _measure(job, track)
    announce("6. report: all results on one page")
    folders = [out / name for name in (PICKED, ALL)]
    report.write_report_page(result.page, report.read_report(folders, baseline=out / FEW))
    return result


def _prepare_pool(job: DemoJob, track: Track) -> None:
    """The images and the captions of the further training scenes, without pairing."""
    corpus, folder = Corpus.open(job.out / "data", "train"), job.out / "photos"
    texts = job.out / "texts.txt"
    # Written last: the images are then complete.
    if not texts.exists():
        folder.mkdir(exist_ok=True)
        captions = []
        for image in range(job.few_images, corpus.num_images):
            (folder / f"{image:05}.png").write_bytes(corpus.image_bytes(image))
            captions += [corpus.captions[text] for text in corpus.captions_of(image)]
        order = np.random.default_rng(0).permutation(len(captions))
        files.write_text(texts, "".join(f"{captions[text]}\n" for text in order))
    manifest = data.choose_manifest(data.PrepareJob(images=folder, queries=texts, hold_out=0))
    data.prepare_corpus(manifest, job.out / "pool", track=track)


def _train(job: DemoJob, name: str, track: Track) -> None:
    # keep=last, because the measurements must not choose the weights.
    sets = [f"validation.every={job.measure_every}", "validation.keep=last", *job.sets]
    if job.steps is not None:
        sets.append(f"optimizer.steps={job.steps}")
    inputs = InputRefs(data=job.out / "data", max_images=None if name == ALL else job.few_images)
    if name == PICKED:
        sets.append(f"candidates.model={job.out / FEW}")
        inputs = replace(inputs, pool=job.out / "pool", teachers=[BUILT_IN_TEACHER])
    else:
        sets += training.sets_of_captions(training.load_recipe(RECIPE, sets))
    training_job = TrainingJob("distill", RECIPE, sets, job.out / name, resume=True)
    training.train_in_rounds(training_job, inputs, options=TrainingOptions(compute=job.compute), track=track)


def _measure(job: DemoJob, track: Track) -> DemoResult:
    """Evaluate and time the students, each in its folder, and let the teacher rank the gallery for a few captions."""
    gallery = Corpus.open(job.out / "data", "test")
    # Depth 0 re-ranks nothing; the time of a depth is its difference from depth 0.
    options = EvalOptions(compute=job.compute, depths=(0, job.depth))
    refs = {TEACHER: BUILT_IN_TEACHER, **{name: str(job.out / name) for name in STUDENTS}}
    scorers = {name: models.load_scorer(ref).to(job.compute.device).eval() for name, ref in refs.items()}
    scores_IQ = {name: _gallery_scores(scorer, gallery, job, track) for name, scorer in scorers.items()}
    evaluations: dict[str, Evaluation] = {}
    benches: dict[str, Bench] = {}
    for name in STUDENTS:
        measured = evaluation.evaluate_model(models.load(refs[name]), gallery, options=options, track=track)
        evaluations[name] = evaluation.write_evaluation(job.out / name, measured.evaluation(refs[name]), measured)
        timed = BenchJob(
            refs[name],
            BUILT_IN_TEACHER,
            gallery.folder,
            split=gallery.split,
            device=str(job.compute.device),
            config=job.bench,
        )
        benches[name] = run_bench(timed, track=track)
    measured = evaluation.evaluate_model(
        scorers[PICKED], gallery, rerank=scorers[TEACHER], options=options, track=track
    )
    by_teacher = measured.evaluation(refs[PICKED], reranker=BUILT_IN_TEACHER)
    evaluations[CASCADE] = evaluation.write_evaluation(job.out / PICKED, by_teacher, measured)
    rank_IQ = (-scores_IQ[PICKED]).argsort(axis=0, kind="stable").argsort(axis=0)
    scores_IQ[CASCADE] = np.where(rank_IQ < job.depth, scores_IQ[TEACHER], -np.inf)
    ms = {name: 1000 * bench.student.query(len(rank_IQ), is_cached=True).seconds for name, bench in benches.items()}
    ms[TEACHER] = 1000 * benches[PICKED].teacher.query(len(rank_IQ), is_cached=True).seconds
    # Re-ranking has the same number of candidates in a gallery of any size.
    shallow, deep = evaluations[CASCADE].depths
    ms[CASCADE] = ms[PICKED] + deep.ms_per_query - shallow.ms_per_query
    image_Q, queries = gallery.caption_image[: job.num_queries], np.arange(job.num_queries)
    rows = []
    for name, label in LABELS.items():
        # A tie counts against the positive.
        is_first_Q = (scores_IQ[name] >= scores_IQ[name][image_Q, queries]).sum(axis=0) == 1
        row = Row(
            name=name,
            model=label.format(few=job.few_images, train=job.train_images, depth=job.depth),
            evaluation=evaluations.get(name),
            gallery_recall=100 * float(is_first_Q.mean()),
            query_ms=ms[name],
            speed_up=ms[TEACHER] / ms[name],
        )
        rows.append(row)
    result = DemoResult(
        rows, gallery.num_images, len(queries), job.depth, benches[PICKED].machine, job.out / "report.html"
    )
    files.write_json(job.out / "demo.json", result.to_json())
    return result


def _gallery_scores(scorer: Scorer, gallery: Corpus, job: DemoJob, track: Track) -> Scores:
    """The scores of all images with the first captions, I x Q."""
    shape = gallery.num_images, job.num_queries
    image_P, text_P = (index.ravel() for index in np.indices(shape))
    source = scoring.open_source(gallery, scorer, job.compute, track)
    with track(f"rank {shape[0]:,} images", total=len(image_P), unit="pairs") as advance:
        scores_P = scoring.score_pairs(scorer, source, image_P, text_P, compute=job.compute, advance=advance)
    return scores_P.reshape(shape)
