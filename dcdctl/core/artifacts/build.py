"""An artifact that is being made: its plan, its parts, and its seal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core import files
from dcdctl.core.artifacts.checksums import Document, list_files, note_digest, seal_of, sha256_of, write_document
from dcdctl.core.artifacts.differences import expect
from dcdctl.core.artifacts.kinds import PLAN_CHECKSUM, Kind
from dcdctl.core.errors import RUN_AGAIN, resumed_by
from dcdctl.core.progress import Track

DIGEST_SUFFIX = ".sha256"
"""Of the file beside a part of an unfinished artifact that holds the checksum of the part."""


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
        """The folder for this process alone; StaleError if another run has it, or `wait` for it (`files.lock`)."""
        return files.lock(self.folder, wait=wait)

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
        note_digest(self.folder / part, digest)

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
