"""Archives and tables whose directories lie: what they hold is bounded, refused by name, and never read from
outside."""

from __future__ import annotations

import io
import random
import re
import struct
import tarfile
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcdctl.core.data import PrepareOptions, RowError, manifest, prepare_corpus
from dcdctl.core.data.images import ImageStore, ParquetImageFile, parquet
from dcdctl.core.errors import DcdError, InputError

COMPRESSIONS = {"stored": zipfile.ZIP_STORED, "deflate": zipfile.ZIP_DEFLATED}
CONTENT = bytes(range(256)) * 5


def zip_that_says(path, size, compression, content=CONTENT):
    """A zip with one member, a.jpg, of another size in its directory."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.jpg", content)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rfind(b"PK\x01\x02") + 24, size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", [1, len(CONTENT) - 1, len(CONTENT) + 1, 200 << 20])
def test_a_zip_that_lies_about_the_size_of_a_member_is_an_error(tmp_path, compression, size):
    path = zip_that_says(tmp_path / "images.zip", size, COMPRESSIONS[compression])
    lie = f"the zip says {size:,} bytes, it holds 1,280" if size > len(CONTENT) else "Bad CRC-32 for file 'a.jpg'"
    with pytest.raises(RowError, match=re.escape(f"cannot be read from images.zip ({lie})")):
        ImageStore(path).find("a.jpg").read()
    assert ImageStore(zip_that_says(path, len(CONTENT), COMPRESSIONS[compression])).find("a.jpg").read() == CONTENT


@pytest.mark.parametrize("compression", ["bzip2", "lzma"])
def test_a_compression_that_unpacks_without_a_limit_is_refused(tmp_path, compression):
    unbounded = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}[compression]
    path = zip_that_says(tmp_path / "images.zip", len(CONTENT), unbounded)
    with pytest.raises(RowError, match="it is compressed by another method than deflate"):
        ImageStore(path).find("a.jpg").read()


def test_a_member_that_unpacks_to_far_more_takes_no_memory(tmp_path):
    path = zip_that_says(tmp_path / "images.zip", 1000, zipfile.ZIP_DEFLATED, bytes(48 << 20))
    store = ImageStore(path)
    tracemalloc.start()
    try:
        with pytest.raises(RowError, match="Bad CRC-32"):
            store.find("a.jpg").read()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def damaged(data, rng, spans=((0, None),)):
    """A copy with one to three changed bytes, of a fifth also the end cut off; tar headers get a fitting checksum."""
    result = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        first, length = rng.choice(spans)
        result[first + rng.randrange(length or len(result))] = rng.randrange(256)
        if length and rng.random() < 0.7:
            result[first + 148 : first + 156] = b" " * 8
            result[first + 148 : first + 156] = b"%06o\0 " % sum(result[first : first + 512])
    return bytes(result[: rng.randrange(len(result))] if rng.random() < 0.2 else result)


def read_all(path):
    """Read every member; "named" if it, or the archive, is refused. Any other exception fails the test."""
    try:
        store = ImageStore(path)
    except InputError:
        return ["named"]
    outcomes = []
    for name in store.members():
        try:
            image_file = store.find(name)
            image_file.stamp()
            assert len(image_file.read()) <= len(CONTENT)
            outcomes.append("read")
        except RowError:
            outcomes.append("named")
    return outcomes


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_damaged_zip_is_named_or_read(tmp_path, compression):
    rng, stream = random.Random(compression), io.BytesIO()
    with zipfile.ZipFile(stream, "w", COMPRESSIONS[compression]) as archive:
        archive.writestr("a.jpg", CONTENT)
        archive.writestr("d/b.jpg", b"hello" * 50)
    outcomes = []
    for number in range(250):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(damaged(stream.getvalue(), rng))
        outcomes += read_all(path)
        path.unlink()
    assert outcomes.count("named") > 50


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_damaged_tar_is_named_or_read(tmp_path, form):
    rng, stream = random.Random(form), io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name in ("a.jpg", "d/b.txt", "x" * (150 if form != tarfile.USTAR_FORMAT else 50)):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 700, {"comment": "hello"}
            archive.addfile(info, io.BytesIO(bytes(700)))
    data = stream.getvalue()
    headers = [(first, 512) for first in range(0, len(data), 512) if any(data[first : first + 512])]
    outcomes = []
    for number in range(250):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(damaged(data, rng, headers))
        outcomes += read_all(path)
        path.unlink()
    assert outcomes.count("named") > 20


PAX = {
    "infinite time": {"mtime": "inf"},
    "time beyond floats": {"mtime": "1e400"},
    "huge size": {"size": "99999999999999999999"},
    "negative size": {"size": "-5"},
    "path out": {"path": "../../x"},
    "sparse of 100 GB": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999999"},
    "sparse map of 1 TB": {"GNU.sparse.size": "1000000000000", "GNU.sparse.map": "0,1"},
}


@pytest.mark.parametrize("case", PAX)
def test_a_tar_whose_extended_header_lies_is_named(tmp_path, case):
    with tarfile.open(tmp_path / "images.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = 10, PAX[case]
        archive.addfile(info, io.BytesIO(bytes(10)))
    assert read_all(tmp_path / "images.tar") == ["named"]


@pytest.mark.parametrize("column", ["image", "captions"])
def test_a_parquet_file_that_unpacks_to_far_more_is_refused_before_it_is_read(tmp_path, column, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 1 << 20)
    many = [bytes([number]) * (1 << 19) for number in range(4)]
    table = {"image": [{"bytes": b"x", "path": f"{i}.jpg"} for i in range(4)], "captions": [["a dog"]] * 4}
    table[column] = (
        [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(many)]
        if column == "image"
        else [[data] for data in many]
    )
    pq.write_table(pa.table(table), tmp_path / "rows.parquet", compression="zstd", use_dictionary=False)
    before = pa.total_allocated_bytes()
    if column == "image":
        with pytest.raises(RowError, match=r"rows.parquet \([\d,]+ bytes of its column image.bytes unpack to 2,097,"):
            ParquetImageFile(tmp_path / "rows.parquet", 0, 0).read()
    else:
        with pytest.raises(
            InputError, match=r"row group 0 of .*rows.parquet cannot be read \([\d,]+ bytes of its column captions"
        ):
            prepare_table(tmp_path)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_a_small_column_may_unpack_to_any_multiple_of_its_size(tmp_path):
    image = bytes(1 << 20)
    table = pa.table({"image": [{"bytes": image, "path": "a.jpg"}]})
    pq.write_table(table, tmp_path / "rows.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "rows.parquet").stat().st_size * parquet.MAX_INFLATION < len(image)
    assert ParquetImageFile(tmp_path / "rows.parquet", 0, 0).read() == image


def prepare_table(folder):
    (folder / "mine.toml").write_text('format = "parquet"\nrows = { train = "rows.parquet" }\n', encoding="utf-8")
    prepare_corpus(manifest.find_manifest(str(folder / "mine.toml")), folder / "out", options=PrepareOptions(workers=1))


# Names that lead out

NAMES_THAT_LEAD_OUT = [
    "/etc/passwd",
    "../x.jpg",
    "a/../../x.jpg",
    "C:\\x.jpg",
    "..\\x.jpg",
    "\\\\server\\x.jpg",
    "//x.jpg",
]


@pytest.mark.parametrize("name", NAMES_THAT_LEAD_OUT)
@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_an_annotation_cannot_name_a_file_outside(tmp_path, form, name):
    (tmp_path / "x.jpg").write_bytes(b"secret")
    (tmp_path / "images").mkdir()
    path = tmp_path / "images"
    if form != "folder":
        path = tmp_path / f"images.{form}"
        with zipfile.ZipFile(path, "w") if form == "zip" else tarfile.open(path, "w") as archive:
            archive.writestr(name, b"x") if form == "zip" else archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(RowError, match="leads out of"):
        ImageStore(path).find(name)
    with pytest.raises((RowError, DcdError), match=r"leads out of|there is no such image"):
        ImageStore(path).find("x.jpg")
