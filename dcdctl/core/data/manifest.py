"""What a data set is: a TOML file that names its sources, its files, its licence and the counts the papers report on.

    name = "mine"                       # default: the stem of the file
    licence = "CC BY 4.0"
    protocol = "1,000 photos of May"    # what the test split serves; only with [expected.test]

    [expected.test]
    images = 1000
    captions = 5000

    [files."mine.zip"]                  # a file to be fetched; any other name is a path seen from this file's folder
    url = "hf://datasets/me/mine@main/mine.zip"
    checksum = "sha256:..."

    [[sources]]                         # in order of preference
    name = "hub"
    format = "karpathy"                 # one of readers.FORMATS, with the fields of its class
    annotations = "dataset_mine.json"
    images = "mine.zip"

Where there is one source only, its fields may stand at the top, without `[[sources]]`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcdctl.core import config, files
from dcdctl.core.data.readers import FORMATS
from dcdctl.core.data.readers.rows import Paths, SourceConfig, check_splits
from dcdctl.core.errors import ConfigError, InputError

HEAD = ("name", "summary", "licence", "citation", "homepage", "protocol")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that a source needs: where it is fetched from, or what to ask for where it can only be placed by hand."""

    url: str = ""
    """https://..., or hf://datasets/OWNER/NAME@REVISION/PATH, in which PATH may hold a *."""
    checksum: str = ""
    """sha256:HEX or md5:HEX."""
    size: int | None = None
    """Bytes."""
    also: tuple[str, ...] = ()
    """Other names under which it may have been placed, folders of the same content among them."""
    by_hand: str = ""
    """Where a person can ask for it."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a split has in the papers."""

    images: int
    captions: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set that can be prepared."""

    name: str
    sources: dict[str, SourceConfig]
    """By name, the best first."""
    files: dict[str, SourceFile] = field(default_factory=dict)
    expected: dict[str, Expected] = field(default_factory=dict)
    protocol: str = ""
    """What results on the test split can be compared with; empty: nothing is checked."""
    summary: str = ""
    licence: str = ""
    citation: str = ""
    homepage: str = ""

    def __post_init__(self) -> None:
        check_splits("expected", self.expected)


def manifests_folder() -> Path:
    """Where the manifests are."""
    return files.packaged("data_manifests")


def known_manifests() -> list[Manifest]:
    """The manifests that come with dcdctl, by name."""
    return [_read(path, ()) for path in sorted(manifests_folder().glob("*.toml"))]


def find_manifest(name: str, sets: Sequence[str] = ()) -> Manifest:
    """The manifest of that name, or of that .toml file, with `key=value` overrides; InputError lists the known names."""
    path = Path(name) if name.endswith(".toml") else manifests_folder() / f"{name}.toml"
    if not path.is_file() or ("/" in name and not name.endswith(".toml")):
        names = ", ".join(item.stem for item in sorted(manifests_folder().glob("*.toml")))
        raise InputError(
            f"no manifest {name!r}", hint=f"known: {names}; or a .toml file, or --karpathy FILE --images DIR, or --csv FILE --images DIR"
        )
    return _read(path, sets)


def choose_manifest(
    name: str | None,
    *,
    karpathy: Path | None = None,
    csv: Path | None = None,
    jsonl: Path | None = None,
    images: Sequence[Path] = (),
    sets: Sequence[str] = (),
) -> Manifest:
    """The one data set that the flags of `dcdctl prepare` name."""
    flags = {"--karpathy": karpathy, "--csv": csv, "--jsonl": jsonl}
    given = [*(["a manifest"] if name is not None else []), *(flag for flag, value in flags.items() if value is not None)]
    if len(given) != 1:
        found = f"{' and '.join(given)} both" if given else "no data set given"
        message = f"{found}: one of a manifest name, --karpathy, --csv or --jsonl is wanted"
        raise InputError(message, hint="dcdctl prepare --list shows the manifests")
    if name is not None:
        if images:
            raise InputError(
                "--images goes with --karpathy, --csv or --jsonl", hint="a manifest names its own images; --from DIR says where they are"
            )
        return find_manifest(name, sets)
    if not images:
        raise InputError(f"{given[0]} wants its pictures too", hint="add --images FOLDER or --images FILE.zip")
    flag, path = given[0], flags[given[0]]
    assert path is not None
    table = {
        "format": flag.removeprefix("--"),
        "annotations" if flag == "--karpathy" else "pairs": str(path),
        "images": [str(one) for one in images],
    }
    return _parse(config.apply_sets(table, sets), path.stem.removeprefix("dataset_"), Path())


def _read(path: Path, sets: Sequence[str]) -> Manifest:
    return _parse(config.apply_sets(config.read_toml(path), sets), path.stem, path.parent)


def _parse(table: Mapping[str, Any], default_name: str, base: Path) -> Manifest:
    head = {"name": default_name} | {key: table[key] for key in HEAD if key in table}
    for key, value in head.items():
        if not isinstance(value, str):
            raise ConfigError(f"{key} must be text, got {value!r}")
    parts = {key: table[key] for key in ("files", "expected") if key in table}
    rest = {key: value for key, value in table.items() if key not in head and key not in parts}
    listed = rest.pop("sources", None)
    if listed is not None and rest:
        raise ConfigError(f"{next(iter(rest))} stands beside [[sources]]", hint="the fields of a source stand in its own table")
    tables = [rest] if listed is None else listed
    if not isinstance(tables, list) or not tables or not all(isinstance(one, Mapping) for one in tables):
        raise ConfigError("sources must be a list of tables", hint="write [[sources]] before each")
    files = config.build(_Files, {"files": parts.get("files", {})}).files
    sources: dict[str, SourceConfig] = {}
    for number, one in enumerate(tables, start=1):
        name = str(one.get("name", number if listed else one.get("format", number)))
        if name in sources:
            raise ConfigError(f"two sources have the name {name!r}")
        sources[name] = _source({key: value for key, value in one.items() if key != "name" or listed is None}, files, base)
    expected = config.build(_Counts, {"expected": parts.get("expected", {})}).expected
    return Manifest(**head, sources=sources, files=files, expected=expected)


@dataclass(frozen=True)
class _Files:
    files: dict[str, SourceFile]


@dataclass(frozen=True)
class _Counts:
    expected: dict[str, Expected]


def _source(table: Mapping[str, Any], files: Mapping[str, SourceFile], base: Path) -> SourceConfig:
    if table.get("format") not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {table.get('format')!r}")
    source = FORMATS[table["format"]]
    types = path_fields(source)

    def to_path(text: str) -> Path:
        # The name of a file to fetch stays as it is; other paths are relative to the manifest's folder.
        return Path(text) if text in files else base / text

    fields = {key: value for key, value in table.items() if key != "format"}
    return config.build(source, {key: _to_paths(value, types[key], to_path) if key in types else value for key, value in fields.items()})


def path_fields(source: type[SourceConfig]) -> dict[str, Any]:
    """The fields of a source that are paths, and their types: Path, Path | None, Paths, or a dict of Path or Paths by split.

    >>> from dcdctl.core.data.readers.lavis import LavisSource
    >>> list(path_fields(LavisSource))
    ['annotations', 'images']
    """
    return {name: hint for name, hint in typing.get_type_hints(source).items() if _has_path(hint)}


def _has_path(hint: Any) -> bool:
    return hint is Path or any(_has_path(argument) for argument in typing.get_args(hint))


def _to_paths(value: Any, hint: Any, to_path: Callable[[str], Path]) -> Any:
    """A value of a manifest with paths in place of text; a single text may stand for a list. Other values are left to `config.build`."""
    if isinstance(value, str):
        return [to_path(value)] if hint == Paths else to_path(value)
    if isinstance(value, list) and hint == Paths:
        return [to_path(item) if isinstance(item, str) else item for item in value]
    if isinstance(value, Mapping) and typing.get_origin(hint) is dict:
        return {key: _to_paths(item, typing.get_args(hint)[1], to_path) for key, item in value.items()}
    return value


COUNTS_HINT = (
    "results on it could not be compared: find what is missing, or leave the split out with --splits, or give up with --set protocol=none"
)


def serves(manifest: Manifest, found: Mapping[str, Expected], splits: Sequence[str], max_images: int | None) -> str:
    """What results on a corpus with these counts can be compared with; the reason, after "none:", where with nothing.

    InputError if the test split has other counts than the papers' and is not cut short on purpose.
    """
    if manifest.protocol in ("", "none"):
        return "none: the data set names none"
    if max_images is not None:
        return f"none: only the first {max_images:,} images of each split"
    wanted = splits or list(manifest.expected)
    if "test" not in wanted:
        return "none: without the test split"
    if (said := _differs(manifest, found, "test")) is not None:
        raise InputError(f"{manifest.name}: {said}", hint=COUNTS_HINT)
    others = [said for split in wanted if split != "test" and (said := _differs(manifest, found, split)) is not None]
    return "; but ".join([manifest.protocol, *others])


def _differs(manifest: Manifest, found: Mapping[str, Expected], split: str) -> str | None:
    wanted, there = manifest.expected.get(split), found.get(split, Expected(images=0, captions=0))
    if wanted is None or there == wanted:
        return None
    told = f"{there.images:,} images and {there.captions:,} captions"
    return f"split {split!r} has {told}, the papers' has {wanted.images:,} and {wanted.captions:,}"
