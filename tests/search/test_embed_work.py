"""`dcdctl work`: a call per file of a list gives the vectors that `index` stores, also of odd files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import document_of, run
from image_files import png, put
from made_index import build
from tiny import contents, make_models

from dcdctl.core import models
from dcdctl.core.engines import Compute
from dcdctl.core.errors import InputError, ModelError, StaleError
from dcdctl.core.search import EmbedWorkJob, embed_work, part_files, write_image_list
from dcdctl.core.search.index_config import IndexConfig

pytestmark = pytest.mark.usefixtures("_duals_read_once")

FLAT = IndexConfig(kind="flat")


def work_on(lists: list[Path] | Path, model: Path, out: Path, **compute):
    names = [str(path) for path in (lists if isinstance(lists, list) else [lists])]
    compute = {"batch_size": 2, "workers": 0, **compute}
    return embed_work(EmbedWorkJob(lists=names, model=str(model), out=out, compute=Compute(**compute)))


def comparable(folder: Path) -> tuple[dict[str, bytes], list[object], object]:
    """The files of an index by their content; of images whose vectors are given, no digest is known."""
    found = contents(folder)
    document = json.loads(found["index.json"])
    kept = {name: data for name, data in found.items() if not name.startswith(("index.json", "files-"))}
    return kept, document["parts"], document["skipped"]


@pytest.fixture
def photos(tmp_path, small_parts):
    """Seven images and a text, in three list files."""
    return put(tmp_path / "photos", {f"{seed}.png": png(seed) for seed in range(7)} | {"notes.txt": b"no image"})


@pytest.fixture
def lists(dual, photos, tmp_path):
    write_image_list(str(dual), photos, tmp_path / "list")
    return tmp_path / "list"


def test_a_library_of_phones_gets_the_bytes_of_the_index_of_one_process(dual, phone_photos, tmp_path, monkeypatch):
    """Photos in all turns, HEIC, RAW, strips, damaged files, videos, and links out of the folder."""
    monkeypatch.setattr(part_files, "ROWS_PER_PART", 60)
    own = build(dual, phone_photos.folder, tmp_path / "own", FLAT)
    write_image_list(str(dual), phone_photos.folder, tmp_path / "list")
    files = sorted((tmp_path / "list").iterdir())
    assert len(files) == 3
    embedded = [work_on(path, dual, tmp_path / "vectors") for path in reversed(files)]
    taken = build(dual, phone_photos.folder, tmp_path / "taken", FLAT, given=tmp_path / "vectors")
    assert comparable(taken.folder) == comparable(own.folder)
    assert sum(each.num_images for each in embedded) == len(phone_photos.read) == len(own)
    left_out: dict[str, int] = {}
    for each in embedded:
        left_out |= {kind: count + left_out.get(kind, 0) for kind, count in each.left_out.items()}
    # A list has neither a link to nothing nor a link to a folder.
    expected = {**phone_photos.counts, "link": phone_photos.counts["link"] - 1}
    assert left_out == {kind: count for kind, count in expected.items() if kind != "broken-link"}


def test_the_files_of_a_corpus_are_lists_too(dual, scenes_corpus_dir, tmp_path):
    own = build(dual, scenes_corpus_dir, tmp_path / "own", FLAT, split="val")
    work_on(sorted(scenes_corpus_dir.glob("val-*.parquet")), dual, tmp_path / "vectors")
    taken = build(dual, scenes_corpus_dir, tmp_path / "taken", FLAT, split="val", given=tmp_path / "vectors")
    assert comparable(taken.folder)[0] == comparable(own.folder)[0]


def test_lists_and_vectors_may_be_in_a_bucket(dual, lists, scenes_corpus_dir, photos, tmp_path, bucket):
    bucket.put_all(lists, "list")
    bucket.put_all(scenes_corpus_dir, "corpus")
    shard = scenes_corpus_dir / "val-00000-of-00001.parquet"
    for place, url in ((lists, bucket.url("list")), (shard, bucket.url(f"corpus/{shard.name}"))):
        own, remote = tmp_path / f"own-{place.name}", bucket.url(f"vectors-{place.name}")
        made, there = work_on(place, dual, own), work_on([url], dual, Path(remote))
        assert (there.num_images, there.left_out) == (made.num_images, made.left_out)
        assert {key.rpartition("/")[2]: bucket.get(key) for key in bucket.keys(f"vectors-{place.name}/")} == contents(
            own
        )
        assert work_on([url], dual, Path(remote)).num_there == made.num_files
    taken = build(dual, photos, tmp_path / "taken", FLAT, given=Path(bucket.url("vectors-list")))
    assert comparable(taken.folder) == comparable(build(dual, photos, tmp_path / "own", FLAT).folder)


def test_a_damaged_image_of_a_corpus_is_named_and_the_other_files_are_kept(dual, scenes_corpus_dir, tmp_path):
    whole = next(scenes_corpus_dir.glob("val-*.parquet"))
    table = pq.read_table(whole)
    images = table["image"].to_pylist()
    images[3]["bytes"] = images[3]["bytes"][:200]
    (tmp_path / "corpus").mkdir()
    pq.write_table(
        table.set_column(table.schema.get_field_index("image"), "image", pa.array(images)),
        tmp_path / "corpus" / "b.parquet",
    )
    shutil.copy(whole, tmp_path / "corpus" / "a.parquet")
    name = table["image_id"][3].as_py()
    with pytest.raises(InputError, match=rf"1 of 2 files failed. b.parquet: image '{name}'"):
        work_on(tmp_path / "corpus", dual, tmp_path / "vectors")
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["a.parquet"]


def hide_a_row(path: Path) -> None:
    """Raise the number of rows in a file's footer, which has no checksum."""
    data = bytearray(path.read_bytes())
    num_rows = pq.read_metadata(path).num_rows
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    # Thrift's compact protocol: the header of a field of 64 bits, and the zigzag code of its number.
    place = data.index(bytes([0x16, 2 * num_rows]), footer)
    data[place + 1] += 2
    path.write_bytes(data)
    assert (pq.read_metadata(path).num_rows, len(pq.read_table(path))) == (num_rows + 1, num_rows)


def test_rows_that_a_damaged_footer_hides_are_an_error_and_the_other_files_are_kept(dual, lists, tmp_path):
    hide_a_row(lists / "images-00001.parquet")
    with pytest.raises(InputError, match=r"images-00001\.parquet.* is damaged"):
        work_on(lists, dual, tmp_path / "vectors")
    assert sorted(path.name for path in (tmp_path / "vectors").iterdir()) == [
        "images-00000.parquet",
        "images-00002.parquet",
    ]


def test_a_repeated_call_embeds_only_what_is_missing_and_counts_all(dual, lists, tmp_path):
    out = tmp_path / "vectors"
    first = work_on(lists, dual, out)
    assert (first.num_files, first.num_there, first.num_images, first.left_out) == (3, 0, 7, {"not-image": 1})
    before = contents(out)
    (out / "images-00001.parquet").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = work_on(lists, dual, out)
    assert (again.num_files, again.num_there, again.num_images, again.left_out) == (3, 2, 7, {"not-image": 1})
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(out) == before


def test_a_list_of_ones_own_names_its_files_anywhere(dual, photos, tmp_path):
    model = models.load_dual(dual)
    rows = {"image_id": ["a", "b", "gone"], "path": [str(photos / "3.png"), str(photos / "5.png"), "/absent.png"]}
    pq.write_table(pa.table({**rows, "model_digest": [model.digest] * 3}), tmp_path / "own.parquet")
    embedded = work_on(tmp_path / "own.parquet", dual, tmp_path / "vectors")
    assert (embedded.num_images, sum(embedded.left_out.values())) == (2, 1)
    table = pq.read_table(tmp_path / "vectors" / "own.parquet")
    assert table["image_id"].to_pylist() == rows["image_id"]
    assert [vector is None for vector in table["vector"].to_pylist()] == [False, False, True]
    images = [embed_image(model, photos / name) for name in ("3.png", "5.png")]
    np.testing.assert_allclose(np.stack(table["vector"].to_pylist()[:2]), images, rtol=1e-4, atol=1e-6)


@torch.inference_mode()
def embed_image(model: models.DualEncoder, path: Path) -> np.ndarray:
    from dcdctl.core.data import decode_image

    return model.embed_images(model.preprocess.images([decode_image(path.read_bytes())])).numpy()[0]


def test_what_is_no_file_is_left_out_and_a_machine_without_the_images_is_an_error(dual, photos, tmp_path):
    """All images would be left out, and the vectors would count as complete."""
    os.mkfifo(tmp_path / "pipe")
    digest = models.load_dual(dual).digest
    paths = [str(photos / "3.png"), "/dev/zero", str(tmp_path / "pipe"), str(photos), "a\0b", "/" + "x" * 5000, ""]
    table = {"image_id": [str(row) for row in range(7)], "path": paths, "model_digest": [digest] * 7}
    pq.write_table(pa.table(table), tmp_path / "odd.parquet")
    odd = work_on(tmp_path / "odd.parquet", dual, tmp_path / "vectors")
    assert (odd.num_images, sum(odd.left_out.values())) == (1, 6)
    for path in ("/absent/3.png", "s3://bucket/3.png", "a\0b", "/" + "x" * 5000):
        table = {"image_id": ["3.png"], "path": [path], "model_digest": [digest]}
        pq.write_table(pa.table(table), tmp_path / "gone.parquet")
        with pytest.raises(InputError, match=r"no image of .*gone\.parquet is on this machine"):
            work_on(tmp_path / "gone.parquet", dual, tmp_path / "vectors")
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["odd.parquet"]


def test_vectors_of_another_model_or_precision_are_not_mixed(dual, corpus, lists, tmp_path):
    out = tmp_path / "vectors"
    work_on(lists / "images-00000.parquet", dual, out)
    with pytest.raises(StaleError, match="precision"):
        work_on(lists, dual, out, precision="bfloat16")
    models.save(make_models(corpus.captions[:9])[1], tmp_path / "other")
    with pytest.raises(StaleError, match="model"):
        work_on(lists, tmp_path / "other", out)
    with pytest.raises(InputError, match="--out"):
        work_on(lists, dual, lists)
    with pytest.raises(ModelError, match=r"dual"):
        work_on(lists, "scenes-vilt", out)
    assert [path.name for path in out.iterdir()] == ["images-00000.parquet"]


def test_the_command_prints_counts_and_index_takes_its_files(dual, photos, lists, tmp_path):
    line = f"work '{lists}/*.parquet' --model {dual} --out {tmp_path}/vectors --batch-size 2 --workers 1 --device cpu"
    made = document_of(line)
    assert {name: made[name] for name in ("images", "left_out", "left_out_by_kind", "files", "already_there")} == {
        "images": 7,
        "left_out": 1,
        "left_out_by_kind": {"not-image": 1},
        "files": 3,
        "already_there": 0,
    }
    again = run(line)
    assert again.stdout == f"vectors of 7 images in 3 files (3 already there) -> {tmp_path}/vectors\n"
    assert "left out: 1 file" in again.stderr
    words = f"index {dual} --images {photos} --vectors {tmp_path}/vectors --out {tmp_path}/index --device cpu"
    assert document_of(words)["images"] == 7
