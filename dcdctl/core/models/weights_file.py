"""Numbers that are not finite in a file of safetensors, found without torch, for `dcdctl verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dcdctl.core.errors import DcdError, ModelError

EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""By number type: an unsigned type of its width, and the bits of the exponent, which are all set in NaN and the
infinities (IEEE 754)."""
CHUNK = 1 << 22
"""Numbers that are compared at a time."""


def check_finite_file(path: Path, *, error: type[DcdError] = ModelError) -> None:
    """`error` that names the first tensor of a safetensors file with a number that is not finite, or the file if it
    cannot be read."""
    try:
        with safe_open(path, "numpy"):  # compares the header with the size of the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)  # words about the file, whatever their names
    except (SafetensorError, OSError) as reason:
        raise error(f"{path} cannot be read: {reason}") from reason
    for name, entry in sorted(header.items()):
        if (kind := entry.get("dtype")) in EXPONENTS and (size := entry["data_offsets"][1] - entry["data_offsets"][0]):
            unsigned, all_set = EXPONENTS[kind]
            exponent = unsigned(all_set)
            bits = np.memmap(
                path, unsigned, "r", 8 + length + entry["data_offsets"][0], (size // np.dtype(unsigned).itemsize,)
            )
            # In parts, since a comparison of all would need as much memory as the weights.
            parts = (bits[start : start + CHUNK] for start in range(0, len(bits), CHUNK))
            if num_bad := sum(int(np.count_nonzero((part & exponent) == exponent)) for part in parts):
                raise error(f"{path}: {num_bad:,} of {len(bits):,} numbers of the weights {name} are not finite")
