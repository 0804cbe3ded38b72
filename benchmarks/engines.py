"""What an engine costs: workers of Ray against one process, and what one driver can send, write and seal.

    python benchmarks/engines.py                     # about 15 minutes on two cores
    python benchmarks/engines.py --pairs 20000 --rounds 1 --images 500

Part 1, `speed`: a teacher (scenes-vilt) scores the same pairs by this process, by one worker and by two workers of
Ray, each with one thread, in turns. The workers have scored a few pairs before: their start is paid once and is told
apart. The scores must be equal to the bit.

Part 2, `driver`: a teacher that needs no time scores photos of about 150 KB, so all that is measured is the driver: it
reads images, sends tasks, takes scores, and writes and seals a cache. By two workers, which do nothing but answer.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dcdctl  # noqa: F401  # before torch: it sets how long torch's threads spin

# isort: split

import cloudpickle
import numpy as np
import torch
from PIL import Image
from reports import facts, say, table

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute, EngineChoice
from dcdctl.core.progress import silent
from dcdctl.core.scoring import ShardPairs
from dcdctl.core.teacher import CacheJob, CandidateConfig, build

PHOTO_SIZE = (640, 480)
SHARD = 64
"""Images of a shard in part 1: with the usual 256, 100,000 pairs are 14 shards, and how the last one falls would decide
the ratio of two workers."""
PER_QUERY = 150
"""Captions that an image is scored with, as in the recipes of METER."""
CAPTION = "a group of people stands beside a wooden table with plates of food number {}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000, help="pairs of part 1")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=4000, help="photos of part 2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        speed = measure_speed(Path(folder), options.pairs, options.rounds)
        driver = measure_driver(Path(folder), options.images)
    sys.stdout.write(json.dumps({**facts("ray", "transformers"), "speed": speed, "driver": driver}) + "\n")


def computed_by(num_workers: int | None) -> Compute:
    """A compute whose tasks are done by workers of Ray, or by this process, each with one thread, and with one that
    reads ahead."""
    choice = EngineChoice(workers=1) if num_workers is None else EngineChoice(engine="ray", workers=num_workers)
    return Compute.chosen(choice, device="cpu", threads=1, say=say)


def prepared(source: list[object], out: Path) -> Path:
    """The folder of a corpus."""
    command = [sys.executable, "-m", "dcdctl", "prepare", *map(str, source), "--out", str(out)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return out


def scenes(num_images: int, out: Path) -> Path:
    """A corpus of scenes."""
    counts = {"train": num_images, "val": 2, "test": 2}
    return prepared(
        ["scenes", *(word for split, n in counts.items() for word in ("--set", f"counts.{split}={n}"))], out
    )


def score(data: Path, out: Path, compute: Compute, candidates: CandidateConfig) -> tuple[int, float]:
    """The number of pairs of a cache, and the seconds in which its planned pairs are scored and sealed."""
    job = CacheJob(out=out, data=data, candidates=candidates, compute=compute)
    corpus, teacher = Corpus.open(data, "train"), models.load_scorer("scenes-vilt")
    planned = build.plan_cache(job, corpus, teacher, silent)
    started = time.monotonic()
    cache = build.score_planned(planned)
    return cache.num_pairs, time.monotonic() - started


def warm_up(data: Path, out: Path, compute: Compute) -> float:
    """Score few pairs in four shards, so that each worker is started; the seconds."""
    shard_size, build.IMAGES_PER_SHARD = build.IMAGES_PER_SHARD, 5
    seconds = score(data, out, compute, CandidateConfig(per_query=4))[1]
    build.IMAGES_PER_SHARD = shard_size
    return seconds


def measure_speed(folder: Path, num_pairs: int, num_rounds: int) -> dict[str, Any]:
    """Pairs per second of this process, of one worker and of two, and their ratios within each round."""
    # With four candidates of each query, an image and its five captions have some 29 pairs.
    config, few = CandidateConfig(per_query=4), scenes(20, folder / "few")
    data = scenes(num_pairs // 29 + 1, folder / "scenes")
    kinds: dict[str, Callable[[], Compute]] = {
        "this process": partial(computed_by, None),
        "1 worker": partial(computed_by, 1),
        "2 workers": partial(computed_by, 2),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    starts: dict[str, list[float]] = {name: [] for name in kinds}
    scores, count = set(), 0
    build.IMAGES_PER_SHARD, usual = SHARD, build.IMAGES_PER_SHARD
    for number in range(num_rounds):
        for name, make in kinds.items():
            compute, out = make(), folder / f"{name}-{number}"
            start = warm_up(few, folder / f"{name}-{number}-few", compute)
            count, seconds = score(data, out, compute, config)
            scores.add(tuple(path.read_bytes() for path in sorted(out.glob("pairs-*.parquet"))))
            rates[name].append(count / seconds)
            starts[name].append(start)
            say(f"round {number + 1}, {name}: {count:,} pairs, {count / seconds:,.0f} pairs/s, start {start:.1f} s")
    build.IMAGES_PER_SHARD = usual
    assert len(scores) == 1, "the scores differ"
    rows, ratios = [], {}
    for name, found in rates.items():
        ratios[name] = [mine / base for mine, base in zip(found, rates["this process"], strict=True)]
        ratio, rate = statistics.median(ratios[name]), statistics.median(found)
        rows.append([name, f"{rate:,.0f}", f"{ratio:.3f}", f"{statistics.median(starts[name]):.1f} s"])
    say(table(["engine", "pairs/s", "ratio", "start and 580 pairs"], rows))
    return {"pairs": count, "rates": rates, "ratios": ratios, "starts_s": starts}


class NoScorer:
    """A worker that answers at once."""

    @classmethod
    def make(cls, *_: object) -> NoScorer:
        return cls()

    def start(self, pairs: ShardPairs) -> Callable[[Any], Any]:
        return partial(self._score, len(pairs.image_P))

    def _score(self, count: int, advance: Callable[[int], None]) -> Any:
        advance(count)
        return np.zeros(count, dtype=np.float32)


def photos(num_images: int, folder: Path) -> Path:
    """A corpus of photos of about 150 KB with five captions each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,caption,split"]
    for number in range(num_images + 2):
        noise = rng.normal(128, 60, (PHOTO_SIZE[1] // 4, PHOTO_SIZE[0] // 4, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=92)
        split = "train" if number < num_images else ("val", "test")[number - num_images]
        lines += [f"{number}.jpg,{CAPTION.format(5 * number + i)},{split}" for i in range(5)]
    (folder / "captions.csv").write_text("\n".join(lines))
    return prepared(["--csv", folder / "captions.csv", "--images", folder], folder / "corpus")


def measure_driver(folder: Path, num_images: int) -> dict[str, Any]:
    """What one driver does with pairs that cost nothing to score."""
    data = photos(num_images, folder / "photos")
    corpus, config = Corpus.open(data, "train"), CandidateConfig(per_query=PER_QUERY, directions=("text",))
    build.PairWorker = NoScorer  # type: ignore[misc, assignment]
    compute = computed_by(2)
    warm_up(scenes(20, folder / "few2"), folder / "warm", compute)
    count, seconds = score(data, folder / "cache", compute, config)
    job = CacheJob(out=folder / "sizes", data=data, candidates=config)
    planned = build.plan_cache(job, corpus, models.load_scorer("scenes-vilt"), silent)
    tasks = [planned.task(shard) for shard in planned.shards.missing()]
    sizes = [len(cloudpickle.dumps(task.packed())) for task in tasks[:4]]
    pairs_of_tasks = sum(len(task.inputs().image_P) for task in tasks[:4])
    image_bytes = sum(len(corpus.image_bytes(image)) for image in range(100)) / 100
    packing_s = timed(lambda: [cloudpickle.dumps(task.packed()) for task in tasks])
    here_s = score(data, folder / "cache-here", Compute(), config)[1]
    found = {
        "pairs": count,
        "bytes_of_an_image": round(image_bytes),
        "bytes_sent_per_pair": sum(sizes) / pairs_of_tasks,
        "bytes_received_per_pair": 4,
        "pairs_per_s": count / seconds,
        "images_per_s": num_images / seconds,
        "mb_per_s": sum(sizes) / pairs_of_tasks * count / seconds / 1e6,
        "pack_s": packing_s,
        "read_write_and_seal_s": here_s,
        "seconds": seconds,
    }
    say(table(["what", "value"], [[name, f"{value:,.6g}"] for name, value in found.items()]))
    return found


def timed(work: Callable[[], object]) -> float:
    """The seconds of some work."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
