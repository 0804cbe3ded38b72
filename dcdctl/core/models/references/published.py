"""What others published: teachers by name, each a TOML file in `data_manifests/teachers/` with the source of its
checkpoint and the settings that it lacks; and recalls, the rows of `data_manifests/published.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dcdctl.core import config, data, files
from dcdctl.core.artifacts import Document
from dcdctl.core.data import RemoteFile
from dcdctl.core.errors import SourceError
from dcdctl.core.models.protocols import Table
from dcdctl.core.progress import Track, silent
from dcdctl.core.toml import parse_toml


@dataclass(frozen=True, kw_only=True)
class PublishedTeacher:
    """A teacher that has a name: a checkpoint to download, a model of the Hub, or a built-in model."""

    summary: str
    license: str
    citation: str
    homepage: str
    url: str = ""
    """Address of a checkpoint, downloaded once; empty for the others."""
    weights: str = ""
    """Size in words: the number of parameters, by the default configuration of the class, or the size of the file."""
    hub: str = ""
    """Id of a model of the Hub; empty for the others."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that the file lacks, as for `load_save.load`."""

    @property
    def source(self) -> str:
        """Where its weights come from: an address, hf://OWNER/NAME, or "built in"."""
        return self.url or (f"hf://{self.hub}" if self.hub else "built in")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """Recalls that others report of a model on a test split."""

    models: tuple[str, ...]
    """Hub ids, names of released files, and named teachers, all with the same weights."""
    protocol: str
    """The protocol of `eval`: flickr30k-1k or coco-5k."""
    setting: str
    """zero-shot or fine-tuned."""
    ranking: str
    """How queries were ranked: all pairs, or first candidates alone."""
    recalls: dict[str, tuple[float, ...]]
    """R@1, or R@1, R@5 and R@10, of `text_retrieval` and `image_retrieval`, in percent."""
    sources: tuple[str, ...]
    """Addresses with a commit, and arXiv ids."""
    conditions: tuple[str, ...]
    """How captions, images and scores were made; what is most often done otherwise comes first."""

    def __str__(self) -> str:
        both = (f"{way.replace('_', ' ')} {'/'.join(map(str, values))}" for way, values in self.recalls.items())
        return f"{self.protocol}: {', '.join(both)}"


def published_rows(ref: str) -> list[PublishedRow]:
    """What others report of the model that a reference names, one row for each protocol.

    Recognized are a Hub id, with or without a revision; a named teacher; a file with the name of a released one; and a
    folder whose config.json has the Hub id as `_name_or_path`.
    """
    path = Path(ref)
    name = path.name if path.is_file() else ref.partition("@")[0]
    if path.is_dir():
        # Not by its own name: a run may be called vilt-coco.
        saved = path / "config.json"
        name = files.read_json(saved).get("_name_or_path", "") if saved.exists() else ""

    def rows_of(table: Table) -> list[PublishedRow]:
        rows = []
        for family in table["families"]:
            # A row has the fields of its family too.
            shared = {key: value for key, value in family.items() if key != "rows"}
            rows += [config.build(PublishedRow, {**shared, **row}) for row in family["rows"] if name in row["models"]]
        return rows

    return parse_toml(data.manifests_folder() / "published.toml", rows_of)


def list_teachers() -> dict[str, PublishedTeacher]:
    """All teachers that have a name: built in, or published by others."""
    paths = sorted((data.manifests_folder() / "teachers").glob("*.toml"))
    return {path.stem: parse_toml(path, partial(config.build, PublishedTeacher)) for path in paths}


def locate(teacher: PublishedTeacher, overrides: Table, track: Track = silent) -> tuple[str, Document]:
    """The file or Hub id of a teacher, downloaded if necessary, and its settings; the given overrides take
    precedence."""
    settings = {**teacher.overrides, **overrides}
    if teacher.hub:
        return teacher.hub, settings
    try:
        fetched = data.fetch_file(RemoteFile(url=teacher.url), track=track)
    except SourceError as error:
        given = " ".join(f"--model-set {key}={value}" for key, value in settings.items())
        hint = f"download it on a machine with a network, then name the file instead of the teacher, with {given}"
        raise SourceError(error.args[0], hint=hint) from error
    return str(fetched.path), settings
