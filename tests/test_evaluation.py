"""Evaluation: fakes whose scores are a table, tiny real models against their plain scores, and the command."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from dcdctl.core import evaluation, models, retrieval, scoring
from dcdctl.core.corpus import Corpus
from dcdctl.core.errors import ModelError
from dcdctl.core.models.protocols import ImageBatch, States, TextBatch


class Numbers:
    """A corpus without pictures: an image is its index, a caption the text of its index, padded to some length."""

    def __init__(self, owner: list[int]) -> None:
        self.caption_image = np.array(owner)
        self.num_captions, self.num_images = len(owner), max(owner) + 1
        self.captions = [str(text) + " !" * (text % 5) for text in range(len(owner))]
        self.image_ids = [f"picture {image}" for image in range(self.num_images)]
        self.caption_ids = np.arange(len(owner)) + 100
        self.fingerprint = f"numbers {len(owner)}"

    def images(self, image_ix):
        return list(image_ix)

    def subset(self, max_images: int) -> Numbers:
        return Numbers([image for image in self.caption_image.tolist() if image < max_images])


class Preprocess:
    def images(self, images) -> ImageBatch:
        return ImageBatch(torch.tensor(images)[:, None, None, None])

    def texts(self, texts) -> TextBatch:
        words = [text.split() for text in texts]
        longest = max(map(len, words))
        ids = torch.tensor([[int(text[0])] * longest for text in words])
        return TextBatch(ids, torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in words]))


class TableFusion(nn.Module):
    """Gives the pair (i, t) the score table[i, t]; counts pairs and encoded captions."""

    def __init__(self, table_IT: Tensor) -> None:
        super().__init__()
        self.preprocess, self.table_IT = Preprocess(), table_IT
        self.pairs: list[tuple[int, int]] = []
        self.num_encoded_texts = 0

    def encode_images(self, images: ImageBatch) -> States:
        return States(images.pixel_values[:, :, 0], torch.ones(len(images), 1, dtype=torch.bool))

    def encode_texts(self, texts: TextBatch) -> States:
        self.num_encoded_texts += len(texts)
        return States(texts.input_ids[:, :, None], texts.attention_mask.bool())

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        image_P, text_P = images.tokens[image_ix_P, 0, 0], texts.tokens[text_ix_P, 0, 0]
        self.pairs += zip(image_P.tolist(), text_P.tolist(), strict=True)
        return self.table_IT[image_P, text_P]


class TableDual(nn.Module):
    def __init__(self, image_ID: Tensor, text_TD: Tensor) -> None:
        super().__init__()
        self.preprocess, self.image_ID, self.text_TD = Preprocess(), image_ID, text_TD
        self.logit_scale = torch.tensor(10.0)

    def embed_images(self, images: ImageBatch) -> Tensor:
        return self.image_ID[images.pixel_values[:, 0, 0, 0]]

    def embed_texts(self, texts: TextBatch) -> Tensor:
        return self.text_TD[texts.input_ids[:, 0]]


OWNER = [0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 8, 8, 9]


@pytest.fixture
def corpus() -> Numbers:
    return Numbers(OWNER)


@pytest.fixture
def dual() -> TableDual:
    generator = torch.Generator().manual_seed(0)
    image_ID = nn.functional.normalize(torch.randn(10, 6, generator=generator), dim=1)
    text_TD = nn.functional.normalize(image_ID[OWNER] + 0.4 * torch.randn(18, 6, generator=generator), dim=1)
    return TableDual(image_ID, text_TD)


@pytest.fixture
def fusion() -> TableFusion:
    generator = torch.Generator().manual_seed(1)
    table_IT = torch.randn(10, 18, generator=generator)
    table_IT[OWNER, range(18)] += 1.5
    return TableFusion(table_IT)


def ranks_of(result: evaluation.Evaluation) -> tuple[list[int], list[int]]:
    return result.text_ranks.tolist(), result.image_ranks.tolist()


def ranks_of_table(table_IT: Tensor, owner: list[int]) -> tuple[list[int], list[int]]:
    ranks = retrieval.ranks_from_matrix(table_IT, np.array(owner))
    return ranks.text.tolist(), ranks.image.tolist()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_dual_encoder_is_ranked_by_its_cosines(corpus, dual, batch_size):
    result = evaluation.evaluate(dual, corpus, batch_size=batch_size)
    assert ranks_of(result) == ranks_of_table(dual.image_ID @ dual.text_TD.T, OWNER)
    assert (result.kind, result.pairs_scored) == ("dual", 0)


@pytest.mark.parametrize(("batch_size", "image_chunk"), [(1, 64), (7, 3), (1000, 1)])
def test_a_fusion_scorer_is_ranked_by_every_pair_scored_once(monkeypatch, corpus, fusion, batch_size, image_chunk):
    monkeypatch.setattr(scoring, "IMAGE_CHUNK", image_chunk)
    result = evaluation.evaluate(fusion, corpus, batch_size=batch_size)
    assert ranks_of(result) == ranks_of_table(fusion.table_IT, OWNER)
    assert sorted(fusion.pairs) == [(image, text) for image in range(10) for text in range(18)]
    assert fusion.num_encoded_texts == 18
    assert (result.kind, result.pairs_scored) == ("fusion", 180)


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_a_cascade_puts_the_first_of_the_dual_encoder_in_the_fusion_scorers_order(corpus, dual, fusion, depth):
    result = evaluation.evaluate(dual, corpus, rerank=fusion, depth=depth, batch_size=5)
    cosines_IT = dual.image_ID @ dual.text_TD.T
    # The plain way: one score that puts the first `depth` above the rest, by fusion within and by cosine below.
    expected = [], []
    for found, own_QG, cosines_QG, fusion_QG in (
        (expected[0], torch.tensor(OWNER) == torch.arange(10)[:, None], cosines_IT, fusion.table_IT),
        (expected[1], torch.tensor(OWNER)[:, None] == torch.arange(10), cosines_IT.T, fusion.table_IT.T),
    ):
        for own_G, cosines_G, fusion_G in zip(own_QG, cosines_QG, fusion_QG, strict=True):
            combined_G = cosines_G.clone()
            first = cosines_G.topk(depth).indices
            combined_G[first] = 100 + fusion_G[first]
            found.append(1 + int((combined_G[~own_G] >= combined_G[own_G].max()).sum()))
    assert ranks_of(result) == expected
    assert len(fusion.pairs) == len(set(fusion.pairs)) == result.pairs_scored <= depth * (10 + 18)
    assert (result.kind, result.depth) == ("cascade", depth)


def test_a_cascade_as_deep_as_the_corpus_is_the_fusion_scorer(corpus, dual, fusion):
    result = evaluation.evaluate(dual, corpus, rerank=fusion, depth=50)
    assert ranks_of(result) == ranks_of_table(fusion.table_IT, OWNER)
    assert result.pairs_scored == 180


def test_max_images_narrows_queries_and_galleries(corpus, fusion):
    result = evaluation.evaluate(fusion, corpus.subset(4))
    assert ranks_of(result) == ranks_of_table(fusion.table_IT[:4, :7], OWNER[:7])
    assert result.fingerprint == "numbers 7"


def test_a_constant_fusion_scorer_finds_nothing_first(corpus):
    result = evaluation.evaluate(TableFusion(torch.full((10, 18), 0.3)), corpus)
    assert result.recalls.text_retrieval["R@1"] == result.recalls.image_retrieval["R@5"] == 0


def test_nan_scores_and_a_fusion_scorer_that_is_reranked_are_errors(corpus, fusion):
    with pytest.raises(ModelError, match="re-ranked"):
        evaluation.evaluate(fusion, corpus, rerank=fusion)
    fusion.table_IT[3, 4] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        evaluation.evaluate(fusion, corpus)


def test_the_document_says_what_was_measured(corpus, fusion):
    result = evaluation.evaluate(fusion, corpus)
    document = evaluation.to_document(result, "fake", "test")
    assert json.loads(json.dumps(document)) == document
    assert (document["images"], document["captions"], document["pairs_scored"]) == (10, 18, 180)
    values = [*document["text_retrieval"].values(), *document["image_retrieval"].values()]
    assert document["rsum"] == pytest.approx(sum(values))
    assert document["mean_recall"] == pytest.approx(sum(values) / 6)
    assert document["text_retrieval"]["R@1"] == pytest.approx(100 * np.mean(result.text_ranks == 1))


def test_the_table_of_ranks_names_every_query(tmp_path, corpus, fusion):
    result = evaluation.evaluate(fusion, corpus.subset(4))
    evaluation.write_ranks(tmp_path / "ranks.parquet", result, corpus)
    table = pd.read_parquet(tmp_path / "ranks.parquet")
    text, image = table[table.direction == "text"], table[table.direction == "image"]
    assert text["rank"].tolist() == result.text_ranks.tolist()
    assert image["rank"].tolist() == result.image_ranks.tolist()
    assert text.caption.isna().all()
    assert image.image_id.tolist() == [f"picture {owner}" for owner in OWNER[:7]]
    assert image.caption_id.tolist() == list(range(100, 107))
    assert image.caption.tolist() == corpus.captions[:7]


@pytest.fixture(scope="module")
def tiny(scenes_corpus_dir):
    """A corpus and two untrained models for it."""
    corpus = Corpus.open(scenes_corpus_dir, "test")
    tokenizer = models.word_piece(corpus.captions, 200)
    shared = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 16, "max_text_len": 24}
    fusion = models.new_vilt(models.ViltSize(num_hidden_layers=2, **shared), tokenizer)
    dual = models.new_dual(models.DualSize(num_vision_layers=1, num_text_layers=1, projection_dim=8, **shared), tokenizer)
    return corpus, fusion, dual


@torch.inference_mode()
def test_a_tiny_vilt_is_ranked_as_by_its_plain_scores(tiny):
    corpus, fusion, _ = tiny
    images = fusion.preprocess.images(corpus.images(range(6)))
    texts = fusion.preprocess.texts(corpus.captions[: corpus.captions_of(5).stop])
    rows = []
    for image in range(6):
        pixels = images.pixel_values[image].expand(len(texts), -1, -1, -1)
        mask = None if images.pixel_mask is None else images.pixel_mask[image].expand(len(texts), -1, -1)
        rows.append(fusion.score(pixels, texts.input_ids, texts.attention_mask, mask))
    counter = retrieval.RankCounter(
        torch.stack(rows)[corpus.caption_image[: len(texts)], range(len(texts))],
        corpus.caption_image[: len(texts)],
        margin=evaluation.FUSION_ROUNDING,
    )
    counter.add(torch.stack(rows))
    result = evaluation.evaluate(fusion, corpus.subset(6), batch_size=16)
    assert ranks_of(result) == (counter.ranks().text.tolist(), counter.ranks().image.tolist())


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """The tiny models on disk: the dual encoder as a finished run."""
    folder = tmp_path_factory.mktemp("models")
    models.save(tiny[1], folder / "vilt")
    models.save(tiny[2], folder / "run" / "model")
    (folder / "run" / "run.json").write_text("{}", encoding="utf-8")
    return folder


def run_eval(*arguments):
    from dcdctl.cli.app import app

    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_eval_prints_one_document_and_leaves_it_in_the_run(tiny, folders, scenes_corpus_dir, tmp_path):
    options = ["--rerank", folders / "vilt", "--depth", 4, "--ranks", tmp_path / "ranks.parquet", "--device", "cpu", "--json"]
    result = run_eval(folders / "run", "--data", scenes_corpus_dir, *options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["protocol"] == {"kind": "cascade", "depth": 4, "features": None, "ties": "count against the positive"}
    assert (document["images"], document["captions"], document["split"]) == (16, 80, "test")
    assert json.loads((folders / "run" / "cascade.json").read_text(encoding="utf-8")) == document
    assert not (folders / "run" / "result.json").exists()
    alone = run_eval(folders / "run", "--data", scenes_corpus_dir, "--device", "cpu", "--json")
    assert json.loads((folders / "run" / "result.json").read_text(encoding="utf-8")) == json.loads(alone.stdout)
    assert json.loads((folders / "run" / "cascade.json").read_text(encoding="utf-8")) == document
    assert len(pd.read_parquet(tmp_path / "ranks.parquet")) == 96


def test_eval_shows_a_table(folders, scenes_corpus_dir):
    result = run_eval(folders / "vilt", "--data", scenes_corpus_dir, "--max-images", 3, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "3 images, 15 captions" in result.stdout
    assert all(word in result.stdout for word in ("text retrieval", "image retrieval", "R@10", "rsum"))
    assert not (folders / "vilt" / "result.json").exists()


def test_eval_of_a_missing_run_says_what_to_do(scenes_corpus_dir, tmp_path):
    result = run_eval(tmp_path / "absent", "--data", scenes_corpus_dir)
    assert result.exit_code == 1
    assert "dcdctl distill" in result.stderr
    assert "absent" in result.stderr


def test_eval_refuses_to_rerank_with_a_dual_encoder(folders, scenes_corpus_dir):
    result = run_eval(folders / "run", "--data", scenes_corpus_dir, "--rerank", folders / "run")
    assert result.exit_code == 1
    assert "a fusion scorer is wanted" in result.stderr
