"""Images of a corpus that the workers of an engine check: the corpus is that of one process, to the byte."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from dataclasses import replace

import pytest
from image_files import png, put
from sent_tasks import SendingEngine
from shards import parquet_of
from tiny import contents

from dcdctl.core.data import PrepareOptions, choose_manifest, prepare, prepare_corpus
from dcdctl.core.data.images import checks
from dcdctl.core.data.manifest import PrepareJob
from dcdctl.core.engines import ThisProcess
from dcdctl.core.errors import DcdError, InputError

NAMES = [f"{number:02}.png" for number in range(19)]
DAMAGED = ("03.png", "11.png")


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch):
    monkeypatch.setattr(checks, "SENT_TOGETHER", 2)
    monkeypatch.setattr(checks, "AHEAD_PER_WORKER", 4)


@pytest.fixture
def photos(tmp_path):
    """Images, of which two are damaged, and a large one."""
    files = {name: png(number) for number, name in enumerate(NAMES)}
    files |= {name: files[name][:200] for name in DAMAGED}
    files["12.png"] = png(12, size=(90, 60))
    return put(tmp_path / "photos", files)


def zipped(photos):
    with zipfile.ZipFile(photos.with_suffix(".zip"), "w") as archive:
        for path in sorted(photos.iterdir()):
            archive.write(path, path.name)
    return photos.with_suffix(".zip")


def prepared(images, out, engine=None, **options):
    """The bytes of a corpus of shards of five images."""
    table = images.with_name("pairs.csv")
    splits = [*["train"] * 12, *["test"] * 7]
    rows = [f"{name},a photo,{split}" for name, split in zip(NAMES, splits, strict=True)]
    table.write_text("\n".join(["image,caption,split", *rows]))
    manifest = choose_manifest(PrepareJob(csv=table, images=[images], out=out, overrides=["name=photos"]))
    options = {"workers": 1, "on_error": "skip", "shard_size": 5} | options
    prepare_corpus(manifest, out, options=PrepareOptions(**options), engine=engine or ThisProcess())
    return contents(out)


@pytest.mark.parametrize("kept_bytes", [0, 5000, checks.MOST_KEPT_BYTES])
@pytest.mark.parametrize("options", [{}, {"image_size_px": 40}, {"workers": 3}], ids=["as sent", "shrunk", "threads"])
def test_a_corpus_has_the_same_bytes_whoever_checks_its_images(photos, tmp_path, monkeypatch, options, kept_bytes):
    monkeypatch.setattr(checks, "MOST_KEPT_BYTES", kept_bytes)
    here = prepared(photos, tmp_path / "here", **options)
    assert [row["image"] for row in json.loads(here["corpus.json"])["skipped"]] == list(DAMAGED)
    engine = SendingEngine(hidden=photos)
    assert prepared(photos, tmp_path / "there", engine, **options) == here
    assert len(engine.names) == (5 if options.get("workers") else 11)
    assert prepared(zipped(photos), tmp_path / "zip", SendingEngine(), **options) == prepared(
        photos.with_suffix(".zip"), tmp_path / "zip-here", **options
    )


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "parquet"])
def test_a_worker_needs_no_path_of_this_machine(tmp_path, kind):
    place = put(tmp_path / "photos", {name: png(number) for number, name in enumerate(NAMES)})
    if kind == "zip":
        place = zipped(place)
    elif kind == "tar":
        place = tmp_path / "photos.tar"
        with tarfile.open(place, "w") as archive:
            archive.add(tmp_path / "photos", "photos")
    elif kind == "parquet":
        place = tmp_path / "photos.parquet"
        place.write_bytes(parquet_of([(png(number), ["a photo"]) for number in range(len(NAMES))]))
    corpora = []
    for name, engine in (("here", ThisProcess()), ("there", SendingEngine(hidden=place))):
        manifest = choose_manifest(PrepareJob(images=[place], out=tmp_path / name, overrides=["name=photos"]))
        prepare_corpus(manifest, tmp_path / name, options=PrepareOptions(workers=1), engine=engine)
        corpora.append(contents(tmp_path / name))
    assert corpora[0] == corpora[1]


def test_the_bytes_of_an_image_that_stays_the_same_do_not_come_back(photos, tmp_path):
    engine = SendingEngine()
    prepared(photos, tmp_path / "out", engine)
    assert engine.num_bytes_sent > 60_000
    assert engine.num_bytes_received < 8_000


def test_scenes_are_drawn_by_the_workers(tmp_path):
    manifest = choose_manifest(
        PrepareJob(manifest="scenes", overrides=("counts.train=9", "counts.val=3", "counts.test=3"))
    )
    engine = SendingEngine()
    for out, by in (("here", ThisProcess()), ("there", engine)):
        prepare_corpus(manifest, tmp_path / out, options=PrepareOptions(workers=1, shard_size=5), engine=by)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert engine.num_bytes_sent < engine.num_bytes_received


def test_the_first_row_that_cannot_be_used_stops_it_whichever_result_comes_first(photos, tmp_path):
    errors = []
    for engine in (ThisProcess(), SendingEngine()):
        with pytest.raises(InputError) as raised:
            prepared(photos, tmp_path / "out", engine, on_error="stop")
        errors.append((str(raised.value), raised.value.hint))
        shutil.rmtree(tmp_path / "out")
    assert "line 5" in errors[0][0]
    assert '"03.png"' in errors[0][0]
    assert errors[1] == errors[0]


def test_a_file_that_changes_after_it_was_sent_is_checked_again(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "MOST_KEPT_BYTES", 0)

    class Changing(SendingEngine):
        def map(self, *arguments):
            results = list(super().map(*arguments))
            (photos / "00.png").write_bytes(png(100))
            (photos / "01.png").write_bytes(b"no image any more")
            (photos / "02.png").unlink()
            return iter(results)

    there = prepared(photos, tmp_path / "there", Changing())
    (photos / "02.png").write_bytes(b"")
    here = prepared(photos, tmp_path / "here")
    shards = [name for name in here if name.endswith(".parquet")]
    assert [there[name] for name in shards] == [here[name] for name in shards]
    skipped = {row["image"]: row["reason"] for row in json.loads(there["corpus.json"])["skipped"]}
    assert list(skipped) == ["01.png", "02.png", *DAMAGED]
    assert "No such file" in skipped["02.png"]


def test_a_killed_driver_goes_on_to_the_same_bytes_with_the_shards_that_it_has_not_written(photos, tmp_path):
    here, num_noted = prepared(photos, tmp_path / "here"), []
    for dies_after in range(11):
        out = tmp_path / f"out-{dies_after}"
        with pytest.raises(KeyboardInterrupt):
            prepared(photos, out, SendingEngine(dies_after=dies_after))
        noted = set(json.loads((out / "prepare.json").read_text()).get("shards", {}))
        again = SendingEngine()
        assert prepared(photos, out, again) == here
        assert noted.isdisjoint(name.partition(" of ")[2] for name in again.names)
        num_noted.append(len(noted))
    assert num_noted[0] == 0
    assert num_noted[-1] > 1


def test_a_task_that_always_fails_costs_its_own_shard_alone(photos, tmp_path):
    here = prepared(photos, tmp_path / "here")
    error = DcdError("1 task failed 4 times")
    engine = SendingEngine(fails="images 1 to 2 of train-00001-of-00003.parquet", error=error)
    with pytest.raises(DcdError) as raised:
        prepared(photos, tmp_path / "out", engine)
    assert raised.value is error
    noted = json.loads((tmp_path / "out" / "prepare.json").read_text())["shards"]
    missing = {"train-00001-of-00003.parquet"}
    assert set(noted) == {name for name in here if name.endswith(".parquet")} - missing
    again = SendingEngine()
    assert prepared(photos, tmp_path / "out", again) == here
    assert {name.partition(" of ")[2] for name in again.names} == missing


@pytest.mark.parametrize("engine", [ThisProcess(), SendingEngine()], ids=["here", "there"])
def test_an_error_of_a_later_row_is_raised_when_the_shards_before_it_are_written(photos, tmp_path, monkeypatch, engine):
    listed = prepare.list_source

    def broken(*arguments):
        listing = listed(*arguments)

        def rows(split):
            for number, row in enumerate(listing.rows(split)):
                if number == 7:
                    raise InputError("row 9 is damaged")
                yield row

        return replace(listing, rows=rows)

    monkeypatch.setattr(prepare, "list_source", broken)
    with pytest.raises(InputError, match="row 9 is damaged"):
        prepared(photos, tmp_path / "out", engine)
    if isinstance(engine, ThisProcess):
        assert list(json.loads((tmp_path / "out" / "prepare.json").read_text())["shards"]) == [
            "train-00000-of-00003.parquet"
        ]
