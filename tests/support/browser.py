"""Pages in Chromium once their scripts have run, by one browser for many pages, whose start takes most of a second of
processor time.

The browser reads commands of the DevTools protocol from one pipe and answers on another: JSON, each followed by a zero
byte. https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import TIMEOUT_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next((path for name in NAMES if (path := shutil.which(name))), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
)
is_installed = pytest.mark.skipif(PROGRAM is None, reason=f"none of {', '.join(NAMES)} is installed")


class Browser:
    """A running browser."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._received, self._number = read, write, b"", 0
        self._tab: str | None = None
        """Where pages without a budget are shown one after the other: a new tab starts a process."""

    def html(self, url: str, *, budget_ms: int | None = None) -> str:
        """The document of a page after its `load` event or, with a budget, in a new tab after so much time of its
        clock.

        That clock stands still while the page waits for a server, so a slow machine changes nothing.
        """
        if budget_ms is not None:
            target, session = self._open()
            self._call("Page.navigate", session, url=url)  # a clock that is set before belongs to the empty page
            self._call(
                "Emulation.setVirtualTimePolicy", session, policy="pauseIfNetworkFetchesPending", budget=budget_ms
            )
            self._wait_for(session, "Emulation.virtualTimeBudgetExpired")
            document = self._document(session)
            self._call("Target.closeTarget", targetId=target)
            return document
        if self._tab is None:
            _, self._tab = self._open()
        # From the empty page, also another part of the same page is loaded.
        for address in ("about:blank", url):
            self._send("Page.navigate", self._tab, url=address)
            self._wait_for(self._tab, "Page.loadEventFired")
        return self._document(self._tab)

    def _open(self) -> tuple[str, str]:
        """A new tab and its session."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable", session)
        return target, session

    def _document(self, session: str) -> str:
        found = self._call(
            "Runtime.evaluate", session, expression="document.documentElement.outerHTML", returnByValue=True
        )
        return found["result"]["value"]

    def _call(self, method: str, session: str | None = None, **arguments: object) -> dict[str, Any]:
        number = self._send(method, session, **arguments)
        while (message := self._next()).get("id") != number:
            pass
        assert "error" not in message, f"{method}: {message}"
        return message["result"]

    def _send(self, method: str, session: str | None, **arguments: object) -> int:
        self._number += 1
        message = {
            "id": self._number,
            "method": method,
            "params": arguments,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._number

    def _wait_for(self, session: str, event: str) -> None:
        while (message := self._next()).get("method") != event or message["sessionId"] != session:
            pass

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            assert select.select([self._read], [], [], TIMEOUT_S)[0], "the browser does not answer"
            received = os.read(self._read, 2**16)
            assert received, "the browser has ended"
            self._received += received
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)


@contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile in this folder."""
    pipes = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (*os.pipe(), *os.pipe())]
    its_read, write, read, its_write = pipes
    # It reads from descriptor 3 and writes to 4.
    places = [(os.POSIX_SPAWN_DUP2, its_read, 3), (os.POSIX_SPAWN_DUP2, its_write, 4)]
    places += [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (1, 2)]
    words = [str(PROGRAM), *OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
    process = os.posix_spawn(str(PROGRAM), words, os.environ, file_actions=places)
    os.close(its_read), os.close(its_write)
    browser = Browser(read, write)
    try:
        yield browser
        browser._call("Browser.close")
        deadline = time.monotonic() + 5
        while (
            time.monotonic() < deadline and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.02)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(read), os.close(write)
