"""A teacher cache built by several processes: the same bytes as by one, and a process that dies loses no finished
shard.

tests/training/test_grad_cache.py has the test of a cache built by two processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from tiny import contents, make_teacher

from dcdctl.core import artifacts, distributed, models
from dcdctl.core.errors import DcdError
from dcdctl.core.scoring import FEATURES

SCRIPT = """
import os, sys
from contextlib import contextmanager
import torch
torch.set_num_threads(1)
from dcdctl.cli.app import main
from dcdctl.core.artifacts import Build
from dcdctl.core.teacher import build
build.IMAGES_PER_SHARD = 3
write = Build.write
@contextmanager
def write_and_die(self, part):
    with write(self, part) as path:
        yield path
    if part == os.environ.get("DIE_AFTER"):
        os.kill(os.getpid(), 9)
Build.write = write_and_die
main()
"""


def run(
    num_processes: int, folder: Path, data: Path, teacher: Path, script: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        if num_processes > 1
        else []
    )
    sets = ["--recipe", "tiny-student", "--set", "candidates.per_query=4"]
    arguments = [
        "cache-teacher",
        "--data",
        data,
        "--teacher",
        teacher,
        "--out",
        folder,
        "--device",
        "cpu",
        "--batch-size",
        "64",
        *sets,
    ]
    return processes.run(
        [sys.executable, *launch, str(script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def inputs(corpus, scenes_corpus_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    models.save(make_teacher(corpus.captions), folder / "teacher")
    (folder / "script.py").write_text(SCRIPT)
    return scenes_corpus_dir, folder / "teacher", folder / "script.py"


@pytest.fixture(scope="module")
def single_process_cache(inputs, tmp_path_factory):
    """The cache built by one process, of eleven shards."""
    folder = tmp_path_factory.mktemp("single") / "cache"
    assert run(1, folder, *inputs).returncode == 0
    assert len(list(folder.glob("pairs-*"))) == 11
    return folder


@pytest.mark.slow
def test_three_processes_write_the_same_bytes_and_only_one_reports(single_process_cache, inputs, tmp_path):
    completed = run(3, tmp_path / "cache", *inputs)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("scored pairs of 32 images and 160 captions") == 1
    assert completed.stderr.count("pairs/s in a trial") == 1
    assert contents(tmp_path / "cache") == contents(single_process_cache)


@pytest.mark.slow
def test_another_run_completes_the_cache_after_a_process_died(single_process_cache, inputs, tmp_path):
    died = run(2, tmp_path / "cache", *inputs, DIE_AFTER="pairs-00003.parquet")
    assert died.returncode != 0
    assert str(signal.SIGKILL.value) in died.stderr
    assert not (tmp_path / "cache" / "cache.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("pairs-*.parquet")}
    assert "pairs-00003.parquet" in kept
    completed = run(1, tmp_path / "cache", *inputs)
    assert completed.returncode == 0, completed.stderr
    assert contents(tmp_path / "cache") == contents(single_process_cache)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}.items()


def test_a_failure_stops_the_other_processes_at_the_barrier(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "_connect", lambda: None)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda failures: failures.fill_(1))
    distributed.barrier(has_failed=True)
    with pytest.raises(DcdError, match="another one failed"):
        distributed.barrier()


def test_parts_resume_with_what_is_missing_and_a_seal_removes_what_a_killed_run_left(tmp_path):
    build = artifacts.Build(tmp_path / "features", {"format": FEATURES.format, "of": "this corpus"}, FEATURES)
    parts = distributed.Parts(build, ["images-0.npy", "images-1.npy"])
    build.begin()
    with build.write("images-0.npy") as path:
        path.write_bytes(b"zero")
    assert parts.missing() == [1]
    with build.write("images-1.npy") as path:
        path.write_bytes(b"one")
    parts.seal_alone(lambda listed: {"format": FEATURES.format, "files": listed})
    left = build.folder / "images-2.npy"
    left.write_bytes(b"two")
    parts.seal_alone(lambda listed: {"files": {}})
    assert not left.exists()
    assert list(FEATURES.read_seal(build.folder)["files"]) == ["images-0.npy", "images-1.npy"]


def test_every_index_belongs_to_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    indices = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        indices += list(distributed.local_indices(11))
        assert distributed.is_main() == (rank == 0)
    assert sorted(indices) == list(range(11))
