"""Tables of hostile files, hostile manifests and wrong command lines for benchmarks/reliability.py.

A case that is not among those that may be accepted must end in an error of one line.
"""

from __future__ import annotations

import os
import random
import resource
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from reliability_trials import CPU, Ended, Stage, Trial, dcdctl, in_fork, outcome_of

MEMORY = 3 << 29
"""Bytes of address space beyond what the process has: a file that unpacks to more ends in a traceback."""
T = ["a dog", "a cat", "a bird"]
OK = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def _second(*numbers: object) -> dict[str, Any]:
    """Three vectors, of which the second has these numbers."""
    return {"vector": [OK[0], list(numbers), OK[2]]}


VECTORS: dict[str, dict[str, Any] | bytes] = {
    "nan": _second(float("nan"), 1.0), "infinite": _second(float("inf"), 1.0), "zeros": _second(0.0, 0.0),
    "shorter": _second(1.0), "longer": _second(1.0, 2.0, 3.0), "null number": _second(None, 1.0),
    "null and longer": _second(None, 1.0, 2.0), "null": {"vector": [OK[0], None, OK[2]]},
    "empty": {"vector": [[], [], []]}, "of lists": {"vector": [[each] for each in OK]}, "none": {},
    "of text": {"vector": ["1 2", "3 4", "5 6"]}, "of words": {"vector": [["1", "2"]] * 3},
    "of tables": {"vector": [{"a": 1.0, "b": 2.0}] * 3},
    "of decimals": {"vector": pa.array([[1, 2]] * 3, pa.list_(pa.decimal128(5, 2)))},
    "no rows": {"text": pa.array([], pa.string()), "vector": pa.array([], pa.list_(pa.float32()))},
    "two of a text": {"text": ["a dog", "a dog", "a bird"], "vector": OK},
    "int text": {"text": [1, 2, 3], "vector": OK}, "bytes as text": {"text": [b"\xff\xfe", b"b", b"c"], "vector": OK},
    "null text": {"text": ["a", None, "c"], "vector": OK}, "empty text": {"text": ["a", "", "c"], "vector": OK},
    "int language": {"language": [1, 2, 3], "vector": OK},
    "long language": {"language": ["x" * 100_000, "y", "z"], "vector": OK},
    "empty file": b"", "random bytes": b"PAR1" + bytes(range(256)) + b"PAR1", "truncated": b"PAR1",
    "huge, accepted": _second(1e200, 1e200), "tiny, accepted": _second(1e-310, 1e-310),
    "integers, accepted": {"vector": [[2**62, 2**62], [3, 4], [5, 6]]},
    "control text, accepted": {"text": ["a\0b", "\x1b[31m", "c\nd"], "vector": OK},
    "climbing language, accepted": {"language": ["../x", "de", "de"], "vector": OK},
    "like words, accepted": {"text": ["a dog", "A dog.", "a bird"], "vector": OK},
    "fixed width, accepted": {"vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6.0) + 1), 2)},
}  # fmt: skip
"""Parquet files for `cache-teacher --vectors`: columns beside the text, or bytes."""
TEXTS: dict[str, bytes | str] = {
    "control.txt, accepted": "a\0b\n\x1b[31mred\na\u202eb\n", "utf16.txt, accepted": "a dog\nb\n".encode("utf-16"),
    "two.csv, accepted": "text,caption\na,b\n", "climbing.csv, accepted": "text,language\na,../x\n",
    "latin.txt": "caf\xe9\n".encode("latin-1"), "random.txt": bytes(range(256)) * 8, "empty.txt": "",
    "blank.txt": "\n \n", "escape.csv": "text,language\na,\x1b[31m\n",
    "long.csv": "text,language\na," + "x" * 100_000 + "\n", "nested.jsonl": '{"text": ' + "[" * 5000 + "]" * 5000,
    "number.jsonl": '{"text": 5}\n', "nan.jsonl": '{"text": NaN}\n', "list.jsonl": '["a"]\n',
    "table.jsonl": '{"text": "a", "language": {"x": 1}}\n', "ragged.csv": "text,language\na,b,c,d\n",
    "twice.csv": "text,text\na,b\n", "quote.csv": 'text\n"abc\n' + "x\n" * 99, "no column.csv": "txt\na\n",
    "sparse.txt": "", "sparse.csv": "text\n", "sparse.jsonl": "", "pipe.txt": "", "loop.txt": "", "folder.txt": "",
}  # fmt: skip
"""Files for `cache-teacher --texts`; the sparse ones are made a gigabyte long."""
COUNTS = [
    *("images = -1", "images = 0", "images = 1, accepted", "images = 1000000000000", 'images = "many"', "images = nan"),
    *("images = 1.5", "images = true", "images = [1]", "images = 1e400", "captions = -5", "captions = 0"),
    *(
        "captions = 99",
        "captions = 9223372036854775807",
        "captions = inf",
        'captions = ""',
        "captions = {}",
        "other = 1",
    ),
]
"""Counts of the train split of a manifest, in place of `images = 100` and `captions = 500`."""
MANIFESTS = ["", "[expected.train]", "[expected]\ntrain = 7", "[[expected]]", "[x" * 50_000, "a = " + "[" * 100_000]
"""Manifests without counts, and with tables nested deeply."""


def bounded(work: Callable[[], str]) -> Ended:
    """How work ends with limited memory."""

    def limited() -> str:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
        return work()

    return in_fork(limited)


def _outcome(ended: Ended, is_accepted: bool) -> str:
    return "wrong" if ended.kind == "ok" and not is_accepted else outcome_of(ended)


def _write_text_file(path: Path, content: bytes | str) -> None:
    if path.name.startswith(("pipe", "loop", "folder")):
        {"pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path.name), "folder": os.mkdir}[path.stem](path)
        return
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if path.stem == "sparse":
        os.truncate(path, 2**30)


def hostile_files(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Files of vectors and of texts, and manifests of a `--dry-run`, with limited memory."""
    folder = stage.folder / "hostile"
    folder.mkdir()
    lines: list[tuple[str, str, list[object]]] = []
    for name, columns in VECTORS.items():
        path = folder / f"{len(lines)}.parquet"
        if isinstance(columns, bytes):
            path.write_bytes(columns)
        else:
            pq.write_table(pa.table({"text": T, **columns}), path)
        lines.append(("vectors", name, ["cache-teacher", "--vectors", path, "--teacher-name", "x"]))
    for name, content in TEXTS.items():
        _write_text_file(path := folder / name.partition(",")[0], content)
        lines.append(("texts", name, ["cache-teacher", "--texts", path, "--teacher", stage.dual]))
    head = 'format = "csv"\npairs = "a.csv"\nimages = ["."]\n'
    whole = {"images": "images = 100", "captions": "captions = 500"}
    for text in [*COUNTS, *MANIFESTS]:
        counts = {**whole, text.split(" ")[0]: text.partition(",")[0]}
        table = "\n".join(["[expected.train]", *counts.values()]) if text in COUNTS else text
        (path := folder / f"{len(lines)}.toml").write_text(head + table)
        for words in (["distill", "demo-dual"], ["cache-teacher", "--recipe", "demo-dual"]):
            lines.append(("manifest", text, [*words, "--dry-run", "--data", path]))
    for kind, name, words in rng.sample(lines, min(trials, len(lines))):
        ended = bounded(lambda words=words: dcdctl(*words, "--out", folder / "out", *CPU))
        yield f"hostile file, {kind}", _outcome(ended, name.endswith("accepted")), f"{name[:60]!r}: {ended}"
        shutil.rmtree(folder / "out", ignore_errors=True)


NEW_CACHE = "cache-teacher --out NEW --device cpu "
LINES = {
    NEW_CACHE + "--teacher DUAL --texts": """ABSENT.txt|TEXTS.csv --texts ABSENT|TEXTS.csv --data CORPUS
        TEXTS.csv --recipe query-kl|TEXTS.csv --dry-run|TEXTS.csv --set candidates.per_query=3|TEXTS.csv --split test
        TEXTS.csv --vectors V|TEXTS.csv --extend CACHE|TEXTS.csv --extend TOKENS|TEXTS.csv --extend ABSENT|TAKEN|FILE
        TEXTS.csv --verify 3|TEXTS.csv --verify 0|TEXTS.csv --teacher-name x|TEXTS.csv --plan-only|PHOTOS|INDEX
        TEXTS.csv --scores PAIRS.csv|TEXTS.csv --max-pairs 3|TEXTS.csv --batch-size 0|TEXTS.csv --precision int9
        TEXTS.csv --model-set image_size=0|TEXTS.csv --model-set nonsense=1|CORPUS --split absent|'PHOTOS/*.png'""",
    NEW_CACHE + "--texts TEXTS.csv": "|--teacher FUSION|--teacher QUERY|--teacher ABSENT|--teacher VECTORS",
    "cache-teacher --device cpu --texts TEXTS.csv --out": """VECTORS --teacher LATE|CACHE --teacher DUAL
        TOKENS --teacher DUAL --verify 3|CACHE --teacher DUAL --verify 3|VECTORS --texts MORE.csv --teacher DUAL""",
    NEW_CACHE + "--teacher-name x --vectors": """ABSENT.parquet|TEXTS.csv|FILE|PHOTOS|PAIRS.csv --split val
        TEXTS.csv --teacher DUAL|TEXTS.csv --verify 3|TEXTS.csv --data CORPUS|TEXTS.csv --precision bf16""",
    "distill query-static --device cpu --out NEW --set model.text= --set optimizer.steps=1": """|--cache CACHE
        --cache ABSENT|--cache TOKENS|--cache INDEX|--cache VECTORS --cache TOKENS|--cache VECTORS --data CORPUS
        --cache VECTORS --teacher LATE|--cache VECTORS --teacher FUSION|--cache VECTORS --teacher QUERY
        --cache VECTORS --pool POOL|--cache VECTORS --features F|--cache VECTORS --set loss.terms={kl=1.0}
        --cache VECTORS --set validation.metric=agreement|--cache VECTORS --validation-data CORPUS
        --cache VECTORS --set model.start=LATE_QUERY|--cache VECTORS --set model.start=DUAL
        --cache VECTORS --split val|--cache VECTORS --set model.text=teacher|--cache VECTORS --set model.text=PHOTOS
        --cache VECTORS --max-images 3|--cache VECTORS --set model.text_layers=[0,9]
        --cache VECTORS --set model.hidden_size=0
        --cache VECTORS --out QUERY|--cache VECTORS --set model.max_text_len=0|--cache VECTORS --set model.vocab_size=1
        --cache VECTORS --set model.kind=dual|--cache VECTORS --set batch.size=0|--cache VECTORS --vision ABSENT""",
    "distill query-kl --device cpu --out NEW --data CORPUS": """|--teacher FUSION|--teacher DUAL --teacher LATE
        --teacher DUAL --cache VECTORS|--teacher LATE|--teacher DUAL --set model.start=LATE_QUERY|--teacher QUERY""",
    "distill demo-dual --device cpu --out NEW --set batch.size=8": """--cache VECTORS|--data CORPUS --cache VECTORS
        --data CORPUS --pool CORPUS --teacher DUAL|--data CORPUS --pool ABSENT --teacher DUAL|--data POOL
        --data POOL --teacher DUAL|--data POOL --pool POOL --teacher DUAL|--data CORPUS --pool POOL
        --data CORPUS --pool POOL --cache CACHE|--data CORPUS --pool VECTORS --teacher DUAL|--data flickr30k
        --data CORPUS --pool POOL --teacher DUAL --set pool.images=0|--data nonsense --dry-run
        --data scenes --pool POOL --dry-run""",
    "index --device cpu --workers 0 --out NEW --images PHOTOS": """DUAL --query-model ABSENT|QUERY|VECTORS
        DUAL --query-model DUAL|DUAL --query-model LATE_QUERY|DUAL --query-model FUSION|DUAL --query-model VECTORS
        DUAL --query-model INDEX|LATE --query-model QUERY|LATE --dims 4|LATE --set kind=binary
        LATE --set tokens.codes=int3|DUAL --plan-only --query-model QUERY|DUAL --vectors TEXTS.csv""",
    "index --device cpu": "INDEX --query-model LATE_QUERY|INDEX --query-model ''|LATE_INDEX --query-model QUERY",
    "eval --device cpu --data": """CORPUS DUAL --query-model ABSENT|CORPUS DUAL --query-model LATE_QUERY|CORPUS QUERY
        CORPUS DUAL --query-model DUAL|CORPUS DUAL --query-model QUERY --rerank QUERY|CORPUS LATE --query-model QUERY
        CORPUS FUSION --query-model QUERY|POOL DUAL|VECTORS DUAL""",
    "export --out NEW": "QUERY --to transformers|QUERY --to absent|LATE_QUERY --to sentence-transformers",
    "search": """QUERY_INDEX 'a dog' --rerank QUERY|QUERY_INDEX 'a dog' --model DUAL|QUERY 'a dog'
        LATE_INDEX 'a dog' --hybrid|LATE_INDEX --image PAIRS.csv""",
    "prepare --out NEW --queries": """ABSENT.txt|FILE|TEXTS.csv --decontaminate ABSENT|TEXTS.csv --hold-out 0.9
        TEXTS.csv --splits val|TEXTS.csv --images ABSENT""",
    "photos --device cpu": """ABSENT PAIRS.csv --out NEW|PHOTOS ABSENT.csv --out NEW|PHOTOS FILE --out NEW
        PHOTOS PAIRS.csv --out FILE|PHOTOS PAIRS.csv --out NEW --vision ABSENT|PHOTOS PAIRS.csv --out TAKEN|PHOTOS""",
    "": "bench QUERY --teacher FUSION --data CORPUS --device cpu|verify VECTORS/plan.json|inspect VECTORS --split val",
}
"""Command lines with one mistake: how they begin, and how they end, a line or a | between two."""


def command_lines(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Each line must be refused; the names are folders of the stage."""
    lines = [f"{start} {end.strip()}" for start, ends in LINES.items() for end in ends.replace("|", "\n").split("\n")]
    for line in rng.sample(lines, min(trials, len(lines))):

        def work(line: str = line) -> str:
            os.chdir(stage.folder)
            return dcdctl(*shlex.split(line))

        ended = in_fork(work, cpu_s=30)
        yield "command line", _outcome(ended, False), f"{line!r}: {ended}"
        shutil.rmtree(stage.folder / "NEW", ignore_errors=True)
