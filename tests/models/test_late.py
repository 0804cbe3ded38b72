"""Late interaction: MaxSim against a plain loop, sentence-transformers' own and hand-worked numbers; what is computed
in blocks, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from families import FAMILIES, READ_ONLY, late, refs
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from sentence_transformers.util import maxsim, mean_maxsim
from tiny import make_corpus
from torch.testing import assert_close
from training_steps import TINY_DUAL, distill

from dcdctl.core import models
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.export.export import export_model
from dcdctl.core.export.target import ExportJob
from dcdctl.core.models.families import late_dual
from dcdctl.core.models.inputs import States
from dcdctl.core.models.networks import maxsim as ours
from dcdctl.core.models.networks.maxsim import all_maxsims, pair_maxsims
from dcdctl.core.models.references.folders import LATE_FILE
from dcdctl.core.scoring import CorpusSource, encode_corpus
from dcdctl.core.training import TrainingOptions, initial_model, load_recipe

CAPTIONS = ["a red car", "a small dog in the deep snow", "two people"]


def tokens(seed: int, counts: list[int], width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors, zeros for padding, and the mask; `counts` are the tokens of each item."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(len(counts), max(counts), width, generator=generator), dim=-1)
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return vectors * mask[:, :, None], mask


IMAGES, TEXTS = tokens(0, [4, 7, 3, 6]), tokens(1, [2, 5, 1, 3, 4])


def plain(images, texts, *, is_mean: bool) -> torch.Tensor:
    """One pair after another."""
    scores = torch.zeros(len(images[0]), len(texts[0]))
    for i, (image, real) in enumerate(zip(*images, strict=True)):
        for t, (text, read) in enumerate(zip(*texts, strict=True)):
            largest = torch.stack([max(token @ other for other in image[real]) for token in text[read]])
            scores[i, t] = largest.mean() if is_mean else largest.sum()
    return scores


def test_maxsim_of_a_pair_by_hand():
    # The first token of the text is nearest to the second of the image (0.8), the second to the first (1.0).
    image = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    text = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert_close(all_maxsims(image, None, text, mask), torch.tensor([[0.9]]))
    assert_close(pair_maxsims(image, None, text, mask, is_mean=False), torch.tensor([1.8]))


@pytest.mark.parametrize("is_mean", [True, False])
def test_maxsim_is_that_of_a_loop_and_of_sentence_transformers(is_mean):
    found = all_maxsims(*IMAGES, *TEXTS, is_mean=is_mean)
    assert_close(found, plain(IMAGES, TEXTS, is_mean=is_mean))
    theirs = (mean_maxsim if is_mean else maxsim)(TEXTS[0], IMAGES[0], a_mask=TEXTS[1], b_mask=IMAGES[1])
    assert_close(found, theirs.T)
    rows, columns = torch.arange(4).repeat(5), torch.arange(5).repeat_interleave(4)
    pairs = pair_maxsims(IMAGES[0][rows], IMAGES[1][rows], TEXTS[0][columns], TEXTS[1][columns], is_mean=is_mean)
    assert_close(pairs, found[rows, columns])


@pytest.mark.parametrize("limit", [1, 200, 1 << 20])
def test_blocks_change_neither_scores_nor_gradients(monkeypatch, limit):
    plain_block, sizes = ours._block, []

    def block(images_IND, mask_IN, texts_TLD, *others):
        sizes.append((images_IND.shape[:2].numel(), texts_TLD.shape[:2].numel()))
        return plain_block(images_IND, mask_IN, texts_TLD, *others)

    monkeypatch.setattr(ours, "_block", block)

    def of_limit(limit: int) -> list[torch.Tensor]:
        monkeypatch.setattr(ours, "PRODUCTS_AT_A_TIME", limit)
        sizes.clear()
        leaves = [side[0].clone().requires_grad_() for side in (IMAGES, TEXTS)]
        scores = all_maxsims(leaves[0], IMAGES[1], leaves[1], TEXTS[1])
        # Of these leaves alone, as the second of two processes computes gradients.
        return [scores.detach(), *torch.autograd.grad(scores.square().sum(), leaves)]

    for found, expected in zip(of_limit(limit), of_limit(1 << 30), strict=True):
        assert_close(found, expected)
    of_limit(limit)
    # Seven tokens of an image with five of a text are the least.
    assert max(tokens * words for tokens, words in sizes) <= max(limit, 7 * 5)


@pytest.mark.parametrize("factor", [1, 2, 3, 30])
def test_pooled_tokens_are_those_of_sentence_transformers(factor):
    vectors, _ = tokens(2, [9, 4, 1, 12, 7])
    theirs = HierarchicalTokenPooling(float(factor), num_protected_tokens=0).pool(vectors)
    for found, expected in zip(models.pool_tokens(vectors, factor), theirs, strict=True):
        found, expected = (each[each.ne(0).any(dim=1)] for each in (found, expected))
        assert len(found) == len(expected)
        # In another order.
        assert_close(found[(found @ expected.T).argmax(dim=0)], expected)


def test_a_text_without_tokens_scores_zero():
    none = torch.zeros(1, 3, dtype=torch.bool)
    assert all_maxsims(*IMAGES, TEXTS[0][:1, :3], none[:, : TEXTS[0].shape[1]]).eq(0).all()


@pytest.mark.parametrize("is_pooled", [True, False])
def test_few_pairs_and_all_pairs_have_the_same_logits(tmp_path, is_pooled):
    model = late(FAMILIES["dual"](CAPTIONS, tmp_path), is_pooled=is_pooled)
    corpus = make_corpus(tmp_path / "corpus", [CAPTIONS, CAPTIONS[:2], CAPTIONS[1:]])
    encoded = encode_corpus(model, CorpusSource(corpus, model.preprocess), ON_CPU)
    images, texts = encoded.images(range(3)), encoded.texts(range(7))
    rows, columns = torch.arange(3).repeat_interleave(7), torch.arange(7).repeat(3)
    dense = model.score_pairs(images, texts, rows, columns)
    # One pair of twenty-one is less than a fourth of them.
    alone = [model.score_pairs(images, texts, rows[[0, k]], columns[[6, k]])[1] for k in range(21)]
    assert_close(torch.stack(alone), dense)
    assert dense.unique().numel() > 6


@pytest.mark.parametrize("is_mean", [True, False])
@pytest.mark.parametrize("is_pooled", [True, False])
def test_logits_are_the_scaled_maxsim_of_real_tokens_and_the_scaled_cosine(tmp_path, monkeypatch, is_pooled, is_mean):
    model = late(FAMILIES["dual"](CAPTIONS, tmp_path), is_pooled=is_pooled)
    monkeypatch.setattr(model, "is_mean", is_mean)
    monkeypatch.setattr("dcdctl.core.models.late.PAIRS_AT_A_TIME", 2)
    vectors = [torch.nn.functional.normalize(torch.randn(len(side[0]), 8), dim=-1) for side in (IMAGES, TEXTS)]
    # The product with padding is larger than any with a token.
    images = States(IMAGES[0].masked_fill(~IMAGES[1][:, :, None], 9.0), IMAGES[1], vectors[0])
    texts = States(*TEXTS, vectors[1])
    expected = model.logit_scale * plain(IMAGES, TEXTS, is_mean=is_mean)
    assert (model.vectors_scale is not None) == is_pooled
    if is_pooled:
        assert model.vectors_scale.item() > 1.5
        expected = expected + model.vectors_scale * vectors[0] @ vectors[1].T
    rows, columns = torch.arange(4).repeat_interleave(5), torch.arange(5).repeat(4)
    # All at once, and two pairs at a time.
    for factor in (4, 0):
        monkeypatch.setattr("dcdctl.core.models.late.DENSE_FACTOR", factor)
        assert_close(model.score_pairs(images, texts, rows, columns), expected.flatten())


def test_the_scale_is_learned_and_ends_at_100(tmp_path):
    model = late(FAMILIES["dual"](CAPTIONS, tmp_path))
    with torch.no_grad():
        model.tokens.logit_scale.fill_(9.0)
    assert model.logit_scale.item() == 100.0


def test_with_positions_equal_tokens_at_other_places_have_other_vectors(tmp_path):
    dual = FAMILIES["dual"](CAPTIONS, tmp_path)
    without, model = (late(dual, position_norm=norm) for norm in (0.0, 0.7))
    assert without.tokens.positions is None
    assert_close(model.tokens.images.weight, without.tokens.images.weight)
    lengths_N = model.tokens.positions.norm(dim=1)
    assert 0.4 < lengths_N.mean() < 1.0
    mask = torch.ones(1, len(lengths_N), dtype=torch.bool)
    states = States(torch.ones(1, len(lengths_N), 16), mask)
    projected = torch.nn.functional.normalize(model.tokens.images(states.tokens[0, 0]), dim=0)
    found = model.tokens.vectors(model.tokens.images, states, model.tokens.positions).tokens[0]
    for vector, position in zip(found, model.tokens.positions, strict=True):
        assert_close(vector, (projected + position) / (projected + position).norm())


def test_positions_need_images_of_one_size(tmp_path):
    with pytest.raises(ModelError, match=r"model\.position_norm is 0\.7, and the images of this model have grids"):
        late(FAMILIES["SigLIP 2"](CAPTIONS, tmp_path), position_norm=0.7)


def test_what_late_interaction_has_not_is_an_error(tmp_path):
    model = late(FAMILIES["dual"](CAPTIONS, tmp_path))
    models.save(model, tmp_path / "late")
    with pytest.raises(ModelError, match="is a late-interaction model, expected a dual encoder"):
        models.load_dual(tmp_path / "late")
    assert not any(hasattr(model, name) for name in ("layers", "student", "groups_by_image"))
    with pytest.raises(ModelError, match="no student of fewer layers"):
        initial_model.make_model(load_recipe("tiny-student", ["model.layers=[0]"]), CAPTIONS, model)
    with pytest.raises(ModelError, match="gives no state for each token"):
        models.new_late(READ_ONLY["SentenceTransformer"](CAPTIONS, tmp_path / "encoder"), 4, is_pooled=True)
    (tmp_path / "late" / "dcdctl.json").unlink()
    with pytest.raises(ModelError, match=r"has late_interaction\.safetensors and no dcdctl\.json"):
        models.load(tmp_path / "late")


FORMS = "the forms for token vectors are those of sentence-transformers and onnx"


@pytest.mark.parametrize(
    ("to", "family", "is_pooled", "reason", "hint"),
    [
        ("transformers", "dual", False, FORMS, "export it with --to onnx"),
        ("open-clip", "dual", False, FORMS, "export it with --to onnx"),
        ("open-clip", "open_clip SigLIP", False, FORMS, "export it with --to onnx"),
        ("onnx", "dual", True, "the cosine of whole vectors counts too", "read it with dcdctl"),
        ("onnx", "MultiVectorEncoder", False, "its own library reads its folder", "read it with dcdctl"),
        ("sentence-transformers", "dual", True, "the cosine of whole vectors counts too", "read it with dcdctl"),
        ("sentence-transformers", "frozen dual", False, "gives the token states of dcdctl-encoder-dual", "--to onnx"),
        ("sentence-transformers", "open_clip SigLIP", False, "gives the token states of open_clip", "--to onnx"),
        ("sentence-transformers", "SigLIP 2", False, "its images have padding, which no module there", "--to onnx"),
        ("sentence-transformers", "MultiVectorEncoder", False, "its own library reads its", "read it with dcdctl"),
    ],
)
def test_an_export_that_cannot_hold_a_late_model_says_why(to, family, is_pooled, reason, hint, tmp_path):
    model = (FAMILIES | READ_ONLY)[family](CAPTIONS, tmp_path / "parts")
    models.save(model if model.kind == "late" else late(model, is_pooled=is_pooled), tmp_path / "late")
    said = f"is a late-interaction model, which is not exported to {to}: .*{reason}"
    with pytest.raises(ModelError, match=said) as refused:
        export_model(ExportJob(model=str(tmp_path / "late"), out=tmp_path / "out", to=to))
    assert hint in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_its_folder_is_that_of_its_dual_encoder_too(tmp_path):
    model = late(FAMILIES["dual"](CAPTIONS, tmp_path))
    models.save(model, tmp_path / "late")
    (tmp_path / "late" / "late_interaction.safetensors").unlink()
    (tmp_path / "late" / "dcdctl.json").unlink()
    assert models.load_dual(tmp_path / "late").digest == model.as_dual.digest


def test_a_late_student_continues_from_a_late_run(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", [[caption] for caption in CAPTIONS * 4], has_colors=True)
    first = distill(corpus, tmp_path / "first", *TINY_DUAL, "model.kind=late", "model.token_dim=4", "optimizer.steps=1")
    more = [word for word in TINY_DUAL if not word.startswith("model.")]
    start = f"model.start={first.model_folder}"
    second = distill(corpus, tmp_path / "second", *more, "model.kind=late", "model.layers=[]", start,
                     "optimizer.steps=1", "optimizer.lr=1e-12")  # fmt: skip
    expected = models.load(first.model_folder).state_dict()
    for name, weight in models.load(second.model_folder).state_dict().items():
        assert_close(weight, expected[name])


def test_a_late_student_is_averaged_with_a_late_start_alone(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", [[caption] for caption in CAPTIONS * 4], has_colors=True)
    more = [word for word in TINY_DUAL if not word.startswith("model.")]
    sets = [*more, "model.kind=late", "model.layers=[]", "optimizer.steps=2", "model.average_with_start=0.25"]
    models.save(late(FAMILIES["dual"](CAPTIONS, tmp_path)), tmp_path / "start")
    models.save(FAMILIES["dual"](CAPTIONS, tmp_path), tmp_path / "dual")
    run = distill(corpus, tmp_path / "run", *sets, f"model.start={tmp_path / 'start'}")
    trained = distill(corpus, tmp_path / "trained", *sets[:-1], f"model.start={tmp_path / 'start'}")
    start, last = (models.load(folder).state_dict() for folder in (tmp_path / "start", trained.model_folder))
    for name, weight in models.load(run.model_folder).state_dict().items():
        if weight.is_floating_point():
            assert_close(weight, 0.25 * start[name] + 0.75 * last[name])
    assert not torch.equal(start["network.tokens.texts.weight"], last["network.tokens.texts.weight"])
    with pytest.raises(ModelError, match="is a dual encoder, expected a late-interaction model"):
        distill(corpus, tmp_path / "other", *sets, f"model.start={tmp_path / 'dual'}")


def test_a_late_student_reads_all_tokens_of_stored_features(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", [[caption] for caption in CAPTIONS * 4], has_colors=True)
    vision, text = refs(corpus.captions, tmp_path, "tokens")
    more = [word for word in TINY_DUAL if not word.startswith("model.")]
    sets = [*more, "model.kind=late", "model.layers=[]", "model.start=new", "model.frozen_encoders=true",
            f"model.vision={vision}", f"model.text={text}", "model.max_text_len=12", "model.position_norm=0.7",
            "optimizer.steps=2"]  # fmt: skip
    losses = []
    for features in (None, tmp_path / "features"):
        options = TrainingOptions(compute=Compute(features=features))
        run = distill(corpus, tmp_path / f"run-{len(losses)}", *sets, options=options)
        losses.append([line["loss"] for line in run.metrics()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]  # rounded to float16


def test_a_saved_late_model_without_a_weight_is_refused(tmp_path):
    models.save(late(FAMILIES["dual"](CAPTIONS, tmp_path)), tmp_path)
    weights, saved = load_file(tmp_path / LATE_FILE), json.loads((tmp_path / "dcdctl.json").read_text())
    weights.pop("logit_scale")
    save_file(weights, tmp_path / LATE_FILE)
    with pytest.raises(ModelError, match="logit_scale"):
        late_dual.load(str(tmp_path), {}, saved)


def test_encoded_images_and_texts_are_not_encoded_again():
    model = late(FAMILIES["dual"](CAPTIONS, None))
    images = model.encode_images(model.preprocess.images([Image.new("RGB", (64, 64), "red")]))
    texts = model.encode_texts(model.preprocess.texts(CAPTIONS[:2]))
    assert model.encode_images(images) is images
    assert model.encode_texts(texts) is texts
