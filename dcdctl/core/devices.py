"""Devices and precisions by the names that users type, worker processes, memory settings, and the machine as results
describe it."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from dcdctl import __version__
from dcdctl.core import artifacts, machine
from dcdctl.core.errors import ConfigError, DcdError, InputError, first_line
from dcdctl.core.progress import Say

T = TypeVar("T")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
CPU = torch.device("cpu")


def choose(name: str) -> torch.device:
    """The torch device of a name; `auto` is the GPU if there is one, else the CPU. ConfigError if this machine lacks
    the device.

    Choosing the CPU makes the process keep the memory that it frees, for speed (`machine.keep_freed_memory`).
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{own_gpu()}"
    # torch computes convolutions in TF32 by default, which keeps 10 of 23 bits: the patches of every ViT would differ
    # from those of a CPU by 1e-3. A faster precision is bf16, which a cache's plan, an evaluation and a run name.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if name == "cpu":
        machine.keep_freed_memory()
    device = named(name)
    try:
        # torch.device also accepts devices that this machine lacks: only an allocation fails. AssertionError: torch
        # without CUDA.
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name} cannot be used here: {first_line(error)}", hint=_OTHER_DEVICE) from error
    return device


_OTHER_DEVICE = "try --device cpu or --device auto"


def named(name: str) -> torch.device:
    """The torch device of a name, which this machine may lack; ConfigError for an unknown one."""
    try:
        return torch.device(name)
    except RuntimeError as error:  # its message lists twenty kinds of device
        raise ConfigError(
            f"device {name} is unknown, expected auto, cpu, cuda, cuda:1 or mps", hint=_OTHER_DEVICE
        ) from error


def own_gpu() -> int:
    """The number of this process's GPU among those that it sees: each process of a torchrun job, and each of `--engine
    processes:N`, takes its own.

    A launcher that shows each process one GPU (CUDA_VISIBLE_DEVICES) numbers it 0 in all of them.
    """
    return int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())


def read_ahead(items: Dataset[T], keys: Iterable[Any], workers: int, *, pin_memory: bool = False) -> Iterator[T]:
    """The items of these keys in order, read ahead by worker processes; by this process if there are none.

    A DcdError of a worker is raised here with its own message; InputError if a worker was killed.
    """
    loader: Any = DataLoader(
        _ErrorsAsItems(items),
        # Items are batches already.
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        pin_memory=pin_memory,
    )
    try:
        for item in loader:
            if isinstance(item, DcdError):
                raise item
            yield item
    except RuntimeError as error:
        # torch raises a plain RuntimeError for a worker that was killed.
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a worker process died, perhaps because memory ran out", hint="try again with --workers 0"
        ) from error


class _ErrorsAsItems(Dataset[Any]):
    """A data set that returns errors that the user can fix: torch would add a worker's traceback to the message of a
    raised error."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.items[key]
        except DcdError as error:
            return error

    # A forked worker inherits the checksums that its parent has computed; a spawned one is given them, and hashes no
    # file again.
    def __getstate__(self) -> dict[str, Any]:
        return {"items": self.items, "digests": artifacts.known_digests()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.items = state["items"]
        artifacts.know_digests(state["digests"])


def precision(name: str, device: torch.device | None = None) -> str:
    """The torch name of a precision; ConfigError for fp16 on a CPU, which is many times slower there."""
    if name not in PRECISIONS:
        raise ConfigError(
            f"precision must be one of {', '.join(PRECISIONS)}, got {name}", hint="every device computes in fp32"
        )
    if name == "fp16" and device is not None and device.type == "cpu":
        raise ConfigError("--precision fp16 is for GPUs, and this computes on a CPU", hint="use fp32, or try bf16")
    return PRECISIONS[name]


def precision_on(name: str, device: torch.device, say: Say) -> str:
    """The torch name of a precision; `say` gets a line if it is a half precision that is slower than float32 on this
    processor.

    A trial of a tenth of a second decides: processors differ in their instructions, and not every library has a kernel
    for each.
    """
    chosen = precision(name, device)
    if chosen != "float32" and device.type == "cpu":
        ratio = _block_seconds(chosen) / _block_seconds("float32")
        if ratio > 1:
            say(
                f"--precision {name} is slower than fp32 on this processor: a transformer block takes {ratio:.1f} "
                "times as long"
            )
    return chosen


@torch.inference_mode()
def _block_seconds(precision_name: str) -> float:
    """The shortest time of a block of a ViT-B on 64 tokens."""
    # A fork, because a new block draws weights.
    with torch.random.fork_rng(devices=[]):
        block = torch.nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True).eval()
        tokens = torch.randn(1, 64, 768)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        with torch.autocast("cpu", getattr(torch, precision_name), enabled=precision_name != "float32"):
            block(tokens)
        times.append(time.perf_counter() - started)
    # The first pass warms up, and whatever else runs only adds time to the others.
    return min(times[1:])


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """The seconds of some work, with all that it starts on a device, and its result."""
    # A GPU runs behind the program: without waiting, only the start of its work would be timed.
    synchronize(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - started, result


def read_later(numbers: torch.Tensor) -> Callable[[], list[float]]:
    """A function that gives the numbers of a vector; it waits for what the device was given before this call, not for
    what follows."""
    if numbers.device.type != "cuda":
        return numbers.detach().tolist
    # A copy to the CPU that does not block goes into pinned memory; its numbers are there once the event has passed.
    copied, copy_done = numbers.detach().to("cpu", non_blocking=True), torch.cuda.Event()
    copy_done.record(torch.cuda.current_stream(numbers.device))

    def read() -> list[float]:
        copy_done.synchronize()
        values: list[float] = copied.tolist()
        return values

    return read


def on_device(batch: T, device: torch.device) -> T:
    """A copy of a dataclass with its tensors on another device; the copy to a GPU is asynchronous if they are in pinned
    memory."""
    return _with_fields(batch, "to", device, non_blocking=device.type == "cuda")


def in_pinned_memory(batch: T) -> T:
    """A copy of a dataclass with its tensors in pinned memory, which a GPU reads without the CPU."""
    return _with_fields(batch, "pin_memory")


def _with_fields(batch: T, method: str, *arguments: Any, **options: Any) -> T:
    """A copy of a dataclass in which each field that has the method is replaced by its result."""
    fields: Any = dataclasses.fields(batch)  # type: ignore[arg-type]
    # Not dataclasses.asdict, which copies every tensor.
    changed = {}
    for field in fields:
        value = getattr(batch, field.name)
        if hasattr(value, method):
            changed[field.name] = getattr(value, method)(*arguments, **options)
    return dataclasses.replace(batch, **changed)  # type: ignore[type-var]


# Each reading parses all metadata of a package: 10 ms for the four of them, per change of an index.
_version = cache(version)


def versions() -> dict[str, str]:
    """Versions of the software that results depend on, and the machine type."""
    packages = {name: _version(name) for name in ("torch", "transformers", "numpy", "pillow")}
    return {"dcdctl": __version__, "python": platform.python_version(), **packages, "machine": platform.machine()}


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, device, threads, cores, float32 matmul settings and versions."""
    is_cuda = device.type == "cuda"
    has_tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return {
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": is_cuda and has_tf32,
        "cuda": torch.version.cuda if is_cuda else None,
        **versions(),
    }


def cpu_name() -> str:
    """The model name of the processor from /proc/cpuinfo, else what Python reports."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    # On ARM there is no such line.
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
