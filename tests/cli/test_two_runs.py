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

import pytest
import torch
from command_line import run
from encoders import make_pair
from image_files import png, put
from tiny import contents, make_models, make_teacher

from dcdctl.core import models
from dcdctl.core.data import Corpus

DATA = "--data corpus --split test --device cpu"
ONE = f"cache-teacher {DATA} --recipe tiny-student --set candidates.per_query=1"
COMMANDS = {
    "prepare": "prepare scenes --set counts.train=2 --set counts.val=2 --set counts.test=2 --workers 1",
    "distill --resume": f"distill demo-dual-alone {DATA} --resume --set model.hidden_size=16 --set model.num_layers=1 "
    "--set model.num_text_layers=1 --set model.vocab_size=99 --set model.projection_dim=8 --set batch.size=4 "
    "--set optimizer.steps=2",
    "cache-teacher": f"{ONE} --teacher teacher",
    "index": "index dual --images images --workers 0 --device cpu",
    "export": "export dual --to transformers",
}


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


@contextmanager
def paused_in_first_write(line: str) -> Iterator[Callable[[], None]]:
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
            result = run(line, code=None)
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


@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_runs_the_second_is_refused_in_one_line_and_the_first_is_whole(name, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(stage)
    line = f"{COMMANDS[name]} --out {tmp_path}/out"
    with paused_in_first_write(line):
        before = contents(tmp_path)
        second = run(line, code=1)
        assert contents(tmp_path) == before
    *progress, said = second.stderr.splitlines()
    assert said.startswith(
        f"error: another run is writing to {tmp_path / 'out'}; wait until it ends, or name another folder"
    )
    assert "error" not in "\n".join(progress).lower()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list(tmp_path.rglob("*.partial"))
    after = contents(tmp_path)
    run(line, code=1 if name == "export" else 0)
    assert {name: data for name, data in contents(tmp_path).items() if "tensorboard" not in name} == {
        name: data for name, data in after.items() if "tensorboard" not in name
    }


def test_of_two_runs_with_the_same_features_the_second_waits_and_uses_what_the_first_stored(
    stage, tmp_path, monkeypatch
):
    monkeypatch.chdir(stage)
    line = f"{ONE} --teacher pair --features {tmp_path}/features"
    with paused_in_first_write(f"{line} --out {tmp_path}/first") as resume:
        lock = fcntl.flock

        def resume_when_waiting(file: int, operation: int) -> None:
            if not operation & fcntl.LOCK_NB:
                resume()
            lock(file, operation)

        monkeypatch.setattr(fcntl, "flock", resume_when_waiting)
        second = run(f"{line} --out {tmp_path}/second")
    (folder,) = (tmp_path / "features").iterdir()
    assert f"wait for another run that is writing to {folder} ..." in second.stderr.splitlines()
    assert "encode " not in second.stderr
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "first", "second"]
