"""What several processes of a training do together. tests/training/test_grad_cache.py has trainings by two."""

from __future__ import annotations

import pytest

from dcdctl.core import distributed
from dcdctl.core.errors import DcdError


def test_a_failure_stops_the_other_processes_at_the_barrier(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "_connect", lambda: None)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda failures: failures.fill_(1))
    distributed.barrier(has_failed=True)
    with pytest.raises(DcdError, match="another one failed"):
        distributed.barrier()


def test_only_the_main_process_makes_what_all_get(monkeypatch):
    sent = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "barrier", lambda **_: None)

    def broadcast(objects, device):
        if distributed.is_main():
            sent.extend(objects)
        objects[:] = sent

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    made = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert distributed.in_main(lambda: made.append(1) or "scores") == "scores"
    assert made == [1]
