"""The library that `dcdctl photos` writes: an index of one folder of photos, and what its student was trained from.

LIBRARY/index/           the index
LIBRARY/library.json     the model that the index was asked for
LIBRARY/data/, run/      with captions or a teacher: the corpus or the pool, and the student
LIBRARY/features/        with captions: the outputs of the frozen encoders
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from dcdctl.core import artifacts, files, models
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.search import sources
from dcdctl.core.search.storage import IN_LIBRARY, INDEX_FILE, read_document

LIBRARY_FILE, FORMAT = "library.json", 1
MAX_NAMED = 6
"""Files of another folder that a message names."""
STUDENT = "run"
"""The model of a library whose student was trained in it: a library may be moved with its run."""


@dataclass(frozen=True)
class Library:
    """A library in its folder; nothing has to be there yet."""

    folder: Path

    @property
    def index(self) -> Path:
        """The folder of the index."""
        return self.folder / IN_LIBRARY

    @property
    def data(self) -> Path:
        """The folder of the corpus or of the pool."""
        return self.folder / "data"

    @property
    def run(self) -> Path:
        """The run of the student."""
        return self.folder / STUDENT

    @property
    def features(self) -> Path:
        """The folder of the encoders' outputs."""
        return self.folder / "features"

    @property
    def has_index(self) -> bool:
        """Whether the index has been finished once; it may have changed since."""
        return (self.index / INDEX_FILE).exists()

    @property
    def has_run(self) -> bool:
        """Whether a training has begun: its rounds are beside it."""
        return any(self.folder.glob(f"{STUDENT}*"))

    @property
    def made_by(self) -> str | None:
        """The model that the index was asked for: a reference, or `STUDENT`; None if nobody has written it down."""
        path = self.folder / LIBRARY_FILE
        if path.exists():
            hint = f"delete it: {self.index} has its model in it"
            return str(artifacts.read_document(path, FORMAT, error=StaleError, hint=hint)["model"])
        return STUDENT if (self.run / "run.json").exists() else None

    def write_model(self, ref: str) -> None:
        """Write down the model of the index, so that the same command again need not load it."""
        artifacts.write_document(self.folder / LIBRARY_FILE, {"format": FORMAT, "model": _absolute(ref)})

    def check_folder(self) -> None:
        """InputError if the folder holds something else than a library."""
        is_library = self.has_run or any(path.exists() for path in (self.index, self.data, self.folder / LIBRARY_FILE))
        if not is_library and not files.is_vacant(self.folder):
            names = ", ".join(files.names_in(self.folder)[:MAX_NAMED])
            raise InputError(f"{self.folder} holds {names}, and no library of photos", hint="name another folder")

    def check_photos(self, photos: Path) -> None:
        """InputError if library and photos lie in each other, or if there is no photo to index; StaleError if the
        index has other photos."""
        folder, photos = self.folder.resolve(), photos.resolve()
        if (photos / LIBRARY_FILE).exists():
            raise InputError(
                f"{photos} is a library that `dcdctl photos` wrote, and a folder of photos is expected",
                hint=f"search it: dcdctl serve {shlex.quote(str(Library(photos).index))}",
            )
        if folder.is_relative_to(photos):
            raise InputError(
                f"the library {self.folder} would lie among the photos of {photos}",
                hint=f"name a folder elsewhere, such as --out {shlex.quote(f'{photos}-library')}",
            )
        if photos.is_relative_to(folder):
            raise InputError(f"the photos {photos} lie in the library {self.folder}", hint="name another --out")
        if not self.has_index:
            sources.check_has_image(sources.find_source(photos), [])
            return
        indexed = [source.path for source in read_document(self.index).sources]
        if str(photos) not in indexed:
            follow = ["dcdctl", "sync", str(self.index)]
            gone = [folder for folder in indexed if not Path(folder).exists()]
            hint = f"for the photos of both in one index: {shlex.join([*follow, '--add', str(photos)])}"
            if gone:
                hint = (
                    f"if the photos are at another place now: {shlex.join([*follow, '--moved', gone[0], str(photos)])}"
                )
            raise StaleError(
                f"{self.index} is an index of {', '.join(indexed)}, not of {photos}",
                hint=f"name another folder with --out; {hint}",
            )

    def check_model(self, ref: str) -> None:
        """StaleError if the index is of another model than a reference, or than `STUDENT`."""
        if not self.has_index:
            return
        made_by = self.made_by
        if made_by is None and ref != STUDENT:
            # The index alone cannot tell the name of its model.
            is_same = models.load_searchable(ref).digest == read_document(self.index).model.fingerprint
        else:
            is_same = made_by == _absolute(ref)
        if not is_same:
            given = "captions and queries" if ref == STUDENT else "the model"
            raise StaleError(
                f"{self.index} is an index of {self._named(made_by)}, not of {self._named(ref)}",
                hint=f"name another folder with --out, or leave {given} out to keep what the index has",
            )

    def _named(self, ref: str | None) -> str:
        if ref is None:
            return "another model"
        return f"the student {self.run}" if ref == STUDENT else ref


def name_of_index(index: str) -> str:
    """What a page calls an index: its folder or, in a library, the folder that the user has named."""
    folder = Path(index).resolve()
    return folder.parent.name if (folder.parent / LIBRARY_FILE).exists() else folder.name


def _absolute(ref: str) -> str:
    """A reference that means the same from every working folder."""
    path = Path(ref).expanduser()
    return str(path.resolve()) if ref != STUDENT and path.exists() else ref
