"""Where a corpus comes from: one module a form of data set, each listing rows that are read later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dcdctl.core import formats
from dcdctl.core.sources.karpathy_rows import list_karpathy
from dcdctl.core.sources.lavis_rows import list_lavis
from dcdctl.core.sources.parquet_rows import list_parquet
from dcdctl.core.sources.rows import SKIP_HINT, Listing, RowCheck, Skipped, SourceRow, check_empty, why_empty
from dcdctl.core.sources.scene_rows import list_scenes
from dcdctl.core.sources.table_rows import list_table
from dcdctl.core.sources.webdataset_rows import list_webdataset

_LISTERS: dict[type[formats.Source], Callable[[Any, RowCheck], Listing]] = {
    formats.ScenesSource: list_scenes,
    formats.KarpathySource: list_karpathy,
    formats.LavisSource: list_lavis,
    formats.TableSource: list_table,
    formats.ParquetSource: list_parquet,
    formats.WebDatasetSource: list_webdataset,
}

__all__ = ["SKIP_HINT", "Listing", "RowCheck", "Skipped", "SourceRow", "list_source", "why_empty"]


def list_source(source: formats.Source, check: RowCheck) -> Listing:
    """The rows of any source; InputError if a split that is asked for has none."""
    return check_empty(_LISTERS[type(source)](source, check), check)
