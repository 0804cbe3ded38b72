"""Making an index of images and changing it: what to embed is planned, embedded, made searchable, and becomes the index in one move.

index.json is replaced when all it names is there, so an index works at any moment of a change, and after one that was killed. A plan that
was begun is gone on with, whatever the number of processes, and ends with the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dcdctl.core import config as configs
from dcdctl.core import distributed, files, models
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError, InputError, StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import ann, commit, embed, storage
from dcdctl.core.search.commit import skipped_of
from dcdctl.core.search.config import IndexConfig
from dcdctl.core.search.embed import IN_SMALL_BATCHES, Job
from dcdctl.core.search.index import Index
from dcdctl.core.search.storage import INDEX_FILE, PLAN_FILE, PLANNED, Place, Skipped, Source

BYTES_PER_IMAGE = 200
"""On disk, besides three for each number of a vector: two in the file of vectors, one in a graph."""
Document = dict[str, Any]
"""What index.json holds."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is done to an index, in this order."""

    sets: tuple[str, ...] = ()
    """Settings of the search, such as "kind=flat"."""
    remove: tuple[str, ...] = ()
    """Image ids, or patterns of them such as "2019/*"."""
    remove_gone: bool = False
    """Remove the images whose files are no longer where they were."""
    add: Path | None = None
    """A folder of pictures or a corpus; of one that is indexed already, what is new."""
    split: str = "test"
    precision: str | None = None
    """Torch name of the precision of a new index; an index that is changed must have it already. None: float32, or that of the index."""


def build(
    ref: str,
    images: Path,
    folder: Path,
    config: IndexConfig,
    *,
    split: str = "test",
    compute: Compute = IN_SMALL_BATCHES,
    track: Track = silent,
) -> Index:
    """Embed the pictures of a folder or a corpus with a dual encoder, and make them searchable; goes on where a killed run stopped.

    StaleError if the folder holds an index of other pictures, another model or other settings; InputError if there is no picture.
    """
    folder, source = Path(folder), embed.find(Path(images), split)
    _refuse_inside(folder, source)
    ann.packages(config.kind)
    model = models.load_dual(ref)
    wanted = {
        "format": storage.FORMAT,
        "generation": 1,
        "model": {"kind": "dual", "dim": model.embedding_dim, "fingerprint": model.digest},
        "sources": [asdict(source)],
        "precision": compute.precision,
        "settings": configs.to_table(config),
    }
    with claimed(folder):
        with distributed.main_first():
            if distributed.is_main():
                _begin(folder, wanted, model)
        if not (folder / INDEX_FILE).exists():
            nothing = {"count": 0, "file": None}
            empty = {**wanted, "removed": nothing, "skipped": nothing, "parts": [], "segments": []}
            _work_off(folder, empty, model, compute, track)
    return Index.open(folder)


def update(folder: Path, changes: Changes, *, compute: Compute = IN_SMALL_BATCHES, track: Track = silent) -> Index:
    """Change an index: its settings, what it has. Rows stay what they are. InputError if nothing has a name that shall be removed."""
    storage.read_document(folder)  # before a lock is left beside what is no index
    with claimed(folder):
        document = storage.read_document(folder)
        if changes.precision not in (None, document["precision"]):
            found = f"the index {folder} is of precision {document['precision']}, not {changes.precision}"
            raise ConfigError(found, hint="leave --precision out")
        if changes.sets or changes.remove or changes.remove_gone:
            document = _changed(folder, document, changes, track)
        if changes.add is not None:
            source = embed.find(changes.add, changes.split)
            _refuse_inside(folder, source)
            with distributed.main_first():
                if distributed.is_main():
                    _begin_adding(folder, document, source)
            index = Index(folder, document)
            model = models.load_dual(index.model)
            index.expect(model.digest)
            _work_off(folder, document, model, compute, track)
    return Index.open(folder)


def claimed(folder: Path) -> AbstractContextManager[None]:
    """The folder, as far as this process works on it, for this run alone; StaleError if another one is writing to it."""
    return files.lock(folder, distributed.rank())


def _refuse_inside(folder: Path, source: Source) -> None:
    out, images = folder.resolve(), Path(source.path)
    if images.is_relative_to(out):
        raise InputError(f"the pictures {images} are inside the index {folder}", hint="keep the two apart")
    files.check_output_folder(folder)


def _begin(folder: Path, wanted: Document, model: models.DualEncoder) -> None:
    """Make the folder this plan's: the model, and which pictures each part has."""
    if (folder / INDEX_FILE).exists():
        document = storage.read_document(folder)
        _expect(folder, document, wanted)
        if (folder / PLAN_FILE).exists() and _read_plan(folder)["generation"] <= document["generation"]:
            storage.tidy(folder, document)  # killed when all was done but this
        return
    if (folder / PLAN_FILE).exists():
        return _expect(folder, _read_plan(folder), wanted)
    if not (folder / PLANNED).exists() and not files.is_vacant(folder):
        raise StaleError(f"{folder} holds something that is not an index", hint="name an empty or a new folder with --out")
    plan = _planned(folder, {**wanted, "source": 0, "first_part": 0}, known=set())
    if not plan["rows"]:
        shutil.rmtree(folder)
        raise InputError(f"there is no picture in {wanted['sources'][0]['path']}", hint="--images takes a folder of pictures or a corpus")
    models.save(model, folder / "model")
    files.write_json(folder / PLAN_FILE, plan)


def _begin_adding(folder: Path, document: Document, source: Source) -> None:
    """Plan what of a source is new, unless a killed run has."""
    sources = list(document["sources"])
    number = next((number for number, one in enumerate(sources) if Source(**one).place == source.place), len(sources))
    if number == len(sources):
        sources.append(asdict(source))
    elif sources[number] != asdict(source):
        raise StaleError(f"{source.path} holds another corpus than the one that was indexed", hint="make a new index")
    wanted = {key: document[key] for key in ("format", "model", "precision", "settings")}
    wanted |= {"generation": document["generation"] + 1, "sources": sources, "source": number}
    if (folder / PLAN_FILE).exists() and wanted.items() <= _read_plan(folder).items():
        return
    storage.tidy(folder, document)
    first = 1 + max((int(part["file"][5:-8]) for part in document["parts"]), default=-1)
    known = commit.ids_of(Index(folder, document), number)
    files.write_json(folder / PLAN_FILE, _planned(folder, {**wanted, "first_part": first}, known=known))


def _planned(folder: Path, plan: Document, *, known: set[str]) -> Document:
    """The plan with the pictures of each part, which are written into the folder; those that are known are left out."""
    shutil.rmtree(folder / PLANNED, ignore_errors=True)
    (folder / PLANNED).mkdir(parents=True)
    skipped: list[Skipped] = []

    def new() -> Iterator[Place]:
        for found in embed.places(Source(**plan["sources"][plan["source"]]), folder):
            if isinstance(found, Skipped):
                skipped.append(found)
            elif found.image_id not in known:
                yield found

    rows: list[int] = []
    for places in embed.in_parts(new(), storage.ROWS_PER_PART):
        storage.write_places(folder / PLANNED / storage.part_name(plan["first_part"] + len(rows)), places)
        rows.append(len(places))
    needed = sum(rows) * (BYTES_PER_IMAGE + 3 * plan["model"]["dim"])
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(f"{sum(rows):,} images need {needed / 1e9:,.2f} GB in {folder}, and {free / 1e9:,.2f} GB are free")
    return {**plan, "rows": rows, "skipped": [asdict(one) for one in skipped]}


def _read_plan(folder: Path) -> Document:
    return files.read_json(folder / PLAN_FILE, error=StaleError, hint="delete the folder and run the same command again")


def _expect(folder: Path, found: Document, wanted: Document) -> None:
    """StaleError if what is in the folder is not what is wanted; pictures that were added later are no difference."""
    told = {
        "model": "it was made with the model {}, and this is {}",
        "sources": "it is of the pictures {}, not of {}",
        "precision": "its precision is {}, not {}",
        "settings": "its settings are {}, not {}",
    }
    for key, text in told.items():
        there, here = found[key], wanted[key]
        if key == "sources":
            there = there[:1]
        if there != here:
            hint = f"change them with `dcdctl index {folder} --set ...`" if key == "settings" else "name another folder with --out"
            raise StaleError(f"{folder} holds another index: {text.format(_named(there), _named(here))}", hint=hint)


def _named(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(one) for one in (value[0]["path"], value[0]["split"], (value[0]["fingerprint"] or "")[:8]) if one)
    return value["fingerprint"][:8] if isinstance(value, dict) and "fingerprint" in value else json.dumps(value)


def _work_off(folder: Path, document: Document, model: models.DualEncoder, compute: Compute, track: Track) -> None:
    """Embed what is planned, and make the index what it is then."""
    plan = _read_plan(folder)
    job = Job(folder, plan, model, replace(compute, precision=plan["precision"]))
    embed.embed(job, track)
    described = [storage.describe_part(job.path(part), plan["source"], model.embedding_dim) for part in job.parts]
    parts = [asdict(part) for part, _ in described if part.rows]
    lost = [*plan["skipped"], *(asdict(one) for _, found in described for one in found)]
    if not (parts or document["parts"]):
        first = "; ".join(f"{one['path']}: {one['reason']}" for one in lost[:2])
        raise InputError(f"none of {len(lost):,} files in {job.source.path} is a picture that can be read: {first}")
    before = commit.skipped_of(folder, document)
    skipped = [one for one in before if one["source"] != plan["source"]] + [{**one, "source": plan["source"]} for one in lost]
    same = {key: plan[key] for key in ("generation", "sources", "model", "precision", "settings")}
    if not parts and skipped == before:
        same = {}
    commit.become(folder, {**document, **same, "parts": [*document["parts"], *parts]}, skipped=skipped, track=track)


def _changed(folder: Path, document: Document, changes: Changes, track: Track) -> Document:
    """The index after its settings were changed and images were removed."""
    table = configs.apply_sets(document["settings"], changes.sets)
    config = configs.build(IndexConfig, table)
    ann.packages(config.kind)
    gone = commit.rows_to_remove(Index(folder, document), changes.remove, gone=changes.remove_gone)
    following = {**document, "generation": document["generation"] + 1, "settings": configs.to_table(config)}
    if not config.builds_as(configs.build(IndexConfig, document["settings"])):
        following["segments"] = []
    return commit.become(folder, following, removed=gone, track=track)


@dataclass(frozen=True)
class Outcome:
    """An index as it is now."""

    index: Index
    skipped: list[dict[str, Any]]
    """Files among the pictures that are none, with the reasons."""
    added: int = 0
    removed: int = 0


def run_index_job(
    target: str,
    changes: Changes,
    *,
    images: Path | None = None,
    out: Path | None = None,
    compute: Compute = IN_SMALL_BATCHES,
    track: Track = silent,
) -> Outcome:
    """Build an index in `out` of `images` with the model `target`, or change the index `target`; without a change only look at it.

    ConfigError if what is named is neither the one nor the other.
    """
    is_change = bool(changes.add or changes.remove or changes.remove_gone)
    if images is None and out is None:
        return _change_open_index(Path(target).expanduser(), changes, compute, track)
    if images is None or out is None or is_change:
        hint = "a new index: dcdctl index RUN --images DIR --out INDEX; a change: dcdctl index INDEX --add DIR or --remove NAME"
        raise ConfigError("--images and --out belong together, and to a new index alone", hint=hint)
    config = configs.build(IndexConfig, configs.apply_sets({}, changes.sets))
    compute = replace(compute, precision=changes.precision or "float32")
    built = build(target, images, out.expanduser(), config, split=changes.split, compute=compute, track=track)
    return Outcome(built, skipped_of(built.folder, built.document))


def _change_open_index(folder: Path, changes: Changes, compute: Compute, track: Track) -> Outcome:
    if not (folder / INDEX_FILE).exists() and (folder / "run.json").exists():
        raise ConfigError(f"{folder} is a run, not an index", hint=f"make one: dcdctl index {folder} --images DIR --out INDEX")
    before = Index.open(folder)
    if changes == Changes(split=changes.split, precision=changes.precision):
        return Outcome(before, [])
    after = update(folder, changes, compute=compute, track=track)
    gone_before, gone = (0 if one.is_removed is None else int(one.is_removed.sum()) for one in (before, after))
    added = after.num_rows - before.num_rows
    return Outcome(after, skipped_of(folder, after.document) if changes.add else [], added=added, removed=gone - gone_before)
