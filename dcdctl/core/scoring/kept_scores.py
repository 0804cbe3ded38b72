"""The scores of a shard that is not finished, in a file that grows with each batch: a run that was killed asks a
teacher for no pair again.

    record = digest of the batch's pairs (16 bytes), their number (int64), scores (float32), digest of it all (8 bytes)

Reading ends at the first record that is cut short or damaged, and the next one takes its place.

Shape letters: P pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dcdctl.core.data import Indices, Scores

_PAIRS, _COUNT, _CHECK = 16, 8, 8


@dataclass(frozen=True)
class KeptScores:
    """The scores in such a file, by the pairs of a batch."""

    path: Path
    known: dict[bytes, Scores] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> KeptScores:
        """The scores that an earlier run kept; none if there is no file."""
        kept = cls(path)
        if path.exists():
            data, whole = path.read_bytes(), 0
            while (record := _record_at(data, whole)) is not None:
                kept.known[record[:_PAIRS]] = np.frombuffer(record[_PAIRS + _COUNT : -_CHECK], dtype=np.float32)
                whole += len(record)
            with path.open("r+b") as file:
                file.truncate(whole)
        return kept

    def score(self, image_P: Indices, text_P: Indices, ask: Callable[[], Tensor]) -> Tensor:
        """The scores of a batch: those that were kept, or what `ask` gives, which is kept if it is finite."""
        pairs = hashlib.blake2b(image_P.tobytes() + text_P.tobytes(), digest_size=_PAIRS).digest()
        if pairs in self.known:
            return torch.from_numpy(self.known[pairs].copy())
        scores_P = ask()
        if scores_P.isfinite().all():
            with self.path.open("ab") as file:
                file.write(_record(pairs, scores_P.cpu().numpy()))
        return scores_P


def _record(pairs: bytes, scores_P: Scores) -> bytes:
    return _checked(pairs + len(scores_P).to_bytes(_COUNT, "little") + scores_P.tobytes())


def _checked(content: bytes) -> bytes:
    return content + hashlib.blake2b(content, digest_size=_CHECK).digest()


def _record_at(data: bytes, start: int) -> bytes | None:
    """The record at a place; None if it is not whole."""
    count = int.from_bytes(data[start + _PAIRS : start + _PAIRS + _COUNT], "little")
    record = data[start : start + _PAIRS + _COUNT + 4 * count + _CHECK]
    is_whole = (
        len(record) > _CHECK and hashlib.blake2b(record[:-_CHECK], digest_size=_CHECK).digest() == record[-_CHECK:]
    )
    return record if is_whole else None
