"""The files of a manifest: placed by hand, from a plain server, from the Hub; and whether the test split is that of the
papers."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import loopback
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioned_photos import CAPTIONS, DATA, NAMES, contents
from forks import LIBRARIES, run_forked
from paths import FIXTURES

from dcdctl.core import models
from dcdctl.core.data import PrepareOptions, SourceOptions, manifest, prepare_corpus, source_files
from dcdctl.core.data.download import http
from dcdctl.core.data.manifest import SplitCounts
from dcdctl.core.errors import InputError, SourceError
from dcdctl.core.progress import silent

SPLITS = ["train", "train", "test"]
ANNOTATIONS = {
    "images": [
        {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
        for name, split, texts in zip(NAMES, SPLITS, CAPTIONS, strict=True)
    ]
}


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in zip(NAMES, DATA, strict=True):
            file.writestr(f"jpg/{name}", data)
    return buffer.getvalue()


FILES = {"dataset.json": json.dumps(ANNOTATIONS).encode(), "images.zip": archive()}


def write_files(folder: Path) -> None:
    for name, data in FILES.items():
        (folder / name).write_bytes(data)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("DCDCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.0)
    with loopback.serve(files=FILES) as server:
        yield server


def birds(folder: Path, url: str, more: str = "") -> manifest.Manifest:
    """A data set with two sources: on a server, and by hand."""
    path = folder / "birds.toml"
    path.write_text(f"""
protocol = "birds 1"
expected.test = {{ images = 1, captions = 2 }}
{more}
[files."dataset.json"]
url = "{url}/dataset.json"
[files."images.zip"]
url = "{url}/images.zip"
also = ["jpg"]
[files."images.tar"]
by_hand = "https://example.org/form"
also = ["jpg"]
[[sources]]
name = "served"
format = "karpathy"
annotations = "dataset.json"
images = "images.zip"
[[sources]]
name = "on request"
format = "karpathy"
annotations = "dataset.json"
images = "images.tar"
""")
    return manifest.find_manifest(str(path))


def test_files_of_a_server_are_downloaded_once_and_noted(tmp_path, server):
    data_set = birds(tmp_path, server.url)
    first = prepare_corpus(data_set, tmp_path / "first", options=PrepareOptions(workers=1))
    assert list(first.notes) == [f"{name}: first download, sha256 recorded" for name in ("dataset.json", "images.zip")]
    again = prepare_corpus(data_set, tmp_path / "again", options=PrepareOptions(workers=1))
    assert list(again.notes) == ["dataset.json: matches the first download", "images.zip: matches the first download"]
    assert len(server.gets("/images.zip")) == 1
    index = json.loads((tmp_path / "first" / "corpus.json").read_text())
    assert (index["source"]["name"], index["protocol"]) == ("served", "birds 1")
    assert index["source"]["urls"] == {name: f"{server.url}/{name}" for name in FILES}
    offline = prepare_corpus(
        data_set, tmp_path / "offline", options=PrepareOptions(workers=1), source_options=SourceOptions(offline=True)
    )
    assert offline.splits == first.splits


def test_a_source_that_is_not_available_is_skipped_and_noted(tmp_path, server):
    server.faults["/images.zip"] = loopback.Fault(status=403, times=None)
    placed = tmp_path / "placed"
    (placed / "jpg").mkdir(parents=True)
    data_set = birds(tmp_path, server.url)
    with pytest.raises(SourceError) as stopped:
        source_files.locate(data_set, SourceOptions())
    message = str(stopped.value)
    assert message.startswith("no source of birds is available. served: ")
    assert "403" in message
    assert "on request: images.tar cannot be downloaded; request it at https://example.org/form" in message
    assert message.endswith("or place dataset.json and images.zip in a folder and add --from FOLDER")
    found = source_files.locate(data_set, SourceOptions(placed=placed))
    assert found.name == "served"
    assert found.source.images == (placed / "jpg",)
    server.faults["/dataset.json"] = loopback.Fault(status=404, times=None)
    (tmp_path / "cache").rename(tmp_path / "old cache")
    with pytest.raises(SourceError, match=r"no source of birds is available. served: .*404.* on request: .*404"):
        source_files.locate(data_set, SourceOptions(placed=placed))


def test_the_requested_source_is_used_or_an_error(tmp_path, server):
    data_set = birds(tmp_path, server.url)
    with pytest.raises(
        SourceError,
        match=r"no source of birds is available. on request: images\.tar cannot be downloaded; request it at https://example.org/form",
    ):
        source_files.locate(data_set, SourceOptions(source="on request"))
    assert not server.requests
    with pytest.raises(InputError, match="birds has no source 'hub'; its sources: served, on request"):
        source_files.locate(data_set, SourceOptions(source="hub"))


def test_placed_files_are_found_under_any_of_their_names(tmp_path, server):
    placed = tmp_path / "placed"
    placed.mkdir()
    data_set = birds(tmp_path, server.url)
    with pytest.raises(
        InputError,
        match=r"placed holds no file of birds; place dataset.json and images.zip in it, or name another folder",
    ):
        source_files.locate(data_set, SourceOptions(placed=placed))
    with pytest.raises(InputError, match="is not a folder; --from takes a folder"):
        source_files.locate(data_set, SourceOptions(placed=tmp_path / "absent"))
    write_files(placed)
    summary = prepare_corpus(
        data_set,
        tmp_path / "out",
        options=PrepareOptions(workers=1),
        source_options=SourceOptions(placed=placed, offline=True),
    )
    assert list(summary.notes) == [f"{name}: placed by hand" for name in FILES]
    assert not server.requests
    (placed / "images.zip").rename(placed / "images.tar")
    assert source_files.locate(data_set, SourceOptions(placed=placed)).name == "on request"


# The papers' splits


def counts(**images: int) -> dict[str, SplitCounts]:
    return {split: SplitCounts(images=count, captions=5 * count) for split, count in images.items()}


def test_the_protocol_that_a_corpus_reproduces():
    flickr = manifest.find_manifest("flickr30k")
    whole = counts(train=29000, val=1014, test=1000)
    assert manifest.check_protocol(flickr, whole, (), None) == flickr.protocol
    assert manifest.check_protocol(flickr, counts(test=1000), ("test",), None) == flickr.protocol
    assert manifest.check_protocol(flickr, whole, ("train", "val"), None) == "none: without the test split"
    assert (
        manifest.check_protocol(flickr, counts(train=5, val=5, test=5), (), 5)
        == "none: only the first 5 images of each split"
    )
    assert (
        manifest.check_protocol(manifest.find_manifest("scenes"), counts(train=5), (), None)
        == "none: the data set names none"
    )
    short = manifest.check_protocol(flickr, whole | counts(train=28999), (), None)
    assert short.endswith(
        "; but split 'train' has 28,999 images and 144,995 captions, the papers' has 29,000 and 145,000"
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (counts(train=29000, val=1014, test=999), "999 images and 4,995 captions"),
        ({"test": SplitCounts(images=1000, captions=1000)}, "1,000 images and 1,000 captions"),
        (counts(train=29000), "0 images and 0 captions"),
    ],
)
def test_a_test_split_that_is_not_the_papers_is_an_error(found, said):
    with pytest.raises(
        InputError, match=f"flickr30k: split 'test' has {said}, the papers' has 1,000 and 5,000; results would not"
    ):
        manifest.check_protocol(manifest.find_manifest("flickr30k"), found, (), None)


def test_a_shorter_test_split_is_an_error_before_an_image_is_read(tmp_path, server):
    short = {"images": [ANNOTATIONS["images"][0], {**ANNOTATIONS["images"][2], "sentences": [{"raw": "one bird"}]}]}
    server.files["dataset.json"] = json.dumps(short).encode()
    data_set = birds(tmp_path, server.url)
    with pytest.raises(InputError, match="birds: split 'test' has 1 image and 1 caption, the papers' has 1 and 2"):
        prepare_corpus(data_set, tmp_path / "out", options=PrepareOptions(workers=1))
    assert not (tmp_path / "out").exists()
    given_up = manifest.find_manifest(str(tmp_path / "birds.toml"), ["protocol=none"])
    assert (
        prepare_corpus(given_up, tmp_path / "out", options=PrepareOptions(workers=1)).protocol
        == "none: the data set names none"
    )
    few = prepare_corpus(data_set, tmp_path / "few", options=PrepareOptions(workers=1, max_images=1))
    assert few.protocol == "none: only the first 1 image of each split"


# What comes with dcdctl


def test_the_counts_are_those_of_the_papers():
    found = {
        one.name: {split: (it.images, it.captions) for split, it in one.expected.items()}
        for one in map(manifest.find_manifest, manifest.manifest_files())
    }
    # COCO: 82,783 + 30,504 restval.
    assert found["coco"] == {"train": (113287, 566747), "val": (5000, 25010), "test": (5000, 25010)}
    assert found["flickr30k"] == {"train": (29000, 145000), "val": (1014, 5070), "test": (1000, 5000)}
    assert found["flickr8k"] == {"train": (6000, 30000), "val": (1000, 5000), "test": (1000, 5000)}


def test_the_list_gives_the_origin_of_everything():
    data_sets = json.loads(json.dumps(manifest.list_data_sets()))
    assert all(one["license"] and one["summary"] and one["citation"] for one in data_sets)
    coco = next(one for one in data_sets if one["name"] == "coco")
    assert coco["files"]["train2014.zip"]["checksum"] == "md5:0da8c0bd3d6becc4dcb32757491aca88"
    assert [one["format"] for one in coco["sources"]] == ["lavis", "karpathy"]


# Named teachers


def write_teacher(folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """A named teacher `tiny` in a separate folder of manifests."""
    (folder / "manifests" / "teachers").mkdir(parents=True)
    head = {key: f'"{key}"' for key in ("summary", "license", "citation", "homepage")}
    lines = [f"{key} = {value}" for key, value in {**head, **fields}.items()]
    (folder / "manifests" / "teachers" / "tiny.toml").write_text("\n".join(lines))
    monkeypatch.setattr("dcdctl.core.data.manifests_folder", lambda: folder / "manifests")


def test_a_named_teacher_is_downloaded_once_and_loaded_with_its_settings(tmp_path, server, monkeypatch):
    fixture = FIXTURES / "vilt_tiny_a.ckpt"
    server.files["tiny.ckpt"] = fixture.read_bytes()
    models.word_piece(["a dog", "a cat"], 60).save_pretrained(tmp_path / "words")
    overrides = f'{{ tokenizer = "{tmp_path / "words"}", num_attention_heads = 4, max_text_len = 7 }}'
    write_teacher(tmp_path, monkeypatch, url=f'"{server.url}/tiny.ckpt"', overrides=overrides)
    seen = []

    def track(label: str, *, total: int | None, unit: str) -> Any:
        seen.append((label, total, unit))
        return silent(label, total=total, unit=unit)

    teacher = models.load_fusion("tiny", track=track)
    assert teacher.preprocess.max_text_len == 7
    assert models.load_fusion("tiny", {"max_text_len": 5}).preprocess.max_text_len == 5
    assert len(server.gets("/tiny.ckpt")) == 1
    assert [(total, unit) for _, total, unit in seen] == [(fixture.stat().st_size, "bytes")]


# The whole way, through a Hub on this machine


def parquet_of(rows: list[int]) -> bytes:
    table = [
        {
            "image": {"bytes": DATA[i], "path": None},
            "filename": NAMES[i],
            "caption": CAPTIONS[i],
            "sentids": list(range(len(CAPTIONS[i]))),
        }
        for i in rows
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), buffer)
    return buffer.getvalue()


COMMANDS = """
import contextlib, io, json, sys

# The fork has imported it with another endpoint.
for name in [*sys.modules]:
    if name.split(".")[0] == "huggingface_hub":
        del sys.modules[name]
from dcdctl.cli.app import app

for words in json.loads(sys.argv[1]):
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            app(words, prog_name="dcdctl")
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([words, code, stdout.getvalue(), stderr.getvalue()]))
"""


def run_through(
    server: loopback.Loopback, folder: Path, *commands: Sequence[object]
) -> list[subprocess.CompletedProcess[str]]:
    """The commands one after the other in a fork without dcdctl, with the Hub on the loopback server and caches in the
    folder."""
    environment = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "hf"),
        "DCDCTL_CACHE": str(folder / "cache"),
        "NO_COLOR": "1",
    }
    words = json.dumps([list(map(str, command)) for command in commands])
    printed, _ = run_forked(COMMANDS, words, environment=environment, imported=LIBRARIES)
    return [subprocess.CompletedProcess(*json.loads(line)) for line in printed.splitlines()]


def test_one_data_set_from_a_zip_a_folder_and_the_hub_has_one_fingerprint(tmp_path):
    write_files(tmp_path)
    (tmp_path / "jpg").mkdir()
    for name, data in zip(NAMES, DATA, strict=True):
        (tmp_path / "jpg" / name).write_bytes(data)
    (tmp_path / "hub.toml").write_text("""
[files."all-*.parquet"]
url = "hf://datasets/me/birds@main/data/all-*.parquet"
[files."dataset.json"]
url = "hf://datasets/me/birds/dataset.json"
[files."images.zip"]
url = "hf://datasets/me/birds/images.zip"
[[sources]]
name = "parquet"
format = "parquet"
splits = "dataset.json"
id_column = "filename"
rows = { all = "all-*.parquet" }
[[sources]]
name = "zip"
format = "karpathy"
annotations = "dataset.json"
images = "images.zip"
""")
    hub = {
        "me/birds": {
            "data/all-0.parquet": parquet_of([0, 1]),
            "data/all-1.parquet": parquet_of([2]),
            "README.md": b"",
            **FILES,
        }
    }
    with loopback.serve(datasets=hub) as server:
        runs = {
            "zip": ["--karpathy", tmp_path / "dataset.json", "--images", tmp_path / "images.zip"],
            "folder": ["--karpathy", tmp_path / "dataset.json", "--images", tmp_path / "jpg"],
            "hub": [tmp_path / "hub.toml"],
            "hub zip": [tmp_path / "hub.toml", "--source", "zip"],
        }
        for done in run_through(
            server, tmp_path, *(["prepare", *words, "--out", tmp_path / "out" / name] for name, words in runs.items())
        ):
            assert done.returncode == 0, done.stderr
        asked = [request.path for request in server.requests]
        assert "/datasets/me/birds/resolve/main/data/all-1.parquet" in asked
        before = len(server.requests)
        (again,) = run_through(
            server, tmp_path, ["prepare", tmp_path / "hub.toml", "--offline", "--out", tmp_path / "out" / "offline"]
        )
        assert again.returncode == 0, again.stderr
        assert len(server.requests) == before
    found = {name: contents(tmp_path / "out" / name) for name in (*runs, "offline")}
    assert all(one == found["zip"] for one in found.values())
