"""From the files a manifest names to files on this machine: placed by hand, fetched before, or fetched now."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core.data.download import cache
from dcdctl.core.data.download.cache import RemoteFile
from dcdctl.core.data.manifest import Manifest, SourceFile, path_fields
from dcdctl.core.data.readers.rows import Paths, SourceConfig
from dcdctl.core.errors import InputError, SourceError
from dcdctl.core.progress import Track, silent

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where the files of a manifest may come from; nothing of it changes the corpus."""

    source: str = ""
    """The one source to take; empty: the first that can be had."""
    placed: Path | None = None
    """A folder with files that were placed by hand."""
    offline: bool = False
    """Fetch nothing."""


@dataclass(frozen=True, kw_only=True)
class LocatedSource:
    """A source whose paths lead to files."""

    name: str
    source: SourceConfig
    urls: dict[str, str]
    """File -> where it was fetched from; those placed by hand are not in it."""
    notes: tuple[str, ...]
    """What the user should know: how each file was checked, which sources could not be had."""


def locate(manifest: Manifest, options: SourceOptions, track: Track = silent) -> LocatedSource:
    """The first source of which every file can be had; SourceError says of each why not, and what to place where."""
    names = _in_order(manifest, options)
    passed: list[str] = []
    for name in names:
        try:
            found = _located(manifest, name, options, track)
        except SourceError as error:
            passed.append(f"{name}: {error}")
            continue
        return dataclasses.replace(found, notes=(*(f"passed over {reason}" for reason in passed), *found.notes))
    if len(names) == 1:
        raise SourceError(f"{manifest.name} from {passed[0]}", hint=_what_to_place(manifest, names))
    raise SourceError(f"no source of {manifest.name} can be had. {'. '.join(passed)}", hint=_what_to_place(manifest, names))


def _in_order(manifest: Manifest, options: SourceOptions) -> list[str]:
    """Sources in the order they are tried: those that are whole in the folder of placed files first."""
    if options.source:
        if options.source not in manifest.sources:
            message = f"{manifest.name} has no source {options.source!r}"
            raise InputError(message, hint=f"its sources: {', '.join(manifest.sources)}")
        return [options.source]
    names = list(manifest.sources)
    if options.placed is None:
        return names
    if not options.placed.is_dir():
        raise InputError(f"{options.placed} is no folder", hint="--from takes a folder with the files that were placed by hand")
    missing = {name: [file for file in files_needed(manifest, name) if not _placed(manifest.files[file], file, options)] for name in names}
    if not any(len(missing[name]) < len(files_needed(manifest, name)) for name in names):
        raise InputError(f"{options.placed} holds no file of {manifest.name}", hint=_what_to_place(manifest, names))
    return sorted(names, key=lambda name: len(missing[name]))


def files_needed(manifest: Manifest, name: str) -> list[str]:
    """The named files of a source."""
    source = manifest.sources[name]
    paths = [path for field in path_fields(type(source)) for path in _paths_in(getattr(source, field))]
    return [str(path) for path in paths if str(path) in manifest.files]


def _paths_in(value: Path | Paths | Mapping[str, Path] | Mapping[str, Paths] | None) -> Iterator[Path]:
    """The paths of a field."""
    if isinstance(value, Path):
        yield value
    elif value is not None:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _paths_in(item)


def _placed(file: SourceFile, name: str, options: SourceOptions) -> list[Path]:
    """What stands for a file in the folder of placed files; a name with a * may stand for several."""
    if options.placed is None:
        return []
    for one in (Path(name).name, *file.also):
        found = sorted(options.placed.glob(one)) if "*" in one else [options.placed / one]
        if found and all(path.exists() for path in found):
            return found
    return []


def _located(manifest: Manifest, name: str, options: SourceOptions, track: Track) -> LocatedSource:
    needed = files_needed(manifest, name)
    placed = {file: _placed(manifest.files[file], file, options) for file in needed}
    for file in needed:
        # Before anything large is fetched in vain.
        if not placed[file] and not manifest.files[file].url:
            where = f"; ask for it at {manifest.files[file].by_hand}" if manifest.files[file].by_hand else ""
            raise SourceError(f"{file} cannot be fetched{where}")
    paths: dict[str, list[Path]] = {}
    urls: dict[str, str] = {}
    notes = []
    for file in needed:
        known = manifest.files[file]
        if placed[file]:
            paths[file] = placed[file]
            notes += [f"{path.name}: placed by hand, {_check_placed(path, known, track)}" for path in paths[file]]
            continue
        fetched = [(one, cache.fetch_file(one, offline=options.offline, track=track)) for one in _remote(known, options.offline)]
        paths[file] = [done.path for _, done in fetched]
        urls |= {one.name: one.url for one, _ in fetched}
        notes += [f"{one.name}: {done.check}" for one, done in fetched]
    source = _with_paths(manifest.sources[name], lambda path: paths.get(str(path)) or _expanded(path))
    return LocatedSource(name=name, source=source, urls=urls, notes=tuple(notes))


def _remote(file: SourceFile, offline: bool) -> list[RemoteFile]:
    if "*" in file.url:
        return cache.expand(file.url, offline=offline)
    return [RemoteFile(url=file.url, size=file.size, checksum=file.checksum)]


def _check_placed(path: Path, file: SourceFile, track: Track) -> str:
    """Compare a placed file with what is known of it; what came of it, in words.

    A difference is no error: files are packed anew. Counts, and every picture, are looked at in any case.
    """
    if path.is_dir():
        return "a folder, not checked"
    if not file.checksum:
        return "no checksum is known"
    kind, _, wanted = file.checksum.partition(":")
    digest = hashlib.new(kind)
    with path.open("rb") as stream, track(f"check {path.name}", total=path.stat().st_size, unit="bytes") as advance:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return (
        "checksum as known"
        if digest.hexdigest() == wanted
        else f"not the file whose {kind} is known, {wanted[:12]}...: packed anew, or damaged"
    )


def _expanded(path: Path) -> list[Path]:
    """A path of the manifest's own; a * in its name stands for any letters."""
    if "*" not in path.name:
        return [path]
    found = sorted(path.parent.glob(path.name))
    if not found:
        raise InputError(f"there is no file {path}")
    return found


def _with_paths(source: SourceConfig, files_of: Callable[[Path], list[Path]]) -> SourceConfig:
    """The source with its paths replaced by the files they lead to."""

    def replace(value: Any) -> Any:
        if isinstance(value, Path):
            return files_of(value)[0]
        if isinstance(value, tuple):
            return tuple(file for path in value for file in files_of(path))
        return {key: replace(item) for key, item in value.items()} if isinstance(value, Mapping) else value

    return dataclasses.replace(source, **{name: replace(getattr(source, name)) for name in path_fields(type(source))})


def _what_to_place(manifest: Manifest, names: list[str]) -> str:
    """The hint: which files to place in a folder, for the source that needs the fewest."""
    wanted = min((files_needed(manifest, name) for name in names if files_needed(manifest, name)), key=len, default=[])
    return f"or place {' and '.join(wanted)} in a folder and add --from FOLDER" if wanted else "see dcdctl prepare --list"
