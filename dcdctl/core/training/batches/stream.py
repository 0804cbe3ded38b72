"""The batches of a training on a stream of shards: images with one caption each, all pairs of which are candidates.

The process that trains reads the stream. It hands the image files of a step to worker processes, if there are any,
which decode them. Of several processes each reads the whole stream and decodes its own micro-batches. A dual teacher
embeds each batch when it is read.

Shape letters as in `batches`; E width of the teacher's vectors.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from dcdctl.core import distributed, scoring
from dcdctl.core.data import Flags, ImageError, Indices, ShardStream, StreamSample, decode_image, text_key
from dcdctl.core.devices import read_ahead
from dcdctl.core.engines import Compute
from dcdctl.core.errors import InputError
from dcdctl.core.models import DualEncoder, ImageBatch, Preprocessor, TextBatch
from dcdctl.core.training.batches.batch import UNSPLIT, Batch, MicroBatchPlan
from dcdctl.core.training.batches.step_pairs import PairsOfStep, assemble, check_size
from dcdctl.core.training.recipe import BatchConfig

TEACHER_ROWS = 256
"""Images, and captions, that a teacher embeds in one forward pass."""
SKIP_HINT = "leave such samples out with --set stream.on_error=skip"


Encoded = tuple[Sequence[StreamSample], Flags]
"""The samples of a step as worker processes receive them: each with one caption, and an empty file for an image of
another process; and where a caption also matches another image."""


@dataclass(frozen=True)
class StreamTeacher:
    """A dual teacher that embeds the batches of a stream."""

    model: DualEncoder
    compute: Compute
    needs_vectors: bool
    """Whether the loss compares vectors; otherwise it takes scores."""

    @torch.no_grad()
    def complete(self, batch: Batch, inputs: tuple[Any, Any], rows: range, size: int) -> Batch:
        """The batch with the teacher's scores or vectors; `inputs` are those of the rows of this process, `size` is
        that of the batch."""
        sides = []
        # Whatever the precision of the training.
        compute = replace(self.compute, precision="float32")
        for embed, side in zip((self.model.embed_images, self.model.embed_texts), inputs, strict=True):
            local = scoring.embed_batch(embed, side, compute, size=TEACHER_ROWS)
            local = scoring.finite_vectors(functional.normalize(local, dim=-1))
            vectors = local.new_zeros(size, local.shape[1])
            vectors[rows.start : rows.stop] = local
            # Rows of other processes are zeros here, so the sum over processes holds every row once.
            sides.append(distributed.all_sum(vectors).clone().cpu())
        images_QE, texts_GE = sides
        if self.needs_vectors:
            batch = replace(batch, teacher_images_IE=images_QE, teacher_texts_TE=texts_GE)
        bias = 0.0 if self.model.logit_bias is None else self.model.logit_bias.item()
        scores_QG = self.model.logit_scale.item() * (images_QE @ texts_GE.T) + bias
        return replace(batch, teacher_RC=scores_QG, official_teacher_RC=scores_QG)


@dataclass
class StreamBatches:
    """The batches of a stream; `read` gives those of a range of steps."""

    stream: ShardStream
    preprocess: Preprocessor
    config: BatchConfig
    plan: MicroBatchPlan = UNSPLIT
    teacher: StreamTeacher | None = None

    def __post_init__(self) -> None:
        check_size(self.config, self.plan)

    def read(self, steps: range, workers: int, *, pin_memory: bool = False) -> Iterator[Batch]:
        """The batches of consecutive steps, decoded ahead by worker processes, or by this process if there are none."""
        with closing(self._encoded(steps)) as encoded:
            # The loader hands each key to a worker: here a key is the batch itself.
            for decoded in read_ahead(_Decoder(self), encoded, workers, pin_memory=pin_memory):
                yield self._completed(decoded)

    def __getitem__(self, step: int) -> Batch:
        """The batch of step 0, for a trial; the window that it is from is kept for `read`."""
        assert step == 0, "later batches come from `read`"
        return self._completed(_Decoder(self)[self._encode(0, self.stream.first_batch())])

    @property
    def _rows(self) -> range:
        """The images, and captions, of a batch that this process reads."""
        ranges = list(self.plan.row_ranges(self.config.size))
        return range(ranges[0].start, ranges[-1].stop)

    def _encoded(self, steps: range) -> Generator[Encoded, None, None]:
        if not steps:
            return
        with closing(self.stream.read(steps.start)) as source:
            # The source has no end.
            for step in steps:
                yield self._encode(step, next(source))

    def _encode(self, step: int, samples: Sequence[StreamSample]) -> Encoded:
        # The key 2 separates the choice of captions from the order of the stream, whose keys are 0 and 1.
        rng = np.random.default_rng([self.stream.seed, 2, step])
        captions = [sample.captions[rng.integers(len(sample.captions))] for sample in samples]
        encoded, local = [], self._rows
        for row, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
            encoded.append(replace(sample, captions=[caption], image=sample.image if row in local else b""))
        return encoded, _is_same(samples, captions)

    def _completed(self, decoded: _Decoded) -> Batch:
        batch, inputs = decoded
        if self.teacher is None or inputs is None:
            return batch
        return self.teacher.complete(batch, inputs, self._rows, self.config.size)


def _is_same(samples: Sequence[StreamSample], captions: Sequence[str]) -> Flags:
    """Off the diagonal: whether an image has a caption of equal text, or the same file as the caption's image."""
    same_QG = np.zeros((len(captions), len(captions)), dtype=bool)
    with_text: dict[str, list[int]] = {}
    with_file: dict[bytes, list[int]] = {}
    for row, sample in enumerate(samples):
        with_file.setdefault(sample.image, []).append(row)
        for key in {text_key(caption) for caption in sample.captions}:
            with_text.setdefault(key, []).append(row)
    for column, caption in enumerate(captions):
        same_QG[with_text[text_key(caption)] + with_file[samples[column].image], column] = True
    np.fill_diagonal(same_QG, False)
    return same_QG


_Decoded = tuple[Batch, tuple[Any, Any] | None]
"""A batch without the teacher's part, and the images and captions of this process as the teacher reads them."""


class _Decoder(torch.utils.data.Dataset[_Decoded]):
    """Decodes the batches that it is given as keys. It holds no model and no window, so that worker processes get
    neither."""

    def __init__(self, batches: StreamBatches) -> None:
        self.preprocess, self.plan, self.rows = batches.preprocess, batches.plan, batches._rows
        self.teacher_preprocess = None if batches.teacher is None else batches.teacher.model.preprocess

    def __getitem__(self, encoded: Encoded) -> _Decoded:
        samples, same_QG = encoded
        source, indices = _BatchSource(samples, self.preprocess), np.arange(len(samples))
        missing_QG = np.full(same_QG.shape, np.nan, dtype=np.float32)
        pairs = PairsOfStep(
            image_RC=indices[:, None],
            text_RC=indices[None, :],
            teacher_RC=missing_QG,
            official_RC=missing_QG,
            same_RC=same_QG,
        )
        batch = assemble(source, self.plan, pairs)
        if self.teacher_preprocess is None:
            return batch, None
        source.preprocess = self.teacher_preprocess
        return batch, (source.images(self.rows), source.texts(self.rows))


@dataclass
class _BatchSource:
    """The images and captions of one batch by their position in it, preprocessed."""

    samples: Sequence[StreamSample]
    preprocess: Preprocessor
    # Student and teacher read the same images, which are decoded once.
    _decoded: dict[int, Any] = field(default_factory=dict)

    def images(self, image_ix: Sequence[int] | Indices) -> ImageBatch:
        """The preprocessed images."""
        return self.preprocess.images([self._image(int(image)) for image in image_ix])

    def texts(self, text_ix: Sequence[int] | Indices) -> TextBatch:
        """The tokenized captions."""
        return self.preprocess.texts([self.samples[int(text)].captions[0] for text in text_ix])

    def _image(self, row: int) -> Any:
        if row not in self._decoded:
            sample = self.samples[row]
            try:
                self._decoded[row] = decode_image(sample.image)
            except ImageError as error:
                raise InputError(f"{sample.where}: {error}", hint=SKIP_HINT) from error
        return self._decoded[row]
