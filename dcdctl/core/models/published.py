"""Published teachers by name: where their file lies, what it does not say of itself, and the recall its authors report.

A TOML file each, in `data_manifests/teachers/`.
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
class Recalls:
    """Recall@1, 5 and 10, in percent."""

    text_retrieval: tuple[float, ...]
    image_retrieval: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class NamedTeacher:
    """A teacher that others have published."""

    summary: str
    license: str
    citation: str
    homepage: str
    url: str = ""
    """A released checkpoint, fetched once."""
    checksum: str = ""
    size: int | None = None
    hub: str = ""
    """Or a model of the Hub."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """What the file does not say, see `models.load`."""
    published: dict[str, Recalls] = field(default_factory=dict)
    """By protocol."""

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.hub):
            raise ConfigError("a teacher has a url or a hub name, one of them")

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        return self.url or f"hf://{self.hub}"


def known() -> dict[str, NamedTeacher]:
    """All of them, by name."""
    return {path.stem: config.build(NamedTeacher, config.read_toml(path)) for path in sorted(_folder().glob("*.toml"))}


def find(name: str) -> NamedTeacher | None:
    """The teacher of that name, if it is one."""
    path = _folder() / f"{name}.toml"
    return config.build(NamedTeacher, config.read_toml(path)) if "/" not in name and path.is_file() else None


def located(teacher: NamedTeacher, overrides: Mapping[str, Any], track: Track = silent) -> tuple[str, dict[str, Any]]:
    """What `models.load` takes for it, fetched if it has to be, and the settings to load it with; those given win."""
    settings = {**teacher.overrides, **overrides}
    if teacher.hub:
        return teacher.hub, settings
    try:
        fetched = data.fetch_file(RemoteFile(url=teacher.url, size=teacher.size, checksum=teacher.checksum), track=track)
    except SourceError as error:
        given = " ".join(f"--model-set {key}={value}" for key, value in settings.items())
        hint = f"fetch it where there is a network, and name the file in place of the teacher, with {given}"
        raise SourceError(error.args[0], hint=hint) from error
    return str(fetched.path), settings


def _folder() -> Path:
    return data.manifests_folder() / "teachers"


def list_published() -> dict[str, Any]:
    """JSON-able: data sets with counts, sources, files and licenses, and teachers with their sources and published recalls."""
    return {
        "data_sets": [_data_set(one) for one in data.known_manifests()],
        "teachers": [{"name": name, "source": one.source, **config.to_table(one)} for name, one in known().items()],
    }


def _data_set(one: Manifest) -> dict[str, Any]:
    head = {key: getattr(one, key) for key in data.TEXT_FIELDS}
    return {
        **head,
        "images": [f"{split} {expected.images:,}" for split, expected in one.expected.items()],
        "expected": config.to_table(one.expected),
        "sources": [{"name": name, "format": source.format} for name, source in one.sources.items()],
        "files": config.to_table(one.files),
    }
