"""Published teachers by name: the source of the checkpoint, the settings that it lacks, and the recalls that its
authors report.

Each is a TOML file in `data_manifests/teachers/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcdctl.core import config, data
from dcdctl.core.data import Manifest, RemoteFile
from dcdctl.core.errors import ConfigError, SourceError
from dcdctl.core.progress import Track, silent


@dataclass(frozen=True, kw_only=True)
class ReportedRecalls:
    """Recall@1, 5 and 10, in percent."""

    text_retrieval: tuple[float, ...]
    image_retrieval: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PublishedTeacher:
    """A teacher published by others: a checkpoint to download, or a model of the Hub."""

    summary: str
    license: str
    citation: str
    homepage: str
    url: str = ""
    """Address of a checkpoint, downloaded once; empty if `hub` is given."""
    checksum: str = ""
    size: int | None = None
    weights: str = ""
    """Size in words: the number of parameters, by the default configuration of the class, or the size of the file."""
    hub: str = ""
    """Id of a model of the Hub; empty if `url` is given."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that the file lacks, as for `load_save.load`."""
    published: dict[str, ReportedRecalls] = field(default_factory=dict)
    """The reported recalls, by evaluation protocol."""

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.hub):
            raise ConfigError("a teacher needs either a url or a hub name")

    @property
    def source(self) -> str:
        """The address or the Hub id."""
        return self.url or f"hf://{self.hub}"


def known() -> dict[str, PublishedTeacher]:
    """All published teachers, by name."""
    return {path.stem: _read(path) for path in sorted(_folder().glob("*.toml"))}


def find(name: str) -> PublishedTeacher | None:
    """The teacher of this name; None if there is none."""
    path = _folder() / f"{name}.toml"
    # A Hub id has a slash, and a name must not lead to another folder.
    return _read(path) if "/" not in name and path.is_file() else None


def _read(path: Path) -> PublishedTeacher:
    return config.parse_toml(path, lambda table: config.build(PublishedTeacher, table))


def locate(
    teacher: PublishedTeacher, overrides: Mapping[str, Any], track: Track = silent
) -> tuple[str, dict[str, Any]]:
    """The file or Hub id of a teacher, downloaded if necessary, and its settings; the given overrides take
    precedence."""
    settings = {**teacher.overrides, **overrides}
    if teacher.hub:
        return teacher.hub, settings
    try:
        fetched = data.fetch_file(
            RemoteFile(url=teacher.url, size=teacher.size, checksum=teacher.checksum), track=track
        )
    except SourceError as error:
        given = " ".join(f"--model-set {key}={value}" for key, value in settings.items())
        hint = f"download it on a machine with a network, then name the file instead of the teacher, with {given}"
        raise SourceError(error.args[0], hint=hint) from error
    return str(fetched.path), settings


def _folder() -> Path:
    return data.manifests_folder() / "teachers"


def list_published() -> dict[str, Any]:
    """JSON-able: data sets with counts, sources, files and licenses, and teachers with their sources and published
    recalls."""
    return {
        "data_sets": [_data_set(manifest) for manifest in data.known_manifests()],
        "teachers": [
            {"name": name, "source": teacher.source, **config.to_table(teacher)} for name, teacher in known().items()
        ],
    }


def _data_set(manifest: Manifest) -> dict[str, Any]:
    head = {key: getattr(manifest, key) for key in data.TEXT_FIELDS}
    return {
        **head,
        "images": [f"{split} {expected.images:,}" for split, expected in manifest.expected.items()],
        "expected": config.to_table(manifest.expected),
        "sources": [{"name": name, "format": source.format} for name, source in manifest.sources.items()],
        "files": config.to_table(manifest.files),
    }
