"""corpus.json, which names the shards of a corpus and says what they were made from; it is written last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from dcdctl.core import config, files
from dcdctl.core.artifacts import Kind
from dcdctl.core.config import OMITTED, Key
from dcdctl.core.data import urls
from dcdctl.core.data.near_duplicates import Leakage
from dcdctl.core.errors import CorpusError
from dcdctl.core.places import shown, url_of

CORPUS_FILE = "corpus.json"
JOIN = "+"
"""Stands between splits that are read as one. No split has it in its name."""
CORPUS = Kind(
    name="corpus",
    format=2,
    seal_file=CORPUS_FILE,
    plan_file="prepare.json",
    keeps_plan=False,
    files=("*-?????-of-?????.parquet", "columns-*.parquet", "texts-*.parquet"),
    make="make one with `dcdctl prepare`",
    make_again="run the same `dcdctl prepare` again",
    error=CorpusError,
    missing=CorpusError,
)


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """A file of a corpus: the columns of a split's images."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardFile(CorpusFile):
    """A shard."""

    rows: int


@dataclass(frozen=True, kw_only=True)
class CorpusSplit:
    """A split and its shards: images with their captions, or a pool, whose images have none and whose texts have no
    image."""

    images: int
    captions: int
    fingerprint: str
    shards: tuple[ShardFile, ...]
    texts: Annotated[ShardFile | None, OMITTED] = None
    """The texts of a pool; None for captioned images, and for a pool of images alone."""

    @property
    def is_pool(self) -> bool:
        """Whether no text belongs to an image."""
        # Every image of any other split has a caption.
        return self.texts is not None or not self.captions

    @property
    def parts(self) -> tuple[ShardFile, ...]:
        """All files of the split but its columns."""
        return self.shards if self.texts is None else (*self.shards, self.texts)


@dataclass(frozen=True, kw_only=True)
class SkippedRow:
    """A row of the source that is not in the corpus, and why."""

    row: str
    image: str
    reason: str
    kind: Annotated[str, OMITTED] = ""
    """What kind of file its image is (`UNREAD` in images/formats.py); empty if something else is wrong with the row."""


@dataclass(frozen=True, kw_only=True)
class CorpusDocument:
    """The content of corpus.json, in the order in which it is written."""

    format: int
    name: str
    splits: dict[str, CorpusSplit]
    protocol: str = ""
    """The published protocol that the corpus reproduces, or "none: " and the reason."""
    leakage: Leakage = field(default_factory=Leakage)
    source: Mapping[str, Any] = field(default_factory=dict)
    """The format of the source, the checksums of its files, and the options of `dcdctl prepare`."""
    license: Annotated[str, Key("licence")] = ""
    citation: str = ""
    homepage: str = ""
    skipped: tuple[SkippedRow, ...] = ()
    plan: str = ""
    """Digest of what the corpus was made from."""
    columns: Annotated[dict[str, CorpusFile], OMITTED] = field(default_factory=dict)
    """By split; empty without columns."""

    def split(self, name: str, folder: Path, requested: str) -> CorpusSplit:
        """A split; CorpusError if there is none. It may be a part of the `requested` name, such as train+val."""
        if name in self.splits:
            return self.splits[name]
        known = f"it has {', '.join(self.splits)}"
        if len(self.splits) > 1:
            known += f"; {JOIN} joins splits, as in {JOIN.join(list(self.splits)[:2])}"
        of = "" if name == requested else f", a part of {requested!r}"
        raise CorpusError(f"{shown(folder)} has no split {name!r}{of}", hint=known)


def manifests_folder() -> Path:
    """The folder of the manifests that ship with dcdctl."""
    return files.packaged("data_manifests")


def manifest_files() -> dict[str, Path]:
    """The manifests that ship with dcdctl, by name."""
    # published.toml has recalls that others report.
    return {path.stem: path for path in sorted(manifests_folder().glob("*.toml")) if path.stem != "published"}


def manifest_path(name: str) -> Path | None:
    """The file of the manifest with that name, or that .toml file; None if there is none."""
    return Path(name) if name.endswith(".toml") and Path(name).is_file() else manifest_files().get(name)


def prepare_command(place: Path) -> str:
    """The `dcdctl prepare` that makes the corpus of a place: of the manifest that its name names, if there is one.

    >>> prepare_command(Path("data/flickr30k")), prepare_command(Path("data/photos"))
    ('dcdctl prepare flickr30k --out data/flickr30k', 'dcdctl prepare')
    """
    is_known = manifest_path(place.name) is not None
    return f"dcdctl prepare {place.name} --out {place.with_suffix('')}" if is_known else "dcdctl prepare"


def read_corpus_json(folder: Path) -> CorpusDocument:
    """The content of corpus.json; CorpusError if there is no corpus, or if it is unfinished, damaged or of another
    format."""
    url, name = url_of(folder), f"{shown(folder)}/{CORPUS_FILE}"
    if url is None:
        seal = replace(CORPUS, make=f"make one with `{prepare_command(folder)}`").read_seal(folder)
    else:
        seal = CORPUS.parse_seal(name, urls.read_text(f"{url}/{CORPUS_FILE}"))
    return config.build_document(CorpusDocument, seal, name, error=CorpusError, hint=CORPUS.remake)


def all_splits(folder: Path) -> str:
    """The name under which all splits of a corpus are read as one: train+val+test. The pool beside captioned splits is
    not among them, because it cannot be read with them."""
    return JOIN.join(_paired(read_corpus_json(folder).splits))


def split_to_measure(folder: Path, trained: str) -> str:
    """The split of a corpus to measure a model on that was trained on `trained`: test, else val, else one that it did
    not train on.

    The first split if it was trained on all.
    """
    splits = _paired(read_corpus_json(folder).splits)
    unseen = [split for split in ("test", "val", *splits) if split in splits and not share_split(split, trained)]
    return next(iter(unseen), splits[0])


def _paired(splits: Mapping[str, CorpusSplit]) -> list[str]:
    """The splits with captions; all splits of a pool."""
    return [name for name, split in splits.items() if not split.is_pool] or list(splits)


def share_split(split: str, other: str) -> bool:
    """Whether two names, each of a split or of several joined, have a split in common.

    >>> share_split("train+val", "val"), share_split("train+val", "test")
    (True, False)
    """
    return not set(split.split(JOIN)).isdisjoint(other.split(JOIN))
