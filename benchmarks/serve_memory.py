"""Memory of `dcdctl serve` before, during and after uploads of the largest image that it accepts.

    python benchmarks/serve_memory.py INDEX [--uploads 50] [--at-once 1] [--search-workers 1]

Starts a server on a free port of 127.0.0.1 and uploads an image with as many pixels as `max_pixels` permits, in a file
just below `max_upload_bytes`. Resident memory is that of the server's process: before the first upload (after one
search by text, so that the model has run), at its highest, and after the last upload. The limit is at `--settle`
seconds after the last answer. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

MiB = 2**20
HEAD = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
TAIL = b"\r\n--x--\r\n"


def largest_image(max_pixels: int, max_bytes: int) -> bytes:
    """A JPEG of nearly `max_pixels` pixels and at most `max_bytes` bytes: the best quality that fits."""
    side = int(max_pixels**0.5)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (side // 8 + 1, side // 8 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC)
    for quality in range(100, 10, -3):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        if stream.tell() <= max_bytes:
            return stream.getvalue()
    raise SystemExit("no quality makes the file small enough")


def rss_mib(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MiB


def ask(port: int, method: str, path: str, body: bytes | None = None) -> int:
    """The status of an answer that is read to its end, over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(method, path, body, {"Content-Type": "multipart/form-data; boundary=x"} if body else {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--search-workers", type=int, default=1)
    parser.add_argument("--settle", type=float, default=2.0)
    options = parser.parse_args()
    data = largest_image(50_000_000, 16 * MiB - len(HEAD) - len(TAIL))
    command = [sys.executable, "-m", "dcdctl", "serve", str(options.index), "--port", "0", "--device", "cpu"]
    command += ["--set", f"search_workers={options.search_workers}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(re.search(r":(\d+)/", server.stdout.readline())[1])  # type: ignore[index]
        assert ask(port, "GET", "/search?text=a+red+bus") == 200
        before, highest, ends = rss_mib(server.pid), [0.0], threading.Event()

        def watch() -> None:
            while not ends.wait(0.02):
                highest[0] = max(highest[0], rss_mib(server.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        after_each: list[float] = []

        def upload(_: int) -> int:
            status = ask(port, "POST", "/search", HEAD + data + TAIL)
            after_each.append(round(rss_mib(server.pid), 1))
            return status

        with ThreadPoolExecutor(options.at_once) as clients:
            statuses = list(clients.map(upload, range(options.uploads)))
        time.sleep(options.settle)
        after = rss_mib(server.pid)
        ends.set()
        watcher.join()
        server.send_signal(signal.SIGTERM)
    result = {
        "uploads": options.uploads, "at_once": options.at_once, "search_workers": options.search_workers,
        "file_mib": round(len(data) / MiB, 2),
        "statuses": {str(status): statuses.count(status) for status in set(statuses)},
        "before_mib": round(before, 1), "highest_mib": round(highest[0], 1), "after_mib": round(after, 1),
        "after_first_mib": after_each[0], "machine": platform.machine(), "libc": " ".join(platform.libc_ver()),
    }  # fmt: skip
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
