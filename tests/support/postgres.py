"""A PostgreSQL server of its own for the tests of a process: in a folder of its own, reached by a socket in it, and
stopped at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import processes

ACCOUNTS = ("postgres", "nobody")
"""Who runs the server if the tests run as root, which PostgreSQL refuses."""


def find_binaries() -> Path | None:
    """The folder of the newest server that is installed; None if there is none."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if (found := shutil.which("initdb")) is not None:
        folders.append(Path(found).resolve().parent)
    return max(folders, default=None, key=lambda folder: [int(part) for part in folder.parts if part.isdecimal()])


def missing() -> str:
    """Why no server can be started here; empty if one can."""
    binaries = find_binaries()
    if binaries is None:
        return "PostgreSQL is not installed: apt install postgresql postgresql-17-pgvector"
    shared = processes.run([binaries / "pg_config", "--sharedir"], capture_output=True, text=True).stdout.strip()
    if not (Path(shared) / "extension" / "vector.control").exists():
        return "pgvector is not installed: apt install postgresql-17-pgvector"
    return ""


@contextmanager
def server() -> Iterator[str]:
    """The URL of the database of a fresh server, without a password; a table is to be added as `table`."""
    with cluster() as folder, running(folder) as url:
        yield url


@contextmanager
def cluster() -> Iterator[Path]:
    """A folder with the empty data of a server."""
    binaries = find_binaries()
    assert binaries is not None
    # Not below pytest's folder: its path is too long for a socket, and only its owner may enter it.
    folder = Path(tempfile.mkdtemp(prefix="dcdctl-pg-"))
    options = ["--no-sync", "--no-instructions", "-A", "trust", "-E", "UTF8", "--locale", "C", "-U", "tester"]
    try:
        initdb = [binaries / "initdb", "-D", folder / "data", *options]
        processes.run(initdb, check=True, capture_output=True, cwd="/", **_account(folder))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The URL of the database of a server on this data."""
    binaries = find_binaries()
    assert binaries is not None
    settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "shared_buffers": "16MB"}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = [binaries / "postgres", "-D", folder / "data", *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **_account(folder))
    try:
        _wait(binaries, folder, process)
        yield f"postgresql://tester@/postgres?host={quote(str(folder), safe='')}"
    finally:
        # Immediate shutdown: connections are cut.
        process.send_signal(signal.SIGQUIT)
        process.wait(processes.TIMEOUT_S)


def _account(folder: Path) -> dict[str, object]:
    """The account that the server runs under, for `subprocess`; the folder becomes its own."""
    if os.geteuid() != 0:
        return {}
    import pwd

    name = next(name for name in ACCOUNTS if name in {entry.pw_name for entry in pwd.getpwall()})
    entry = pwd.getpwnam(name)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _wait(binaries: Path, folder: Path, running: subprocess.Popen[bytes]) -> None:
    ready = [binaries / "pg_isready", "-q", "-h", folder]
    deadline = time.monotonic() + processes.TIMEOUT_S
    while processes.run(ready).returncode:
        if running.poll() is not None or time.monotonic() > deadline:
            raise AssertionError((folder / "log").read_text(errors="replace"))
        time.sleep(0.05)
