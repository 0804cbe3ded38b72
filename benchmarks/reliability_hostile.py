"""Files of a stranger for benchmarks/reliability.py: archives, images, captions, annotations, checkpoints and
documents."""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.extend(
    str(Path(__file__).parent.parent / "tests" / name) for name in ("support", "ground", "data", "models", "cli")
)

import test_hostile_archives as archives
from hostile_images import LARGER, OF_SIZE, UNNOTICED, encoded
from reliability_trials import CPU, Stage, Trial, dcdctl, in_fork, outcome_of
from test_hostile_texts import FORMATS, WRONG
from test_official import CALLS, INDIRECT_CALLS, NESTINGS
from test_official import FORMATS as CHECKPOINT_FORMATS

from dcdctl.core import artifacts
from dcdctl.core.models import saved_folder

MEMORY = 3 << 29
"""Bytes of address space that a trial may take beyond what the process has: a file that unpacks to more ends in a
traceback."""


@dataclass(frozen=True)
class Hostile:
    """What a command is given, and what must come of it."""

    words: list[object]
    is_refused: bool
    """Whether an error is the only right outcome."""
    details: object
    never: Path | None = None
    """A path that exists if code of a file ran, or if a file was written outside the folder."""


def bounded(work: Callable[[], str]) -> Callable[[], str]:
    """The work with a limit on its memory."""

    def limited() -> str:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
        return work()

    return limited


def _prepare(folder: Path, *words: object) -> list[object]:
    return ["prepare", *words, "--out", folder / "out", "--workers", 1]


def _of_images(folder: Path, data: bytes) -> list[object]:
    (folder / "odd.png").write_bytes(data)
    (folder / "good.png").write_bytes(encoded("PNG"))
    (folder / "pairs.csv").write_text("image,caption\nodd.png,a dog\ngood.png,two cats\n")
    return _prepare(folder, "--csv", folder / "pairs.csv", "--images", folder)


def _of_archive(folder: Path, archive: Path, name: str) -> list[object]:
    (folder / "pairs.jsonl").write_text(json.dumps({"image": name, "caption": "a dog"}) + "\n")
    return _prepare(folder, "--jsonl", folder / "pairs.jsonl", "--images", archive)


def lying_header(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    form, size = rng.choice(
        [(form, size) for form in OF_SIZE for size in [*LARGER, (60_000, 60_000)] if (form, size) not in UNNOTICED]
    )
    return Hostile(_of_images(folder, OF_SIZE[form](*size)), True, (form, size))


def truncated_image(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    form = rng.choice(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
    data = encoded(form)
    return Hostile(_of_images(folder, data[: rng.randrange(len(data) - 20)]), True, form)


def random_image(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    form = rng.choice(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
    data = bytearray(encoded(form))
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(min(len(data), rng.choice([64, 1 << 20])))] = rng.randrange(256)
    return Hostile(_of_images(folder, bytes(data)), False, form)


def lying_zip(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    data, compression = encoded("PNG"), rng.choice(list(archives.COMPRESSIONS.values()))
    size = rng.choice([0, 1, len(data) - 1, len(data) + 1, rng.randrange(1 << 28), 200 << 20, (1 << 32) - 2])
    archive = archives.zip_that_says(folder / "images.zip", size, compression, data)
    return Hostile(_of_archive(folder, archive, "a.jpg"), size != len(data), (compression, size))


def zip_bomb(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    compression, size = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]), rng.choice([1000, 48 << 20, 2 << 30])
    archive = archives.zip_that_says(folder / "images.zip", size, compression, bytes(48 << 20))
    return Hostile(_of_archive(folder, archive, "a.jpg"), True, (compression, size))


def climbing_name(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    name, form = rng.choice(archives.NAMES_THAT_LEAD_OUT), rng.choice(["zip", "tar"])
    path, data = folder / f"images.{form}", encoded("PNG")
    with zipfile.ZipFile(path, "w") if form == "zip" else tarfile.open(path, "w") as archive:
        if isinstance(archive, zipfile.ZipFile):
            archive.writestr(name, data)
        else:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return Hostile(_of_archive(folder, path, name), True, (form, name))


def link_in_tar(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    (folder / "secret.png").write_bytes(encoded("PNG"))
    kind, target = (
        rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]),
        rng.choice(["secret.png", "../secret.png", str(folder / "secret.png"), "/etc/passwd", "a.png", "/dev/zero"]),
    )
    with tarfile.open(folder / "images.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, target
        archive.addfile(info)
    return Hostile(_of_archive(folder, folder / "images.tar", "a.png"), True, (kind, target))


def lying_tar(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    case = rng.choice(list(archives.PAX))
    with tarfile.open(folder / "images.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.size, info.pax_headers = 10, archives.PAX[case]
        archive.addfile(info, io.BytesIO(bytes(10)))
    return Hostile(_of_archive(folder, folder / "images.tar", "a.png"), True, case)


def random_archive(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    form, stream = rng.choice(["zip", "tar"]), io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(stream, "w", rng.choice(list(archives.COMPRESSIONS.values()))) as archive:
            archive.writestr("a.png", encoded("PNG"))
    else:
        with tarfile.open(fileobj=stream, mode="w") as tar:
            info = tarfile.TarInfo("a.png")
            info.size = len(encoded("PNG"))
            tar.addfile(info, io.BytesIO(encoded("PNG")))
    (folder / f"images.{form}").write_bytes(archives.damaged(stream.getvalue(), rng))
    return Hostile(_of_archive(folder, folder / f"images.{form}", "a.png"), False, form)


CAPTIONS = [
    "\0",
    "a\0dog",
    "word " * 60_000,
    "\ud800",
    "\U0001f600" * 1000,
    "\u202egod",
    "\x1b[2Jdog",
    "=cmd|' /C calc'!A0",
    "",
    " ",
    "\r\n",
]


def odd_caption(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    caption, form = rng.choice(CAPTIONS), rng.choice(["csv", "jsonl"])
    (folder / "a.png").write_bytes(encoded("PNG"))
    if form == "jsonl":
        (folder / "pairs").write_text(
            "".join(json.dumps({"image": "a.png", "caption": text}) + "\n" for text in (caption, "a dog"))
        )
    else:
        quoted = '"' + caption.replace('"', '""') + '"'
        (folder / "pairs").write_text(
            f"image,caption\na.png,{quoted}\na.png,a dog\n", encoding="utf-8", errors="surrogatepass"
        )
    return Hostile(_prepare(folder, f"--{form}", folder / "pairs", "--images", folder), False, (form, caption[:20]))


def other_encoding(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    form, encoding = rng.choice(list(FORMATS)), rng.choice(list(WRONG))
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(encoded("JPEG"))
    (folder / "rows").write_bytes("\n".join(FORMATS[form]).encode(encoding))
    return Hostile(_prepare(folder, f"--{form}", folder / "rows", "--images", folder), True, (form, encoding))


def random_table(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    form = rng.choice(list(FORMATS))
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(encoded("JPEG"))
    data = bytearray("\n".join(FORMATS[form]).encode())
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.choice([0, 10, 34, 44, 91, 123, 255, rng.randrange(256)])
    (folder / "rows").write_bytes(data)
    return Hostile(_prepare(folder, f"--{form}", folder / "rows", "--images", folder), False, form)


def deeply_nested(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    depth = rng.choice([1000, 3000, 100_000])
    nested = rng.choice(
        ["[" * depth, "[" * depth + "]" * depth, '{"a": ' * depth, '{"a": ' * depth + "1" + "}" * depth]
    )
    copies: dict[str, tuple[Path, str, Callable[[Path], list[object]]]] = {
        "corpus.json": (stage.corpus, "corpus.json", lambda copy: ["inspect", copy]),
        "cache.json": (stage.cache, "cache.json", lambda copy: ["inspect", copy]),
        "index.json": (stage.index, "index.json", lambda copy: ["search", copy, "a dog"]),
        "config.json": (stage.dual, "model/config.json", lambda copy: ["convert", copy, folder / "out"]),
        "dcdctl.json": (stage.dual, "model/dcdctl.json", lambda copy: ["convert", copy, folder / "out"]),
        "run.json": (stage.dual, "run.json", lambda copy: ["report", copy, "--out", folder / "page.html"]),
        "result.json": (
            stage.folder / "EVALUATION",
            "result.json",
            lambda copy: ["compare", copy, stage.folder / "EVALUATION2"],
        ),
    }
    victim = rng.choice([*copies, "recipe", "manifest", "karpathy", "jsonl"])
    if victim in copies:
        source, file, words = copies[victim]
        shutil.copytree(source, folder / "copy")
        (folder / "copy" / file).write_text(nested)
        return Hostile(words(folder / "copy"), True, (victim, depth))
    if victim in ("recipe", "manifest"):
        (folder / "nested.toml").write_text("a = " + "[" * depth + rng.choice(["", "]" * depth]))
        path = folder / "nested.toml"
        recipe: list[object] = ["distill", path, "--data", stage.corpus, "--out", folder / "out", *CPU]
        return Hostile(recipe if victim == "recipe" else _prepare(folder, path), True, (victim, depth))
    (folder / "rows").write_text(nested)
    return Hostile(_prepare(folder, f"--{victim}", folder / "rows", "--images", folder), True, (victim, depth))


MANIFESTS = [
    'name = "../../evil"',
    'name = "/etc/evil"',
    "name = 7",
    'name = "x\\u0000y"',
    'name = ""',
    "format = 7",
    'format = "../csv"',
    'pairs = "../../../etc/passwd"',
    'pairs = "/dev/zero"',
    'images = ["/proc"]',
    'images = "x"',
    "images = [[1]]",
    'sources = "x"',
    'rows = { "../../x" = "rows.parquet" }',
    "counts = 1e999",
    "[sources]\nx = 1",
    "[[sources]]\nname = 1",
    'folder = "../.."',
    'out = "/tmp"',
]


def manifest(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    (folder / "a.png").write_bytes(encoded("PNG"))
    (folder / "pairs.csv").write_text("image,caption\na.png,a dog\n")
    lines = ['name = "mine"', 'format = "csv"', f'pairs = "{folder / "pairs.csv"}"', f'images = ["{folder}"]']
    odd = rng.choice(MANIFESTS)
    lines = [line for line in lines if line.split(" ")[0] != odd.split(" ")[0]] + [odd]
    (folder / "manifest.toml").write_text("\n".join(lines))
    return Hostile(
        ["prepare", folder / "manifest.toml", "--out", folder / "out", "--workers", 1],
        False,
        odd,
        folder.parent / "evil",
    )


def checkpoint_with_code(stage: Stage, rng: random.Random, folder: Path) -> Hostile:
    marker, path = folder / "code-ran", folder / "hostile.ckpt"
    words: list[object] = ["convert", path, folder / "out"]
    if rng.random() < 0.5:
        module, function = rng.choice(INDIRECT_CALLS)
        path.write_bytes(f"c{module}\n{function}\n(tR.".encode())
        return Hostile(words, True, (module, function))
    call, form, nesting = rng.choice(list(CALLS)), rng.choice(list(CHECKPOINT_FORMATS)), rng.choice(list(NESTINGS))
    CHECKPOINT_FORMATS[form](NESTINGS[nesting](CALLS[call](marker)), path)
    return Hostile(words, True, (call, form, nesting), marker)


FAMILIES: dict[str, Callable[[Stage, random.Random, Path], Hostile]] = {
    "image, header says more pixels": lying_header,
    "image, truncated": truncated_image,
    "image, random bytes": random_image,
    "zip, lying sizes": lying_zip,
    "zip, bomb": zip_bomb,
    "archive, names that climb": climbing_name,
    "tar, links and devices": link_in_tar,
    "tar, lying headers": lying_tar,
    "archive, random bytes": random_archive,
    "caption, odd characters": odd_caption,
    "annotations, other encoding": other_encoding,
    "annotations, random bytes": random_table,
    "JSON or TOML, deeply nested": deeply_nested,
    "manifest, odd values": manifest,
    "checkpoint with code": checkpoint_with_code,
}


def hostile_files(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Files that a command is given. What must be refused and is accepted counts as wrong, as does code that ran."""
    for name, make in FAMILIES.items():
        for trial in range(trials):
            folder = stage.folder / "hostile" / f"{trial}" / "here"
            folder.mkdir(parents=True)
            hostile = make(stage, rng, folder)
            ended = in_fork(bounded(lambda words=hostile.words: dcdctl(*words)))
            is_wrong = (hostile.is_refused and ended.kind == "ok") or (
                hostile.never is not None and hostile.never.exists()
            )
            yield f"hostile file, {name}", "wrong" if is_wrong else outcome_of(ended), f"{hostile.details}: {ended}"
            shutil.rmtree(folder.parent)


def _documents(stage: Stage, folder: Path) -> dict[str, tuple[Path, str, Callable[[Path], list[object]]]]:
    """The documents of artifacts: where a copy comes from, the file, and the command that reads it."""
    page, out = folder / "page.html", folder / "out"
    return {
        "corpus.json": (stage.corpus, "corpus.json", lambda copy: ["eval", stage.dual, "--data", copy, *CPU]),
        "cache.json": (stage.cache, "cache.json", lambda copy: ["inspect", copy, "--data", stage.corpus]),
        "index.json": (stage.index, "index.json", lambda copy: ["search", copy, "a dog"]),
        "run.json": (stage.dual, "run.json", lambda copy: ["report", copy, "--out", page]),
        "metrics.json": (stage.dual, "metrics.json", lambda copy: ["report", copy, "--out", page]),
        "bench.json": (stage.dual, "bench.json", lambda copy: ["report", copy, "--out", page]),
        "result.json": (stage.dual, "result.json", lambda copy: ["report", copy, "--out", page]),
        "result.json of an evaluation": (
            stage.folder / "EVALUATION",
            "result.json",
            lambda copy: ["compare", copy, stage.folder / "EVALUATION2"],
        ),
        "dcdctl.json": (
            stage.dual,
            "model/dcdctl.json",
            lambda copy: ["eval", copy, "--data", stage.corpus, *CPU, "--out", out],
        ),
        "config.json": (stage.fusion, "model/config.json", lambda copy: ["convert", copy, out]),
        "config.json of a dual encoder": (stage.dual, "model/config.json", lambda copy: ["convert", copy, out]),
        "preprocessor_config.json": (stage.dual, "model/preprocessor_config.json", lambda copy: ["convert", copy, out]),
        "tokenizer_config.json": (stage.dual, "model/tokenizer_config.json", lambda copy: ["convert", copy, out]),
    }


ODD_VALUES: list[Any] = [
    *(None, [], {}, "text", "", -1, 0, 1, 10**6, 10**9, 10**12, 10**400, 1e308, -7.5, True, [[]], ["x"], "x" * 100_000),
    *("../../../etc/passwd", "/dev/zero", "/etc/passwd", "a\0b", ".", "\ud800"),
]


def documents(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Documents of a stranger with a checksum that fits: one value is another, absurd one, or is missing."""
    for name in _documents(stage, stage.folder):
        for trial in range(trials):
            folder = stage.folder / "documents" / str(trial)
            folder.mkdir(parents=True)
            source, file, words = _documents(stage, folder)[name]
            path = shutil.copytree(source, folder / "copy") / file
            document = json.loads(path.read_text(encoding="utf-8"))
            has_checksum = document.pop(artifacts.CHECKSUM, None) is not None
            details = _change(document, rng)
            _write(path, document, has_checksum)
            if not has_checksum and (path.parent / "dcdctl.json").exists():
                saved_folder.seal_again(path.parent)
            line = words(folder / "copy")
            ended = in_fork(bounded(lambda line=line: dcdctl(*line)))
            yield f"document of a stranger, {name}", outcome_of(ended), f"{details[:200]}: {ended}"
            shutil.rmtree(folder)


def _change(document: Any, rng: random.Random) -> str:
    """Change or remove one value at a random depth; returns what was changed."""
    where, node = [], document
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        where.append(str(key))
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        if rng.random() < 0.15:
            del node[key]
            return f"{'.'.join(where)} removed"
        node[key] = rng.choice(ODD_VALUES)
        return f"{'.'.join(where)} = {node[key]!r}"


def _write(path: Path, document: Any, has_checksum: bool) -> None:
    if has_checksum:
        try:
            return artifacts.write_document(path, document)
        except UnicodeEncodeError:  # lone surrogates have no checksum
            pass
    path.write_text(json.dumps(document), encoding="utf-8")
