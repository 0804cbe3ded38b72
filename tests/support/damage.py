"""Damages: an image of a corpus that is no image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dcdctl.core import artifacts
from dcdctl.core.data.corpus import read_shard, write_shard


def damage_image(folder: Path, split: str, row: int, data: bytes = b"no image") -> str:
    """Replace the bytes of an image in the first shard of a split, with checksums that fit; returns the id of the image."""
    document = artifacts.read_document(folder / "corpus.json")
    shard = document["splits"][split]["shards"][0]
    path = folder / shard["file"]
    rows = list(read_shard(path))
    rows[row] = replace(rows[row], data=data)
    list(write_shard(path, rows))
    shard |= artifacts.seal_of(path)
    artifacts.write_document(folder / "corpus.json", document)
    return rows[row].image_id
