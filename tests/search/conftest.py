"""What tests of building and following an index share."""

from __future__ import annotations

import pytest
from tiny import make_models

from dcdctl.core import models
from dcdctl.core.search import part_files


@pytest.fixture(scope="module")
def dual(corpus, tmp_path_factory):
    """A saved random dual encoder."""
    folder = tmp_path_factory.mktemp("models") / "dual"
    models.save(make_models(corpus.captions)[1], folder)
    return folder


@pytest.fixture(scope="module")
def small_parts():
    """Several files of vectors, and several groups in each, for a few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_files, "ROWS_PER_PART", 3)
        patch.setattr(part_files, "ROWS_PER_GROUP", 2)
        yield
