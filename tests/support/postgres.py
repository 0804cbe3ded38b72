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
    binaries = find_binaries()
    assert binaries is not None
    # Not below pytest's folder: its path is too long for a socket, and only its owner may enter it.
    folder = Path(tempfile.mkdtemp(prefix="dcdctl-pg-"))
    as_user = _account(folder)
    data = folder / "data"
    initdb = [
        binaries / "initdb",
        "-D",
        data,
        "--no-sync",
        "--no-instructions",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale",
        "C",
        "-U",
        "tester",
    ]
    try:
        processes.run(initdb, check=True, capture_output=True, cwd="/", **as_user)
        settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "shared_buffers": "16MB"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            running = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd="/", **as_user
            )
        try:
            _wait(binaries, folder, running)
            yield f"postgresql://tester@/postgres?host={quote(str(folder), safe='')}"
        finally:
            # Immediate shutdown: connections are cut, and the files are removed anyway.
            running.send_signal(signal.SIGQUIT)
            running.wait(processes.TIMEOUT_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
