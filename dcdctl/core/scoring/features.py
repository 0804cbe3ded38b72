"""Features, the outputs of frozen encoders over a corpus, stored on disk (`feature_build` stores them).

    ROOT/SPLIT-CORPUS-ENCODERS/plan.json          fingerprints and sizes, written first
    ROOT/SPLIT-CORPUS-ENCODERS/lengths.npy        tokens of each caption; 1 each if the encoders pool texts
    ROOT/SPLIT-CORPUS-ENCODERS/images-00000.npy   float16, I x V x D, the images of a range
    ROOT/SPLIT-CORPUS-ENCODERS/texts-00000.npy    float16, the tokens of their captions, or of a range of a pool's
        texts, concatenated without padding
    ROOT/SPLIT-CORPUS-ENCODERS/features.json      completion marker, written last: size and SHA-256 of each file

The folder's name holds the fingerprints of the corpus and of the encoders, so one root serves any number of both. The
first images of a split (`--max-images`) are read from the features of the whole split, or of more of its images, if
these are stored. A new folder takes the files that another one of the root has: those of the first images of its split,
and those of the captions for another image size; they are hard links, so they take no space. A killed encoding resumes
with the missing files. Files are memory-mapped, and compared with their checksums when they are first mapped.

Shape letters: I images, T texts, V image tokens, L text tokens, D width of an encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcdctl.core.data import Corpus, Indices
from dcdctl.core.models import States
from dcdctl.core.scoring.feature_files import FEATURES

IMAGES_PER_FILE = 256
"""Images in a file, and what a killed run loses at most."""
TEXTS_PER_FILE = 1280
"""Texts of a pool in a file; captions lie in the file of their image's number."""
LENGTHS_FILE = "lengths.npy"
Half = NDArray[np.float16]


@dataclass(frozen=True)
class Features:
    """The features of a corpus, float16 on disk."""

    corpus: Corpus
    folder: Path
    plan: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    """Size and SHA-256 of each file, by name."""
    only_first: bool = False
    """Read only the first token of an image, which stands for the whole image and is all that a dual encoder needs;
    then V is 1."""

    @property
    def captions(self) -> Sequence[str]:
        """The text of each caption."""
        return self.corpus.captions

    def images(self, image_ix: Sequence[int] | Indices) -> States:
        """Image features in the order given, I x V x D."""
        parts, rows = np.divmod(np.asarray(image_ix, dtype=np.int64), IMAGES_PER_FILE)
        num_tokens = 1 if self.only_first else self.plan["image_tokens"]
        tokens = np.empty((len(rows), num_tokens, self.plan["image_width"]), dtype=np.float16)
        for image_tokens, part, row in zip(tokens, parts.tolist(), rows.tolist(), strict=True):
            image_tokens[:] = self._mapped("images", part)[row, :num_tokens]
        return States.of_full(torch.from_numpy(tokens))

    def texts(self, text_ix: Sequence[int] | Indices) -> States:
        """Text features in the order given, T x L x D, padded with zeros to the longest."""
        index_T = np.asarray(text_ix, dtype=np.int64)
        lengths, starts = self._lengths[index_T], self._starts[index_T]
        parts = self._text_parts[index_T]
        tokens = np.zeros((len(index_T), int(lengths.max(initial=1)), self.plan["text_width"]), dtype=np.float16)
        for text_tokens, part, start, length in zip(
            tokens, parts.tolist(), starts.tolist(), lengths.tolist(), strict=True
        ):
            text_tokens[:length] = self._mapped("texts", part)[start : start + length]
        return States(torch.from_numpy(tokens), torch.from_numpy(np.arange(tokens.shape[1]) < lengths[:, None]))

    def packed_images(self, image_ix: Indices) -> States:
        """Image features, to travel."""
        return self.images(image_ix)

    def packed_texts(self, text_ix: Indices) -> States:
        """Text features, to travel."""
        return self.texts(text_ix)

    def _mapped(self, kind: str, part: int) -> Half:
        name = file_name(kind, part)
        return _mapped(self.folder / name, self.parts[name]["sha256"])

    @cached_property
    def _lengths(self) -> Indices:
        path = FEATURES.checked(self.folder / LENGTHS_FILE, self.parts[LENGTHS_FILE]["sha256"])
        # The lengths of a whole split begin with the lengths of its first images.
        return np.load(path).astype(np.int64)[: self.corpus.num_captions]

    @cached_property
    def _starts(self) -> Indices:
        """Start of each caption's tokens in its file."""
        starts = np.cumsum(self._lengths) - self._lengths
        # Captions are sorted by part, so a part begins with its first caption.
        return starts - starts[np.searchsorted(self._text_parts, self._text_parts)]

    @cached_property
    def _text_parts(self) -> Indices:
        return text_parts(self.corpus)


def text_parts(corpus: Corpus) -> Indices:
    """The file of each caption, ascending."""
    if corpus.is_pool:
        return np.arange(corpus.num_captions) // TEXTS_PER_FILE
    return corpus.caption_image // IMAGES_PER_FILE


def file_name(kind: str, part: int) -> str:
    """The file of a part of the images or of the texts."""
    return f"{kind}-{part:05d}.npy"


@lru_cache(maxsize=256)
def _mapped(path: Path, sha256: str) -> Half:
    """A file of features, compared with its checksum and memory-mapped; the files that were read last stay open."""
    # As a plain array: indexing np.memmap takes longer than reading one image or caption.
    return np.asarray(np.load(FEATURES.checked(path, sha256), mmap_mode="r"))
