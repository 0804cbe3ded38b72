"""Compute settings: autocast follows the precision; errors of worker processes."""

from __future__ import annotations

import os
import pickle
import signal

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from dcdctl.core import artifacts, devices
from dcdctl.core.artifacts import checksums
from dcdctl.core.devices import read_ahead
from dcdctl.core.engines import Compute
from dcdctl.core.errors import CorpusError, InputError
from dcdctl.core.progress import unsaid


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_uses_the_set_precision(precision):
    with Compute(precision=precision).forward_pass():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, precision)


def test_weights_cast_without_gradients_are_not_reused_by_the_next_autocast_block():
    weight, compute = torch.ones(2, 2, requires_grad=True), Compute(precision="bfloat16")
    with torch.no_grad(), compute.forward_pass():
        torch.ones(2, 2) @ weight
    with compute.forward_pass():
        (torch.ones(2, 2) @ weight).sum().backward()
    assert weight.grad is not None


class Squares(Dataset[int]):
    """The squares of numbers; 4 is an error, 5 kills the process."""

    def __getitem__(self, number: int) -> int:
        if number == 4:
            raise CorpusError("image 'x' cannot be decoded", hint="prepare again")
        if number == 5 and get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_keeps_its_message(workers):
    read = read_ahead(Squares(), [1, 2, 4], workers)
    assert [next(read), next(read)] == [1, 4]
    with pytest.raises(CorpusError) as raised:
        next(read)
    assert str(raised.value) == "image 'x' cannot be decoded; prepare again"


def test_a_killed_worker_is_an_error_in_one_line():
    with pytest.raises(
        InputError, match="a worker process died, perhaps because memory ran out; try again with --workers 0"
    ):
        list(read_ahead(Squares(), [1, 5], 1))


def test_a_started_worker_knows_the_checksums_of_its_parent(tmp_path, monkeypatch):
    (tmp_path / "part").write_bytes(b"part")
    digest = artifacts.sha256_of(tmp_path / "part")
    sent = pickle.dumps(devices._ErrorsAsItems(Squares()))
    monkeypatch.setattr(checksums, "_DIGESTS", {})
    monkeypatch.setattr(checksums.files, "sha256_of", lambda path: pytest.fail("hashed again"))
    pickle.loads(sent)
    assert artifacts.sha256_of(tmp_path / "part") == digest


@pytest.mark.parametrize(
    ("cores", "processes", "workers", "expected"),
    [
        (4, "1", None, 3),
        (9, "1", None, 8),
        (10, "1", None, 8),
        (64, "1", None, 8),
        (1, "1", None, 0),
        (16, "4", None, 3),
        (2, "4", None, 0),
        (4, "1", 0, 0),
        (4, "1", 20, 20),
    ],
)
def test_images_are_read_by_one_thread_per_core_but_one_and_by_eight_at_most(
    monkeypatch, cores, processes, workers, expected
):
    monkeypatch.setattr(devices.machine, "num_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert Compute(workers=workers).readers == expected


@pytest.mark.parametrize(("name", "keeps"), [("cpu", True), ("auto", True), ("meta", False)])
def test_only_the_cpu_makes_the_process_keep_the_memory_that_it_frees(monkeypatch, name, keeps):
    calls: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices.machine, "keep_freed_memory", lambda: calls.append(True))
    assert devices.choose(name) == torch.device("cpu" if keeps else name)
    assert calls == [True] * keeps


@pytest.mark.parametrize(
    ("info", "processor", "expected"),
    [
        ("processor\t: 0\nmodel name\t: Fast CPU: 5 GHz\nmodel name\t: Slow CPU\n", "x86_64", "Fast CPU: 5 GHz"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", "arm", "arm"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", "", "aarch64"),
        (None, "arm", "arm"),
    ],
)
def test_a_processor_has_the_name_that_linux_or_else_python_gives_it(monkeypatch, tmp_path, info, processor, expected):
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(devices, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(devices.platform, "processor", lambda: processor)
    monkeypatch.setattr(devices.platform, "machine", lambda: "aarch64")
    assert devices.cpu_name() == expected


def test_the_time_of_some_work_comes_with_its_result(monkeypatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(ticks))
    assert devices.timed(lambda: "made", torch.device("cpu")) == (2.5, "made")


def test_numbers_that_are_read_later_are_those_of_the_tensor():
    numbers = torch.tensor([1.5, -2.0], requires_grad=True)
    assert devices.read_later(numbers)() == [1.5, -2.0]


def test_float32_is_never_computed_in_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    torch.set_float32_matmul_precision("high")
    try:
        devices.choose("cpu")
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("local_rank", "num_visible", "expected"), [("0", 4, 0), ("3", 4, 3), ("3", 1, 0), ("1", 0, 0)]
)
def test_a_process_takes_its_own_gpu_among_those_it_sees(monkeypatch, local_rank, num_visible, expected):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    assert devices.own_gpu() == expected


@pytest.mark.parametrize(
    ("name", "device", "half_s", "expected"),
    [
        (
            "bf16",
            "cpu",
            0.5,
            "--precision bf16 is slower than fp32 on this processor: a transformer block takes 2.0 times as long",
        ),
        ("bf16", "cpu", 0.1, ""),
        ("bf16", "cuda", 0.5, ""),
    ],
)
def test_a_half_precision_that_is_slower_here_is_said(name, device, half_s, expected, monkeypatch):
    said, seconds = [], {"float32": 0.25, "bfloat16": half_s}
    monkeypatch.setattr(devices, "_block_seconds", seconds.get)
    assert devices.precision_on(name, torch.device(device), said.append) == "bfloat16"
    assert "".join(said) == expected


def test_the_trial_of_precisions_leaves_the_random_state():
    before = torch.get_rng_state()
    devices.precision_on("bf16", torch.device("cpu"), unsaid)
    assert torch.equal(torch.get_rng_state(), before)
