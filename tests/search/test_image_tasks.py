"""`--engine files:DIR` of an index: tasks whose results make the bytes of an index of one process, of odd files too."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import document_of, error_of, run
from families import FAMILIES, late, with_noise
from image_files import png, put
from made_index import build
from task_work import do, engine, names
from tiny import contents, make_models

from dcdctl.core import models
from dcdctl.core.engines import Compute, FilesEngine, TasksWrittenError
from dcdctl.core.errors import InputError, MissingError, ModelError, StaleError
from dcdctl.core.search import IndexJob, add_images, build_index, embed, follow_folders, part_files
from dcdctl.core.search.index_config import IndexConfig

pytestmark = pytest.mark.usefixtures("_duals_read_once")

FLAT = IndexConfig()
OWN = Compute(batch_size=2, workers=0)


def by_files(tasks: Path) -> Compute:
    return Compute(batch_size=2, workers=0, engine=engine(tasks))


@pytest.fixture
def photos(tmp_path, small_parts):
    """Seven images and a text, in three parts."""
    return put(tmp_path / "photos", {f"{seed}.png": png(seed) for seed in range(7)} | {"notes.txt": b"no image"})


@pytest.fixture
def tasks(dual, photos, tmp_path):
    """The tasks of an index that is begun."""
    with pytest.raises(TasksWrittenError, match="3 tasks -> "):
        build(dual, photos, tmp_path / "index", FLAT, compute=by_files(tmp_path / "tasks"))
    return tmp_path / "tasks"


def test_a_library_of_phones_gets_the_bytes_of_the_index_of_one_process(dual, phone_photos, tmp_path, monkeypatch):
    """Photos in all turns, HEIC, RAW, strips, damaged files, videos, and links out of the folder; with EXIF data."""
    monkeypatch.setattr(part_files, "ROWS_PER_PART", 60)
    monkeypatch.setattr(embed, "MOST_SENT_IMAGES", 24)
    settings = IndexConfig(exif="place")
    own = build(dual, phone_photos.folder, tmp_path / "own", settings, compute=OWN)
    with pytest.raises(TasksWrittenError):
        build(dual, phone_photos.folder, tmp_path / "index", settings, compute=by_files(tmp_path / "tasks"))
    files = sorted((tmp_path / "tasks").iterdir())
    assert files[1].name == "tasks-00000-0001.parquet"
    for path in reversed(files):
        do(path)
    made = build(dual, phone_photos.folder, tmp_path / "index", settings, compute=by_files(tmp_path / "tasks"))
    assert contents(made.folder) == contents(own.folder)
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize("codes", ["float16", "int8"])
def test_the_tokens_of_a_late_interaction_model_come_back_with_their_bytes(codes, photos, tmp_path):
    texts = ["a red circle", "two blue squares"]
    model = tmp_path / "late"
    models.save(with_noise(late(FAMILIES["dual"](texts, tmp_path), is_pooled=False)), model)
    settings = ("flat_up_to=9", f"tokens.codes={codes}")
    jobs = [IndexJob(model=model, images=photos, out=tmp_path / name, sets=list(settings)) for name in ("own", "index")]
    own, compute = build_index(jobs[0], compute=OWN), by_files(tmp_path / "tasks")
    with pytest.raises(TasksWrittenError):
        build_index(jobs[1], compute=compute)
    do(tmp_path / "tasks")
    assert contents(build_index(jobs[1], compute=compute).index.folder) == contents(own.index.folder)


def test_a_corpus_travels_as_bytes(dual, scenes_corpus_dir, tmp_path, small_parts):
    own = build(dual, scenes_corpus_dir, tmp_path / "own", FLAT, split="val", compute=OWN)
    compute = by_files(tmp_path / "tasks")
    with pytest.raises(TasksWrittenError):
        build(dual, scenes_corpus_dir, tmp_path / "index", FLAT, split="val", compute=compute)
    rows = pq.read_table(tmp_path / "tasks" / "tasks-00000.parquet")
    assert rows.column_names == ["image_id", "model_digest", "image_bytes"]
    do(tmp_path / "tasks")
    made = build(dual, scenes_corpus_dir, tmp_path / "index", FLAT, split="val", compute=compute)
    assert contents(made.folder) == contents(own.folder)


def test_without_bytes_a_task_has_ids_alone_and_work_refuses_it(dual, scenes_corpus_dir, tmp_path):
    compute = Compute(batch_size=2, engine=FilesEngine(tmp_path / "tasks", print, with_bytes=False))
    with pytest.raises(TasksWrittenError):
        build(dual, scenes_corpus_dir, tmp_path / "index", FLAT, split="val", compute=compute)
    path = next((tmp_path / "tasks").glob("tasks-*"))
    assert pq.read_schema(path).names == ["image_id", "model_digest"]
    with pytest.raises(InputError, match=r"tasks-.* has no bytes of images; write the tasks without \?bytes=false"):
        do(path)


def test_what_is_added_and_followed_later_is_done_by_tasks_too(dual, photos, tmp_path):
    index, own = tmp_path / "index", tmp_path / "own"
    more = put(tmp_path / "more", {f"{seed}.png": png(seed) for seed in range(20, 24)})
    for folder in (index, own):
        build(dual, photos, folder, FLAT, compute=OWN)
    compute = by_files(tmp_path / "tasks")
    with pytest.raises(TasksWrittenError):
        add_images(str(index), more, compute=compute)
    do(tmp_path / "tasks")
    add_images(str(index), more, compute=compute)
    add_images(str(own), more, compute=OWN)
    put(photos, {"new.png": png(30)})
    with pytest.raises(TasksWrittenError):
        follow_folders(str(index), compute=compute)
    do(tmp_path / "tasks")
    follow_folders(str(index), compute=compute)
    follow_folders(str(own), compute=OWN)
    assert contents(index) == contents(own)


def test_the_rows_are_for_other_programs_whose_vectors_come_back(dual, photos, tasks, tmp_path):
    table = pa.concat_tables(pq.read_table(path) for path in sorted(tasks.iterdir()))
    assert table.column_names == ["image_id", "path", "num_bytes", "modified_ns", "model_digest"]
    assert sorted(table["image_id"].to_pylist()) == sorted(path.name for path in photos.iterdir())
    assert all(Path(path).is_absolute() and Path(path).exists() for path in table["path"].to_pylist())
    do(tasks)
    (tmp_path / "vectors").mkdir()
    for path in tasks.glob("results-*"):
        shutil.copy(path, tmp_path / "vectors")
    words = ("--images", photos, "--out", tmp_path / "given", "--vectors", tmp_path / "vectors", "--device", "cpu")
    made = document_of("index", dual, *words)
    assert (made["images"], made["left_out"]) == (7, 1)


def test_a_machine_without_the_images_does_none_of_the_tasks(dual, photos, tasks):
    """All images would be left out, and the vectors would count as complete."""
    away = photos.rename(photos.with_name("away"))
    with pytest.raises(
        InputError, match=r"no image of .*tasks-00000\.parquet is on this machine, such as .*make their"
    ):
        do(tasks)
    assert names(tasks, "results") == []
    away.rename(photos)


def test_an_image_that_is_gone_since_is_left_out(dual, photos, tasks, tmp_path):
    (photos / "3.png").unlink()
    do(tasks)
    made = build(dual, photos, tmp_path / "index", FLAT, compute=by_files(tasks))
    assert len(made) == 6


def test_a_damaged_image_of_a_corpus_is_named_and_the_other_tasks_are_done(
    dual, scenes_corpus_dir, tmp_path, small_parts
):
    with pytest.raises(TasksWrittenError):
        build(dual, scenes_corpus_dir, tmp_path / "index", FLAT, split="val", compute=by_files(tmp_path / "tasks"))
    path = tmp_path / "tasks" / "tasks-00001.parquet"
    table = pq.read_table(path)
    contents_of = [table["image_bytes"][0].as_py()[:200], *table["image_bytes"].to_pylist()[1:]]
    pq.write_table(table.set_column(2, "image_bytes", pa.array(contents_of)), path)
    with pytest.raises(InputError, match=rf"tasks failed. tasks-00001.parquet: image '{table['image_id'][0].as_py()}'"):
        do(tmp_path / "tasks")
    assert "00001" not in names(tmp_path / "tasks", "results")


def test_another_model_or_precision_is_refused(dual, corpus, photos, tasks, tmp_path):
    models.save(make_models(corpus.captions[:9])[1], tmp_path / "other")
    with pytest.raises(StaleError, match=r"are for the model \w{8}, and .*other is \w{8}"):
        do(tasks, model=tmp_path / "other")
    with pytest.raises(ModelError, match="dual"):
        do(tasks, model="scenes-vilt")
    with pytest.raises(StaleError, match=r"another digest"):
        build(tmp_path / "other", photos, tmp_path / "second", FLAT, compute=by_files(tasks))
    assert names(tasks, "results") == []


def test_vectors_that_a_model_does_not_give_are_refused(dual, tasks, monkeypatch):
    monkeypatch.setattr(embed, "has_direction", lambda vectors: np.zeros(len(vectors), dtype=bool))
    with pytest.raises(InputError, match=r"3 of 3 tasks failed\. tasks-00000\.parquet: the model gives vectors"):
        do(tasks)


def test_the_commands_say_what_is_next(dual, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = f"index {dual} --images {photos} --out index --device cpu --engine files:tasks"
    written = document_of(line)
    assert (written["folder"], written["tasks"]) == ("tasks", 3)
    assert "3 of 3 tasks in tasks have no result yet" in error_of(line)
    run("work tasks --device cpu")
    assert document_of(line)["images"] == 7
    put(photos, {"new.png": png(30)})
    sync = "sync index --device cpu --engine files:tasks"
    assert run(sync).stdout.startswith("1 task -> tasks; do them with")
    run("work tasks --device cpu")
    assert document_of(sync)["images"] == 8


def test_missing_results_leave_no_index(dual, photos, tasks, tmp_path):
    with pytest.raises(MissingError, match="3 of 3 tasks"):
        build(dual, photos, tmp_path / "index", FLAT, compute=by_files(tasks))
    assert not (tmp_path / "index" / "index.json").exists()
