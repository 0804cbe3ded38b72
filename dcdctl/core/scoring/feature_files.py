"""The artifact of stored features, and the faults of its files; `features` writes and reads it.

Only NumPy is imported here, because `dcdctl verify` compares files without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dcdctl.core.artifacts import Kind

FEATURES = Kind(
    name="features",
    format=3,
    seal_file="features.json",
    files=("lengths.npy", "images-*.npy", "texts-*.npy"),
    make="run the command with --features",
    make_again="run the same command again",
)


def find_faults(folder: Path, plan: dict[str, Any], names: Iterable[str]) -> Iterator[str]:
    """What is wrong with the numbers of files that have the right checksums: another shape or type than planned, or not
    finite."""
    expected: dict[str, tuple[int, tuple[int, ...]]] = {
        "images": (plan["images"], (plan["image_tokens"], plan["image_width"])),
        "texts": (plan["text_tokens"], (plan["text_width"],)),
        "lengths": (plan["text_tokens"], ()),
    }
    counts = dict.fromkeys(expected, 0)
    for name in sorted(names):
        array, kind = np.load(folder / name, mmap_mode="r"), name.partition("-")[0].removesuffix(".npy")
        counts[kind] += int(array.sum(dtype=np.int64)) if kind == "lengths" else len(array)
        shape = expected[kind][1]
        if array.shape[1:] != shape or array.dtype != (np.uint16 if kind == "lengths" else np.float16):
            yield (
                f"{folder / name} holds {array.dtype} of shape {array.shape}, expected (count, "
                f"{', '.join(map(str, shape))})"
            )
        elif kind != "lengths" and (num_bad := int(array.size - np.isfinite(array).sum())):
            yield f"{folder / name}: {num_bad:,} of {array.size:,} numbers are not finite"
    # Files that are damaged are not counted.
    yield from (
        f"{folder} has {counts[kind]:,} {kind}, expected {count:,}"
        for kind, (count, _) in expected.items()
        if counts[kind] > count
    )
