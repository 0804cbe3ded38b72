"""Start times of every command, over a folder of tiny files, as a Markdown table.

    python benchmarks/start_times.py
    python benchmarks/start_times.py --before CHECKOUT --rounds 3
    python benchmarks/start_times.py --only "search, dual" "search, late" "search, query" --vision DIR --text DIR

Models have some thousand weights and a split two images, so a time is nearly all imports. Each command runs in a
process of its own, all commands in turn in every round, and with `--before` the same commands of another checkout of
dcdctl beside them. Processor time is that of the process and its children, over all threads; it grows less than time by
the clock when other work runs beside. The numbers are medians over the rounds, and the first round fills the system's
cache of files. The time of `serve` ends when /health answers. Ctrl-C shows the times so far.

`search` asks an index of a dual encoder, of a late-interaction model, and of a dual encoder whose texts a static query
encoder embeds: its time is that of the first answer. With --vision and --text, folders of pretrained encoders, these
models have them in place of tiny ones, with random projections.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from reports import table

HERE = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "onnxruntime", "pandas", "matplotlib", "torchvision", "scipy")
# The names are written when the command has ended, so that looking for them is not in its imports.
RUN = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["START_TIMES_NAMES"], "w").write(" ".join(sys.modules)))
from dcdctl.cli.app import main
main()
"""
KINDS = ("dual", "late", "query")
MORE = {
    "recipes": ["recipes"],
    "models": ["models"],
    "verify index": ["verify", "index"],
    "verify corpus": ["verify", "corpus"],
    "verify cache": ["verify", "cache"],
    "verify run": ["verify", "run"],
    "serve": ["serve", "index", "--port", "0", "--json"],
    **{f"search, {kind}": ["search", f"{kind}.index", "a dog"] for kind in KINDS},
}
LEFT_OUT = (
    "search",
    *("prepare again", "distill --resume", "index --add", "cache-teacher --extend", "index corpus"),
    *("prepare", "prepare zip", "prepare jsonl", "prepare karpathy"),
)
"""Commands of tests/support/every_command.py that start as another one does, or change the folder."""


@dataclass(frozen=True)
class Checkout:
    """A checkout of dcdctl, and the folder of tiny files that its own code made."""

    root: Path
    stage: Path

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.root), str(self.root / "tests" / "support")])
        return {**os.environ, "PYTHONPATH": path, "START_TIMES_NAMES": str(self.stage / "names.txt")}

    def make_stage(self, encoders: Sequence[str]) -> None:
        """Make the files in a process of this checkout; `encoders` are folders, or none."""
        self.stage.mkdir()
        options = [word for pair in zip(("--vision", "--text"), encoders, strict=False) for word in pair]
        # Elsewhere the current folder would be imported first.
        command = [sys.executable, __file__, "--make-stage", *options]
        done = subprocess.run(
            command, cwd=self.stage, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr)


@dataclass(frozen=True)
class Start:
    """One run of a command."""

    processor_s: float
    wall_s: float
    heavy: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another checkout, whose times are a column of their own")
    parser.add_argument("--only", nargs="*", help="names of commands, all by default")
    parser.add_argument("--vision", type=Path, help="image encoder of the models that are searched; with --text")
    parser.add_argument("--text", type=Path, help="their text encoder, whose token embeddings the query encoder takes")
    parser.add_argument("--make-stage", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    encoders = [str(path.resolve()) for path in (arguments.vision, arguments.text) if path]
    if len(encoders) == 1:
        parser.error("--vision and --text go together")
    if arguments.make_stage:
        return make_stage(*encoders)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        roots = {"now": HERE} | ({"before": arguments.before.resolve()} if arguments.before else {})
        checkouts = {name: Checkout(root, Path(folder, name)) for name, root in roots.items()}
        for checkout in checkouts.values():
            checkout.make_stage(encoders)
        commands = {name: words for name, words in _commands().items() if name in (arguments.only or [name])}
        found: dict[tuple[str, str], list[Start]] = {(name, way): [] for name in commands for way in checkouts}
        with suppress(KeyboardInterrupt):
            for number in range(arguments.rounds):
                for name, way in found:
                    found[name, way].append(start := _start(checkouts[way], commands[name]))
                    sys.stderr.write(
                        f"round {number + 1} of {arguments.rounds}: {name}, {way}: {start.processor_s:.2f} s of the "
                        "processor\n"
                    )
    _show(found, [name for name in commands if all(found[name, way] for way in checkouts)], list(checkouts))


def _commands() -> dict[str, list[str]]:
    sys.path[:0] = [str(HERE), str(HERE / "tests" / "support")]
    import every_command
    from command_line import QUICK_BENCH

    from dcdctl.cli.app import COMMANDS

    lines = {name: line for name, line in every_command.COMMANDS.items() if name not in LEFT_OUT}
    lines["bench"] += f" {QUICK_BENCH}"
    helps = {f"{name} --help".strip(): [*name.split(), "--help"] for name in ("", *(name for name, *_ in COMMANDS))}
    return dict(sorted({**MORE, **{name: shlex.split(line) for name, line in lines.items()}}.items())) | helps


def make_stage(vision: str = "", text: str = "") -> None:
    """Make the tiny files, and the indexes of KINDS, in the current folder with the checkout that is on the path."""
    import every_command

    from dcdctl.core import models
    from dcdctl.core.search import Changes, run_index_job

    every_command.make_stage(Path.cwd())

    def new_dual() -> models.DualEncoder:
        projections = models.ProjectionSize()
        return models.new_frozen_dual(vision, text, projections, max_text_len=24) if text else models.load_dual("dual")

    dual, late = new_dual(), models.new_late(new_dual(), 64, is_pooled=False)
    size = models.QuerySize(text=text, num_layers=0, hidden_size=16)
    query = models.new_query(models.QuerySpace.of(dual), size, tokenizer=dual.preprocess.tokenizer)
    for kind, model in zip(KINDS, (dual, late, query), strict=True):
        models.save(model, Path(f"{kind}.model"))
    for kind, model, query_model in (("dual", "dual", None), ("late", "late", None), ("query", "dual", "query.model")):
        changes = Changes(query_model=query_model)
        run_index_job(f"{model}.model", changes, images=Path("photos"), out=Path(f"{kind}.index"))


def _start(checkout: Checkout, words: list[str]) -> Start:
    """Run a command, and remove what it wrote."""
    shutil.rmtree(checkout.stage / "NEW", ignore_errors=True)
    is_service = words[0] == "serve" and "--help" not in words
    names, log = checkout.stage / "names.txt", checkout.stage / "output.log"
    names.write_text("")
    with log.open("w") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, *words],
            cwd=checkout.stage, env=checkout.environment, stdout=subprocess.PIPE if is_service else output,
            stderr=output, text=True,
        )  # fmt: skip
        wall = 0.0
        if is_service:
            try:
                assert process.stdout is not None
                if not (line := process.stdout.readline()):
                    raise SystemExit(f"{' '.join(words)}: {log.read_text()}")
                urllib.request.urlopen(f"{json.loads(line)['url'].rstrip('/')}/health", timeout=60).close()
                wall = time.perf_counter() - began
            finally:
                process.terminate()
        _, status, usage = os.wait4(process.pid, 0)
        wall = wall or time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) and not is_service:
        raise SystemExit(f"{' '.join(words)}: {log.read_text()}")
    imported = set(names.read_text().split())
    return Start(usage.ru_utime + usage.ru_stime, wall, tuple(name for name in HEAVY if name in imported))


def _show(found: dict[tuple[str, str], list[Start]], names: list[str], ways: list[str]) -> None:
    times = [f"{kind}, {way}" for way in reversed(ways) for kind in ("processor time", "by the clock")]
    columns, lines = ["command", *times, "heavy packages"], []
    for name in names:
        cells = [
            f"{median(getattr(start, kind) for start in found[name, way]):.2f} s"
            for way in reversed(ways)
            for kind in ("processor_s", "wall_s")
        ]
        lines.append([f"`{name}`", *cells, ", ".join(found[name, "now"][0].heavy) or "none"])
    sys.stdout.write(f"{table(columns, lines)}\n{len(os.sched_getaffinity(0))} cores, ")
    sys.stdout.write(f"load of {os.getloadavg()[1]:.1f}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS')}\n")


if __name__ == "__main__":
    main()
