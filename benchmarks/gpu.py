"""What a GPU computes and how fast: one command for a machine with a GPU, which ends with one JSON file and one
Markdown table.

    python benchmarks/gpu.py --out DIR [--device auto] [--size full] [--parts parity memory cache ...]

ViLT, METER and CLIP with random weights, of the sizes of the papers (`full`) or tiny (`toy`), on the built-in scenes.
No download.

- parity: scores of the same pairs on the CPU and on the device, in float32 and bfloat16; differences relative to
  max(1, |score|).
- memory: a batch that is too large for the memory is halved, and the scores stay the same; the most memory. A CPU
  halves nothing.
- cache: pairs per second of `cache-teacher`, by precision and batch size, and a check of the cache by the CPU, as
  `--verify` does it.
- distill: seconds per step, by precision.
- resume: a run that is stopped at a checkpoint and resumed, against one that is not stopped.
- processes: the loss of a step by two processes with NCCL, against one. Needs two GPUs, or --gloo.
- eval, bench: seconds of an evaluation, and the speed-up per query that `dcdctl bench` reports.

Writes DIR/gpu.json and DIR/gpu.md. Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionConfig, RobertaConfig

import dcdctl
from dcdctl.core import devices, models
from dcdctl.core.bench import BenchConfig
from dcdctl.core.bench.cold_start import peak_rss_mib
from dcdctl.core.data import Corpus, describe_scenes
from dcdctl.core.devices import CPU, Compute
from dcdctl.core.models.families.coattention import CoAttentionNetwork
from dcdctl.core.models.preprocess import Preprocess, square_image_processor
from dcdctl.core.scoring import CorpusSource, score_pairs
from dcdctl.core.teacher.job import TOLERANCES, verify_scores
from dcdctl.core.training import checkpoints, load_recipe

RECIPE = "tiny-student"
NAMES = ("vilt", "meter", "clip")
HEAD_FACTOR = 30
MEMORY_SHARE = 0.25
"""Share of the GPU's memory that the part `memory` may use."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of the models and of the work."""

    width: int
    layers: int
    heads: int
    side_px: int
    patch_px: int
    images: int
    """Of the train split; the test split has half as many."""
    pairs: int
    """Pairs of the part `parity`."""
    batch: int
    steps: int
    batch_sizes: tuple[int, ...]
    fusion_layers: int = 6


SIZES = {
    "toy": Size(
        width=16,
        layers=2,
        heads=2,
        side_px=32,
        patch_px=16,
        images=16,
        pairs=24,
        batch=4,
        steps=4,
        batch_sizes=(8,),
        fusion_layers=2,
    ),
    "full": Size(
        width=768,
        layers=12,
        heads=12,
        side_px=384,
        patch_px=32,
        images=512,
        pairs=512,
        batch=16,
        steps=60,
        batch_sizes=(64, 256, 1024, 4096),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement, or a check that holds or not."""

    part: str
    model: str
    what: str
    value: float | None
    unit: str
    holds: bool | None = None
    """Of a check; None for a measurement."""
    note: str = ""


@dataclass(frozen=True)
class Machine:
    """Where the parts run, and what they share."""

    out: Path
    device: torch.device
    size: Size
    uses_gloo: bool
    caches: dict[str, Path] = field(default_factory=dict)
    """The folders of finished caches that students learn from, by model."""

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        """By the names of --precision."""
        return ("fp32", "bf16")

    def model(self, name: str) -> str:
        """The folder of a model, which is made on first use."""
        folder = self.out / "models" / name
        if not folder.exists():
            MAKERS[name](folder, self.captions, self.size)
        return str(folder)

    @cached_property
    def captions(self) -> list[str]:
        return [
            statement.text
            for item in islice(describe_scenes(0, "train"), self.size.images)
            for statement in item.statements
        ]

    @cached_property
    def data(self) -> Path:
        counts = {"counts.train": self.size.images, "counts.val": 0, "counts.test": max(8, self.size.images // 2)}
        dcdctl.prepare("scenes", self.out / "data", overrides=counts)
        return self.out / "data"

    def recipe(self, name: str) -> Any:
        """The recipe of a student of this model."""
        return load_recipe(RECIPE, self.sets(name))

    def sets(self, name: str) -> list[str]:
        """What differs from the recipe, by the syntax of --set."""
        size = self.size
        shared = {
            "candidates.per_query": size.batch,
            "batch.size": size.batch,
            "batch.random_negatives": size.batch - 1,
            "batch.hard_negatives": max(1, (size.batch - 1) // 2),
            "optimizer.steps": size.steps,
            "optimizer.save_every": size.steps // 2,
        }
        own = {"model.layers": [0, size.fusion_layers - 1 if name == "meter" else size.layers - 1]}
        if name == "clip":
            own = {
                "model.kind": "dual",
                "model.layers": [],
                "model.start": self.model("clip"),
                "loss.terms": "{ infonce = 1.0, kl = 1.0 }",
            }
        return [
            f"{key}={value if key == 'loss.terms' else json.dumps(value)}" for key, value in {**shared, **own}.items()
        ]

    def cache(
        self, name: str, precision: str = "fp32", batch_size: int | None = None, *, repeat: bool = False
    ) -> tuple[Any, float]:
        """The scores of a teacher for its student's candidates, and the seconds that it took."""
        out = self.out / "cache" / f"{name}-{precision}-{batch_size or 'default'}"
        if repeat:
            shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        cache = dcdctl.cache_teacher(
            self.model(name),
            self.data,
            out,
            recipe=self.recipe(name),
            batch_size=batch_size,
            device=str(self.device),
            precision=precision,
        )
        return cache, time.perf_counter() - started

    def finished_cache(self, name: str) -> Path:
        """The folder of a teacher's scores for its student, made on first use."""
        if name not in self.caches:
            self.caches[name] = self.cache(name)[0].folder
        return self.caches[name]


def make_vilt(folder: Path, captions: list[str], size: Size) -> None:
    """ViLT-B/32 at full size."""
    shape = models.ViltSize(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        image_size=size.side_px,
        patch_size=size.patch_px,
        hidden_dropout_prob=0.0,
    )
    save_widened(models.new_vilt(shape, models.word_piece(captions, 200)), folder)


def make_meter(folder: Path, captions: list[str], size: Size) -> None:
    """METER's fusion of 6 layers over a ViT-B/16 and a RoBERTa-base at full size."""
    tokenizer = models.word_piece(captions, 200)
    shape: dict[str, Any] = {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_attention_heads": size.heads,
    }
    vision = CLIPVisionConfig(
        **shape, num_hidden_layers=size.layers, image_size=size.side_px, patch_size=size.patch_px // 2
    )
    text = RobertaConfig(
        **shape, num_hidden_layers=size.layers, vocab_size=len(tokenizer), max_position_embeddings=64, type_vocab_size=1
    )
    fusion = models.FusionSize(hidden_size=size.width, num_layers=size.fusion_layers, num_heads=size.heads, dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = CoAttentionNetwork.from_configs(vision, text, fusion)
    preprocess = Preprocess(tokenizer=tokenizer, image_processor=square_image_processor(size.side_px), max_text_len=40)
    save_widened(models.CoAttentionScorer(network, preprocess), folder)


def save_widened(scorer: Any, folder: Path) -> None:
    """Save a scorer whose scores spread over several units, as those of a trained one do."""
    with torch.no_grad():
        scorer.network.rank_output.weight.mul_(HEAD_FACTOR)
    models.save(scorer, folder)


def make_clip(folder: Path, captions: list[str], size: Size) -> None:
    """CLIP ViT-B/32 at full size."""
    tokenizer = models.word_piece(captions, 200)
    shape: dict[str, Any] = {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_attention_heads": size.heads,
    }
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 40,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {**shape, "num_hidden_layers": size.layers, "image_size": size.side_px, "patch_size": size.patch_px}
    text = {**shape, "num_hidden_layers": size.layers, **words}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=size.width))
    square = {"size": {"shortest_edge": size.side_px}, "crop_size": {"height": size.side_px, "width": size.side_px}}
    for part in (network, tokenizer, CLIPImageProcessorPil(**square)):
        part.save_pretrained(folder)


MAKERS: dict[str, Callable[[Path, list[str], Size], None]] = {"vilt": make_vilt, "meter": make_meter, "clip": make_clip}


def random_pairs(corpus: Corpus, count: int) -> tuple[Any, Any]:
    """Images and captions of random pairs."""
    rng = np.random.default_rng(0)
    return rng.integers(0, corpus.num_images, count), rng.integers(0, corpus.num_captions, count)


def relative(found: Any, expected: Any) -> float:
    """The largest difference relative to max(1, |expected|)."""
    return float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())


def parity(machine: Machine) -> Iterator[Row]:
    corpus = Corpus.open(machine.data, "train")
    pairs = random_pairs(corpus, machine.size.pairs)
    for name in NAMES:
        scorer = models.load_scorer(machine.model(name))
        source = CorpusSource(corpus, scorer.preprocess)
        expected = score_pairs(scorer.to(CPU), source, *pairs, compute=Compute())
        scorer.to(machine.device)
        for precision in machine.precisions:
            compute = Compute(device=machine.device, precision=devices.precision(precision))
            error = relative(score_pairs(scorer, source, *pairs, compute=compute), expected)
            limit = TOLERANCES[compute.precision]
            what = f"{precision} on {machine.device.type} against fp32 on the CPU"
            yield Row(
                part="parity",
                model=name,
                what=what,
                value=error,
                unit="relative",
                holds=error <= limit,
                note=f"at most {limit}",
            )


def memory(machine: Machine) -> Iterator[Row]:
    corpus = Corpus.open(machine.data, "train")
    pairs = random_pairs(corpus, 8 * max(machine.size.batch_sizes))
    scorer = models.load_scorer(machine.model("vilt")).to(machine.device)
    source = CorpusSource(corpus, scorer.preprocess)
    small = Compute(device=machine.device, batch_size=min(machine.size.batch_sizes))
    expected, small_mib = with_peak(machine, lambda: score_pairs(scorer, source, *pairs, compute=small))
    # The memory of a CPU cannot be limited here, so only a GPU halves the batch.
    whole = Compute(device=machine.device, batch_size=len(pairs[0]))
    with limited_memory(machine):
        found, whole_mib = with_peak(machine, lambda: score_pairs(scorer, source, *pairs, compute=whole))
    error = relative(found, expected)
    what = f"{len(pairs[0]):,} pairs as one batch{', halved until they fit' if machine.is_gpu else ''}"
    yield Row(
        part="memory", model="vilt", what=what, value=error, unit="relative", holds=error <= TOLERANCES["float32"]
    )
    for size, mib in ((small.batch_size, small_mib), (whole.batch_size, whole_mib)):
        yield Row(part="memory", model="vilt", what=f"peak memory, --batch-size {size}", value=mib, unit="MiB")


@contextmanager
def limited_memory(machine: Machine) -> Iterator[None]:
    """A share of the memory of a GPU; all of it on a CPU."""
    if machine.is_gpu:
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE, machine.device)
    try:
        yield
    finally:
        if machine.is_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, machine.device)


def with_peak(machine: Machine, work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of the work, and the most memory meanwhile in MiB: allocated on the GPU, or resident in this
    process."""
    if machine.is_gpu:
        torch.cuda.reset_peak_memory_stats(machine.device)
        result = work()
        return result, torch.cuda.max_memory_allocated(machine.device) / 2**20
    with suppress(OSError):  # without Linux's file the peak is that since the start
        Path("/proc/self/clear_refs").write_text("5")
    return work(), peak_rss_mib()


def cache(machine: Machine) -> Iterator[Row]:
    corpus = Corpus.open(machine.data, "train")
    for name in NAMES:
        machine.cache(name, repeat=True)  # the first pass loads libraries and selects kernels
        for precision in machine.precisions:
            made, seconds = machine.cache(name, precision, repeat=True)
            yield Row(
                part="cache",
                model=name,
                what=f"cache-teacher, {precision}",
                value=made.num_pairs / seconds,
                unit="pairs/s",
            )
        for batch_size in machine.size.batch_sizes if name != "clip" else ():
            made, seconds = machine.cache(name, "fp32", batch_size, repeat=True)
            what = f"cache-teacher, fp32, --batch-size {batch_size}"
            yield Row(part="cache", model=name, what=what, value=made.num_pairs / seconds, unit="pairs/s")
        teacher = models.load_scorer(machine.model(name))
        error = verify_scores(machine.finished_cache(name), corpus, teacher, machine.size.pairs, compute=Compute())
        what = f"cache made on {machine.device.type}, verified on the CPU"
        yield Row(part="cache", model=name, what=what, value=error, unit="relative", holds=True)


def train(machine: Machine, name: str, out: str, *, resume: bool = False, precision: str = "fp32") -> Any:
    """A student's run."""
    folder = machine.out / "runs" / out
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    teacher = None if name == "clip" else machine.model(name)
    return dcdctl.distill(
        machine.recipe(name), machine.data, folder, cache=machine.finished_cache(name), teacher=teacher,
        device=str(machine.device), precision=precision, resume=resume,
    )  # fmt: skip


def distill(machine: Machine) -> Iterator[Row]:
    for name in NAMES:
        for precision in machine.precisions:
            run = train(machine, name, f"{name}-{precision}", precision=precision)
            # The first lines warm up.
            seconds = statistics.median(
                [line["seconds"] for line in run.metrics()][1:] or [run.metrics()[0]["seconds"]]
            )
            what = f"distill, batch {machine.size.batch}, {precision}"
            yield Row(part="distill", model=name, what=what, value=1000 * seconds, unit="ms/step")


def resume(machine: Machine) -> Iterator[Row]:
    for name in ("vilt", "clip"):
        whole = train(machine, name, f"{name}-whole")
        save = checkpoints.save_checkpoint

        def stop(*arguments: Any, save: Any = save, **options: Any) -> None:
            save(*arguments, **options)
            raise KeyboardInterrupt

        checkpoints.save_checkpoint = stop
        try:
            train(machine, name, f"{name}-stopped")
        except KeyboardInterrupt:
            pass
        finally:
            checkpoints.save_checkpoint = save
        resumed = train(machine, name, f"{name}-stopped", resume=True)
        first, second = (load_file(next((run.folder / "model").glob("*.safetensors"))) for run in (whole, resumed))
        error = max(float((first[key].float() - second[key].float()).abs().max()) for key in first)
        # Sums on a GPU depend on the order of its threads.
        limit = 1e-3 if machine.is_gpu else 0.0
        what = "largest difference of a weight after a stop and --resume"
        yield Row(
            part="resume",
            model=name,
            what=what,
            value=error,
            unit="absolute",
            holds=error <= limit,
            note=f"at most {limit:g}",
        )


def processes(machine: Machine) -> Iterator[Row]:
    if torch.cuda.device_count() < 2 and not machine.uses_gloo:
        yield skipped("processes", "fewer than two GPUs")
        return
    losses = []
    for count in (1, 2):
        out = machine.out / "runs" / f"processes-{count}"
        shutil.rmtree(out, ignore_errors=True)
        words = [
            "distill",
            RECIPE,
            "--data",
            machine.data,
            "--cache",
            machine.finished_cache("clip"),
            "--out",
            out,
            "--precision",
            "fp32",
        ]
        words += [word for each in machine.sets("clip") for word in ("--set", each)]
        words += ["--device", "cuda" if machine.is_gpu else "cpu"]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
        command = [sys.executable, *launcher, "-m", "dcdctl", *words]
        subprocess.run([str(word) for word in command], check=True, env=dict(os.environ), stdout=subprocess.DEVNULL)
        losses.append(
            [line["loss"] for line in map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())]
        )
    error = relative(np.array(losses[1]), np.array(losses[0]))
    what = f"losses of two processes ({'NCCL' if machine.is_gpu else 'gloo'}) against one"
    yield Row(
        part="processes",
        model="clip",
        what=what,
        value=error,
        unit="relative",
        holds=error <= 1e-3,
        note="at most 0.001",
    )


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """The median time of work that was done before."""
    times = []
    for _ in range(repeats):
        devices.synchronize(device)
        started = time.perf_counter()
        work()
        devices.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def evaluate(machine: Machine) -> Iterator[Row]:
    for name in NAMES:
        for precision in machine.precisions:
            started = time.perf_counter()
            found = dcdctl.evaluate(machine.model(name), machine.data, device=str(machine.device), precision=precision)
            seconds = time.perf_counter() - started
            yield Row(
                part="eval",
                model=name,
                what=f"eval, {precision}",
                value=seconds,
                unit="s",
                note=f"RSUM {found.rsum:.1f}",
            )


def bench(machine: Machine) -> Iterator[Row]:
    is_toy = machine.size is SIZES["toy"]
    settings = {
        "num_images": 8,
        "batch_size": 8,
        "batch_sizes": (8,),
        "budget_s": 0.05,
        "gallery_sizes": (10,),
        "reference_gallery": 10,
    }
    config = BenchConfig(num_fresh_processes=0, is_onnx_timed=False, **(settings if is_toy else {}))
    found = dcdctl.bench(
        machine.model("clip"), machine.model("vilt"), machine.data, config=config, device=str(machine.device)
    )
    for speed_up in found.speed_ups:
        yield Row(
            part="bench",
            model="clip",
            what=f"speed-up against vilt: {speed_up.label}",
            value=speed_up.ratio,
            unit="times",
        )


PARTS: dict[str, Callable[[Machine], Iterator[Row]]] = {
    "parity": parity,
    "memory": memory,
    "cache": cache,
    "distill": distill,
    "resume": resume,
    "processes": processes,
    "eval": evaluate,
    "bench": bench,
}


def skipped(part: str, reason: str) -> Row:
    return Row(part=part, model="", what="skipped", value=None, unit="", note=reason)


def table(document: dict[str, Any]) -> str:
    """The rows as Markdown, under a line that names the machine."""
    machine = document["machine"]
    lines = [
        f"{machine['device']}, {machine['cpu']}, torch {machine['torch']}, CUDA {machine['cuda']}, size "
        f"{document['size']}",
        "",
    ]
    lines += ["| part | model | what | value | unit | check |", "|---|---|---|---|---|---|"]
    for row in document["rows"]:
        value = "" if row["value"] is None else f"{row['value']:.3g}"
        check = {None: row["note"], True: f"holds {row['note']}".strip(), False: f"FAILS {row['note']}".strip()}[
            row["holds"]
        ]
        lines.append(f"| {row['part']} | {row['model']} | {row['what']} | {value} | {row['unit']} | {check} |")
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> int:
    """Run the parts one after another; what one has measured is written before the next one starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the models, caches and runs, and for gpu.json and gpu.md"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--gloo", action="store_true", help="run the part `processes` without GPUs")
    options = parser.parse_args(words)
    options.out.mkdir(parents=True, exist_ok=True)
    machine = Machine(options.out, devices.choose(options.device), SIZES[options.size], options.gloo)
    document: dict[str, Any] = {"machine": devices.describe(machine.device), "size": options.size, "rows": []}
    for part in options.parts:
        for row in PARTS[part](machine):
            document["rows"].append(asdict(row))
            value = "" if row.value is None else f"{row.value:.4g} {row.unit}"
            sys.stdout.write(f"{row.part} {row.model}: {row.what} {value} {row.note}\n")
            sys.stdout.flush()
            (options.out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            (options.out / "gpu.md").write_text(table(document), encoding="utf-8")
    return 1 if any(row["holds"] is False for row in document["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
