"""A wheel has all that the program needs, and runs where nothing but the wheel is."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import processes
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

from dcdctl import __version__
from dcdctl.core.data.manifest import manifest_files
from dcdctl.core.errors import EXTRAS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    processes.run(build, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_every_package_is_constrained_to_a_version_that_is_allowed_but_the_builds_of_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    # wandb is not installed for the tests.
    extras = [texts for name, texts in project["optional-dependencies"].items() if name != "wandb"]
    site = (ROOT / "docs" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not [text for text in site if text.startswith(("dcdctl", "torch"))]
    needed = [Requirement(text) for texts in [project["dependencies"], *extras, site] for text in texts]
    outside = [
        str(need)
        for need in needed
        if need.name not in ("dcdctl", "torch", "torchvision")
        and pinned.get(canonicalize_name(need.name), "0") not in need.specifier
    ]
    assert outside == []
    # A pin would choose between the builds for processors and for GPUs.
    assert not [name for name in pinned if name in ("torch", "torchvision", "triton") or name.startswith("nvidia")]


@pytest.mark.slow
def test_the_suite_passes_with_the_lowest_versions_that_are_allowed(tmp_path):
    """Of the packages that pyproject.toml names, the lowest versions; of theirs, what those admit. Some gigabytes are
    downloaded."""
    venv.create(tmp_path / "resolver", with_pip=True)
    resolver = tmp_path / "resolver" / "bin"
    processes.run([resolver / "pip", "install", "--quiet", "uv"], check=True)
    processes.run(
        [resolver / "uv", "venv", "--seed", "--quiet", "--python", sys.executable, tmp_path / "lowest"], check=True
    )
    python = tmp_path / "lowest" / "bin" / "python"
    install = [resolver / "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
    install += ["--resolution", "lowest-direct"]
    # Downloads and the whole suite take longer than any other process of a test.
    processes.run([*install, "--editable", f"{ROOT}[dev]"], check=True, timeout=processes.LONG_TIMEOUT_S)
    suite = [python, "-m", "pytest", "-q", "--numprocesses", "auto", "--maxprocesses", "8", "tests"]
    done = processes.run(suite, cwd=ROOT, capture_output=True, text=True, check=False, timeout=processes.LONG_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-4000:]


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("folder", ["data_manifests", "dcdctl/recipes", "dcdctl/built_in", "dcdctl/assets"])
def test_the_wheel_carries_the_data_of_a_folder(wheel, folder):
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    inside = Path("dcdctl") / Path(folder).name
    assert {str(inside / path.relative_to(ROOT / folder)) for path in files} <= names_in(wheel)
    assert files


def test_the_wheel_carries_types_and_licence_and_no_tests(wheel):
    names = names_in(wheel)
    assert "dcdctl/py.typed" in names
    assert f"dcdctl-{__version__}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {"dcdctl", f"dcdctl-{__version__}.dist-info"}


def check_installed(package: Path, folder: Path) -> None:
    """Install a wheel or sdist in a new environment, and use it from another folder."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    venv.create(folder / "clean")
    python = folder / "clean" / "bin" / "python"
    site = next((folder / "clean" / "lib").glob("python*/site-packages"))
    # The dependencies come from here; our own package does not, as a path file inside a path file is not followed.
    site.joinpath("dependencies.pth").write_text(
        "\n".join({sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]})
    )
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--quiet"]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(package)]
    processes.run(install, env=clean, check=True, capture_output=True)

    def run(*arguments: str) -> str:
        command = [str(python.with_name("dcdctl")), *arguments]
        return processes.run(command, cwd=folder, env=clean, check=True, capture_output=True, text=True).stdout

    assert run("--version") == f"dcdctl {__version__}\n"
    listed = run("prepare", "--list")
    assert [name for name in manifest_files() if name not in listed] == []
    assert {entry["name"] for entry in json.loads(run("recipes", "--json"))["recipes"]} == {
        path.stem for path in (ROOT / "dcdctl/recipes").glob("*.toml")
    }


def test_the_installed_wheel_finds_its_manifests_and_recipes_from_another_folder(wheel, tmp_path):
    check_installed(wheel, tmp_path)


@pytest.mark.slow
def test_the_wheel_of_the_sdist_is_that_of_the_checkout_and_installs(wheel, tmp_path):
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    processes.run(build, check=True, capture_output=True)
    sdist = next(tmp_path.glob("*.tar.gz"))
    unpacked = tmp_path / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    source = unpacked / f"dcdctl-{__version__}"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    processes.run(build, check=True, capture_output=True)
    assert names_in(next(tmp_path.glob("*.whl"))) == names_in(wheel)
    check_installed(sdist, tmp_path)


def test_the_extra_of_the_readme_has_what_its_library_is_exported_with():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (of_photos,) = extras["photos"]
    brought = {text for name in Requirement(of_photos).extras for text in extras[name]}
    assert set(EXTRAS["onnx"]) <= brought
