"""Compute settings: autocast follows the precision; errors of worker processes."""

from __future__ import annotations

import os
import pickle
import signal

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from dcdctl.core import artifacts, devices
from dcdctl.core.devices import Compute, read_ahead
from dcdctl.core.errors import CorpusError, InputError


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_uses_the_set_precision(precision):
    with Compute(precision=precision).autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, precision)


def test_weights_cast_without_gradients_are_not_reused_by_the_next_autocast_block():
    weight, compute = torch.ones(2, 2, requires_grad=True), Compute(precision="bfloat16")
    with torch.no_grad(), compute.autocast():
        torch.ones(2, 2) @ weight
    with compute.autocast():
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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_worker_is_an_error_in_one_line():
    with pytest.raises(InputError, match="a worker process died, perhaps because memory ran out; try again with --workers 0"):
        list(read_ahead(Squares(), [1, 5], 1))


def test_a_started_worker_knows_the_checksums_of_its_parent(tmp_path, monkeypatch):
    (tmp_path / "part").write_bytes(b"part")
    digest = artifacts.sha256_of(tmp_path / "part")
    sent = pickle.dumps(devices._ErrorsAsItems(Squares()))
    monkeypatch.setattr(artifacts, "_DIGESTS", {})
    monkeypatch.setattr(artifacts.files, "sha256_of", lambda path: pytest.fail("hashed again"))
    pickle.loads(sent)
    assert artifacts.sha256_of(tmp_path / "part") == digest
