"""Where a corpus comes from: annotation files and folders or zips of images, listed as rows that are read later.

Whatever an annotation file may get wrong is found here, with the row it stands in. Pictures are only located; `Picture.read`
is called in a worker process.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dcdctl.core import files, scenes
from dcdctl.core.errors import InputError
from dcdctl.core.image_store import BadRow, ImageStore, Picture
from dcdctl.core.manifest import SPLIT_ALIASES, SPLITS, CsvSource, KarpathySource, ScenesSource, Source

SKIP_HINT = "put it right, or leave such rows out with --on-error skip"


@dataclass(frozen=True, slots=True)
class ScenePicture:
    """A picture that is drawn when read."""

    scene: scenes.Scene
    side_px: int

    def read(self) -> bytes:
        return scenes.to_png(scenes.draw(self.scene, self.side_px))

    def stamp(self) -> str:
        return repr(self.scene)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """An image to be prepared; `where` names its row in the source, `path` is how the source calls the image."""

    where: str
    image_id: str
    path: str
    picture: Picture
    captions: list[str]
    caption_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that was left out, and why."""

    row: str
    image: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What there is to prepare: counts by split, rows of a split in source order, and where it all comes from."""

    counts: Mapping[str, int]
    rows: Callable[[str], Iterator[SourceRow]]
    provenance: Mapping[str, Any]
    skipped: Sequence[Skipped] = ()


@dataclass(kw_only=True)
class RowCheck:
    """What is wanted of the rows of an annotation file, and what was found wrong with some of them."""

    splits: Sequence[str]
    """Empty: all there are."""
    max_images: int | None
    skip_bad: bool
    skipped: list[Skipped] = field(default_factory=list)

    def refuse(self, where: str, image: str, reason: str) -> None:
        """Note a bad row, or stop at it."""
        if not self.skip_bad:
            quoted = f" {json.dumps(image, ensure_ascii=False)}" if image else ""
            raise InputError(f"{where}{quoted}: {reason}", hint=SKIP_HINT)
        self.skipped.append(Skipped(row=where, image=image, reason=reason))

    def is_wanted(self, split: str) -> bool:
        return not self.splits or split in self.splits

    def is_full(self, num_images: int) -> bool:
        return self.max_images is not None and num_images >= self.max_images


def list_scenes(source: ScenesSource, check: RowCheck) -> Listing:
    """The rows of the built-in corpus; scenes are thought up as they are asked for."""
    counts = {split: count for split in SPLITS if (count := source.counts.get(split, 0)) and check.is_wanted(split)}
    if check.max_images is not None:
        counts = {split: min(count, check.max_images) for split, count in counts.items()}

    def rows(split: str) -> Iterator[SourceRow]:
        described = scenes.describe(source.seed, split, source.captions)
        for i in range(counts[split]):
            one = next(described)
            yield SourceRow(
                where=f"scenes {split}[{i}]",
                image_id=f"{split}/{i:06}",
                path=f"{split}/{i:06}.png",
                picture=ScenePicture(one.scene, source.side_px),
                captions=[statement.text for statement in one.statements],
                caption_ids=list(range(i * source.captions, (i + 1) * source.captions)),
            )

    provenance = {"kind": "scenes", "seed": source.seed, "side_px": source.side_px, "captions": source.captions}
    return Listing(counts=counts, rows=rows, provenance=provenance)


def list_karpathy(source: KarpathySource, check: RowCheck) -> Listing:
    """The rows of a Karpathy JSON; `restval` is train. A caption's number is its `sentid` where all have one, else its place in the file."""
    entries = _read_entries(source.annotations)
    store = ImageStore(source.images)
    numbers = _sentence_numbers(entries)
    rows: dict[str, list[SourceRow]] = {split: [] for split in SPLITS}
    seen: dict[str, str] = {}
    for i, entry in enumerate(entries):
        where = f"{source.annotations.name} images[{i}]"
        try:
            if not isinstance(entry, dict):
                raise BadRow(f"{_kind(entry)}, an object is wanted")
            split = _split_of(entry.get("split"))
            if not check.is_wanted(split) or check.is_full(len(rows[split])):
                continue
            path = _karpathy_path(entry)
            if path in seen:
                raise BadRow(f"the same image as {seen[path]}")
            texts = _karpathy_captions(entry)
            row = SourceRow(where, path, path, store.find(path), texts, numbers[i])
        except BadRow as error:
            check.refuse(where, _text_or_empty(entry, "filename"), str(error))
            continue
        seen[path] = f"images[{i}]"
        rows[split].append(row)
    return _listing(rows, check, {"kind": "karpathy", "annotations": _checksum(source.annotations)}, store)


def list_csv(source: CsvSource, check: RowCheck) -> Listing:
    """The rows of a CSV of image and caption, an image where it first stands; a caption's number is its row."""
    cells = _read_cells(source.pairs)
    store = ImageStore(source.images)
    rows: dict[str, list[SourceRow]] = {split: [] for split in SPLITS}
    by_path: dict[str, tuple[str, SourceRow]] = {}
    for number, (line, image, caption, split_cell) in enumerate(cells):
        where = f"{source.pairs.name} line {line}"
        try:
            split = source.split if split_cell is None else _split_of(split_cell)
            if not image.strip():
                raise BadRow("no image is named")
            path = str(PurePosixPath(image.strip()))
            if path in by_path and by_path[path][0] != split:
                raise BadRow(f"its split is {split}, but {by_path[path][0]} in {by_path[path][1].where}")
            if not check.is_wanted(split) or path not in by_path and check.is_full(len(rows[split])):
                continue
            text = _csv_caption(caption)
            if path not in by_path:
                by_path[path] = split, SourceRow(where, path, path, store.find(path), [], [])
                rows[split].append(by_path[path][1])
        except BadRow as error:
            check.refuse(where, image, str(error))
            continue
        by_path[path][1].captions.append(text)
        by_path[path][1].caption_ids.append(number)
    return _listing(rows, check, {"kind": "csv", "pairs": _checksum(source.pairs)}, store)


def list_source(source: Source, check: RowCheck) -> Listing:
    """The rows of any source; InputError if a split that is asked for has none."""
    if isinstance(source, ScenesSource):
        listing = list_scenes(source, check)
    else:
        listing = list_karpathy(source, check) if isinstance(source, KarpathySource) else list_csv(source, check)
    for split in check.splits:
        if not listing.counts.get(split):
            raise InputError(f"split {split!r} is empty", hint=f"splits with images: {', '.join(listing.counts) or 'none'}")
    if not listing.counts:
        raise InputError("there is no usable image in the source", hint=_first_reason(listing.skipped))
    return listing


def _listing(rows: Mapping[str, list[SourceRow]], check: RowCheck, provenance: dict[str, Any], store: ImageStore) -> Listing:
    stamps = hashlib.sha256()
    for row in (row for split in SPLITS for row in rows[split]):
        stamps.update(f"{row.path} {row.picture.stamp()}\n".encode())
    # Names and sizes (in a zip checksums too) stand for the pictures: reading them all would take as long as preparing them.
    provenance |= {"images": {"file": store.path.name, "listing_sha256": stamps.hexdigest()}}
    counts = {split: len(rows[split]) for split in SPLITS if rows[split]}
    return Listing(counts=counts, rows=lambda split: iter(rows[split]), provenance=provenance, skipped=tuple(check.skipped))


def _first_reason(skipped: Sequence[Skipped]) -> str:
    return f"the first one left out: {skipped[0].row}: {skipped[0].reason}" if skipped else "it has no row of the splits asked for"


def _checksum(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": files.sha256_of(path)}


def _read_entries(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint="--karpathy takes a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", hint="a download may have been cut off") from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        found = f'"images" is {_kind(entries)}' if isinstance(content, dict) and "images" in content else 'no "images"'
        raise InputError(f"{path}: {found}, a list of images is wanted", hint="Karpathy's files look like dataset_flickr30k.json")
    return entries


def _sentence_numbers(entries: Sequence[Any]) -> list[list[int]]:
    """The numbers of each image's captions; an entry that is not as it should be has none, and is refused elsewhere."""
    sentences = [entry.get("sentences") if isinstance(entry, dict) else None for entry in entries]
    lists: list[list[Any]] = [value if isinstance(value, list) else [] for value in sentences]
    sentids = [[one.get("sentid") if isinstance(one, dict) else None for one in value] for value in lists]
    if all(type(number) is int and abs(number) < 2**63 for numbers in sentids for number in numbers):
        return sentids
    start, numbered = 0, []
    for value in lists:
        numbered.append(list(range(start, start + len(value))))
        start += len(value)
    return numbered


def _karpathy_path(entry: Mapping[str, Any]) -> str:
    filename, folder = entry.get("filename"), entry.get("filepath", "")
    if not isinstance(filename, str) or not filename.strip():
        raise BadRow(f'"filename" is {_kind(filename)}, the name of an image is wanted')
    if not isinstance(folder, str):
        raise BadRow(f'"filepath" is {_kind(folder)}, a folder is wanted')
    return str(PurePosixPath(f"{folder}/{filename}" if folder else filename))


def _karpathy_captions(entry: Mapping[str, Any]) -> list[str]:
    sentences = entry.get("sentences")
    if not isinstance(sentences, list):
        raise BadRow(f'"sentences" is {_kind(sentences)}, a list is wanted')
    if not sentences:
        raise BadRow("the image has no caption")
    for i, sentence in enumerate(sentences):
        if not isinstance(sentence, dict):
            raise BadRow(f'sentences[{i}] is {_kind(sentence)}, an object with "raw" is wanted')
    return [_caption(sentence.get("raw"), f"caption {i}") for i, sentence in enumerate(sentences)]


def _csv_caption(cell: str) -> str:
    """A cell is text, unless the whole of it is a JSON number, list or null: then it was written from something else."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = cell
    return _caption(cell if isinstance(value, str) else value, "the caption")


def _caption(value: Any, which: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{which} is {_kind(value)}, text is wanted")
    if not value.strip():
        raise BadRow(f"{which} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{which} is not Unicode text ({error.reason})") from error
    return value


def _split_of(value: Any) -> str:
    split = SPLIT_ALIASES.get(value, value) if isinstance(value, str) else value
    if split not in SPLITS:
        known = ", ".join([*SPLITS, *SPLIT_ALIASES])
        raise BadRow(f"unknown split {value!r} (known: {known})" if isinstance(value, str) else f'"split" is {_kind(value)}')
    return str(split)


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing or null"
    words = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    shown = json.dumps(value, ensure_ascii=False)
    return f"{words[type(value)]} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


def _text_or_empty(entry: Any, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, str) else ""


def _read_cells(path: Path) -> list[tuple[int, str, str, str | None]]:
    """Line, image, caption and split (None without that column) of each row that is not blank."""
    import pandas as pd  # only here: every worker process imports this module, and pandas takes half a second

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False, encoding="utf-8-sig"
            ).fillna("")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint="--csv takes a CSV file") from error
    except (ValueError, pd.errors.ParserWarning) as error:
        hint = 'a caption with a comma must stand in quotes: x.jpg,"a dog, running"'
        raise InputError(f"{path} is not a CSV of image and caption: {' '.join(str(error).split())}", hint=hint) from error
    table.columns = table.columns.str.strip()
    missing = [name for name in ("image", "caption") if name not in table.columns]
    if missing:
        found = ", ".join(map(str, table.columns))
        raise InputError(f"{path} has no column {missing[0]!r}, its columns are {found}", hint="the first line names: image,caption[,split]")
    # A quoted cell may run over several lines, so a row's number is not its line.
    extra_lines = sum(table[column].str.count("\n") for column in table.columns)
    lines = 2 + pd.RangeIndex(len(table)).to_numpy() + extra_lines.cumsum().shift(1, fill_value=0).to_numpy()
    splits = table["split"] if "split" in table.columns else [None] * len(table)
    cells = zip(lines.astype(int).tolist(), table["image"], table["caption"], splits, strict=True)
    is_blank = (table == "").all(axis=1)
    return [row for row, blank in zip(cells, is_blank, strict=True) if not blank]
