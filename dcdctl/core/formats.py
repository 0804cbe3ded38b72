"""The forms in which captioned pictures come, and what has to be said of each for it to be read.

Paths are those of files on this machine, or names of files that the manifest says where to fetch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dcdctl.core.errors import ConfigError

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"restval": "train", "validation": "val", "dev": "val"}
"""COCO's `restval` images belong to train: 82,783 + 30,504. The others are what the Hub and Flickr8k call val."""
Paths = tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class ScenesSource:
    """The built-in corpus, see `dcdctl.core.scenes`."""

    counts: dict[str, int]
    """Images a split; 0 leaves a split out."""
    side_px: int = 128
    seed: int = 0
    captions: int = 5
    """Captions an image, 1 to 20."""

    def __post_init__(self) -> None:
        check_splits("counts", self.counts)
        for split, count in self.counts.items():
            if count < 0:
                raise ConfigError(f"counts.{split} must be 0 or more, got {count}")
        if not 16 <= self.side_px <= 4096:
            raise ConfigError(f"side_px must lie in [16, 4096], got {self.side_px}")
        if not 1 <= self.captions <= 20:
            raise ConfigError(f"captions must lie in [1, 20], got {self.captions}")


@dataclass(frozen=True, kw_only=True)
class KarpathySource:
    """A JSON file in the form of Karpathy's splits."""

    annotations: Path
    images: Paths
    """Folders, zips and tars."""


@dataclass(frozen=True, kw_only=True)
class LavisSource:
    """JSON lists in the form of LAVIS: `image` and `caption`, a row a caption or a list of captions a row."""

    annotations: dict[str, Path]
    """By split."""
    images: Paths

    def __post_init__(self) -> None:
        check_splits("annotations", self.annotations)


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """A CSV or JSONL file: columns image and caption, or those of the Hub's image folders, or of nlphuji/flickr30k."""

    pairs: Path
    images: Paths
    form: Literal["csv", "jsonl"] = "csv"
    split: str = "train"
    """The split of all rows where the file has no split column."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """Parquet files with pictures in them, as on the Hub; captions as a list, as caption_0, caption_1, ... or a row a caption."""

    rows: dict[str, Paths]
    """By split, or `all` where a column says the split, or `splits` does; names may hold a *."""
    image_column: str = "image"
    id_column: str = ""
    """What tells images apart, such as filename; the path in the image column where empty."""
    caption_column: str = ""
    """A dot leads into a struct: sentences.raw. Found by its name where empty."""
    splits: Path | None = None
    """A JSON of Karpathy's that says each file name's split; pictures it does not name are left out."""

    def __post_init__(self) -> None:
        if set(self.rows) != {"all"}:
            check_splits("rows", self.rows)


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource:
    """Tars of pictures, each followed by its captions: KEY.jpg with KEY.txt, a caption a line, or with KEY.json."""

    shards: dict[str, Paths]
    """By split; names may hold a *."""

    def __post_init__(self) -> None:
        check_splits("shards", self.shards)


Source = ScenesSource | KarpathySource | LavisSource | TableSource | ParquetSource | WebDatasetSource
FORMATS: dict[str, type[Source]] = {
    "scenes": ScenesSource,
    "karpathy": KarpathySource,
    "lavis": LavisSource,
    "csv": TableSource,
    "jsonl": TableSource,
    "parquet": ParquetSource,
    "webdataset": WebDatasetSource,
}


def check_splits(where: str, given: Mapping[str, Any]) -> None:
    """ConfigError for a key that is no split."""
    for split in given:
        if split not in SPLITS:
            raise ConfigError(f"{where}.{split} is no split", hint=f"known splits: {', '.join(SPLITS)}")
