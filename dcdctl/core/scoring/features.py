"""What a model reads of a corpus: images and captions, or features, the outputs of frozen encoders, stored on disk.

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

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dcdctl.core.artifacts import Build, other_folder_error
from dcdctl.core.data import Corpus, Indices
from dcdctl.core.distributed import Parts
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import InputError, ModelError, StaleError
from dcdctl.core.machine import read_in_threads
from dcdctl.core.memory import Fitting, in_fitting_parts
from dcdctl.core.models import Encoders, ImageBatch, Model, Preprocessor, RefusedTextError, States, TextBatch
from dcdctl.core.places import shown
from dcdctl.core.progress import Advance, Track, byte_size, silent
from dcdctl.core.scoring.feature_files import FEATURES

IMAGES_PER_FILE = 256
"""Images in a file, and what a killed run loses at most."""
TEXTS_PER_FILE = 1280
"""Texts of a pool in a file; captions lie in the file of their image's number."""
IMAGE_CHUNK = 32
"""Images encoded in one forward pass."""
TEXT_CHUNK = 256
"""Captions encoded in one forward pass; captions of similar length share one."""
LENGTHS_FILE = "lengths.npy"
Half = NDArray[np.float16]


class Reader(Protocol):
    """Images and captions by index, as a model reads them: preprocessed, or encoded by its frozen encoders."""

    def images(self, image_ix: Sequence[int] | Indices) -> ImageBatch | States: ...

    def texts(self, text_ix: Sequence[int] | Indices) -> TextBatch | States: ...


class PairSource(Reader, Protocol):
    """Images and captions whose pairs are scored: those of a corpus, or of one shard."""

    @property
    def captions(self) -> Sequence[str]: ...


class Source(PairSource, Protocol):
    """Images and captions of a corpus."""

    @property
    def corpus(self) -> Corpus: ...


class CorpusSource:
    """Images and captions, preprocessed each time they are read; decoded images are kept in memory up to
    `memory_bytes`."""

    def __init__(self, corpus: Corpus, preprocess: Preprocessor, memory_bytes: int = 0) -> None:
        self.corpus, self.preprocess = corpus, preprocess
        self._bytes_left = memory_bytes
        self._decoded: dict[int, Image.Image] = {}

    @property
    def captions(self) -> Sequence[str]:
        """The text of each caption."""
        return self.corpus.captions

    def images(self, image_ix: Sequence[int] | Indices) -> ImageBatch:
        """The preprocessed images, in the order given."""
        return self.preprocess.images(self._read([int(image) for image in image_ix]))

    def texts(self, text_ix: Sequence[int] | Indices) -> TextBatch:
        """The tokenized captions, in the order given."""
        try:
            return self.preprocess.texts([self.corpus.captions[int(text)] for text in text_ix])
        except RefusedTextError as error:
            text = int(text_ix[error.position])
            raise InputError(
                f"caption {self.corpus.caption_ids[text]} of {shown(self.corpus.folder)} {error.reason}: "
                f"{self.corpus.captions[text][:80]!r}",
                hint="remove it from the caption, and prepare the corpus again",
            ) from error

    def _read(self, image_ix: list[int]) -> list[Image.Image]:
        if not self._bytes_left and not self._decoded:
            return list(self.corpus.images(image_ix))
        missing = [index for index in image_ix if index not in self._decoded]
        read = dict(zip(missing, self.corpus.images(missing), strict=True))
        for index, image in read.items():
            size = 3 * image.width * image.height
            if size <= self._bytes_left:
                self._bytes_left -= size
                self._decoded[index] = image
        return [read[index] if index in read else self._decoded[index] for index in image_ix]


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

    def _mapped(self, kind: str, part: int) -> Half:
        name = _name(kind, part)
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
        return _text_parts(self.corpus)


def _text_parts(corpus: Corpus) -> Indices:
    """The file of each caption, ascending."""
    if corpus.is_pool:
        return np.arange(corpus.num_captions) // TEXTS_PER_FILE
    return corpus.caption_image // IMAGES_PER_FILE


def read_images(source: PairSource, image_ix: Sequence[int] | Indices, compute: Compute) -> ImageBatch | States:
    """Images of a source as a reader leaves them: not on the device yet, but for CUDA in memory that it copies from by
    itself."""
    images = source.images(image_ix)
    is_copied = compute.device.type == "cuda" and isinstance(images, ImageBatch)
    return images.pin_memory() if is_copied else images


def images_ahead(
    source: Source, batches: Iterable[Sequence[int] | Indices], compute: Compute
) -> Iterator[ImageBatch | States]:
    """Batches of images on the device, in order; images and stored features are read ahead by threads."""
    for images in read_in_threads(lambda batch: read_images(source, batch, compute), batches, compute.readers):
        yield images.to(compute.device, non_blocking=compute.device.type == "cuda")


def in_memory(items: Any, size: int, encode: Callable[[Any], States], fitting: Fitting | None = None) -> States:
    """The states of items, encoded `size` at a time; a batch that does not fit into memory is halved."""
    return States.cat([states for _, states in in_fitting_parts(items, size, encode, fitting)])


class EmbeddedImages(CorpusSource):
    """Images that a query encoder's teacher has embedded, and captions."""

    def __init__(self, corpus: Corpus, preprocess: Preprocessor, states: States) -> None:
        super().__init__(corpus, preprocess)
        self._states = states

    def images(self, image_ix: Sequence[int] | Indices) -> Any:
        """The states of these images, in the order given."""
        # Not `take`, which cuts off padding: micro-batches have equally many tokens.
        return self._states[torch.as_tensor(image_ix)]


def open_source(corpus: Corpus, model: Model, compute: Compute, track: Track = silent, memory_bytes: int = 0) -> Source:
    """What a model reads of a corpus: stored features if `compute.features` names a folder, else images, which a query
    encoder may know as vectors, and captions. Decoded images are kept up to `memory_bytes`."""
    if (known := model.known_images.get(corpus.fingerprint)) is not None:
        return EmbeddedImages(corpus, model.preprocess, known)
    if compute.features is None:
        return CorpusSource(corpus, model.preprocess, memory_bytes)
    return open_or_build(compute.features, corpus, model, compute, track=track)


def encoders_of(model: Model) -> Encoders:
    """The encoders whose features are stored; ModelError for a model that has none of its own."""
    if model.encoders is None:
        raise ModelError(
            "this model has no encoders of its own whose features could be stored", hint="leave --features out"
        )
    return model.encoders


def open_or_build(
    root: Path, corpus: Corpus, model: Model, compute: Compute = ON_CPU, *, track: Track = silent
) -> Features:
    """The features of a corpus, encoded and stored first if `root` lacks them.

    The progress label shows their size on disk. If another run is encoding them, this one waits for it and reads what
    it stored. ModelError for a model without encoders of its own, InputError if the disk is too small.
    """
    encoders = encoders_of(model)
    if other := other_folder_error(root, "folder for features", "name a new folder", error=InputError):
        raise other
    expected = {"format": FEATURES.format, "corpus": corpus.fingerprint, "encoders": encoders.digest}
    # Short, for paths; the plan holds the whole fingerprints, and they are compared.
    name = f"{corpus.split}-{corpus.fingerprint[:12]}-{encoders.digest[:12]}"
    build = Build(root / name, expected, FEATURES)
    opened = None if build.is_sealed else _find_larger(root, corpus, encoders.digest)
    if opened is None:
        if not build.is_sealed:
            with build.lock(wait=track):
                if not build.is_sealed:  # another run may have sealed it meanwhile
                    model.to(compute.device).eval()
                    _build(build, CorpusSource(corpus, model.preprocess), encoders, compute, track)
        plan, seal = FEATURES.read_plan_and_seal(build.folder)
        build.expect(plan)
        opened = Features(corpus, build.folder, plan, seal["files"])
    for name, part in opened.parts.items():
        FEATURES.check_part(opened.folder, name, part["bytes"])
    return replace(opened, corpus=corpus, only_first=model.kind == "dual")


def _find_larger(root: Path, corpus: Corpus, encoders: str) -> Features | None:
    """Finished features of these encoders for more images of the split, which begin with those of `corpus`."""
    if corpus.whole is corpus:
        return None
    for stored in _stored_nearby(root, corpus):
        if stored.plan["encoders"] == encoders and stored.corpus.num_images >= corpus.num_images:
            return stored
    return None


def _stored_nearby(root: Path, corpus: Corpus) -> list[Features]:
    """Finished features of the corpus's split, whole or of its first images, by any encoders; the most images first.

    Their fingerprints must belong to the split and so many images. What cannot be read is left out.
    """
    nearby = []
    for seal_file in sorted(root.glob(f"{corpus.split}-*/{FEATURES.seal_file}")):
        try:
            plan, seal = FEATURES.read_plan_and_seal(seal_file.parent)
            same_images = corpus.whole.subset(int(plan["images"]))
        except (StaleError, KeyError, ValueError):
            continue
        if plan["format"] == FEATURES.format and plan["corpus"] == same_images.fingerprint:
            nearby.append(Features(same_images, seal_file.parent, plan, seal["files"]))
    return sorted(nearby, key=lambda stored: -stored.corpus.num_images)


def _files_of(corpus: Corpus) -> tuple[dict[str, range], dict[str, range]]:
    """The images of each file of images, and the captions, or a pool's texts, of each file of texts."""
    first_image = [*range(0, corpus.num_images, IMAGES_PER_FILE), corpus.num_images]
    text_parts = _text_parts(corpus)
    num_text_parts = int(text_parts.max(initial=-1)) + 1
    first_text = np.searchsorted(text_parts, range(num_text_parts + 1)).tolist()
    images = {_name("images", part): range(*ends) for part, ends in enumerate(pairwise(first_image))}
    texts = {_name("texts", part): range(*ends) for part, ends in enumerate(pairwise(first_text))}
    return images, texts


def _take_stored(parts: Parts, corpus: Corpus, text_digest: str) -> None:
    """Take files that another folder of the root has for the same images or captions, by encoders of the same
    digest."""
    build = parts.build
    for stored in _stored_nearby(build.folder.parent, corpus):
        is_whole = stored.corpus.num_images == corpus.num_images
        # The last file of fewer images holds only some of its images.
        shared = min(stored.corpus.num_images, corpus.num_images) + (IMAGES_PER_FILE - 1 if is_whole else 0)
        num_files = shared // IMAGES_PER_FILE
        usable: list[str] = []
        if stored.plan["encoders"] == build.plan["encoders"]:
            usable += [_name("images", part) for part in range(num_files)]
        if stored.plan.get("text_encoder") == text_digest:
            # All subsets of a pool have all of its texts.
            num_texts = math.ceil(corpus.num_captions / TEXTS_PER_FILE) if corpus.is_pool else num_files
            usable += [_name("texts", part) for part in range(num_texts)]
        for number in parts.missing():
            name = parts.names[number]
            if name in usable:
                # Compared with its checksum first, so that damage stays where it is.
                parts.take(number, FEATURES.checked(stored.folder / name, stored.parts[name]["sha256"]))


def _begin(planned: Build, source: CorpusSource, encoders: Encoders, compute: Compute) -> tuple[Parts, Indices]:
    """The parts of the build with its whole plan, and the number of tokens of each caption; InputError if the disk is
    too small."""
    corpus, folder = source.corpus, planned.folder
    lengths = np.ones(corpus.num_captions, dtype=np.int64)
    if not encoders.pools_texts:
        texts = range(corpus.num_captions)
        masks = (source.texts(texts[start : start + TEXT_CHUNK]).attention_mask for start in texts[::TEXT_CHUNK])
        lengths = torch.cat([mask.sum(dim=1) for mask in masks]).numpy()
    # The configurations of encoders have no common field for the number of tokens of an image.
    sample = encoders.image_features(source.images([0]).to(compute.device)).tokens
    plan = {
        **planned.plan,
        "split": corpus.split,
        "images": corpus.num_images,
        "captions": corpus.num_captions,
        "image_tokens": sample.shape[1],
        "image_width": sample.shape[2],
        "text_tokens": int(lengths.sum()),
        "text_width": encoders.text_width,
        "text_encoder": encoders.text_digest,
    }
    build = Build(folder, plan, FEATURES)
    build.begin()
    if not build.is_written(LENGTHS_FILE):
        # Captions are cut to far fewer than 65,536 tokens.
        _save(build, LENGTHS_FILE, lengths.astype(np.uint16))
    images_of, texts_of = _files_of(corpus)
    parts = Parts(build, [*images_of, *texts_of])
    _take_stored(parts, corpus, plan["text_encoder"])
    # A resumed run needs room only for what is missing.
    bytes_left = size_in_bytes(plan) - sum(path.stat().st_size for path in folder.glob("*-*.npy"))
    if (free := shutil.disk_usage(folder).free) < bytes_left:
        raise InputError(f"the features need {byte_size(bytes_left)} more in {folder}, and {byte_size(free)} are free")
    return parts, lengths


@torch.inference_mode()
def _build(planned: Build, source: CorpusSource, encoders: Encoders, compute: Compute, track: Track) -> None:
    parts, lengths = _begin(planned, source, encoders, compute)
    build, missing = parts.build, {parts.names[number] for number in parts.missing()}
    images_of, texts_of = _files_of(source.corpus)
    images = {name: rows for name, rows in images_of.items() if name in missing}
    texts = {name: rows for name, rows in texts_of.items() if name in missing}
    num_images, num_texts = sum(map(len, images.values())), sum(map(len, texts.values()))
    # Two bars, because an image takes as long as many captions: one rate for both would tell nothing of what is left.
    # Without autocast, whatever precision the user sets for scores: features serve runs of every precision.
    if num_images:
        in_all = byte_size(size_in_bytes(build.plan))
        label = f"encode {num_images:,} images, then {num_texts:,} captions, {in_all} in all"
        with track(label, total=num_images, unit="images") as advance:
            _build_images(build, images, source, encoders, compute, advance)
    if num_texts:

        def encode(text_ix: Indices) -> States:
            return encoders.text_features(source.texts(text_ix).to(compute.device))

        with track(f"encode {num_texts:,} captions", total=num_texts, unit="captions") as advance:
            _build_texts(build, texts, lengths, encode, advance)
    parts.seal_alone(lambda listed: {"format": FEATURES.format, "files": listed}, further=[LENGTHS_FILE])


def _build_images(
    build: Build,
    images: Mapping[str, range],
    source: CorpusSource,
    encoders: Encoders,
    compute: Compute,
    advance: Advance,
) -> None:
    """Encode the images of these files."""
    # The batches start again in each file: a resumed run encodes the same ones and writes the same bytes.
    chunks = [
        rows[start : start + IMAGE_CHUNK] for rows in images.values() for start in range(0, len(rows), IMAGE_CHUNK)
    ]
    # Read ahead over the ends of files, so that the encoder does not wait at each of them.
    reading = images_ahead(source, chunks, compute)
    fitting = Fitting()
    for name, rows in images.items():
        encoded = []
        for start in range(0, len(rows), IMAGE_CHUNK):
            size = min(IMAGE_CHUNK, len(rows) - start)
            states = in_memory(next(reading), size, encoders.image_features, fitting)
            encoded.append(_to_half(states, build.folder / name)[0])
            advance(size)
        _save(build, name, np.concatenate(encoded))


def _build_texts(
    build: Build, texts: Mapping[str, range], lengths: Indices, encode: Callable[[Indices], States], advance: Advance
) -> None:
    """Encode the captions of these files; captions of similar length share a batch."""
    fitting = Fitting()
    for name, rows in texts.items():
        text_ix = np.arange(rows.start, rows.stop)
        length_T = lengths[text_ix]
        starts = np.cumsum(length_T) - length_T
        # Without padding, so that a caption takes only the space of its own tokens.
        packed = np.empty((int(length_T.sum()), build.plan["text_width"]), dtype=np.float16)
        by_length = np.argsort(length_T, kind="stable")
        for start in range(0, len(rows), TEXT_CHUNK):
            chunk = by_length[start : start + TEXT_CHUNK]
            states = in_memory(text_ix[chunk], len(chunk), encode, fitting)
            tokens, mask = _to_half(states, build.folder / name)
            for start_token, text_tokens, is_real in zip(starts[chunk].tolist(), tokens, mask, strict=True):
                packed[start_token : start_token + int(is_real.sum())] = text_tokens[is_real]
            advance(len(chunk))
        _save(build, name, packed)


def size_in_bytes(plan: dict[str, Any]) -> int:
    """Size of the features of a plan on disk, without headers."""
    return 2 * (plan["images"] * plan["image_tokens"] * plan["image_width"] + plan["text_tokens"] * plan["text_width"])


def _to_half(states: States, path: Path) -> tuple[Half, NDArray[np.bool_]]:
    """Tokens in float16, and the mask; ModelError if a number is too large for float16."""
    tokens, mask = states.tokens.half().cpu().numpy(), states.mask.cpu().numpy()
    if not np.isfinite(tokens[mask]).all():
        raise ModelError(
            f"{path}: the encoder's features are larger than float16 can hold", hint="leave --features out"
        )
    return tokens, mask


def _name(kind: str, part: int) -> str:
    return f"{kind}-{part:05d}.npy"


def _save(build: Build, name: str, array: NDArray[Any]) -> None:
    with build.write(name) as partial, partial.open("wb") as file:
        np.save(file, array)


@lru_cache(maxsize=256)
def _mapped(path: Path, sha256: str) -> Half:
    """A file of features, compared with its checksum and memory-mapped; the files that were read last stay open."""
    # As a plain array: indexing np.memmap takes longer than reading one image or caption.
    return np.asarray(np.load(FEATURES.checked(path, sha256), mmap_mode="r"))
