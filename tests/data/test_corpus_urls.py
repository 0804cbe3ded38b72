"""A prepared corpus at a URL: read by row groups, equal to the folder, and refused if it is damaged."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import fsspec
import loopback
import numpy as np
import pytest
from tiny import make_corpus
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import training
from dcdctl.core.data import Corpus, summarize_corpus
from dcdctl.core.data.download import http
from dcdctl.core.errors import CorpusError, SourceError
from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions

SHARD = "train-00000-of-00001.parquet"


@pytest.fixture
def files(scenes_corpus_dir):
    return {path.name: path.read_bytes() for path in scenes_corpus_dir.iterdir() if path.is_file()}


@pytest.fixture
def memory(files):
    """The corpus as memory://scenes."""
    system = fsspec.filesystem("memory")
    for name, data in files.items():
        system.pipe(f"/scenes/{name}", data)
    yield system
    system.rm("/scenes", recursive=True)


def assert_same(remote, local):
    assert (remote.fingerprint, remote.num_images, remote.captions) == (
        local.fingerprint,
        local.num_images,
        local.captions,
    )
    assert (remote.image_ids, remote.image_paths) == (local.image_ids, local.image_paths)
    assert np.array_equal(remote.caption_image, local.caption_image)
    assert [remote.image_bytes(image) for image in (3, 0, 31)] == [local.image_bytes(image) for image in (3, 0, 31)]


def test_a_corpus_at_a_url_is_the_corpus_of_the_folder(
    scenes_corpus_dir, files, memory, corpus, tmp_path, monkeypatch, bucket
):
    # As commands give it: pathlib joins the slashes.
    remote = Corpus.open(Path("memory://scenes"), "train")
    assert_same(remote, corpus)
    assert_same(pickle.loads(pickle.dumps(remote)), corpus)
    assert repr(remote).startswith("Corpus('memory://scenes', 'train': 32 images")
    assert (
        Corpus.open("memory://scenes", "train+val", 35).fingerprint
        == Corpus.open(scenes_corpus_dir, "train+val", 35).fingerprint
    )
    assert_same(Corpus.open(f"file://{scenes_corpus_dir}", "train"), corpus)
    bucket.put_all(scenes_corpus_dir, "scenes")
    assert_same(Corpus.open(Path(bucket.url("scenes")), "train"), corpus)
    with loopback.serve({f"data/{name}": data for name, data in files.items()}, {"me/scenes": files}) as server:
        assert_same(Corpus.open(f"{server.url}/data", "train"), corpus)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        assert_same(Corpus.open("hf://datasets/me/scenes@main", "train"), corpus)


def test_a_summary_of_a_url_is_that_of_the_folder(scenes_corpus_dir, memory):
    assert summarize_corpus(Path("memory://scenes"), "val").splits == summarize_corpus(scenes_corpus_dir, "val").splits


def test_an_image_is_read_without_its_shard(tmp_path):
    local = make_corpus(tmp_path / "made", [[f"caption {image}"] for image in range(200)])
    files = {path.name: path.read_bytes() for path in local.folder.iterdir()}
    with loopback.serve(files) as server:
        remote = Corpus.open(server.url, "train")
        assert remote.image_bytes(100) == local.image_bytes(100)
        sent = sum(request.sent for request in server.gets(f"/{SHARD}"))
    # The footer, and one of seven row groups.
    assert 0 < sent < 0.3 * len(files[SHARD])


def test_a_failing_server_is_asked_again(files, corpus, monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.0)
    with loopback.serve(files) as server:
        remote = Corpus.open(server.url, "train")
        server.faults[f"/{SHARD}"] = loopback.Fault(status=503, times=3)
        assert remote.captions == corpus.captions
        server.faults[f"/{SHARD}"] = loopback.Fault(status=503, times=None)
        with pytest.raises(SourceError, match="gave up after 5 attempts"):
            remote.image_bytes(0)


def test_evaluation_and_training_take_a_url(scenes_corpus_dir, memory, bucket, dual_run, tmp_path):
    results = []
    bucket.put_all(scenes_corpus_dir, "scenes")
    for data in ("memory://scenes", bucket.url("scenes"), str(scenes_corpus_dir)):
        result = CliRunner().invoke(
            app, ["eval", str(dual_run), "--data", data, "--split", "test", "--json", "--out", str(tmp_path / data[:6])]
        )
        assert result.exit_code == 0, result.stderr
        results.append(json.loads(result.stdout))
    for side in ("image_retrieval", "text_retrieval"):
        assert results[0][side] == results[1][side] == results[2][side]
    sets = [
        "batch.size=8",
        "optimizer.steps=3",
        "model.hidden_size=32",
        "model.projection_dim=16",
        "model.vocab_size=200",
    ]
    losses = []
    places = {"url": ["memory://scenes"], "s3": [bucket.url("scenes")], "folder": scenes_corpus_dir}
    for name, place in places.items():
        job = TrainingJob("distill", "demo-dual-alone", sets, tmp_path / name)
        losses.append(
            [
                line["loss"]
                for line in training.train_model(job, InputRefs(data=place), options=TrainingOptions()).metrics()
            ]
        )
    assert losses[0] == losses[1] == losses[2]


def page_of(data, place):
    """A shard with a changed byte in the middle of an image."""
    damaged = bytearray(data)
    damaged[data.index(place) + len(place) // 2] ^= 1
    return bytes(damaged)


def test_damage_at_a_url_is_an_error_that_names_the_file(files, memory, corpus):
    for name, data, message in (
        (SHARD, files[SHARD][:-1], r"memory://scenes/train-.* is damaged: it has [\d,]+ bytes, not"),
        (SHARD, page_of(files[SHARD], corpus.image_bytes(7)), r"memory://scenes/train-.* is damaged \(.*CRC"),
        (
            "corpus.json",
            files["corpus.json"].replace(b'"scenes"', b'"sceneZ"'),
            "memory://scenes/corpus.json is damaged",
        ),
        ("corpus.json", b"{", "memory://scenes/corpus.json is not JSON"),
    ):
        memory.pipe(f"/scenes/{name}", data)
        with pytest.raises(CorpusError, match=message):
            Corpus.open("memory://scenes", "train").image_bytes(7)
        memory.pipe(f"/scenes/{name}", files[name])
    memory.rm(f"/scenes/{SHARD}")
    remote = Corpus.open("memory://scenes", "train")
    with pytest.raises(SourceError, match=f"memory://scenes/{SHARD} does not exist"):
        remote.image_bytes(0)
    with pytest.raises(SourceError, match=r"memory://nowhere/corpus.json does not exist"):
        Corpus.open("memory://nowhere", "train")
    with pytest.raises(CorpusError, match=r"memory://scenes has no split 'tset'; it has train, val, test"):
        Corpus.open("memory://scenes", "tset")
