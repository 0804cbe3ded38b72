"""Files of scores from elsewhere, read in batches: Parquet, CSV or JSON lines, one pair a row.

Columns: image_id, caption_id and score. A caption may stand in for caption_id, and relevance or clicks for score.
Scores of tasks may have kept their image_index, caption_index and caption, which are read too.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from dcdctl.core import data, files
from dcdctl.core.engines import check_rows, facts_in
from dcdctl.core.errors import InputError, StaleError, first_line
from dcdctl.core.places import shown

COLUMNS = {
    "image_id": pa.string(),
    "caption_id": pa.int64(),
    "score": pa.float64(),
    "relevance": pa.float64(),
    # Not whole numbers: pandas writes 3.0 where another row has no value.
    "clicks": pa.float64(),
    "image_index": pa.int64(),
    "caption_index": pa.int64(),
    "caption": pa.string(),
}
"""Every column that is read, with the type to which it is converted."""
SCORES = {"score": None, "relevance": "relevance", "clicks": "log(1 + clicks)"}
"""The columns that give a score, and how the plan of a cache describes it; None for a model's score as it is."""
ROWS_PER_BATCH = 2**18
"""Of Parquet: about 10 MB of columns."""
BYTES_PER_BATCH = 2**25
"""Of a text file."""
_ROWS_HINT = "give a row per pair with image_id, caption_id (or caption) and score (or relevance, or clicks)"
RecordBatches = Iterator[pa.RecordBatch]


def read_batches(path: Path) -> RecordBatches:
    """The rows of a file in batches: those of COLUMNS that it has, each in its type, and always a score, which
    relevance or clicks may give. InputError for a file that cannot be used."""
    try:
        for batch in READERS[path.suffix.lower()](path):
            known = {name: batch.column(name).cast(COLUMNS[name]) for name in batch.schema.names if name in COLUMNS}
            if "clicks" in known:
                # The logarithm, because twice the clicks do not make a pair twice as relevant.
                clicks = known["clicks"]
                known["score"] = pc.log1p(pc.if_else(pc.less(clicks, 0), math.nan, clicks))
            elif "relevance" in known:
                known["score"] = known["relevance"]
            yield pa.record_batch(known)
    except OSError as error:
        raise files.unreadable(path, error) from error
    except (pa.ArrowException, ValueError) as error:
        raise _no_scores(path, error) from error


def expect_corpus(path: Path, fingerprint: str) -> None:
    """StaleError for scores that `dcdctl work` made of another corpus.

    Its ids may be the same: two corpora of scenes count their images alike. Files of other programs do not say what
    they are of.
    """
    if READERS[path.suffix.lower()] is not _read_parquet:
        return
    try:
        facts = facts_in(pq.read_schema(data.readable(path)))
    except OSError as error:
        raise files.unreadable(path, error) from error
    except (pa.ArrowException, ValueError) as error:
        raise _no_scores(path, error) from error
    corpus = facts.get("job", {}).get("corpus", fingerprint)
    if corpus != fingerprint:
        raise StaleError(
            f"{shown(path)} has scores of another corpus ({corpus[:8]}, not {fingerprint[:8]})",
            hint="score the tasks that --engine files:DIR writes for this one",
        )


def _no_scores(path: Path, error: Exception) -> InputError:
    return InputError(f"{shown(path)} cannot be read as scores: {first_line(error)}", hint=_ROWS_HINT)


def _require_columns(path: Path, names: Sequence[str]) -> None:
    found = ", ".join(names) or "none"
    for choices in (("image_id",), ("caption_id", "caption"), tuple(SCORES)):
        if not set(choices) & set(names):
            raise InputError(f"{shown(path)} has no column {choices[0]} (it has {found})", hint=_ROWS_HINT)
    if len(given := [name for name in SCORES if name in names]) > 1:
        raise InputError(f"{shown(path)} has columns {' and '.join(given)}, expected one of them", hint=_ROWS_HINT)
    if repeated := next((name for name in COLUMNS if list(names).count(name) > 1), None):
        raise InputError(f"{shown(path)} has the column {repeated} twice", hint=_ROWS_HINT)


def _read_parquet(path: Path) -> RecordBatches:
    with pq.ParquetFile(data.readable(path), page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        _require_columns(path, names)
        num_read = 0
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=[name for name in names if name in COLUMNS]):
            num_read += len(batch)
            yield batch
        check_rows(num_read, file, shown(path))


def _read_csv(path: Path) -> RecordBatches:
    # Spreadsheets write a byte order mark.
    with io.TextIOWrapper(data.open_stream(path), encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    _require_columns(path, names)
    options: dict[str, Any] = {
        "read_options": pa_csv.ReadOptions(block_size=BYTES_PER_BATCH),
        # A caption may contain a line break.
        "parse_options": pa_csv.ParseOptions(newlines_in_values=True),
        # Of the known columns alone: the types of the others are guessed from the first block, and may not hold in the
        # next.
        "convert_options": pa_csv.ConvertOptions(
            column_types=COLUMNS, include_columns=[name for name in names if name in COLUMNS]
        ),
    }
    with pa_csv.open_csv(data.readable(path), **options) as reader:
        yield from reader


def _read_json_lines(path: Path) -> RecordBatches:
    with data.open_stream(path) as file:
        first = file.readline()
        # With a schema a missing column is a column of nulls, so the first row tells what there is.
        row = json.loads(first) if first.strip() else {}
        if not isinstance(row, dict):
            raise ValueError("a line is not a JSON object")
        _require_columns(path, list(row))
        schema = pa.schema([(name, kind) for name, kind in COLUMNS.items() if name in row])
        parse = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        for lines in itertools.chain([[first]], iter(lambda: file.readlines(BYTES_PER_BATCH), [])):
            if block := b"".join(lines).strip():
                table = pa_json.read_json(io.BytesIO(block), pa_json.ReadOptions(block_size=len(block) + 1), parse)
                yield from table.to_batches()


READERS = {
    **dict.fromkeys((".parquet", ".pq"), _read_parquet),
    ".csv": _read_csv,
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _read_json_lines),
}
"""By the suffix of a file."""
