"""`dcdctl prepare`: correct and incorrect inputs, and runs that are killed."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from forks import run_forked
from PIL import Image
from processes import TIMEOUT_S
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, PrepareOptions, manifest, near_duplicates, prepare_corpus
from dcdctl.core.data.images import FolderImageFile, checks
from dcdctl.core.errors import CorpusError, InputError, StaleError
from dcdctl.core.files import sha256_of

ALL_IMAGES = ["a.jpg", "b with space.jpg", "ü.png", "d.webp"]


def image_file(i, suffix, side=(24, 16), **options):
    noise = np.random.default_rng(i).integers(0, 256, (side[1], side[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[suffix], **options)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(ALL_IMAGES):
        (folder / name).write_bytes(image_file(i, Path(name).suffix))
    return folder


def entry(name, split="train", raws=("a dog", "a brown dog"), **more):
    return {"filename": name, "split": split, "sentences": [{"raw": raw} for raw in raws], **more}


@pytest.fixture
def karpathy(tmp_path, images):
    """Prepares a corpus from the entries of a Karpathy JSON."""

    def prepared(entries, *, folder=tmp_path, images=images, **options):
        path = folder / "dataset.json"
        path.write_text(json.dumps({"images": entries}))
        source = manifest.choose_manifest(manifest.PrepareJob(karpathy=path, images=[images]))
        return prepare_corpus(source, folder / "out", options=PrepareOptions(**({"workers": 1} | options)))

    return prepared


@pytest.fixture
def pairs(tmp_path, images):
    """Prepares a corpus from the text of a CSV."""

    def prepared(text, sets=(), **options):
        path = tmp_path / "pairs.csv"
        path.write_text(text, encoding="utf-8")
        source = manifest.choose_manifest(manifest.PrepareJob(csv=path, images=[images], overrides=sets))
        return prepare_corpus(source, tmp_path / "out", options=PrepareOptions(**({"workers": 1} | options)))

    return prepared


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def fingerprints(summary):
    return {split: entry["fingerprint"] for split, entry in summary.splits.items()}


# What is written


def test_karpathy_rows_keep_their_order_bytes_captions_and_numbers(tmp_path, images, karpathy):
    entries = [entry(name, split) for name, split in zip(ALL_IMAGES, ["train", "test", "restval", "val"], strict=True)]
    entries[0]["sentences"] = [
        {"raw": "One dog .", "sentid": 70},
        {"raw": "Ein Hund läuft", "sentid": 71},
        {"raw": "犬", "sentid": 5},
    ]
    for i, one in enumerate(entries[1:]):
        one["sentences"] = [{"raw": f"only {i}", "sentid": i}]
    summary = karpathy(entries)
    assert {split: (found["images"], found["captions"]) for split, found in summary.splits.items()} == {
        "train": (2, 4),
        "val": (1, 1),
        "test": (1, 1),
    }
    train = Corpus.open(tmp_path / "out", "train")
    assert train.image_ids == ["a.jpg", "ü.png"]  # restval is train
    assert train.captions == ["One dog .", "Ein Hund läuft", "犬", "only 1"]
    assert train.caption_ids.tolist() == [70, 71, 5, 1]
    assert train.image_bytes(1) == (images / "ü.png").read_bytes()
    assert train.name == "dataset"
    table = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet")
    assert [row["path"] for row in table["image"].to_pylist()] == ["a.jpg", "ü.png"]
    assert table["width"].to_pylist() == [24, 24]


def test_captions_without_numbers_are_counted_through_the_file(tmp_path, karpathy):
    karpathy([entry("a.jpg"), entry("ü.png", "val"), entry("d.webp")])
    assert Corpus.open(tmp_path / "out", "train").caption_ids.tolist() == [0, 1, 4, 5]


def test_csv_rows_of_one_image_need_not_be_adjacent(tmp_path, pairs):
    text = 'image,caption\na.jpg,"one, two"\nü.png,three\n\na.jpg,NA\nü.png,"She said ""hi"""\n'
    pairs(text)
    train = Corpus.open(tmp_path / "out", "train")
    assert train.image_ids == ["a.jpg", "ü.png"]
    assert train.captions == ["one, two", "NA", "three", 'She said "hi"']
    assert train.caption_ids.tolist() == [0, 2, 1, 3]


def test_csv_rows_without_a_split_column_go_to_the_set_split(tmp_path, pairs):
    summary = pairs("image,caption\na.jpg,x\n", sets=["split=test", "name=mine", "license=CC0"])
    assert (list(summary.splits), summary.name) == (["test"], "mine")
    assert json.loads((tmp_path / "out" / "corpus.json").read_text())["licence"] == "CC0"


def test_splits_and_max_images_choose_rows_and_other_rows_are_not_read(karpathy):
    entries = [entry("a.jpg", "val"), entry("ü.png", "val"), entry("gone.jpg", "val"), entry("also gone.jpg", "train")]
    summary = karpathy(entries, splits=("val",), max_images=2)
    assert {split: found["images"] for split, found in summary.splits.items()} == {"val": 2}


@pytest.mark.parametrize("prefix", ["", "Flicker8k_Dataset/", "deep/er/"])
def test_a_zip_and_a_folder_give_the_same_corpus(tmp_path, images, karpathy, prefix):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__MACOSX/a.jpg", b"not an image")
        for name in ALL_IMAGES:
            file.write(images / name, prefix + name)
    entries = [entry(name) for name in ALL_IMAGES]
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    from_zip = karpathy(entries, folder=tmp_path / "1", images=archive)
    assert fingerprints(from_zip) == fingerprints(karpathy(entries, folder=tmp_path / "2"))


def test_image_size_shrinks_the_shorter_side_and_never_enlarges(tmp_path, images, karpathy):
    (images / "large.jpg").write_bytes(image_file(9, ".jpg", side=(90, 60)))
    (images / "tall.webp").write_bytes(image_file(9, ".webp", side=(40, 81)))
    karpathy([entry("large.jpg"), entry("tall.webp"), entry("a.jpg")], image_size_px=20)
    train = Corpus.open(tmp_path / "out", "train")
    assert [image.size for image in train.images(range(3))] == [(30, 20), (20, 40), (24, 16)]
    assert train.image_bytes(2) == (images / "a.jpg").read_bytes()
    rows = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet").to_pylist()
    assert [(row["width"], row["height"]) for row in rows] == [(30, 20), (20, 40), (24, 16)]
    assert [row["image"]["path"] for row in rows] == ["large.jpg", "tall.png", "a.jpg"]
    assert rows[1]["image"]["bytes"].startswith(b"\x89PNG")


def test_the_number_of_workers_changes_no_byte_and_shards_change_no_fingerprint(tmp_path):
    source = manifest.find_manifest("scenes", ["counts.train=70", "counts.val=0", "counts.test=9", "side_px=32"])
    runs = {}
    for workers, shard_size in [(1, 20), (2, 20), (3, 20), (1, 1000)]:
        out = tmp_path / f"{workers}-{shard_size}"
        runs[workers, shard_size] = (
            prepare_corpus(source, out, options=PrepareOptions(workers=workers, shard_size=shard_size)),
            contents(out),
        )
    assert runs[1, 20][1] == runs[2, 20][1] == runs[3, 20][1]
    assert len(runs[1, 20][1]) == 4 + 1 + 1
    assert fingerprints(runs[1, 1000][0]) == fingerprints(runs[1, 20][0])


def test_corpus_json_has_the_provenance(karpathy, tmp_path):
    karpathy([entry("a.jpg")])
    index = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert index["source"]["annotations"] == {"file": "dataset.json", "sha256": sha256_of(tmp_path / "dataset.json")}
    assert str(tmp_path) not in json.dumps(index)
    shard = index["splits"]["train"]["shards"][0]
    path = tmp_path / "out" / "train-00000-of-00001.parquet"
    assert shard == {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path), "rows": 1}


def test_scenes_are_png_files_named_by_split_and_number(scenes_corpus_dir):
    test = Corpus.open(scenes_corpus_dir, "test")
    rows = pq.read_table(scenes_corpus_dir / "test-00000-of-00001.parquet").to_pylist()
    assert (test.num_images, test.num_captions, test.image(12).size) == (16, 80, (64, 64))
    assert (rows[12]["image_id"], rows[12]["image"]["path"]) == ("test/000012", "test/000012.png")
    assert Image.open(io.BytesIO(test.image_bytes(12))).format == "PNG"


# What is wrong with what users bring


BAD_ENTRIES = {
    "an entry that is a list": ([], r"images\[1\]: a list \(\[\]\), expected an object"),
    "a filename that is a number": (entry(17), r'images\[1\]: "filename" is a number \(17\)'),
    "a missing image": (entry("gone.jpg"), r'dataset.json images\[1\] "gone.jpg": there is no such image in'),
    "a name no file can have": (entry("x" * 5000), "there is no such image in"),
    "a path with dots": (entry("../secret.jpg"), "leads out of the folder"),
    "a folder that is a list": (entry("ü.png", filepath=["x"]), r'"filepath" is a list'),
    "an unknown split": (
        entry("ü.png", "holdout"),
        r"images\[1\]: unknown split 'holdout' \(known: train, val, test, restval, ",
    ),
    "a split that is a list": (entry("ü.png", ["train"]), '"split" is a list'),
    "no captions": (entry("ü.png", raws=()), "the image has no caption"),
    "captions that are missing": (
        {"filename": "ü.png", "split": "train"},
        '"sentences" is missing or null, expected a list',
    ),
    "captions that are one string": (
        entry("ü.png") | {"sentences": "a dog"},
        r'"sentences" is a string \("a dog"\), expected a list',
    ),
    "a sentence that is a string": (
        entry("ü.png") | {"sentences": ["a dog"]},
        "caption 0 is missing or null",
    ),
    "a caption that is a number": (entry("ü.png", raws=("a", 5)), r"caption 1 is a number \(5\), expected text"),
    "an image twice": (entry("a.jpg"), r"the same image as dataset.json images\[0\]"),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_a_bad_karpathy_entry_is_an_error_with_its_number_or_is_skipped(tmp_path, karpathy, case):
    (tmp_path / "secret.jpg").write_bytes(image_file(0, ".jpg"))
    bad, message = BAD_ENTRIES[case]
    entries = [entry("a.jpg"), bad, entry("d.webp")]
    with pytest.raises(InputError, match=message) as stopped:
        karpathy(entries)
    assert "dataset.json images[1]" in str(stopped.value)
    assert "--on-error skip" in stopped.value.hint
    summary = karpathy(entries, on_error="skip")
    assert Corpus.open(tmp_path / "out", "train").image_ids == ["a.jpg", "d.webp"]
    assert [row.row for row in summary.skipped] == ["dataset.json images[1]"]
    assert summary.skipped[0].reason in str(stopped.value)
    assert json.loads((tmp_path / "out" / "corpus.json").read_text())["skipped"] == to_table(summary.skipped)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("keep", "message"), [(0, r"the image file is empty \(0 bytes\)"), (-100, "truncated or damaged")]
)
def test_a_bad_image_is_an_error_with_its_row_or_is_skipped(tmp_path, images, karpathy, keep, message, workers):
    names = [f"{i:02}.jpg" for i in range(20)]
    for name in names:
        (images / name).write_bytes(image_file(1, ".jpg"))
    (images / "09.jpg").write_bytes(image_file(1, ".jpg")[:keep])
    entries = [entry(name) for name in names]
    with pytest.raises(InputError, match=message) as stopped:
        karpathy(entries, workers=workers)
    assert str(stopped.value).startswith('dataset.json images[9] "09.jpg": ')
    assert not (tmp_path / "out" / "corpus.json").exists()
    summary = karpathy(entries, workers=workers, on_error="skip")
    assert Corpus.open(tmp_path / "out", "train").image_ids == names[:9] + names[10:]
    assert [(row.row, row.image) for row in summary.skipped] == [("dataset.json images[9]", "09.jpg")]


def test_a_link_out_of_the_folder_is_an_error(tmp_path, images, karpathy):
    (tmp_path / "secret.jpg").write_bytes(image_file(0, ".jpg"))
    (images / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (images / "inside.jpg").symlink_to(images / "a.jpg")
    karpathy([entry("inside.jpg")], splits=("train",))
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match=r'images\[0\] "link.jpg": its image is a link that leads out of the folder'):
        karpathy([entry("link.jpg")], folder=tmp_path / "again")


def test_a_damaged_zip_member_is_named(tmp_path, images, karpathy):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(images / "a.jpg", "a.jpg")
        file.write(images / "ü.png", "ü.png")
    data = bytearray(archive.read_bytes())
    data[200] ^= 255
    archive.write_bytes(data)
    with pytest.raises(InputError, match=r'images\[1\] "a.jpg": its image cannot be read from images.zip \(Bad CRC-32'):
        karpathy([entry("ü.png"), entry("a.jpg")], images=archive)


BAD_LINES = {
    "a missing image": ("gone.jpg,x", '"gone.jpg": there is no such image'),
    "no image": (",x", "no image is named"),
    "an empty caption": ("a.jpg,", '"a.jpg": the caption is empty'),
    "a caption that is a number": ("a.jpg,42", r"the caption is a number \(42\), expected text"),
    "a caption that is null": ("a.jpg,null", "the caption is missing or null"),
    "a list of captions in one cell": ('a.jpg,"[""a dog"", 5]"', "caption 1 is a number"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_csv_line_is_an_error_with_its_number_or_is_skipped(tmp_path, pairs, case):
    line, message = BAD_LINES[case]
    text = f'image,caption\na.jpg,"over\ntwo lines"\n\n{line}\nü.png,fine\n'
    with pytest.raises(InputError, match=message) as stopped:
        pairs(text)
    assert str(stopped.value).startswith("pairs.csv line 5")
    summary = pairs(text, on_error="skip")
    assert Corpus.open(tmp_path / "out", "train").captions == ["over\ntwo lines", "fine"]
    assert [row.row for row in summary.skipped] == ["pairs.csv line 5"]


def test_an_empty_split_is_an_error_even_where_rows_are_skipped(images, karpathy):
    with pytest.raises(InputError, match="split 'test' is empty; the source has no row of it"):
        karpathy([entry("a.jpg")], splits=("train", "test"))
    with pytest.raises(
        InputError,
        match=r"split 'val' is empty; the first skipped row: dataset.json images\[1\]: there is no such image",
    ):
        karpathy([entry("a.jpg"), entry("gone.jpg", "val")], on_error="skip")
    (images / "zero.jpg").touch()
    with pytest.raises(InputError, match=r"split 'val' is empty; .*images\[1\]: the image file is empty"):
        karpathy([entry("a.jpg"), entry("zero.jpg", "val")], on_error="skip")


# The folder that is written


def test_a_folder_of_something_else_is_an_error_and_stays_unchanged(tmp_path, karpathy):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("dear")
    with pytest.raises(
        StaleError, match=r"out is not empty and holds no corpus \(found thesis\.txt\); name an empty or a new folder"
    ):
        karpathy([entry("a.jpg")])
    assert contents(tmp_path / "out") == {"thesis.txt": b"dear"}


def test_the_same_corpus_is_already_prepared_and_another_one_is_an_error(tmp_path, karpathy):
    first = karpathy([entry("a.jpg"), entry("ü.png")])
    before = contents(tmp_path / "out")
    again = karpathy([entry("a.jpg"), entry("ü.png")], workers=2)
    assert (first.already_there, again.already_there) == (False, True)
    assert (again.splits, str(again).splitlines()[0].startswith("dataset: already prepared in")) == (first.splits, True)
    for entries, options in [([entry("a.jpg")], {}), ([entry("a.jpg"), entry("ü.png")], {"image_size_px": 4})]:
        with pytest.raises(
            InputError, match="finished corpus, dataset, made from other files or with other options; name another"
        ):
            karpathy(entries, **options)
    assert contents(tmp_path / "out") == before


def test_an_unfinished_folder_of_another_plan_is_started_again(tmp_path, images, karpathy):
    (images / "zero.jpg").touch()
    entries = [entry("a.jpg"), entry("ü.png"), entry("zero.jpg")]
    with pytest.raises(InputError, match="empty"):
        karpathy(entries, shard_size=1)
    assert sorted(contents(tmp_path / "out")) == [
        "prepare.json",
        "train-00000-of-00003.parquet",
        "train-00001-of-00003.parquet",
    ]
    with pytest.raises(
        CorpusError, match=r"the corpus in .*out is not finished; run the same `dcdctl prepare` again: it resumes"
    ):
        Corpus.open(tmp_path / "out", "train")
    karpathy(entries[:2], shard_size=2)
    assert sorted(contents(tmp_path / "out")) == ["corpus.json", "train-00000-of-00001.parquet"]


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_corpus_of_an_earlier_format_is_refused_by_name(tmp_path, is_finished):
    source = manifest.find_manifest("scenes", ["counts.train=3", "counts.val=0", "counts.test=2", "side_px=16"])
    prepare_corpus(source, tmp_path / "out", options=PrepareOptions(workers=1))
    name = "corpus.json" if is_finished else "prepare.json"
    (tmp_path / "out" / "corpus.json").rename(tmp_path / "out" / name)
    (tmp_path / "out" / name).write_text(json.dumps({"format": 1, "name": "scenes", "splits": {}}))
    message = (
        rf"{name} is of format 1, this dcdctl reads format 2; delete the folder and run the same `dcdctl prepare` again"
    )
    with pytest.raises(CorpusError, match=message):
        prepare_corpus(source, tmp_path / "out", options=PrepareOptions(workers=1))


@pytest.mark.parametrize("damage", ["flipped", "swapped"])
def test_a_resumed_run_writes_a_damaged_finished_shard_again(tmp_path, monkeypatch, damage):
    def run(out):
        source = manifest.find_manifest("scenes", ["counts.train=6", "counts.val=0", "counts.test=0", "side_px=16"])
        prepare_corpus(source, out, options=PrepareOptions(workers=1, shard_size=2))

    run(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(near_duplicates, "find_leakage", lambda splits: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out")
    first, second = (tmp_path / "out" / f"train-0000{shard}-of-00003.parquet" for shard in (0, 1))
    data = first.read_bytes()
    if damage == "flipped":
        first.write_bytes(data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
    else:
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    run(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


SCRIPT = """
import json, sys
from pathlib import Path
import pandas  # pyarrow imports it with the first table, which would take most of each fork's time
from dcdctl.core.data import PrepareOptions, find_manifest, prepare_corpus
from kills import kill_often

source = find_manifest("scenes", ["counts.train=96", "counts.val=8", "counts.test=40", "side_px=96"])
kept: dict[str, int] = {}
is_complete = []


def work(out: Path) -> None:
    prepare_corpus(source, out, options=PrepareOptions(workers=int(sys.argv[3]), shard_size=16))


def check(out: Path) -> None:
    plan = out / "prepare.json"
    shards = json.loads(plan.read_text()).get("shards", ()) if plan.exists() else kept
    times = {name: (out / name).stat().st_mtime_ns for name in shards}
    assert {name: times[name] for name in kept} == kept, "finished shards are not made again"
    kept.update(times)
    is_complete.append((out / "corpus.json").exists())


kill_often(work, Path(sys.argv[1]), Path(sys.argv[2]), num_kills=3, check=check)
print(json.dumps([len(kept), is_complete]))
"""


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_that_is_killed_repeatedly_ends_with_the_same_bytes(tmp_path, workers):
    num_kept, is_complete = json.loads(run_forked(SCRIPT, tmp_path / "whole", tmp_path / "victim", workers)[0])
    assert is_complete == [False, False, False, True]
    assert num_kept > 1
    assert contents(tmp_path / "victim") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "victim")) == 6 + 1 + 3 + 1


def test_an_interrupt_ends_the_command_at_once_and_keeps_finished_shards(tmp_path):
    out, counts = tmp_path / "out", ("counts.train=4", "counts.val=200000", "counts.test=0")
    command = [
        sys.executable,
        "-m",
        "dcdctl",
        "prepare",
        "scenes",
        "--out",
        out,
        "--workers",
        "3",
        *(x for count in counts for x in ("--set", count)),
    ]
    # What a shell starts in the background ignores SIGINT, and so would the child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        while process.poll() is None and not (
            (out / "prepare.json").exists() and "train-00000" in (out / "prepare.json").read_text()
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, messages
    assert "interrupted: finished work, if any, is kept" in messages
    assert "Traceback" not in messages
    assert list(json.loads((out / "prepare.json").read_text())["shards"]) == ["train-00000-of-00001.parquet"]


def test_too_little_memory_in_a_thread_is_an_error_at_once_and_ends_the_threads(images, karpathy, monkeypatch):
    """Not a damaged image, which may be skipped."""
    (images / "late").mkdir()
    for i in range(400):
        (images / "late" / f"{i}.jpg").write_bytes(b"never read")
    read, begun = FolderImageFile.read, []

    def fail(file):
        begun.append(file.name)
        if file.name == "d.webp":
            raise MemoryError
        return read(file)

    monkeypatch.setattr(FolderImageFile, "read", fail)
    rows = [entry(name) for name in [*ALL_IMAGES, *(f"late/{i}.jpg" for i in range(400))]]
    with pytest.raises(InputError, match=r"there is too little memory .* fewer --workers"):
        karpathy(rows, workers=2, on_error="skip")
    assert len(begun) <= 4 + 2 * checks.AHEAD_PER_WORKER
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


# The command


def run_cli(*arguments):
    return CliRunner().invoke(app, ["prepare", *map(str, arguments)])


def test_the_command_leaves_a_corpus_and_prints_one_json_document(tmp_path, images):
    (tmp_path / "dataset.json").write_text(
        json.dumps({"images": [entry("a.jpg"), entry("gone.jpg"), entry("ü.png", "val")]})
    )
    flags = [
        "--karpathy",
        tmp_path / "dataset.json",
        "--images",
        images,
        "--out",
        tmp_path / "out",
        "--splits",
        "train, val",
    ]
    stopped = run_cli(*flags)
    assert (stopped.exit_code, stopped.stdout) == (1, "")
    assert 'error: dataset.json images[1] "gone.jpg": there is no such image' in stopped.stderr
    done = run_cli(*flags, "--on-error", "skip", "--workers", "1", "--json")
    assert done.exit_code == 0
    assert [row["row"] for row in json.loads(done.stdout)["skipped"]] == ["dataset.json images[1]"]
    assert Corpus.open(tmp_path / "out", "val").image_ids == ["ü.png"]


def test_the_command_lists_the_manifests():
    shown = run_cli("--list").stdout
    assert all(name in shown for name in ("scenes", "flickr8k", "flickr30k", "coco", "train 113,287"))
    document = json.loads(run_cli("--list", "--json").stdout)
    assert [one["name"] for one in document["data_sets"]] == ["coco", "flickr30k", "flickr8k", "scenes"]
