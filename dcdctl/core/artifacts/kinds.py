"""The kinds of artifacts and of other folders that dcdctl writes: which files they have, how they are opened, and what
messages say of those that are missing, damaged or of another kind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dcdctl.core import files
from dcdctl.core.artifacts.checksums import Document, check_document, check_file, listed_files, read_document
from dcdctl.core.artifacts.differences import named
from dcdctl.core.errors import DcdError, MissingError, StaleError

PLAN_CHECKSUM = "plan_checksum"
"""The entry of a seal that holds the checksum of the plan that the artifact keeps."""
RUN = "run"
"""The entry of a document in a run folder, and of its model's dcdctl.json, that names the run."""
FINGERPRINT = "fingerprint"
"""The entry of dcdctl.json with the fingerprint of the model."""
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
        return check_document(name, document, self.format, error=self.error, hint=self.remake, remake=self.remake)

    def read_plan(self, folder: Path) -> Document:
        """The plan of an artifact, with the notes of an unfinished build; `error` if it is missing or damaged."""
        return read_document(folder / self.plan_file, self.format, error=self.error, hint=self.remake)

    def read_plan_and_seal(self, folder: Path) -> tuple[Document, Document]:
        """The plan and the seal of an artifact that keeps its plan; `error` also if the plan is not the seal's."""
        seal, plan = self.read_seal(folder), self.read_plan(folder)
        if (digest := files.digest_of(plan)) != (expected := seal.get(PLAN_CHECKSUM)):
            names = "its checksum is {}, {} names {}".format(*named(digest, self.seal_file, expected))
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
