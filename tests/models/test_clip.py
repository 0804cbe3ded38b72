"""Dual encoders of transformers, named and not named: the vectors and scores of their own library, texts padded and cut
as in their training."""

from __future__ import annotations

import logging

import pytest
import torch
from duals import DUALS, OTHERS, save_dual, vectors_of
from sentence_transformers import SentenceTransformer
from tiny import make_corpus
from torch.nn import functional
from torch.testing import assert_close
from training_steps import TINY_DUAL, distill
from transformers import AutoConfig, AutoModel

from dcdctl.core import models
from dcdctl.core.errors import ModelError
from dcdctl.core.evaluation import evaluate_model
from dcdctl.core.models.networks import backbones

CAPTIONS = [
    "a dog runs over grass",
    "two people",
    "a man with a red hat stands in front of a house and looks at the sea",
    "a dog",
]


@pytest.fixture(scope="module", params=[*DUALS, *OTHERS])
def folder(request, tmp_path_factory):
    return save_dual(request.param, CAPTIONS, tmp_path_factory.mktemp("dual"))


def test_vectors_equal_those_of_sentence_transformers(folder, photos):
    images_ID, texts_TD = vectors_of(models.load_dual(folder), photos, CAPTIONS)
    oracle = SentenceTransformer(
        str(folder), processor_kwargs={"backend": "pil"}, model_kwargs={"attn_implementation": "eager"}, device="cpu"
    )
    expected = torch.from_numpy(oracle.encode(photos, normalize_embeddings=True))
    assert_close(images_ID, expected, rtol=1e-5, atol=1e-5)
    if (
        "siglip" not in AutoModel.from_pretrained(folder).config.model_type
    ):  # that library pads SigLIP's captions to the longest
        assert_close(
            texts_TD, torch.from_numpy(oracle.encode(CAPTIONS, normalize_embeddings=True)), rtol=1e-5, atol=1e-5
        )
    assert len(images_ID.round(decimals=3).unique(dim=0)) == len(texts_TD.round(decimals=3).unique(dim=0)) == 4


@torch.no_grad()
def test_logits_equal_those_of_the_plain_forward_pass(folder, photos):
    # Plain attention: the fused one of AIMv2 has no causal mask for captions without padding.
    model, network = models.load_dual(folder), AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    is_siglip = "siglip" in network.config.model_type
    length = network.config.text_config.max_position_embeddings
    padding = {"padding": "max_length", "max_length": length} if is_siglip else {"padding": "longest"}
    texts = dict(
        model.preprocess.tokenizer(CAPTIONS, truncation=True, return_tensors="pt", **({"max_length": length} | padding))
    )
    if is_siglip:
        del texts["attention_mask"]
    images = model.preprocess.image_processor(images=photos, return_tensors="pt")
    if network.config.model_type == "align":  # its forward pass divides by the temperature in place
        images_ID, texts_TD = (
            network.get_image_features(**images).pooler_output,
            network.get_text_features(**texts).pooler_output,
        )
        expected_IT = (
            functional.normalize(images_ID, dim=-1) @ functional.normalize(texts_TD, dim=-1).T / network.temperature
        )
    else:
        expected_IT = network(**images, **texts).logits_per_image
    pairs = models.PairBatch(
        model.preprocess.images(photos),
        model.preprocess.texts(CAPTIONS),
        torch.arange(4)[:, None],
        torch.arange(4)[:, None],
    )
    _, all_IT = model.logits(model.outputs(pairs), pairs)
    assert_close(all_IT, expected_IT, rtol=1e-5, atol=1e-4)
    scorer, rows, columns = models.load_scorer(folder), torch.tensor([0, 2, 2]), torch.tensor([3, 0, 1])
    found_P = scorer.score_pairs(scorer.encode_images(pairs.images), scorer.encode_texts(pairs.texts), rows, columns)
    assert_close(found_P, expected_IT[rows, columns], rtol=1e-5, atol=1e-4)


def test_long_captions_are_cut_to_the_length_of_training(folder):
    model = models.load_dual(folder)
    # 20 are what the tokenizer of a family that is not named says.
    expected = {"chinese_clip": 52, "align": 64, "aimv2": 20, "altclip": 20, "clipseg": 20}
    expected = expected.get(model.config["model_type"], 24)
    assert model.preprocess.texts([" ".join(["dog"] * 200)]).input_ids.shape == (1, expected)


def test_a_size_that_the_weights_fix_is_refused(folder):
    with pytest.raises(ModelError, match="takes no image_size; it takes max_text_len, tokenizer"):
        models.load_dual(folder, {"image_size": 64})


@pytest.fixture(params=OTHERS)
def other(request, tmp_path):
    return save_dual(request.param, CAPTIONS, tmp_path / "other", num_layers=1)


def test_a_dual_encoder_without_a_family_is_a_teacher_and_the_start_of_a_late_student(other, tmp_path, monkeypatch):
    corpus = make_corpus(tmp_path / "corpus", [[caption] for caption in CAPTIONS * 3], has_colors=True)
    assert models.check_ref(other) == "dual"
    said = []
    monkeypatch.setattr(logging.getLogger("dcdctl"), "warning", lambda text, *values: said.append(text % values))
    teacher = models.load_scorer(other)
    kind = AutoConfig.from_pretrained(other).model_type
    assert said == [f"{other} loads; its family ({kind}) is not tested"]
    assert evaluate_model(teacher, corpus).rsum > 0
    sets = [word for word in TINY_DUAL if not word.startswith("model.")]
    sets += ["model.kind=late", "model.layers=[]", "model.token_dim=4", f"model.start={other}", "optimizer.steps=1"]
    run = distill(corpus, tmp_path / "run", *sets)
    late = models.load(run.model_folder)
    assert late.encode_texts(late.preprocess.texts(CAPTIONS[:2])).mask.sum(dim=1).tolist() == [7, 4]
    assert late.config["model_type"] == kind


def test_vectors_that_are_not_the_networks_own_are_refused(tmp_path, monkeypatch):
    folder = save_dual("AltCLIP", CAPTIONS, tmp_path / "clip", num_layers=1)
    # Without a mask a caption depends on its padding, which the model attends to.
    monkeypatch.setattr(backbones, "attention_mask", lambda encoder, texts: None)
    with pytest.raises(ModelError, match="is a altclip model, whose vectors are not those of get_image_features"):
        models.load(folder)


def test_captions_without_positions_for_them_are_refused(tmp_path):
    folder = save_dual("AltCLIP", CAPTIONS, tmp_path / "clip", num_layers=1)
    with pytest.raises(ModelError, match=r"does not embed an image, or a caption of 24 tokens: .* max_text_len=N"):
        models.load(folder, {"max_text_len": 24})
    assert models.load(folder, {"max_text_len": 22}).preprocess.max_text_len == 22
