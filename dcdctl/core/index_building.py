"""Making an index of images: plan which pictures, embed them part by part, seal.

Several processes (`distributed`) share a folder: the first plans, each embeds every so-manieth part, the first seals. A part is whole or
absent; a killed run goes on with the parts that are missing, whatever their number of processes, and ends with the same bytes.

Shape letters: I images, R rows, D width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from dcdctl.core import devices, distributed, files, index_files, index_images, models
from dcdctl.core.config import to_table
from dcdctl.core.errors import InputError, ModelError, StaleError
from dcdctl.core.index import Index
from dcdctl.core.index_config import IndexConfig
from dcdctl.core.index_files import INDEX_FILE, PLAN_FILE, Place, Skipped
from dcdctl.core.index_images import Source, Stretch
from dcdctl.core.nearest import Half
from dcdctl.core.progress import Advance, Track, silent


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """Where and how fast to embed; `precision` is part of what an index is made of, the rest is not."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 32
    workers: int = 0
    """Processes that read pictures; 0: this one does."""
    precision: str = "float32"
    """float32, or the torch name of what to compute in under autocast."""


@dataclass(frozen=True)
class Job:
    """A planned piece of work: what `plan` gives, and `embed` works off."""

    folder: Path
    plan: dict[str, Any]
    model: models.DualModel
    options: EmbeddingOptions

    @property
    def parts(self) -> range:
        """The numbers of the parts to embed."""
        return range(self.plan["first_part"], self.plan["first_part"] + len(self.plan["rows"]))

    def path(self, part: int) -> Path:
        return self.folder / "vectors" / index_files.part_name(part)

    def planned_rows(self, part: int) -> int:
        return int(self.plan["rows"][part - self.plan["first_part"]])

    @property
    def source(self) -> Source:
        return Source(**self.plan["sources"][-1])


def build(
    ref: str,
    images: Path,
    folder: Path,
    config: IndexConfig,
    *,
    split: str = "test",
    options: EmbeddingOptions = EmbeddingOptions(),
    track: Track = silent,
) -> Index:
    """Embed the pictures of a folder or a corpus with a dual encoder, and make them searchable; goes on where a killed run stopped.

    StaleError if the folder holds an index of other pictures, another model or other settings; InputError if there is no picture.
    """
    folder, source = Path(folder), index_images.find(Path(images), split)
    _refuse_inside(folder, source)
    model = models.load_dual(ref)
    with claimed(folder):
        job = _planned(folder, model, source, config, options)
        embed(job, track)
        return _finish(job)


def claimed(folder: Path) -> AbstractContextManager[None]:
    """The folder, as far as this process works on it, for this run alone; StaleError if another one is writing to it."""
    return files.lock(folder.absolute(), distributed.rank())


def _refuse_inside(folder: Path, source: Source) -> None:
    out, images = folder.resolve(), Path(source.path)
    if images == out or images.is_relative_to(out):
        raise InputError(f"the pictures of {images} would lie inside the index {folder}", hint="name another folder with --out")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, a folder to write is wanted", hint="name another with --out")


def _planned(folder: Path, model: models.DualModel, source: Source, config: IndexConfig, options: EmbeddingOptions) -> Job:
    wanted = {
        "format": index_files.FORMAT,
        "generation": 1,
        "sources": [asdict(source)],
        "model": {"kind": "dual", "dim": model.embedding_dim, "fingerprint": model.digest},
        "precision": options.precision,
        "settings": to_table(config),
    }
    with distributed.main_first():
        if distributed.is_main():
            _begin(folder, wanted, model, source)
    plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8")) if (folder / PLAN_FILE).exists() else {**wanted, "rows": []}
    model.to(options.device).eval()
    return Job(folder, plan, model, options)


def _begin(folder: Path, wanted: dict[str, Any], model: models.DualModel, source: Source) -> None:
    """Make the folder this plan's: the model, and which pictures each part has."""
    document = folder / INDEX_FILE
    if document.exists():
        return _expect(folder, index_files.read_document(folder), wanted)
    path = folder / PLAN_FILE
    if path.exists():
        return _expect(folder, json.loads(path.read_text(encoding="utf-8")), wanted)
    if not (folder / "planned").exists() and not files.is_vacant(folder):
        raise StaleError(f"{folder} holds something that is not an index", hint="name an empty or a new folder with --out")
    shutil.rmtree(folder / "planned", ignore_errors=True)
    (folder / "planned").mkdir(parents=True)
    models.save(model, folder / "model")
    skipped: list[Skipped] = []
    rows = [
        _write_planned(folder / "planned" / index_files.part_name(number), part)
        for number, part in enumerate(index_images.in_parts(_good(source, folder, skipped), index_files.ROWS_PER_PART))
    ]
    if not rows:
        shutil.rmtree(folder)
        raise InputError(
            f"there is no picture in {source.path}", hint="--images takes a folder of pictures, or one that `dcdctl prepare` wrote"
        )
    files.write_json(path, {**wanted, "first_part": 0, "rows": rows, "skipped": [asdict(one) for one in skipped]})


def _good(source: Source, folder: Path, skipped: list[Skipped]) -> Iterator[Place]:
    for found in index_images.places(source, folder):
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            yield found


def _write_planned(path: Path, places: list[Place]) -> int:
    index_files.write_places(path, places)
    return len(places)


def _expect(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in ("model", "sources", "precision", "settings"):
        if found[key] != wanted[key]:
            hint = "name another folder with --out"
            raise StaleError(f"{folder} holds an index of other {key} ({_told(found[key])}, not {_told(wanted[key])})", hint=hint)


def _told(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@torch.inference_mode()
def embed(job: Job, track: Track = silent) -> None:
    """Embed what is missing, this process's share of it."""
    if (job.folder / INDEX_FILE).exists() and not job.plan["rows"]:
        return
    mine = [job.parts[number] for number in distributed.dealt(len(job.parts)) if not job.path(job.parts[number]).exists()]
    batch = job.options.batch_size
    stretches = [
        Stretch(part, start, min(start + batch, job.planned_rows(part)))
        for part in mine
        for start in range(0, job.planned_rows(part), batch)
    ]
    data = index_images.Pictures(job.folder / "planned", [(job.source, part) for part in job.parts], job.model.preprocess)
    with track("embed", total=sum(job.planned_rows(part) for part in mine), unit="images") as advance:
        reading = index_images.read_ahead(data, stretches, job.options.workers)
        for part in mine:
            _embed_part(job, part, reading, advance)
    distributed.wait()


def _embed_part(job: Job, part: int, reading: Iterator[index_images.ReadPictures], advance: Advance) -> None:
    vectors: list[Half] = [np.empty((0, job.model.embedding_dim), dtype=np.float16)]
    places: list[Place] = []
    skipped: list[Skipped] = []
    stop = 0
    while stop < job.planned_rows(part):
        found = next(reading)
        if found.images is not None:
            vectors.append(_vectors(job, found.images))
        places += found.places
        skipped += found.skipped
        stop = found.stretch.stop
        advance(stop - found.stretch.start)
    index_files.write_part(job.path(part), places, np.concatenate(vectors), skipped)


def _vectors(job: Job, images: models.ImageBatch) -> Half:
    options = job.options
    is_mixed = options.precision != "float32"
    with torch.autocast(options.device.type, dtype=getattr(torch, options.precision), enabled=is_mixed):
        vectors_ID = job.model.embed_images(images.to(options.device)).float()
    if not bool(vectors_ID.isfinite().all()):
        raise ModelError(
            "the model gives vectors that are NaN or infinite", hint="try --precision fp32, or train it with a lower optimizer.lr"
        )
    return functional.normalize(vectors_ID, dim=-1).half().cpu().numpy()


def _finish(job: Job) -> Index:
    with distributed.main_first():
        if distributed.is_main() and not (job.folder / INDEX_FILE).exists():
            _seal(job)
        if distributed.is_main():
            (job.folder / PLAN_FILE).unlink(missing_ok=True)
            shutil.rmtree(job.folder / "planned", ignore_errors=True)
    return Index.open(job.folder)


def _seal(job: Job) -> None:
    """Write index.json."""
    dim, plan = job.model.embedding_dim, job.plan
    described = [index_files.describe_part(job.path(part), 0, dim) for part in job.parts]
    parts = [part for part, _ in described]
    skipped = [*plan["skipped"], *(asdict(one) for _, found in described for one in found)]
    num_images = sum(part.rows for part in parts)
    if not num_images:
        raise InputError(f"none of {len(skipped):,} files of {job.source.path} is a picture that can be read: {_first(skipped)}")
    name = f"skipped-{plan['generation']}.json" if skipped else None
    if name is not None:
        files.write_json(job.folder / name, skipped)
    document = {
        "format": index_files.FORMAT,
        "generation": plan["generation"],
        "images": num_images,
        "model": plan["model"],
        "kind": "flat",
        "precision": plan["precision"],
        "settings": plan["settings"],
        "sources": plan["sources"],
        "skipped": {"count": len(skipped), "file": name},
        "removed": None,
        "versions": devices.versions(),
        "parts": [asdict(part) for part in parts],
        "segments": [],
    }
    files.write_json(job.folder / INDEX_FILE, document)


def _first(skipped: list[dict[str, str]]) -> str:
    return "; ".join(f"{one['path']}: {one['reason']}" for one in skipped[:2])
