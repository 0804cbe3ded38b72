"""Image files in folders, zips and tars, also several at once, and in Parquet files."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import stat
import tarfile
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcdctl.core.data import FolderImageFile, RowError
from dcdctl.core.data.images import ImageStore, ParquetImageFile, archives
from dcdctl.core.errors import InputError

FILES = {
    "train2014/x.jpg": b"x of train",
    "train2014/y.jpg": b"y",
    "val2014/x.jpg": b"x of val",
    "ü 犬.png": b"named in Unicode",
}


def write_tar(path, files, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 7
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


WRITERS = {"folder": write_folder, "images.zip": write_zip, "images.tar": write_tar}


@pytest.fixture(params=WRITERS)
def store(request, tmp_path):
    return ImageStore(WRITERS[request.param](tmp_path / request.param, FILES))


def test_folder_zip_and_tar_find_the_same_files_by_the_same_names(store):
    for name, data in FILES.items():
        assert store.find(name).read() == store.find(name).read() == data
    assert store.find("y.jpg").read() == b"y"
    assert store.find("elsewhere/y.jpg").read() == b"y"
    assert sorted(store.members()) == sorted(FILES)
    with pytest.raises(RowError, match="there is no such image in"):
        store.find("z.jpg")
    with pytest.raises(
        RowError, match=r"2 images in .* have that name \(train2014/x.jpg, val2014/x.jpg\): give the full path"
    ):
        store.find("x.jpg")


@pytest.mark.parametrize("form", ["images.zip", "images.tar"])
def test_members_come_in_archive_order(tmp_path, form):
    names = ["b.txt", "b.jpg", "a.jpg", "c/a.txt"]
    path = WRITERS[form](tmp_path / form, dict.fromkeys(["._a.jpg", "__MACOSX/a.jpg", *names], b"."))
    assert ImageStore(path).members() == names


@pytest.mark.parametrize(
    "options", [{"format": tarfile.USTAR_FORMAT}, {"format": tarfile.GNU_FORMAT}, {"format": tarfile.PAX_FORMAT}]
)
def test_every_kind_of_tar_is_read(tmp_path, options):
    files = {"./a.jpg": b"", f"{'deep/' * 18}b.jpg": bytes(range(256)) * 5} | (
        {} if options["format"] == 0 else {"x" * 300: b"long"}
    )
    store = ImageStore(write_tar(tmp_path / "images.tar", files, **options))
    assert store.members() == ["a.jpg", *list(files)[1:]]
    assert [store.find(name).read() for name in store.members()] == list(files.values())


def test_the_later_of_two_files_with_one_name_in_a_tar_is_read(tmp_path):
    path = write_tar(tmp_path / "images.tar", {"a.jpg": b"first"})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"later"))
    store = ImageStore(path)
    assert (store.members(), store.find("a.jpg").read()) == (["a.jpg"], b"later")


# Several at once


def test_coco_in_two_zips_is_searched_as_one(tmp_path):
    train = write_zip(
        tmp_path / "train2014.zip", {"train2014/COCO_train2014_1.jpg": b"1", "train2014/x.jpg": b"x of train"}
    )
    val = write_tar(tmp_path / "val2014.tar", {"val2014/COCO_val2014_2.jpg": b"2", "val2014/x.jpg": b"x of val"})
    store = ImageStore([train, val])
    assert store.find("COCO_val2014_2.jpg").read() == b"2"
    assert store.find("val2014/x.jpg").read() == b"x of val"
    assert store.members()[:2] == ["train2014/COCO_train2014_1.jpg", "train2014/x.jpg"]
    message = (
        r"2 images in .*train2014.zip or .*val2014.tar have that name \(train2014.zip: train2014/x.jpg, "
        r"val2014.tar: val2014/x.jpg\)"
    )
    with pytest.raises(RowError, match=message):
        store.find("x.jpg")
    with pytest.raises(RowError, match=r"there is no such image in .*train2014.zip or .*val2014.tar"):
        store.find("z.jpg")


def test_the_name_of_a_folder_or_archive_may_begin_the_path(tmp_path):
    train = write_folder(tmp_path / "train2014", {"x.jpg": b"x of train"})
    val = write_zip(tmp_path / "val2014.zip", {"x.jpg": b"x of val"})
    store = ImageStore([train, val])
    assert store.find("train2014/x.jpg").read() == b"x of train"
    assert store.find("val2014/x.jpg").read() == b"x of val"
    with pytest.raises(RowError, match=r"\(train2014: x.jpg, val2014.zip: x.jpg\)"):
        store.find("x.jpg")


# Rejected files


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (special("../out.jpg", tarfile.REGTYPE), r"its path in the tar leads out of it \(../out.jpg\)"),
        (
            special("out.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            r"it is a link in the tar to /etc/passwd, expected a file \(out.jpg\)",
        ),
        (special("out.jpg", tarfile.LNKTYPE, "in.jpg"), "it is a link in the tar to in.jpg"),
        (special("out.jpg", tarfile.FIFOTYPE), "it is a device or another special file in the tar"),
    ],
)
def test_members_that_lead_out_of_a_tar_are_rejected_by_name(tmp_path, info, message):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("in.jpg"))
        archive.addfile(info)
    store = ImageStore(tmp_path / "images.tar")
    assert store.find("in.jpg").read() == b""
    assert len(store.members()) == 2
    with pytest.raises(RowError, match=message):
        store.find("out.jpg")


def test_members_that_lead_out_of_a_zip_are_rejected_by_name(tmp_path):
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    store = ImageStore(write_zip(tmp_path / "images.zip", {"../out.jpg": b"x", link: b"/etc/passwd"}))
    with pytest.raises(RowError, match=r"its path in the zip leads out of it \(../out.jpg\)"):
        store.find("out.jpg")
    with pytest.raises(RowError, match=r"it is a link in the zip, expected a file \(link.jpg\)"):
        store.find("link.jpg")


@pytest.mark.parametrize("keep", [700, 1200, 2600])
def test_a_truncated_tar_is_rejected(tmp_path, keep):
    path = write_tar(tmp_path / "images.tar", {"a.jpg": b"a" * 600, "b.jpg": b"b" * 600})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"tar \(unexpected end of data\).*a download may have been cut off"):
        ImageStore(path)


def test_a_tar_with_a_damaged_header_is_rejected(tmp_path):
    path = write_tar(tmp_path / "images.tar", {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c"})
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 1  # the checksum of b.jpg
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"the tar .*images.tar is damaged at byte 1,024"):
        ImageStore(path)


def test_a_tar_that_shrank_after_listing_is_an_error(tmp_path):
    path = write_tar(tmp_path / "images.tar", {"a.jpg": b"a" * 600})
    image_file = ImageStore(path).find("a.jpg")
    path.write_bytes(path.read_bytes()[:612])
    with pytest.raises(RowError, match=r"cannot be read from images.tar \(the archive ends 500 bytes early\)"):
        image_file.read()


def test_a_large_file_is_rejected_unread(store, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 5)
    assert store.find("y.jpg").read() == b"y"
    with pytest.raises(RowError, match="its image file is larger than 5 bytes"):
        store.find("val2014/x.jpg").read()


# In workers


def read(image_file):
    return image_file.read()


def test_image_files_are_read_in_other_processes(store):
    image_files = [store.find(name) for name in FILES]
    assert [image_file.read() for image_file in pickle.loads(pickle.dumps(image_files))] == list(FILES.values())
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as pool:
        assert list(pool.map(read, image_files * 3)) == list(FILES.values()) * 3


def test_image_files_are_read_by_several_threads(tmp_path):
    """Of one open zip, whose file position the threads share."""
    files = {f"{i}.jpg": bytes([i]) * (1 + 977 * i) for i in range(60)}
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    image_files = [ImageStore(path).find(name) for name in files] * 10
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, image_files)) == list(files.values()) * 10


def test_a_stamp_changes_with_the_file_and_not_by_reading(store, tmp_path):
    stamps = [store.find(name).stamp() for name in FILES]
    assert len(set(stamps)) == len(FILES)
    store.find("y.jpg").read()
    assert [store.find(name).stamp() for name in FILES] == stamps
    write = next(writer for name, writer in WRITERS.items() if name == store.paths[0].name)
    again = ImageStore(write(tmp_path / store.paths[0].name, FILES | {"train2014/y.jpg": b"another"}))
    assert [again.find(name).stamp() == stamp for name, stamp in zip(FILES, stamps, strict=True)] == [
        True,
        False,
        True,
        True,
    ]


def test_the_entries_of_a_tar_are_its_files_without_folders(tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.addfile(special("folder", tarfile.DIRTYPE))
        archive.addfile(special("folder/a.jpg", tarfile.REGTYPE))
    assert ImageStore(tmp_path / "images.tar").members() == ["folder/a.jpg"]


# Parquet


@pytest.fixture
def parquet(tmp_path):
    images = [{"bytes": bytes([i]) * (i + 1), "path": f"{i}.jpg"} for i in range(7)] + [
        {"bytes": None, "path": "far.jpg"},
        None,
    ]
    table = pa.table({"image": images, "plain": [bytes([i]) for i in range(9)], "text": ["x"] * 9})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=3)
    return tmp_path / "train.parquet"


def test_a_row_of_a_parquet_file_is_an_image_file(parquet):
    assert [ParquetImageFile(parquet, i // 3, i % 3).read() for i in range(7)] == [
        bytes([i]) * (i + 1) for i in range(7)
    ]
    assert ParquetImageFile(parquet, 2, 1, column="plain").read() == b"\x07"
    for row in (1, 2):
        with pytest.raises(
            RowError, match=r"train.parquet has no bytes of its image in column 'image', at most a path"
        ):
            ParquetImageFile(parquet, 2, row).read()
    stamps = {ParquetImageFile(parquet, i // 3, i % 3).stamp() for i in range(9)}
    assert len(stamps) == 9


def test_a_link_out_of_a_folder_of_images_is_not_followed(tmp_path):
    for name in ("secret.jpg", "photos/a.jpg", "photos/sub/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    photos = tmp_path / "photos"
    (photos / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (photos / "sub" / "out.jpg").symlink_to("../../secret.jpg")
    (photos / "sub" / "in.jpg").symlink_to("../a.jpg")
    for name in ("out.jpg", "sub/out.jpg"):
        with pytest.raises(RowError, match=r"its image is a link that leads out of the folder .*photos") as refused:
            FolderImageFile(photos, name).read()
        assert refused.value.kind == "link"
    assert [FolderImageFile(photos, name).read() for name in ("sub/in.jpg", "sub/b.jpg")] == [
        b"photos/a.jpg",
        b"photos/sub/b.jpg",
    ]


def test_a_large_row_of_a_parquet_file_is_rejected(parquet, monkeypatch):
    file = ParquetImageFile(parquet, 0, 0)
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", len(file.read()))
    file.read()
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", len(file.read()) - 1)
    with pytest.raises(RowError, match=r"its image file is larger than \d+ bytes") as refused:
        file.read()
    assert refused.value.kind == "too-large"


def test_rows_of_a_large_group_are_read_in_any_order_and_few_at_a_time(tmp_path):
    images = [{"bytes": bytes([i]) * 100_000, "path": None} for i in range(200)]
    pq.write_table(
        pa.table({"image": images}),
        tmp_path / "one.parquet",
        row_group_size=1000,
        write_batch_size=4,
        data_page_size=1 << 18,
    )
    del images
    before = pa.total_allocated_bytes()
    for i in [*range(0, 200, 3), 5, 199, 198, 0]:
        assert ParquetImageFile(tmp_path / "one.parquet", 0, i).read() == bytes([i]) * 100_000
        assert pa.total_allocated_bytes() - before < 8 << 20  # of 20 MB


def test_a_damaged_parquet_file_is_named(parquet):
    image_file = ParquetImageFile(parquet, 0, 0)
    parquet.write_bytes(b"PAR1 cut off")
    with pytest.raises(RowError, match=r"its image cannot be read from train.parquet \("):
        image_file.read()
    with pytest.raises(RowError, match=r"cannot be read from gone.parquet \("):
        ParquetImageFile(parquet.with_name("gone.parquet"), 0, 0).read()


def test_a_damaged_page_makes_only_its_rows_and_later_ones_unreadable(tmp_path):
    rng = np.random.default_rng(0)
    images = [{"bytes": rng.bytes(2000), "path": None} for _ in range(64)]
    path = tmp_path / "one.parquet"
    options = {"compression": "gzip", "use_dictionary": False, "write_batch_size": 4, "data_page_size": 1 << 13}
    pq.write_table(pa.table({"image": images}), path, **options)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    results = [read_or_reason(ParquetImageFile(path, 0, i)) for i in range(64)]
    num_intact = next(i for i in range(64) if isinstance(results[i], str))
    assert 10 < num_intact < 50
    assert results[:num_intact] == [image["bytes"] for image in images[:num_intact]]
    assert all("its image cannot be read from one.parquet (" in reason for reason in results[num_intact:])


def read_or_reason(image_file):
    try:
        return image_file.read()
    except RowError as error:
        return str(error)


def test_a_missing_row_is_named(parquet):
    with pytest.raises(RowError, match=r"cannot be read from train.parquet \(row group 2 ends before row 3\)"):
        ParquetImageFile(parquet, 2, 3).read()


def test_a_folder_and_a_pipe_are_no_images(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("folder.jpg", "pipe.jpg"):
        with pytest.raises(RowError, match="a folder, a device or a pipe, expected a file"):
            FolderImageFile(tmp_path, name).read()
