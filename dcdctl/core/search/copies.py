"""Images that are the same: a file of the same bytes takes the vectors that are there, and copies and look-alikes are
found among all rows.

Two images look alike if their difference hashes are within `NEAR_BITS`, and their vectors are closer than those of
nearly all unlike images: the hashes of blank pages, dark photos and drawings of one layout are near too. How close that
is depends on the model, so it is measured in each index.

Shape letters: R rows, D width, P pairs, S sampled rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdctl.core.data import NEAR_BITS
from dcdctl.core.search import image_files, part_files
from dcdctl.core.search.comparison import Comparison
from dcdctl.core.search.exact import Floats, Rows, spread_over
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.readers import READERS
from dcdctl.core.search.storage import IndexDocument
from dcdctl.core.search.stored import Stored, StoredTokens

UNLIKE_BITS = 16
"""Images whose hashes differ in more bits are unlike. Of random photos half of the 64 bits differ."""
ABOVE_UNLIKE = 0.999
"""Share of the pairs of unlike images whose cosine look-alikes exceed."""
MOST_NEEDED = 0.95
"""A cosine that is enough for any model: a few unlike images, or an untrained model, may have none below."""
SAMPLE = 1000
_BLOCK_BITS = 16
_PAIR_BLOCK = 65_536
"""Pairs whose vectors are compared together."""


def copy_known(found: Comparison) -> None:
    """Write the parts of images whose file has the bytes of a row, with the vectors of that row."""
    for number in found.part_numbers[found.num_embedded :]:
        images = found.images(number)
        rows = np.array([image.copied_from for image in images], dtype=np.int64)
        known = found.index.image_files.table.take(pa.array(rows))
        with found.build.write(image_files.facts_name(number)) as partial:
            image_files.write_copied_facts(partial, known, images)
        with found.build.write(part_files.vectors_name(number)) as partial:
            part_files.write_part(partial, images, found.index.stored(rows))


def group_rows(folder: Path, document: IndexDocument, facts: pa.Table) -> NDArray[np.int64]:
    """(R,): the first row of the copies and look-alikes of each row; its own if there are none."""
    group_R = np.arange(len(facts))
    reader = READERS[document.model.kind](folder, document)
    # Measured only where hashes are near, which is rare.
    least = cache(lambda: least_cosine(facts, reader.stored))
    for firsts, others, are_equal in _candidates(facts):
        is_pair = firsts != others
        firsts, others = firsts[is_pair], others[is_pair]
        if len(firsts) and not are_equal:
            is_alike = _cosines(reader.stored, firsts, others) >= least()
            firsts, others = firsts[is_alike], others[is_alike]
        for first, other in zip(firsts.tolist(), others.tolist(), strict=True):
            _join(group_R, first, other)
    # All rows at once, until each points to the first of its group.
    while not np.array_equal(group_R, group_R[group_R]):
        group_R = group_R[group_R]
    return group_R


def _join(group_R: NDArray[np.int64], one: int, other: int) -> None:
    """Make two rows members of one group, which is named by its first row."""
    one, other = _first_of_group(group_R, one), _first_of_group(group_R, other)
    group_R[max(one, other)] = min(one, other)


def _first_of_group(group_R: NDArray[np.int64], row: int) -> int:
    """The first row of the group of a row. A row points to an earlier one of its group, and the first to itself."""
    while group_R[row] != row:
        row = int(group_R[row])
    return row


def _candidates(facts: pa.Table) -> Iterator[tuple[Rows, Rows, bool]]:
    """Pairs of rows that may be the same image, and whether they are sure to be: their files have the same bytes."""
    digest_R = facts.column("sha256").combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    rows = np.flatnonzero(digest_R >= 0)
    _, firsts, numbers = np.unique(digest_R[rows], return_index=True, return_inverse=True)
    yield rows[firsts][numbers], rows, True
    # Of files of the same bytes, one stands for all.
    rows = np.sort(rows[firsts])
    hash_R = facts.column("dhash").combine_chunks().take(pa.array(rows))
    rows, hashes = rows[hash_R.is_valid().to_numpy(zero_copy_only=False)], hash_R.drop_null().to_numpy()
    order = np.argsort(hashes, kind="stable")
    rows, hashes = rows[order], hashes[order]
    is_equal = hashes[1:] == hashes[:-1]
    # With the one before and with the first, which need not look alike: blank pages have equal hashes.
    yield rows[:-1][is_equal], rows[1:][is_equal], False
    distinct, firsts, numbers = np.unique(hashes, return_index=True, return_inverse=True)
    yield rows[firsts][numbers], rows, False
    for one, other in _near(distinct):
        yield rows[firsts[one]], rows[firsts[other]], False


def _near(hashes: NDArray[np.uint64]) -> Iterator[tuple[Rows, Rows]]:
    """The places of pairs of distinct hashes within `NEAR_BITS`.

    Only hashes that have one of four blocks of bits in common are compared: three bits that differ are in three
    blocks at most.
    """
    for shift in range(0, 64, _BLOCK_BITS):
        block = (hashes >> np.uint64(shift)) & np.uint64((1 << _BLOCK_BITS) - 1)
        order = np.argsort(block, kind="stable")
        here, distance = np.arange(len(order)), 1
        while len(here):
            here = here[here + distance < len(order)]
            here = here[block[order[here]] == block[order[here + distance]]]
            one, other = order[here], order[here + distance]
            is_near = np.bitwise_count(hashes[one] ^ hashes[other]) <= NEAR_BITS
            if is_near.any():
                yield one[is_near], other[is_near]
            distance += 1


def least_cosine(facts: pa.Table, stored_of: Callable[[Rows], Stored]) -> float:
    """The cosine that look-alikes need in an index: more than `ABOVE_UNLIKE` of its unlike images have, in a sample."""
    hash_R = facts.column("dhash").combine_chunks()
    rows = np.flatnonzero(hash_R.is_valid().to_numpy(zero_copy_only=False))
    rows = rows[spread_over(len(rows), SAMPLE)]
    hash_S = hash_R.take(pa.array(rows)).to_numpy()
    directions_SD = _directions(stored_of(rows))
    is_unlike_SS = np.triu(np.bitwise_count(hash_S[:, None] ^ hash_S) > UNLIKE_BITS)
    cosines_P = (directions_SD @ directions_SD.T)[is_unlike_SS]
    return min(MOST_NEEDED, float(np.quantile(cosines_P, ABOVE_UNLIKE))) if len(cosines_P) else MOST_NEEDED


def _cosines(stored_of: Callable[[Rows], Stored], firsts: Rows, others: Rows) -> Floats:
    """(P,): the cosines of the vectors of pairs of rows."""
    cosine_P = np.zeros(len(firsts), np.float32)
    for start in range(0, len(firsts), _PAIR_BLOCK):
        here = slice(start, start + _PAIR_BLOCK)
        rows, places = np.unique(np.concatenate([firsts[here], others[here]]), return_inverse=True)
        one_PD, other_PD = np.split(_directions(stored_of(rows))[places], 2)
        cosine_P[here] = (one_PD * other_PD).sum(axis=1)
    return cosine_P


def _directions(stored: Stored) -> Floats:
    """A unit vector for each image: its own, or that of the sum of its tokens."""
    if isinstance(stored, StoredTokens):
        sums_RD = np.add.reduceat(stored.tokens_ND, np.cumsum(stored.counts_R) - stored.counts_R)
        return sums_RD / np.maximum(np.linalg.norm(sums_RD, axis=1, keepdims=True), np.float32(1e-12))
    return stored.unit_RD


@dataclass(frozen=True, kw_only=True)
class SameImages:
    """Images of an index that are copies of each other, or look alike."""

    images: tuple[str, ...]
    """Names, in the order of rows."""
    paths: tuple[Path | None, ...]
    """Where their files are; None for an image of a corpus."""
    num_bytes: tuple[int | None, ...]
    same_bytes: bool
    """Whether all files are the same."""

    def rows(self) -> list[dict[str, Any]]:
        """A row per image, as plain values."""
        rows = []
        for name, path, num_bytes in zip(self.images, self.paths, self.num_bytes, strict=True):
            where = None if path is None else str(path)
            rows.append({"image": name, "path": where, "bytes": num_bytes, "same_bytes": self.same_bytes})
        return rows

    def document(self) -> dict[str, Any]:
        """The group as plain values, for JSON."""
        images = [{key: value for key, value in row.items() if key != "same_bytes"} for row in self.rows()]
        return {"same_bytes": self.same_bytes, "images": images}


def find_copies(index: FolderIndex) -> list[SameImages]:
    """The groups of images of an index that are the same, in the order of their first rows."""
    live = np.flatnonzero(index.is_live)
    rows_of: dict[int, list[int]] = {}
    for row, group in zip(live.tolist(), index.image_files.group_R[live].tolist(), strict=True):
        rows_of.setdefault(group, []).append(row)
    stamps = index.image_files.stamps
    found = []
    for rows in rows_of.values():
        if len(rows) > 1:
            digests = {stamps.sha256_R[row] for row in rows}
            found.append(
                SameImages(
                    images=tuple(index.name(row) for row in rows),
                    paths=tuple(index.images.path(*index.source_image(row)) for row in rows),
                    num_bytes=tuple(stamps.bytes_R[row] for row in rows),
                    same_bytes=len(digests) == 1,
                )
            )
    return found
