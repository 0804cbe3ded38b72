"""Pools: images without captions, and texts without images, such as the queries of a log.

Images are files in folders, zips and tars, or rows of Parquet files. Texts are the lines of a .txt, or a column of a
.csv, .tsv, .jsonl or .parquet that is named query, caption or text. Equal texts (`captions.text_key`) are kept once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from dcdctl.core.data.captions import text_key
from dcdctl.core.data.images import CANNOT_OPEN, IMAGE_SUFFIXES, ImageStore, RowError, kind_of_name
from dcdctl.core.data.readers.captions import read_caption, read_label
from dcdctl.core.data.readers.parquet import list_images, open_parquet, read_rows
from dcdctl.core.data.readers.rows import (
    HELD_OUT_BY_DEFAULT,
    NOT_UTF8,
    SPLITS,
    Listing,
    Paths,
    RowCheck,
    SourceConfig,
    SourceRow,
    TextSource,
    divide,
    file_checksum,
    held_out_facts,
    make_listing,
)
from dcdctl.core.data.text_encoding import (
    AS_CSV,
    SPREADSHEET_SUFFIXES,
    csv_rows,
    find_column,
    find_encoding,
    json_lines,
    lines_of,
)
from dcdctl.core.errors import InputError
from dcdctl.core.places import in_utf8

Texts = dict[str, tuple[str, tuple[int, str]]]
"""Each text with its number among all texts and its language, empty if it is not known, by `text_key`."""
_COLUMNS = ("query", "caption", "text")
_ROWS_AT_ONCE = 1024
"""Rows of a Parquet file. 1,024 vectors of 2,048 numbers take 67 MB as lists of Python."""
TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
LANGUAGE = "language"
"""The column with the language of each text, such as "de"."""
_TEXTS_HINT = (
    "a file of texts is a .txt with one text per line, or a .csv, .tsv, .jsonl or .parquet with a column query"
)


@dataclass(frozen=True, kw_only=True)
class PoolSource(TextSource):
    """Images of `images` and texts of `queries`, without pairing. Either may be left out."""

    format: ClassVar[str] = "pool"
    images: Paths = ()
    """Folders, zips, tars, and Parquet files with images."""

    def list_rows(self, check: RowCheck) -> Listing:
        """The images and texts, each divided by a hash of the id or of the text's words."""
        provenance: dict[str, Any] = {"kind": "pool"}
        images = {row.image_id: row for row in _list_images(self.images, check)}
        texts = _list_texts(self, check, provenance)
        if self.images and len(images) < 2:
            what = f"only one, {next(iter(images))}" if images else "none"
            places = ", ".join(map(str, self.images))
            raise InputError(
                f"a pool needs two images to choose from, and {places} has {what}",
                hint=f"their names end with .{', .'.join(IMAGE_SUFFIXES)}; or name Parquet files: --images "
                "'DIR/*.parquet'",
            )
        split_of_image, split_of_text = self._divide(images, texts, provenance)
        rows, pools = {}, {}
        for split in check.requested(SPLITS):
            in_split = [row for image_id, row in images.items() if split_of_image[image_id] == split]
            rows[split] = in_split[: check.max_images]
            pools[split] = {text: label for key, (text, label) in texts.items() if split_of_text[key] == split}
        return make_listing(rows, check, provenance, self.images, pools=pools)

    def _divide(
        self, images: dict[str, SourceRow], texts: Texts, provenance: dict[str, Any]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The split of each image and of each text. Both are held out or neither, as an evaluation needs both."""
        share = self.hold_out
        if share is None:
            share = HELD_OUT_BY_DEFAULT if images and texts else 0.0
        split_of_image, split_of_text = divide(images, share), divide(texts, share)
        if share:
            sides = [side for side in (split_of_image, split_of_text) if side]
            by = "SHA-256 of image_id, and of a text's words"
            provenance["hold_out"] = held_out_facts(share, by, *sides)
        return split_of_image, split_of_text


def add_pool(source: SourceConfig, listing: Listing, check: RowCheck) -> Listing:
    """A listing with one more split, `pool`: the texts of the source's `queries`, and the images in its places that no
    row names."""
    if not check.includes("pool"):
        return listing
    provenance = dict(listing.provenance)
    texts = _list_texts(source, check, provenance)
    # Without the limits of this run: an image of val is not in the pool because val was not asked for.
    whole = source.list_rows(RowCheck(splits=(), max_images=None, skip_bad=True))
    named = {row.image_file for split in whole.counts for row in whole.rows(split)}
    places: Paths = getattr(source, "images", ())
    images = [row for row in _list_images(places, check) if row.image_file not in named]
    pools = {"pool": dict(texts.values())}
    pool = make_listing({"pool": images[: check.max_images]}, check, {}, places, pools=pools)
    provenance["pool_images"] = pool.provenance["images"]
    return replace(
        listing,
        counts={**listing.counts, **pool.counts},
        rows=lambda split: pool.rows(split) if split == "pool" else listing.rows(split),
        provenance=provenance,
        skipped=pool.skipped,
        pools=pool.pools,
    )


def _list_images(places: Sequence[Path], check: RowCheck) -> Iterator[SourceRow]:
    """The images of each place, with their path in it as the id; a name that an earlier place has gets the name of its
    own place before it. Other files, and names that are not UTF-8, are left out and counted, but for hidden ones."""
    seen: set[str] = set()
    for place in places:
        if place.suffix == ".parquet":
            for where, image_id, stored in list_images(place):
                if image_id not in seen:  # else a further caption of the image
                    seen.add(image_id)
                    yield SourceRow(where, image_id, path=image_id, image_file=stored)
            continue
        store = ImageStore(place)
        names = store.members()
        all_names = set(names)
        for name in names:
            if "/." in f"/{name}":
                continue
            if in_utf8(name) != name:
                check.leave_out(place.name, name, CANNOT_OPEN.kind, NOT_UTF8)
                continue
            if kind := kind_of_name(name, all_names):
                check.leave_out(place.name, name, kind)
                continue
            image_id = f"{place.stem}/{name}" if name in seen else name
            try:
                if image_id in seen:
                    raise RowError("another image has this name and that of its folder")
                file = store.find(name)
            except RowError as error:
                check.reject(place.name, name, str(error))
                continue
            seen.add(image_id)
            yield SourceRow(place.name, image_id, path=name, image_file=file)


def _list_texts(source: SourceConfig, check: RowCheck, provenance: dict[str, Any]) -> Texts:
    """The texts, each with its number among all texts, by `text_key`; the first of equal ones."""
    texts: Texts = {}
    number, encoding = 0, getattr(source, "encoding", None)
    for path in source.queries:
        first = number
        for where, value, spoken in read_values(path, encoding, [LANGUAGE]):
            try:
                text, language = read_caption(value, "the text"), read_label(LANGUAGE, spoken) if spoken else ""
            except RowError as error:
                check.reject(where, "", str(error))
                continue
            texts.setdefault(text_key(text), (text, (number, language)))
            number += 1
        if number == first:
            raise InputError(f"{path} has no text", hint=_TEXTS_HINT)
    if source.queries:
        files = [file_checksum(path) for path in source.queries]
        provenance["queries"] = {"files": files, "repeated": number - len(texts)}
        # Read with another encoding, the same file has other texts.
        if encoding:
            provenance["queries"]["encoding"] = encoding
    return texts


def check_text_file(path: Path) -> None:
    """InputError for a path that is no file of texts by its kind or its name."""
    suffix = path.suffix.lower()
    if path.is_dir():
        raise InputError(f"{path} is a folder, and not a file of texts", hint=_TEXTS_HINT)
    if suffix not in TEXT_SUFFIXES:
        ending = repr(suffix or "nothing")
        hint = AS_CSV if suffix in SPREADSHEET_SUFFIXES else _TEXTS_HINT
        raise InputError(f"{path} is no file of texts, its name ends with {ending}", hint=hint)


def read_values(path: Path, forced: str | None = None, more: Sequence[str] = ()) -> Iterator[tuple[Any, ...]]:
    """Of each text of a file where it stands ("log.csv line 3"), its value, and those of `more` columns, None where the
    file lacks one; unchecked and streamed. Blank lines are left out.

    `forced` names the encoding. InputError for a file of another kind, and for one without a column of texts.
    """
    check_text_file(path)
    suffix = path.suffix.lower()
    unit = "row" if suffix == ".parquet" else "line"
    for line, row in _rows_of(path, suffix, forced, more):
        name = find_column(f"{path} line {line}", list(row), _COLUMNS, _TEXTS_HINT)
        yield f"{path.name} {unit} {line}", row[name], *map(row.get, more)


def _rows_of(
    path: Path, suffix: str, forced: str | None, more: Sequence[str]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if suffix == ".parquet":
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            columns = [find_column(path, names, _COLUMNS, _TEXTS_HINT), *(name for name in more if name in names)]
            groups = (read_rows(str(path), file, group, columns, _ROWS_AT_ONCE) for group in range(file.num_row_groups))
            yield from enumerate(row for rows in groups for row in rows)
        return
    encoding = find_encoding(path, forced)
    if suffix == ".txt":
        with path.open(encoding=encoding) as file:
            lines = enumerate(lines_of(file), 1)
            yield from ((line, {"text": text.rstrip("\n")}) for line, text in lines if text.strip())
    elif suffix in (".csv", ".tsv"):
        table = csv_rows(path, encoding, ",;\t" if suffix == ".csv" else "\t")
        _, names = next(table, (1, []))
        find_column(path, names, _COLUMNS, _TEXTS_HINT)
        yield from ((line, dict(zip(names, cells, strict=True))) for line, cells in table)
    else:
        yield from json_lines(path, encoding)


def check_text(where: str, value: Any, language: Any = None) -> tuple[str, str | None]:
    """A text and its language, None for an empty one; InputError that says where it stands for a value that is no
    text."""
    try:
        return read_caption(value, "the text"), None if language in (None, "") else read_label(LANGUAGE, language)
    except RowError as error:
        raise InputError(f"{where}: {error}", hint="correct the text, or delete its row") from error
