"""Folders by model, read by their libraries; tests in fresh processes are in test_export.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from duals import gemma, save_dual
from encoders import save_text, save_vision
from open_clips import save_open_clip
from tiny import make_teacher

from dcdctl.core import models
from dcdctl.core.export import ExportJob, to_open_clip, to_sentence_transformers, to_transformers
from dcdctl.core.export import check as export_check
from dcdctl.core.export.check import Samples
from dcdctl.core.scoring import Vectors


@pytest.fixture(scope="module")
def samples(corpus) -> Samples:
    return Samples(corpus.images(range(3)), [*corpus.captions[:2], "a"], "a test")


@pytest.mark.parametrize(
    ("vision", "levels", "text"),
    [
        ("tokens", (0, 1), "bert"),
        ("map", (), "distilbert"),
        ("windows", (), "bert"),
        ("timm tokens", (), "bert"),
        ("clip", (1,), "bert"),
    ],
)
def test_the_saved_code_gives_the_vectors_of_the_model(vision, levels, text, corpus, samples, tmp_path):
    refs = save_vision(vision, tmp_path / "vision"), save_text(text, corpus.captions, tmp_path / "text")
    spec = models.FeatureSpec(levels=levels)
    pair = models.new_frozen_dual(*refs, models.ProjectionSize(projection_dim=8), max_text_len=20, features=spec)
    job = ExportJob(model="pair", out=tmp_path / "out", to="transformers")
    target = to_transformers.Transformers(job, pair, job.out)
    target.write()
    found, wanted = target.embed(samples), export_check.vectors_of(pair, samples)
    torch.testing.assert_close(found.images_ID, wanted.images_ID, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.texts_TD, wanted.texts_TD, atol=1e-6, rtol=0)


def test_scaled_embeddings_keep_the_effect_of_the_text_epsilon_of_vilt(corpus, samples, tmp_path):
    """Small embeddings are affected by the epsilon: unscaled, the scores would differ."""
    teacher = make_teacher(corpus.captions)
    embeddings = teacher.network.vilt.embeddings.text_embeddings
    with torch.no_grad():
        for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
            table.weight.mul_(0.02)
    wanted = to_transformers.scores_of(teacher, samples)
    to_transformers.write(teacher, tmp_path / "out")
    models.seal_again(tmp_path / "out")  # as `export` does
    torch.testing.assert_close(to_transformers.score(tmp_path / "out", teacher, samples), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        to_transformers.scores_of(models.load(tmp_path / "out"), samples), wanted, atol=1e-4, rtol=0
    )
    models.save(teacher, tmp_path / "as it is")
    assert (to_transformers.score(tmp_path / "as it is", teacher, samples) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("tokenizer", [None, gemma])
def test_sentence_transformers_pads_short_captions_without_a_mask_as_siglip_does(corpus, samples, tmp_path, tokenizer):
    """With Gemma's tokenizer it is a SigLIP 2, which reads capitals as small letters."""
    captions = corpus.captions
    siglip = models.load_dual(
        save_dual("SigLIP", captions, tmp_path / "siglip", tokenizer=tokenizer and tokenizer(captions))
    )
    samples = replace(samples, captions=list(map(str.upper, samples.captions)))
    job = ExportJob(model="siglip", out=tmp_path / "out", to="sentence-transformers")
    target = to_sentence_transformers.SentenceTransformers(job, siglip, job.out)
    target.write()
    wanted = export_check.vectors_of(siglip, samples).texts_TD
    torch.testing.assert_close(target.embed(samples).texts_TD, wanted, atol=1e-6, rtol=0)


def test_open_clip_alone_prepares_images_and_captions_as_the_model_does(corpus, samples, tmp_path):
    preprocess = models.load_dual(save_open_clip("open_clip SigLIP", corpus.captions, tmp_path)).preprocess
    (tmp_path / "out").mkdir()
    preprocess.self_contained().save(tmp_path / "out")
    images, texts = to_open_clip.preprocessing(tmp_path / "out")
    assert torch.equal(images(samples.images)["pixel_values"], preprocess.images(samples.images).pixel_values)
    assert torch.equal(texts(samples.captions)["input_ids"], preprocess.texts(samples.captions).input_ids)


def test_the_lowest_cosine_decides():
    east = torch.tensor([[1.0, 0.0]])
    both = Vectors(torch.cat([east, east]), east)
    check = export_check.compare_vectors(
        "int8", Vectors(torch.cat([east, torch.tensor([[0.99, 0.1411]])]), 3 * east), both, hint=""
    )
    assert check.lowest_cosine == pytest.approx(0.99, abs=1e-4)


def test_the_first_input_is_a_batch_of_its_own_so_that_padding_to_the_longest_shows(samples):
    def padded(captions):
        return torch.full((len(captions), 1), float(max(map(len, captions))))

    found = export_check.embed_in_two_batches(
        samples, lambda images: torch.tensor([[image.width] for image in images]), padded
    )
    first, *rest = map(len, samples.captions)
    assert found.texts_TD.flatten().tolist() == [first, max(rest), max(rest)]
    assert found.images_ID.flatten().tolist() == [image.width for image in samples.images]
    one = Samples(samples.images[:1], samples.captions[:1], "a test")
    assert export_check.embed_in_two_batches(
        one, lambda images: torch.ones(len(images), 1), padded
    ).texts_TD.tolist() == [[first]]


def test_logits_may_differ_by_rounding_alone():
    wanted = torch.tensor([3.0, -2.0])
    assert export_check.compare_logits(wanted + 2**-12, wanted).largest_difference == 2**-12


def test_samples_come_from_the_split_that_was_evaluated_or_from_scenes(scenes_corpus_dir):
    found = export_check.samples_of(scenes_corpus_dir, "val")
    assert (len(found.images), len(found.captions), found.in_words) == (8, 8, "8 images of scenes, split val")
    assert export_check.samples_of(scenes_corpus_dir, "restval").in_words == "16 images of scenes, split test"
    drawn = export_check.samples_of(None, None)
    assert [image.mode for image in drawn.images] == ["RGB"] * 32
    assert len(set(drawn.captions)) > 16


def test_open_clip_embeds_without_the_statistics_of_its_batch(corpus, samples, tmp_path):
    """Batch normalization of an image alone and of three images would differ."""
    dual = models.load_dual(save_open_clip("open_clip with timm", corpus.captions, tmp_path / "from"))
    target = to_open_clip.OpenClip(ExportJob("clip", tmp_path / "out", to="open-clip"), dual, tmp_path / "out")
    target.write()
    found, wanted = target.embed(samples), export_check.vectors_of(dual, samples)
    torch.testing.assert_close(found.images_ID, wanted.images_ID, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.texts_TD, wanted.texts_TD, atol=1e-5, rtol=0)
