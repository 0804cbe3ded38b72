"""What a data set is: a TOML file that names its format, its files, its licence. Also for data the user points at with flags.

    name = "mine"                      # default: the stem of the file
    format = "karpathy"                # karpathy | csv | scenes
    licence = "CC BY 4.0"
    annotations = "dataset_mine.json"  # relative to this file
    images = "mine.zip"                # a folder or a zip

Beside `name`, `format`, `summary`, `licence` and `citation` a manifest holds the fields of its format's class below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dcdctl
from dcdctl.core import config
from dcdctl.core.errors import ConfigError, InputError

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"restval": "train"}
"""COCO's `restval` images belong to train: 82,783 + 30,504."""
PATH_FIELDS = ("annotations", "pairs", "images")


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
        for split, count in self.counts.items():
            if split not in SPLITS:
                raise ConfigError(f"counts.{split} is no split", hint=f"known splits: {', '.join(SPLITS)}")
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
    images: Path
    """A folder or a zip."""


@dataclass(frozen=True, kw_only=True)
class CsvSource:
    """A CSV file with a row a caption: columns image, caption and, if there is one, split."""

    pairs: Path
    images: Path
    """A folder or a zip."""
    split: str = "train"
    """The split of all rows where the file has no split column."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")


Source = ScenesSource | KarpathySource | CsvSource
FORMATS: dict[str, type[Source]] = {"scenes": ScenesSource, "karpathy": KarpathySource, "csv": CsvSource}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set that can be prepared."""

    name: str
    source: Source
    summary: str = ""
    licence: str = ""
    citation: str = ""


def folder() -> Path:
    """Where the manifests are: inside an installed package, beside the package in a checkout."""
    package = Path(dcdctl.__file__).parent
    installed = package / "data_manifests"
    return installed if installed.is_dir() else package.parent / "data_manifests"


def known() -> list[Manifest]:
    """The manifests that come with dcdctl, by name."""
    return [_read(path, ()) for path in sorted(folder().glob("*.toml"))]


def summaries() -> list[dict[str, str]]:
    """Name, summary and licence of each manifest that comes with dcdctl."""
    return [{"name": item.name, "summary": item.summary, "licence": item.licence} for item in known()]


def find(name: str, sets: Sequence[str] = ()) -> Manifest:
    """The manifest of that name, or of that .toml file, with `key=value` overrides; InputError lists the known names."""
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    if not path.is_file() or ("/" in name and not name.endswith(".toml")):
        names = ", ".join(item.stem for item in sorted(folder().glob("*.toml")))
        raise InputError(
            f"no manifest {name!r}", hint=f"known: {names}; or a .toml file, or --karpathy FILE --images DIR, or --csv FILE --images DIR"
        )
    return _read(path, sets)


def choose(
    name: str | None, *, karpathy: Path | None = None, csv: Path | None = None, images: Path | None = None, sets: Sequence[str] = ()
) -> Manifest:
    """The one data set that the flags of `dcdctl prepare` name."""
    given = [what for what, value in (("a manifest", name), ("--karpathy", karpathy), ("--csv", csv)) if value is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} both" if given else "no data set given"
        raise InputError(
            f"{found}: one of a manifest name, --karpathy or --csv is wanted", hint="dcdctl prepare --list shows the manifests"
        )
    if name is not None:
        if images is not None:
            raise InputError("--images goes with --karpathy or --csv", hint="a manifest names its own images: --set images=PATH")
        return find(name, sets)
    if images is None:
        raise InputError(f"{given[0]} wants its pictures too", hint="add --images FOLDER or --images FILE.zip")
    if karpathy is not None:
        table = {"format": "karpathy", "annotations": str(karpathy), "images": str(images)}
        return _parse(config.apply_sets(table, sets), karpathy.stem.removeprefix("dataset_"), Path())
    assert csv is not None
    return _parse(config.apply_sets({"format": "csv", "pairs": str(csv), "images": str(images)}, sets), csv.stem, Path())


def _read(path: Path, sets: Sequence[str]) -> Manifest:
    return _parse(config.apply_sets(config.read_toml(path), sets), path.stem, path.parent)


def _parse(table: Mapping[str, Any], default_name: str, base: Path) -> Manifest:
    head = {"name": default_name} | {key: table[key] for key in ("name", "summary", "licence", "citation") if key in table}
    for key, value in head.items():
        if not isinstance(value, str):
            raise ConfigError(f"{key} must be text, got {value!r}")
    format_name = table.get("format")
    if format_name not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format_name!r}")
    fields = {key: value for key, value in table.items() if key not in head and key != "format"}
    fields |= {key: base / fields[key] for key in PATH_FIELDS if isinstance(fields.get(key), str)}
    return Manifest(**head, source=config.build(FORMATS[format_name], fields))
