"""The shards of a corpus: written one by one, and taken up again by a run that goes on where another was killed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL
import pyarrow as pa

from dcdctl.core import config, corpus, files, leakage, pictures
from dcdctl.core.errors import InputError
from dcdctl.core.formats import SPLITS
from dcdctl.core.leakage import Leakage
from dcdctl.core.picture_pool import ReadAll
from dcdctl.core.progress import Advance
from dcdctl.core.sources import SKIP_HINT, Skipped, SourceRow

PLAN_FILE = "prepare.json"
SHARD_FILE = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet")


@dataclass(kw_only=True)
class Shard:
    """A finished shard: its entry in corpus.json, and what the split as a whole is counted from."""

    entry: dict[str, Any]
    captions: int
    row_digests: list[bytes]
    image_ids: list[str]
    image_digests: list[bytes]
    hashes: list[int]
    """The difference hash of each picture, see `pictures.difference_hash`."""
    skipped: list[Skipped]

    def count(self, row: corpus.CorpusRow) -> None:
        """Take a written row into account."""
        image_digest = row.image_digest()
        self.captions += len(row.captions)
        self.row_digests.append(row.digest(image_digest))
        self.image_ids.append(row.image_id)
        self.image_digests.append(image_digest)


@dataclass(kw_only=True)
class ShardProgress:
    """prepare.json: which plan the folder is being filled by, and the shards that are finished."""

    folder: Path
    plan: dict[str, Any]
    shards: dict[str, dict[str, Any]]

    @staticmethod
    def load(folder: Path, digest: str) -> ShardProgress:
        """The progress of the same plan by the same library versions; of another one nothing is kept."""
        plan = {"plan": digest, "pillow": PIL.__version__, "pyarrow": pa.__version__}
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_partials(folder)
        try:
            found = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
            shards = found.pop("shards")
        except (OSError, ValueError, KeyError, AttributeError):
            found, shards = None, {}
        progress = ShardProgress(folder=folder, plan=plan, shards=shards if found == plan else {})
        for path in sorted(folder.iterdir()):
            if SHARD_FILE.fullmatch(path.name) and path.name not in progress.shards:
                path.unlink()
        progress.save()
        return progress

    def save(self) -> None:
        files.write_json(self.folder / PLAN_FILE, self.plan | {"shards": self.shards})

    def add(self, shard: Shard) -> None:
        hashes = [f"{value:016x}" for value in shard.hashes]
        self.shards[shard.entry["file"]] = {"entry": shard.entry, "skipped": config.to_table(shard.skipped), "hashes": hashes}
        self.save()

    def finished(self, name: str) -> Shard | None:
        """A shard that an earlier run finished, if its file is still what that run wrote."""
        path = self.folder / name
        if "hashes" not in self.shards.get(name, {}) or not path.is_file() or files.sha256_of(path) != self.shards[name]["entry"]["sha256"]:
            return None
        known = self.shards[name]
        shard = _empty_shard([Skipped(**skip) for skip in known["skipped"]], [int(value, 16) for value in known["hashes"]])
        for row in corpus.read_shard(path):
            shard.count(row)
        shard.entry = known["entry"]
        return shard


def write_shard(path: Path, rows: Sequence[SourceRow], read: ReadAll, *, skip_bad: bool, advance: Advance) -> Shard:
    shard = _empty_shard([], [])

    def good_rows() -> Iterator[corpus.CorpusRow]:
        for row, result in zip(rows, read(row.picture for row in rows), strict=True):
            advance(1)
            if isinstance(result, pictures.CheckedPicture):
                shard.hashes.append(result.hash)
                yield _corpus_row(row, result)
            elif skip_bad:
                shard.skipped.append(Skipped(row=row.where, image=row.path, reason=result.reason))
            else:
                raise InputError(f"{row.where} {json.dumps(row.path, ensure_ascii=False)}: {result.reason}", hint=SKIP_HINT)

    for written in corpus.write_shard(path, good_rows()):
        shard.count(written)
    shard.entry = {"file": path.name, "sha256": files.sha256_of(path), "rows": len(shard.row_digests)}
    return shard


def _empty_shard(skipped: list[Skipped], hashes: list[int]) -> Shard:
    return Shard(entry={}, captions=0, row_digests=[], image_ids=[], image_digests=[], hashes=hashes, skipped=skipped)


def leakage_of(splits: Mapping[str, Sequence[Shard]]) -> Leakage:
    return leakage.find(
        {
            split: leakage.SplitPictures(
                image_ids=[one for shard in shards for one in shard.image_ids],
                digests=[one for shard in shards for one in shard.image_digests],
                hashes=np.array([one for shard in shards for one in shard.hashes], dtype=np.uint64),
            )
            for split, shards in splits.items()
        }
    )


def _corpus_row(row: SourceRow, picture: pictures.CheckedPicture) -> corpus.CorpusRow:
    # A picture that was made smaller may have become a PNG.
    path = str(PurePosixPath(row.path).with_suffix(".png")) if picture.became_png else row.path
    return corpus.CorpusRow(
        image_id=row.image_id,
        path=path,
        data=picture.data,
        width=picture.width,
        height=picture.height,
        captions=row.captions,
        caption_ids=row.caption_ids,
    )
