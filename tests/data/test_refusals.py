"""What a preparation of data refuses: options, manifests, tables, rows, archives and URLs."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import refusals
from PIL import Image
from refusals import Refusal

from dcdctl.core.data import Corpus, PrepareOptions, RemoteFile, manifest, prepare_corpus
from dcdctl.core.data.download.cache import expand
from dcdctl.core.data.images.archives import ImageStore
from dcdctl.core.data.manifest import PrepareJob, choose_manifest, find_manifest
from dcdctl.core.data.readers import FORMATS
from dcdctl.core.errors import ConfigError, CorpusError, InputError

X = Path("x")
CHOICES = [
    ({}, "no data set is given: .*--list"),
    ({"manifest": "scenes", "csv": X}, "a manifest and --csv are both given"),
    ({"karpathy": X, "csv": X}, "--karpathy and --csv are both given"),
    ({"csv": X}, "--csv also needs images; add --images"),
    ({"manifest": "scenes", "images": [X]}, "--images goes with --karpathy, --csv or --jsonl"),
    ({"manifest": "scenes", "queries": [X]}, "--queries goes with --karpathy, --csv or --jsonl"),
]
ASSIGNMENTS = [
    ("colour=1", "unknown key colour; known keys here: queries, counts, side_px, seed, captions"),
    ("counts.dev=5", "counts.dev is not a split"),
    ("counts.train=-1", "counts.train must lie in .*, got -1"),
    ("captions=0", r"captions must lie in \[1, 20\], got 0"),
    ("format=coco", f"format must be one of {', '.join(FORMATS)}, got 'coco'"),
]
TABLE = "image,caption\na.jpg,a dog\nb c.jpg,two birds\n"
TABLES = [
    ("", "has no column image, file_name, filename: it is empty"),
    (",".join(map(str, range(70_000))) + "\na.jpg,x\n", "its columns are 0, 1, 2, 3, 4, 5, 6, 7 and 69,992 more"),
    ('"' + "a" * 200_000, "line 1: a cell starts with a quotation mark and does not end with one"),
    ('image,caption\na.jpg,"x"\na.jpg,"a dog"s\n', "a cell starts with a quotation mark .*, up to line 3"),
    (TABLE.replace("a dog", '"a dog" runs'), "line 2: a cell starts with a quotation mark .*, up to line 2; put"),
    (TABLE.replace("two birds", '"two birds'), "line 3: a cell starts with a quotation mark .*, up to line 3; put"),
    ("file,text\na.jpg,x\n", "has no column image, file_name, filename: its columns are file, text"),
    ("image\na.jpg\n", "has no column caption, text, captions, raw: its columns are image"),
    ("image,caption,caption\na.jpg,x,y\n", "has the column 'caption' twice"),
    ("image,caption\na.jpg,x\na.jpg,a dog, running\n", "line 3 has 3 cells, .* 2 columns; a text with ',' needs"),
    (TABLE.replace(",", ";").replace("a dog", "a dog; a cat"), "line 2 has 3 cells, .* 2 columns; a text with ';'"),
    ("image,caption\n", "has no row under its column names; add one per caption: photo.jpg,a dog runs"),
    ("image,caption,split\na.jpg,x,holdout\n", "line 2: unknown split 'holdout'"),
    ("image,caption,split\na.jpg,x,pool\n", "line 2: unknown split 'pool'"),
    ("image,caption,split\na.jpg,x,val\na.jpg,y,train\n", 'line 3 "a.jpg": its split is train, but val in .* line 2'),
    (TABLE.replace("a.jpg", "A.JPG"), r"line 2 \"A.JPG\": there is no .* \(did you mean a.jpg\?\)"),
    (TABLE.replace("a.jpg", "/elsewhere/a.jpg"), "line 2 .* leads out of the folder of images"),
    (TABLE.replace("a.jpg", "../images/../rows.csv"), "line 2 .* leads out of the folder of images"),
]
DOCUMENTS = [
    ("{", "is not JSON"),
    ('{"imgs": []}', '"images" is missing or null, expected a list of images'),
    ('{"images": []}', "the source has no image and no text"),
    ('{"images": "a.jpg"}', r'"images" is a string \("a.jpg"\)'),
]
"""Of Karpathy's form."""
MANIFESTS = [
    ('format = "lavis"\nimages = "jpg"\nannotations = { dev = "x.json" }\n', "annotations.dev is not a split; known"),
    ('format = "parquet"\nrows = { dev = "x.parquet" }\n', "rows.dev is not a split"),
    ('format = "parquet"\nrows = "x.parquet"\n', "rows must be a table"),
    ('name = "a"\n[[sources]]\nformat = "csv"\nimages = "jpg"\n', "pairs is missing"),
    ('format = "csv"\n[[sources]]\nformat = "csv"\n', r"format is outside \[\[sources\]\]"),
    ("sources = []\n", "sources must be a list of tables"),
    (
        '[[sources]]\nname = "x"\nformat = "csv"\npairs = "p"\nimages = "jpg"\n' * 2,
        "two sources have the name 'x'",
    ),
    *(
        (f'name = "{name}"\nformat = "csv"\npairs = "p.csv"\nimages = "."\n', "not the name of a folder; write letters")
        for name in ("../../evil", "", "a\\nb", "x" * 200)
    ),
]
FILES = [
    ('format = "parquet"\nrows = { train = "none-*.parquet" }\n', r"none-\*.parquet; check the pattern"),
    ('format = "parquet"\nrows = { train = "none.parquet" }\n', "none.parquet does not exist"),
    ('format = "parquet"\nrows = { train = "broken.parquet" }\n', "broken.parquet is not a Parquet file"),
    ('format = "parquet"\nrows = { train = "bare.parquet" }\n', "has no column image: its columns are text"),
    (
        'format = "parquet"\nimage_column = "text"\nrows = { train = "bare.parquet" }\n',
        "'text' is string, expected image files",
    ),
    (
        'format = "parquet"\nrows = { train = "silent.parquet" }\n',
        "has no column captions, caption, sentences, raw, text: its columns are image",
    ),
    (
        'format = "parquet"\nid_column = "id"\nrows = { train = "fine.parquet" }\n',
        "has no column id: its columns are image, captions",
    ),
    ('format = "parquet"\nrows = { all = "fine.parquet" }\n', "has no column split: its columns are"),
    ('format = "webdataset"\nshards = { train = "none.tar" }\n', "none.tar do not exist"),
    ('format = "webdataset"\nshards = { train = "broken.parquet" }\n', "broken.parquet cannot be read as a zip"),
    ('format = "jsonl"\npairs = "none.jsonl"\nimages = "images"\n', "none.jsonl cannot be read"),
    ('format = "jsonl"\npairs = "broken.jsonl"\nimages = "images"\n', "broken.jsonl line 2 is not JSON"),
    ('format = "jsonl"\npairs = "list.jsonl"\nimages = "images"\n', r"line 1 is a list \(\[1\]\), expected an object"),
    ('format = "lavis"\nimages = "images"\nannotations = { train = "object.json" }\n', "object.json holds no JSON arr"),
]
URLS = [
    ({"url": "ftp://host/a.zip"}, "is not a URL to download from: expected https://, http:// or hf://"),
    ({"url": "https://host/"}, "must end with a file name"),
    ({"url": "https://host/..%5C..%5Cevil"}, "must end with a file name"),
    ({"url": "hf://datasets/birds/a.csv"}, "must be hf://datasets/OWNER/NAME@REVISION/PATH or hf://OWNER"),
    ({"url": "https://host/a", "checksum": "sha1:ab"}, "must be sha256:HEX or md5:HEX, got 'sha1:ab'"),
    ({"url": "hf://datasets/me/birds/../../evil/a.csv"}, "leads out of its repository; name a file in it"),
]
SPLITS = [
    ("train+dev", r"has no split 'dev', a part of 'train\+dev'; it has train, val, test; \+ joins splits"),
    ("train,val", "has no split 'train,val'; it has train, val, test"),
    ("train+", r"has no split '', a part of 'train\+'"),
    ("val+train+val", "has 'val' twice; name each split once"),
]
ARCHIVES = [
    ("images.zip", b"", "images.zip cannot be read as a zip"),
    ("images.zip", b"PK\x03\x04 cut off", "images.zip cannot be read as a zip"),
    ("images.zip", b"a text", "images.zip cannot be read as a zip"),
    *(("images.tar", data, "cannot be read as .*tar") for data in (b"", b"a text", bytes(100), b"x" * 2000)),
    *((name, None, "decompress a compressed tar first") for name in ("images.tar.gz", "images.tgz", "images.tar")),
]
"""None is a compressed tar."""


@pytest.fixture
def folder(tmp_path):
    """Two images, and files that are broken or of another form."""
    (tmp_path / "images").mkdir()
    data = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(data, "JPEG")
    for name in ("a.jpg", "b c.jpg"):
        (tmp_path / "images" / name).write_bytes(data.getvalue())
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 cut off")
    (tmp_path / "broken.jsonl").write_text('{"image": "a.jpg", "caption": "x"}\n{"image": ')
    (tmp_path / "list.jsonl").write_text("[1]")
    (tmp_path / "object.json").write_text("{}")
    image = {"bytes": data.getvalue(), "path": "a.jpg"}
    for name, row in {
        "bare": {"text": "x"},
        "silent": {"image": image},
        "fine": {"image": image, "captions": ["x"]},
    }.items():
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
    return tmp_path


def prepare(found, out: Path) -> None:
    prepare_corpus(found, out, options=PrepareOptions(workers=1))


def of_table(text: str, *sets: str):
    """Prepare a CSV."""

    def do(folder):
        (folder / "rows.csv").write_text(text)
        images = [folder / "images"]
        prepare(choose_manifest(PrepareJob(csv=folder / "rows.csv", images=images, overrides=sets)), folder / "out")

    return do


def of_document(text: str):
    """Prepare a JSON file of Karpathy's form."""

    def do(folder):
        (folder / "x.json").write_text(text)
        prepare(choose_manifest(PrepareJob(karpathy=folder / "x.json", images=[folder / "images"])), folder / "out")

    return do


def of_manifest(text: str):
    """Prepare by a manifest of the user."""

    def do(folder):
        (folder / "mine.toml").write_text(text)
        prepare(find_manifest(str(folder / "mine.toml")), folder / "out")

    return do


def of_places(**places: str):
    """Prepare files and images that are not there."""

    def do(folder):
        chosen = {key: folder / name for key, name in places.items()}
        prepare(choose_manifest(PrepareJob(**{**chosen, "images": [chosen["images"]]})), folder / "out")

    return do


def of_archive(name: str, data: bytes | None):
    """Open an archive of images."""

    def do(tmp_path):
        if data is None:
            with tarfile.open(tmp_path / "plain", "w") as archive:
                archive.addfile(tarfile.TarInfo("a.jpg"))
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "plain").read_bytes()) if data is None else data)
        ImageStore(tmp_path / name)

    return do


def of_counts(images: int, captions: int):
    """Count the pairs of a manifest for a plan."""

    def do(tmp_path):
        table = f"[expected.train]\nimages = {images}\ncaptions = {captions}\n"
        (tmp_path / "mine.toml").write_text(f'format = "csv"\npairs = "p.csv"\nimages = "."\n{table}')
        manifest.counted_corpus(tmp_path / "mine.toml", "train")

    return do


def of_source(**label: object):
    """Prepare a row with a source or a language."""

    def do(folder):
        (folder / "rows.jsonl").write_text(json.dumps({"image": "a.jpg", "caption": "x", **label}) + "\n")
        prepare(choose_manifest(PrepareJob(jsonl=folder / "rows.jsonl", images=[folder / "images"])), folder / "out")

    return do


ROWS = [
    *(
        Refusal(f"choice {flags}", lambda flags=flags: choose_manifest(PrepareJob(**flags)), InputError, says)
        for flags, says in CHOICES
    ),
    *(
        Refusal(
            f"encoding {name}",
            lambda name=name: choose_manifest(PrepareJob(csv=X, images=[X], overrides=[f"encoding={name}"])),
            ConfigError,
            f"unknown encoding '{name}'; known: utf-8, utf-16, cp1252",
        )
        for name in ("klingon", "base64")
    ),
    *(
        Refusal(f"set {text}", partial(find_manifest, "scenes", [text]), ConfigError, says)
        for text, says in ASSIGNMENTS
    ),
    Refusal("no manifest", partial(find_manifest, "flickr90k"), InputError, "no manifest 'flickr90k'; known: .*scenes"),
    *(Refusal(f"table {text[:60]!r}", of_table(text), InputError, says) for text, says in TABLES),
    Refusal("too much held out", of_table(TABLE, "hold_out=0.5"), ConfigError, r"hold_out must lie in \[0, 0\.3\]"),
    Refusal("held out of val", of_table(TABLE, "split=val", "hold_out=0.1"), ConfigError, "0.1, and split = 'val'"),
    *(Refusal(f"document {text}", of_document(text), InputError, says) for text, says in DOCUMENTS),
    *(Refusal(f"manifest {text[:60]!r}", of_manifest(text), ConfigError, says) for text, says in MANIFESTS),
    *(Refusal(f"file {text!r}", of_manifest(text), InputError, says) for text, says in FILES),
    *(
        Refusal(
            f"no {kind}", of_places(**{kind: "absent"}, images="images"), InputError, "absent cannot be read: No such"
        )
        for kind in ("karpathy", "csv")
    ),
    Refusal(
        "no images", of_places(csv="list.jsonl", images="absent.zip"), InputError, "; --images takes a folder or a zip"
    ),
    *(Refusal(f"archive {name} {data}", of_archive(name, data), InputError, says) for name, data, says in ARCHIVES),
    *(Refusal(f"URL {known}", partial(RemoteFile, **known), ConfigError, says) for known, says in URLS),
    Refusal("a list of URLs", partial(expand, "https://host/*.tar"), ConfigError, "only hf:// URLs may have *"),
    *(
        Refusal(
            f"split {name}",
            lambda scenes_corpus_dir, name=name: Corpus.open(scenes_corpus_dir, name),
            CorpusError,
            says,
        )
        for name, says in SPLITS
    ),
    *(
        Refusal(
            f"counts {counts}", of_counts(*counts), InputError, "mine.toml has {:,} images and {:,} cap".format(*counts)
        )
        for counts in ((-1, 5), (0, 5), (0, 0), (5, -5), (5, 0), (5, 4), (5, 2**63 - 1), (5, 10**30))
    ),
    *(
        Refusal(f"{label} {value!r}", of_source(**{label: value}), InputError, f"rows.jsonl line 1 .*{label}")
        for label in ("source", "language")
        for value in ({"a": 1}, ["human", "alt text"], "x" * 61, "two\nlines", "\ud800")
    ),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
