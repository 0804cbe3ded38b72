"""Images whose columns hold the edges of each type, and conditions that compare every value with every other.

The images are repeated for each value that a condition compares with: image n of block b has `tested` b. So one
condition of each operator asks all of them, `tested = 0 and number < -0.0 or tested = 1 and ...`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

import pyarrow as pa
from made_index import unit_vectors
from made_store import made_facts

from dcdctl.core.search import Value, quoted_value
from dcdctl.core.search.columns.where import MOMENT

DIM = 4
MOST = 1.7976931348623157e308
TEXTS: list[Value] = ["", "a", "A", "a\\b", "a\\\\b", "\\", "50%", "5_0", "o'neil", "k", "\u212a", "\u017f", "ẞ", "ß"]
TEXTS += ["İ", "ΟΔΟΣ", "οδος", "οδοσ", "e\u0301", "\uffff", "\U00010428", "a\nb", "a\0b"]
WHOLE: list[Value] = [-(2**63), -(2**53) - 1, -(2**53), -1, 0, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1]
NUMBERS: list[Value] = [-0.0, 0.0, 5e-324, -5e-324, 2.2250738585072014e-308, -MOST, MOST, 0.1, 1 / 3, 1e16]
DAYS: list[Value] = [date.min, date(1582, 10, 10), date(1969, 12, 31), date(2024, 2, 29), date.max]
MOMENTS: list[Value] = [datetime.min, datetime(1, 1, 1, 0, 0, 0, 1), datetime(1969, 12, 31, 23, 59, 59, 999999)]
MOMENTS += [datetime(1970, 1, 1), datetime(2262, 4, 12), datetime.max]
EDGES: dict[str, tuple[pa.DataType, list[Value]]] = {
    "text": (pa.string(), TEXTS),
    "whole": (pa.int64(), WHOLE),
    "number": (pa.float64(), NUMBERS),
    "flag": (pa.bool_(), [False, True]),
    "day": (pa.date32(), DAYS),
    "moment": (MOMENT, MOMENTS),
}
"""For each column its type and values; images without a value follow."""
PATTERNS = ["", "%", "_", "__", "a%", "%b", "%a\\\\b%", "%a\\b%", "\\\\", "%\\\\", "50\\%", "5\\_0", "%'%", "%\n%", "A"]
PATTERNS += ["K", "S", "ß", "i", "\u03c3", "οδοσ", "\U00010400", "É", "\\a", "%\u212a"]
ORDERS, EQUALITIES = ("<", "<=", ">", ">="), ("=", "!=", "in", "not in", "is null", "is not null")
LIKES = ("like", "not like", "ilike", "not ilike")
NUM_VALUES = max(len(values) for _, values in EDGES.values()) + 1
NUM_BLOCKS = max(NUM_VALUES, len(PATTERNS))
COLUMNS = pa.schema([("tested", pa.int64()), *((name, type_) for name, (type_, _) in EDGES.items())])
CASES = [(name, operator) for name in EDGES for operator in (*EQUALITIES, *ORDERS)]
CASES += [("text", operator) for operator in LIKES]


def edge_facts():
    """The facts of these images."""
    count = NUM_VALUES * NUM_BLOCKS
    columns = {field.name: str(field.type) for field in COLUMNS}
    return made_facts(columns=columns, rows=count, images=count, dims=DIM)


def edge_images() -> pa.Table:
    """The images as a store takes them."""
    schema, count = edge_facts().image_schema, NUM_VALUES * NUM_BLOCKS
    names = [f"{row}.png" for row in range(count)]
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(unit_vectors(count, DIM).reshape(-1)), type=schema.field("vector").type
    )
    columns = {"row": range(count), "source": [0] * count, "image_id": names, "path": names, "vector": vectors}
    columns |= {"corpus_row": [None] * count, "tested": [row // NUM_VALUES for row in range(count)]}
    for name, (_, values) in EDGES.items():
        columns[name] = (values + [None] * (NUM_VALUES - len(values))) * NUM_BLOCKS
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def edge_condition(name: str, operator: str, values: Sequence[Value]) -> str:
    """The condition that compares a column with each of the values, in the block of the value."""
    tests = []
    for block, value in enumerate(values):
        operand = quoted_value(value)
        if operator.endswith("in"):
            operand = f"({operand}, {quoted_value(values[block - 1])})"
        tests.append(f"tested = {block} and {name} {operator} {'' if 'null' in operator else operand}")
    return " or ".join(tests)
