"""Capacity of `dcdctl serve`: requests per second, latencies, errors and memory at saturation.

    python benchmarks/serve_load.py INDEX [--minutes 10] [--processes 1] [--texts FILE] [--image-share 0.1]
        [--max-clients 128]

Starts a server on a free port of 127.0.0.1, and clients in another process. Each client sends a request, reads the
answer and sends the next one over the same connection; after a 503 it waits for the time of Retry-After. The number of
clients doubles until the requests per second rise by less than 5 %. The smallest number of clients with 95 % of the
maximum rate saturates the service. This number of clients then runs for --minutes. Most requests search by text, a
share of them uploads an image of the index, and one client requests /health once per second. Finally --max-clients run
at once, more than the queue has room for, to measure how many requests are refused. Memory is that of the server and
its processes, sampled every second: a page that several processes share counts once (proportional set size). Server and
clients share the processors of the machine. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np

TEXTS = [
    f"{article} {color} {thing} {position}"
    for article in ("a", "the", "one")
    for color in ("red", "blue", "small", "old")
    for thing in ("dog", "bus", "man", "circle", "house")
    for position in ("in the snow", "on a road", "left of a tree", "at night")
]
STEP_S = 8.0
"""Duration of the trial for each number of clients; its first quarter is not counted."""
MiB = 2**20


@dataclass
class Counts:
    """Statuses of all answers, and the latencies in milliseconds of the successful ones."""

    text_ms: list[float] = field(default_factory=list)
    image_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Counts) -> Counts:
        self.text_ms += other.text_ms
        self.image_ms += other.image_ms
        self.statuses += other.statuses
        return self

    @property
    def num_ok(self) -> int:
        return self.statuses["200"]


@dataclass(frozen=True)
class Load:
    """Requests to send, number of clients, and duration."""

    host: str
    port: int
    texts: list[str]
    images: list[bytes]
    image_share: float
    clients: int
    seconds: float
    warmup_s: float


def client(load: Load, number: int, ends: float, counted_from: float, counts: Counts) -> None:
    """Send requests until the time is over."""
    rng, connection = random.Random(number), None
    while time.monotonic() < ends:
        by_image = bool(load.images) and rng.random() < load.image_share
        started = time.monotonic()
        try:
            connection = connection or http.client.HTTPConnection(load.host, load.port, timeout=60)
            if by_image:
                head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
                body = head + rng.choice(load.images) + b"\r\n--x--\r\n"
                connection.request("POST", "/search", body, {"Content-Type": "multipart/form-data; boundary=x"})
            else:
                connection.request("GET", f"/search?{urlencode({'text': rng.choice(load.texts)})}")
            answer = connection.getresponse()
            answer.read()
            status = str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            connection, status = None, type(error).__name__
        took_ms = 1000 * (time.monotonic() - started)
        if started >= counted_from:
            counts.statuses[status] += 1
            if status == "200":
                (counts.image_ms if by_image else counts.text_ms).append(took_ms)
        if status == "503":
            time.sleep(float(answer.headers["Retry-After"]))


def drive(load: Load) -> Counts:
    """Run all clients of a load, one thread each; called in a separate process."""
    started = time.monotonic()
    counts_of_clients = [Counts() for _ in range(load.clients)]
    arguments = (started + load.warmup_s + load.seconds, started + load.warmup_s)
    threads = [
        threading.Thread(target=client, args=(load, number, *arguments, counts))
        for number, counts in enumerate(counts_of_clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Counts()
    for counts in counts_of_clients:
        total += counts
    return total


@dataclass
class Watch:
    """The server's memory and the latency of /health, once a second, while it runs."""

    host: str
    port: int
    pid: int
    pss_mib: list[float] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)
    processor_s: float = 0.0
    ends: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.ends.is_set():
            self.pss_mib.append(pss_mib(self.pid))
            started = time.monotonic()
            connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
            self.health_ms.append(1000 * (time.monotonic() - started))
            connection.close()
            self.ends.wait(1.0)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def pss_mib(pid: int) -> float:
    """Memory of a Linux process and its descendants, in which a shared page counts once; 0 on other systems."""
    folder = Path(f"/proc/{pid}")
    try:
        own = int(re.findall(r"^Pss:\s+(\d+)", (folder / "smaps_rollup").read_text(), re.MULTILINE)[0]) / 1024
        children = (folder / "task" / str(pid) / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return own + sum(pss_mib(int(child)) for child in children)


def processor_seconds(host: str, port: int) -> float:
    """Processor time that the server and its processes have taken since their start."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return sum(map(float, re.findall(r"^process_cpu_seconds_total\S* (\S+)", text, re.MULTILINE)))


def quantiles(values: list[float]) -> dict[str, float | None]:
    return {
        name: round(float(np.quantile(values, share)), 2) if values else None
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def slope_mib_per_minute(memory: list[float]) -> float:
    """Slope of a straight line through the second half, after caches have filled."""
    half = memory[len(memory) // 2 :]
    return float(60 * np.polyfit(np.arange(len(half)), half, 1)[0]) if len(half) > 2 else 0.0


def measure_step(load: Load, pool: Any, clients: int) -> dict[str, Any]:
    """Measure a number of clients for a short time."""
    counts = pool.apply(drive, (replace(load, clients=clients, seconds=0.75 * STEP_S, warmup_s=0.25 * STEP_S),))
    per_s, text_ms, statuses = counts.num_ok / (0.75 * STEP_S), quantiles(counts.text_ms), dict(counts.statuses)
    say(f"{clients:>4} clients: {per_s:8.1f} requests/s, text p95 {text_ms['p95']} ms, {statuses}")
    return {"clients": clients, "requests_per_s": round(per_s, 1), "text_ms": text_ms, "statuses": statuses}


def find_saturation(load: Load, pool: Any, max_clients: int) -> tuple[int, list[dict[str, Any]]]:
    """The smallest number of clients with 95 % of the maximum rate, and the measurements of all numbers of clients."""
    steps: list[dict[str, Any]] = []
    clients, num_flat = 1, 0
    # Two flat steps in a row, because another program may have disturbed one of them.
    while clients <= max_clients and num_flat < 2:
        before = max((step["requests_per_s"] for step in steps), default=0.0)
        steps.append(measure_step(load, pool, clients))
        num_flat = num_flat + 1 if steps[-1]["requests_per_s"] < 1.05 * before else 0
        clients *= 2
    most = max(step["requests_per_s"] for step in steps)
    return next(step["clients"] for step in steps if step["requests_per_s"] >= 0.95 * most), steps


def start(index: Path, arguments: list[str]) -> tuple[subprocess.Popen[str], str, int]:
    """Start the server. Returns its process, host and port."""
    command = [sys.executable, "-m", "dcdctl", "serve", str(index), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(process.wait())
    address = urlsplit(line.split()[-1])
    assert address.hostname is not None
    assert address.port is not None
    return process, address.hostname, address.port


def originals(host: str, port: int, count: int) -> list[bytes]:
    """The first images of the index."""
    connection, images = http.client.HTTPConnection(host, port), []
    for row in range(count):
        connection.request("GET", f"/image/{row}?size=original")
        answer = connection.getresponse()
        body = answer.read()
        images += [body] if answer.status == 200 else []
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--texts", type=Path, help="file with one text per line; default: made-up texts")
    parser.add_argument("--image-share", type=float, default=0.1, help="share of requests that upload an image")
    parser.add_argument("--max-clients", type=int, default=128)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="KEY=VALUE",
        help="setting of `dcdctl serve`; repeatable",
    )
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else TEXTS
    arguments = [
        "--device",
        options.device,
        "--processes",
        str(options.processes),
        *(word for setting in options.sets for word in ("--set", setting)),
    ]
    process, host, port = start(options.index, arguments)
    try:
        images = originals(host, port, 16) if options.image_share else []
        load = Load(
            host, port, texts, images, options.image_share, clients=1, seconds=60 * options.minutes, warmup_s=2.0
        )
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            clients, steps = find_saturation(load, pool, options.max_clients)
            watch = Watch(host, port, process.pid)
            watching = threading.Thread(target=watch.run)
            watching.start()
            before_s = processor_seconds(host, port)
            counts = pool.apply(drive, (replace(load, clients=clients),))
            watch.ends.set()
            watching.join()
            watch.processor_s = processor_seconds(host, port) - before_s
            overload = measure_step(load, pool, options.max_clients)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    report(options, clients, [*steps, overload], counts, watch, status)


def report(
    options: argparse.Namespace, clients: int, steps: list[dict[str, Any]], counts: Counts, watch: Watch, status: int
) -> None:
    num_requests = sum(counts.statuses.values())
    result = {
        "benchmark": "serve_load",
        "minutes": options.minutes,
        "clients_at_saturation": clients,
        "requests": num_requests,
        "requests_per_s": round(counts.num_ok / (60 * options.minutes), 1),
        "processor_ms_per_request": round(1000 * watch.processor_s / max(1, num_requests), 2),
        "text_ms": quantiles(counts.text_ms),
        "image_ms": quantiles(counts.image_ms),
        "health_ms": {**quantiles(watch.health_ms), "max": round(max(watch.health_ms), 2)},
        "errors": num_requests - counts.num_ok,
        "statuses": dict(counts.statuses),
        "pss_mib": {
            "first": round(watch.pss_mib[0], 1),
            "median": round(statistics.median(watch.pss_mib), 1),
            "last": round(watch.pss_mib[-1], 1),
        },
        "pss_slope_mib_per_minute": round(slope_mib_per_minute(watch.pss_mib), 3),
        "exit_status": status,
        "steps": steps,
        "settings": {
            "index": options.index.name,
            "processes": options.processes,
            "image_share": options.image_share,
            "sets": options.sets,
            "device": options.device,
        },
        "machine": {"processors": os.cpu_count(), "load_average": os.getloadavg(), "platform": platform.platform()},
    }
    for name in (
        "clients_at_saturation",
        "requests_per_s",
        "processor_ms_per_request",
        "text_ms",
        "image_ms",
        "health_ms",
        "statuses",
        "pss_mib",
        "pss_slope_mib_per_minute",
    ):
        say(f"{name}: {result[name]}")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
