"""The engine that a user chooses by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

from dcdctl.core import files, machine
from dcdctl.core.config import between, build, settle_fields
from dcdctl.core.engines.engine import Engine
from dcdctl.core.engines.processes import Processes
from dcdctl.core.engines.this_process import ThisProcess
from dcdctl.core.errors import ConfigError, require_extra
from dcdctl.core.progress import Say
from dcdctl.core.toml import parse_value

FILES = "files:"
"""What comes before the folder of the tasks."""
_MOST_WORKERS = 100_000
_ADDRESS = re.compile(r"ray://.+:\d+")


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """An engine and its workers."""

    engine: str | None = None
    """`processes`; `files:DIR`; `ray`, or the address of a cluster, such as ray://HEAD:10001; None for this process."""
    workers: Annotated[int, between(1, _MOST_WORKERS)] | None = None
    """Workers of the engine; None for as many as a cluster has room for."""
    gpus: Annotated[float, between(0, 1024)] | None = None
    """GPUs of each worker of a cluster, which may be a fraction; None for one where the cluster has GPUs, else none."""
    cpus: Annotated[int, between(1, 1024)] = 1
    """CPU cores of each worker, which computes with as many threads."""

    def __post_init__(self) -> None:
        settle_fields(self, "--engine")
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            raise ConfigError(f"--engine.gpus must be a share of one GPU or a whole number of them, got {self.gpus:g}")

    @property
    def is_files(self) -> bool:
        """Whether tasks are written to files: then this process computes with its own device what cannot be a task."""
        return self.engine is not None and self.engine.startswith(FILES)

    @classmethod
    def parse(cls, text: str | None) -> EngineChoice:
        """The choice that a user types in one of the forms of `ENGINES`; None for no engine.

        ConfigError for an unknown engine or setting; MissingError without the engine's package.
        """
        if text is None:
            return cls()
        kind = ENGINES.get(_name_of(text))
        if kind is None:
            raise unknown_engine(text)
        return kind.parse(text)


@dataclass(frozen=True)
class EngineKind:
    """An engine that a user can name."""

    forms: str
    """How it is typed, for messages."""
    parse: Callable[[str], EngineChoice]
    open: Callable[[EngineChoice, Say], Engine]


def open_engine(choice: EngineChoice, say: Say) -> Engine:
    """The engine of a choice, whose workers start when the first task is given to it. SourceError if nobody listens at
    the address of a cluster."""
    return ThisProcess() if choice.engine is None else ENGINES[_name_of(choice.engine)].open(choice, say)


def _name_of(text: str) -> str:
    """The name with which what is typed begins."""
    return re.split("[:?]", text, maxsplit=1)[0]


def unknown_engine(text: str) -> ConfigError:
    """The error for a text in none of the forms."""
    known = ", ".join(kind.forms for kind in ENGINES.values())
    return ConfigError(f"engine {text!r} is unknown", hint=f"known are {known}")


def _parse_processes(text: str) -> EngineChoice:
    name, _, number = text.partition(":")
    if not number.isdecimal():
        raise ConfigError(f"--engine {text} lacks the number of processes", hint="such as processes:4")
    # By its length first: `int` refuses a number of thousands of digits.
    if len(number) > len(str(_MOST_WORKERS)) or not 1 <= int(number) <= _MOST_WORKERS:
        raise ConfigError(f"--engine {text:.40} must name 1 to {_MOST_WORKERS:,} processes", hint="such as processes:4")
    return EngineChoice(engine=name, workers=int(number), cpus=machine.num_threads(int(number)))


def _open_processes(choice: EngineChoice, say: Say) -> Engine:
    return Processes(choice.workers or 1, choice.cpus, say)


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """The settings of tasks in files."""

    bytes: bool = True
    """Whether tasks have the bytes of images that have no files of their own."""


def _folder_of(text: str) -> tuple[Path, FileSettings]:
    """The folder and the settings of files:DIR, or of files:DIR?bytes=false."""
    folder, _, query = text.removeprefix(FILES).partition("?")
    if not text.startswith(FILES) or not folder.strip():
        raise ConfigError(f"--engine {text} lacks the folder of the tasks", hint="such as files:tasks")
    return Path(folder).expanduser(), build(FileSettings, _settings(query), where="--engine")


def _parse_files(text: str) -> EngineChoice:
    folder, _ = _folder_of(text)
    files.check_output_folder(folder)
    return EngineChoice(engine=text)


def _open_files(choice: EngineChoice, say: Say) -> Engine:
    from dcdctl.core.engines.task_files import FilesEngine

    folder, settings = _folder_of(str(choice.engine))
    return FilesEngine(folder, say, with_bytes=settings.bytes)


def _settings(query: str) -> dict[str, Any]:
    """The settings after the question mark."""
    return {name: parse_value(value) for name, value in parse_qsl(query, keep_blank_values=True)}


def _parse_ray(text: str) -> EngineChoice:
    """ray, or ray://HEAD:10001, either with settings: ray?workers=4&gpus=0.5&cpus=2."""
    engine, _, query = text.partition("?")
    if engine != "ray" and not _ADDRESS.fullmatch(engine):
        raise unknown_engine(text)
    choice = build(EngineChoice, {**_settings(query), "engine": engine}, where="--engine")
    require_extra("ray", "ray", needed_by="--engine ray")
    return choice


def _open_ray(choice: EngineChoice, say: Say) -> Engine:
    from dcdctl.core.engines.cluster import check_address
    from dcdctl.core.engines.ray_engine import RayEngine

    check_address(choice)
    return RayEngine(choice, say)


ENGINES = {
    "files": EngineKind("files:DIR", _parse_files, _open_files),
    "processes": EngineKind("processes:N", _parse_processes, _open_processes),
    "ray": EngineKind("ray, and ray://HOST:PORT for a cluster elsewhere", _parse_ray, _open_ray),
}
"""By the name with which what is typed begins."""
