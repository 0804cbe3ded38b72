"""A model family of another package, found by its entry point."""

from __future__ import annotations

import sys

import pytest

from dcdctl.core import models
from dcdctl.core.errors import ModelError

MODULE = """
from dcdctl.core.models import load_dual

def load(ref, overrides, saved):
    return load_dual(ref + "/inner", overrides)

family = ("dual", load)
no_pair = 3
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution as pip does: a module, and a folder with METADATA and entry_points.txt."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "birds_family.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(site))

    def install(name, points):
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[dcdctl.models]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
        )

    yield install
    sys.modules.pop("birds_family", None)


@pytest.fixture
def folder(dual, tmp_path):
    models.save(dual, tmp_path / "model" / "inner")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "birds"}')
    return tmp_path / "model"


def test_a_family_of_an_installed_package_loads(install, folder, dual):
    with pytest.raises(
        ModelError, match=r"birds model, a family that is not known here|does not recognize this architecture"
    ):
        models.load(folder)
    install("dcdctl-birds", {"birds": "birds_family:family"})
    assert models.check_ref(folder) == "dual"
    assert models.load(folder).digest == dual.digest
    assert models.load_scorer(folder).digest == dual.digest
    with pytest.raises(ModelError, match="is a dual encoder, expected a fusion scorer"):
        models.load_fusion(folder)


def test_a_package_does_not_hide_a_family_of_dcdctl(install, dual, tmp_path):
    models.save(dual, tmp_path / "dual")
    install("dcdctl-birds", {"vision-text-dual-encoder": "birds_family:no_pair"})
    assert models.load(tmp_path / "dual").digest == dual.digest


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "absent_family:family",
            "the package dcdctl-birds brings birds, but absent_family:family cannot be used .ModuleNotFoundError",
        ),
        ("birds_family:no_pair", "birds, but birds_family:no_pair cannot be used .TypeError"),
    ],
)
def test_an_error_of_a_package_names_it(value, message, install, folder):
    install("dcdctl-birds", {"birds": value})
    with pytest.raises(ModelError, match=message):
        models.load(folder)
