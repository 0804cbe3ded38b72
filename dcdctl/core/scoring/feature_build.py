"""Storing the features of a corpus, the outputs of a model's frozen encoders, file by file (`features` has the
layout)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcdctl.core.artifacts import Build, Parts, other_folder_error
from dcdctl.core.data import Corpus, Indices
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import InputError, ModelError, StaleError
from dcdctl.core.memory import Fitting
from dcdctl.core.models import Encoders, Model, Preprocessor, States
from dcdctl.core.progress import Advance, Track, byte_size, silent
from dcdctl.core.scoring import features
from dcdctl.core.scoring.batches import Batch, BatchWorker, Side, side_task
from dcdctl.core.scoring.feature_files import FEATURES
from dcdctl.core.scoring.features import LENGTHS_FILE, Features, Half
from dcdctl.core.scoring.sources import CorpusSource, EmbeddedImages, Source, in_memory

IMAGE_CHUNK = 32
"""Images encoded in one forward pass."""
TEXT_CHUNK = 256
"""Captions encoded in one forward pass; captions of similar length share one."""


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
    if opened is None and not build.is_sealed:
        with build.lock(wait=track):
            if not build.is_sealed:  # another run may have sealed it meanwhile
                model.to(compute.device).eval()
                _build(build, CorpusSource(corpus, model.preprocess), model, compute, track)
    if opened is None:
        plan, seal = FEATURES.read_plan_and_seal(build.folder)
        build.expect(plan)
        opened = Features(corpus, build.folder, plan, seal["files"])
    for file, part in opened.parts.items():
        FEATURES.check_part(opened.folder, file, part["bytes"])
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
    first_image = [*range(0, corpus.num_images, features.IMAGES_PER_FILE), corpus.num_images]
    part_T = features.text_parts(corpus)
    num_text_parts = int(part_T.max(initial=-1)) + 1
    first_text = np.searchsorted(part_T, range(num_text_parts + 1)).tolist()
    images = {features.file_name("images", part): range(*ends) for part, ends in enumerate(pairwise(first_image))}
    texts = {features.file_name("texts", part): range(*ends) for part, ends in enumerate(pairwise(first_text))}
    return images, texts


def _take_stored(parts: Parts, corpus: Corpus, text_digest: str) -> None:
    """Take files that other folders of the root have: images by the same encoders, and captions by the same text
    encoder."""
    build = parts.build
    for stored in _stored_nearby(build.folder.parent, corpus):
        is_whole = stored.corpus.num_images == corpus.num_images
        # The last file of fewer images holds only some of its images.
        shared = min(stored.corpus.num_images, corpus.num_images) + (features.IMAGES_PER_FILE - 1 if is_whole else 0)
        num_files = shared // features.IMAGES_PER_FILE
        usable: list[str] = []
        if stored.plan["encoders"] == build.plan["encoders"]:
            usable += [features.file_name("images", part) for part in range(num_files)]
        if stored.plan.get("text_encoder") == text_digest:
            # All subsets of a pool have all of its texts.
            num_texts = math.ceil(corpus.num_captions / features.TEXTS_PER_FILE) if corpus.is_pool else num_files
            usable += [features.file_name("texts", part) for part in range(num_texts)]
        for number in parts.missing():
            name = parts.names[number]
            if name in usable:
                # Compared with its checksum first, so that damage stays where it is.
                parts.take(number, FEATURES.checked(stored.folder / name, stored.parts[name]["sha256"]))


@torch.inference_mode()
def _begin(planned: Build, source: CorpusSource, encoders: Encoders, compute: Compute) -> tuple[Parts, Indices]:
    """Begin to store: complete the plan by the sizes that the encoders show, and take files that are stored already.

    The parts to write, and the number of tokens of each caption. InputError if the disk is too small.
    """
    corpus, folder = source.corpus, planned.folder
    lengths = np.ones(corpus.num_captions, dtype=np.int64)
    # A folder of images alone has no texts.
    if corpus.num_captions and not encoders.pools_texts:
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


def _build(planned: Build, source: CorpusSource, model: Model, compute: Compute, track: Track) -> None:
    parts, lengths = _begin(planned, source, encoders_of(model), compute)
    build, missing = parts.build, {parts.names[number] for number in parts.missing()}
    images_of, texts_of = _files_of(source.corpus)
    images = {name: rows for name, rows in images_of.items() if name in missing}
    texts = {name: rows for name, rows in texts_of.items() if name in missing}
    num_images, num_texts = sum(map(len, images.values())), sum(map(len, texts.values()))
    # Two bars, because an image takes as long as many captions: one rate for both would tell nothing of what is left.
    if num_images:
        in_all = byte_size(size_in_bytes(build.plan))
        # Captions are stored already where another image size has them.
        then = f", then {num_texts:,} captions" if num_texts else ""
        label = f"encode {num_images:,} images{then}, {in_all} in all"
        with track(label, total=num_images, unit="images") as advance:
            _build_images(build, images, source, model, compute, advance)
    if num_texts:
        with track(f"encode {num_texts:,} captions", total=num_texts, unit="captions") as advance:
            _build_texts(build, texts, lengths, source, model, compute, advance)
    parts.seal(lambda listed: {"format": FEATURES.format, "files": listed}, further=[LENGTHS_FILE])


@dataclass(frozen=True)
class _HalfEncoder:
    """The frozen encoders of a model, whose tokens are stored in half precision."""

    model: Model
    side: Side

    @property
    def preprocess(self) -> Preprocessor:
        return self.model.preprocess

    def placed(self, compute: Compute) -> Callable[[Any], tuple[Half, NDArray[np.bool_]]]:
        """The tokens of a batch in float16, and the mask; ModelError if a number is too large for float16.

        Without autocast, whatever precision the user sets for scores: features serve runs of every precision.
        """
        encoders = encoders_of(self.model.to(compute.device).eval())
        encode = encoders.image_features if self.side == "images" else encoders.text_features
        fitting = Fitting()
        return lambda batch: _to_half(in_memory(batch, len(batch), encode, fitting))


def _build_images(
    build: Build,
    images: Mapping[str, range],
    source: CorpusSource,
    model: Model,
    compute: Compute,
    advance: Advance,
) -> None:
    """Encode the images of these files."""
    # The batches start again in each file: a resumed run encodes the same ones and writes the same bytes.
    batches_of = {
        name: [rows[i : i + IMAGE_CHUNK] for i in range(0, len(rows), IMAGE_CHUNK)] for name, rows in images.items()
    }
    for name, encoded in _encoded(source, "images", batches_of, model, compute, advance):
        _save(build, name, np.concatenate([tokens for tokens, _ in encoded]))


def _build_texts(
    build: Build,
    texts: Mapping[str, range],
    lengths: Indices,
    source: CorpusSource,
    model: Model,
    compute: Compute,
    advance: Advance,
) -> None:
    """Encode the captions of these files; captions of similar length share a batch."""
    batches_of = {}
    for name, rows in texts.items():
        by_length = rows.start + np.argsort(lengths[rows.start : rows.stop], kind="stable")
        batches_of[name] = [by_length[i : i + TEXT_CHUNK] for i in range(0, len(rows), TEXT_CHUNK)]
    for name, encoded in _encoded(source, "captions", batches_of, model, compute, advance):
        first_text = texts[name].start
        length_T = lengths[first_text : texts[name].stop]
        starts = np.cumsum(length_T) - length_T
        # Without padding, so that a caption takes only the space of its own tokens.
        packed = np.empty((int(length_T.sum()), build.plan["text_width"]), dtype=np.float16)
        for batch, (tokens, mask) in zip(batches_of[name], encoded, strict=True):
            for start, text_tokens, is_real in zip(starts[batch - first_text].tolist(), tokens, mask, strict=True):
                packed[start : start + int(is_real.sum())] = text_tokens[is_real]
        _save(build, name, packed)


def _encoded(
    source: CorpusSource,
    side: Side,
    batches_of: Mapping[str, Sequence[Batch]],
    model: Model,
    compute: Compute,
    advance: Advance,
) -> Iterator[tuple[str, list[tuple[Half, NDArray[np.bool_]]]]]:
    """Each file with what the encoders give of its batches."""
    names = list(batches_of)
    tasks = (side_task(source, side, batches_of[name], shard=number, name=name) for number, name in enumerate(names))
    make_worker = partial(BatchWorker.make, _HalfEncoder(model, side), compute.for_workers())
    for task, encoded in compute.engine.map(tasks, make_worker, advance):
        yield names[task.shard], encoded


def size_in_bytes(plan: dict[str, Any]) -> int:
    """Size of the features of a plan on disk, without headers."""
    return 2 * (plan["images"] * plan["image_tokens"] * plan["image_width"] + plan["text_tokens"] * plan["text_width"])


def _to_half(states: States) -> tuple[Half, NDArray[np.bool_]]:
    tokens, mask = states.tokens.half().cpu().numpy(), states.mask.cpu().numpy()
    if not np.isfinite(tokens[mask]).all():
        raise ModelError("the encoder's features are larger than float16 can hold", hint="leave --features out")
    return tokens, mask


def _save(build: Build, name: str, array: NDArray[Any]) -> None:
    with build.write(name) as unfinished, unfinished.open("wb") as file:
        np.save(file, array)
