"""Hostile photos and queries for benchmarks/reliability.py.

Photos of phones and cameras are damaged and read by every reader of images. Conditions, orders and combined queries go
to a served index by HTTP; what SQLite answers to a condition tells which images must be found.
"""

from __future__ import annotations

import io
import json
import random
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import served
from heif_files import heic
from hostile_images import OF_SIZE, encoded
from raw_files import dng
from reliability_cases import bounded
from reliability_trials import Stage, Trial, in_fork, outcome_of

from dcdctl.core.data import ImageError, decode_image, read_exif
from dcdctl.core.data.images import check_image, for_browser, thumbnail
from dcdctl.core.errors import DcdError
from dcdctl.core.serve import ServiceConfig

Data = bytearray
PHOTOS: dict[str, bytes] = {
    "avif": encoded("AVIF"),
    "heic": heic(),
    "heic on its side": heic("heic_turned.heic"),
    "heic in tiles": heic("heic_tiles.heic"),
    "dng": dng(),
    "dng without a preview": dng(preview=b""),
    **{form: make(96, 64) for form, make in OF_SIZE.items()},
}
READERS: tuple[Callable[[bytes], Any], ...] = (
    decode_image, check_image, lambda data: thumbnail(data, 48), for_browser,
    lambda data: read_exif(io.BytesIO(data), place=True),
)  # fmt: skip
"""What reads the bytes of a photo."""
BOXES = (b"ftyp", b"meta", b"iloc", b"iprp", b"ipco", b"ispe", b"hvcC", b"av1C", b"mdat", b"iinf", b"iref", b"pitm")
LIES = (0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


def _flip(data: Data, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(data: Data, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _lie(data: Data, rng: random.Random) -> None:
    """Another number somewhere in the first kilobyte, where sizes and places are."""
    at = rng.randrange(min(len(data), 1024) - 4)
    data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(LIES))


def _lie_in_box(data: Data, rng: random.Random) -> None:
    """Another size of a box, or other content of it; of a file without boxes another number."""
    found = [at for box in BOXES if (at := data.find(box)) >= 4]
    if not found:
        return _lie(data, rng)
    at = rng.choice(found) + rng.choice((-4, 4, 8, 12, 16))
    data[at : at + 4] = struct.pack(">I", rng.choice(LIES))
    return None


def _repeat(data: Data, rng: random.Random) -> None:
    """A part twice, as in directories that name each other."""
    first, last = sorted(rng.randrange(len(data)) for _ in range(2))
    data[first:first] = data[first:last]


def _swap(data: Data, rng: random.Random) -> None:
    """The head of one file before the rest of another."""
    other = rng.choice(list(PHOTOS.values()))
    at = rng.randrange(min(len(data), 200))
    data[:at] = other[:at]


HARMS = (_flip, _truncate, _lie, _lie_in_box, _repeat, _swap)


def hostile_photos(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Each reader must give an image or an error of dcdctl."""
    for form, whole in PHOTOS.items():
        for _ in range(trials):
            data = bytearray(whole)
            harm = rng.choice(HARMS)
            harm(data, rng)

            def read(data: bytes = bytes(data)) -> str:
                refused = ""
                for reader in READERS:
                    try:
                        reader(data)
                    # Whoever reads a file adds its name.
                    except (DcdError, ImageError) as error:
                        refused = str(error)
                if refused:
                    raise SystemExit(refused)
                return ""

            ended = bounded(read)
            yield f"hostile photo, {form}", outcome_of(ended), f"{harm.__name__} of {form}: {ended}"


NUM = len(served.NAMES)
OWNERS = ("o'neil", "ann", "Ann", 'b"ob', "%", "a_n")
COLUMNS: dict[str, list[Any]] = {
    "year": [None if place == 1 else 2018 + place % 4 for place in range(NUM)],
    "owner": [
        None if place % 5 == 2 else ("o'neil", "ann", "Ann", 'b"ob', "%", "a_n")[place % 6] for place in range(NUM)
    ],
    "rating": [None if place == 3 else place / 4 - 1 for place in range(NUM)],
}
VALUES: dict[str, tuple[str, ...]] = {
    "year": ("2018", "2020", "-1", "2021.5", "9223372036854775807"),
    "owner": ("'ann'", "'o''neil'", "''", "'%'", "'ANN'", "'\u212bnn'"),
    "rating": ("0", "0.5", "-1e300", "1e-300", "2"),
}
PATTERNS = ("'%n'", "'a_n'", "'%'", "'_'", "''", "'%''%'", "'A%'")
ENDS = (
    *("; drop table images", "' or '1'='1", " union select 1", "--", "/*", "\0", " and (", ")" * 50, "(" * 300),
    *(" or year in (select 1)", " and sqrt(year) = 1", " and year = year", " and 1", " = 1 = 1", " and year = ?"),
    *(" and owner like 5", " and year between 1 and 3000", " or not not year = 1", " and owner glob '*'", "\u202e"),
    *(" and year = 0x10", " and year = 1_000", ' and owner = "ann"', " and year is 2020", " and ((year = 2020))"),
    *(" and year in (" + ",".join("1" * 3000) + ")", " and owner = '" + "x" * 5000 + "'", " and year = :a"),
    *(
        " and case when year = 1 then 1 end",
        " and cast(year as text) = '1'",
        " and owner || 'x' = 'y'",
        " and year = 1e400",
    ),
)
"""What is added to a condition: injections, functions, depth, and length."""


def _condition(rng: random.Random, depth: int = 0) -> str:
    """A condition that means the same in SQLite."""
    shape = rng.random()
    if depth < 3 and shape < 0.4:
        word = rng.choice((" and ", " or "))
        return f"({_condition(rng, depth + 1)}{word}{_condition(rng, depth + 1)})"
    if depth < 3 and shape < 0.5:
        return f"not ({_condition(rng, depth + 1)})"
    column = rng.choice(list(COLUMNS))
    kind = rng.randrange(4)
    if kind == 0:
        return f"{column} is {rng.choice(('', 'not '))}null"
    if kind == 1:
        return f"{column} {rng.choice(('', 'not '))}in ({', '.join(rng.sample(VALUES[column], 2))})"
    if kind == 2:
        return f"owner {rng.choice(('', 'not '))}like {rng.choice(PATTERNS)}"
    return f"{column} {rng.choice(('=', '!=', '<', '<=', '>', '>='))} {rng.choice(VALUES[column])}"


def _database() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    database.execute("pragma case_sensitive_like = on")
    database.execute("create table images (name text, year integer, owner text, rating real)")
    rows = zip(served.NAMES, *COLUMNS.values(), strict=True)
    database.executemany("insert into images values (?, ?, ?, ?)", list(rows))
    return database


TEXTS = (
    "a dog",
    "",
    " ",
    "x" * 5000,
    "\0",
    "\u202ea",
    "犬",
    "'; drop table",
    "a\nb",
    "%00",
    "\U0001f436" * 99,
    "a" * 300,
)
ORDERS = ("year", "year desc", "nothing", "owner desc desc", "year; x", "", '"', "rating asc")
NUMBERS = ("0", "-1", "1", "x", "1.5", "99999999999999999999", "nan", "", "1e3", " 1", "0x1", "true")


def _request(rng: random.Random, condition: str) -> tuple[str, str, dict[str, Any]]:
    """Method, path and arguments of a request with a condition and other things that may be wrong."""
    params: dict[str, Any] = {"where": [condition]}
    kind = rng.randrange(5)
    if kind == 0:
        params["order"] = rng.choice(
            ("year", "year desc", "nothing", "owner desc desc", "year; x", "", '"', "rating asc")
        )
        params["offset"] = rng.choice(NUMBERS)
        return "GET", "/browse", {"params": params}
    texts = {name: rng.choices(TEXTS, k=rng.choice((0, 1, 2, 9))) for name in ("also", "not")}
    if kind in (1, 2):
        params |= {"text": rng.choice(TEXTS), "k": rng.choice(NUMBERS), "row": rng.choice((*NUMBERS, None))}
        return "GET", "/search", {"params": {**params, **texts, "hybrid": rng.choice(NUMBERS)}}
    if kind == 3:
        queries: Any = [
            {
                "text": rng.choice(TEXTS),
                "where": condition,
                rng.choice(("k", "x", "row")): rng.choice((1, None, [], "x")),
            }
        ]
        body = json.dumps({"queries": rng.choice((queries, queries * 99, {}, None, "x", [[]], [queries]))})
        headers = {"Content-Type": "application/json"}
        return "POST", "/search", {"content": body.encode(), "headers": headers, "params": {"where": condition}}
    data = rng.choice((*PHOTOS.values(), b"", b"x" * 1000))
    return "POST", "/search", {"files": {"image": ("a.png", data)}, "params": {**params, **texts}}


def hostile_queries(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Conditions that SQLite reads alike, and conditions and requests that are wrong; no answer may be a fault of the
    service."""
    seed = rng.randrange(2**32)
    ended = in_fork(lambda: json.dumps(_answers(seed, trials)), cpu_s=600, wall_s=3600)
    if ended.kind != "ok":
        raise SystemExit(f"hostile queries: {ended}")
    yield from json.loads(ended.text)


def _answers(seed: int, trials: int) -> list[Trial]:
    rng = random.Random(seed)
    found: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder, _database() as database:
        made = served.make(Path(folder) / "all").with_columns(**COLUMNS)
        client = served.client_of(made.searcher, ServiceConfig(default_k=NUM))
        for _ in range(trials):
            condition = _condition(rng)
            response = client.get("/browse", params={"where": condition, "k": NUM})
            expected = {name for (name,) in database.execute(f"select name from images where {condition}")}
            if response.status_code != 200:
                outcome = "named" if response.status_code in (400, 422) else "traceback"
            else:
                names = {one["name"] for one in response.json()["results"]}
                outcome = "harmless" if names == expected else "wrong"
            found.append(("condition, as SQLite", outcome, f"{condition}: {response.text[:300]}"))
        for _ in range(trials):
            condition = _condition(rng, 3) + rng.choice(ENDS)
            method, path, arguments = _request(rng, condition)
            try:
                response = client.request(method, path, **arguments)
            except Exception as error:
                found.append(("hostile request", "traceback", f"{method} {path} {arguments!r:.500}: {error!r:.300}"))
                continue
            outcome = "harmless" if response.status_code == 200 else "named"
            if response.status_code >= 500:
                outcome = "traceback"
            found.append(("hostile request", outcome, f"{method} {path} {arguments!r:.500}: {response.text[:300]}"))
        # Whatever came before, the service answers.
        last = client.get("/search", params={"text": "two dogs"})
        assert last.status_code == 200, last.text
    return found
