"""Manifests: a data set as a TOML file with its sources, files, license and the counts that papers report.

A path of a source may be a URL, which is downloaded without a known checksum.

    name = "mine"                       # default: the stem of the file name
    license = "CC BY 4.0"
    protocol = "1,000 photos of May"    # what the test split reproduces; needs [expected.test]

    [expected.test]
    images = 1000
    captions = 5000

    [files."mine.zip"]                  # a file to download; all other paths are relative to the manifest's folder
    url = "hf://datasets/me/mine@main/mine.zip"
    checksum = "sha256:..."

    [[sources]]                         # in order of preference
    name = "hub"
    format = "karpathy"                 # a key of readers.FORMATS; the other fields are those of its class
    annotations = "dataset_mine.json"
    images = "mine.zip"

If there is only one source, its fields may stand at the top level, without `[[sources]]`.
"""

from __future__ import annotations

import os
import shlex
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcdctl.core import config, files, machine
from dcdctl.core.arguments import optional_path, path, paths
from dcdctl.core.data.corpus import Corpus
from dcdctl.core.data.corpus_json import JOIN, manifest_files, manifest_path, prepare_command
from dcdctl.core.data.job import PrepareJob
from dcdctl.core.data.readers import FORMATS
from dcdctl.core.data.readers.rows import Paths, SourceConfig, SplitCounts, check_splits
from dcdctl.core.data.text_encoding import AS_CSV, SPREADSHEET_SUFFIXES
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.places import check_utf8, url_of
from dcdctl.core.progress import counted
from dcdctl.core.toml import apply_sets, assignments, parse_toml

BYTES_PER_IMAGE, BYTES_PER_CAPTION = 16, 64
"""Of a corpus that is only counted: where the captions of an image start, and a text."""
_COUNTS_HINT = (
    "results would not be comparable: find what is missing, drop the split with --splits, or add --set protocol=none"
)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that a source needs: where to download it, or where to request a file that can only be placed by hand."""

    url: str = ""
    """https://..., or hf://datasets/OWNER/NAME@REVISION/PATH, where PATH may contain a *."""
    checksum: str = ""
    """sha256:HEX or md5:HEX."""
    size: int | None = None
    """Bytes."""
    also: tuple[str, ...] = ()
    """Other names of the file in the folder of placed files; also names of folders with the same content."""
    by_hand: str = ""
    """The page where a person can request the file."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set that can be prepared."""

    name: str
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name, in order of preference."""
    files: dict[str, SourceFile] = field(default_factory=dict)
    expected: dict[str, SplitCounts] = field(default_factory=dict)
    """The counts in the papers, by split."""
    protocol: str = ""
    """The published protocol that the test split reproduces; if empty, the counts are not checked."""
    summary: str = ""
    license: str = ""
    citation: str = ""
    homepage: str = ""

    def __post_init__(self) -> None:
        check_splits("expected", self.expected)
        if not files.is_file_name(self.name):  # it names the folder of the corpus
            raise ConfigError(
                f"name {self.name!r} is not the name of a folder", hint="write letters and digits, without / or .."
            )


def find_manifest(name: str, sets: Sequence[str] = ()) -> Manifest:
    """The manifest with that name, or in that .toml file, with `key=value` overrides; InputError lists the known
    names."""
    if (path := manifest_path(name)) is None:
        known = ", ".join(manifest_files())
        raise InputError(
            f"no manifest {name!r}",
            hint=f"known: {known}; or a .toml file, or --karpathy FILE --images DIR, or --csv FILE --images DIR",
        )
    return parse_toml(path, lambda table: _parse_manifest(table, path.stem, path.parent), sets)


def counted_corpus(place: Path, split: str, max_images: int | None = None) -> Corpus | None:
    """The corpus that a manifest makes, known by its counts alone: its captions are spread evenly over its images, and
    each has a text of its own. For a look ahead before anything is downloaded.

    None if the place is a folder or names no manifest; InputError if the manifest has no counts of the split, or ones
    that no corpus has.
    """
    if place.is_dir() or manifest_path(str(place)) is None:
        return None
    expected, names = find_manifest(str(place)).expected, split.split(JOIN)
    if not expected.keys() >= set(names):
        counted_splits = ", ".join(expected) or "no split"
        raise InputError(
            f"the manifest {place} has the counts of {counted_splits}, not of {split}",
            hint=f"run `{prepare_command(place)}`, and name the folder",
        )
    whole, num_captions = np.sum([astuple(expected[name]) for name in names], axis=0).tolist()
    if not 0 < whole <= num_captions < 2**31:
        raise InputError(f"{place} has {whole:,} images and {num_captions:,} captions, expected one or more per image")
    # Before an array and a text are made of each.
    machine.require_memory(
        BYTES_PER_IMAGE * whole + BYTES_PER_CAPTION * num_captions,
        f"the {num_captions:,} captions that {place} counts",
        "correct the counts, or name a prepared corpus",
    )
    num_images = min(whole, max_images or whole)
    corpus = Corpus(place, split, name=place.name, fingerprint="", shards=(), num_images=num_images)
    corpus._caption_starts = np.arange(num_images + 1) * num_captions // whole
    corpus.captions, corpus.caption_weights = list(map(str, range(corpus.num_captions))), None
    return corpus


def choose_manifest(job: PrepareJob) -> Manifest:
    """The data set that a user names; InputError unless there is exactly one."""
    flags = {"--karpathy": job.karpathy, "--csv": job.csv, "--jsonl": job.jsonl}
    tables = {flag: path(ref) for flag, ref in flags.items() if ref is not None}
    images, queries = paths(job.images), paths(job.queries)
    given = list(tables) if job.manifest is None else ["a manifest", *tables]
    for place in (*images, *queries, *tables.values(), *([] if job.out is None else [path(job.out)])):
        check_utf8(place)
    places = {"images": list(map(str, images)), "queries": list(map(str, queries))}
    # Images, texts or both without a table that pairs them are a pool.
    if len(given) > 1 or not (given or any(places.values())):
        problem = f"{' and '.join(given)} are both given" if given else "no data set is given"
        raise InputError(
            f"{problem}: expected one of a manifest name, --karpathy, --csv or --jsonl, or --queries for a pool",
            hint="dcdctl prepare --list shows the manifests",
        )
    if job.manifest is not None:
        name = os.fspath(job.manifest)
        _check_no_table(name, images)
        if any(places.values()):
            option = "--images" if images else "--queries"
            raise InputError(
                f"{option} goes with --karpathy, --csv or --jsonl",
                hint="a manifest names its own files; --from DIR says where they are",
            )
        return find_manifest(name, _sets(job))
    if not given:
        table, first = {"format": "pool", **places}, next(iter((*images, *queries)))
    elif not images:
        raise InputError(f"{given[0]} also needs images", hint="add --images FOLDER or --images FILE.zip")
    else:
        [(flag, first)] = tables.items()
        annotations = "annotations" if flag == "--karpathy" else "pairs"
        table = {"format": flag.removeprefix("--"), annotations: str(first), **places}
    return _parse_manifest(apply_sets(table, _sets(job)), default_name(first, optional_path(job.out)), Path())


def _sets(job: PrepareJob) -> list[str]:
    """What changes in the manifest, `overrides` last."""
    return [*([] if job.hold_out is None else [f"hold_out={job.hold_out}"]), *assignments(job.overrides)]


def default_name(file: Path, out: Path | None = None) -> str:
    """The name of the folder of a corpus, or else of a file of captions, without the characters that no folder may
    have.

    >>> default_name(Path("dataset_birds.json")), default_name(Path("a.csv"), out=Path("data/my birds"))
    ('birds', 'my birds')
    """
    # Karpathy's files are named dataset_NAME.json. The query of a URL may hold a credential.
    stem = Path(file.name.partition("?")[0]).stem.removeprefix("dataset_")
    folder = "" if out is None else files.to_file_name(out.resolve().name)
    return folder or files.to_file_name(stem) or "corpus"


_OPTION_OF = {
    **dict.fromkeys((".csv", ".tsv"), "--csv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "--jsonl"),
    ".json": "--karpathy",
}


def _check_no_table(name: str, images: Sequence[Path]) -> None:
    """InputError for a file of captions or a folder in the place of a manifest, with the command that takes it."""
    path = Path(name)
    if manifest_path(name) is not None:
        return
    if (option := _OPTION_OF.get(path.suffix.lower())) is not None:
        words = [word for place in images or [Path("DIR")] for word in ("--images", str(place))]
        command = shlex.join(["dcdctl", "prepare", option, name, *words])
        raise InputError(f"{name} is a file of captions, expected a manifest", hint=f"type `{command}`")
    if path.suffix.lower() in SPREADSHEET_SUFFIXES:
        raise InputError(f"{name} is a spreadsheet, expected a manifest", hint=f"{AS_CSV}, and name that with --csv")
    if path.is_dir():
        raise InputError(
            f"{name} is a folder, expected a manifest",
            hint=f"name its captions too: `{shlex.join(['dcdctl', 'prepare', '--csv', 'FILE', '--images', name])}`",
        )


def list_data_sets() -> list[dict[str, Any]]:
    """JSON-able: the manifests that ship with dcdctl, with counts, sources, files and licenses."""
    documents = []
    for name in manifest_files():
        manifest = find_manifest(name)
        shown = ("name", "summary", "license", "citation", "homepage", "protocol")
        document = {key: getattr(manifest, key) for key in shown}
        document["expected"] = config.to_table(manifest.expected)
        document["sources"] = [{"name": name, "format": source.format} for name, source in manifest.sources.items()]
        document["files"] = config.to_table(manifest.files)
        documents.append(document)
    return documents


def check_protocol(
    manifest: Manifest, counts: Mapping[str, SplitCounts], splits: Sequence[str], max_images: int | None
) -> str:
    """The published protocol that a corpus with these counts reproduces, or "none: " and the reason.

    InputError if the counts of the test split differ from the papers', unless the corpus is limited on purpose.
    """
    # none is what --set protocol=none gives up the comparison with.
    if manifest.protocol in ("", "none"):
        return "none: the data set names none"
    if max_images is not None:
        return f"none: only the first {counted(max_images, 'images')} of each split"
    requested = splits or list(manifest.expected)
    if "test" not in requested:
        return "none: without the test split"
    if (difference := _difference(manifest, counts, "test")) is not None:
        raise InputError(f"{manifest.name}: {difference}", hint=_COUNTS_HINT)
    # Other splits do not change the results on test, so their differences are only recorded.
    differences = [_difference(manifest, counts, split) for split in requested if split != "test"]
    return "; but ".join([manifest.protocol, *filter(None, differences)])


def path_fields(source: type[SourceConfig]) -> dict[str, Any]:
    """The fields of a source that are paths, and their types: Path, Path | None, Paths, or a dict of Path or Paths by
    split.

    >>> from dcdctl.core.data.readers import LavisSource
    >>> list(path_fields(LavisSource))
    ['queries', 'annotations', 'images']
    """
    return {name: hint for name, hint in typing.get_type_hints(source).items() if _has_path(hint)}


def _has_path(hint: Any) -> bool:
    return hint is Path or any(_has_path(argument) for argument in typing.get_args(hint))


def _difference(manifest: Manifest, counts: Mapping[str, SplitCounts], split: str) -> str | None:
    expected, actual = manifest.expected.get(split), counts.get(split, SplitCounts(images=0, captions=0))
    if expected is None or actual == expected:
        return None
    actual_counts = f"{counted(actual.images, 'images')} and {counted(actual.captions, 'captions')}"
    return f"split {split!r} has {actual_counts}, the papers' has {expected.images:,} and {expected.captions:,}"


def _parse_manifest(table: Mapping[str, Any], default_name: str, folder: Path) -> Manifest:
    """A manifest from its TOML tables; relative paths start at the folder. Its sources are those of `[[sources]]`, or a
    single one whose fields stand among its own."""
    keys = {field.name for field in fields(Manifest)} - {"sources"}
    described = config.build(Manifest, {"name": default_name, **{key: table[key] for key in table if key in keys}})
    rest = {key: value for key, value in table.items() if key not in keys}
    is_single = "sources" not in rest
    tables = [rest] if is_single else rest.pop("sources")
    if not is_single and rest:
        raise ConfigError(
            f"{next(iter(rest))} is outside [[sources]]", hint="move the fields of a source into its [[sources]] table"
        )
    if not isinstance(tables, list) or not tables or not all(isinstance(item, Mapping) for item in tables):
        raise ConfigError("sources must be a list of tables", hint="write [[sources]] before each")

    def to_path(text: str) -> Path:
        # The name of a file to download stays as it is, so that `source_files` finds it.
        return Path(text) if text in described.files or url_of(text) is not None else folder / text

    sources: dict[str, SourceConfig] = {}
    for number, item in enumerate(tables, start=1):
        name = str(item.get("format", number) if is_single else item.get("name", number))
        if name in sources:
            raise ConfigError(f"two sources have the name {name!r}")
        sources[name] = _parse_source(item, to_path)
    return replace(described, sources=sources)


def _parse_source(table: Mapping[str, Any], to_path: Callable[[str], Path]) -> SourceConfig:
    if table.get("format") not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {table.get('format')!r}")
    source = FORMATS[table["format"]]
    types = path_fields(source)
    values = {key: value for key, value in table.items() if key not in ("format", "name")}
    paths = {key: _to_paths(value, types[key], to_path) for key, value in values.items() if key in types}
    return config.build(source, values | paths)


def _to_paths(value: Any, hint: Any, to_path: Callable[[str], Path]) -> Any:
    """A value of a manifest with paths in place of text; a single text may stand for a list. `config.build` checks all
    other values."""
    if isinstance(value, str):
        return [to_path(value)] if hint == Paths else to_path(value)
    if isinstance(value, list) and hint == Paths:
        return [to_path(item) if isinstance(item, str) else item for item in value]
    if isinstance(value, Mapping) and typing.get_origin(hint) is dict:
        return {key: _to_paths(item, typing.get_args(hint)[1], to_path) for key, item in value.items()}
    return value
