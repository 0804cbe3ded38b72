"""The files of a manifest's source on this machine: placed by hand, downloaded before, or downloaded now."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core.data.download import cache
from dcdctl.core.data.file_systems import refuse_password
from dcdctl.core.data.manifest import Manifest, SourceFile, path_fields
from dcdctl.core.data.readers.rows import Paths, SourceConfig
from dcdctl.core.data.urls import copy_to, expand
from dcdctl.core.errors import InputError, SourceError
from dcdctl.core.places import shown, url_of
from dcdctl.core.progress import Track, silent


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where the files of a manifest may come from. None of this changes the corpus."""

    source: str = ""
    """The only source to try; empty: the first that is available."""
    placed: Path | None = None
    """A folder with files that were placed by hand."""
    offline: bool = False
    """Download nothing."""


@dataclass(frozen=True, kw_only=True)
class LocatedSource:
    """A source whose paths are local files."""

    name: str
    source: SourceConfig
    urls: dict[str, str]
    """The URL of each downloaded file; files that were placed by hand have none."""
    notes: tuple[str, ...]
    """For the user: how each file was checked, and which sources were not available."""


def locate(manifest: Manifest, options: SourceOptions, track: Track = silent) -> LocatedSource:
    """The first source with all its files; SourceError gives the reason for each source, and which files to place
    where."""
    names = _sources_to_try(manifest, options)
    failures: list[str] = []
    for name in names:
        try:
            located = _locate_source(manifest, name, options, track)
        except SourceError as error:
            failures.append(f"{name}: {error}")
            continue
        return dataclasses.replace(
            located, notes=(*(f"skipped source {failure}" for failure in failures), *located.notes)
        )
    raise SourceError(
        f"no source of {manifest.name} is available",
        hint=_placing_hint(manifest, names, "or place {} in a folder and add --from FOLDER"),
        details=failures,
    )


def files_needed(manifest: Manifest, name: str) -> list[str]:
    """The named files of a source."""
    source = manifest.sources[name]
    paths = [path for field in path_fields(type(source)) for path in _paths_in(getattr(source, field))]
    return [str(path) for path in paths if str(path) in manifest.files]


def _paths_in(value: Path | Paths | Mapping[str, Path] | Mapping[str, Paths] | None) -> list[Path]:
    """The paths of a field."""
    if isinstance(value, Path):
        return [value]
    items: Iterable[Path | Paths] = value.values() if isinstance(value, Mapping) else value or ()
    return [path for item in items for path in _paths_in(item)]


def _sources_to_try(manifest: Manifest, options: SourceOptions) -> list[str]:
    """The names of sources in the order in which they are tried: those with the fewest files missing from the folder
    first."""
    if options.source:
        if options.source not in manifest.sources:
            raise InputError(
                f"{manifest.name} has no source {options.source!r}", hint=f"its sources: {', '.join(manifest.sources)}"
            )
        return [options.source]
    names = list(manifest.sources)
    if options.placed is None:
        return names
    if not options.placed.is_dir():
        raise InputError(
            f"{options.placed} is not a folder", hint="--from takes a folder with the files that were placed by hand"
        )
    num_missing, num_found = {}, 0
    for name in names:
        placed = [bool(_placed_files(manifest.files[file], file, options)) for file in files_needed(manifest, name)]
        num_missing[name] = placed.count(False)
        num_found += placed.count(True)
    if not num_found:
        hint = _placing_hint(manifest, names, "place {} in it, or name another folder with --from")
        raise InputError(f"{options.placed} holds no file of {manifest.name}", hint=hint)
    # The sort is stable: among equals, the manifest's order of preference decides.
    return sorted(names, key=lambda name: num_missing[name])


def _placed_files(file: SourceFile, name: str, options: SourceOptions) -> list[Path]:
    """The paths of a file in the folder of placed files, several if its name contains a *; empty if it is not there."""
    if options.placed is None:
        return []
    for pattern in (Path(name).name, *file.also):
        # Sorted, because the order of files is the order of the corpus.
        paths = sorted(options.placed.glob(pattern)) if "*" in pattern else [options.placed / pattern]
        if paths and all(path.exists() for path in paths):
            return paths
    return []


def _locate_source(manifest: Manifest, name: str, options: SourceOptions, track: Track) -> LocatedSource:
    files = {file: manifest.files[file] for file in files_needed(manifest, name)}
    paths = {file: _placed_files(described, file, options) for file, described in files.items()}
    for file, described in files.items():
        # Checked before the first download, which may be large.
        if not paths[file] and not described.url:
            request = f"; request it at {described.by_hand}" if described.by_hand else ""
            raise SourceError(f"{file} cannot be downloaded{request}")
    urls: dict[str, str] = {}
    notes = []
    for file, described in files.items():
        if paths[file]:
            notes += [f"{path.name}: placed by hand" for path in paths[file]]
            continue
        if "*" in described.url:
            remote_files = cache.expand(described.url, offline=options.offline)
        else:
            remote_files = [cache.RemoteFile(url=described.url, size=described.size, checksum=described.checksum)]
        for remote in remote_files:
            local = cache.fetch_file(remote, offline=options.offline, track=track)
            paths[file].append(local.path)
            urls[remote.name] = remote.url
            notes.append(f"{remote.name}: {local.check}")
    source = _with_paths(manifest.sources[name], lambda path: paths.get(str(path)) or _expand(path, options, track))
    return LocatedSource(name=name, source=source, urls=urls, notes=tuple(notes))


def _expand(path: Path, options: SourceOptions, track: Track) -> list[Path]:
    """A path that the manifest gives; a * in its name matches any characters. A URL is downloaded."""
    if (url := url_of(path)) is not None:
        refuse_password(url)
        return [_fetch(place, options, track) for place in expand(url)]
    if "*" not in path.name:
        return [path]
    paths = sorted(path.parent.glob(path.name))
    if not paths:
        raise InputError(f"there is no file {path}", hint="check the pattern")
    return paths


def _fetch(url: str, options: SourceOptions, track: Track) -> Path:
    """The file of a URL, in the cache of downloads."""
    # A query may be a credential, which the messages of an ordinary download would show.
    if url.startswith(("http://", "https://", "hf://")) and "?" not in url:
        return cache.fetch_file(cache.RemoteFile(url=url), offline=options.offline, track=track).path
    if options.offline:
        raise SourceError(
            f"{shown(url)} is looked up before it is read, and --offline is set", hint="leave --offline out"
        )
    return copy_to(url, cache.cache_folder() / "downloads", track)


def _with_paths(source: SourceConfig, files_of: Callable[[Path], list[Path]]) -> SourceConfig:
    """The source with each of its paths replaced by local files."""

    def replace(value: Any) -> Any:
        if isinstance(value, Path):
            return files_of(value)[0]
        if isinstance(value, tuple):
            return tuple(file for path in value for file in files_of(path))
        return {key: replace(item) for key, item in value.items()} if isinstance(value, Mapping) else value

    return dataclasses.replace(source, **{name: replace(getattr(source, name)) for name in path_fields(type(source))})


def _placing_hint(manifest: Manifest, names: list[str], advice: str) -> str:
    """Advice to place files in a folder by hand, with the names of those that the source needs that has the fewest."""
    fewest = min((files_needed(manifest, name) for name in names if files_needed(manifest, name)), key=len, default=[])
    return advice.format(" and ".join(fewest)) if fewest else "see dcdctl prepare --list"
