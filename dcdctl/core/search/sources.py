"""The sources of indexed images, which are folders and corpora: found, listed, and read for an answer."""

from __future__ import annotations

import io
import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeVar

from dcdctl.core import artifacts, data, files
from dcdctl.core.data import Corpus, FolderImageFile, ImageError, RowError
from dcdctl.core.errors import CorpusError, InputError, MissingError, StaleError
from dcdctl.core.places import check_utf8, in_utf8
from dcdctl.core.progress import counted
from dcdctl.core.search.entries import ImageSource
from dcdctl.core.search.part_files import SkippedFile, SourceImage

T = TypeVar("T")
OPEN_CORPORA = 256
"""Maximum number of open corpora; the least recently used is closed."""
MOST_NS = 2**63 - 1
"""What a table holds of a time: up to the year 2262. A damaged file system may give a later one."""


def find_source(images: Path, split: str | None = None) -> ImageSource:
    """The source at a path: a corpus if `dcdctl prepare` wrote it, else a folder of images; InputError if it is
    neither.

    Without `split`, a corpus is read with all its splits; InputError if two of them have an image of the same id.
    """
    path = images.expanduser()
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise InputError(
            f"{images} {problem}", hint="--images and --add take a folder of images, or one that `dcdctl prepare` wrote"
        )
    # The index may be searched from another working directory.
    path = path.resolve()
    check_utf8(path)
    if (path / data.CORPUS_FILE).is_file():
        corpus = Corpus.open(path, split or data.all_splits(path))
        if repeated := [image_id for image_id, count in Counter(corpus.image_ids).items() if count > 1]:
            raise InputError(
                f"{len(repeated):,} images of {images} have the same id in two splits, such as {repeated[0]!r}",
                hint="index one split with --split NAME",
            )
        return ImageSource(kind="corpus", path=str(path), split=corpus.split, fingerprint=corpus.fingerprint)
    if other := artifacts.other_folder_error(path, "folder of images or a corpus", error=InputError):
        raise other
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"the folder {images} cannot be read", hint="change its permissions, or name another")
    return ImageSource(kind="folder", path=str(path))


def folders_in(source: ImageSource, others: Sequence[ImageSource]) -> list[Path]:
    """The other image folders that lie in one: an image belongs to the innermost."""
    inner = [Path(other.path) for other in others if not other.is_corpus and other.path != source.path]
    return [path for path in inner if path.is_relative_to(source.path)]


def list_images(source: ImageSource, ignored: Sequence[Path]) -> Iterator[SourceImage | SkippedFile]:
    """The images of a source in a fixed order, and files that cannot be images; `ignored` folders are left out."""
    if source.is_corpus:
        corpus = Corpus.open(Path(source.path), str(source.split))
        return (SourceImage(image_id=image_id, corpus_row=row) for row, image_id in enumerate(corpus.image_ids))
    return _files(Path(source.path), {path.resolve() for path in ignored})


def check_has_image(source: ImageSource, ignored: Sequence[Path]) -> None:
    """InputError if a folder has no image that can be read, before a model is loaded. Reads files up to the first
    image; a corpus has images."""
    if source.is_corpus:
        return
    root = Path(source.path)
    left_out = []
    for file in list_images(source, ignored):
        if isinstance(file, SkippedFile):
            left_out.append(file)
            continue
        try:
            data.decode_image(FolderImageFile(root, str(file.path)).read())
        except (RowError, ImageError) as error:
            left_out.append(unread_file(file, error, root))
        else:
            return
    raise no_image_error(source, left_out)


def unread_file(image: SourceImage, error: RowError | ImageError, folder: Path) -> SkippedFile:
    """The entry of a file that cannot be read as an image."""
    name = image.path or image.image_id
    return SkippedFile(
        path=name,
        reason=str(error),
        kind=data.kind_of(error, folder / name),
        num_bytes=image.num_bytes,
        modified_ns=image.modified_ns,
    )


def no_image_error(source: ImageSource, left_out: Sequence[SkippedFile]) -> InputError:
    """The error for a source of which all files are left out."""
    hint = "name a folder of images, or a corpus"
    if not left_out:
        return InputError(f"there is no image in {source.path}", hint=hint)
    first = "; ".join(f"{file.path}: {file.reason}" for file in left_out[:2])
    # Of files that are no images, a user can read none by another step.
    kinds = data.count_kinds(file.kind for file in left_out if file.kind != data.NOT_IMAGE.kind)
    return InputError(
        f"none of {counted(len(left_out), 'files')} in {source.path} is an image that can be read: {first}",
        hint="; ".join(data.left_out_lines(kinds)) or hint,
    )


def _files(root: Path, ignored: Set[Path]) -> Iterator[SourceImage | SkippedFile]:
    """Files sorted by name, before the files of subfolders; without hidden files and the folders that macOS adds to
    zips."""
    failed: list[OSError] = []

    def take_failed() -> Iterator[SkippedFile]:
        while failed:
            error = failed.pop(0)
            name = Path(error.filename).relative_to(root).as_posix()
            yield SkippedFile(path=in_utf8(name), reason=f"{error.strerror}")

    for here, folders, names in files.walk(root, failed.append):
        yield from take_failed()
        links = [name for name in folders if _is_link(here / name)]
        # In place, because the walk visits what this list then holds; sorted, because file systems list in any order.
        visible = [name for name in folders if name not in links and _is_visible(name)]
        folders[:] = sorted(name for name in visible if here / name not in ignored)
        for name in sorted([*names, *links]):
            if _is_visible(name):
                yield _source_image(here / name, root)
    yield from take_failed()


def _is_link(path: Path) -> bool:
    """Whether a path is a link; a path that cannot be looked at is none."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def _source_image(path: Path, root: Path) -> SourceImage | SkippedFile:
    name = path.relative_to(root).as_posix()
    if in_utf8(name) != name:
        return SkippedFile(path=in_utf8(name), reason="its name is not UTF-8")
    try:
        status = path.stat()
    except OSError as error:
        if not isinstance(error, PermissionError) and _is_link(path):
            return SkippedFile(path=name, reason="a broken link", kind="broken-link")
        return SkippedFile(path=name, reason=f"{error.strerror}")
    if stat.S_ISDIR(status.st_mode):
        return SkippedFile(path=name, reason="a link to a folder, which is not followed", kind="link")
    if not stat.S_ISREG(status.st_mode):
        return SkippedFile(path=name, reason="not a regular file", kind="not-image")
    modified_ns = max(-MOST_NS, min(status.st_mtime_ns, MOST_NS))
    return SourceImage(image_id=name, path=name, num_bytes=status.st_size, modified_ns=modified_ns)


def _is_visible(name: str) -> bool:
    # Such as .DS_Store, .git and the resource forks ._name, which have the suffixes of images.
    return not name.startswith(".") and name != "__MACOSX"


def in_parts(images: Iterator[SourceImage], rows: int) -> Iterator[list[SourceImage]]:
    """Images in lists of `rows`."""
    while part := list(itertools.islice(images, rows)):
        yield part


class SourceImages:
    """Reads the images of sources; `where` names the index in errors. Safe to call from threads."""

    def __init__(self, where: str, sources: Sequence[ImageSource]) -> None:
        self.where, self.sources = where, tuple(sources)
        # A cache of this instance: a decorated method would keep every opened index alive.
        self._corpus = lru_cache(maxsize=OPEN_CORPORA)(_open_corpus)

    def path(self, source: int, image: SourceImage) -> Path | None:
        """The absolute path of an image file, whether it is there or not; None for an image of a corpus."""
        return None if image.path is None else Path(self.sources[source].path, image.path)

    def read(self, source: int, image: SourceImage) -> bytes:
        """The image file. MissingError if it is gone, or is a link out of its folder; StaleError if the corpus has
        changed."""
        if image.corpus_row is not None:
            return self._corpus(self.sources[source]).image_bytes(image.corpus_row)
        return self._of_folder(source, image, FolderImageFile.read)

    def open(self, source: int, image: SourceImage) -> BinaryIO:
        """The image file, of which a folder reads no more than is asked for. Errors as for `read`."""
        if image.corpus_row is not None:
            return io.BytesIO(self.read(source, image))
        return self._of_folder(source, image, FolderImageFile.open)

    def read_captions(self, source: int, image: SourceImage) -> list[str]:
        """The captions of an image of a corpus; empty for one of a folder. MissingError or StaleError if the corpus is
        gone or another."""
        if image.corpus_row is None:
            return []
        corpus = self._corpus(self.sources[source])
        return [corpus.captions[caption] for caption in corpus.captions_of(image.corpus_row)]

    def _of_folder(self, source: int, image: SourceImage, access: Callable[[FolderImageFile], T]) -> T:
        folder, path = Path(self.sources[source].path), str(image.path)
        try:
            # A path or a link that leads out of the folder is an error of the file.
            return access(FolderImageFile(folder, path))
        except RowError as error:
            raise MissingError(f"{folder / path} of the index {self.where}: {error}") from error


def _open_corpus(source: ImageSource) -> Corpus:
    try:
        corpus = Corpus.open(Path(source.path), str(source.split))
    except CorpusError as error:
        message = f"the images of the index are not where they were: {error.args[0]}"
        raise MissingError(message, hint="restore the corpus there, or index the images again") from error
    if corpus.fingerprint != source.fingerprint:
        message = (
            f"{source.path} holds another corpus now ({corpus.fingerprint[:8]}, not {str(source.fingerprint)[:8]})"
        )
        raise StaleError(message, hint="index it again")
    return corpus
