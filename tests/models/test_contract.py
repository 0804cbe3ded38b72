"""The contract of the kinds of model (models/fusion.py, models/late.py, models/dual.py), checked for every family
(tests/support/families.py)."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES, READ_ONLY, with_noise
from PIL import Image
from plain_scores import plain_score
from torch.testing import assert_close

from dcdctl.core import files, models, scoring
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import InputError, ModelError
from dcdctl.core.models import DualScorer, PairBatch, States
from dcdctl.core.models.networks.over_encoders import Encoders

# Each of three images with two of four captions; all rows differ.
IMAGE_IX = torch.tensor([[0, 0], [1, 1], [2, 2]])
TEXT_IX = torch.tensor([[0, 3], [1, 0], [2, 1]])
WITHOUT_DROPOUT = ("clip", "metaclip_2", "siglip", "siglip2", "open_clip")
"""Types of dual encoders whose configuration has no dropout but that of attention probabilities."""
of_all_families = pytest.mark.parametrize("model", [*FAMILIES, *READ_ONLY], indirect=True)


@pytest.fixture(scope="module")
def made(captions, tmp_path_factory):
    """A model of a family and its state, made once."""

    @cache
    def make(name):
        model = with_noise({**FAMILIES, **READ_ONLY}[name](captions, tmp_path_factory.mktemp("family")))
        return model, state_of(model)

    return make


@pytest.fixture(params=FAMILIES)
def model(request, made):
    """A random model of each family, with weights large enough that scores depend on the inputs. A test leaves it as it
    was."""
    model, state = made(request.param)
    yield model
    assert state_of(model) == state, "a test that changes the model takes `own`"


@pytest.fixture
def own(model):
    """A copy of it, for a test that changes it."""
    return copy.deepcopy(model)


def state_of(model) -> tuple[object, ...]:
    """What a test could change in a model."""
    modes = [(name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()]
    parameters = [
        (name, parameter.requires_grad, parameter.grad is None) for name, parameter in model.named_parameters()
    ]
    return model.digest, modes, parameters


@pytest.fixture
def pairs(model, pil_images, captions) -> PairBatch:
    return PairBatch(model.preprocess.images(pil_images), model.preprocess.texts(captions), IMAGE_IX, TEXT_IX)


@torch.no_grad()
def logits_of(model, pairs: PairBatch) -> torch.Tensor:
    return model.logits(model.outputs(pairs), pairs)[0]


@of_all_families
def test_logits_equal_those_of_each_pair_alone(model, pairs):
    logits_RC = logits_of(model, pairs)
    with torch.no_grad():
        if model.kind == "dual":
            images_ID, texts_TD = model.embed_images(pairs.images), model.embed_texts(pairs.texts)
            assert images_ID.shape == (3, model.embedding_dim)
            assert_close(torch.cat([images_ID, texts_TD]).norm(dim=1), torch.ones(7))
            bias = 0 if model.logit_bias is None else model.logit_bias
            alone = model.logit_scale * (images_ID[IMAGE_IX] * texts_TD[TEXT_IX]).sum(dim=-1) + bias
        elif pairs.images.grid is not None:  # `score` takes images of one size
            zero = torch.zeros(1, 1, dtype=torch.long)
            each = zip(IMAGE_IX.flatten().tolist(), TEXT_IX.flatten().tolist(), strict=True)
            alone = torch.cat(
                [
                    logits_of(
                        model, PairBatch(pairs.images[image : image + 1], pairs.texts[text : text + 1], zero, zero)
                    )
                    for image, text in each
                ]
            ).view(3, 2)
        else:
            rows = IMAGE_IX.flatten(), TEXT_IX.flatten()
            inputs = (
                pairs.images.pixel_values[rows[0]],
                pairs.texts.input_ids[rows[1]],
                pairs.texts.attention_mask[rows[1]],
            )
            area = None if pairs.images.pixel_mask is None else pairs.images.pixel_mask[rows[0]]
            alone = plain_score(model, *inputs, area).view(3, 2)
    assert_close(logits_RC, alone, rtol=1e-4, atol=1e-4)
    assert logits_RC.flatten().unique().numel() == 6


@of_all_families
def test_a_model_travels_to_another_process(model, pairs):
    arrived = pickle.loads(pickle.dumps(model))
    assert arrived.digest == model.digest
    # Not equal: where the weights of an ALIGN lie in memory decides how a product is rounded, also in a copy.
    assert_close(logits_of(arrived, pairs), logits_of(model, pairs), rtol=1e-6, atol=1e-6)


@of_all_families
def test_score_gives_the_logits_of_all_images_with_all_texts(model, scenes_corpus_dir, tmp_path):
    corpus = Corpus.open(scenes_corpus_dir, "test")
    texts, opened = corpus.captions[:4], [corpus.image(number) for number in range(3)]
    opened[1] = opened[1].resize((40, 56))  # a batch of several sizes
    buffer = io.BytesIO()
    opened[1].save(buffer, "PNG")
    opened[0].save(tmp_path / "a.png")
    logits_IT = model.score([tmp_path / "a.png", buffer.getvalue(), opened[2]], texts, batch_size=2)
    scorer = DualScorer(model) if model.has_one_vector else model
    for row, image in enumerate(opened):
        with torch.no_grad():
            states = scorer.encode_images(model.preprocess.images([image]))
            text_states = scorer.encode_texts(model.preprocess.texts(texts))
            alone_T = scorer.score_pairs(states, text_states, torch.zeros(4, dtype=torch.long), torch.arange(4))
        np.testing.assert_allclose(logits_IT[row], alone_T, rtol=1e-4, atol=1e-4)
    assert (logits_IT.shape, logits_IT.dtype) == ((3, 4), np.float32)
    # As `dcdctl eval` scores a corpus.
    image_P, text_P = np.repeat([0, 2], 4), np.tile(np.arange(4), 2)
    scored_P = scoring.score_pairs(
        scorer, scoring.CorpusSource(corpus, model.preprocess), image_P, text_P, compute=Compute()
    )
    np.testing.assert_allclose(logits_IT[[0, 2]].flatten(), scored_P, rtol=1e-4, atol=1e-4)


def test_score_takes_lists_of_images_that_can_be_read(captions, tmp_path):
    own = FAMILIES["dual"](captions, tmp_path)
    (tmp_path / "no.png").write_bytes(b"no image")
    image = Image.new("RGB", (40, 40))
    assert own.score([], ["a dog"]).shape == (0, 1)
    assert own.score([image], []).shape == (1, 0)
    own.train()
    # Without dropout, and then as it was.
    assert own.score([image], ["a dog"]) == own.score([image], ["a dog"])
    assert own.training
    for images, texts, message in (
        (image, ["a dog"], "score takes lists of images and of texts; put a single one in brackets"),
        ([image], "a dog", "score takes lists"),
        ([tmp_path / "absent.png"], ["a dog"], "absent.png cannot be read"),
        ([str(tmp_path / "no.png")], ["a dog"], "no.png cannot be used"),
        ([b"no image"], ["a dog"], "the image in memory cannot be used"),
    ):
        with pytest.raises(InputError, match=message):
            own.score(images, texts)
    assert own.training


@of_all_families
def test_only_a_model_that_encodes_items_apart_returns_the_logits_of_all_pairs(model, pairs):
    with torch.no_grad():
        logits_RC, all_IT = model.logits(model.outputs(pairs), pairs)
    assert (all_IT is None) == (model.as_dual is None)
    if all_IT is not None:
        assert torch.equal(all_IT[IMAGE_IX, TEXT_IX], logits_RC)


@of_all_families
def test_outputs_of_micro_batches_equal_rows_of_the_outputs_of_the_batch(model, pairs, pil_images, captions):
    preprocess = model.preprocess
    with torch.no_grad():
        expected = model.outputs(pairs)
        if model.as_dual is not None:
            parts = [PairBatch(preprocess.images(pil_images[:1]), preprocess.texts(captions[:3]), IMAGE_IX, TEXT_IX)]
            parts.append(
                PairBatch(preprocess.images(pil_images[1:]), preprocess.texts(captions[3:]), IMAGE_IX, TEXT_IX)
            )
        else:
            parts = [
                dataclasses.replace(pairs, image_ix_RC=IMAGE_IX[rows], text_ix_RC=TEXT_IX[rows])
                for rows in (slice(0, 1), slice(1, 3))
            ]
        joined = [torch.cat(tensors) for tensors in zip(*map(model.outputs, parts), strict=True)]
    assert len(joined) == len(expected)
    for tensor, expected_tensor in zip(joined, expected, strict=True):
        assert expected_tensor.dtype == torch.float32
        assert_close(tensor, expected_tensor, rtol=1e-4, atol=1e-5)


@of_all_families
@torch.no_grad()
def test_no_pairs_give_no_logits(model, pairs):
    no_pairs = torch.zeros(0, 2, dtype=torch.long)
    assert logits_of(model, dataclasses.replace(pairs, image_ix_RC=no_pairs, text_ix_RC=no_pairs)).shape == (0, 2)


@of_all_families
def test_calibration_is_the_identity_before_training(model):
    logits = torch.tensor([-3.0, 0.25, 7.0])
    assert torch.equal(model.calibrate(logits), logits)


@of_all_families
def test_the_digest_depends_on_every_scoring_weight_and_not_on_the_mode(model):
    digest = model.digest
    assert model.train().digest == model.eval().digest == digest
    # One weight of each kind of each part: every digest is over all weights, and a family has hundreds.
    first = {(*name.split(".")[:2], name.rsplit(".", 1)[-1]): name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if name not in first.values():
            continue
        changed = copy.deepcopy(parameter.data)
        with torch.no_grad():
            parameter.view(-1)[0] += 1
        assert (model.digest == digest) == name.startswith("calibration."), name
        parameter.data.copy_(changed)
    assert model.digest == digest


def test_dropout_acts_in_train_mode_only_is_saved_and_is_no_part_of_the_digest(own, pairs, tmp_path):
    if own.kind != "fusion" and own.config["model_type"] in WITHOUT_DROPOUT:
        with pytest.raises(ModelError, match="has dropout that can be set"):
            own.set_dropout(0.25)
        return
    if own.encoders is not None:
        own.encoders.freeze()  # trained ones keep their own
    digest, expected = own.digest, logits_of(own, pairs)
    own.set_dropout(0.25)
    models.save(own, tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    for changed in (own, loaded):
        if changed.encoders is not None:
            changed.encoders.freeze()
        assert changed.digest == digest
        assert_close(logits_of(changed.eval(), pairs), expected)
        assert not torch.equal(logits_of(changed.train(), pairs), logits_of(changed.train(), pairs))
        changed.set_dropout(0.0)
        assert_close(logits_of(changed.train(), pairs), expected, rtol=1e-4, atol=1e-4)


@of_all_families
def test_logits_from_features_equal_logits_from_inputs(model, pairs):
    encoders: Encoders | None = model.encoders
    encode = (
        (model.embed_images, model.embed_texts) if model.kind == "dual" else (model.encode_images, model.encode_texts)
    )
    if encoders is None:
        features = States(torch.zeros(1, 1, 8), torch.ones(1, 1, dtype=torch.bool))
        for function in encode:
            with pytest.raises(ValueError, match="feature"):
                function(features)
        return
    with torch.no_grad():
        images, texts = encoders.image_features(pairs.images), encoders.text_features(pairs.texts)
        assert texts.tokens.shape[2] == encoders.text_width
        assert torch.equal(texts.mask, pairs.texts.attention_mask.bool())
        from_features = logits_of(model, dataclasses.replace(pairs, images=images, texts=texts))
    assert torch.equal(from_features, logits_of(model, pairs))


def test_frozen_encoders_give_the_same_features_in_train_mode(own, pairs):
    if (encoders := own.encoders) is None:
        return
    encoders.freeze()
    assert own.encoders.is_frozen
    with torch.no_grad():
        before = encoders.image_features(pairs.images).tokens, encoders.text_features(pairs.texts).tokens
        own.train()
        after = encoders.image_features(pairs.images).tokens, encoders.text_features(pairs.texts).tokens
    assert all(torch.equal(*features) for features in zip(before, after, strict=True))
    assert any(parameter.requires_grad for parameter in own.parameters())


def test_a_student_has_the_chosen_layers_with_their_weights(own, pairs):
    if own.kind != "fusion":
        return
    assert own.num_layers == 3
    if type(own).__name__ == "Blip2Scorer":
        with pytest.raises(ModelError, match="a Blip2Scorer has no student of fewer layers"):
            own.student([0, 2])
        return
    student = own.student([0, 2])
    assert student.num_layers == 2
    assert student.kind == "fusion"
    assert any(parameter.requires_grad for parameter in student.parameters())
    assert not torch.allclose(logits_of(student, pairs), logits_of(own, pairs))
    assert torch.equal(logits_of(own.student(range(3)), pairs), logits_of(own, pairs))
    for layers in ([], [3], [1, 0], [1, 1]):
        with pytest.raises(ModelError):
            own.student(layers)


def test_recomputed_activations_give_the_same_gradient(own, pairs):
    def gradients(model):
        """The gradients, and the number of module calls."""
        calls = []
        for module in model.modules():
            module.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(0)
        model.train()
        model.logits(model.outputs(pairs), pairs)[0].square().sum().backward()
        return {
            name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
        }, len(calls)

    plain, recomputing = copy.deepcopy(own), own
    if own.kind != "fusion" and own.encoders is not None:
        with pytest.raises(ModelError, match="cannot compute activations again"):
            recomputing.checkpoint_activations()
        return
    recomputing.checkpoint_activations()
    (expected, num_calls), (recomputed, num_calls_recomputing) = gradients(plain), gradients(recomputing)
    assert num_calls_recomputing > num_calls
    assert recomputed.keys() == expected.keys()
    for name, gradient in recomputed.items():
        assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_an_export_names_existing_classes_and_computes_equal_logits(model, pairs):
    spec = model.export_spec()
    if spec.code:
        code = (files.packaged("assets") / f"{spec.code}.py").read_text(encoding="utf-8")
        assert f"class {spec.model_class}(" in code
    elif spec.model_class:
        assert hasattr(transformers, spec.model_class)
    if spec.model_class:
        assert hasattr(transformers, spec.processor_class)
    exported = model.export_copy()
    assert type(exported) is type(model)
    assert exported.preprocess.tokenizer.model_max_length == model.preprocess.max_text_len
    assert_close(logits_of(exported, pairs), logits_of(model, pairs), rtol=1e-4, atol=1e-4)


def test_a_saved_model_loads_with_the_same_family_digest_and_logits(model, pairs, tmp_path, capfd):
    models.save(model, tmp_path / "model")
    reloaded = models.load(tmp_path / "model")
    assert capfd.readouterr() == ("", "")
    assert not reloaded.training
    assert type(reloaded) is type(model)
    assert (reloaded.digest, reloaded.settings, reloaded.unused_keys) == (model.digest, model.settings, ())
    assert (reloaded.encoders is None) == (model.encoders is None)
    if model.encoders is not None:
        assert reloaded.encoders.digest == model.encoders.digest
    assert_close(logits_of(reloaded, pairs), logits_of(model, pairs), rtol=1e-5, atol=1e-5)
