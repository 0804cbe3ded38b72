"""Artifacts on disk: a plan that is written first, parts that are each written atomically, and a seal that is written
last.

A corpus, a teacher cache, features and an image index are artifacts. The plan says what the artifact
is made from, so that a killed build resumes and a build of another plan is refused. The seal is the completion marker;
it holds size and SHA-256 of every part. Plan and seal are JSON documents that hold a checksum of their own, and the
seal of an artifact that keeps its plan holds the plan's. Opening an artifact compares these checksums and the
sizes of parts. The SHA-256 of a part is compared when a process first reads the part.

On a 2-core x86 VM with SHA instructions, hashing 100 MB takes 0.07 s of processor time. Reading them takes 0.01 s from
the page cache and 0.04 s from the disk. Asking again for the SHA-256 of a hashed file takes 10 microseconds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core import files, locks
from dcdctl.core.errors import RUN_AGAIN, DcdError, MissingError, StaleError, resumed_by
from dcdctl.core.progress import Track

Document = dict[str, Any]
"""A JSON object."""
FileVersion = tuple[str, int, int, int, int]
"""Path, inode, size, and the times of the last change of content and of metadata; another if the file is written to or
replaced."""
_DIGESTS: dict[FileVersion, str] = {}
"""The SHA-256 of the files hashed by this process."""
_LOCKS: dict[int, threading.Lock] = {}
"""One lock per process: a child made by fork would inherit a lock that another thread of its parent holds."""
CHECKSUM = "checksum"
"""The entry of our JSON documents with the SHA-256 of all others, independent of spaces and of the order of keys."""
FILES = "files"
"""The entry of a JSON document that lists other files: size and SHA-256, by path relative to its folder."""
DIGEST_SUFFIX = ".sha256"
"""Of the file beside a part of an unfinished artifact that holds the checksum of the part."""
PLAN_CHECKSUM = "plan_checksum"
"""The entry of a seal that holds the checksum of the plan that the artifact keeps."""
RUN = "run"
"""The entry of a document in a run folder, and of its model's dcdctl.json, that names the run."""
FINGERPRINT = "fingerprint"
"""The entry of dcdctl.json with the fingerprint of the model."""
ELSEWHERE = "name another folder, or delete this one"
_DIGEST = re.compile(r"[0-9a-f]{32,}")
_FOLDERS = {
    "a corpus": (("corpus.json", "prepare.json"), "give it to --data or --images"),
    "an index": (("index.json",), "give it to `dcdctl search` or `dcdctl serve`"),
    "a teacher cache": (("cache.json",), "give it to --cache"),
    "a text cache": (("texts.json",), "give it to --cache of a query student"),
    "stored features": (("features.json",), "give the folder above it to --features"),
    "a run": (("run.json",), "give it as RUN"),
    "a saved model": (("dcdctl.json", "config.json"), "give it as RUN or --teacher"),
    "an evaluation": (("result.json", "cascade.json", "pool.json"), "give it to `dcdctl report` or `dcdctl compare`"),
}
"""The folders that dcdctl writes: the files that tell them, and where such a folder belongs; the first match counts."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of artifact: its files, and what messages say about it."""

    name: str
    """As messages call it: "teacher cache"."""
    format: int
    seal_file: str
    plan_file: str = "plan.json"
    keeps_plan: bool = True
    """Whether a finished artifact keeps its plan file. If so, a part can be made again by itself."""
    files: tuple[str, ...]
    """Glob patterns of all files that a build writes, besides plan and seal."""
    make: str
    """What to run if there is none: "run `dcdctl cache-teacher`"."""
    make_again: str
    """What to run if one is unfinished or damaged."""
    error: type[DcdError] = StaleError
    """Raised for a damaged part, and for another format."""
    missing: type[DcdError] = MissingError
    """Raised if there is no finished artifact, or if a part is missing."""

    def read_seal(self, folder: Path) -> Document:
        """The seal of a finished artifact; `missing` if there is none, `error` if damaged or of another format."""
        path = folder / self.seal_file
        if not path.is_file():
            if other := other_folder_error(folder, self.name, self.make, error=self.missing):
                raise other
            if (folder / self.plan_file).is_file():
                message = f"the {self.name} in {folder} is not finished"
                raise self.missing(message, hint=f"{self.make_again}: it resumes")
            raise self.missing(f"there is no {self.name} in {folder} (no {self.seal_file})", hint=self.make)
        return read_document(path, self.format, error=self.error, hint=self._repair(path), remake=self.remake)

    def parse_seal(self, name: str, text: str) -> Document:
        """The seal in a text from elsewhere; `error`, in which it is called `name`, as for `read_seal`."""
        document = files.parse_json(text, name, dict, error=self.error, hint=self.remake)
        return _checked(name, document, self.format, error=self.error, hint=self.remake, remake=self.remake)

    def read_plan(self, folder: Path) -> Document:
        """The plan of an artifact, with the notes of an unfinished build; `error` if it is missing or damaged."""
        return read_document(folder / self.plan_file, self.format, error=self.error, hint=self.remake)

    def read_plan_and_seal(self, folder: Path) -> tuple[Document, Document]:
        """The plan and the seal of an artifact that keeps its plan; `error` also if the plan is not the seal's."""
        seal, plan = self.read_seal(folder), self.read_plan(folder)
        if (digest := files.digest_of(plan)) != (expected := seal.get(PLAN_CHECKSUM)):
            names = "its checksum is {}, {} names {}".format(*_named(digest, self.seal_file, expected))
            raise self.error(f"{folder / self.plan_file} belongs to another build: {names}", hint=self.remake)
        return plan, seal

    def open(self, folder: Path) -> tuple[Document, Document]:
        """The plan and the seal, after a look at the names and the sizes of all parts (`check_part`)."""
        plan, seal = self.read_plan_and_seal(folder)
        for name, part in listed_files(folder / self.seal_file, seal, error=self.error, hint=self.remake).items():
            self.check_part(folder, name, part["bytes"])
        return plan, seal

    def check_part(self, folder: Path, name: str, size: int | None) -> None:
        """`missing` if a part is not there, `error` if it lies outside the folder or has not the size of the seal.

        Call it for every part that a seal names before any of them is opened: the seal may come from a stranger.
        """
        path = folder / name
        if files.escapes_root(name):
            raise self.error(f"{folder / self.seal_file} names a file outside of its folder: {name}", hint=self.remake)
        try:
            if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                raise self.error(f"{path} is a link that leads out of {folder}", hint="copy the file to its place")
            # A pipe or a device has no end.
            if path.exists() and not path.is_file():
                raise self.error(f"{path} is not a regular file", hint=self.remake)
        except OSError as error:
            raise files.unreadable(path, error, error=self.error) from error
        if not path.exists():
            hint = f"delete {self.seal_file} there and {self.make_again}" if self.keeps_plan else self.remake
            raise self.missing(f"{path} is missing", hint=hint)
        check_file(path, size, error=self.error, hint=self._repair(path))

    def checked(self, path: Path, sha256: str) -> Path:
        """The path of a part that is as it was sealed; the file is hashed once per process, before it is first read."""
        check_file(path, sha256=sha256, error=self.error, hint=self._repair(path))
        return path

    def damaged(self, path: Path, reason: str) -> DcdError:
        """The error that says that a part is damaged, and how to make it again."""
        return self.error(f"{path} is damaged: {reason}", hint=self._repair(path))

    def _repair(self, path: Path) -> str:
        """The hint to make a damaged file again."""
        if not self.keeps_plan:
            return self.remake
        files_there = "it" if path.name == self.seal_file else f"{path.name} and {self.seal_file} there"
        return f"delete {files_there} and {self.make_again}"

    @property
    def remake(self) -> str:
        """The hint to make all of it again."""
        return f"delete the folder and {self.make_again}"

    def check_folder(self, folder: Path) -> None:
        """StaleError for a folder with something else in it, InputError if it cannot be written to."""
        files.check_output_folder(folder)
        names = files.names_in(folder) if folder.exists() else []
        if not names or any((folder / name).exists() for name in (self.plan_file, self.seal_file)):
            return
        message = f"{folder} is not empty and holds no {self.name} (found {names[0]})"
        raise StaleError(message, hint="name an empty or a new folder with --out")


class Build:
    """An artifact that is being made in a folder.

    Its plan file holds the plan and notes on the build, such as what planning found or which parts are finished.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], kind: Kind) -> None:
        self.folder, self.plan, self.kind = folder, dict(plan), kind

    @property
    def is_sealed(self) -> bool:
        """Whether the artifact is finished."""
        return (self.folder / self.kind.seal_file).exists()

    def lock(self, *, wait: Track | None = None) -> AbstractContextManager[None]:
        """The folder for this process alone; StaleError if another run has it, or `wait` for it (`locks.lock`)."""
        return locks.lock(self.folder, wait=wait)

    def begin(self, *, restart: bool = False, kept: Collection[str] = ()) -> Document:
        """Make the folder this plan's, and return the notes of an earlier run of the same plan; none for a new build.

        If the folder holds another plan, `restart` removes it with its files, except those of a finished artifact that
        are `kept`. StaleError without `restart`, and if the folder holds something else.
        """
        assert self.kind.keeps_plan or kept or not self.is_sealed, "the parts of a finished artifact would be removed"
        existing = self.kind.read_plan(self.folder) if (self.folder / self.kind.plan_file).exists() else None
        # A subset, because the plan file also holds notes.
        if existing is not None and self.plan.items() <= existing.items():
            files.remove_partials(self.folder)
            return {key: value for key, value in existing.items() if key not in self.plan}
        if existing is not None and not restart:
            self.expect(existing)
        if existing is None and not self.is_sealed:
            self.kind.check_folder(self.folder)
        self.clean(kept)
        self.note()
        return {}

    def expect(self, actual: Mapping[str, Any]) -> None:
        """StaleError that names both sides and the next step if this is not the plan."""
        expect(self.folder, actual, self.plan)

    def note(self, **notes: Any) -> None:
        """Write the plan with these notes, in place of earlier notes."""
        write_document(self.folder / self.kind.plan_file, {**self.plan, **notes})

    def missing(self, parts: Iterable[str]) -> list[str]:
        """The parts that are not written yet."""
        return [name for name in parts if not (self.folder / name).exists()]

    @contextmanager
    def write(self, part: str) -> Iterator[Path]:
        """A path to write a part to; it appears when the block ends well, with a checksum beside it until the seal."""
        resumes = resumed_by(RUN_AGAIN, lambda: any(self.folder.rglob(f"*{DIGEST_SUFFIX}")))
        with resumes, files.atomic_path(self.folder / part) as partial:
            yield partial
            digest = files.sha256_of(partial)  # while it is in memory
            # Before the part, so that no part is without its checksum.
            files.write_text(self.folder / f"{part}{DIGEST_SUFFIX}", digest)
        know_digests({_version_of(self.folder / part): digest})

    def written(self, part: str) -> Path:
        """The path of a part of an unfinished artifact; `error` if it is not as an earlier run or this one wrote it."""
        path, noted = self.folder / part, self._noted_digest(part)
        return path if noted is None else self.kind.checked(path, noted)

    def is_written(self, part: str) -> bool:
        """Whether a part of an unfinished artifact is as it was written; a part that is not can be written again."""
        path, noted = self.folder / part, self._noted_digest(part)
        return noted is not None and path.exists() and sha256_of(path) == noted

    def _noted_digest(self, part: str) -> str | None:
        """The checksum beside a part of an unfinished artifact; None if there is none."""
        path = self.folder / f"{part}{DIGEST_SUFFIX}"
        # Damaged bytes are a checksum that no file has.
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None

    def seal(self, document: Mapping[str, Any], parts: Collection[str]) -> None:
        """Write the seal, and remove what a finished artifact does not need: all but its parts."""
        for part in parts:
            self.written(part)
        if self.kind.keeps_plan:
            plan = self.kind.read_plan(self.folder)  # from the disk, because it also holds notes
            self.expect(plan)
            document = {**document, PLAN_CHECKSUM: files.digest_of(plan)}
        # The seal comes first: a run that is killed in between leaves a finished artifact and superfluous files.
        write_document(self.folder / self.kind.seal_file, document)
        self.clean(parts)

    def clean(self, kept: Collection[str]) -> None:
        """Remove the files of this kind that are not `kept`, and the plan of a finished artifact that keeps none."""
        patterns = [f"{pattern}{suffix}" for pattern in self.kind.files for suffix in ("", DIGEST_SUFFIX)]
        for path in sorted({path for pattern in patterns for path in self.folder.glob(pattern)}):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.relative_to(self.folder).as_posix() not in kept:
                path.unlink(missing_ok=True)
        if self.is_sealed and not self.kind.keeps_plan:
            (self.folder / self.kind.plan_file).unlink(missing_ok=True)
        files.remove_partials(self.folder)


@dataclass(frozen=True)
class Parts:
    """The parts of an artifact: pairs of a teacher cache, texts with vectors, stored features, vectors of an index.

    The build's plan comes first (`Build.begin`). Then the missing parts are written, so a killed job resumes with what
    is missing; parts may be taken from a finished artifact that this one extends; and the seal, with size and SHA-256
    of each part, is written when all are there. A reader compares them (`Kind.checked`).
    """

    build: Build
    names: Sequence[str]
    """The files, one per part."""

    def missing(self) -> list[int]:
        """The parts that are not written, or were damaged since a killed run wrote them; none of a sealed artifact that
        is made once. An index, which keeps no plan, is sealed again after each change."""
        if self.build.is_sealed and self.build.kind.keeps_plan:
            return []
        return [number for number, name in enumerate(self.names) if not self.build.is_written(name)]

    def take(self, number: int, finished: Path) -> None:
        """A part that is a file of a finished artifact: as a hard link, which takes no space, or as a copy."""
        with self.build.write(self.names[number]) as partial:
            partial.unlink(missing_ok=True)
            try:
                os.link(finished, partial)
            except OSError:  # a file system without hard links
                shutil.copyfile(finished, partial)

    def seal(
        self,
        document_of: Callable[[dict[str, Document]], Mapping[str, Any]],
        *,
        further: Collection[str] = (),
        facts_of: Callable[[str], Mapping[str, Any]] | None = None,
    ) -> None:
        """Write the seal: what `document_of` makes of the listed files, the `further` ones and the parts, each with its
        size, its SHA-256 and `facts_of` the part."""
        names = [*further, *self.names]
        if self.build.is_sealed:
            # A run that was killed after sealing may have left files of the build.
            self.build.clean(names)
            return
        listed = list_files(self.build.folder, further)
        for name in self.names:
            facts = {} if facts_of is None else facts_of(name)
            listed[name] = seal_of(self.build.written(name), **facts)
        self.build.seal(document_of(listed), names)


def kind_of_folder(folder: Path) -> str:
    """What dcdctl wrote a folder as, with its article: "a corpus", "a run"; empty for other folders.

    A run with an evaluation in it is a run; an index is an index, although it holds a model.
    """
    for kind, (names, _) in _FOLDERS.items():
        if any((folder / name).is_file() for name in names):
            return kind
    return ""


def other_folder_error(
    folder: Path, expected: str, make: str = "", *, error: type[DcdError] = MissingError
) -> DcdError | None:
    """The error for a folder of another kind than `expected`, which says where it belongs; None for other folders."""
    kind = kind_of_folder(folder)
    if not kind or kind.partition(" ")[2] == expected:
        return None
    article = "an" if expected[0] in "aeiou" else "a"
    belongs = _FOLDERS[kind][1]
    hint = f"{belongs}, or {make}" if make else belongs
    return error(f"{folder} is {kind}, {article} {expected} is expected", hint=hint)


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a checksum of its content as its last entry."""
    files.write_json(path, {**document, CHECKSUM: files.digest_of(document)})


def read_document(
    path: Path, format: int | None = None, *, error: type[DcdError] = StaleError, hint: str = "", remake: str = ""
) -> Document:
    """The JSON object that `write_document` wrote, without its checksum.

    `error` if the file cannot be read or does not match its checksum, with `hint`, or if it is of another format than
    `format` or has no checksum, with `remake` or else `hint`. The format is compared first, because files of earlier
    formats have no checksum.
    """
    document = files.read_json(path, error=error, hint=hint)
    return _checked(str(path), document, format, error=error, hint=hint, remake=remake)


def _checked(
    path: str, document: Document, format: int | None, *, error: type[DcdError], hint: str, remake: str
) -> Document:
    if format is not None and (actual := document.get("format")) != format:
        raise error(f"{path} is of format {actual!r}, this dcdctl reads format {format}", hint=remake or hint)
    checksum = document.pop(CHECKSUM, None)
    if checksum is None:
        reason = "so an earlier version of dcdctl or another program wrote it"
        raise error(f"{path} has no checksum, {reason}", hint=remake or hint)
    try:
        is_intact = checksum == files.digest_of(document)
    except (ValueError, RecursionError):  # lone surrogates and deep nesting, which json reads and does not write
        is_intact = False
    if not is_intact:
        raise error(f"{path} is damaged: its content does not match its checksum", hint=hint)
    return document


def seal_of(path: Path, **facts: Any) -> Document:
    """What a seal says about a part: its size, its SHA-256, and facts that readers need."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path), **facts}


def list_files(folder: Path, names: Iterable[str]) -> Document:
    """What a document says under `FILES` about files of its folder."""
    return {name: seal_of(folder / name) for name in names}


def listed_files(
    path: Path, document: Mapping[str, Any], *, error: type[DcdError] = StaleError, hint: str = ""
) -> dict[str, Document]:
    """The files that the document at `path` lists; `error` if it lists none, or not as `list_files` does."""
    unlisted = error(f"{path} does not list the size and the SHA-256 of the files beside it", hint=hint)
    listed = document.get(FILES)
    if not isinstance(listed, dict):
        raise unlisted
    for entry in listed.values():
        is_whole = isinstance(entry, dict) and isinstance(entry.get("bytes"), int)
        if not is_whole or not isinstance(entry.get("sha256"), str):
            raise unlisted
    # A document of a stranger could name a device, which has no end.
    if outside := [name for name in listed if files.escapes_root(name)]:
        raise error(f"{path} lists a file outside of its folder: {outside[0]}", hint=hint)
    return listed


def check_file(
    path: Path, size: int | None = None, sha256: str | None = None, *, error: type[DcdError], hint: str
) -> None:
    """`error` if a file is missing, or has another size or SHA-256; `hint` is for damage, not for a permission."""
    try:
        # The size first: a file that was cut off needs no hashing.
        if size is not None and (num_bytes := path.stat().st_size) != size:
            raise error(f"{path} is damaged: it has {num_bytes:,} bytes, not {size:,}", hint=hint)
        if sha256 is not None and (digest := sha256_of(path)) != sha256:
            names = "its SHA-256 is {}, not {}".format(*_named(digest, sha256))
            raise error(f"{path} is damaged: {names}", hint=hint)
    except (FileNotFoundError, ValueError) as reason:  # ValueError: no file has a name with a NUL
        raise error(f"{path} is missing", hint=hint) from reason
    except OSError as reason:
        raise files.unreadable(path, reason, error=error, hint=hint) from reason


def check_files(
    folder: Path, listed: Mapping[str, Mapping[str, Any]], *, error: type[DcdError] = StaleError, hint: str = ""
) -> None:
    """`error` that names the first file that is not as `list_files` listed it, if there is one."""
    for name, entry in listed.items():
        check_file(folder / name, entry["bytes"], entry["sha256"], error=error, hint=hint)


def damages(folder: Path, listed: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is wrong with each file that is not as `list_files` listed it."""
    for name, entry in listed.items():
        try:
            check_files(folder, {name: entry})
        except StaleError as damage:
            yield str(damage.args[0])


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex, computed once per process until the file changes."""
    key = _version_of(path)
    with _LOCKS.setdefault(os.getpid(), threading.Lock()):
        if key not in _DIGESTS:
            _DIGESTS[key] = files.sha256_of(path)
        return _DIGESTS[key]


def _version_of(path: Path) -> FileVersion:
    status = path.stat()
    # The size and the modification time alone are equal for a file that was copied over this one with its times.
    return str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def known_digests() -> dict[FileVersion, str]:
    """The checksums of the files that this process has hashed, for `know_digests` in a process that it starts."""
    return dict(_DIGESTS)


def know_digests(digests: Mapping[FileVersion, str]) -> None:
    """Take over the checksums that another process has computed. A file that has changed since is hashed again."""
    _DIGESTS.update(digests)


def expect(where: Path | str, actual: Mapping[str, Any], expected: Mapping[str, Any], *, hint: str = ELSEWHERE) -> None:
    """StaleError if `actual` differs from `expected` in a key of `expected`; it names both sides of the first one."""
    for key, value in expected.items():
        if difference := first_difference(key, actual.get(key), value):
            raise StaleError(f"{where} was made with another {difference}", hint=hint)


def first_difference(name: str, actual: Any, expected: Any) -> str | None:
    """Where two JSON values first differ, with both sides; None if they are equal.

    >>> first_difference("recipe", {"seed": 0, "loss": {"alpha": 0.2}}, {"seed": 0, "loss": {"alpha": 0.5}})
    'recipe.loss.alpha (0.2, not 0.5)'
    """
    if actual == expected:
        return None
    parts: list[str | None] = []
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        # A key that only one side has is a difference too.
        keys = {**actual, **expected}
        parts = [first_difference(f"{name}.{key}", actual.get(key), expected.get(key)) for key in keys]
    elif isinstance(actual, list) and isinstance(expected, list) and len(actual) == len(expected):
        parts = [first_difference(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(actual, expected, strict=True))]
    return next(filter(None, parts), "{} ({}, not {})".format(name, *_named(actual, expected)))


def _named(*values: Any) -> list[str]:
    """Values as a message names them; of digests, the first digits if these differ."""
    words = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    short = [word[:12] if _DIGEST.fullmatch(word) else word for word in words]
    return short if len(set(short)) == len(short) else words
