"""Every file of an artifact, or of a folder of artifacts, compared with its checksum and read once.

A folder is recognized by its documents: corpus.json, cache.json, features.json, index.json, run.json, dcdctl.json,
result.json, cascade.json. A folder may hold several artifacts, such as a run with its evaluation, and folders of
artifacts.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from dcdctl.core import artifacts, bench, data, evaluation, files, models, scoring, search, teacher, training
from dcdctl.core.artifacts import Kind
from dcdctl.core.errors import DcdError, InputError, StaleError
from dcdctl.core.evaluation import CASCADE_FILES, MODEL_FILES, POOL_FILES
from dcdctl.core.progress import Track, silent

Read = TypeVar("Read")
State = Literal["ok", "damaged", "unfinished"]
PLANNED: tuple[Kind, ...] = (teacher.CACHE, scoring.FEATURES, search.INDEX)
"""The artifacts with a plan.json. Without a seal, the names of their parts tell which one it is."""


@dataclass(kw_only=True)
class VerifiedArtifact:
    """An artifact, its files, and what is wrong with them."""

    path: Path
    kind: str
    files: dict[Path, int] = field(default_factory=dict)
    """The size of each file that belongs to it; 0 if it is missing."""
    damages: list[str] = field(default_factory=list)
    is_finished: bool = True

    @property
    def state(self) -> State:
        return "damaged" if self.damages else "ok" if self.is_finished else "unfinished"

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())

    def add(self, *paths: Path) -> None:
        """Count files that belong to it and that exist."""
        self.files.update({path: path.stat().st_size for path in paths if path.is_file()})

    def add_all(self, kind: Kind) -> None:
        """Count the files that a kind of artifact may have, where no seal lists them."""
        for path in (path for pattern in kind.files for path in self.path.glob(pattern)):
            self.add(path, *path.rglob("*"))

    def compare(self, folder: Path, listed: Mapping[str, Mapping[str, Any]], track: Track) -> set[str]:
        """Compare files with their sizes and checksums; returns the names of the intact ones."""
        intact: set[str] = set()
        with track(
            f"compare {self.path.name}", total=sum(_size(folder / name) for name in listed), unit="bytes"
        ) as advance:
            for name, entry in listed.items():
                size = _size(folder / name)
                self.files[folder / name] = size
                with self.noting():
                    artifacts.check_files(folder, {name: entry})
                    intact.add(name)
                advance(size)
        return intact

    def is_intact(self, listed: Mapping[str, Mapping[str, Any]], track: Track) -> bool:
        """Whether all files of its folder are as listed: the content of a damaged file has no meaning."""
        return self.compare(self.path, listed, track) == set(listed)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note an error of the block as a damage, without its hint."""
        try:
            yield
        except DcdError as error:
            self.damages.append(str(error.args[0]))


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found."""

    artifacts: tuple[VerifiedArtifact, ...]
    unknown: tuple[Path, ...]
    """Files that belong to none of the artifacts."""
    skipped: tuple[str, ...] = ()
    """Folders that cannot be read, each with the reason."""

    @property
    def is_well(self) -> bool:
        """Whether every artifact is finished and undamaged."""
        return all(artifact.state == "ok" for artifact in self.artifacts)

    @property
    def problems(self) -> list[str]:
        """Every damage once, and the unfinished artifacts."""
        unfinished = [
            f"{artifact.path}: the {artifact.kind} is not finished"
            for artifact in self.artifacts
            if not artifact.is_finished
        ]
        return list(dict.fromkeys(damage for artifact in self.artifacts for damage in artifact.damages)) + unfinished

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "path": str(artifact.path),
                "kind": artifact.kind,
                "files": len(artifact.files),
                "bytes": artifact.num_bytes,
                "state": artifact.state,
                "damages": artifact.damages,
            }
            for artifact in self.artifacts
        ]
        return {
            "ok": self.is_well,
            "artifacts": rows,
            "not_part": [str(path) for path in self.unknown],
            "skipped": list(self.skipped),
        }


def verify(path: Path, track: Track = silent) -> Verification:
    """Check all artifacts in a folder, however deep; links to folders are not followed. InputError if there is none."""
    if not path.is_dir():
        raise InputError(
            f"{path} is {'a file' if path.exists() else 'not there'}, a folder is expected",
            hint="name a folder of artifacts",
        )
    verified: list[VerifiedArtifact] = []
    locks = f"{glob.escape(files.lock_prefix(path))}*"  # of the folder itself, which are beside it
    present, walked = set(Path(os.path.realpath(path)).parent.glob(locks)), list[tuple[Path, list[str]]]()
    skipped: list[OSError] = []
    for parent, folders, names in os.walk(path, onerror=skipped.append):
        folders.sort()  # os.walk descends in this order, and the order of a file system is by chance
        folder = Path(parent)
        walked.append((folder, names))
        present |= {folder / name for name in names if not name.startswith(".") or ".lock-" in name}
        checks = [check for markers, check in CHECKS if any(marker in names for marker in markers)]
        if "plan.json" in names and not any(kind.seal_file in names for kind in PLANNED):
            checks.append(_unfinished)
        for check in checks:
            try:
                verified.append(check(folder, track))
            except OSError as error:  # such as a folder whose files may be listed and not read
                damage = files.unreadable(Path(error.filename or folder), error).args[0]
                verified.append(VerifiedArtifact(path=folder, kind="artifact", damages=[damage]))
    known = {file for artifact in verified for file in artifact.files}
    verified += [artifact for place in walked for artifact in _without_document(*place, present - known)]
    if not verified:
        if skipped and Path(skipped[0].filename) == path:
            raise files.unreadable(path, skipped[0])
        content = ", ".join(sorted(child.name for child in path.iterdir())[:6]) or "nothing"
        raise InputError(
            f"{path} holds no artifact of dcdctl, but {content}",
            hint="name a corpus, a cache, an index, a run or a model",
        )
    known = {file for artifact in verified for file in artifact.files}
    return Verification(
        artifacts=tuple(verified),
        unknown=tuple(sorted(present - known)),
        skipped=tuple(f"{error.filename}: {error.strerror}" for error in skipped),
    )


def _without_document(folder: Path, names: list[str], left: set[Path]) -> Iterator[VerifiedArtifact]:
    """The artifacts of a folder that lost the document by which they are recognized, by the files that are `left`."""
    for kind, document, patterns in (
        ("corpus", data.CORPUS_FILE, data.CORPUS.files),
        ("teacher cache", teacher.CACHE.seal_file, teacher.CACHE.files),
        ("features", scoring.FEATURES.seal_file, scoring.FEATURES.files),
        # Not its other files: many programs have a folder `text`.
        ("index", search.INDEX.seal_file, ("vectors/part-*.parquet",)),
        ("run", "run.json", ("metrics.json", "metrics.jsonl", "checkpoints/*/checkpoint.json")),
        ("model", models.SETTINGS_FILE, ("model*.safetensors",)),
    ):
        parts = left & {path for pattern in patterns for path in folder.glob(pattern)}
        # With a plan it is an unfinished one.
        if parts and not {document, "plan.json", data.CORPUS.plan_file} & set(names):
            name = min(parts).relative_to(folder)
            damage = f"{folder} holds {name} and no {document}: its {kind} cannot be checked"
            artifact = VerifiedArtifact(path=folder, kind=kind, damages=[damage])
            with suppress(OSError):  # a folder whose files may be listed and not read
                artifact.add(*parts)
            yield artifact


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _unfinished(folder: Path, _: Track) -> VerifiedArtifact:
    kind = next((kind for kind in PLANNED if any(any(folder.glob(pattern)) for pattern in kind.files)), None)
    artifact = VerifiedArtifact(path=folder, kind="artifact" if kind is None else kind.name, is_finished=False)
    artifact.add(folder / "plan.json")
    if kind is not None:
        artifact.add_all(kind)
        with artifact.noting():
            kind.read_plan(folder)
    return artifact


def _sealed(folder: Path, kind: Kind, read: Callable[[Path], Read]) -> tuple[VerifiedArtifact, Read | None]:
    """An artifact, and what `read` returns of its seal; None for a damaged seal."""
    artifact = VerifiedArtifact(path=folder, kind=kind.name)
    artifact.add(folder / kind.seal_file, folder / kind.plan_file)
    with artifact.noting():
        return artifact, read(folder)
    # Without a seal no file of it would count, and all would be named as not part of it.
    artifact.add_all(kind)
    return artifact, None


def _corpus(folder: Path, track: Track) -> VerifiedArtifact:
    if not (folder / data.CORPUS_FILE).exists():
        return VerifiedArtifact(
            path=folder, kind="corpus", files={folder / data.CORPUS.plan_file: 0}, is_finished=False
        )
    artifact, document = _sealed(folder, data.CORPUS, data.read_corpus_json)
    if document is None:
        return artifact
    for split, entry in document.splits.items():
        parts = [*entry.parts, *([document.columns[split]] if split in document.columns else [])]
        listed = {part.file: vars(part) for part in parts}
        if artifact.is_intact(listed, track):
            with artifact.noting(), track(f"read {split}", total=entry.images, unit="images") as advance:
                artifact.damages += data.Corpus.open(folder, split).find_faults(advance)
    return artifact


def _cache(folder: Path, track: Track) -> VerifiedArtifact:
    artifact, documents = _sealed(folder, teacher.CACHE, teacher.CACHE.read_plan_and_seal)
    if documents is not None and artifact.is_intact(documents[1]["files"], track):
        with artifact.noting():
            artifact.damages += teacher.read_cache(folder).find_faults()
    return artifact


def _features(folder: Path, track: Track) -> VerifiedArtifact:
    artifact, documents = _sealed(folder, scoring.FEATURES, scoring.FEATURES.read_plan_and_seal)
    if documents is not None:
        artifact.compare(folder, documents[1]["files"], track)
    return artifact


def _index(folder: Path, track: Track) -> VerifiedArtifact:
    artifact, document = _sealed(folder, search.INDEX, search.read_document)
    if document is None:
        return artifact
    listed = {
        # The two small lists have a checksum and no size.
        name: {"bytes": _size(folder / name) if size is None else size, "sha256": sha256}
        for name, (size, sha256) in document.files.items()
    }
    if artifact.is_intact(listed, track):
        with artifact.noting():
            search.check_vectors(folder, document)
    with artifact.noting():
        search.check_model(folder, document)
    # The files of the model are compared by its own document, as of any model.
    return artifact


def _run(folder: Path, track: Track) -> VerifiedArtifact:
    run = training.Run(folder)
    # Not a constant of this file: the room of training gets torch, which takes seconds, when its names are used.
    readers: dict[str, Callable[[Path], object]] = {
        "bench.json": partial(bench.read_times, model="student"),
        "wandb.json": artifacts.read_document,
        "mined.json": lambda path: training.read_mined(path.parent),
    }
    artifact = VerifiedArtifact(path=folder, kind="run", is_finished=run.is_finished)
    artifact.add(
        *(
            folder / name
            for name in ("run.json", "metrics.jsonl", "metrics.json", "shards.jsonl", "mined.safetensors", *readers)
        )
    )
    # TensorBoard has a checksum of its own in every record, and no number is read from its files.
    artifact.add(*(folder / "tensorboard").rglob("*"))
    with artifact.noting():
        run.facts()
        artifact.damages += run.log_damages()
    for name, read_file in readers.items():
        if (folder / name).exists():
            with artifact.noting():
                read_file(folder / name)
    for checkpoint, read in training.seals_of(run).items():
        artifact.add(checkpoint / "checkpoint.json")
        with artifact.noting():
            read()
        with artifact.noting():
            # Also if run.json is damaged: all damages are named.
            path = checkpoint / "checkpoint.json"
            seal = artifacts.read_document(path)
            for name in artifact.compare(checkpoint, artifacts.listed_files(path, seal), track):
                if name.endswith(".safetensors"):
                    models.check_finite_file(checkpoint / name, error=StaleError)
            # A checkpoint to resume from; the seal of the best weights has a value of its own.
            if "best" in seal:
                training.check_best(run, seal)
    return artifact


def _model(folder: Path, track: Track) -> VerifiedArtifact:
    artifact = VerifiedArtifact(path=folder, kind="model")
    artifact.add(*folder.rglob("*"))
    with artifact.noting(), track(f"compare {folder.name}", total=None, unit="files"):
        artifact.damages += models.find_damages(folder)
        # Tensors of a damaged file have no meaning.
        for path in sorted(folder.glob("*.safetensors")) if not artifact.damages else ():
            models.check_finite_file(path)
    return artifact


def _evaluation(folder: Path, track: Track) -> VerifiedArtifact:
    artifact = VerifiedArtifact(path=folder, kind="evaluation")
    for names in (MODEL_FILES, CASCADE_FILES, POOL_FILES):
        if not (folder / str(names.result)).exists():
            continue
        path = folder / str(names.result)
        artifact.add(path)
        with artifact.noting():
            artifact.compare(folder, artifacts.listed_files(path, artifacts.read_document(path)), track)
        # In a block of its own: a damaged file must not hide that another one does not fit.
        with artifact.noting():
            if names.ranks:  # of a pool there are none
                _ = evaluation.SavedEvaluation.load(folder, names).top  # read, to see that all tables fit the document
    return artifact


CHECKS: list[tuple[tuple[str, ...], Callable[[Path, Track], VerifiedArtifact]]] = [
    ((data.CORPUS_FILE, data.CORPUS.plan_file), _corpus),
    ((teacher.CACHE.seal_file,), _cache),
    ((scoring.FEATURES.seal_file,), _features),
    ((search.INDEX.seal_file,), _index),
    (("run.json",), _run),
    ((models.SETTINGS_FILE,), _model),
    ((MODEL_FILES.result, CASCADE_FILES.result, POOL_FILES.result), _evaluation),
]
"""The documents by which an artifact is recognized, and its check."""
