"""Seeded commands over tiny data, and a digest of everything that each of them prints and writes.

    python benchmarks/seeded_commands.py --out before.txt       (on one commit)
    python benchmarks/seeded_commands.py --out after.txt        (on another one)
    diff before.txt after.txt

A refactoring changes no line. Run both in the same folder (--work), because indexes hold paths. Times, versions and
command lines are left out of the digests, and so are pages of HTML, which show times, and the [model] table of a recipe
with what follows from it alone: which of its fields are saved depends on the kind. It takes four minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SMALL = "--set optimizer.steps=12 --set batch.size=8 --workers 0 --device cpu"
LISTS = "--set batch.random_negatives=5 --set batch.hard_negatives=3"
WORDS = "--set model.hidden_size=32 --set model.vocab_size=300"
TINY = f"{WORDS} --set model.num_heads=2"
CPU = "--device cpu"
COMMANDS = {
    "data": "prepare scenes --set counts.train=48 --set counts.val=12 --set counts.test=12 --set side_px=64 --out data",
    "other": "prepare scenes --set counts.train=40 --set counts.val=8 --set counts.test=8 --set side_px=64 "
    "--set seed=5 --out other",
    "pool": "prepare --images data-images --queries queries.txt --out pool",
    "teacher": f"finetune-teacher tiny-teacher --data data --out teacher {SMALL} {TINY} "
    "--set batch.random_negatives=5 --set model.num_layers=4",
    "cache": f"cache-teacher --data data --teacher teacher --recipe tiny-student --out cache {CPU} "
    "--set candidates.per_query=8",
    "cache-more": f"cache-teacher --data data --teacher teacher --recipe tiny-student --out cache-more {CPU} "
    "--set candidates.per_query=12 --extend cache",
    "blocks": f"cache-teacher --data data --teacher teacher --recipe demo-late --out blocks {CPU}",
    "cache-val": f"cache-teacher --data data --split val --teacher teacher --recipe tiny-student --out cache-val {CPU} "
    "--set candidates.per_query=8",
    "pool-cache": f"cache-teacher --data pool --teacher teacher --recipe pool-distilled --out pool-cache {CPU}",
    "fusion": f"distill tiny-student --data data --teacher teacher --cache cache --out fusion {SMALL} {LISTS}",
    "fusion-avg": f"distill tiny-student --data data --teacher teacher --cache cache --cache cache-more "
    f"--out fusion-avg {SMALL} {LISTS} --set model.layers=[] --set model.average_with_start=0.3 "
    "--set validation.every=6",
    "mined": f"distill tiny-student --data data --out mined {SMALL} {TINY} --set model.start=new --set model.layers=[] "
    "--set loss.terms={ranking=1.0} --set batch.negatives=mined --set candidates.kind=lexical "
    "--set candidates.per_query=6 --set batch.random_negatives=5 --set batch.hard_negatives=3",
    "dual": f"distill demo-dual --data data --cache blocks --out dual {SMALL} {TINY} --set validation.every=6",
    "dual-auto": f"distill demo-dual --data data --cache blocks --out dual-auto {SMALL} {TINY} "
    "--set loss.temperature=auto --accumulate 2",
    "dual-more": f"distill demo-dual --data data --out dual-more {SMALL} --set loss.terms={{infonce=1.0}} "
    "--set model.start=dual --set model.num_layers=6 --set model.num_text_layers=2 --set model.projection_dim=256 "
    "--validation-data data --validation-data other --set validation.every=6 --set model.average_with_start=auto",
    "late": f"distill demo-late --data data --cache blocks --out late {SMALL} {TINY} --set model.position_norm=0.5 "
    "--set validation.every=6",
    "late-pooled": f"distill demo-late --data data --cache blocks --out late-pooled {SMALL} {TINY} "
    "--set model.pooled=true --accumulate 2",
    "taught": f"distill demo-dual --data data --teacher dual --out taught {SMALL} {TINY} "
    "--set loss.terms={kl=1.0,embedding-cosine=1.0}",
    "dual-lists": f"distill demo-dual --data data --teacher dual --out dual-lists {SMALL} {TINY} {LISTS} "
    "--set loss.terms={dcd=1.0}",
    "late-taught": f"distill demo-dual --data data --teacher late --out late-taught {SMALL} {TINY} "
    "--set loss.terms={infonce=1.0,kl=1.0}",
    "query": f"distill query-kl --data data --teacher dual --out query {SMALL} {WORDS}",
    "query-late": f"distill query-kl --data data --teacher late --out query-late {SMALL} {TINY} "
    "--set loss.terms={embedding-cosine=1.0} --set model.num_text_layers=1",
    "texts": f"cache-texts --teacher dual --texts queries.txt --out texts {CPU}",
    "query-texts": f"distill query-static --cache texts --out query-texts {SMALL} {WORDS} --set model.text= "
    "--set validation.every=6",
    "query-judged": f"distill query-static --cache texts --teacher dual --validation-data data "
    f"--out query-judged {SMALL} {WORDS} --set model.text= --set validation.every=6",
    "pool-dual": f"distill demo-dual --data pool --teacher dual --out pool-dual {SMALL} {TINY} "
    "--set loss.terms={kl=1.0} --set validation.every=0",
    "pool-pseudo": f"distill demo-dual --data pool --cache pool-cache --out pool-pseudo {SMALL} {TINY} "
    "--set loss.terms={infonce=1.0,kl=1.0} --set pool.pseudo_positive_above=-5.0 --set batch.size=4",
    "mixed": f"distill demo-dual --data data --cache blocks --pool pool --cache pool-cache --out mixed {SMALL} {TINY} "
    "--set loss.terms={infonce=1.0,kl=1.0} --set validation.every=6",
    "rounds": f"distill demo-dual --data pool --teacher teacher --out rounds {SMALL} {TINY} "
    "--set loss.terms={kl=1.0} --set pool.rounds=2 --set candidates.block_size=4 --set pool.max_pairs=2000",
    "stream": f"distill demo-dual --data data/train-00000-of-00001.parquet --teacher dual --out stream {SMALL} {TINY} "
    "--set loss.terms={infonce=1.0,kl=1.0}",
    "agreement": f"distill demo-dual --data data --cache blocks --cache cache-val --out agreement {SMALL} {TINY} "
    "--set validation.every=6 --set validation.metric=agreement",
    "dry-fusion": f"distill tiny-student --data data --teacher teacher --cache cache --out none {LISTS} --dry-run",
    "dry-late": "distill demo-late --data data --cache blocks --out none --dry-run",
    "dry-flickr30k": "distill vilt-flickr30k --data flickr30k --out none --dry-run",
    "eval-fusion": f"eval fusion --data data --json {CPU}",
    "eval-dual": f"eval dual --data data --json {CPU}",
    "eval-late": f"eval late --data data --json {CPU}",
    "eval-query": f"eval dual --data data --query-model query --json {CPU}",
    "eval-rerank": f"eval dual --data data --rerank teacher --depth 4 --json {CPU}",
    "eval-pool": f"eval pool-dual --data pool --split train --against dual --out eval-pool --json {CPU}",
    "compare": "compare dual late --json",
    "report": "report dual late fusion --out report.md",
    "index": f"index dual --images photos --out index --workers 0 {CPU}",
    "index-add": f"sync index --add more --workers 0 {CPU}",
    "index-late": f"index late --images data --split test --out index-late --workers 0 {CPU}",
    "index-query": f"index dual --images photos --out index-query --workers 0 --query-model query {CPU}",
    "index-column": "change index --metadata columns.csv",
    "search": "search index 'a red circle' --json",
    "search-late": "search index-late 'a red circle' --json",
    "search-query": "search index-query 'a red circle' --json",
    "search-where": "search index 'a red circle' --where 'year >= 2005' --json",
    "search-image": "search index --image photos/0.png --json",
    "export": "export dual --to transformers --out exported",
    "export-late": "export late --to onnx --out exported-late",
    "inspect": "inspect cache --json",
    "inspect-index": "inspect index --json",
    "verify": "verify index",
}
VOLATILE = re.compile(
    r"seconds|time|date|versions|^command$|equivalent_command|machine|checksum|bytes_per|rate|_ms$|^run$|^run_digest$"
)
TEXTUAL = re.compile(r"\d+(\.\d+)? ?(s|ms|min|minutes|seconds)\b|/s\b|\d\d:\d\d(:\d\d)?|about \S+ \S+")


def main() -> None:
    """Run all commands in a fresh folder, and write a line for each thing that they leave."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file of digests to write")
    parser.add_argument("--only", default="", help="names of commands, comma-separated, with what they need")
    parser.add_argument("--work", type=Path, help="a folder to work in, and to keep")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    lines = [
        line for name in COMMANDS if not options.only or name in options.only.split(",") for line in run(name, work)
    ]
    options.out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def run(name: str, work: Path) -> list[str]:
    """The digests of a command: its exit code, what it prints, and each file that it writes or changes."""
    before = digests(work)
    result = subprocess.run(
        [sys.executable, "-m", "dcdctl", *shlex.split(COMMANDS[name].replace("{", "'{").replace("}", "}'"))],
        cwd=work,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"},
    )
    if name == "data":
        make_inputs(work)
    lines = [f"{name}: exit {result.returncode}, stdout {digest_of_text(result.stdout)}"]
    if result.returncode:
        lines.append(f"{name}: {TEXTUAL.sub('', result.stderr).strip()[-300:]}")
    after = digests(work)
    return lines + [f"{name}: {path} {digest}" for path, digest in after.items() if before.get(path) != digest]


def make_inputs(work: Path) -> None:
    """What later commands read: photos, queries and columns, all from the scenes."""
    import pyarrow.parquet as pq

    rows = pq.read_table(work / "data" / "train-00000-of-00001.parquet").to_pylist()
    for folder, some in (("photos", rows[:16]), ("more", rows[16:24]), ("data-images", rows)):
        (work / folder).mkdir()
        for number, row in enumerate(some):
            (work / folder / f"{number}.png").write_bytes(row["image"]["bytes"])
    queries = sorted({caption for row in rows for caption in row["captions"]})
    (work / "queries.txt").write_text("\n".join(queries) + "\n", encoding="utf-8")
    (work / "columns.csv").write_text("image,year\n" + "".join(f"{n}.png,{2000 + n}\n" for n in range(16)))
    # A stream knows the versions of its shards by their times.
    for path in (work / "data").iterdir():
        os.utime(path, (0, 0))


def digests(work: Path) -> dict[str, str]:
    """A digest of every file below a folder, by its path."""
    files = [path for path in sorted(work.rglob("*")) if path.is_file() and "tensorboard" not in path.parts]
    # Seals of logs, which hold times, and graphs of ONNX, which hold the paths of the source.
    kept = [path for path in files if path.suffix not in (".html", ".onnx") and path.name != "metrics.json"]
    return {path.relative_to(work).as_posix(): digest_of_file(path) for path in kept}


def digest_of_file(path: Path) -> str:
    """The SHA-256 of a file, of JSON without what differs between two equal runs."""
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return _sha256(json.dumps([_stable(json.loads(line)) for line in lines], sort_keys=True).encode())
    if path.suffix in (".md", ".txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        return digest_of_text("\n".join(line for line in lines if not line.startswith("model.")))
    return _sha256(path.read_bytes())


def digest_of_text(text: str) -> str:
    """A digest of what a command prints, without times."""
    try:
        return _sha256(json.dumps(_stable(json.loads(text)), sort_keys=True).encode())
    except ValueError:
        return _sha256(TEXTUAL.sub("", text).encode())


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        is_recipe = {"loss", "model", "optimizer"} <= value.keys()
        kept = {key: item for key, item in value.items() if not VOLATILE.search(key)}
        return {key: _stable(item) for key, item in kept.items() if not (is_recipe and key == "model")}
    return [_stable(item) for item in value] if isinstance(value, list) else value


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    main()
