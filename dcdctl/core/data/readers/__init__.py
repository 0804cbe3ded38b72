"""Readers of data sets, one module per format: each has the settings of a source and lists its rows."""

from __future__ import annotations

from dcdctl.core.data.readers.csv_jsonl import CsvSource, JsonlSource, LavisSource
from dcdctl.core.data.readers.karpathy import KarpathySource
from dcdctl.core.data.readers.parquet import ParquetSource
from dcdctl.core.data.readers.pool import PoolSource, add_pool
from dcdctl.core.data.readers.rows import SPLITS, Listing, RowCheck, SourceConfig, empty_split_hint
from dcdctl.core.data.readers.scenes import ScenesSource
from dcdctl.core.data.readers.webdataset import WebDatasetSource
from dcdctl.core.errors import InputError

_SOURCES: tuple[type[SourceConfig], ...] = (
    ScenesSource,
    KarpathySource,
    LavisSource,
    CsvSource,
    JsonlSource,
    ParquetSource,
    WebDatasetSource,
    PoolSource,
)
FORMATS = {source.format: source for source in _SOURCES}


def list_source(source: SourceConfig, check: RowCheck) -> Listing:
    """The rows of any source; InputError if a split that is requested, or that rows name, has no image."""
    listing = source.list_rows(check)
    if source.queries and not listing.pools:
        listing = add_pool(source, listing, check)
    for split in check.splits or [split for split in SPLITS if split in check.seen_splits]:
        if split not in listing.counts:
            raise InputError(f"split {split!r} is empty", hint=empty_split_hint(listing.skipped))
    if not listing.counts:
        raise InputError("the source has no image and no text", hint="a split needs at least one")
    return listing
