"""The speed-up of a query over 1,000 images at the sizes of published models, with random weights.

    python benchmarks/real_sizes.py --out work/real-sizes
    python benchmarks/real_sizes.py --out work/real-sizes --teachers vilt meter-384
    python benchmarks/real_sizes.py --out work/toy --size toy

Each teacher is timed in a process of its own, in turns with all students, on two threads, by the steps and the timer of
`dcdctl bench`: encode a caption, score it against images that are encoded before, find the top ten. Weights are
float32, and the reranker's bfloat16. A teacher scores as many images as `Teacher.timed` says, and 1,000 are
extrapolated from these as `dcdctl bench` does it. A cascade is the sum of a student's time over 1,000 images and of the
teacher's over the first two or five.

GPUs are not timed. Their rows are arithmetic: the operations that torch counts, over a share of the throughput of a
data sheet.

OUT/TEACHER.json is written after each teacher, and a teacher that has one is not timed again: a stopped run resumes.
Ends with the page docs/evidence/results/real-sizes/README.md on stdout, also in OUT/README.md. The models stay in
OUT/models (12 GB), so `dcdctl bench OUT/models/late-b32 --teacher OUT/models/vilt --data OUT/data` times two of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import dcdctl  # noqa: F401  # before torch: it sets how long torch's threads spin

# isort: split

import torch
from real_models import PHOTO_PX, Maker, photos
from reports import facts, say, table
from transformers.utils import logging

from dcdctl.core import artifacts, devices, files, models
from dcdctl.core.bench import BenchConfig
from dcdctl.core.bench.footprint import FLOAT32_BYTES, count_flops
from dcdctl.core.bench.steps import BenchModel, Encoded, prepare_model
from dcdctl.core.bench.timer import Quantity, Timer, Work
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.models import Model
from dcdctl.core.progress import digits

GALLERY = 1000
FIRST = (2, 5)
"""Images that the teacher scores again behind a student."""
BATCH = 10
"""Images of the corpus, and pairs in a forward pass."""
COUNTED = 2
"""Images whose operations are counted."""
THREADS = 2
TEACHER = "teacher"
GPUS = {"A100": 312e12, "H100": 989e12}
"""Operations per second in dense bfloat16 by the data sheets of the SXM modules."""
GPU_SHARE = 0.4
"""Of a GPU's operations per second that a transformer in large batches usually reaches."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher, and how it is timed."""

    label: str
    make: Callable[[Maker, Path], None]
    timed: int = 50
    """Images of the largest query that is timed."""
    rounds: int = 3
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As --model-set gives them."""


TEACHERS = {
    "vilt": Teacher(label="ViLT-B/32", make=Maker.vilt),
    "meter-288": Teacher(label="METER, 288 px", make=partial(Maker.meter, image_px=288)),
    "meter-384": Teacher(label="METER, 384 px", make=partial(Maker.meter, image_px=384)),
    "blip-large": Teacher(label="BLIP large, 384 px", make=Maker.blip),
    "reranker-2b": Teacher(
        label="Qwen3-VL 2B, bf16", make=Maker.reranker, timed=8, rounds=2, settings={"dtype": "bfloat16"}
    ),
}
STUDENTS = {
    "late-b32": "late interaction, ViT-B/32",
    "late-b16": "late interaction, ViT-B/16",
    "dual-b32": "dual, ViT-B/32",
    "query-b32": "static query student of the dual, ViT-B/32",
}
WAYS = {"encoded_before": "encoded before", "encoded_with_it": "encoded with the query"}
"""When the teacher encodes its images. A student has encoded its own before."""
COLUMNS_OF_STUDENTS = ["student", "ms per query", "bytes per image"]


def main(words: list[str] | None = None) -> None:
    """Time the teachers that have no file yet, each in its own process, and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the photos, the models and the times")
    parser.add_argument("--size", choices=["full", "toy"], default="full")
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--only", choices=TEACHERS, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.only is not None:
        logging.disable_progress_bar()
        torch.set_num_threads(THREADS)
        document = measure(options.only, options.out, Maker(is_toy=options.size == "toy"))
        artifacts.write_document(options.out / f"{options.only}.json", document)
        return
    for name in options.teachers:
        if (options.out / f"{name}.json").exists():
            continue
        started = time.monotonic()
        command = [sys.executable, __file__, "--out", str(options.out), "--size", options.size, "--only", name]
        subprocess.run(command, check=True)
        say(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes, of them the timing and what it needs")
    found = {name: artifacts.read_document(options.out / f"{name}.json") for name in options.teachers}
    text = section(found)
    files.write_text(options.out / "README.md", text)
    sys.stdout.write(text)


def measure(name: str, out: Path, maker: Maker) -> dict[str, Any]:
    """The times of a teacher and of all students, timed in this process, and their ratios."""
    about = facts("transformers")  # with the load before this process adds its own
    teacher, corpus = TEACHERS[name], Corpus.open(photos(out, BATCH), "test")
    folder = made(out / "models" / name, partial(teacher.make, maker))
    loaded = {TEACHER: models.load(str(folder), dict(teacher.settings)), **load_students(out / "models", maker)}
    config = BenchConfig(
        num_images=BATCH,
        batch_size=BATCH,
        batch_sizes=(BATCH,),
        gallery_sizes=(*FIRST, teacher.timed, GALLERY),
        reference_gallery=GALLERY,
        min_rounds=teacher.rounds,
        **({"budget_s": 0.01, "num_repeats": 2} if maker.is_toy else {}),
    )
    with torch.inference_mode():
        timed = {name: prepare_model(model, corpus, config) for name, model in loaded.items()}
        timer = Timer(config=config, clock=time.perf_counter)
        time_queries(timed, timer, teacher.timed)
        document = {
            **about,
            "teacher": {
                **described(loaded[TEACHER], corpus),
                **times_of_teacher(timed[TEACHER]),
                "num_timed": teacher.timed,
                "operations": operations(timed[TEACHER]),
                # The reranker is bfloat16 as it is.
                "bfloat16_factor": None if teacher.settings else faster_in_bfloat16(timed[TEACHER], timer),
            },
            "students": {},
        }
        for student in STUDENTS:
            document["students"][student] = {
                **described(loaded[student], corpus),
                **times_of_student(timed[student], timed[TEACHER]),
            }
    return document


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder of a model, which is made on first use."""
    if not folder.exists():
        with files.atomic_folder(folder) as partial_folder, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            make(partial_folder)
    return folder


def load_students(folder: Path, maker: Maker) -> dict[str, Model]:
    """All students, in the order of STUDENTS."""
    lates = {}
    for name, patch_px in {"b32": 32, "b16": 16}.items():
        dual = made(folder / f"dual-{name}", partial(maker.clip, patch_px=patch_px))
        late = made(folder / f"late-{name}", partial(maker.late, dual=dual))
        lates[f"late-{name}"] = models.load(str(late))
    dual = models.load(str(folder / "dual-b32"))
    query = made(folder / "query-b32", partial(maker.query, dual=folder / "dual-b32"))
    return {**lates, "dual-b32": dual, "query-b32": models.with_queries(dual, query)}


def time_queries(timed: Mapping[str, BenchModel], timer: Timer, most: int) -> None:
    """Fill in the times from which `BenchModel.query_s` computes those of queries, each step with the models in turn.

    `rates.measure` would also time images and pairs of all students, singly and in batches, which takes longer than
    what this table needs.
    """
    captions: dict[str, Work] = {name: model.encode_caption for name, model in timed.items()}
    for name, repeats in timer.time_in_turn(captions).items():
        timed[name].step_times["caption"] = repeats
    teacher = timed[TEACHER]
    encode = {TEACHER: partial(teacher.encode_image_batch, BATCH)}
    teacher.batch_times[BATCH] = {"images": timer.time_in_turn(encode)[TEACHER]}
    for count in FIRST:
        teacher.query_times[True][count] = timer.time_in_turn({TEACHER: query(teacher, count)})[TEACHER]
    counts = {name: most if name == TEACHER else GALLERY for name in timed}
    queries = {name: query(model, counts[name]) for name, model in timed.items()}
    for name, repeats in timer.time_in_turn(queries).items():
        timed[name].query_times[True][counts[name]] = repeats


def query(model: BenchModel, count: int) -> Work:
    """A query over images that are encoded before."""
    return partial(model.find, model.gallery(count), count, True)


def times_of_teacher(teacher: BenchModel) -> dict[str, Any]:
    """Seconds of queries by the teacher alone, and of what they consist of."""
    image_s = teacher.in_batch("images")
    counts = sorted({*teacher.query_times[True], GALLERY})
    return {
        "image_s": plain(image_s),
        "caption_s": plain(teacher.step_times["caption"].median),
        "encoded_before": {str(count): plain(teacher.query_s(count, is_cached=True)) for count in counts},
        "encoded_with_it": {str(count): plain(with_images(teacher, count)) for count in counts},
    }


def with_images(teacher: BenchModel, count: int) -> Quantity:
    """A query that also encodes its images."""
    return teacher.query_s(count, is_cached=True) + teacher.in_batch("images") * count


def times_of_student(student: BenchModel, teacher: BenchModel) -> dict[str, Any]:
    """Seconds of a query by the student, and its speed-ups: alone (0), and with its first images by the teacher."""
    alone = student.query_s(GALLERY, is_cached=True)
    before = partial(teacher.query_s, is_cached=True)
    speed_ups = {}
    for way, seconds in {"encoded_before": before, "encoded_with_it": partial(with_images, teacher)}.items():
        cascades = {0: alone, **{count: alone + seconds(count) for count in FIRST}}
        speed_ups[way] = {str(count): plain(seconds(GALLERY) / cascade) for count, cascade in cascades.items()}
    return {
        "query_s": plain(alone),
        "caption_s": plain(student.step_times["caption"].median),
        "bytes_per_image": FLOAT32_BYTES * student.steps.index_floats(student.encoded_images),
        "speed_ups": speed_ups,
    }


def described(model: Model, corpus: Corpus) -> dict[str, Any]:
    """The size of a model, and how many tokens a caption has for it."""
    tokenizer = model.preprocess.tokenizer
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(iter(model.parameters()), torch.empty(0)).dtype).removeprefix("torch."),
        "caption_tokens": fmean(len(tokenizer(caption)["input_ids"]) for caption in corpus.captions),
    }


def operations(teacher: BenchModel) -> dict[str, float]:
    """Floating-point operations, two for a multiply-add."""
    gallery, caption = teacher.gallery(COUNTED), teacher.encode_caption(0)
    return {
        "per_image": count_flops(lambda: teacher.encode_image(0)),
        "per_caption": count_flops(lambda: teacher.encode_caption(0)),
        "per_ranked_image": count_flops(lambda: teacher.rank(gallery, caption, 0)) / COUNTED,
    }


def faster_in_bfloat16(teacher: BenchModel, timer: Timer) -> dict[str, Any]:
    """The time of a batch of pairs in float32 over that under autocast to bfloat16."""
    gallery, caption = teacher.gallery(BATCH), teacher.encode_caption(0)

    def rank(precision: str, number: int) -> Encoded:
        with Compute(device=devices.CPU, precision=precision).forward_pass():
            return teacher.rank(gallery, caption, number)

    repeats = timer.time_in_turn({precision: partial(rank, precision) for precision in ("float32", "bfloat16")})
    return plain(repeats["float32"].median / repeats["bfloat16"].median)


def plain(quantity: Quantity) -> dict[str, Any]:
    """A number with its interval."""
    return {"value": quantity.value, "interval": quantity.interval}


def section(found: Mapping[str, dict[str, Any]]) -> str:
    """The page docs/evidence/results/real-sizes/README.md."""
    first = next(iter(found.values()))
    tokens = fmean(document["teacher"]["caption_tokens"] for document in found.values())
    counts = {name: document["teacher"]["num_timed"] for name, document in found.items()}
    timed = ", ".join(f"{TEACHERS[name].label} {count}" for name, count in counts.items())
    commits = ", ".join(sorted({document["commit"] for document in found.values()}))
    lines = [
        "# Speed-up at the sizes of published models",
        "",
        "    python benchmarks/real_sizes.py --out work/real-sizes",
        "",
        f"How much faster a query over {GALLERY:,} images is than with the teacher alone. "
        "Weights are random, which changes no time; recalls are on other pages.",
        "",
        table(["", *(TEACHERS[name].label for name in found)], list(rows_of_teachers(found))),
        "",
        f"{first['machine']}, {THREADS} threads, "
        f"torch {first['versions']['torch']}, commit {commits}.",
        f"Photos of {PHOTO_PX[0]} x {PHOTO_PX[1]} px, captions of {tokens:.0f} tokens; weights in float32, "
        "those of the reranker in bfloat16.",
        "All models of a column were timed in turns in one process, as `dcdctl bench` times them.",
        f"~ is extrapolated from fewer images: {timed}.",
        "Brackets are 95 % intervals over two or three rounds, too few for a sharp one.",
        "The speed-up of a cascade is that of the sum of two times.",
        "Against a teacher under autocast to bfloat16, divide the speed-up of a student alone by the teacher's row; "
        "that of a cascade hardly changes.",
        "Unless a row says otherwise, both models have encoded their images before the query; "
        "the reranker reads pixels and caption together and has nothing to encode before.",
        "Rows of arithmetic were not timed: they are the operations that torch counts, "
        f"over {GPU_SHARE:.0%} of the dense bfloat16 throughput of the data sheet.",
        f"Their ratio is to the query of {STUDENTS['late-b32']} on these cores.",
        "A student's own query has too few operations for such arithmetic: starting its kernels takes longer.",
        "",
        table(COLUMNS_OF_STUDENTS, rows_of_students(found)),
        "",
        "Times are medians over the processes of the teachers; bytes are of float32.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def rows_of_teachers(found: Mapping[str, dict[str, Any]]) -> Iterator[list[str]]:
    """A row for each time of the teacher, then for each student and cascade, then for each GPU."""
    documents = list(found.values())
    teachers = [document["teacher"] for document in documents]
    yield ["parameters", *(f"{teacher['num_parameters'] / 1e6:,.0f} M" for teacher in teachers)]
    yield ["teacher, 5 images", *(f"{digits(teacher['encoded_before']['5']['value'])} s" for teacher in teachers)]
    for way, label in WAYS.items():
        yield [f"teacher, {GALLERY:,} images, {label}", *(f"~{minutes(teacher[way])}" for teacher in teachers)]
    factors = [teacher["bfloat16_factor"] for teacher in teachers]
    label = "teacher under autocast to bfloat16, times as fast"
    yield [label, *("" if each is None else f"{digits(each['value'])}x" for each in factors)]
    for student, label in STUDENTS.items():
        of_student = [document["students"][student]["speed_ups"] for document in documents]
        yield [f"**{label}**", *(ratio(each["encoded_before"]["0"]) for each in of_student)]
        for count in FIRST:
            yield [
                f"the same, its first {count} by the teacher",
                *(ratio(each["encoded_before"][str(count)]) for each in of_student),
            ]
    leader = next(iter(STUDENTS))
    of_leader = [document["students"][leader]["speed_ups"]["encoded_with_it"] for document in documents]
    for count in (0, *FIRST):
        first = f", its first {count} by the teacher" if count else ""
        label = f"{STUDENTS[leader]}{first}; the teacher's images {WAYS['encoded_with_it']}"
        yield [label, *(ratio(each[str(count)]) for each in of_leader)]
    queries = [document["students"][leader]["query_s"]["value"] for document in documents]
    for gpu, throughput in GPUS.items():
        for way, label in WAYS.items():
            seconds = [gpu_seconds(teacher["operations"], throughput, way) for teacher in teachers]
            cells = []
            for slow, fast in zip(seconds, queries, strict=True):
                cells.append(f"{digits(slow)} s, {digits(slow / fast)}x")
            yield [f"arithmetic: teacher on an {gpu}, images {label}", *cells]


def minutes(of_way: Mapping[str, Any]) -> str:
    """The time of a query over all images."""
    seconds: float = of_way[str(GALLERY)]["value"]
    return f"{digits(seconds)} s" if seconds < 600 else f"{digits(seconds / 60)} min"


def ratio(found: Mapping[str, Any]) -> str:
    """A speed-up with its interval."""
    low, high = map(digits, found["interval"])
    return f"{digits(found['value'])}x ({low}-{high})"


def gpu_seconds(counted: Mapping[str, float], throughput: float, way: str) -> float:
    """Seconds of a query by its operations."""
    per_image = counted["per_ranked_image"] + (counted["per_image"] if way == "encoded_with_it" else 0)
    return (counted["per_caption"] + GALLERY * per_image) / (GPU_SHARE * throughput)


def rows_of_students(found: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """What a query costs by each student."""
    rows = []
    for student, label in STUDENTS.items():
        timed = [document["students"][student] for document in found.values()]
        rows.append(
            [
                label,
                digits(1000 * median(each["query_s"]["value"] for each in timed)),
                f"{timed[0]['bytes_per_image']:,.0f}",
            ]
        )
    return rows


if __name__ == "__main__":
    main()
