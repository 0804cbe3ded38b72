"""What the parts of benchmarks/gpu.py share: the machine with its data and models, and rows of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import MAKERS, Size
from reports import peak_mib, reset_peak

import dcdctl
from dcdctl.core import devices
from dcdctl.core.data import Corpus, describe_scenes
from dcdctl.core.engines import Compute
from dcdctl.core.scoring import CorpusSource, score_pairs
from dcdctl.core.teacher.make import TOLERANCES

NAMES = {"float32": "fp32", "bfloat16": "bf16"}
"""The precisions of the parts, by their names in torch, as --precision names them."""
FEW_IMAGES = 16
"""Images of a training whose teacher also scores on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was computed: how far it is from the CPU's, how fast it was, and the memory that it took."""

    model: str
    what: str
    difference: float | None = None
    """None for a measurement."""
    limit: float = 0.0
    """The largest difference that passes."""
    value: float | None = None
    unit: str = ""
    peak_mib: float | None = None
    note: str = ""

    @property
    def check(self) -> str:
        if self.difference is None:
            return "NOT RUN" if self.value is None else ""
        # Written this way, NaN fails too.
        return "PASS" if self.difference <= self.limit else "FAIL"

    @property
    def cells(self) -> list[str]:
        """The row in the table, by COLUMNS."""
        check = self.check if self.difference is None else f"{self.check}, {self.difference:.1e} of {self.limit:g}"
        value = "" if self.value is None else f"{self.value:,.4g} {self.unit}"
        peak = "" if self.peak_mib is None else f"{self.peak_mib:,.0f} MiB"
        return [self.model, self.what, check, value, peak, self.note]


COLUMNS = ["model", "what", "difference from the CPU", "measured", "peak memory", ""]


@dataclass(frozen=True)
class Machine:
    """Where the parts run, and what they share."""

    out: Path
    device: torch.device
    size: Size
    uses_gloo: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def compute(self, precision: str = "float32", batch_size: int | None = None) -> Compute:
        return Compute(device=self.device, precision=precision, batch_size=batch_size)

    @property
    def computes(self) -> list[Compute]:
        """The device in each precision."""
        return list(map(self.compute, NAMES))

    def model(self, name: str) -> str:
        """The folder of a model, which is made on first use."""
        folder = self.out / "models" / name
        if not folder.exists():
            MAKERS[name](folder, self.captions, self.size)
        return str(folder)

    @cached_property
    def captions(self) -> list[str]:
        scenes = islice(describe_scenes(0, "train"), self.size.images)
        return [statement.text for item in scenes for statement in item.statements]

    @cached_property
    def data(self) -> Path:
        """Captioned scenes."""
        counts = {"counts.train": self.size.images, "counts.val": 0, "counts.test": max(8, self.size.images // 2)}
        dcdctl.prepare("scenes", self.out / "data", overrides=counts)
        return self.out / "data"

    @cached_property
    def pool(self) -> Path:
        """The images of one half of them without captions, and the captions of the other half without images."""
        corpus = Corpus.open(self.data, "train")
        return self._make_pool("pool", corpus.num_images // 2, corpus.num_captions // 2)

    @cached_property
    def small_pool(self) -> Path:
        """The same of few images, because a CPU also scores their pairs."""
        corpus = Corpus.open(self.data, "train")
        num_images = min(FEW_IMAGES, corpus.num_images // 2)
        return self._make_pool("small-pool", num_images, 5 * num_images)

    def _make_pool(self, name: str, num_images: int, num_texts: int) -> Path:
        """The first images and the last captions."""
        corpus, files = Corpus.open(self.data, "train"), self.out / f"{name}-files"
        files.mkdir(exist_ok=True)
        for number, image in enumerate(corpus.images(range(num_images))):
            image.save(files / f"{number}.png")
        texts = self.out / f"{name}.txt"
        texts.write_text("\n".join(corpus.captions[-num_texts:]) + "\n")
        dcdctl.prepare(images=[files], queries=[texts], out=self.out / name, hold_out=0.0)
        return self.out / name


def relative(found: Any, expected: Any) -> float:
    """The largest difference relative to max(1, |expected|); NaN if a number is."""
    return float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())


def with_peak(machine: Machine, work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of the work, and the most memory meanwhile in MiB: allocated on the GPU, or resident in this
    process."""
    reset_peak(machine.device)
    return work(), peak_mib(machine.device)


def scoring(scorer: Any, corpus: Corpus, image_P: Any, text_P: Any) -> Callable[[Compute], Any]:
    """A function that gives the scores of these pairs."""
    source = CorpusSource(corpus, scorer.preprocess)
    return lambda compute: score_pairs(scorer.to(compute.device), source, image_P, text_P, compute=compute)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work whose result, an array, must be the same on the CPU and on the device."""

    model: str
    what: str
    run: Callable[[Compute], Any]
    count: int
    unit: str = "pairs/s"
    """Of the rate."""
    limits: Mapping[str, float] = dataclasses.field(default_factory=lambda: TOLERANCES)
    """The largest relative difference, by the torch name of a precision."""
    precisions: Sequence[str] = tuple(NAMES)
    reference: tuple[str, Callable[[Compute], Any]] | None = None
    """Another way to the same result that runs on the CPU in its place, and its name."""


def compared(machine: Machine, work: Work) -> Iterator[Row]:
    """A row for each precision of the device."""
    way, run = work.reference or ("fp32", work.run)
    expected = run(Compute())
    for compute in map(machine.compute, work.precisions):
        what = f"{work.what}, {NAMES[compute.precision]}, against {way} on the CPU"
        if machine.is_gpu:
            work.run(compute)  # the first pass loads libraries and selects kernels
        (seconds, found), mib = with_peak(machine, partial(devices.timed, partial(work.run, compute), machine.device))
        yield Row(
            model=work.model, what=what, difference=relative(found, expected), limit=work.limits[compute.precision],
            value=work.count / seconds, unit=work.unit, peak_mib=mib,
        )  # fmt: skip
