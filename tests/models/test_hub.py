"""Models of the Hub, from a real server on this machine, without any, and from the cache."""

from __future__ import annotations

import logging
import re
import socket
import threading
from dataclasses import replace

import loopback
import pytest
import torch
from duals import save_dual
from families import FAMILIES, late
from huggingface_hub import HfApi, constants, hf_api
from loopback import Fault
from open_clips import save_open_clip
from PIL import Image
from typer.testing import CliRunner

import dcdctl
from dcdctl.cli.app import app
from dcdctl.core import models, scoring
from dcdctl.core.errors import ModelError
from dcdctl.core.export import ExportJob
from dcdctl.core.export.export import export_model
from dcdctl.core.models.references import hub
from dcdctl.core.photos import DEFAULT_MODEL
from dcdctl.core.progress import byte_size
from dcdctl.core.teacher import CandidateConfig

FETCH = r"on a machine with a network run `hf download me/vilt --local-dir DIR`, and name DIR in place of me/vilt"


@pytest.fixture
def folder(vilt, tmp_path):
    """A model as other libraries publish it, without dcdctl.json."""
    models.save(vilt, tmp_path / "vilt")
    (tmp_path / "vilt" / "dcdctl.json").unlink()
    return tmp_path / "vilt"


@pytest.fixture
def online(tmp_path, monkeypatch):
    """Sets the address of the Hub. Its libraries read it from the environment once per process, in three places."""

    def set_address(url: str) -> None:
        hub._problem.cache_clear()
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(constants.ENDPOINT, url))
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(hf_api.api, "endpoint", url)
        monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: HfApi(endpoint=url))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    # Requests that keep the address of an earlier test are repeated.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return set_address


@pytest.fixture
def nobody():
    """An address of this machine where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_a_model_of_the_hub_is_read_from_its_cache_once_the_hub_is_gone(online, nobody, folder, capfd):
    with loopback.serve(models={"me/vilt": folder}) as server:
        online(server.url)
        digest = models.load("me/vilt").digest
    assert digest == models.load(folder).digest
    online(nobody)
    capfd.readouterr()
    assert models.load("me/vilt").digest == digest
    assert "Retrying" not in capfd.readouterr().err


def test_a_late_model_its_export_and_its_query_student_are_read_from_the_hub(online, tmp_path, captions):
    model = late(FAMILIES["dual"](captions, tmp_path), is_pooled=False, position_norm=0.7)
    models.save(model, tmp_path / "late")
    export_model(ExportJob(model=str(tmp_path / "late"), out=tmp_path / "exported", to="sentence-transformers"))
    space, size = models.QuerySpace.of(model), models.QuerySize(text="teacher")
    models.save(models.new_query(space, size, teacher=model), tmp_path / "query")
    folders = {f"me/{name}": tmp_path / name for name in ("late", "exported", "query")}
    with loopback.serve(models=folders) as server:
        online(server.url)
        for ref, saved in folders.items():
            assert models.load(ref, kind="any").digest == models.load(saved, kind="any").digest
        # As `candidates.model`.
        assert [scoring.is_late(ref) for ref in (*folders, str(tmp_path / "exported"))] == [True, True, False, True]


def test_a_model_that_cannot_be_fetched_is_one_error_that_says_what_to_fetch_where(
    online, nobody, scenes_corpus_dir, tmp_path
):
    online(nobody)
    url = re.escape(f"{nobody}/me/vilt")
    message = (
        rf"^me/vilt is no file or folder here and not complete in the cache of the Hub, and {url} was not read "
        rf"\(.*refused.*\); {FETCH}$"
    )
    for load in (models.load, models.load_dual, models.load_tokenizer):
        with pytest.raises(ModelError, match=message):
            load("me/vilt")
    fields = {"candidates": CandidateConfig(kind="embedding", model="me/vilt")}
    with (
        pytest.raises(ModelError, match=rf"{FETCH.partition('name')[0]}give `--set candidates.model=DIR`$"),
        models.naming_fields(fields),
    ):
        models.load_dual("me/vilt")
    words = ["eval", "me/vilt", "--data", str(scenes_corpus_dir), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.fullmatch(rf"error: {message[1:-1]}\n", result.stderr)


@pytest.mark.parametrize("missing", ["model.safetensors", "preprocessor_config.json"])
def test_a_cached_copy_that_lacks_a_file_is_not_complete(missing, online, nobody, folder):
    with loopback.serve(models={"me/vilt": folder}) as server:
        online(server.url)
        models.load("me/vilt")
    (cached,) = (folder.parent / "cache").rglob(f"snapshots/*/{missing}")
    cached.unlink()
    online(nobody)
    with pytest.raises(ModelError, match=rf"me/vilt was not read \(.*refused.*\); {FETCH}"):
        models.load("me/vilt")


def test_photos_without_a_model_fetch_the_default_one_and_say_its_size_once(
    online, nobody, tmp_path, captions, monkeypatch
):
    said: list[str] = []
    monkeypatch.setattr(hub, "LONG_DOWNLOAD", 1)
    # Not by stderr: a library of another test may have added a handler that writes elsewhere.
    monkeypatch.setattr(logging.getLogger("dcdctl"), "warning", lambda text, *values: said.append(text % values))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "a.png")
    siglip = save_dual("SigLIP", captions, tmp_path / "siglip")
    with loopback.serve(models={DEFAULT_MODEL: siglip}) as server:
        online(server.url)
        index = dcdctl.photos(tmp_path / "photos", out=tmp_path / "mine")
    assert index.fingerprint == models.load(siglip).digest
    size = byte_size((siglip / "model.safetensors").stat().st_size)
    expected = f"{DEFAULT_MODEL}: downloading {size}, once, into {tmp_path / 'cache'}"
    assert said.count(expected) == 1
    # What the cache has is not announced again, and a finished library needs neither.
    online(nobody)
    dcdctl.photos(tmp_path / "photos", out=tmp_path / "again")
    assert sum("downloading" in line for line in said) == 1


def other_model(folder, tmp_path, captions):
    """The files of a model with other weights and another tokenizer than that of a folder."""
    scorer = models.load(folder)
    with torch.no_grad():
        next(scorer.network.parameters()).add_(1)
    scorer.preprocess = replace(scorer.preprocess, tokenizer=models.word_piece(captions, 60))
    models.save(scorer, tmp_path / "other")
    (tmp_path / "other" / "dcdctl.json").unlink()
    return {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}


def test_a_revision_gives_weights_and_tokenizer_of_one_commit(online, nobody, folder, tmp_path, captions):
    old = other_model(folder, tmp_path, captions)
    commit = loopback.commit_of(old)
    with loopback.serve(models={"me/vilt": folder}) as server:
        server.branches["me/vilt"] = {"v1": old}
        online(server.url)
        digest, old_digest = models.load("me/vilt").digest, models.load(tmp_path / "other").digest
        assert digest == models.load(folder).digest != old_digest
        assert models.load("me/vilt@v1").digest == models.load(f"me/vilt@{commit}").digest == old_digest
        words = len(models.load_tokenizer("me/vilt@v1"))
        assert words == len(models.load_tokenizer(str(tmp_path / "other"))) != len(models.load_tokenizer("me/vilt"))
        with pytest.raises(
            ModelError, match=rf"{server.url}/me/vilt has no such revision \(404\); see {server.url}/me/vilt/tree/main"
        ):
            models.load("me/vilt@v2")
        assert not any(path.endswith(".py") for path in (request.path for request in server.requests))
    online(nobody)
    assert models.load("me/vilt@v1").digest == old_digest
    with pytest.raises(
        ModelError, match="run `hf download me/vilt --revision v3 --local-dir DIR`, and name DIR in place of me/vilt@v3"
    ):
        models.load("me/vilt@v3")


def test_the_encoders_of_a_new_model_are_read_at_a_revision(online, tmp_path, captions):
    dual = save_dual("CLIP", captions, tmp_path / "clip")
    with loopback.serve(models={"me/clip": {"README.md": b"empty"}}) as server:
        server.branches["me/clip"] = {"v1": {path.name: path.read_bytes() for path in dual.iterdir()}}
        online(server.url)
        expected = models.new_frozen_dual(
            str(dual), str(dual), models.ProjectionSize(projection_dim=8), max_text_len=12
        )
        found = models.new_frozen_dual(
            "me/clip@v1", "me/clip@v1", models.ProjectionSize(projection_dim=8), max_text_len=12
        )
        assert found.digest == expected.digest
        assert scoring.load_embedder("me/clip@v1", torch.device("cpu")).images is not None


def test_a_repository_is_read_like_its_folder_and_no_more_of_it(online, tmp_path, captions):
    """One of open_clip, with files for other libraries; one that dcdctl saved, whose seal is compared."""
    folder = save_open_clip("open_clip SigLIP", captions, tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = {"open_clip_pytorch_model.bin": b"no", "modeling.py": b"no", "onnx/model.onnx": b"no"}
    models.save(models.load_dual(folder), tmp_path / "model")
    with loopback.serve(models={"me/siglip": files | others, "me/sealed": tmp_path / "model"}) as server:
        online(server.url)
        expected = models.load_dual(folder).digest
        assert models.load_dual("me/siglip").digest == expected
        assert not any(name in request.path for request in server.requests for name in others)
        assert models.load_dual("me/sealed").digest == expected
        server.repos["models"]["me/sealed"]["open_clip_config.json"] += b" "
        with pytest.raises(ModelError, match=r"open_clip_config\.json is damaged"):
            models.load_dual("me/sealed")


def test_hf_hub_offline_makes_no_request(online, folder, monkeypatch):
    with loopback.serve(models={"me/vilt": folder}) as server:
        online(server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match=rf"me/vilt was not read \(HF_HUB_OFFLINE is set\); {FETCH}"):
            models.load("me/vilt")
        assert server.requests == []
    assert constants.HF_HUB_OFFLINE


def test_a_missing_a_gated_and_a_broken_repository_are_told_apart(online, folder, monkeypatch):
    with loopback.serve(models={"me/vilt": folder, "me/gated": folder}, gated={"me/gated": "hf_key"}) as server:
        online(server.url)
        with pytest.raises(
            ModelError,
            match=rf"me/absent \(no file or folder here\): {server.url}/me/absent does not exist or is private",
        ):
            models.load("me/absent")
        with pytest.raises(
            ModelError,
            match=rf"me/gated .* is gated \(40[13]\); accept the terms at {server.url}/me/gated and set HF_",
        ):
            models.load("me/gated")
        server.faults["/me/vilt/resolve/main/config.json"] = Fault(status=503, times=None)
        with pytest.raises(ModelError, match=rf"{server.url}/me/vilt was not read \(it answered 503\); {FETCH}"):
            models.load("me/vilt")
        assert sum("me/vilt" in request.path for request in server.requests) == 1


def test_a_server_that_does_not_answer_is_not_waited_for(online, folder, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.1)
    with loopback.serve(models={"me/vilt": folder}) as server:
        online(server.url)
        server.faults["/me/vilt/resolve/main/config.json"] = Fault(hold=threading.Event(), times=None)
        with pytest.raises(ModelError, match=rf"me/vilt was not read \(.*[Tt]imed? ?out.*\); {FETCH}"):
            models.load("me/vilt")


@pytest.mark.parametrize("ref", ["/srv/models/absent", "../absent/bert", "a/b/c"])
def test_a_path_is_not_looked_up_on_the_hub(ref, online, nobody):
    online(nobody)
    with pytest.raises(
        ModelError,
        match=f"^{re.escape(ref)} does not exist; name a folder, or a model of the Hugging Face Hub as OWNER/NAME",
    ):
        models.dual_from_backbones(ref, ref)
