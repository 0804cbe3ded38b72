"""Published teachers by name: the source of the checkpoint, the settings that it lacks, and the recalls that its
authors report.

Each is a TOML file in `data_manifests/teachers/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dcdctl.core import config, data
from dcdctl.core.data import RemoteFile
from dcdctl.core.errors import SourceError
from dcdctl.core.progress import Track, silent


@dataclass(frozen=True, kw_only=True)
class PublishedTeacher:
    """A teacher that has a name: a checkpoint to download, a model of the Hub, or a built-in model."""

    summary: str
    license: str
    citation: str
    homepage: str
    url: str = ""
    """Address of a checkpoint, downloaded once; empty for the others."""
    checksum: str = ""
    size: int | None = None
    weights: str = ""
    """Size in words: the number of parameters, by the default configuration of the class, or the size of the file."""
    hub: str = ""
    """Id of a model of the Hub; empty for the others."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that the file lacks, as for `load_save.load`."""
    published: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    """The recalls that its authors report, by evaluation protocol: Recall@1, 5 and 10 of `text_retrieval` and
    `image_retrieval`, in percent."""

    @property
    def source(self) -> str:
        """Where its weights come from: an address, hf://OWNER/NAME, or "built in"."""
        return self.url or (f"hf://{self.hub}" if self.hub else "built in")

    @property
    def reported(self) -> list[str]:
        """The reported recalls of each protocol, in words."""
        return [
            f"{protocol}: "
            + ", ".join(f"{way.replace('_', ' ')} {'/'.join(map(str, values))}" for way, values in recalls.items())
            for protocol, recalls in self.published.items()
        ]


def list_teachers() -> dict[str, PublishedTeacher]:
    """All teachers that have a name: built in, or published by others."""
    return {
        path.stem: config.parse_toml(path, partial(config.build, PublishedTeacher))
        for path in sorted((data.manifests_folder() / "teachers").glob("*.toml"))
    }


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
