"""What an evaluation refuses: options, protocols, files of relevance, results, and scores without an order."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import refusals
import torch
from refusals import Refusal
from tables import OWNER, Numbers, make_dual, make_fusion

from dcdctl.core.errors import ConfigError, InputError, ModelError
from dcdctl.core.evaluation import EvalOptions, SavedEvaluation, compare, evaluate, ranks
from dcdctl.core.evaluation.document import VectorForm
from dcdctl.core.evaluation.protocols import open_split
from dcdctl.core.evaluation.relevance import read_relevance
from dcdctl.core.scoring import topk

CORPUS = Numbers(OWNER)
DEPTHS = [
    ((), r"depths must not be empty, got \[\]"),
    ((0,), "depths must end above 0, got 0"),
    ((-1, 5), r"depths\[0\] must lie in .*, got -1"),
    ((10, 5), r"depths must ascend, got \[10, 5\]"),
    ((5, 5), r"depths must ascend, got \[5, 5\]"),
]
RELEVANCE = [
    ({"image_id": "elsewhere"}, r"1 rows of unknown images \(.*elsewhere.*correct them"),
    ({"caption_id": 7}, "1 rows of unknown captions"),
    ({"relevance": -1.0}, "1 relevances that are no number of at least 0"),
    ({"relevance": None}, "1 relevances that are no number of at least 0"),
]
PROTOCOLS = [
    ("coco-10k", None, "no protocol 'coco-10k'.*known: auto, whole, flickr30k-1k"),
    ("first-5", None, "no protocol 'first-5'"),
    ("whole", 5, "--max-images 5 is a protocol of its own, but the protocol whole is given"),
    ("coco-5k", 5, "--max-images 5 is a protocol of its own, but the protocol coco-5k is given"),
]
MISSING = [
    ("absent", "no finished evaluation in absent; `dcdctl eval RUN"),
    ("empty", "no finished evaluation in empty; `dcdctl eval empty --data DIR`"),
    ("empty:cascade", "no finished evaluation in empty; `dcdctl eval empty --data DIR --rerank REF"),
    ("absent,,absent", "a name in 'absent,,absent' is empty"),
]


def of_relevance(changes):
    """Read a table of which one row does not fit."""

    def read(tmp_path):
        row = {"image_id": "image 1", "caption_id": 103, "relevance": 2.0}
        pd.DataFrame([row, {**row, "caption_id": 104, **changes}]).to_parquet(tmp_path / "relevance.parquet")
        read_relevance(tmp_path / "relevance.parquet", CORPUS)

    return read


def of_place(name: str):
    """Read a table that is missing, of another kind, or a folder."""

    def read(tmp_path):
        (tmp_path / "relevance.txt").write_text("image_id,caption_id,relevance\n")
        for folder in ("folder", "folder.csv"):
            (tmp_path / folder).mkdir()
        read_relevance(tmp_path / name, CORPUS)

    return read


def of_result(text: str):
    """Read a result of this text."""

    def read(tmp_path):
        (tmp_path / "result.json").write_text(text)
        SavedEvaluation.load(tmp_path)

    return read


def of_system(name: str):
    """Read a system beside an empty folder."""

    def read(tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        compare.read_systems([name])

    return read


def of_form(corpus, **options):
    return lambda: evaluate.evaluate_model(corpus, CORPUS, **options)


def without_order(bad: float):
    """Every way to rank scores or vectors of which one is no number."""
    vectors = torch.tensor([[1.0, bad], [0.0, 1.0]])
    yield "ranks of vectors", lambda: ranks.rank_embeddings(vectors, vectors, np.array([0, 1]))
    yield "first of vectors", lambda: topk.top_k(vectors, vectors, 1)
    yield "counts", lambda: ranks.RankCounter(np.array([bad, 1.0], dtype=np.float32), np.array([0, 1]))


ROWS = [
    *(Refusal(f"depths {depths}", partial(EvalOptions, depths=depths), ConfigError, says) for depths, says in DEPTHS),
    *(Refusal(f"relevance {changes}", of_relevance(changes), InputError, says) for changes, says in RELEVANCE),
    *(
        Refusal(f"relevance in {name}", of_place(name), InputError, name)
        for name in ("absent.csv", "relevance.txt", "folder", "folder.csv")
    ),
    *(
        Refusal(
            f"protocol {name} of {images} images",
            lambda scenes_corpus_dir, name=name, images=images: open_split(
                scenes_corpus_dir, "test", name, max_images=images
            ),
            ConfigError,
            says,
        )
        for name, images, says in PROTOCOLS
    ),
    *(
        Refusal(f"result {text}", of_result(text), InputError, r"(is not JSON|holds no JSON object).*dcdctl eval")
        for text in ("{", "[1]", '"rsum"')
    ),
    *(Refusal(f"system {name}", of_system(name), InputError, says) for name, says in MISSING),
    Refusal(
        "a form of scores",
        of_form(make_fusion(), options=EvalOptions(form=VectorForm(kind="binary"))),
        ModelError,
        "dual encoder alone",
    ),
    Refusal(
        "too many numbers",
        of_form(make_dual(), options=EvalOptions(form=VectorForm(dims=4000))),
        ConfigError,
        "--dims is 4000, and the vectors of the model have",
    ),
    Refusal(
        "a re-ranked fusion scorer",
        of_form(make_fusion(), rerank=make_fusion()),
        ModelError,
        "a re-ranker orders what a model finds that encodes images once",
    ),
    *(
        Refusal(f"{name} with {bad}", do, ModelError, "NaN")
        for bad in (math.nan, math.inf, -math.inf)
        for name, do in without_order(bad)
    ),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
