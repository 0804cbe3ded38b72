"""Scripts in forks of the test process, in which the imports of the tests, or of torch and transformers alone, take no
time again."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
import types
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

from paths import SUPPORT
from processes import IS_PLAIN, TIMEOUT_S, run

TESTS, LIBRARIES = "tests", "libraries"
"""What a script finds imported: all that the tests import, or torch and transformers without dcdctl."""
_servers: dict[str, tuple[int, socket.socket]] = {}
"""The processes that run the scripts, and the ways to them."""


def start(name: str) -> None:
    """Keep a fork of this process, which has run no test yet, under this name. It ends with this process, or by
    `stop`."""
    ours, requests = socket.socketpair()
    with warnings.catch_warnings():
        # In a process of pytest-xdist another thread waits for messages; it has no lock that a script needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        ours.close()
        for _, other in _servers.values():
            other.close()
        os.setpgid(0, 0)
        _serve(requests)
    requests.close()
    ours.settimeout(TIMEOUT_S)
    _servers[name] = child, ours


def stop() -> None:
    """End the forks and the scripts that they still run."""
    while _servers:
        _, (child, ours) = _servers.popitem()
        ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def run_forked(
    script: str, *arguments: object, environment: Mapping[str, str] | None = None, imported: str = TESTS
) -> tuple[str, str]:
    """The output and the messages of a Python script in a fork with one thread; AssertionError with the messages if it
    fails.

    The script finds imported what the tests of this process import, so a variable that a library reads when it is
    imported has no effect. With `LIBRARIES` it finds torch and transformers only, and dcdctl has not been imported
    before.
    """
    if IS_PLAIN:
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
        variables = {**os.environ, **settings, **(environment or {})}
        done = run([sys.executable, "-c", script, *arguments], env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr
    assert imported in _servers, "conftest.py starts the servers"
    _, server = _servers[imported]
    with (
        tempfile.TemporaryFile("w+") as request,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        json.dump(
            {
                "script": script,
                "arguments": list(map(str, arguments)),
                "environment": {**os.environ, **(environment or {})},
            },
            request,
        )
        request.flush()
        socket.send_fds(server, [b"."], [file.fileno() for file in (request, out, err)])
        try:
            status = int.from_bytes(server.recv(1))
        except TimeoutError:
            stop()  # the answer may still come, and would be taken for that to the next request
            raise
        out.seek(0)
        err.seek(0)
        printed, messages = out.read(), err.read()
    assert status == 0, messages
    return printed, messages


def _serve(requests: socket.socket) -> NoReturn:
    """Run the script of each request in a fork of its own, until nobody is left to send one."""
    while True:
        byte, descriptors, _, _ = socket.recv_fds(requests, 1, 3)
        if not byte:
            os._exit(0)
        child = os.fork()
        if not child:
            requests.close()
            _become(*descriptors)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(bytes([min(abs(status), 255)]))


def _become(request: int, out: int, err: int) -> NoReturn:
    """Be the process of a script."""
    status = 1
    try:
        with open(request, closefd=False) as file:
            file.seek(0)
            told: dict[str, Any] = json.load(file)
        for descriptor, standard in ((out, 1), (err, 2)):
            os.dup2(descriptor, standard)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        warnings.resetwarnings()
        gc.enable()
        os.environ.clear()
        os.environ.update(told["environment"])
        sys.argv = ["-c", *told["arguments"]]
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(told["script"], "<script>", "exec"), main.__dict__)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
