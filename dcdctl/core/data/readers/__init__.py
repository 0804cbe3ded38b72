"""Where a corpus comes from: one module a form of data set, each listing rows that are read later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dcdctl.core.data import manifest
from dcdctl.core.data.readers.csv_jsonl import list_table
from dcdctl.core.data.readers.karpathy import list_karpathy
from dcdctl.core.data.readers.lavis import list_lavis
from dcdctl.core.data.readers.parquet import list_parquet
from dcdctl.core.data.readers.rows import SKIP_HINT, Listing, RowCheck, Skipped, SourceRow, check_empty, why_empty
from dcdctl.core.data.readers.scenes import list_scenes
from dcdctl.core.data.readers.webdataset import list_webdataset

_LISTERS: dict[type[manifest.Source], Callable[[Any, RowCheck], Listing]] = {
    manifest.ScenesSource: list_scenes,
    manifest.KarpathySource: list_karpathy,
    manifest.LavisSource: list_lavis,
    manifest.TableSource: list_table,
    manifest.ParquetSource: list_parquet,
    manifest.WebDatasetSource: list_webdataset,
}
__all__ = ["SKIP_HINT", "Listing", "RowCheck", "Skipped", "SourceRow", "list_source", "why_empty"]


def list_source(source: manifest.Source, check: RowCheck) -> Listing:
    """The rows of any source; InputError if a split that is asked for has none."""
    return check_empty(_LISTERS[type(source)](source, check), check)
