"""Folders of users may be nested more deeply than Python nests calls."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcdctl.core import files
from dcdctl.core.data.images.archives import ImageStore
from dcdctl.core.integrity import verify
from dcdctl.core.search.entries import ImageSource
from dcdctl.core.search.sources import list_images

DEPTH, CALLS = 150, 100
NAME = "a/" * DEPTH + "plan.json"
"""A path below the folder, and a file that marks an artifact."""

READERS: dict[str, Callable[[Path], list[str]]] = {
    "indexed": lambda folder: [
        str(image.path) for image in list_images(ImageSource(kind="folder", path=str(folder)), [])
    ],
    "prepared": lambda folder: ImageStore(folder).members(),
    "named by an option": lambda folder: [
        path.relative_to(folder).as_posix()
        for path in files.find_named([str(folder)], [".json"], what="list", option="--x")
    ],
    "verified": lambda folder: [
        f"{each.path.relative_to(folder).as_posix()}/plan.json" for each in verify(folder).artifacts
    ],
}


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    os.makedirs(path.parent)  # noqa: PTH103  # of which that of pathlib nests more calls
    path.touch()
    return tmp_path


@pytest.fixture
def _few_calls(deep: Path) -> Iterator[None]:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + CALLS)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("_few_calls")
@pytest.mark.parametrize("way", READERS)
def test_files_of_folders_of_any_depth_are_found(way, deep):
    assert READERS[way](deep) == [NAME]
