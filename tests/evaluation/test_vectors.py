"""Rankings by shorter and quantized vectors, against plain loops over numbers and bits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tables import OWNER, Numbers, make_dual
from tiny import make_models
from torch.nn import functional
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import artifacts
from dcdctl.core.data import Corpus
from dcdctl.core.evaluation import EvalOptions, evaluate, rankers, tables
from dcdctl.core.evaluation.document import VectorForm
from dcdctl.core.evaluation.ranks import rank_embeddings
from dcdctl.core.evaluation.vectors import rank_vectors
from dcdctl.core.training import runs

IMAGES, WIDTH = 24, 20
IMAGE_T = np.repeat(np.arange(IMAGES), 2)


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of 24 images and 48 captions that resemble them."""
    generator = torch.Generator().manual_seed(3)
    images_ID = torch.randn(IMAGES, WIDTH, generator=generator)
    texts_TD = images_ID[IMAGE_T] + 1.5 * torch.randn(len(IMAGE_T), WIDTH, generator=generator)
    return functional.normalize(images_ID, dim=1), functional.normalize(texts_TD, dim=1)


def image_ranks_by_loops(score_IT: list[list[float]]) -> list[int]:
    """The rank of each caption's image; a tie counts against it."""
    return [
        1 + sum(row[t] >= score_IT[own][t] for i, row in enumerate(score_IT) if i != own)
        for t, own in enumerate(IMAGE_T.tolist())
    ]


def equal_bits(one, other, dims: int) -> int:
    return sum((one[d] > 0) == (other[d] > 0) for d in range(dims))


@pytest.mark.parametrize("dims", [7, WIDTH])
def test_binary_vectors_are_ranked_by_their_number_of_equal_bits(vectors, dims):
    images, texts = (side.tolist() for side in vectors)
    expected = image_ranks_by_loops([[equal_bits(image, text, dims) for text in texts] for image in images])
    assert (
        rank_vectors(*vectors, IMAGE_T, VectorForm(dims=dims, kind="binary"), num_top=10).image.ranks.tolist()
        == expected
    )
    assert len(set(expected)) > 5


def int8_cosine(one: list[float], other: list[float]) -> float:
    codes = [np.array([round(number * 127 / max(map(abs, vector))) for number in vector]) for vector in (one, other)]
    return float(codes[0] @ codes[1] / np.sqrt((codes[0] @ codes[0]) * (codes[1] @ codes[1])))


def test_int8_vectors_are_ranked_by_the_cosine_of_their_codes_and_the_first_again_by_numbers(vectors):
    images, texts = (side[:, :6].tolist() for side in vectors)
    coded = [[int8_cosine(image, text) for text in texts] for image in images]
    form = VectorForm(dims=6, kind="int8")
    assert rank_vectors(*vectors, IMAGE_T, form, num_top=10).image.ranks.tolist() == image_ranks_by_loops(coded)
    ranked = rank_vectors(*vectors, IMAGE_T, VectorForm(dims=6, kind="int8", rescore=4), num_top=10).image.ranks
    for text, own in enumerate(IMAGE_T.tolist()):
        order = sorted(range(IMAGES), key=lambda image, text=text: -coded[image][text])
        exact = [np.dot(images[image], texts[text]) / np.linalg.norm(images[image]) for image in range(IMAGES)]
        again = sorted(order[:4], key=lambda image, exact=exact: -exact[image]) + order[4:]
        assert ranked[text] == again.index(own) + 1


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_with_the_whole_gallery_scored_again_the_ranks_are_those_of_float32(vectors, kind):
    whole = rank_vectors(*vectors, IMAGE_T, VectorForm(kind=kind, rescore=1000), num_top=10)
    expected = rank_embeddings(*vectors, IMAGE_T)
    for found, exact in ((whole.text, expected.text), (whole.image, expected.image)):
        np.testing.assert_array_equal(found.positions_QR, exact.positions_QR)
        np.testing.assert_array_equal(found.top_QK[:, :10], exact.top_QK)


def test_short_vectors_are_compared_by_the_cosines_of_their_first_numbers():
    corpus, dual = Numbers(OWNER), make_dual()
    result = evaluate.evaluate_model(dual, corpus, options=EvalOptions(form=VectorForm(dims=3)))
    images, texts = (functional.normalize(side[:, :3].double(), dim=1) for side in (dual.image_ID, dual.text_TD))
    scores = (images @ texts.T).tolist()
    expected = [
        1 + sum(row[t] >= scores[own][t] for i, row in enumerate(scores) if i != own) for t, own in enumerate(OWNER)
    ]
    assert result.table.image_ranks.tolist() == expected
    assert expected != evaluate.evaluate_model(dual, corpus).table.image_ranks.tolist()


def test_the_table_has_the_recalls_of_each_form_and_leaves_the_run_as_it_is(scenes_corpus_dir, tmp_path):
    dual = make_models(Corpus.open(scenes_corpus_dir, "test").captions)[1]
    recipe = {"loss": {"dims": [4]}}
    artifacts.write_document(tmp_path / "run" / "run.json", {"seed": 0, "recipe": recipe})
    runs.finish(runs.Run(tmp_path / "run"), dual)

    def evaluated(*words: str) -> dict:
        command = ["eval", str(tmp_path / "run"), "--data", str(scenes_corpus_dir), "--device", "cpu", "--json", *words]
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    table, width = evaluated("--vector-table"), dual.embedding_dim
    rows = {(row["dims"], row["kind"], row["rescore"]): row for row in table["rows"]}
    assert list(rows) == [
        (dims, kind, count)
        for dims in (4, width)
        for kind, count in (("float32", None), ("int8", None), ("binary", None), ("binary", 50))
    ]
    assert [rows[4, kind, None]["bytes_per_image"] for kind in ("float32", "int8", "binary")] == [16, 4, 1]
    kinds = [row[0] for row in tables.vector_table(table).rows]
    assert kinds == ["float32", "int8", "binary", "binary, first 50 by float32"] * 2
    for words, key in (
        ((), (width, "float32", None)),
        (("--dims", "4"), (4, "float32", None)),
        (("--dims", "4", "--codes", "binary", "--rescore", "50"), (4, "binary", 50)),
    ):
        alone, row = evaluated(*words), rows[key]
        assert (alone["text_retrieval"], alone["image_retrieval"]) == (row["text_retrieval"], row["image_retrieval"])
        assert row["rsum_change"] == pytest.approx(row["rsum"] - rows[width, "float32", None]["rsum"])
        assert alone["protocol"].get("vectors") == ({"dims": 4, "kind": key[1], "rescore": key[2]} if words else None)
    # Only the evaluation by all numbers is the run's result.
    assert "vectors" not in json.loads((tmp_path / "run" / "result.json").read_text())["protocol"]


def test_a_models_vectors_are_ranked_to_the_bit():
    dual, task = make_dual(), rankers.RankingTask(Numbers(OWNER), EvalOptions())
    # To divide by a length that is 1 but for its rounding would move last bits.
    assert not torch.equal(functional.normalize(dual.image_ID, dim=1), dual.image_ID)
    found = rankers.embed(dual, task)
    assert torch.equal(found.images_ID, dual.image_ID)
    assert torch.equal(found.texts_TD, dual.text_TD)
