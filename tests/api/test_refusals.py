"""What the functions of `import dcdctl` refuse: overrides, and queries that are several things."""

from __future__ import annotations

from functools import partial

import pytest
import refusals
from refusals import Refusal

import dcdctl
from dcdctl.core.errors import ConfigError, InputError

OVERRIDES = [
    ("demo-dual", {"optimizer.step ": 3}, r"unknown key optimizer\.step; did you mean optimizer\.steps\? known keys"),
    (dcdctl.Recipe(), {"batch.size": 1}, r"batch\.size must lie in .*, got 1"),
]
QUERIES = [
    (["red"], {"also": "x"}, ConfigError, "a list of texts has no other parts; search for each text by itself"),
    ("red", {"also": "blue", "hybrid": True}, ConfigError, "a hybrid search compares .*; search by a text"),
    (["red", None], {}, InputError, "a list of texts has a NoneType; search by each image"),
    ("red", {"also": [3]}, InputError, "a list of texts has a int"),
    ("red", {"also": [""]}, InputError, "the query is empty, it must be a text"),
    ("red", {"without": "red"}, InputError, "'red' is both searched for and excluded; leave one"),
    ("red", {"where": "yaer = 1"}, InputError, "unknown column yaer; the columns are .*year"),
]


def of_query(query, **options):
    return lambda noise_index: dcdctl.Searcher(noise_index).search(query, **options)


def of_image(search):
    """Search with a file of the index."""
    return lambda noise_index: search(dcdctl.Searcher(noise_index), noise_index.parent / "images" / "plain.png")


ROWS = [
    *(
        Refusal(f"{recipe} {overrides}", partial(dcdctl.load_recipe, recipe, overrides), ConfigError, says)
        for recipe, overrides, says in OVERRIDES
    ),
    Refusal(
        "accumulate=0",
        lambda: dcdctl.distill("demo-dual-alone", "absent", "absent", accumulate=0),
        ConfigError,
        "micro-batches",
    ),
    *(
        Refusal(f"{query} {options}", of_query(query, **options), error, says)
        for query, options, error, says in QUERIES
    ),
    Refusal(
        "two images",
        of_image(lambda searcher, path: searcher.search(path, image=path)),
        ConfigError,
        "`image` is another one; give one of them a text",
    ),
    Refusal(
        "a text and a path",
        of_image(lambda searcher, path: searcher.search(["red", path])),
        InputError,
        "has a PosixPath; search by each image",
    ),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
