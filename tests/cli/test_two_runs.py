"""Two processes that write the same folder at once: one does the work, the other waits or ends with one line, and the
files are whole."""

from __future__ import annotations

import fcntl
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import make_pair
from image_files import png, put
from tiny import contents, make_models, make_teacher
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork and no POSIX locks")
SMALL = [
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_text_layers=1",
    "model.vocab_size=99",
    "model.projection_dim=8",
]
SETS = [word for sets in [*SMALL, "batch.size=4", "optimizer.steps=2"] for word in ("--set", sets)]
COUNTS = [word for split in ("train", "val", "test") for word in ("--set", f"counts.{split}=2")]
ONE = ["--recipe", "tiny-student", "--set", "candidates.per_query=1"]
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def stage(scenes_corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a teacher, a teacher over frozen encoders, a dual encoder and a folder of images."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "corpus").symlink_to(scenes_corpus_dir)
    captions = Corpus.open(scenes_corpus_dir, "test").captions
    models.save(make_teacher(captions), folder / "teacher")
    models.save(make_pair(captions, folder / "encoders"), folder / "pair")
    models.save(make_models(captions)[1], folder / "dual")
    put(folder / "images", {f"{seed}.png": png(seed) for seed in range(3)})
    return folder


def run(words: list[object]) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@contextmanager
def paused_in_first_write(words: list[object]) -> Iterator[Callable[[], None]]:
    """Another process that runs a command and stops in its first write, until the function is called; it must end
    well."""
    (wrote_r, wrote_w), (go_r, go_w) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(go_w)
            torch.set_num_threads(1)
            sync, synced = os.fsync, []

            def pause_once(file: int) -> None:
                if not synced:
                    os.write(wrote_w, b"x")
                    os.read(go_r, 1)
                synced.append(file)
                sync(file)

            os.fsync = pause_once
            result = run(words)
            sys.stderr.write(result.output)
            os._exit(result.exit_code)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    os.close(wrote_w)
    try:
        assert os.read(wrote_r, 1) == b"x"
        yield lambda: os.write(go_w, b"x")
    finally:
        os.close(go_w)  # its read ends
        status = os.waitpid(child, 0)[1]
        os.close(wrote_r), os.close(go_r)
    assert os.waitstatus_to_exitcode(status) == 0


def commands(stage: Path, out: Path) -> dict[str, list[object]]:
    data = ["--data", stage / "corpus", "--split", "test"]
    return {
        "prepare": ["prepare", "scenes", *COUNTS, "--out", out, "--workers", 1],
        "distill --resume": ["distill", "demo-dual-alone", *data, "--out", out, "--resume", *SETS, *CPU],
        "cache-teacher": ["cache-teacher", *data, "--teacher", stage / "teacher", "--out", out, *ONE, *CPU],
        "index": ["index", stage / "dual", "--images", stage / "images", "--out", out, "--workers", 0, *CPU],
        "export": ["export", stage / "dual", "--out", out, "--to", "transformers"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["prepare", "distill --resume", "cache-teacher", "index", "export"])
def test_of_two_runs_the_second_is_refused_in_one_line_and_the_first_is_whole(name, stage, tmp_path):
    words = commands(stage, tmp_path / "out")[name]
    with paused_in_first_write(words):
        before = contents(tmp_path)
        second = run(words)
        assert contents(tmp_path) == before
    assert second.exit_code == 1, second.output
    *progress, line = second.stderr.splitlines()
    assert line.startswith(
        f"error: another run is writing to {tmp_path / 'out'}; wait until it ends, or name another folder"
    ), line
    assert not [line for line in progress if "error" in line.lower()]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list(tmp_path.rglob("*.partial"))
    after = contents(tmp_path)
    third = run(words)
    assert third.exit_code == (1 if name == "export" else 0), third.output
    assert {name: data for name, data in contents(tmp_path).items() if "tensorboard" not in name} == {
        name: data for name, data in after.items() if "tensorboard" not in name
    }


def test_of_two_runs_with_the_same_features_the_second_waits_and_uses_what_the_first_stored(
    stage, tmp_path, monkeypatch
):
    data = ["--data", stage / "corpus", "--split", "test", "--teacher", stage / "pair"]
    words = ["cache-teacher", *data, *ONE, *CPU, "--features", tmp_path / "features"]
    with paused_in_first_write([*words, "--out", tmp_path / "first"]) as resume:
        lock = fcntl.flock

        def resume_when_waiting(file: int, operation: int) -> None:
            if not operation & fcntl.LOCK_NB:
                resume()
            lock(file, operation)

        monkeypatch.setattr(fcntl, "flock", resume_when_waiting)
        second = run([*words, "--out", tmp_path / "second"])
    assert second.exit_code == 0, second.output
    (folder,) = (tmp_path / "features").iterdir()
    assert f"wait for another run that is writing to {folder} ..." in second.stderr.splitlines()
    assert "encode " not in second.stderr
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "first", "second"]
