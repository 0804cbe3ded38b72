"""The sources of indexed images: folders and corpora, from which the images of an answer are read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from dcdctl.core import files
from dcdctl.core.data import Corpus, FolderImageFile, RowError
from dcdctl.core.errors import CorpusError, MissingError, StaleError
from dcdctl.core.search.part_files import SourceImage
from dcdctl.core.search.storage import ImageSource

OPEN_CORPORA = 256
"""Maximum number of open corpora; the least recently used is closed."""


class SourceImages:
    """Reads the images of sources; `where` names the index in errors. Safe to call from threads."""

    def __init__(self, where: str, sources: Sequence[ImageSource]) -> None:
        self.where, self.sources = where, tuple(sources)
        # A cache of this instance: a decorated method would keep every opened index alive.
        self._corpus = lru_cache(maxsize=OPEN_CORPORA)(_open_corpus)

    def read(self, source: int, image: SourceImage) -> bytes:
        """The image file. MissingError if it is gone, or is a link out of its folder; StaleError if the corpus has
        changed."""
        if image.corpus_row is not None:
            return self._corpus(self.sources[source]).image_bytes(image.corpus_row)
        folder, path = Path(self.sources[source].path), self._path(image)
        try:
            return FolderImageFile(folder, path).read()
        except RowError as error:
            raise MissingError(f"{folder / path} of the index {self.where}: {error}") from error

    def open(self, source: int, image: SourceImage) -> BinaryIO:
        """The image file, of which a folder reads no more than is asked for. Errors as for `read`."""
        if image.corpus_row is not None:
            return io.BytesIO(self.read(source, image))
        try:
            return FolderImageFile(Path(self.sources[source].path), self._path(image)).open()
        except RowError as error:
            raise MissingError(f"{image.path} of the index {self.where}: {error}") from error

    def exists(self, source: int, image: SourceImage) -> bool:
        """Whether `read` finds the image file, without reading it."""
        try:
            if image.corpus_row is not None:
                self._corpus(self.sources[source])
                return True
            return FolderImageFile(Path(self.sources[source].path), self._path(image)).exists()
        except (MissingError, StaleError):
            return False

    def captions(self, source: int, image: SourceImage) -> list[str]:
        """The captions of an image of a corpus; empty for one of a folder, or if the corpus is gone or has changed."""
        try:
            return self.read_captions(source, image)
        except (MissingError, StaleError):
            return []

    def read_captions(self, source: int, image: SourceImage) -> list[str]:
        """The captions of an image of a corpus; empty for one of a folder. MissingError or StaleError if the corpus is
        gone or another."""
        if image.corpus_row is None:
            return []
        corpus = self._corpus(self.sources[source])
        return [corpus.captions[caption] for caption in corpus.captions_of(image.corpus_row)]

    def _path(self, image: SourceImage) -> str:
        """The path of an image in its folder; MissingError if it leads out of the folder."""
        path = str(image.path)
        if files.escapes_root(path):
            raise MissingError(f"the image {path!r} of the index {self.where} lies outside its folder")
        return path


def _open_corpus(source: ImageSource) -> Corpus:
    try:
        corpus = Corpus.open(Path(source.path), str(source.split))
    except CorpusError as error:
        raise MissingError(f"the images of the index are not where they were: {error}") from error
    if corpus.fingerprint != source.fingerprint:
        found = f"{source.path} holds another corpus now ({corpus.fingerprint[:8]}, not {str(source.fingerprint)[:8]})"
        raise StaleError(found, hint="index it again")
    return corpus
