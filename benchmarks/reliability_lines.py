"""Command lines for benchmarks/reliability.py that products of tables give: settings of rounds and picks, of
trainings of last layers, and options of commands that follow folders, search, copy and score files, with wrong values
and beside each other.

A line that must be refused and is not is wrong. Others may end well: then only how they end counts.
"""

from __future__ import annotations

import itertools
import os
import random
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from heif_files import heic
from hostile_images import encoded
from raw_files import dng
from reliability_trials import Stage, Trial, dcdctl, in_fork, outcome_of


@dataclass(frozen=True)
class Line:
    """A command line over the folders of the stage, and whether it may end well."""

    text: str
    may_end_well: bool = True


NO_NUMBERS = ("nan", "'x'", "[]", "[1, 2]", "{}", "true", "''", "1e", "0x", "1;2")
NUMBERS = ("0", "-1", "1", "1.5", "1e9", "inf", "-inf", "none", "99999999999999999999", "1e400", "1_0")
SETTINGS = {
    "pool-picked": (
        *("pool.rounds", "pool.max_pairs", "pool.pseudo_positive_above", "pool.precision", "pool.weight"),
        *("pool.images", "pool.texts", "candidates.per_query", "candidates.random_per_query", "candidates.seed"),
        *("candidates.duplicate_bits", "model.average_with_start"),
    ),
    "late-mined": ("candidates.per_query", "candidates.random_per_query", "candidates.duplicate_bits", "pool.rounds"),
}
"""Numbers of recipes in rounds."""
WORDS = {
    "candidates.kind": ("nothing", "random", "lexical", "blocks", "3", "''"),
    "candidates.model": ("absent", "CORPUS", "FUSION", "LATE", "''", "FILE", "../x", "start"),
    "candidates.directions": ("[]", "['both']", "['image', 'image']", "image", "['text']", "3"),
    "model.start": ("absent", "CORPUS", "FUSION", "LATE", "QUERY", "''", "FILE", "new"),
    "loss.terms": ("{}", "{ nothing = 1.0 }", "{ infonce = 0.0 }", "{ kl = -1.0 }", "{ kl = nan }", "3"),
    "pool.nothing": ("1",),
}
"""Settings that are words or tables."""
TRAINED = {
    "pool-picked": "distill pool-picked --data POOL --set model.start=DUAL --teacher FUSION --out NEW --dry-run",
    "late-mined": "distill late-mined --data CORPUS --teacher FUSION --out NEW --dry-run",
}
INPUTS = {
    "--data": ("ABSENT", "POOL", "CORPUS", "FILE", "PHOTOS", "VECTORS", "''", "."),
    "--pool": ("ABSENT", "POOL", "CORPUS", "FILE", "PHOTOS", "''"),
    "--teacher": ("ABSENT", "DUAL", "LATE", "QUERY", "CORPUS", "FILE", "''", "no_module:f", "math:nothing", "math:pi"),
    "--cache": ("ABSENT", "CACHE", "VECTORS", "CORPUS", "FILE"),
    "--split": ("nothing", "val", "''", "train+train"),
    "--out": ("FILE", "CORPUS", "TAKEN", "FILE/x", "''"),
}
"""Inputs of a training in rounds, in place of its own or beside them."""
ACTIONS = (
    *("--sync", "--moved PHOTOS MORE", "--moved MORE PHOTOS", "--add MORE", "--remove 00.png", "--remove-gone"),
    *("--vectors SCORED", "--set kind=flat", "--keywords", "--drop-column year", "--query-model QUERY"),
    *("--images PHOTOS", "--out NEW", "--exif-place", "--no-exif", "--metadata PAIRS.csv", "--dims 4"),
)
EXCLUDING = ("--watch", "--duplicates", "--plan-only", "--duplicates --csv --json", "--csv", "--replace")
"""Options of `index` that go with no action."""
OF_INDEX = {
    "--moved": (
        "ABSENT MORE",
        "PHOTOS ABSENT",
        "PHOTOS FILE",
        "PHOTOS PHOTOS",
        "'' ''",
        "PHOTOS",
        "PHOTOS CHANGED",
        "/ /",
    ),
    "--remove": ("ABSENT", "''", "'*'", "'[!'", "../00.png", "'a\\nb'", "." * 5000),
    "--add": ("ABSENT", "FILE", "CHANGED", "INDEX", "''", "CACHE", "s3://b/x"),
    "--drop-column": ("nothing", "image_id", "''", "path"),
    "--set": ("kind=nothing", "kind=", "flat_up_to=-1", "candidates=nan", "nothing=1", "=", "exif=here", "keywords=2"),
    "--metadata": ("ABSENT", "FILE", "CORPUS", "''"),
    "--threads": ("0", "-1", "x", "1025"),
    "--batch-size": ("0", "-1", "x", "1.5"),
    "--workers": ("-1", "x", "100001"),
    "--precision": ("fp8", "''"),
    "--to": ("x", "postgres://", "qdrant://", "lancedb://FILE", "file:///x", "''"),
}
OF_SEARCH = {
    "-k": ("0", "-1", "x", "1.5", "99999999999999999999", "''"),
    "--order": ("nothing", "'year up'", "''", "'year desc desc'", "'desc'", "';'", "'\"'"),
    "--image": ("ABSENT", "FILE", "PHOTOS", "CORPUS/corpus.json", "''", "/dev/null"),
    "--depth": ("1", "0", "x"),
    "--rerank": ("ABSENT", "DUAL", "QUERY", "FILE", "''"),
    "--html": ("ABSENT/x.html", "PHOTOS", "FILE/x", "''"),
    "--threads": ("0", "x"),
    "--model": ("ABSENT", "DUAL"),
    "--where": ("nothing", "'nothing = 1'", "'year'", "'year >'", "''", "'year = 1 and'"),
}
QUERIES = (
    "'a dog'",
    "",
    "--image PHOTOS/00.png",
    "--order year",
    "--where 'year is null'",
    "--also 'a cat'",
    "--not 'a cat'",
)
SWITCHES = ("--hybrid", "--exact", "--paths", "-0", "--json", "--all-copies", "--also x", "--not x", "--rerank FUSION")
OTHERS = {
    "score-work PLANNED/work --teacher FUSION --out NEW --device cpu": {
        "--teacher": ("ABSENT", "CORPUS", "FILE", "''", "no_module:f"),
        "--out": ("FILE", "PLANNED/work", "''", "FILE/x"),
        "--batch-size": ("0", "-1", "x"),
        "--precision": ("fp8", "''"),
        "--workers": ("-1", "257"),
        "--model-set": ("nothing=1", "x", "image_size=0", "image_size=nan"),
    },
    "embed-work LIST DUAL --out NEW --device cpu": {
        "--out": ("FILE", "LIST", "''"),
        "--batch-size": ("0", "x"),
        "--workers": ("-1", "257", "x"),
        "--device": ("tpu", "cuda:99", "''"),
    },
    "photos PHOTOS --out NEW --model DUAL": {
        "--out": ("FILE", "PHOTOS", "PHOTOS/x", "CORPUS", "TAKEN", "''", "."),
        "--model": ("ABSENT", "FUSION", "QUERY", "CORPUS", "FILE", "''"),
        "--queries": ("TEXTS.csv", "ABSENT", "FILE"),
        "--teacher": ("FUSION", "ABSENT"),
        "--vision": ("VISION",),
        "--text": ("TEXT",),
    },
}
"""Lines that end well, and options whose values here do not."""
PLACES = (
    "ABSENT",
    "FILE",
    "PHOTOS",
    "TAKEN",
    "''",
    "s3://b/x",
    "INDEX",
    "CACHE",
    "CORPUS",
    "PLANNED",
    "LIST",
    "/dev/null",
)


STORED = (
    "distill photos --data CORPUS --features STATES --set model.start=LAYERED --set model.trained=last-layers "
    "--set model.trained_layers=1 --set optimizer.steps=1 --set batch.size=8 --device cpu --out NEW"
)
STORED_SETTINGS = {
    "model.trained_layers": (*NO_NUMBERS, *NUMBERS, "2", "99"),
    "model.trained": ("all", "projections", "lora", "nothing", "''", "3"),
    "model.start": (
        "absent",
        "CORPUS",
        "FUSION",
        "LATE",
        "DUAL",
        "QUERY",
        "PAIR",
        "OTHER_LAYERED",
        "''",
        "FILE",
        "new",
    ),
    "model.vision_levels": ("[]", "[0]", "[1]", "[3, 4]", "[99]", "[-1]", "x", "[nan]"),
    "model.frozen_encoders": ("true", "false", "3"),
    "model.kind": ("late", "fusion", "query", "nothing"),
    "model.vision": ("VISION", "TEXT", "absent", "''"),
    "model.text": ("VISION", "TEXT", "absent", "''"),
    "model.layers": ("[0]", "[]"),
    "model.vision_layers": ("[0]", "[0, 1]"),
}
"""Settings of a training of last layers from stored states."""
STORED_OPTIONS = {
    "--features": (
        "ABSENT",
        "FILE",
        "FILE/x",
        "CORPUS",
        "CACHE",
        "INDEX",
        "TAKEN",
        "LAYERED",
        "''",
        "/dev/null",
        "s3://b/x",
    ),
    "--data": ("POOL", "ABSENT", "CACHE", "'x-{0..3}.tar'"),
    "--vision": ("VISION", "TEXT", "ABSENT", "''"),
    "--text": ("TEXT", "VISION", "ABSENT", "''"),
    "--teacher": ("DUAL", "LAYERED", "FUSION", "LATE", "QUERY"),
    "--cache": ("CACHE", "VECTORS", "ABSENT"),
    "--pool": ("POOL", "POOL --teacher DUAL", "CORPUS"),
    "--precision": ("fp8", "bf16", "''"),
    "--accumulate": ("2", "0", "x", "auto"),
    "": (
        "--checkpoint-activations",
        "--max-images 3",
        "--max-images 0",
        "--validation-data CORPUS",
        "--dry-run",
        "--json",
    ),
}
ENGINES = (
    "--engine spark",
    "--engine ''",
    "--engine ray://",
    "--engine ray://x",
    "--engine ray://x:y",
    "--engine RAY",
    "--engine http://x:1",
    "--engine ray --workers 0",
    "--engine ray --workers -1",
    "--engine ray --workers 100001",
    "--engine ray --worker-gpus 1.5",
    "--engine ray --worker-gpus nan",
    "--engine ray --worker-gpus -1",
    "--engine ray --worker-cpus 0",
    "--engine ray --worker-cpus x",
    "--worker-gpus 1",
    "--worker-cpus 1",
    "--verbose",
    "--workers 257",
)
"""Wrong engines; no line starts one."""
WITH_ENGINE = (
    "index DUAL --images PHOTOS --out NEW --device cpu",
    "cache-teacher --data CORPUS --teacher FUSION --recipe demo-dual --out NEW --device cpu",
    "cache-teacher --texts TEXTS.csv --teacher DUAL --out NEW --device cpu",
    "eval FUSION --data CORPUS --out NEW --device cpu",
)
OF_PHONES = (
    "whole.heic",
    "tiles.heic",
    "whole.avif",
    "whole.dng",
    "no preview.dng",
    "short.heic",
    "short.avif",
    "short.dng",
    "empty.heic",
    "text.avif",
    "JPEG.HEIC",
)
"""Photos that are whole, truncated, empty or of another form than their names say."""
BESIDE_PHOTO = (
    "",
    "--also 'a cat'",
    "--not 'a cat'",
    "--also 'a cat' --not 'a cat'",
    "--also ''",
    "--hybrid",
    "-k 0",
    "'a dog'",
    "--rerank FUSION",
    "--order year",
    "--where 'year is null'",
    "--all-copies --json",
)
WITH_PHOTOS_OF_PHONES = (
    "index DUAL --images PHONE --out NEW --device cpu",
    "index LATE --images PHONE --out NEW --exif-place",
    "index DUAL --images PHONE --out NEW --no-exif",
    "index CHANGED --add PHONE --device cpu",
    "index DUAL --images PHONE --out NEW --metadata PHONE.csv",
    "index CHANGED --moved PHOTOS PHONE",
    "photos PHONE --out NEW --model DUAL",
    "photos PHONE PHONE.csv --out NEW --vision VISION --text TEXT",
    "prepare --csv PHONE.csv --images PHONE --out NEW",
    "prepare --csv PHONE.csv --images PHONE --on-error skip --out NEW",
    "prepare --csv PHONE.csv --images PHONE --image-size 8 --on-error skip --out NEW",
    "prepare --images PHONE --queries TEXTS.csv --out NEW",
    "index DUAL --images PHONE --out NEW --plan-only",
)
COMBINED = (
    "'a dog' --also 'a dog' --not 'a dog'",
    "'a dog' --not 'a dog'",
    "--also 'a cat'",
    "--not 'a cat'",
    "'' --also x",
    "'a dog' --also ''",
    "'a dog' --not ' '",
    "'a dog'" + " --also x" * 200,
    "--image PHOTOS/00.png --image PHOTOS/01.png",
    "'a dog' --image PHOTOS/00.png",
    "--image PHOTOS/00.png --not 'a dog' --order year",
    "'a dog' --also '\u202e'",
    "--also 'a cat' --order year",
    "--also 'a cat' --where 'year = 1'",
    "'a dog' --also x --rerank FUSION --depth 3",
    "'a dog' --also x --hybrid --where 'year is null' --all-copies",
    f"'a dog' --not {'x' * 5000}",
)
"""Queries of several texts and images."""


def _rounds() -> Iterator[Line]:
    for recipe, names in SETTINGS.items():
        for name, value in itertools.product(names, (*NO_NUMBERS, *NUMBERS)):
            yield Line(f"{TRAINED[recipe]} --set {shlex.quote(f'{name}={value}')}", value not in NO_NUMBERS)
    for start in TRAINED.values():
        for name, values in WORDS.items():
            yield from (Line(f"{start} --set {shlex.quote(f'{name}={value}')}") for value in values)
        for name, values in INPUTS.items():
            yield from (Line(f"{start} {name} {value}") for value in values)


def _indexes() -> Iterator[Line]:
    for action, other in itertools.combinations(ACTIONS, 2):
        yield Line(f"index CHANGED --device cpu {action} {other}")
    for action, other in itertools.product(ACTIONS, EXCLUDING):
        if (action, other) == ("--sync", "--watch"):
            continue  # until Ctrl-C, as it should
        yield Line(f"index CHANGED --device cpu {action} {other}", may_end_well=False)
    for name, values in OF_INDEX.items():
        yield from (Line(f"index CHANGED --device cpu {name} {value}") for value in values)


def _searches() -> Iterator[Line]:
    for query, (name, values) in itertools.product(QUERIES, OF_SEARCH.items()):
        yield from (Line(f"search FOLLOWED_INDEX {query} {name} {value} --device cpu") for value in values)
    for query, (one, other) in itertools.product(QUERIES, itertools.combinations(SWITCHES, 2)):
        yield Line(f"search FOLLOWED_INDEX {query} {one} {other} --device cpu")


def _others() -> Iterator[Line]:
    for start, options in OTHERS.items():
        for name, values in options.items():
            yield from (Line(f"{start} {name} {value}") for value in values)
    for source, target in itertools.product(PLACES, repeat=2):
        yield Line(f"copy {source} {target}")
    for place in PLACES:
        for command in ("score-work {} --teacher FUSION --out NEW", "embed-work {} DUAL --out NEW", "index {} --sync",
                        "index {} --duplicates", "search {} 'a dog'", "photos {} --out NEW --model DUAL"):  # fmt: skip
            yield Line(f"{command.format(place)} {'' if command.endswith('DUAL') else '--device cpu'}")


def _last_layers() -> Iterator[Line]:
    for name, values in STORED_SETTINGS.items():
        for value in values:
            is_no_number = name == "model.trained_layers" and value in NO_NUMBERS
            yield Line(f"{STORED} --set {shlex.quote(f'{name}={value}')}", not is_no_number)
    for name, values in STORED_OPTIONS.items():
        yield from (Line(f"{STORED} {name} {value}") for value in values)


def _engines() -> Iterator[Line]:
    for command, engine in itertools.product(WITH_ENGINE, ENGINES):
        yield Line(f"{command} {engine}", may_end_well=False)


def _photos_of_phones() -> Iterator[Line]:
    for photo, beside in itertools.product(OF_PHONES, BESIDE_PHOTO):
        yield Line(f"search FOLLOWED_INDEX --image {shlex.quote(f'PHONE/{photo}')} {beside} --device cpu")
    yield from map(Line, WITH_PHOTOS_OF_PHONES)


def _combined_queries() -> Iterator[Line]:
    for query, index in itertools.product(COMBINED, ("FOLLOWED_INDEX", "FOLLOWED_TOKENS", "QUERY_INDEX")):
        yield Line(f"search {index} {query} --device cpu")


GROUPS = {
    "rounds": _rounds,
    "indexes": _indexes,
    "searches": _searches,
    "work lists, photos, copies": _others,
    "last layers": _last_layers,
    "engines": _engines,
    "photos of phones": _photos_of_phones,
    "combined queries": _combined_queries,
}
"""Lines by what they are about."""


def combined_lines(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Some of the lines, each in a stage whose folders that it could change are made again."""
    _make_photos_of_phones(stage)
    lines = [line for group, make in GROUPS.items() if group in (stage.chosen or GROUPS) for line in make()]
    for line in rng.sample(lines, min(trials, len(lines))):
        if "CHANGED" in line.text:
            shutil.copytree(stage.index, stage.folder / "CHANGED")

        def work(line: Line = line) -> str:
            os.chdir(stage.folder)
            return dcdctl(*shlex.split(line.text))

        ended = in_fork(work, cpu_s=30)
        command = line.text.split()[0]
        outcome = "wrong" if ended.kind == "ok" and not line.may_end_well else outcome_of(ended)
        yield f"combined command line, {command}", outcome, f"{line.text!r}: {ended}"
        for name in ("NEW", "NEW-rounds", "CHANGED", "ABSENT", "x.html"):
            shutil.rmtree(stage.folder / name, ignore_errors=True)


def _make_photos_of_phones(stage: Stage) -> None:
    """PHONE with the photos, and PHONE.csv with a caption of each."""
    folder = stage.folder / "PHONE"
    folder.mkdir()
    heif, avif, raw = heic(), encoded("AVIF"), dng()
    contents = dict(
        zip(
            OF_PHONES,
            (
                heif,
                heic("heic_tiles.heic"),
                avif,
                raw,
                dng(preview=b""),
                heif[:400],
                avif[:200],
                raw[:300],
                b"",
                b"dear",
            ),
            strict=False,
        )
    )
    contents["JPEG.HEIC"] = encoded("JPEG")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    lines = [f"{name},{text}" for name, text in zip(contents, itertools.cycle(("a dog", "a cat")), strict=False)]
    (stage.folder / "PHONE.csv").write_text("\n".join(["image,caption", *lines]))
