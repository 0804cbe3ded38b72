"""Readers of data sets, one module per format: each has the settings of a source and lists its rows."""

from __future__ import annotations

from dcdctl.core.data.readers.csv_jsonl import CsvSource, JsonlSource
from dcdctl.core.data.readers.karpathy import KarpathySource
from dcdctl.core.data.readers.lavis import LavisSource
from dcdctl.core.data.readers.parquet import ParquetSource
from dcdctl.core.data.readers.rows import Listing, RowCheck, SourceConfig, require_images
from dcdctl.core.data.readers.scenes import ScenesSource
from dcdctl.core.data.readers.webdataset import WebDatasetSource

FORMATS: dict[str, type[SourceConfig]] = {
    "scenes": ScenesSource,
    "karpathy": KarpathySource,
    "lavis": LavisSource,
    "csv": CsvSource,
    "jsonl": JsonlSource,
    "parquet": ParquetSource,
    "webdataset": WebDatasetSource,
}


def list_source(source: SourceConfig, check: RowCheck) -> Listing:
    """The rows of any source; InputError if a requested split has none."""
    return require_images(source.list_rows(check), check)
