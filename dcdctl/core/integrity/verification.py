"""Every file of an artifact, or of a folder of artifacts, compared with its checksum.

A folder is recognized by its documents: corpus.json, cache.json, texts.json, features.json, index.json, run.json,
dcdctl.json, result.json, cascade.json. A folder may hold several artifacts, such as a run with its evaluation, and
folders of artifacts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from dcdctl.core import artifacts, bench, data, evaluation, files, models, scoring, search, teacher, training
from dcdctl.core.artifacts import Document, Kind
from dcdctl.core.errors import DcdError, InputError, StaleError
from dcdctl.core.evaluation import CASCADE_FILES, MODEL_FILES, POOL_FILES
from dcdctl.core.progress import Track, silent

PLANNED: tuple[Kind, ...] = (teacher.CACHE, teacher.TEXTS, scoring.FEATURES, search.INDEX)
"""The artifacts with a plan.json. Without a seal, the names of their parts tell which one it is."""
EVALUATIONS = (MODEL_FILES, CASCADE_FILES, POOL_FILES)
CUT_DOCUMENT = re.compile(rb'"checksum": "\w+"\n}\Z')
"""The end of what `artifacts.write_document` writes, without its last byte."""


@dataclass(kw_only=True)
class VerifiedArtifact:
    """An artifact, and what is wrong with its files."""

    path: Path
    kind: str
    damages: list[str] = field(default_factory=list)
    missing: str = ""
    """What is written last, and is not there: a run was killed, or a copy was cut."""

    @property
    def state(self) -> Literal["ok", "damaged", "unfinished"]:
        if self.damages:
            return "damaged"
        return "unfinished" if self.missing else "ok"

    def compare(self, folder: Path, listed: Mapping[str, Document], track: Track) -> None:
        """Compare files with their sizes and checksums."""
        with track(f"compare {self.path.name}", total=len(listed), unit="files") as advance:
            for name, entry in listed.items():
                with self.noting():
                    artifacts.check_file(folder / name, entry["bytes"], entry["sha256"], error=StaleError, hint="")
                advance(1)

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

    @property
    def is_well(self) -> bool:
        """Whether every artifact is finished and undamaged."""
        return all(artifact.state == "ok" for artifact in self.artifacts)

    @property
    def problems(self) -> list[str]:
        """Every damage once, and the unfinished artifacts."""
        damages, unfinished = [], []
        for artifact in self.artifacts:
            damages += artifact.damages
            if artifact.missing:
                unfinished.append(f"{artifact.path / artifact.missing} is missing: the {artifact.kind} is not finished")
        return list(dict.fromkeys(damages)) + unfinished

    def to_json(self) -> Document:
        rows = []
        for item in self.artifacts:
            rows.append({"path": str(item.path), "kind": item.kind, "state": item.state, "damages": item.damages})
        return {"ok": self.is_well, "artifacts": rows}


def verify(path: Path, track: Track = silent) -> Verification:
    """Check all artifacts in a folder, however deep; links to folders are not followed. InputError if there is none."""
    if not path.is_dir():
        found = "a file" if path.exists() else "not there"
        raise InputError(f"{path} is {found}, a folder is expected", hint="name a folder of artifacts")
    verified: list[VerifiedArtifact] = []

    def note(folder: Path, error: OSError) -> None:
        damage = files.unreadable(Path(error.filename or folder), error).args[0]
        verified.append(VerifiedArtifact(path=folder, kind="folder", damages=[damage]))

    for folder, folders, names in files.walk(path, partial(note, path)):
        folders.sort()  # the order of a file system is by chance
        checks = [check for markers, check in CHECKS if set(markers) & set(names)]
        if "plan.json" in names and not any(kind.seal_file in names for kind in PLANNED):
            checks.append(_unfinished)
        for check in checks:
            try:
                verified.append(check(folder, track))
            except OSError as error:  # such as a folder whose files may be listed and not read
                note(folder, error)
        verified += _without_document(folder, names)
        verified += _cut_documents(folder, names)
        if models.SETTINGS_FILE in names:
            folders.clear()  # all below it belongs to the model
    if not verified:
        raise InputError(
            f"{path} holds no artifact of dcdctl", hint="name a corpus, a cache, an index, a run or a model"
        )
    return Verification(artifacts=tuple(verified))


def _without_document(folder: Path, names: list[str]) -> Iterator[VerifiedArtifact]:
    """The artifacts of a folder that lost the document by which they are recognized."""
    # Patterns that only files of this kind have: many programs have a folder `text`.
    for kind, document, patterns in (
        ("corpus", data.CORPUS_FILE, ("*-?????-of-?????.parquet", "texts-[!0-9]*.parquet")),
        ("teacher cache", teacher.CACHE.seal_file, ("pairs-*.parquet", "items.parquet")),
        ("text cache", teacher.TEXTS.seal_file, (f"texts-{'[0-9]' * 5}.parquet",)),
        ("features", scoring.FEATURES.seal_file, scoring.FEATURES.files),
        ("index", search.INDEX.seal_file, ("vectors/part-*.parquet",)),
        ("run", "run.json", ("metrics.json", "metrics.jsonl", "checkpoints/*/checkpoint.json")),
        ("model", models.SETTINGS_FILE, ("model*.safetensors",)),
        *(("evaluation", names.result, (names.ranks or names.agreement,)) for names in EVALUATIONS),
    ):
        # With a plan it is an unfinished one.
        if {document, "plan.json", data.CORPUS.plan_file} & set(names):
            continue
        if parts := [path for pattern in patterns for path in folder.glob(pattern)]:
            name = min(parts).relative_to(folder)
            damage = f"{folder} holds {name} and no {document}: its {kind} cannot be checked"
            yield VerifiedArtifact(path=folder, kind=kind, damages=[damage])


def _cut_documents(folder: Path, names: list[str]) -> Iterator[VerifiedArtifact]:
    """The documents of a folder that lost the end of their last line, without which they say all that they said."""
    for path in sorted(folder / name for name in names if name.endswith(".json")):
        with suppress(OSError):  # which its check has noted
            if CUT_DOCUMENT.search(path.read_bytes()):
                damages = [f"{path} is damaged: its last line has no end"]
                yield VerifiedArtifact(path=folder, kind="document", damages=damages)


def _unfinished(folder: Path, _: Track) -> VerifiedArtifact:
    for kind in PLANNED:
        if any(any(folder.glob(pattern)) for pattern in kind.files):
            artifact = VerifiedArtifact(path=folder, kind=kind.name, missing=kind.seal_file)
            with artifact.noting():
                kind.read_plan(folder)
            return artifact
    return VerifiedArtifact(path=folder, kind="artifact", missing=" or ".join(kind.seal_file for kind in PLANNED))


def _corpus(folder: Path, track: Track) -> VerifiedArtifact:
    artifact = VerifiedArtifact(path=folder, kind="corpus")
    if not (folder / data.CORPUS_FILE).exists():
        artifact.missing = data.CORPUS_FILE
    else:
        with artifact.noting():
            document = data.read_corpus_json(folder)
            parts = [part for split in document.splits.values() for part in split.parts]
            listed = {part.file: vars(part) for part in (*parts, *document.columns.values())}
            artifact.compare(folder, listed, track)
    return artifact


def _with_plan(kind: Kind, folder: Path, track: Track) -> VerifiedArtifact:
    artifact = VerifiedArtifact(path=folder, kind=kind.name)
    with artifact.noting():
        _, seal = kind.read_plan_and_seal(folder)
        artifact.compare(folder, artifacts.listed_files(folder / kind.seal_file, seal), track)
    return artifact


def _index(folder: Path, track: Track) -> VerifiedArtifact:
    artifact = VerifiedArtifact(path=folder, kind="index")
    with artifact.noting():
        document = search.read_document(folder)
        listed = {name: {"bytes": size, "sha256": sha256} for name, (size, sha256) in document.files.items()}
        artifact.compare(folder, listed, track)
        # The files of the model are compared by its own document, as of any model.
        search.check_model(folder, document)
        if not artifact.damages:
            search.check_vectors(folder, document)
    return artifact


def _run(folder: Path, track: Track) -> VerifiedArtifact:
    run = training.Run(folder)
    artifact = VerifiedArtifact(path=folder, kind="run", missing="" if run.is_finished else run.model_folder.name)
    # Not a constant of this file: the room of training gets torch, which takes seconds, when its names are used.
    readers: dict[str, Callable[[Path], object]] = {
        "run.json": lambda path: run.check_logs(),
        "bench.json": partial(bench.read_times, model="student"),
        "wandb.json": artifacts.read_document,
        "mined.json": lambda path: training.read_mined(path.parent),
    }
    for name, read_file in readers.items():
        if (folder / name).exists():
            with artifact.noting():
                read_file(folder / name)
    for checkpoint, read in training.seals_of(run).items():
        with artifact.noting():
            seal = read()
            artifact.compare(checkpoint, seal[artifacts.FILES], track)
            # A checkpoint to resume from; the seal of the best weights has a value of its own.
            if "best" in seal:
                training.check_best(run, seal)
    return artifact


def _model(folder: Path, track: Track) -> VerifiedArtifact:
    artifact = VerifiedArtifact(path=folder, kind="model")
    with artifact.noting(), track(f"compare {folder.name}", total=None, unit="files"):
        artifact.damages += models.find_damages(folder)
    return artifact


def _evaluation(folder: Path, track: Track) -> VerifiedArtifact:
    artifact = VerifiedArtifact(path=folder, kind="evaluation")
    for names in EVALUATIONS:
        path = folder / str(names.result)
        if path.exists():
            with artifact.noting():
                artifact.compare(folder, artifacts.listed_files(path, artifacts.read_document(path)), track)
                kind = evaluation.SavedAgreement if names is POOL_FILES else evaluation.SavedEvaluation
                kind.load(folder, names)
    return artifact


CHECKS: list[tuple[tuple[str, ...], Callable[[Path, Track], VerifiedArtifact]]] = [
    ((data.CORPUS_FILE, data.CORPUS.plan_file), _corpus),
    *(((kind.seal_file,), partial(_with_plan, kind)) for kind in PLANNED[:-1]),
    ((search.INDEX.seal_file,), _index),
    (("run.json",), _run),
    ((models.SETTINGS_FILE,), _model),
    (tuple(names.result for names in EVALUATIONS), _evaluation),
]
"""The documents by which an artifact is recognized, and its check."""
