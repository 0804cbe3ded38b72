"""Cross-encoders of sentence-transformers with images: scores of the library itself, shared prefixes, settings, digests
and errors."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tiny import make_corpus
from torch.testing import assert_close
from vlm import save_reranker

from dcdctl.core import models
from dcdctl.core.engines import Compute
from dcdctl.core.errors import InputError, MissingError, ModelError
from dcdctl.core.models import load_save
from dcdctl.core.models.families import shared_prefix
from dcdctl.core.scoring import CorpusSource, PairScorer, score_pairs

CAPTIONS = [
    [
        "a large red circle is left of a small blue square",
        "a cross",
        "the tiny green star",
        " a space comes first",
        "\n",
        "moons",
        "a",
    ],
    ["there is a teal moon below a brown arrow", "a"],
    ["the big pink heart"],
]
OWNER = [0] * 7 + [1] * 2 + [2]
TEXTS = [caption for own in CAPTIONS for caption in own]
NO_SIGMOID = {"activation_fn": torch.nn.Identity(), "convert_to_tensor": True, "show_progress_bar": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reranker(tmp_path_factory.mktemp("vlm") / "reranker", TEXTS)


@pytest.fixture(scope="module")
def library(folder):
    """The oracle: sentence-transformers without dcdctl."""
    return CrossEncoder(str(folder), device="cpu")


@pytest.fixture(scope="module")
def scorer(folder):
    return models.load_fusion(folder)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = [(40, 30), (33, 64), (20, 100)]
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


@pytest.fixture(scope="module")
def alone(library, images):
    """The logits of all images with all captions, one pair at a time, I x T."""
    rows = [[library.predict((image, text), **NO_SIGMOID) for text in TEXTS] for image in images]
    return torch.tensor(rows)


def all_logits(scorer, images, batch_size=1000):
    """The logits of all pairs, in batches that mix images."""
    states = scorer.encode_images(scorer.preprocess.images(images)), scorer.encode_texts(scorer.preprocess.texts(TEXTS))
    image_ix, text_ix = (
        torch.arange(len(images)).repeat(len(TEXTS)),
        torch.arange(len(TEXTS)).repeat_interleave(len(images)),
    )
    parts = [
        scorer.score_pairs(*states, *ix)
        for ix in zip(image_ix.split(batch_size), text_ix.split(batch_size), strict=True)
    ]
    return torch.cat(parts).view(len(TEXTS), len(images)).T


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_logits_are_those_of_predict_for_one_pair_at_a_time(scorer, images, alone, batch_size):
    assert scorer._shared is not None
    assert alone.std() > 0.5
    assert_close(all_logits(scorer, images, batch_size), alone, rtol=0, atol=2e-5)
    assert scorer._shared is not None


def test_text_first_is_the_pair_of_caption_and_image(folder, library, images, alone):
    swapped = models.load_fusion(folder, {"order": "text-first"})
    expected = torch.stack(
        [torch.stack([library.predict((text, image), **NO_SIGMOID) for text in TEXTS]) for image in images]
    )
    assert swapped._shared is None
    assert_close(all_logits(swapped, images), expected, rtol=0, atol=2e-5)
    assert (expected - alone).abs().max() > 0.1


@pytest.mark.parametrize("batch_size", [3, None])
def test_an_image_is_computed_once_for_all_its_captions_of_a_corpus(scorer, library, tmp_path, batch_size):
    corpus = make_corpus(tmp_path / "corpus", CAPTIONS)
    image_P, text_P = np.array([1, 0, 1, 2, 1, 0, 1, 1, 0, 1, 2]), np.array([4, 5, 0, 1, 9, 2, 2, 6, 0, 8, 3])
    expected = [
        float(library.predict((corpus.image(i), TEXTS[t]), **NO_SIGMOID))
        for i, t in zip(image_P.tolist(), text_P.tolist(), strict=True)
    ]
    calls = []
    vision = scorer.network[0].model.model.visual
    handle = vision.register_forward_hook(lambda *_: calls.append(1))
    source, compute = CorpusSource(corpus, scorer.preprocess), Compute(batch_size=batch_size)
    everything = PairScorer(scorer=scorer, source=source, images=range(3), texts=range(10), compute=compute)
    try:
        for score in (
            lambda: score_pairs(scorer, source, image_P, text_P, compute=compute),
            lambda: everything.score(image_P, text_P),
        ):
            calls.clear()
            np.testing.assert_allclose(score(), expected, rtol=0, atol=2e-5)
            # Each image once, and one plain batch for captions that merge with the template.
            assert len(calls) <= 4
    finally:
        handle.remove()


def test_a_caption_that_is_the_path_of_an_image_is_a_text(scorer, library, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images[0].save("photo.png")
    states = (
        scorer.encode_images(scorer.preprocess.images(images)),
        scorer.encode_texts(scorer.preprocess.texts(["photo.png"])),
    )
    logits = scorer.score_pairs(*states, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    expected = torch.stack([library.predict((image, {"text": "photo.png"}), **NO_SIGMOID) for image in images])
    assert_close(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("order", ["image-first", "text-first"])
@pytest.mark.parametrize("mark", ["<|image_pad|>", "<|video_pad|>"])
def test_a_caption_that_holds_a_mark_of_images_is_named_with_its_id(folder, tmp_path, order, mark):
    corpus = make_corpus(tmp_path / "corpus", [["a cross"], ["a moon", f"a {mark} moon"]])
    scorer = models.load_fusion(folder, {"order": order})
    message = (
        f"caption {corpus.caption_ids[2]} of {corpus.folder} holds {mark}, by which .*: 'a {mark} moon'; remove it"
    )
    with pytest.raises(InputError, match=message.replace("|", r"\|")):
        score_pairs(
            scorer, CorpusSource(corpus, scorer.preprocess), np.array([0, 1]), np.array([0, 2]), compute=Compute()
        )
    with pytest.raises(InputError, match="the text at position 1 holds"):
        scorer.preprocess.texts(["a", f"a {mark} moon"])


def test_settings_are_those_of_the_library(folder, images, library):
    scorer = models.load_fusion(folder, {"prompt": "Yes or no?", "max_pixels": 24 * 24, "max_text_len": 3})
    changed = CrossEncoder(str(folder), device="cpu")
    changed[0].processor.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 24 * 24}
    ids = changed[0].tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    start = changed[0].tokenizer.decode(ids[:3])
    assert TEXTS[0].startswith(start)
    pair = images[0], TEXTS[0]
    expected = changed.predict((images[0], start), prompt="Yes or no?", **NO_SIGMOID)
    assert_close(all_logits(scorer, images[:1])[0, 0], expected, rtol=0, atol=2e-5)
    assert abs(expected - library.predict(pair, **NO_SIGMOID)) > 0.01


@pytest.mark.parametrize(("side", "length"), [(16, 30), (64, 38)])
def test_a_prompt_that_is_cut_at_the_token_limit_has_the_score_of_predict(
    folder, images, tmp_path, monkeypatch, side, length
):
    def limit(target):
        path = target / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": length}))

    limited = changed_copy(folder, tmp_path / "limited", limit)
    # A stand-in image with fewer tokens than the image, so that captions which seem to fit are cut; and with more, so
    # that captions which seem to be cut fit.
    monkeypatch.setattr(shared_prefix, "STAND_IN", (side, side))
    scorer, library = models.load_fusion(limited), CrossEncoder(str(limited), device="cpu")
    assert scorer._shared is not None
    captions, whole = sorted(TEXTS, key=len), CrossEncoder(str(folder), device="cpu")
    # Short captions come first: with these, sharing passes its check.
    parts = torch.arange(len(captions)).split(4)
    states = scorer.encode_images(scorer.preprocess.images([images[1]]))
    texts = scorer.encode_texts(scorer.preprocess.texts(captions))
    scores = torch.cat([scorer.score_pairs(states, texts, torch.zeros_like(part), part) for part in parts])
    expected, uncut = (
        torch.stack([one.predict((images[1], caption), **NO_SIGMOID) for caption in captions])
        for one in (library, whole)
    )
    assert_close(scores, expected, rtol=0, atol=2e-5)
    assert (expected != uncut).any() == (side == 16)


def test_half_precision_shares_too_and_stays_near(folder, images, alone):
    half = models.load_fusion(folder, {"dtype": "bfloat16"})
    assert next(half.parameters()).dtype == torch.bfloat16
    logits = all_logits(half, images)
    assert half._shared is not None
    # Weights and activations have 8 bits.
    assert 1e-4 < (logits - alone).abs().max() < 0.3


def changed_copy(folder, target, change):
    shutil.copytree(folder, target)
    change(target)
    return target


def rewrite(name, old, new):
    def change(target):
        text = (target / name).read_text()
        assert old in text
        (target / name).write_text(text.replace(old, new, 1))

    return change


def score_another_token(target):
    path = target / "1_LogitScore" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "false_token_id": config["false_token_id"] - 1}))


@pytest.mark.parametrize(
    "change",
    [
        rewrite("chat_template.jinja", " is ", " was "),
        rewrite("processor_config.json", '"longest_edge": 4096', '"longest_edge": 2048'),
        score_another_token,
        rewrite("config_sentence_transformers.json", "good caption", "bad caption"),
    ],
    ids=["template", "processor", "score", "prompt"],
)
def test_the_digest_depends_on_the_files_that_only_a_cross_encoder_has(folder, scorer, tmp_path, change):
    assert models.load(changed_copy(folder, tmp_path / "changed", change)).digest != scorer.digest


def test_the_digest_depends_on_every_setting(folder, scorer):
    settings = [
        {"prompt": "p"},
        {"order": "text-first"},
        {"dtype": "bfloat16"},
        {"max_text_len": 9},
        {"max_pixels": 900},
    ]
    digests = {models.load(folder, setting).digest for setting in settings}
    assert len(digests | {scorer.digest}) == len(settings) + 1


def test_a_model_that_shares_wrongly_is_found_out_and_scored_plainly(folder, images, alone, monkeypatch, logged):
    def compute(self, image, caption):
        real(self, image, caption)
        self._next_position += 5

    monkeypatch.setattr(shared_prefix.SharedPrefix, "_compute", compute)
    scorer = models.load_fusion(folder)
    logits = all_logits(scorer, images)
    assert scorer._shared is None
    assert [record.getMessage().partition(": ")[0] for record in logged.records] == [str(folder)]
    assert "scores would differ by" in logged.text
    assert_close(logits, alone, rtol=0, atol=2e-5)


real = shared_prefix.SharedPrefix._compute


def test_it_is_checked_as_a_fusion_scorer_without_opening_weights(folder, tmp_path):
    (empty := tmp_path / "reranker").mkdir()
    for name in ("config_sentence_transformers.json", "modules.json"):
        shutil.copy(folder / name, empty / name)
    assert load_save.check_ref(empty, {"dtype": "bfloat16"}) == "fusion"
    with pytest.raises(ModelError, match="is a fusion scorer, expected a dual encoder"):
        load_save.check_ref(empty, kind="dual")


def test_a_published_cross_encoder_takes_the_settings_of_its_kind():
    assert load_save.check_ref("qwen3-vl-reranker-2b", {"dtype": "bfloat16"}) == "fusion"


def test_its_settings_are_refused_for_other_models_and_theirs_for_it(folder, tmp_path, tokenizer):
    models.save(
        models.new_vilt(models.ViltSize(hidden_size=16, num_attention_heads=2, num_hidden_layers=1), tokenizer),
        tmp_path / "vilt",
    )
    for use in (models.load, models.check_ref):
        with pytest.raises(ModelError, match="vilt takes no prompt; it takes image_size"):
            use(tmp_path / "vilt", {"prompt": "Which?"})
    with pytest.raises(ModelError, match="takes no image_size") as error:
        models.load(folder, {"image_size": 224})
    assert "max_pixels" in error.value.hint
    with pytest.raises(ModelError, match=r"max_pixels is 200, and .* makes at least 256 pixels"):
        models.load(folder, {"max_pixels": 200})


def test_folders_that_would_give_other_scores_are_refused(folder, tmp_path):
    def drop_weight(target):
        weights = load_file(target / "model.safetensors")
        del weights["model.language_model.layers.1.mlp.up_proj.weight"]
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})

    def with_own_code(target):
        modules = json.loads((target / "modules.json").read_text())
        modules[1]["type"] = "score.OwnScore"
        (target / "modules.json").write_text(json.dumps(modules))
        (target / "score.py").write_text("raise SystemExit('code of the folder was run')")

    def without_images(target):
        path = target / "sentence_bert_config.json"
        config = json.loads(path.read_text())
        config["modality_config"] = {name: config["modality_config"][name] for name in ("text", "message")}
        path.write_text(json.dumps(config))

    def without_template(target):
        (target / "chat_template.jinja").write_text("{{ messages[0].role }}")

    for name, (change, message) in {
        "weight": (drop_weight, r"lacks 1 parameters.*layers\.1\.mlp\.up_proj"),
        "code": (with_own_code, r"score\.OwnScore"),
        "text": (without_images, "without images: it reads text, message"),
        "template": (without_template, "cannot score a pair: The chat template"),
    }.items():
        with pytest.raises(ModelError, match=message) as error:
            models.load(changed_copy(folder, tmp_path / name, change))
        assert str(tmp_path / name) in str(error.value)


def test_an_image_that_the_processor_refuses_is_named(scorer):
    line = scorer.encode_images(scorer.preprocess.images([Image.new("RGB", (900, 2))]))
    texts = scorer.encode_texts(scorer.preprocess.texts(["a"]))
    with pytest.raises(ModelError, match="aspect ratio"):
        scorer.score_pairs(line, texts, torch.tensor([0]), torch.tensor([0]))


def test_without_the_library_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingError, match="sentence-transformers") as error:
        models.load(folder)
    assert "sentence-transformers>=" in error.value.hint
