"""What benchmarks/reliability.py tries: processes with limits, and a folder with one of everything that commands
read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parent.parent / "tests" / name) for name in ("support", "ground", "data", "models", "cli")
)

import numpy as np
import torch
from damage import digest_of
from encoders import make_pair, save_text, save_vision
from PIL import Image
from test_lower_layers import make_dual
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import DcdError
from dcdctl.core.scoring import features
from dcdctl.core.search import FolderIndex, IndexSearcher, storage
from dcdctl.core.teacher import read_cache, text_cache
from dcdctl.core.training import Run
from dcdctl.core.training.batches import texts

OUTCOMES = ("named", "harmless", "unnamed", "wrong", "traceback", "hang")
GOOD = ("named", "harmless")
CPU_LIMIT_S, WALL_LIMIT_S = 60.0, 300.0
"""Processor time and time of a trial, after which it counts as a hang. A busy machine needs the second to be large."""
CPU = ("--device", "cpu")
TEACHER_SIZES = ("model.hidden_size=32", "model.num_layers=2", "model.vocab_size=200")
SIZES = (*TEACHER_SIZES, "model.num_text_layers=1", "model.projection_dim=16")
BATCH = ("batch.size=8", "batch.random_negatives=4", "batch.hard_negatives=2")
CHECKPOINTS = ("optimizer.steps=6", "optimizer.save_every=2", "validation.every=3", "validation.max_images=4")
BENCH = tuple(
    f"--set={setting}"
    for setting in (
        "num_images=2",
        "batch_sizes=[1]",
        "gallery_sizes=[10]",
        "reference_gallery=10",
        "num_repeats=1",
        "budget_s=0.05",
        "is_onnx_timed=false",
    )
)
TIMES = {"seconds", "ms_per_query", "pairs_per_s", "checksum", "images_per_s", "queries_per_s"}
"""Entries of documents that differ from run to run."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: `kind` is ok, named, traceback, signal, hang or killed."""

    kind: str
    text: str = ""
    """The result, or the message."""
    cpu_s: float = 0.0
    """Processor time that it took."""


def in_fork(
    work: Callable[[], str],
    *,
    cpu_s: float = CPU_LIMIT_S,
    wall_s: float = WALL_LIMIT_S,
    kill_at_cpu_s: float | None = None,
) -> Ended:
    """Do the work in a child process, which writes how it ended into a file.

    `kill_at_cpu_s` is the processor time after which the child gets SIGKILL; it may end before.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            with contextlib.redirect_stderr(io.StringIO()):
                json.dump(vars(_ended(work)), file)
                file.flush()
            os._exit(0)
        kind, status, used_s = _wait(child, cpu_s, wall_s, kill_at_cpu_s)
        file.seek(0)
        data = file.read()
    if data and status == 0:
        return Ended(**{**json.loads(data), "cpu_s": used_s})
    return Ended(kind or "signal", f"wait status {status}", used_s)


def _wait(child: int, cpu_s: float, wall_s: float, kill_at_cpu_s: float | None) -> tuple[str, int, float]:
    """Why the child was killed (empty if it was not), its wait status, and its processor time in seconds."""
    kind, ends, clock = "", time.monotonic() + wall_s, (~child << 3) | 2  # the clock of a process on Linux
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)  # workers that it left behind
            return kind, status, usage.ru_utime + usage.ru_stime
        used_s = 0.0
        with contextlib.suppress(OSError):
            used_s = time.clock_gettime(clock)
        if not kind and kill_at_cpu_s is not None and used_s > kill_at_cpu_s:
            kind = "killed"
        elif not kind and (used_s > cpu_s or time.monotonic() > ends):
            kind = "hang"
        if kind:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.0005)


def _ended(work: Callable[[], str]) -> Ended:
    torch.set_num_threads(1)
    try:
        return Ended("ok", work())
    except DcdError as error:
        return Ended("named", str(error))
    except SystemExit as error:
        return Ended("named", str(error))
    except BaseException as error:
        return Ended("traceback", f"{error!r}"[:1500] + _place_of(error))


def _place_of(error: BaseException) -> str:
    """The last lines of the traceback, as file names and line numbers."""
    places, frame = [], error.__traceback__
    while frame is not None:
        places.append(f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}")
        frame = frame.tb_next
    return f" at {' '.join(places[-6:])}"


def dcdctl(*words: object) -> str:
    """stdout of a command; SystemExit with the message for an error that it names, else the exception."""
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    lines = result.stderr.strip().splitlines()
    if result.exit_code == 0:
        return result.stdout
    is_one_line = sum(line.startswith("error:") for line in lines) == 1 and lines[-1].startswith("error:")
    if result.exit_code == 2 or (result.exit_code == 1 and is_one_line):
        raise SystemExit(lines[-1])
    raise RuntimeError(f"exit status {result.exit_code}: {result.stderr[-500:]}")


def sets(*assignments: str) -> list[str]:
    """The assignments as options."""
    return [word for assignment in assignments for word in ("--set", assignment)]


def contents(folder: Path) -> str:
    """A checksum of all files of a folder."""
    return digest_of(
        {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    )


def trained(folder: Path) -> str:
    """A checksum of a run's model (weights, tokenizer, settings) and of its metrics without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [{key: value for key, value in line.items() if key not in TIMES and "per_s" not in key} for line in lines]
    model = {path.name: path.read_bytes() for path in sorted((folder / "model").rglob("*")) if path.is_file()}
    settings = json.loads(model.pop("dcdctl.json"))  # it names its run, and so the folder of that
    digest = models.load(folder, kind="query" if settings["kind"] == "query" else None).digest
    return digest_of([values, digest, model, {**settings, "run": "", "checksum": ""}])


def measured(folder: Path) -> str:
    """A checksum of an evaluation's ranks, answers and numbers without the times, and of the features beside it."""
    tables = [path.read_bytes() for path in sorted((folder / "eval").glob("*.parquet"))]
    document = json.loads((folder / "eval" / "result.json").read_text(encoding="utf-8"))
    return digest_of(
        [
            tables,
            {key: value for key, value in document.items() if key not in {*TIMES, "run"}},
            contents(folder / "features"),
        ]
    )


def searched(folder: Path) -> str:
    """A checksum of names and vectors of an index by row, and of what is nearest to each."""
    index = FolderIndex.open(folder)
    rows = np.arange(index.num_rows)
    vectors = index.stored(rows).data
    return digest_of([index.values("image_id").to_pylist(), vectors, *index.nearest(vectors.astype(np.float32), 3)])


def answers(folder: Path) -> str:
    """The same as `searched`, and the answers to texts."""
    found = IndexSearcher.for_index(FolderIndex.open(folder), device="cpu").by_texts(["a red circle", "circle"], 12)
    return searched(folder) + digest_of([[(hit.name, hit.score) for hit in each.hits] for each in found])


def followed(folder: Path) -> str:
    """A checksum of all that an index holds by row: names, vectors or tokens, copies, files, columns and folders."""
    index = FolderIndex.open(folder)
    facts = index.image_files
    known = [
        [index.values("image_id").to_pylist(), vars(index.stored(np.arange(index.num_rows)))],
        facts.group_R,
        facts.table.to_pydict(),
        [str(source.path) for source in index.document.sources],
        [index.is_removed, index.stored_columns.table().to_pydict()],
        storage.skipped_of(folder, index.document),
    ]
    return digest_of(known)


def in_rounds(folder: Path) -> str:
    """The model of a training in rounds, the scores of all rounds, and what is noted of each round."""
    caches = []
    for cache in map(read_cache, sorted((folder / "run-rounds").glob("cache-*"))):
        caches.append([cache.folder.name, cache.image_P, cache.text_P, cache.score_P, cache.role_P])
    proposers = [models.load(run).digest for run in sorted((folder / "run-rounds").glob("run-*"))]
    return trained(folder / "run") + digest_of([caches, proposers, Run(folder / "run").facts().get("rounds")])


def from_stored_states(folder: Path) -> str:
    """The model of a training, and the states that it stored."""
    return trained(folder / "run") + contents(folder / "features")


def listing(folder: Path) -> str:
    """The names of all files: of what holds times or dates."""
    return "\n".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


@dataclass(frozen=True)
class Job:
    """A command that writes `out`, and what its result is."""

    name: str
    words: Callable[[Path], list[object]]
    result: Callable[[Path], str] = contents
    start: Callable[[Path], object] = lambda out: None
    """What is there before."""


class Stage:
    """One of everything, tiny. The names are those of tests/cli/test_resolve.py."""

    chosen: Sequence[str] = ()
    """The names of what is tried; all if empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus, self.fusion, self.dual, self.cache = (
            folder / name for name in ("CORPUS", "FUSION", "DUAL", "CACHE")
        )
        self.photos, self.more, self.index, self.pair = (folder / name for name in ("PHOTOS", "MORE", "INDEX", "PAIR"))
        self.pool, self.late, self.vectors, self.tokens, self.query, self.late_query = (
            folder / name for name in ("POOL", "LATE", "VECTORS", "TOKENS", "QUERY", "LATE_QUERY")
        )
        self.followed, self.moved = folder / "FOLLOWED", folder / "MOVED"
        self.planned = folder / "PLANNED"
        self.layered, self.other_layered = folder / "LAYERED", folder / "OTHER_LAYERED"
        self.jobs = [
            *self._resuming_jobs(),
            *self._jobs_of_texts(),
            *self._jobs_in_rounds(),
            *self._jobs_of_folders(),
            Job("distill, last layers", lambda out: self.last_layers(out, out / "features"), from_stored_states),
        ]
        self.by_name = {job.name: job for job in self.jobs}
        self.more_jobs = self._other_writers()

    def _resuming_jobs(self) -> list[Job]:
        """Commands that resume after a kill."""
        data, steps = ("--data", self.corpus), sets(*SIZES, "batch.size=8", *CHECKPOINTS)
        prepare = [
            "prepare",
            "scenes",
            "--workers",
            1,
            *sets("counts.train=24", "counts.val=4", "counts.test=8", "side_px=32"),
        ]
        self.distill: list[object] = ["distill", "demo-dual", *data, "--cache", self.cache, *CPU, "--resume", *steps]
        pretrain = [
            "finetune-teacher",
            "tiny-teacher",
            *data,
            *CPU,
            "--resume",
            *sets(*TEACHER_SIZES, *BATCH, *CHECKPOINTS),
        ]
        score = ["cache-teacher", *data, "--teacher", self.fusion, "--recipe", "demo-dual", *CPU]
        embed = ["index", self.dual, "--images", self.photos, "--workers", 0, *CPU]
        return [
            Job("prepare", lambda out: [*prepare, "--out", out]),
            Job("finetune-teacher", lambda out: [*pretrain, "--out", out], trained),
            Job("cache-teacher", lambda out: [*score, "--out", out]),
            Job("distill", lambda out: [*self.distill, "--out", out], trained),
            Job("index", lambda out: [*embed, "--out", out]),
            Job(
                "index --add",
                lambda out: ["index", out, "--add", self.more, "--workers", 0, *CPU],
                searched,
                lambda out: shutil.copytree(self.index, out),
            ),
            Job("eval", lambda out: ["eval", self.dual, *data, *CPU, "--out", out / "eval"], measured),
            Job(
                "eval --features",
                lambda out: ["eval", self.pair, *data, *CPU, "--out", out / "eval", "--features", out / "features"],
                measured,
            ),
        ]

    def _jobs_of_texts(self) -> list[Job]:
        """The same for pools, texts, query encoders and late-interaction models."""
        few = sets("batch.size=8", *CHECKPOINTS[:2], "validation.every=3")
        pooled = sets(*SIZES, "batch.size=8", *CHECKPOINTS, "model.token_dim=8")
        query: list[object] = ["distill", "query-static", *CPU, "--resume", *few]
        new = sets("model.text=", "model.hidden_size=16", "model.vocab_size=60")
        tokens = ["--teacher", self.late, *sets("model.text=teacher")]
        late = ["distill", "demo-late", "--data", self.corpus, "--cache", self.cache, *CPU, "--resume", *pooled]
        read = ["cache-teacher", "--texts", self.folder / "TEXTS.csv", *CPU]
        images = ["--images", self.photos, "--workers", 0, *CPU]
        both = ["--data", self.corpus, "--pool", self.pool, "--teacher", self.dual]
        mixed = [*sets(*SIZES, "batch.size=8", *CHECKPOINTS, "loss.terms={ infonce = 1.0, kl = 1.0 }"), *CPU]
        return [
            Job(
                "prepare, pool",
                lambda out: [
                    *("prepare", "--images", self.photos, "--queries", self.folder / "TEXTS.csv", "--workers", 1),
                    *("--name", "pool", "--out", out),
                ],
            ),
            Job(
                "distill, pool", lambda out: ["distill", "demo-dual", *both, *mixed, "--resume", "--out", out], trained
            ),
            Job("distill, late", lambda out: [*late, "--out", out], trained),
            Job("cache-teacher --texts", lambda out: [*read, "--teacher", self.dual, "--out", out]),
            Job("cache-teacher --texts, tokens", lambda out: [*read, "--teacher", self.late, "--out", out]),
            Job(
                "cache-teacher --texts --extend",
                lambda out: [
                    *("cache-teacher", "--texts", self.folder / "MORE.csv", "--teacher", self.dual, *CPU),
                    *("--extend", self.vectors, "--out", out),
                ],
            ),
            Job("distill, query", lambda out: [*query, *new, "--cache", self.vectors, "--out", out], trained),
            Job(
                "distill, query of tokens",
                lambda out: [*query, *tokens, "--cache", self.tokens, "--out", out],
                trained,
            ),
            Job("index, tokens", lambda out: ["index", self.late, *images, "--out", out]),
            Job(
                "index, query model",
                lambda out: ["index", self.dual, *images, "--query-model", self.query, "--out", out],
            ),
            Job(
                "index --query-model",
                lambda out: ["index", out, "--query-model", self.query, *CPU],
                answers,
                lambda out: shutil.copytree(self.index, out),
            ),
        ]

    def _jobs_in_rounds(self) -> list[Job]:
        """Trainings for which a teacher scores what a student proposes, and tasks of its work list."""
        few = sets("batch.size=8", *CHECKPOINTS[:2])
        rounds = sets("pool.rounds=3", "candidates.per_query=6", "pool.images=6", "pool.texts=6")
        late: list[object] = ["late-mined", "--data", self.corpus, *sets(*SIZES, *CHECKPOINTS, "model.token_dim=8")]
        start = sets(f"model.start={self.dual}")
        captioned = ["--data", self.corpus, "--pool", self.pool, *sets("validation.max_images=4")]
        jobs: dict[str, list[object]] = {
            "distill late-mined": [*late, *sets("candidates.per_query=4")],
            "distill pool-picked": ["pool-picked", "--data", self.pool, *rounds, *start],
            "distill pool-picked, budget": [
                *("pool-picked", "--data", self.pool, *rounds, *start, *sets("pool.max_pairs=200")),
                *sets("pool.pseudo_positive_above=none", "loss.terms={ kl = 1.0 }"),
            ],
            "distill pool-picked-late, captions": [
                "pool-picked-late",
                *captioned,
                *rounds,
                *sets(f"model.start={self.late}"),
            ],
        }
        with_teacher = ("--teacher", "reliability_teachers:judge", *few, *CPU, "--resume")
        work = ["score-work", self.planned / "work", "--teacher", self.fusion, "--device", "cpu"]
        embed = ["embed-work", self.folder / "LIST", self.dual, "--workers", 0, *CPU]
        return [
            *(
                Job(name, lambda out, words=words: ["distill", *words, *with_teacher, "--out", out / "run"], in_rounds)
                for name, words in jobs.items()
            ),
            Job("score-work", lambda out: [*work, "--out", out]),
            Job("embed-work", lambda out: [*embed, "--out", out]),
        ]

    def _jobs_of_folders(self) -> list[Job]:
        """Indexes that follow their folders, libraries of photos, and copies."""
        photos: list[object] = ["photos", self.photos, "--out"]
        captions = [self.folder / "CAPTIONS.csv", "--vision", self.folder / "VISION", "--text", self.folder / "TEXT"]
        return [
            Job(
                "index --sync",
                lambda out: ["index", out, "--sync", *CPU],
                followed,
                lambda out: shutil.copytree(self.folder / "FOLLOWED_INDEX", out),
            ),
            Job(
                "index --sync, tokens",
                lambda out: ["index", out, "--sync", *CPU],
                followed,
                lambda out: shutil.copytree(self.folder / "FOLLOWED_TOKENS", out),
            ),
            Job(
                "index --moved",
                lambda out: ["index", out, "--moved", self.folder / "OLD", self.moved],
                followed,
                lambda out: shutil.copytree(self.folder / "MOVED_INDEX", out),
            ),
            Job("photos", lambda out: [*photos, out, "--model", self.dual], lambda out: followed(out / "index")),
            Job(
                "photos, captions",
                lambda out: [*photos[:-1], *captions, "--out", out],
                lambda out: followed(out / "index") + trained(out / "run"),
            ),
        ]

    def last_layers(self, out: Path, states: Path) -> list[object]:
        """A training of the last layers of two encoders from the states below them."""
        trained_parts = sets(f"model.start={self.layered}", "model.trained=last-layers", "model.trained_layers=1")
        steps = sets("batch.size=8", *CHECKPOINTS[:3])
        inputs = ("--data", self.corpus, "--features", states, *CPU)
        return ["distill", "photos", *inputs, "--resume", *trained_parts, *steps, "--out", out / "run"]

    def _other_writers(self) -> list[Job]:
        """Commands that start again."""
        pair = ("--teacher", self.fusion, "--data", self.corpus, "--split", "test")
        bench = Job(
            "bench",
            lambda out: ["bench", out, *pair, *BENCH, *CPU],
            listing,
            lambda out: shutil.copytree(self.dual, out),
        )
        report = Job(
            "report",
            lambda out: ["report", self.dual, "--out", out / "page.html", "--to-csv", out / "numbers.csv"],
            listing,
        )
        kinds = ("transformers", "sentence-transformers", "onnx")
        exports = [
            Job(
                f"export --to {kind}", lambda out, kind=kind: ["export", self.dual, "--out", out, "--to", kind], listing
            )
            for kind in kinds
        ]
        return [Job("convert", lambda out: ["convert", self.fusion, "--out", out]), *exports, report, bench]

    def make_inputs(self) -> None:
        """Write what the commands read."""
        # Several parts of texts, and windows of one part each; several files of features.
        text_cache.TEXTS_PER_PART, texts.WINDOW_BYTES, features.IMAGES_PER_FILE = 16, 1, 8
        self.make("prepare", self.by_name["prepare"].words(self.corpus))
        for folder, first, count in ((self.photos, 0, 12), (self.more, 12, 6)):
            folder.mkdir()
            for number in range(first, first + count):
                rng = np.random.default_rng(number)
                # Noise alone looks the same to a network.
                color, noise = rng.integers(0, 191, 3), rng.integers(0, 63, (32, 32, 3))
                Image.fromarray((color + noise).astype(np.uint8)).save(folder / f"{number:02}.png")
        captions = Corpus.open(self.corpus, "train").captions
        for name, some in (("TEXTS.csv", captions[:40]), ("MORE.csv", captions[20:])):
            lines = (f"{text},{'de' if number % 3 else ''}\n" for number, text in enumerate(some))
            (self.folder / name).write_text("text,language\n" + "".join(lines))
        for name, folder in (
            ("finetune-teacher", self.fusion),
            ("cache-teacher", self.cache),
            ("distill", self.dual),
            ("index", self.index),
            ("prepare, pool", self.pool),
            ("distill, late", self.late),
            ("cache-teacher --texts", self.vectors),
            ("cache-teacher --texts, tokens", self.tokens),
            ("distill, query", self.query),
            ("distill, query of tokens", self.late_query),
            ("index, tokens", self.folder / "LATE_INDEX"),
            ("index, query model", self.folder / "QUERY_INDEX"),
        ):
            self.make(name, self.by_name[name].words(folder))
        for name in ("EVALUATION", "EVALUATION2"):
            self.make("eval", ["eval", self.dual, "--data", self.corpus, *CPU, "--out", self.folder / name])
        self.make("eval", ["eval", self.dual, "--data", self.corpus, *CPU])
        self.make("bench", self.more_jobs[-1].words(self.dual))
        self._make_lists()
        self._make_folders_that_change()

        def save_pair() -> str:
            models.save(
                make_pair(list(Corpus.open(self.corpus, "train").captions), self.folder / "encoders"), self.pair
            )
            return ""

        if (ended := in_fork(save_pair)).kind != "ok":
            raise SystemExit(f"the pair of encoders: {ended}")
        self._make_layered()
        (self.folder / "PAIRS.csv").write_text("image,caption\n00.png,a dog\n")
        (self.folder / "TAKEN").mkdir()
        (self.folder / "TAKEN" / "letter.txt").write_text("dear")
        (self.folder / "FILE").write_text("dear")

    def _make_layered(self) -> None:
        """Two dual encoders over encoders of several layers, which differ in every weight."""

        def save() -> str:
            dual = make_dual(list(Corpus.open(self.corpus, "train").captions), self.folder / "layered encoders")
            models.save(dual, self.layered)
            with torch.no_grad():
                for parameter in dual.parameters():
                    parameter += 0.01
            models.save(dual, self.other_layered)
            return ""

        if (ended := in_fork(save)).kind != "ok":
            raise SystemExit(f"the dual encoders over layers: {ended}")

    def _make_lists(self) -> None:
        """A work list, a list of images, and encoders with captions for `photos`."""
        scored = ["cache-teacher", "--data", self.corpus, "--recipe", "demo-dual", "--out", self.planned]
        self.make("a work list", [*scored, "--plan-only", "--with", "captions,bytes"])
        images = ["index", self.dual, "--images", self.photos, "--out", self.folder / "LIST", "--plan-only"]
        self.make("a list of images", images)
        captions = Corpus.open(self.corpus, "train").captions[:12]
        lines = [f"{number:02}.png,{text}" for number, text in enumerate(captions)]
        (self.folder / "CAPTIONS.csv").write_text("\n".join(["image,caption", *lines]))

        def save_encoders() -> str:
            save_vision("timm map", self.folder / "VISION")
            save_text("bert", list(captions), self.folder / "TEXT")
            return ""

        if (ended := in_fork(save_encoders)).kind != "ok":
            raise SystemExit(f"the encoders of photos: {ended}")

    def _make_folders_that_change(self) -> None:
        """Indexes of a folder in which photos came, went, moved and changed since, and of a folder that moved."""
        old = self.folder / "OLD"
        for folder in (self.followed, old):
            shutil.copytree(self.photos, folder)
        shutil.copy(self.followed / "03.png", self.followed / "copy of 03.png")
        (self.followed / "broken.png").write_bytes(b"no image")
        for name, model, folder in (
            ("FOLLOWED_INDEX", self.dual, self.followed),
            ("FOLLOWED_TOKENS", self.late, self.followed),
            ("MOVED_INDEX", self.dual, old),
        ):
            words = ["index", model, "--images", folder, "--workers", 0, "--keywords", *CPU]
            self.make(name, [*words, "--out", self.folder / name])
        old.rename(self.moved)
        there = self.followed
        (there / "album").mkdir()
        (there / "00.png").unlink()
        (there / "01.png").rename(there / "album" / "moved.png")
        os.utime(there / "02.png", (1, 1))
        with Image.open(there / "04.png") as image:
            changed = image.transpose(Image.Transpose.ROTATE_90)
        changed.save(there / "04.png")
        shutil.copy(there / "05.png", there / "album" / "copy of 05.png")
        shutil.copy(self.more / "12.png", there / "broken.png")
        for name in ("13.png", "14.png", "15.png"):
            shutil.copy(self.more / name, there / "album" / name)
        with Image.open(there / "06.png") as image:
            image.convert("RGB").save(there / "looks like 06.jpg", quality=95)

    @staticmethod
    def make(name: str, words: Sequence[object]) -> Ended:
        """Run a command that must end well."""
        if (ended := in_fork(lambda: dcdctl(*words), cpu_s=600, wall_s=3600)).kind != "ok":
            raise SystemExit(f"{name} did not end well: {ended}")
        return ended

    def undisturbed(self, job: Job) -> tuple[Path, str, float]:
        """The folder, the result and the processor time of a job."""
        out = self.folder / "undisturbed" / job.name.replace(" ", "-")
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            job.start(out)
        ended = self.make(job.name, job.words(out))
        return out, job.result(out), ended.cpu_s


def outcome_of(ended: Ended, expected: str | None = None, about: Sequence[str] = ()) -> str:
    """The column of a trial.

    Without `expected`, any result is harmless. A message must hold one of the words of `about`, if there are any.
    """
    if ended.kind == "ok":
        return "harmless" if expected in (None, ended.text) else "wrong"
    if ended.kind == "named":
        return "named" if not about or any(word in ended.text for word in about) else "unnamed"
    return "hang" if ended.kind == "hang" else "traceback"


Trial = tuple[str, str, str]
"""The row of the table, the outcome, and the details of one that must not be."""
Part = Callable[[Stage, random.Random, int], Iterator[Trial]]
