"""Where `dcdctl serve` is full, and how it does there: requests a second, latencies, errors, memory.

    python benchmarks/serve_load.py INDEX [--minutes 10] [--texts FILE] [--pictures 0.1] [--set max_batch=1 ...] [--max-clients 128]

Starts a server on a free port of 127.0.0.1, and clients in another process. Each client asks, reads the answer, and asks again; its
connection stays open, and after a 503 it waits as long as Retry-After says. The number of clients is doubled until requests a second no
longer rise by 5 %; the smallest number that gave 95 % of the most is where the service is full. That number then asks for the minutes.
Most requests are searches by texts, a share of them by uploaded pictures of the index (`--pictures`), and one client asks /healthz once a
second. Then `--max-clients` at once, more than there are places in the queue, show how many are refused. Memory is the server's own,
every second. Server and clients share the machine's processors. Ends with one JSON line.
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
    f"{article} {colour} {thing} {where}"
    for article in ("a", "the", "one")
    for colour in ("red", "blue", "small", "old")
    for thing in ("dog", "bus", "man", "circle", "house")
    for where in ("in the snow", "on a road", "left of a tree", "at night")
]
STEP_S = 8.0
"""How long each number of clients is tried; the first quarter of it is not counted."""
MiB = 2**20


@dataclass
class Tally:
    """What clients have met; latencies in milliseconds, of answers that were a success."""

    text_ms: list[float] = field(default_factory=list)
    picture_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Tally) -> Tally:
        self.text_ms += other.text_ms
        self.picture_ms += other.picture_ms
        self.statuses += other.statuses
        return self

    @property
    def num_ok(self) -> int:
        return self.statuses["200"]


@dataclass(frozen=True)
class Load:
    """What is asked, by how many, for how long."""

    host: str
    port: int
    texts: list[str]
    pictures: list[bytes]
    picture_share: float
    clients: int
    seconds: float
    warmup_s: float


def client(load: Load, number: int, ends: float, counted_from: float, tally: Tally) -> None:
    """Ask until the time is over."""
    rng, connection = random.Random(number), None
    while time.monotonic() < ends:
        by_picture = bool(load.pictures) and rng.random() < load.picture_share
        started = time.monotonic()
        try:
            connection = connection or http.client.HTTPConnection(load.host, load.port, timeout=60)
            if by_picture:
                head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
                body = head + rng.choice(load.pictures) + b"\r\n--x--\r\n"
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
            tally.statuses[status] += 1
            if status == "200":
                (tally.picture_ms if by_picture else tally.text_ms).append(took_ms)
        if status == "503":
            time.sleep(float(answer.headers["Retry-After"]))


def drive(load: Load) -> Tally:
    """All clients of one load, a thread each; called in a process of its own."""
    started = time.monotonic()
    tallies = [Tally() for _ in range(load.clients)]
    arguments = (started + load.warmup_s + load.seconds, started + load.warmup_s)
    threads = [threading.Thread(target=client, args=(load, number, *arguments, tally)) for number, tally in enumerate(tallies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = Tally()
    for tally in tallies:
        whole += tally
    return whole


@dataclass
class Watch:
    """The server's memory and the latency of /healthz, once a second, while it runs."""

    host: str
    port: int
    pid: int
    rss_mib: list[float] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)
    ends: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.ends.is_set():
            self.rss_mib.append(rss_mib(self.pid))
            started = time.monotonic()
            connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
            self.health_ms.append(1000 * (time.monotonic() - started))
            connection.close()
            self.ends.wait(1.0)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def rss_mib(pid: int) -> float:
    """Of a Linux process; with other systems 0."""
    path = Path(f"/proc/{pid}/status")
    return int(re.findall(r"VmRSS:\s+(\d+)", path.read_text())[0]) / 1024 if path.exists() else 0.0


def quantiles(values: list[float]) -> dict[str, float | None]:
    return {
        name: round(float(np.quantile(values, share)), 2) if values else None
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def slope_mib_per_minute(rss: list[float]) -> float:
    """Of the straight line through the second half, when caches have filled."""
    half = rss[len(rss) // 2 :]
    return float(60 * np.polyfit(np.arange(len(half)), half, 1)[0]) if len(half) > 2 else 0.0


def step(load: Load, pool: Any, clients: int) -> dict[str, Any]:
    """What so many clients get in a short while."""
    tally = pool.apply(drive, (replace(load, clients=clients, seconds=0.75 * STEP_S, warmup_s=0.25 * STEP_S),))
    per_s, text_ms, statuses = tally.num_ok / (0.75 * STEP_S), quantiles(tally.text_ms), dict(tally.statuses)
    say(f"{clients:>4} clients: {per_s:8.1f} requests/s, text p95 {text_ms['p95']} ms, {statuses}")
    return {"clients": clients, "requests_per_s": round(per_s, 1), "text_ms": text_ms, "statuses": statuses}


def find_full(load: Load, pool: Any, max_clients: int) -> tuple[int, list[dict[str, Any]]]:
    """The smallest number of clients that gives 95 % of the most requests a second, and what each number gave."""
    steps: list[dict[str, Any]] = []
    clients, num_flat = 1, 0
    # Two in a row, as one may have met another program on this machine.
    while clients <= max_clients and num_flat < 2:
        before = max((one["requests_per_s"] for one in steps), default=0.0)
        steps.append(step(load, pool, clients))
        num_flat = num_flat + 1 if steps[-1]["requests_per_s"] < 1.05 * before else 0
        clients *= 2
    most = max(one["requests_per_s"] for one in steps)
    return next(one["clients"] for one in steps if one["requests_per_s"] >= 0.95 * most), steps


def start(index: Path, arguments: list[str]) -> tuple[subprocess.Popen[str], str, int]:
    """The server, and where it is."""
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
    """The first pictures of the index."""
    connection, found = http.client.HTTPConnection(host, port), []
    for row in range(count):
        connection.request("GET", f"/image/{row}?size=original")
        answer = connection.getresponse()
        body = answer.read()
        found += [body] if answer.status == 200 else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--texts", type=Path, help="one text a line; made-up ones if not given")
    parser.add_argument("--pictures", type=float, default=0.1, help="share of requests that upload a picture")
    parser.add_argument("--max-clients", type=int, default=128)
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE", help="of `dcdctl serve`")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    texts = given.texts.read_text(encoding="utf-8").splitlines() if given.texts else TEXTS
    arguments = ["--device", given.device, *(word for one in given.sets for word in ("--set", one))]
    process, host, port = start(given.index, arguments)
    try:
        pictures = originals(host, port, 16) if given.pictures else []
        load = Load(host, port, texts, pictures, given.pictures, clients=1, seconds=60 * given.minutes, warmup_s=2.0)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            clients, steps = find_full(load, pool, given.max_clients)
            watch = Watch(host, port, process.pid)
            watching = threading.Thread(target=watch.run)
            watching.start()
            tally = pool.apply(drive, (replace(load, clients=clients),))
            watch.ends.set()
            watching.join()
            overload = step(load, pool, given.max_clients)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    report(given, clients, [*steps, overload], tally, watch, status)


def report(given: argparse.Namespace, clients: int, steps: list[dict[str, Any]], tally: Tally, watch: Watch, status: int) -> None:
    num_asked = sum(tally.statuses.values())
    result = {
        "benchmark": "serve_load",
        "minutes": given.minutes,
        "clients_where_full": clients,
        "requests": num_asked,
        "requests_per_s": round(tally.num_ok / (60 * given.minutes), 1),
        "text_ms": quantiles(tally.text_ms),
        "picture_ms": quantiles(tally.picture_ms),
        "healthz_ms": {**quantiles(watch.health_ms), "max": round(max(watch.health_ms), 2)},
        "errors": num_asked - tally.num_ok,
        "statuses": dict(tally.statuses),
        "rss_mib": {
            "first": round(watch.rss_mib[0], 1),
            "median": round(statistics.median(watch.rss_mib), 1),
            "last": round(watch.rss_mib[-1], 1),
        },
        "rss_slope_mib_per_minute": round(slope_mib_per_minute(watch.rss_mib), 3),
        "exit_status": status,
        "steps": steps,
        "settings": {"index": given.index.name, "pictures": given.pictures, "sets": given.sets, "device": given.device},
        "machine": {"processors": os.cpu_count(), "load_average": os.getloadavg(), "platform": platform.platform()},
    }
    for name in (
        "clients_where_full",
        "requests_per_s",
        "text_ms",
        "picture_ms",
        "healthz_ms",
        "statuses",
        "rss_mib",
        "rss_slope_mib_per_minute",
    ):
        say(f"{name}: {result[name]}")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
