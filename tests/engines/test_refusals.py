"""What engines refuse before a task is given: options, addresses, and models that cannot travel. Ray is not started
here."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import ray
import refusals
from processes import free_port
from ray import exceptions as failures
from refusals import Refusal

from dcdctl.core.engines import Compute, EngineChoice, cluster
from dcdctl.core.engines.ray_worker import versions
from dcdctl.core.engines.travel import check_versions, put_maker
from dcdctl.core.errors import ConfigError, InputError, ModelError, SourceError, StaleError
from dcdctl.core.progress import unsaid

CHOICES = [
    ("spark", r"engine 'spark' is unknown; known are files:DIR, processes:N, ray, and ray://HOST:PORT"),
    ("ray://head", r"engine 'ray://head' is unknown; known are files:DIR, processes:N, ray, and ray://HOST:PORT"),
    ("processes", r"--engine processes lacks the number of processes; such as processes:4"),
    ("processes:many", r"--engine processes:many lacks the number of processes; such as processes:4"),
    ("processes:2?cpus=2", r"--engine processes:2\?cpus=2 lacks the number of processes"),
    ("processes:0", r"--engine processes:0 must name 1 to 100,000 processes"),
    ("processes:100001", r"--engine processes:100001 must name 1 to 100,000 processes"),
    ("processes:" + "9" * 5000, r"--engine processes:9{30} must name 1 to 100,000 processes"),
    ("ray?workers=0", r"--engine\.workers must lie in \[1, 100000\], got 0"),
    ("ray?workers=many", r"--engine\.workers must be .*'many'"),
    ("ray?gpus=1.5", r"a share of one GPU or a whole number of them, got 1\.5"),
    ("ray://head:10001?cpus=0", r"--engine\.cpus must lie in \[1, 1024\], got 0"),
    ("files:", r"--engine files: lacks the folder of the tasks; such as files:tasks"),
    ("files:tasks?workers=2", r"unknown key --engine\.workers; known keys here: bytes"),
    ("ray?threads=2", r"unknown key --engine\.threads; known keys here: engine, workers, gpus, cpus"),
]
ADDRESSES = [
    ("127.0.0.1:{}", "refused"),
    ("127.0.0.1", "it is not HOST:PORT"),
    ("127.0.0.1:99999", "[Pp]ort out of range"),
    ("no-such-host.invalid:{}", r"\[Errno"),
]


@pytest.fixture
def no_waiting(monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("Ray would try for minutes")

    monkeypatch.setattr(ray, "init", refuse)


def of_address(address: str, use, *, by_option: bool):
    """Look for a cluster where nobody listens."""

    def do(no_waiting, monkeypatch):
        named = address.format(free_port())
        monkeypatch.setenv("RAY_ADDRESS", named)
        use(EngineChoice(engine=f"ray://{named}" if by_option else "ray"))

    return do


def in_a_small_store(monkeypatch):
    def fill(value: object) -> None:
        raise failures.ObjectStoreFullError("2 GB of 1 GB")

    monkeypatch.setattr(ray, "put", fill)
    put_maker(dict)


connect = partial(cluster.connect, say=unsaid)


def silent(why: str) -> str:
    return rf"no Ray cluster answers at .*: .*{why}.*; `ray start --head`"


ROWS = [
    *(Refusal(text, partial(EngineChoice.parse, text), ConfigError, says) for text, says in CHOICES),
    *(
        Refusal(f"--engine {address}", of_address(address, connect, by_option=True), SourceError, silent(why))
        for address, why in ADDRESSES
    ),
    Refusal("RAY_ADDRESS", of_address(ADDRESSES[0][0], connect, by_option=False), SourceError, silent("refused")),
    *(
        Refusal(
            f"before a model is read, by option {by_option}",
            of_address(ADDRESSES[0][0], partial(Compute.chosen, say=unsaid), by_option=by_option),
            SourceError,
            silent("refused"),
        )
        for by_option in (True, False)
    ),
    Refusal(
        "a model with a lock",
        lambda: put_maker(threading.Lock().acquire),
        ModelError,
        "the model cannot travel to workers: .*pickle.*; leave --engine out",
    ),
    Refusal("a small store", in_a_small_store, InputError, "object store is too small for the model; start Ray with"),
    Refusal(
        "a node with other software",
        lambda: check_versions("there", {**versions(), "torch": "1.0"}),
        StaleError,
        r"the node there would compute with other software: torch 1\.0 there and .* here; install the same",
    ),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
