"""Memory and threads of this process, and workers that do one thing at a time."""

from __future__ import annotations

import os
import threading

import pytest

from dcdctl.core import machine


@pytest.mark.parametrize(
    ("container", "ulimit", "expected"),
    [
        ([], None, 8 * 10**9),
        (["max"], None, 8 * 10**9),
        (["5000\n", "7000"], None, 5000),
        (["7000", "5000\n"], None, 5000),
        (["9000000000000"], None, 8 * 10**9),
        (["0"], None, 8 * 10**9),
        ([], 6000, 6000),
        (["5000"], 6000, 5000),
        (["7000"], 6000, 6000),
    ],
)
def test_the_memory_is_the_least_of_machine_container_and_ulimit(monkeypatch, tmp_path, container, ulimit, expected):
    files = [tmp_path / version for version in ("2", "1")]
    for path, text in zip(files, container, strict=False):
        path.write_text(text)
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", tuple(files))
    limit = machine.resource.RLIM_INFINITY if ulimit is None else ulimit
    limits = {machine.resource.RLIMIT_AS: (limit, machine.resource.RLIM_INFINITY)}
    monkeypatch.setattr(machine.resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2 * 10**6, "SC_PAGE_SIZE": 4000}.__getitem__)
    assert machine.address_space() == ulimit
    assert machine.memory_bytes() == expected


@pytest.mark.parametrize(("named", "expected"), [("2", 2), ("", 6), ("0", 6), ("many", 6), ("-1", 6)])
def test_threads_are_those_of_the_environment_or_one_per_core(monkeypatch, named, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    monkeypatch.setattr(machine, "num_cores", lambda: 6)
    assert machine.num_threads() == expected


def test_a_service_that_returns_memory_is_not_made_to_keep_it(monkeypatch):
    # By the numbers in glibc's malloc.h.
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4
    options: list[tuple[int, int]] = []
    monkeypatch.setattr(machine, "_RETURNS", False)
    monkeypatch.setattr(machine, "_set_malloc", lambda *given: options.extend(given))
    machine.keep_freed_memory()
    assert dict(options) == {mmap_max: 0, trim_threshold: 2**31 - 1, top_pad: 2**26}
    options.clear()
    machine.return_freed_memory()
    machine.keep_freed_memory()
    assert [option for option, _ in options] == [mmap_threshold]


def test_a_worker_raises_the_error_of_its_work_and_does_the_next():
    workers = machine.Workers(30)
    with pytest.raises(ZeroDivisionError):
        workers.do(lambda: 1 // 0)
    assert workers.do(lambda: 8 // 2) == 4
    assert workers.do(threading.current_thread) == workers.do(threading.current_thread) != threading.current_thread()


def test_a_worker_that_does_not_end_is_left_behind_and_no_other_is_started():
    workers, end = machine.Workers(0.01), threading.Event()
    try:
        for work in (end.wait, int):
            with pytest.raises(TimeoutError):
                workers.do(work)
    finally:
        end.set()
