"""`dcdctl verify`: every damage of every kind of artifact is named, and nothing is said of intact ones."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from every_artifact import make_all
from every_command import make_stage
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import artifacts, models, search
from dcdctl.core.artifacts import checksums
from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.evaluation import SavedEvaluation
from dcdctl.core.integrity import verification, verify
from dcdctl.core.stores import upload_index


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of every kind of artifact. Not to be written to."""
    return make_all(tmp_path_factory.mktemp("all"))


@pytest.fixture
def copied(intact: Path, tmp_path: Path) -> Path:
    checksums._DIGESTS.clear()  # a new process remembers nothing
    return shutil.copytree(intact, tmp_path / "all")


def test_intact_artifacts_of_every_kind_are_well(intact):
    found = verify(intact)
    kinds = ["corpus", "evaluation", "features", "index", "index", *["model"] * 4, "run", "teacher cache"]
    assert sorted(item.kind for item in found.artifacts) == kinds
    assert found.problems == []
    assert found.is_well


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_all_damages_are_named_and_not_only_the_first(copied, run_verify):
    damaged = [copied / "data" / "corpus" / "train-00000-of-00001.parquet", copied / "models" / "dual" / "config.json"]
    damaged += [copied / "run" / "checkpoints" / "step-1" / name for name in ("weights.safetensors", "optimizer.pt")]
    for path in damaged:
        flipped(path)
    result = run_verify(copied)
    assert result.exit_code == 1
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
    for path in damaged:
        assert sum(f"{path} is damaged: its SHA-256 is" in line for line in problems) == 1


@pytest.fixture
def run_verify():
    return lambda *words: CliRunner().invoke(app, ["verify", *map(str, words)], catch_exceptions=False)


def test_the_table_and_the_json_say_what_was_checked(intact, run_verify):
    result = run_verify(intact / "data")
    assert result.exit_code == 0
    assert "teacher cache" in result.stdout
    result = run_verify(intact / "run", "--json")
    document = json.loads(result.stdout)
    assert document["ok"]
    kinds = {row["kind"]: row for row in document["artifacts"]}
    assert set(kinds) == {"run", "evaluation", "model"}
    assert kinds["evaluation"] == {
        "path": str(intact / "run"),
        "kind": "evaluation",
        "state": "ok",
        "damages": [],
    }


def test_unfinished_artifacts_are_said_to_be_so(copied):
    for seal, kind in (
        (copied / "data" / "cache" / "cache.json", "teacher cache"),
        (copied / "index" / "index.json", "index"),
    ):
        content = seal.read_bytes()
        seal.unlink()
        (seal.parent / "plan.json").touch() if kind == "index" else None
        assert f"{seal} is missing: the {kind} is not finished" in verify(seal.parent).problems
        seal.write_bytes(content)
        (seal.parent / "plan.json").unlink() if kind == "index" else None
    shutil.rmtree(copied / "run" / "model")
    assert verify(copied / "run").problems == [f"{copied / 'run' / 'model'} is missing: the run is not finished"]


@pytest.mark.parametrize(
    ("place", "kind", "part"),
    [
        ("data/corpus/corpus.json", "corpus", "train-00000-of-00001.parquet"),
        ("data/cache/cache.json", "teacher cache", "items.parquet"),
        ("data/features/*/features.json", "features", "images-00000.npy"),
        ("index/index.json", "index", "vectors/part-00000.parquet"),
        ("run/run.json", "run", "checkpoints/best/checkpoint.json"),
        ("models/dual/dcdctl.json", "model", "model.safetensors"),
    ],
)
def test_a_folder_that_lost_its_document_is_a_problem_alone_and_among_others(copied, place, kind, part):
    (document,) = copied.glob(place)
    document.unlink()
    for plan in document.parent.glob("p*.json"):
        plan.unlink()  # else it is an unfinished artifact
    problem = f"{document.parent} holds {part} and no {document.name}: its {kind} cannot be checked"
    for folder in (document.parent, copied):
        assert problem in verify(folder).problems


def test_an_index_with_the_model_of_another_one_is_named_by_verify_inspect_and_an_upload(copied):
    index = search.FolderIndex.open(copied / "index")
    other = models.load_dual(copied / "models" / "dual")
    other.network.logit_scale.data.add_(1)
    models.save(other, copied / "index" / "model")
    named = f"{copied / 'index' / 'model'} is not the model {index.fingerprint[:8]}, which made the vectors"
    assert named in verify(copied / "index").problems
    with pytest.raises(StaleError, match=re.escape(named)):
        search.index_document(index)
    with pytest.raises(StaleError, match=re.escape(named)):
        upload_index(index, cast(Any, None))


def test_an_evaluation_whose_table_is_gone_and_an_index_without_model_are_damaged(copied):
    (copied / "run" / "top.parquet").unlink()
    shutil.rmtree(copied / "index" / "model")
    problems = verify(copied).problems
    assert f"{copied / 'run' / 'top.parquet'} is missing" in problems
    named = f"{copied / 'index' / 'model'} is missing, or has no dcdctl.json"
    assert named in problems
    index = search.FolderIndex.open(copied / "index")
    with pytest.raises(MissingError, match=re.escape(named)):
        search.index_document(index)
    with pytest.raises(MissingError, match=re.escape(named)):
        upload_index(index, cast(Any, None))
    with pytest.raises(InputError, match=r"top\.parquet is missing"):
        assert SavedEvaluation.load(copied / "run").top


def test_other_files_and_the_folders_of_a_model_are_no_artifacts(copied):
    (copied / "notes.txt").touch()
    inner = copied / "models" / "dual" / "0_Transformer"
    inner.mkdir()
    shutil.copy(copied / "models" / "dual" / "model.safetensors", inner)
    assert verify(copied).problems == [
        f"{inner / 'model.safetensors'} was added to a saved model, and a loader might read it"
    ]


def test_artifacts_are_in_the_order_of_their_folders(tmp_path):
    for name in "fbhadgce":
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").touch()
    assert [artifact.path.name for artifact in verify(tmp_path).artifacts] == list("abcdefgh")


def test_a_path_without_artifacts_is_the_users_error(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"holds no artifact of dcdctl; name a corpus"):
        verify(tmp_path)
    with pytest.raises(InputError, match=r"letter\.txt is a file, a folder is expected"):
        verify(tmp_path / "letter.txt")
    with pytest.raises(InputError, match="absent is not there, a folder is expected"):
        verify(tmp_path / "absent")


def test_what_cannot_be_read_is_named(copied, run_verify, monkeypatch):
    walk, denied = os.walk, PermissionError(errno.EACCES, "Permission denied", str(copied / "locked"))

    def walk_denied(path, onerror):
        onerror(denied)
        return walk(path, onerror=onerror)

    def stat_denied(folder, track):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "run.json"))

    monkeypatch.setattr(os, "walk", walk_denied)
    checks = [(names, stat_denied if "run.json" in names else check) for names, check in verification.CHECKS]
    monkeypatch.setattr(verification, "CHECKS", checks)
    result = run_verify(copied)
    assert result.exit_code == 1
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
    unreadable = (copied / "locked", copied / "run" / "run.json")
    assert problems == [f"problem: {path} cannot be read: Permission denied" for path in unreadable]


@pytest.mark.parametrize("kind", ["corpus", "cache", "index"])
def test_a_document_that_names_a_file_with_a_nul_is_one_line(copied, kind):
    """Its checksum fits, as in a document of a stranger."""
    folder = copied / "index" if kind == "index" else copied / "data" / kind
    path = folder / f"{kind}.json"
    text = json.dumps(artifacts.read_document(path))
    name = re.search(r'"([\w.-]+\.(?:parquet|npy|bin|f16))"', text)[1]
    artifacts.write_document(path, json.loads(text.replace(f'"{name}"', json.dumps(f"a\0{name}"))))
    problems = verify(folder).problems
    named = f"a\0{name}"
    refusals = f"folder: {named}", f"{named} is missing", f"must be the name of a file, got {named!r}"
    assert any(refusal in problem for problem in problems for refusal in refusals)
    assert not any("\n" in problem for problem in problems)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what commands wrote. Not to be written to."""
    return make_stage(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("kind", ["corpus", "cache", "index", "run", "evaluation2"])
def test_a_cut_copy_is_called_cut_and_its_file_is_named(made, tmp_path, kind):
    copy = shutil.copytree(made / kind, tmp_path / kind)
    assert verify(copy).is_well
    paths = sorted(path for path in copy.rglob("*") if path.is_file() and path.parent.name != "tensorboard")
    assert len(paths) > 2
    for path in paths:
        content = path.read_bytes()
        for rest in (None, content[:-1], content[: len(content) // 2]):
            path.unlink(missing_ok=True)
            if rest is not None:
                path.write_bytes(rest)
            found = verify(copy)
            assert not found.is_well
            assert any(str(path.parent) in problem and path.name in problem for problem in found.problems), path
        path.write_bytes(content)
