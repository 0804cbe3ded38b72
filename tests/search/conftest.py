"""What tests of building and following an index share."""

from __future__ import annotations

import pytest
from phone_library import make_library
from tiny import make_models

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.search import part_files


@pytest.fixture(scope="session")
def dual(scenes_corpus_dir, tmp_path_factory):
    """A saved random dual encoder. Not to be written to."""
    folder = tmp_path_factory.mktemp("models") / "dual"
    models.save(make_models(Corpus.open(scenes_corpus_dir, "train").captions)[1], folder)
    return folder


@pytest.fixture(scope="session")
def phone_photos(tmp_path_factory):
    """A library of photos as phones leave it. Not to be written to."""
    return make_library(tmp_path_factory.mktemp("phone") / "photos")


@pytest.fixture(scope="module")
def small_parts():
    """Several files of vectors, and several groups in each, for a few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_files, "ROWS_PER_PART", 3)
        patch.setattr(part_files, "ROWS_PER_GROUP", 2)
        yield
