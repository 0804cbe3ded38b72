"""Pictures to the files of vectors of an index: what is planned and not there yet, by any number of processes (`distributed`).

A part is whole or absent, and its bytes depend on the plan alone. Shape letters: I images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from dcdctl.core import distributed, index_files, index_images
from dcdctl.core.errors import ModelError
from dcdctl.core.index_files import PLANNED, Place, Skipped, Source, part_name
from dcdctl.core.index_images import Pictures, ReadPictures, Stretch
from dcdctl.core.models.dual import DualModel
from dcdctl.core.models.protocols import ImageBatch
from dcdctl.core.nearest import Half
from dcdctl.core.progress import Advance, Track, silent


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """Where and how fast to embed; `precision` is part of what an index is made of, the rest is not."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 32
    workers: int = 0
    """Processes that read pictures; 0: this one does."""
    precision: str | None = None
    """float32, or the torch name of what to compute in under autocast; None: that of the index, or float32 for a new one."""


ON_CPU = EmbeddingOptions()


@dataclass(frozen=True)
class Job:
    """Planned parts and the model that embeds them."""

    folder: Path
    plan: dict[str, Any]
    model: DualModel
    options: EmbeddingOptions

    @property
    def parts(self) -> range:
        """The numbers of the parts."""
        return range(self.plan["first_part"], self.plan["first_part"] + len(self.plan["rows"]))

    @property
    def source(self) -> Source:
        return Source(**self.plan["sources"][self.plan["source"]])

    def path(self, part: int) -> Path:
        return self.folder / "vectors" / part_name(part)

    def num_planned(self, part: int) -> int:
        """Files of a part, before it is known which of them are pictures."""
        return int(self.plan["rows"][part - self.plan["first_part"]])


@torch.inference_mode()
def embed(job: Job, track: Track = silent) -> None:
    """Write this process's share of the parts that are not there, and wait for the others."""
    job.model.to(job.options.device).eval()
    size = job.options.batch_size
    mine = [job.parts[number] for number in distributed.dealt(len(job.parts)) if not job.path(job.parts[number]).exists()]
    counts = {part: job.num_planned(part) for part in mine}
    stretches = [Stretch(part, at, min(at + size, count)) for part, count in counts.items() for at in range(0, count, size)]
    if not mine:
        return distributed.wait()
    reading = index_images.read_ahead(Pictures(job.folder / PLANNED, job.source, job.model.preprocess), stretches, job.options.workers)
    with track("embed", total=sum(counts.values()), unit="images") as advance:
        for part in mine:
            _embed_part(job, part, reading, advance)
    distributed.wait()


def _embed_part(job: Job, part: int, reading: Iterator[ReadPictures], advance: Advance) -> None:
    vectors: list[Half] = [np.empty((0, job.model.embedding_dim), dtype=np.float16)]
    places: list[Place] = []
    skipped: list[Skipped] = []
    done = 0
    while done < job.num_planned(part):
        found = next(reading)
        if found.images is not None:
            vectors.append(_vectors(job, found.images))
        places += found.places
        skipped += found.skipped
        advance(found.stretch.stop - done)
        done = found.stretch.stop
    index_files.write_part(job.path(part), places, np.concatenate(vectors), skipped)


def _vectors(job: Job, images: ImageBatch) -> Half:
    device, precision = job.options.device, job.plan["precision"]
    with torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32"):
        vectors_ID = job.model.embed_images(images.to(device)).float()
    vectors_ID = functional.normalize(vectors_ID, dim=-1)
    if not bool((vectors_ID.isfinite().all(dim=-1) & vectors_ID.any(dim=-1)).all()):
        hint = "try --precision fp32; if that does not help, its training diverged"
        raise ModelError("the model gives vectors that are zero, NaN or infinite", hint=hint)
    return functional.normalize(vectors_ID, dim=-1).half().cpu().numpy()
