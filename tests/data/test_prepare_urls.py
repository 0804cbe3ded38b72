"""Sources at URLs: the corpus is that of the same files in a folder."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import fsspec
import loopback
import pytest
from shards import parquet_of, rows_of, tar_of

from dcdctl.core.data import Corpus, PrepareJob, PrepareOptions, choose_manifest, prepare_corpus
from dcdctl.core.data.download import http
from dcdctl.core.errors import ConfigError, SourceError

MANIFESTS = {
    "tars": 'format = "webdataset"\nshards = { train = "BASE/a*.tar", val = ["BASE/b.tar"] }\n',
    "braces": 'format = "webdataset"\nshards = { train = "BASE/a{0..1}.tar" }\n',
    "parquet": 'format = "parquet"\nrows = { train = "BASE/a.parquet" }\n',
    "table": 'format = "csv"\npairs = "BASE/pairs.csv"\nimages = ["BASE/images.zip"]\n',
}


@pytest.fixture(scope="module")
def files():
    first, second, third = rows_of((3, 4, 5))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as images:
        for number, (image, _) in enumerate(first):
            images.writestr(f"{number}.png", image)
    table = "image,caption\n" + "".join(f"{number}.png,{captions[0]}\n" for number, (_, captions) in enumerate(first))
    tars = {"a0.tar": tar_of(first, "x"), "a1.tar": tar_of(second, "y"), "b.tar": tar_of(third, "z")}
    return {**tars, "a.parquet": parquet_of(first), "pairs.csv": table.encode(), "images.zip": archive.getvalue()}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCDCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.0)


def prepared(tmp_path, name, base, out):
    path = tmp_path / f"{out}.toml"
    path.write_text(MANIFESTS[name].replace("BASE", base))
    summary = prepare_corpus(
        choose_manifest(PrepareJob(manifest=str(path))), tmp_path / out, options=PrepareOptions(workers=1)
    )
    return {split: entry["fingerprint"] for split, entry in summary.splits.items()}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_source_at_a_url_gives_the_corpus_of_a_folder(files, name, tmp_path, monkeypatch, bucket):
    memory = fsspec.filesystem("memory")
    (tmp_path / "local").mkdir()
    for file, data in files.items():
        (tmp_path / "local" / file).write_bytes(data)
        memory.pipe(f"/source/{file}", data)
        bucket.put(f"source/{file}", data)
    if name == "braces":
        expected = {"train": prepared(tmp_path, "tars", str(tmp_path / "local"), "expected")["train"]}
    else:
        expected = prepared(tmp_path, name, str(tmp_path / "local"), "expected")
    assert prepared(tmp_path, name, "memory://source", "memory") == expected
    assert prepared(tmp_path, name, bucket.url("source"), "s3") == expected
    with loopback.serve(files, {"me/birds": files}) as server:
        if name != "tars":  # a web server lists no files
            assert prepared(tmp_path, name, server.url, "web") == expected
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        assert prepared(tmp_path, name, "hf://datasets/me/birds", "hub") == expected


def test_a_table_and_its_images_are_named_on_the_command_line(files, tmp_path):
    with loopback.serve(files) as server:
        manifest = choose_manifest(
            PrepareJob(
                csv=Path(f"{server.url}/pairs.csv?key=secret"),
                images=[Path(f"{server.url}/images.zip?key=secret")],
                hold_out=0.0,
            )
        )
        prepare_corpus(manifest, tmp_path / "out", options=PrepareOptions(workers=1))
        assert Corpus.open(tmp_path / "out", "train").captions == [captions[0] for _, captions in rows_of((3,))[0]]
        assert b"secret" not in (tmp_path / "out" / "corpus.json").read_bytes()
        # The copies of this version are read again.
        server.requests.clear()
        prepare_corpus(manifest, tmp_path / "again", options=PrepareOptions(workers=1))
        assert {request.method for request in server.requests} == {"HEAD"}
        server.faults["/pairs.csv"] = loopback.Fault(status=403, times=None)
        with pytest.raises(SourceError) as refused:
            prepare_corpus(manifest, tmp_path / "third", options=PrepareOptions(workers=1))
        assert f"{server.url}/pairs.csv was refused (403" in str(refused.value)
        assert "secret" not in str(refused.value)
    manifest = choose_manifest(PrepareJob(csv=Path("https://me:secret@host/pairs.csv"), images=[tmp_path]))
    with pytest.raises(ConfigError, match=r"https://host/pairs.csv is given with a password"):
        prepare_corpus(manifest, tmp_path / "fourth", options=PrepareOptions(workers=1))
