"""A wheel has all that the program needs, and runs where nothing but the wheel is."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import processes
import pytest
from paths import ROOT

from dcdctl import __version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    processes.run(build, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_the_dev_extra_brings_what_the_other_extras_need():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    own = re.fullmatch(r"dcdctl\[(.*)\]", extras["dev"][0])
    assert own is not None
    # wandb is tested with a stand-in, and only `make docs` needs docs.
    assert sorted(own[1].split(",")) == sorted(set(extras) - {"dev", "docs", "wandb"})


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("folder", ["data_manifests", "dcdctl/recipes", "dcdctl/teachers", "dcdctl/assets"])
def test_the_wheel_carries_the_data_of_a_folder(wheel, folder):
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    inside = Path("dcdctl") / Path(folder).name
    assert {str(inside / path.relative_to(ROOT / folder)) for path in files} <= names_in(wheel)
    assert files or folder == "dcdctl/teachers"


def test_the_wheel_carries_types_and_licence_and_no_tests(wheel):
    names = names_in(wheel)
    assert "dcdctl/py.typed" in names
    assert f"dcdctl-{__version__}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {"dcdctl", f"dcdctl-{__version__}.dist-info"}


def test_the_installed_wheel_finds_its_manifests_from_another_folder(wheel, tmp_path):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    venv.create(tmp_path / "clean")
    python = tmp_path / "clean" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    processes.run(install, env=clean, check=True, capture_output=True)
    # The dependencies come from here; our own package does not, as a path file inside a path file is not followed.
    site = next((tmp_path / "clean" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}))

    def run(*arguments: str) -> str:
        command = [str(python.with_name("dcdctl")), *arguments]
        return processes.run(command, cwd=tmp_path, env=clean, check=True, capture_output=True, text=True).stdout

    assert run("--version") == f"dcdctl {__version__}\n"
    listed = run("prepare", "--list")
    assert [path.stem for path in (ROOT / "data_manifests").glob("*.toml") if path.stem not in listed] == []
