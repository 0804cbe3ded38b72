"""Whether `dcdctl serve` answers while slow clients hold connections: latencies of /health and /search.

    python benchmarks/serve_slow_clients.py INDEX [--clients 300] [--files 200] [--requests 10]

Starts a server that may open --files files. Each slow client sends a byte of a header every five seconds, and connects
again when it is closed. After ten seconds, --requests requests of /health and as many searches are timed. Ends with one
JSON line.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

BETWEEN_BYTES_S, SETTLE_S = 5.0, 10.0


def slow_client(host: str, port: int, ends: threading.Event) -> None:
    """Hold a connection by sending a header byte by byte; connect again when it is closed."""
    while not ends.is_set():
        with suppress(OSError), socket.create_connection((host, port), timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
            while not ends.wait(BETWEEN_BYTES_S):
                connection.sendall(b"x")
        ends.wait(0.05)


def request_ms(host: str, port: int, path: str) -> float:
    """The time of a request over a new connection; SystemExit unless it is answered with 200."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request("GET", path)
    if (status := connection.getresponse().status) != 200:
        raise SystemExit(f"{path} was answered with {status}")
    connection.close()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--files", type=int, default=200, help="limit of open files of the server")
    parser.add_argument("--requests", type=int, default=10)
    options = parser.parse_args()
    command = [sys.executable, "-m", "dcdctl", "serve", str(options.index), "--port", "0", "--device", "cpu"]
    limit = (options.files, options.files)
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    )
    assert server.stdout is not None
    address, ends = urlsplit(server.stdout.readline().split()[-1]), threading.Event()
    host, port = str(address.hostname), int(address.port or 0)
    clients = [threading.Thread(target=slow_client, args=(host, port, ends)) for _ in range(options.clients)]
    try:
        for client in clients:
            client.start()
        time.sleep(SETTLE_S)
        paths = {"health_ms": "/health", "search_ms": "/search?text=a+dog"}
        times = {name: [request_ms(host, port, path) for _ in range(options.requests)] for name, path in paths.items()}
        num_files = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    finally:
        ends.set()
        server.send_signal(signal.SIGTERM)
        status = server.wait(timeout=60)
        for client in clients:
            client.join()
    result = {
        "benchmark": "serve_slow_clients",
        "clients": options.clients,
        "files": options.files,
        "open_files": num_files,
    }
    result |= {
        name: {"max": round(max(values), 1), "mean": round(sum(values) / len(values), 1)}
        for name, values in times.items()
    }
    result |= {"exit_status": status, "processors": os.cpu_count(), "platform": platform.platform()}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
