"""Artifacts: a killed build resumes, another plan is refused, and damaged files are never read."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from artifact_kinds import KINDS
from damage import as_new_process
from made_index import killed_before
from processes import TIMEOUT_S
from tiny import contents

from dcdctl.core import artifacts, files
from dcdctl.core.artifacts import Build, Kind, checksums, first_difference, seal_of, sha256_of
from dcdctl.core.errors import DcdError, InputError, MissingError, StaleError
from dcdctl.core.scoring import FEATURES

TOY = Kind(
    name="toy",
    format=3,
    seal_file="toy.json",
    files=("part-*", "deep/part-*", "draft"),
    make="run `make toy`",
    make_again="run `make toy` again",
)
PARTS = ("part-0", "part-1", "deep/part-2", "part-3")


def make_toy(folder: Path, kind: Kind = TOY, *, seed: int = 0, restart: bool = False) -> list[str]:
    """Build an artifact whose parts depend on a seed and on a note made while planning; returns the parts that this
    call wrote."""
    build = Build(folder, {"format": kind.format, "settings": {"seed": seed}}, kind)
    written = []
    with build.lock():
        if build.is_sealed:
            document = kind.read_seal(folder)
            build.expect(document["plan"])
            build.clean(document["files"])
            return []
        notes = build.begin(restart=restart)
        if "salt" not in notes:
            files.write_text(folder / "draft", "scratch")
            notes = {"salt": "noted"}
            build.note(**notes)
        for name in build.missing(PARTS):
            with build.write(name) as partial:
                partial.write_text(f"{name} {seed} {notes['salt']}")
            written.append(name)
        build.seal(
            {"format": kind.format, "plan": build.plan, "files": {name: seal_of(folder / name) for name in PARTS}},
            PARTS,
        )
    return written


@pytest.mark.parametrize("keeps_plan", [True, False])
def test_a_build_killed_before_any_rename_writes_the_missing_parts_to_the_same_bytes(tmp_path, monkeypatch, keeps_plan):
    kind = dataclasses.replace(TOY, keeps_plan=keeps_plan)
    assert make_toy(tmp_path / "uninterrupted", kind) == list(PARTS)
    number, was_killed = 0, True
    while was_killed:
        folder = tmp_path / f"killed {number}"
        was_killed = killed_before(monkeypatch, number, lambda: make_toy(folder, kind))  # noqa: B023
        kept = {name: (folder / name).stat().st_mtime_ns for name in PARTS if (folder / name).exists()}
        is_sealed = (folder / kind.seal_file).exists()
        # The oracle: exactly the missing parts are written, and the others are kept.
        assert make_toy(folder, kind) == ([] if is_sealed else [name for name in PARTS if name not in kept])
        assert kept.items() <= {name: (folder / name).stat().st_mtime_ns for name in PARTS}.items()
        assert contents(folder) == contents(tmp_path / "uninterrupted"), number
        number += 1
    assert number > len(PARTS) + 3
    assert sorted(contents(tmp_path / "uninterrupted")) == sorted(
        [*PARTS, "toy.json", *(["plan.json"] if keeps_plan else [])]
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_started_build_of_another_plan_is_refused_and_the_error_names_both(tmp_path):
    make_toy(tmp_path / "toy")
    (tmp_path / "toy" / "toy.json").unlink()
    before = contents(tmp_path / "toy")
    with pytest.raises(
        StaleError,
        match=r"toy was made with another settings\.seed \(0, not 1\); name another folder, or delete this one",
    ):
        make_toy(tmp_path / "toy", seed=1)
    assert contents(tmp_path / "toy") == before
    make_toy(tmp_path / "toy", seed=1, restart=True)
    make_toy(tmp_path / "other", seed=1)
    assert contents(tmp_path / "toy") == contents(tmp_path / "other")


def test_a_folder_with_other_files_and_a_path_to_a_file_are_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("dear")
    message = r"thesis is not empty and holds no toy \(found thesis\.txt\); name an empty or a new folder with --out"
    with pytest.raises(StaleError, match=message):
        make_toy(tmp_path / "thesis")
    assert contents(tmp_path / "thesis") == {"thesis.txt": b"dear"}
    (tmp_path / "file").write_text("dear")
    with pytest.raises(InputError, match="file is a file, a folder is expected; name another folder"):
        make_toy(tmp_path / "file")


@pytest.mark.parametrize("damaged", ["part-1", "part-1.sha256"])
def test_a_part_that_is_damaged_before_the_build_resumes_is_named(tmp_path, monkeypatch, damaged):
    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Build, "seal", kill)
        with pytest.raises(KeyboardInterrupt):
            make_toy(tmp_path)
    flip(tmp_path / damaged)
    with pytest.raises(
        StaleError,
        match=r"part-1 is damaged: its SHA-256 is .*; delete part-1 and toy\.json there and run `make toy` again",
    ):
        make_toy(tmp_path)
    (tmp_path / "part-1").unlink()
    assert make_toy(tmp_path) == ["part-1"]
    assert sorted(contents(tmp_path)) == sorted([*PARTS, "plan.json", "toy.json"])


def test_a_plan_of_another_build_is_named(tmp_path):
    make_toy(tmp_path / "toy")
    make_toy(tmp_path / "other", seed=1)
    assert TOY.read_plan_and_seal(tmp_path / "toy")[0]["settings"] == {"seed": 0}
    shutil.copyfile(tmp_path / "other" / "plan.json", tmp_path / "toy" / "plan.json")
    message = (
        r"plan\.json belongs to another build: its checksum is \w{12}, toy\.json names \w{12}; delete the "
        r"folder and run `make toy`"
    )
    with pytest.raises(StaleError, match=message):
        TOY.read_plan_and_seal(tmp_path / "toy")
    (tmp_path / "toy" / "toy.json").unlink()
    with pytest.raises(StaleError, match=r"another settings\.seed \(1, not 0\)"):
        Build(tmp_path / "toy", {"format": 3, "settings": {"seed": 0}}, TOY).seal({"format": 3}, PARTS)


@pytest.mark.parametrize("keeps_plan", [True, False])
def test_a_missing_or_damaged_part_is_named_with_the_next_step(tmp_path, keeps_plan):
    kind = dataclasses.replace(TOY, keeps_plan=keeps_plan)
    make_toy(tmp_path, kind)
    seal = kind.read_seal(tmp_path)["files"]["part-1"]
    path = tmp_path / "part-1"
    assert kind.checked(path, seal["sha256"]) == path
    kind.check_part(tmp_path, "part-1", seal["bytes"])
    intact = path.read_bytes()
    hint = (
        "delete part-1 and toy.json there and run `make toy` again"
        if keeps_plan
        else "delete the folder and run `make toy` again"
    )
    flip(path)
    with pytest.raises(
        StaleError, match=f"part-1 is damaged: its SHA-256 is .{{12}}, not {seal['sha256'][:12]}; {hint}"
    ):
        kind.checked(path, seal["sha256"])
    path.write_bytes(intact[:-1])
    with pytest.raises(
        StaleError, match=f"part-1 is damaged: it has {len(intact) - 1} bytes, not {len(intact)}; {hint}"
    ):
        kind.check_part(tmp_path, "part-1", seal["bytes"])
    path.unlink()
    with pytest.raises(MissingError, match=r"part-1 is missing; delete "):
        kind.check_part(tmp_path, "part-1", seal["bytes"])
    if keeps_plan:  # follow the hint
        (tmp_path / "toy.json").unlink()
        assert make_toy(tmp_path, kind) == ["part-1"]
        assert path.read_bytes() == intact


def test_the_first_difference_is_named_down_to_its_key():
    digests = "a" * 64, "b" * 64
    assert first_difference("corpus", *digests) == "corpus (aaaaaaaaaaaa, not bbbbbbbbbbbb)"
    assert first_difference("corpus", "a" * 64, "a" * 63 + "b") == f"corpus ({'a' * 64}, not {'a' * 63}b)"
    assert first_difference("a", {"b": [1, {"c": None}]}, {"b": [1, {"c": 0.5}]}) == "a.b[1].c (null, not 0.5)"
    assert first_difference("a", {"b": [1]}, {"b": [1, 2]}) == "a.b ([1], not [1, 2])"
    assert first_difference("a", {}, {"b": None}) == 'a ({}, not {"b": null})'
    assert first_difference("a", {"b": [1]}, {"b": [1]}) is None


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_changes_and_keeps_its_size_and_time_is_hashed_again(tmp_path, is_replaced):
    path, status = tmp_path / "part", None
    for data in (b"one", b"two"):
        if is_replaced:
            files.write_text(path, data.decode())
        else:
            path.write_bytes(data)
        if status is not None:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert sha256_of(path) == hashlib.sha256(data).hexdigest()
        status = path.stat()
        time.sleep(0.02)  # a coarse clock of the file system


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_hash_of_its_parent(tmp_path):
    (tmp_path / "part").write_bytes(b"part")
    with checksums._LOCKS.setdefault(os.getpid(), threading.Lock()):  # held, as by a thread that hashes
        child = os.fork()
        if not child:
            sha256_of(tmp_path / "part")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


WRITER = """
import sys
from pathlib import Path
from dcdctl.core.artifacts import Build, Kind
kind = Kind(name="toy", format=1, seal_file="toy.json", files=(), make="", make_again="")
with Build(Path(sys.argv[1]), {}, kind).lock():
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_process_is_refused_with_a_one_line_error(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "toy")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"locked\n"
        with pytest.raises(StaleError) as refused:
            make_toy(tmp_path / "toy")
        assert (
            str(refused.value)
            == f"another run is writing to {tmp_path / 'toy'}; wait until it ends, or name another folder"
        )
        writer.communicate(b"\n", timeout=TIMEOUT_S)
    assert make_toy(tmp_path / "toy") == list(PARTS)


def flip(path: Path, at: float = 0.5) -> None:
    """Flip a bit at a fraction of a file's length, and change its modification time, however coarse the clock is."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_003))


# The artifacts of dcdctl


@dataclass(frozen=True)
class BuiltArtifact:
    """A finished artifact and a function that reads it."""

    parts: list[Path]
    read: Callable[[], object]
    """Open the artifact and read all of its parts."""
    root: Path
    """The folder that holds the folder of the artifact."""


PATTERNS = {
    "image index": "*",
    "corpus": "*.parquet",
    "teacher cache": "*.parquet",
    "features": "*.npy",
}
"""The parts of each kind of artifact whose seal names them."""
SEALS = ("index.json", "corpus.json", "cache.json", "features.json")


@pytest.fixture(scope="module")
def made() -> dict[str, BuiltArtifact]:
    """The artifacts that the tests of this process have made so far."""
    return {}


@pytest.fixture(params=PATTERNS)
def artifact(request, made, tmp_path_factory) -> Iterator[BuiltArtifact]:
    """An artifact as it was made, read as by a new process."""
    if request.param not in made:
        root = tmp_path_factory.mktemp("made") / "root"
        root.mkdir()
        found = KINDS[request.param](root)
        parts = [
            path
            for path in found.files
            if path.match(PATTERNS[request.param]) and path.name not in ("index.json", "dcdctl.json")
        ]
        made[request.param] = BuiltArtifact(parts, partial(found.read, found.folder), root)
        shutil.copytree(root, root.with_name("intact"))
    artifact = made[request.param]
    as_new_process()
    yield artifact
    shutil.rmtree(artifact.root)
    shutil.copytree(artifact.root.with_name("intact"), artifact.root)


OUTSIDE = ("../elsewhere/{}", "{folder}/elsewhere/{}", "..\\\\elsewhere\\\\{}", "a/../../elsewhere/{}")


def test_a_part_outside_of_the_folder_is_refused_by_name_before_a_file_is_opened(artifact, monkeypatch):
    # A copy of each part is there: only the names are wrong.
    (artifact.root / "elsewhere").mkdir()
    for path in artifact.parts:
        shutil.copy(path, artifact.root / "elsewhere")

    def hashed(path):
        assert "elsewhere" not in str(path)
        return sha256_of(path)

    monkeypatch.setattr(checksums, "sha256_of", hashed)
    seal = next(path / name for path in artifact.parts[0].parents for name in SEALS if (path / name).is_file())
    intact = seal.read_text(encoding="utf-8")
    for path in artifact.parts:
        for where in OUTSIDE:
            name = where.format(path.name, folder=artifact.root)
            document = json.loads(intact.replace(f'"{path.name}"', f'"{name}"'))
            document.pop(artifacts.CHECKSUM)
            artifacts.write_document(seal, document)
            outside = "(names|lists) a file outside of its folder: |.* must be the name of a file, got "
            with pytest.raises(DcdError, match=rf"{seal.name} ({outside}).*elsewhere"):
                artifact.read()


def test_a_part_that_is_a_link_out_of_the_folder_or_a_pipe_is_refused_by_name(artifact):
    path = artifact.parts[-1]
    path.rename(artifact.root / "elsewhere")
    path.symlink_to(artifact.root / "elsewhere")
    with pytest.raises(DcdError, match=rf"{path.name} is a link that leads out of .*; copy the file to its place"):
        artifact.read()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DcdError, match=f"{path.name} is not a regular file"):
        artifact.read()


def test_a_document_with_any_changed_character_is_damaged_or_equal(tmp_path):
    path = tmp_path / "plan.json"
    document = {"format": 3, "margin": 0.25, "name": "Straße", "files": {"a": [1, 2]}}
    artifacts.write_document(path, document)
    assert artifacts.read_document(path, 3) == document
    raw = path.read_bytes()
    for at in range(len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
            with contextlib.suppress(StaleError):
                assert artifacts.read_document(path, 3) == document


def test_listed_files_are_compared_and_every_damage_is_named(tmp_path):
    for name in ("kept", "flipped", "cut", "gone"):
        (tmp_path / name).write_bytes(b"0123456789")
    listed = artifacts.list_files(tmp_path, ["kept", "flipped", "cut", "gone"])
    artifacts.check_files(tmp_path, listed)
    (tmp_path / "flipped").write_bytes(b"0123456798")
    (tmp_path / "cut").write_bytes(b"012345678")
    (tmp_path / "gone").unlink()
    flipped, cut, gone = artifacts.damages(tmp_path, listed)
    assert re.search(r"flipped is damaged: its SHA-256 is [0-9a-f]{12}, not 84d89877f0d4", flipped)
    assert "cut is damaged: it has 9 bytes, not 10" in cut
    assert gone.endswith("gone is missing")
    with pytest.raises(StaleError, match=r"flipped is damaged.*; make it again"):
        artifacts.check_files(tmp_path, listed, hint="make it again")


def test_a_full_disk_says_that_finished_parts_are_kept_only_if_there_are_any(tmp_path):
    build = Build(tmp_path / "toy", {"format": TOY.format}, TOY)
    build.begin()
    for hint in ("make room and try again", "make room and run the same command again: finished files are kept"):
        with pytest.raises(InputError, match=f"there is no room left for .*part-0; {hint}$"), build.write("part-0"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with build.write("part-1") as partial:
            partial.touch()


def test_parts_resume_with_what_is_missing_and_a_seal_removes_what_a_killed_run_left(tmp_path):
    build = Build(tmp_path / "features", {"format": FEATURES.format, "of": "this corpus"}, FEATURES)
    parts = artifacts.Parts(build, ["images-0.npy", "images-1.npy"])
    build.begin()
    with build.write("images-0.npy") as path:
        path.write_bytes(b"zero")
    assert parts.missing() == [1]
    with build.write("images-1.npy") as path:
        path.write_bytes(b"one")
    parts.seal(lambda listed: {"format": FEATURES.format, "files": listed})
    left = build.folder / "images-2.npy"
    left.write_bytes(b"two")
    parts.seal(lambda listed: {"files": {}})
    assert not left.exists()
    assert list(FEATURES.read_seal(build.folder)["files"]) == ["images-0.npy", "images-1.npy"]
