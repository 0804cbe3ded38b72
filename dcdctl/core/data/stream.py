"""A stream of captioned images from shards that need not fit into memory or on the disk, in a random order that is a
function of the seed.

In each epoch the shards are permuted, and their samples, one shard after another, are cut into windows. A window is
shuffled in memory and cut into batches; the images of the last batch of an epoch are left out if they do not fill it.
One window is in use while a thread reads the next, so memory holds two windows of image files, however many shards
there are.

A tar does not say how many samples it has. Counts are learned where a shard is read to its end, and a stream that knows
the counts of all earlier shards starts at any step without reading them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from dcdctl.core import files
from dcdctl.core.config import MOST, Share, between, settle_fields
from dcdctl.core.data import images, urls
from dcdctl.core.data.readers.parquet import ParquetSource
from dcdctl.core.data.shard_reader import FORMATS, StreamSample, StreamShard, count_rows, open_shard, read_samples
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.machine import read_in_threads
from dcdctl.core.places import shown

SKIP_HINT = "correct it, or leave such samples out with --set stream.on_error=skip"
Samples = list[StreamSample]
OPENERS = 16
"""Shards that are looked up at once when a stream is opened: each may be a request to a server."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """The `[stream]` table: the order of a training on shards."""

    window: Annotated[int, between(2, MOST)] = 8192
    """Images that are in memory and shuffled together, as files; rounded down to whole batches. Two windows are in
    memory."""
    on_error: Literal["stop", "skip"] = "stop"
    """stop: a sample that cannot be used is an error. skip: it is left out and counted; each image is then decoded once
    more."""
    max_skipped: Share = 0.1
    """skip: the largest share of a shard's samples that may be left out."""
    image_column: str = "image"
    """Parquet: the column of the image files."""
    caption_column: str = ""
    """Parquet: the column of the captions; it is found by its usual names if empty."""

    def __post_init__(self) -> None:
        settle_fields(self, "stream")


@dataclass(frozen=True, kw_only=True)
class ShardCount:
    """The samples of a shard that was read to its end."""

    shard: int
    """Its position among the shards of the stream."""
    samples: int
    skipped: int = 0
    reason: str = ""
    """Why the first one was skipped."""


def is_stream(places: Sequence[str | Path]) -> bool:
    """Whether these name shards to stream, by their endings; otherwise they name a prepared corpus."""
    return len(places) > 1 or any(shown(place).endswith(FORMATS) for place in places)


def open_shards(patterns: Sequence[str]) -> list[StreamShard]:
    """The shards that patterns name, in order, each looked up; InputError or SourceError names one that is missing."""
    places = [place for pattern in patterns for place in urls.expand(str(pattern))]
    return list(read_in_threads(open_shard, places, OPENERS))


@dataclass
class ShardStream:
    """The batches of a stream. Not to be shared by threads."""

    shards: Sequence[StreamShard]
    config: StreamConfig
    batch_size: int
    seed: int
    counts: dict[int, int] = field(default_factory=dict)
    """Usable samples of the shards, as far as they are known."""
    on_count: Callable[[ShardCount], None] = lambda count: None
    """Called once for each shard whose samples become known by reading."""
    _first: Samples | None = None

    def __post_init__(self) -> None:
        if self.config.window < self.batch_size:
            raise ConfigError(
                f"stream.window is {self.config.window}, less than batch.size {self.batch_size}",
                hint="a window of many batches shuffles better",
            )

    @property
    def window(self) -> int:
        """Samples of a window: a whole number of batches."""
        return self.config.window // self.batch_size * self.batch_size

    @property
    def fingerprint(self) -> str:
        """A digest of names, sizes and versions of the shards."""
        return files.digest_of(self.versions())

    def versions(self) -> dict[str, str]:
        """Size and version of each shard, by its name."""
        versions = {}
        for shard in self.shards:
            version = shard.version or "unknown"
            versions[shard.name] = f"{shard.size:,} bytes, version {version}"
        return versions

    def batches_per_epoch(self) -> float | None:
        """Batches in a pass over all shards, from the footers of Parquet files; None if there are tars, whose samples
        are not known."""
        if any(shard.is_tar for shard in self.shards):
            return None
        rows = list(read_in_threads(count_rows, self.shards, OPENERS))
        if self.config.on_error == "stop":  # otherwise some rows may not count
            # A resumed run then starts at its step without reading the shards before it.
            self.counts.update(enumerate(rows))
        self._require_batch(sum(rows))
        return float(sum(rows) // self.batch_size)

    def order(self, epoch: int) -> list[int]:
        """The shards in the order of an epoch."""
        return list(self._rng(0, epoch).permutation(len(self.shards)).tolist())

    def first_window(self) -> Samples:
        """The samples of the first window, unshuffled; they stay in memory until the batches of the training are
        read."""
        if self._first is None:
            first = next(self._windows(0, 0, threading.Event()), [])
            # A window holds a batch or more, unless it is all there is.
            self._require_batch(len(first))
            self._first = first
        return self._first

    def first_batch(self) -> Samples:
        """The batch of step 0."""
        return next(self._cut(self.first_window(), 0, 0, 0))

    def read(self, first_step: int) -> Generator[Samples, None, None]:
        """The batches from a step on, without end, each a function of the seed, the shards and the step. The next
        window is read ahead."""
        step = first_step
        epoch, batch = self._locate(step)
        while True:
            per_window, started = self.window // self.batch_size, step
            number = batch // per_window
            for samples in self._read_ahead(epoch, number):
                for item in self._cut(samples, epoch, number, batch % per_window):
                    yield item
                    step += 1
                number, batch = number + 1, 0
            if is_empty := step == started:
                self._require_batch(sum(self.counts.values()))
            # Nothing was read where the counts of a resumed run are lost: now they are known.
            epoch, batch = self._locate(step) if is_empty else (epoch + 1, 0)

    def _require_batch(self, num_images: int) -> None:
        """ConfigError if the shards have fewer images than a batch."""
        if num_images < self.batch_size:
            usable = f"the {len(self.shards)} shards have {num_images} images that can be used"
            raise ConfigError(
                f"batch.size is {self.batch_size}, {usable}", hint="set batch.size lower, or name more shards"
            )

    def _locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and its batch in it."""
        # An epoch that has ended leaves the counts of all shards.
        if step == 0 or len(self.counts) < len(self.shards):
            return 0, step
        # At least one batch: `read` reports that there are too few images.
        return divmod(step, max(1, sum(self.counts.values()) // self.batch_size))

    def _cut(self, samples: Samples, epoch: int, number: int, first: int) -> Iterator[Samples]:
        """The whole batches of a window from batch `first` on, shuffled."""
        order = self._rng(1, epoch, number).permutation(len(samples))
        for batch in range(first, len(samples) // self.batch_size):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [samples[row] for row in rows]

    def _read_ahead(self, epoch: int, first: int) -> Iterator[Samples]:
        """The windows of an epoch from number `first` on, the next one read by a thread while one is in use."""
        stop = threading.Event()
        if (epoch, first) == (0, 0) and self._first is not None:
            window, self._first, first = self._first, None, 1
            yield window
            del window
        windows = self._windows(epoch, first, stop)
        with ThreadPoolExecutor(1, thread_name_prefix="stream") as pool:
            try:
                pending = pool.submit(next, windows, None)
                while (read := pending.result()) is not None:
                    pending = pool.submit(next, windows, None)
                    yield read
            finally:
                stop.set()

    def _windows(self, epoch: int, first: int, stop: threading.Event) -> Iterator[Samples]:
        """The unshuffled windows of an epoch from number `first` on; the last one may be smaller."""
        window: Samples = []
        for sample in self._samples(epoch, first * self.window):
            if stop.is_set():
                return
            window.append(sample)
            if len(window) == self.window:
                yield window
                window = []
        if window:
            yield window

    def _samples(self, epoch: int, skip: int) -> Iterator[StreamSample]:
        """The usable samples of an epoch after the first `skip`; shards of known counts are skipped unread."""
        for index in self.order(epoch):
            known = self.counts.get(index)
            if known is not None and known <= skip:
                skip -= known
                continue
            # Samples are passed over unseen only if all of them count.
            start = skip if known is not None and self.config.on_error == "stop" else 0
            count, skipped, reason = start, 0, ""
            for sample in self._found(index, start):
                if sample.fault:
                    skipped, reason = skipped + 1, reason or f"{sample.key}: {sample.fault}"
                    continue
                count += 1
                if count > skip:
                    yield sample
            self._learn(ShardCount(shard=index, samples=count, skipped=skipped, reason=reason))
            skip = max(0, skip - count)

    def _found(self, index: int, start: int) -> Iterator[StreamSample]:
        """The samples of a shard, checked: an unusable one is an error unless it is skipped."""
        columns = ParquetSource(
            rows={"all": ()}, image_column=self.config.image_column, caption_column=self.config.caption_column
        )
        for sample in read_samples(self.shards[index], columns, start):
            if self.config.on_error == "stop" and sample.fault:
                raise InputError(f"{sample.where}: {sample.fault}", hint=SKIP_HINT)
            # A training that stops at errors decodes each image once, and finds damage then.
            if self.config.on_error == "skip" and not sample.fault:
                try:
                    images.check_image(sample.image)
                except images.ImageError as error:
                    sample = replace(sample, fault=str(error))
            yield sample

    def _learn(self, count: ShardCount) -> None:
        total = count.samples + count.skipped
        if count.skipped > self.config.max_skipped * total:
            raise InputError(
                f"{count.skipped:,} of {total:,} samples of {self.shards[count.shard].name} cannot be used, "
                f"the first: {count.reason}",
                hint=f"correct them, or raise stream.max_skipped, which is {self.config.max_skipped:g}",
            )
        known = self.counts.get(count.shard)
        if known is None:
            self.counts[count.shard] = count.samples
            self.on_count(count)
        elif known != count.samples:
            raise InputError(f"{self.shards[count.shard].name} has {count.samples:,} samples, and had {known:,} before")

    def _rng(self, *key: Any) -> np.random.Generator:
        # The first number separates the order of shards (0) from the order in a window (1).
        return np.random.default_rng([self.seed, *key])
