"""Co-attention scorers with `dual_init`: they start from a dual encoder over the same encoders and add its scaled
cosine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoders import save_text, save_vision
from open_inputs import OpenInputs
from plain_scores import plain_score
from tiny import make_teacher
from torch.testing import assert_close

from dcdctl.core import devices, models, training
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.models import FusionSize, ProjectionSize, States
from dcdctl.core.scoring import CorpusSource, open_or_build
from dcdctl.core.scoring import pairs as scoring_pairs
from dcdctl.core.training import TrainingJob, TrainingOptions, initial_model, recipe
from dcdctl.core.training.batches.batch import MicroBatch

SMALL = FusionSize(hidden_size=16, num_layers=2, num_heads=2, dropout=0.0)
IMAGES_P, TEXTS_P = torch.tensor([2, 0, 1, 0, 2, 1]), torch.tensor([0, 3, 1, 2, 3, 0])
COSINE = {
    "cosine.image_projection.weight",
    "cosine.image_projection.bias",
    "cosine.text_projection.weight",
    "cosine.text_projection.bias",
}


def make_dual(captions, folder, vision: str = "map", dropout: float = 0.0) -> models.FrozenDual:
    """A dual encoder, saved as `dual`, with a logit scale that differs from the initial one."""
    refs = save_vision(vision, folder / "vision"), save_text("bert", captions, folder / "text")
    dual = models.new_frozen_dual(*refs, ProjectionSize(projection_dim=8, dropout=dropout), max_text_len=12, seed=3)
    with torch.no_grad():
        dual.network.projections.logit_scale.fill_(2.0)
    models.save(dual, folder / "dual")
    return dual


def scorer_from(folder, size: FusionSize = SMALL, **changed) -> models.CoAttentionScorer:
    """A scorer over the encoders of the saved dual encoder, initialized from it."""
    options = {"max_text_len": 12, "dual_init": str(folder / "dual"), **changed}
    return models.new_coattention(str(folder / "vision"), str(folder / "text"), size, **options)


def with_noise(scorer: models.CoAttentionScorer) -> models.CoAttentionScorer:
    """The scorer with noise on its weights, so that the fusion layers contribute to scores."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in scorer.network.named_parameters():
            if not name.startswith(("vision.", "text.", "cosine.logit_scale")):
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return scorer


@pytest.fixture
def dual(captions, tmp_path):
    return make_dual(captions, tmp_path)


@torch.no_grad()
def test_before_training_scores_equal_those_of_the_dual_encoder(dual, pil_images, captions, tmp_path):
    scorer = scorer_from(tmp_path)
    images, texts = scorer.preprocess.images(pil_images), scorer.preprocess.texts(captions)
    num_images, num_texts = len(pil_images), len(captions)
    pairs = torch.arange(num_images).repeat_interleave(num_texts), torch.arange(num_texts).repeat(num_images)
    images_ID, texts_TD = dual(images, texts)
    expected_IT = dual.logit_scale * images_ID @ texts_TD.T
    scores_IT = scorer(images, texts, *pairs).view(num_images, num_texts)
    assert_close(scores_IT, expected_IT, rtol=1e-6, atol=1e-6)
    for dim in (0, 1):
        assert torch.equal(scores_IT.argsort(dim=dim, descending=True), expected_IT.argsort(dim=dim, descending=True))
    assert expected_IT.std() > 1e-2


@torch.no_grad()
def test_the_logit_scale_is_at_most_100(dual, tmp_path):
    cosine = scorer_from(tmp_path).network.cosine
    cosine.logit_scale.fill_(9.0)
    unit = torch.nn.functional.normalize(torch.ones(1, 8), dim=-1)
    assert_close(cosine.logits(unit, unit), torch.tensor([100.0]))


@pytest.mark.parametrize("layers", [[0, 1], [1]])
def test_a_student_trains_a_copy_of_the_cosine(dual, pil_images, captions, tmp_path, layers):
    teacher = with_noise(scorer_from(tmp_path))
    student = teacher.student(layers)
    batch = student.preprocess.images(pil_images), student.preprocess.texts(captions), IMAGES_P, TEXTS_P
    assert torch.equal(student(*batch), teacher(*batch)) == (len(layers) == 2)
    student.train()(*batch).square().sum().backward()
    trained = {name for name, parameter in student.network.named_parameters() if parameter.grad is not None}
    assert {*COSINE, "cosine.logit_scale"} < trained
    assert not any(
        name.startswith(("vision.", "text.", "image_transform", "text_transform", "modality")) for name in trained
    )
    storages = {parameter.data_ptr() for parameter in student.network.cosine.parameters()}
    assert storages.isdisjoint(parameter.data_ptr() for parameter in teacher.network.cosine.parameters())


@pytest.mark.parametrize("recomputes", [False, True])
def test_gradients_equal_those_of_each_pair_alone(dual, pil_images, captions, tmp_path, recomputes):
    reference, paired = (with_noise(scorer_from(tmp_path)) for _ in range(2))
    for scorer in (reference, paired):
        scorer.encoders.freeze()
        scorer.train()
    if recomputes:
        paired.checkpoint_activations()
    images, texts = reference.preprocess.images(pil_images), reference.preprocess.texts(captions)
    plain_score(
        reference, images.pixel_values[IMAGES_P], texts.input_ids[TEXTS_P], texts.attention_mask[TEXTS_P]
    ).square().sum().backward()
    paired(images, texts, IMAGES_P, TEXTS_P).square().sum().backward()
    gradients = {
        name: parameter.grad
        for name, parameter in paired.network.named_parameters()
        if name in {*COSINE, "cosine.logit_scale"}
    }
    assert len(gradients) == 5
    for name, gradient in gradients.items():
        assert_close(gradient, reference.network.get_parameter(name).grad, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_embeddings_are_float32_under_autocast(dual, pil_images, captions, tmp_path):
    scorer = scorer_from(tmp_path)
    features = (
        scorer.encoders.image_features(scorer.preprocess.images(pil_images)),
        scorer.encoders.text_features(scorer.preprocess.texts(captions)),
    )
    plain = scorer(*features, IMAGES_P, TEXTS_P)
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = scorer.encode_images(features[0]), scorer.encode_texts(features[1])
        rounded = scorer.score_pairs(images, texts, IMAGES_P, TEXTS_P)
    assert (images.vectors.dtype, texts.vectors.dtype, rounded.dtype) == (torch.float32,) * 3
    assert torch.equal(rounded, plain)  # the fusion adds 0 in any dtype


def test_operations_on_states_keep_the_vectors():
    vectors_ND = torch.arange(6.0).view(3, 2).requires_grad_()
    states = States(torch.zeros(3, 4, 5), torch.ones(3, 4, dtype=torch.bool), vectors_ND)
    assert states.take(torch.tensor([2, 0, 2])).vectors.tolist() == [[4, 5], [0, 1], [4, 5]]
    assert States.cat([states, states.take(torch.tensor([1]))]).vectors.tolist() == [[0, 1], [2, 3], [4, 5], [2, 3]]
    (room := states.room_for(4, 4)).put(torch.arange(1, 1 + len(states)), states)
    assert room.vectors.tolist() == [[0, 0], [0, 1], [2, 3], [4, 5]]
    index = torch.zeros(1, 1, dtype=torch.int64)
    moved = devices.on_device(MicroBatch(states, states, index, index, (), ()), torch.device("meta"))
    assert (moved.images.vectors.device.type, moved.texts.vectors.shape) == ("meta", (3, 2))


def test_pairs_of_a_corpus_score_the_same_from_features_on_disk(corpus, tmp_path):
    make_dual(corpus.captions, tmp_path)
    scorer = with_noise(scorer_from(tmp_path))
    features = open_or_build(tmp_path / "features", corpus, scorer)
    pairs = {"image_P": np.arange(40) % 7, "text_P": np.arange(40) * 3, "compute": Compute(batch_size=8)}
    expected = scoring_pairs.score_pairs(scorer, CorpusSource(corpus, scorer.preprocess), **pairs)
    assert np.allclose(scoring_pairs.score_pairs(scorer, features, **pairs), expected, atol=0.02)  # float16 features
    assert expected.std() > 0.1


def test_a_recipe_starts_from_a_dual_encoder_and_trains_cosine_and_fusion(corpus, tmp_path):
    dual = make_dual(corpus.captions, tmp_path, dropout=0.1)
    path = tmp_path / "pair.toml"
    path.write_text(
        f'[model]\nstart = "new"\nvision = "{tmp_path / "vision"}"\ntext = "{tmp_path / "text"}"\nfrozen_encoders = '
        "true\n"
        f'dual_init = "{tmp_path / "dual"}"\nhidden_size = 16\nnum_layers = 1\nnum_heads = 2\nmax_text_len = 12\n'
        "[loss]\nterms = { ranking = 1.0 }\n[batch]\nsize = 8\nrandom_negatives = 3\n[optimizer]\nlr = 1e-2\nsteps = "
        "4\n"
    )
    start = initial_model.make_model(recipe.load_recipe(str(path)), corpus.captions, None)
    assert torch.equal(start.network.cosine.image_projection.weight, dual.network.projections.image_projection.weight)
    assert start.network.cosine.logit_scale.item() == 2
    options = TrainingOptions(compute=Compute(features=tmp_path / "features"))
    inputs = OpenInputs(corpus, [], None)
    run = training.train_model(
        TrainingJob("finetune-teacher", str(path), [], tmp_path / "run"), inputs, options=options
    )
    trained = dict(models.load_fusion(run.folder).network.named_parameters())
    changed = {
        name for name, parameter in start.network.named_parameters() if not torch.equal(trained[name], parameter)
    }
    assert {*COSINE, "cosine.logit_scale", "rank_output.weight", "text_layers.0.feed_forward.up.weight"} <= changed
    assert not any(name.startswith(("vision.", "text.")) for name in changed)


def test_a_dual_init_that_does_not_fit_is_refused_and_named(dual, captions, tmp_path):
    with pytest.raises(
        ModelError,
        match=r"dual is a dual encoder over other encoders \(\w{8}\) than .*vision and .*text \(\w{8}\); give both",
    ):
        scorer_from(tmp_path, max_text_len=11)
    make_dual(captions, tmp_path / "other", "tokens")
    with pytest.raises(ModelError, match=r"other/dual is a dual encoder over other encoders"):
        scorer_from(tmp_path, dual_init=str(tmp_path / "other" / "dual"))
    size = models.DualSize(hidden_size=16, num_attention_heads=2, intermediate_size=16)
    models.save(models.new_dual(size, models.word_piece(captions)), tmp_path / "trained")
    with pytest.raises(
        ModelError,
        match=r"trained is a dual encoder whose own encoders were trained, expected one over frozen .*vision and "
        r".*text",
    ):
        scorer_from(tmp_path, dual_init=str(tmp_path / "trained"))
    models.save(make_teacher(captions), tmp_path / "fusion")
    with pytest.raises(ModelError, match="fusion is a fusion scorer, expected a dual encoder"):
        scorer_from(tmp_path, dual_init=str(tmp_path / "fusion"))
