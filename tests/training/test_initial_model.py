"""The dropout, and the bias for the sigmoid losses, of the model that a recipe trains, whatever it starts from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, frozen_dual, late, refs, with_bias
from official import load_meter
from open_inputs import OpenInputs
from tiny import model_contents
from torch import nn
from torch.testing import assert_close

from dcdctl.core import files, models, training
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.training import TrainingJob, TrainingOptions, checkpoints, initial_model, recipe

STEPS = ["batch.size=4", "batch.random_negatives=3", "optimizer.steps=4", "optimizer.save_every=2", "optimizer.lr=1e-3"]


@pytest.fixture(scope="module")
def vilt(corpus) -> models.ViltScorer:
    """A ViLT whose configuration has no dropout, like those on the Hub, with weights large enough that scores depend on
    the inputs."""
    size = models.ViltSize(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=48,
        hidden_dropout_prob=0.0,
    )
    scorer = models.new_vilt(size, models.word_piece(corpus.captions, 120), seed=3)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter *= 2
    return scorer


def make(teacher: Any, *sets: str, name: str = "vilt-coco", captions: list[str] | None = None) -> Any:
    loaded = recipe.load_recipe(name, list(sets))
    return initial_model.make_model(loaded, captions or [], teacher)


def dropouts(model: nn.Module) -> Counter[float]:
    return Counter(module.p for module in model.modules() if isinstance(module, nn.Dropout))


def scores(model: Any, corpus: Any) -> torch.Tensor:
    preprocess, rows = model.preprocess, torch.arange(3)
    images, texts = preprocess.images([corpus.image(i) for i in range(3)]), preprocess.texts(corpus.captions[:3])
    with torch.no_grad():
        logits: torch.Tensor = model(images, texts, rows, rows)
    return logits


def test_captions_that_a_text_encoder_cannot_read_are_counted_if_they_are_many():
    words = models.word_piece(["a dog runs", "a red bus"], 100)
    preprocess = SimpleNamespace(tokenizer=words, max_text_len=5)

    def notes(*captions: str) -> list[str]:
        return list(initial_model.caption_notes(captions, preprocess))

    plain = [f"a {word}" for word in ("dog", "red", "bus", "runs", "a", "dog runs", "red bus", "red dog", "bus runs")]
    # Two special tokens and three words fit.
    assert notes(*plain, "a red dog") == notes() == []
    assert notes(*plain[:8], "a red dog runs") == ["1 of 9 captions are cut to 5 word pieces (model.max_text_len)"]
    assert notes(*plain[:8], "a \u2603") == ["1 of 9 captions have words that the text encoder does not know"]
    assert notes(*["a dog"] * 9) == ["8 of 9 captions repeat another one"]
    # One of ten is not more than a tenth.
    assert notes(*plain, "a red dog runs") == []
    # The end of a text is the unknown token of some tokenizers.
    words.unk_token = words.sep_token
    assert notes(*plain) == []


@pytest.mark.parametrize("start", ["teacher", "reference"])
def test_a_vilt_without_dropout_is_trained_with_the_recipes(vilt, corpus, tmp_path, start):
    models.save(vilt, tmp_path / "hub")
    begin = [] if start == "teacher" else [f"model.start={tmp_path / 'hub'}"]
    student = make(vilt if start == "teacher" else None, "model.layers=[0, 2]", *begin)
    # Embeddings of both sides, two sublayers in each of two layers; two attentions.
    assert dropouts(student) == {0.1: 6, 0.0: 2}
    assert dropouts(vilt) == {0.0: 11}
    student.train()
    assert not torch.equal(scores(student, corpus), scores(student, corpus))
    assert_close(scores(student.eval(), corpus), scores(vilt.student([0, 2]).eval(), corpus), rtol=0, atol=0)
    assert student.digest == vilt.student([0, 2]).digest


def test_a_resumed_run_has_the_dropout_of_its_recipe(vilt, corpus, tmp_path, monkeypatch):
    def run(folder: Path, *sets: str, resume: bool = False) -> list[float]:
        job = TrainingJob("finetune-teacher", "tiny-teacher", ["model.start=teacher", *STEPS, *sets], folder, resume)
        return [
            line["loss"]
            for line in training.train_model(job, OpenInputs(corpus, [], vilt), options=TrainingOptions()).metrics()
        ]

    whole = run(tmp_path / "whole", "model.dropout=0.3")
    save = checkpoints.save_checkpoint

    def killed(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", "model.dropout=0.3")
    monkeypatch.undo()
    assert run(tmp_path / "killed", "model.dropout=0.3", resume=True) == whole
    assert model_contents(tmp_path / "killed" / "model") == model_contents(tmp_path / "whole" / "model")
    assert run(tmp_path / "without") != whole


def test_a_meter_student_keeps_the_released_dropout_of_its_fusion_layers():
    teacher = load_meter("meter_tiny_a")
    student = make(teacher, "model.layers=[0]", name="meter-coco")
    assert dropouts(student.network.text_layers) == dropouts(student.network.image_layers) == {0.1: 3}
    assert student.network.size.dropout == 0.1
    changed = make(teacher, "model.layers=[0]", "model.dropout=0.3", name="meter-coco")
    assert dropouts(changed.network.text_layers) == {0.3: 3}
    assert changed.config["fusion"]["dropout"] == 0.3
    assert teacher.network.size.dropout == 0.1
    assert dropouts(changed.network.text) == dropouts(teacher.network.text), "encoders keep their own"
    assert not changed.train().network.text.training, "a frozen encoder has no dropout"


def test_every_kind_of_dual_takes_the_recipes_dropout(corpus, tmp_path):
    sets = ["model.kind=dual", "model.layers=[]", "model.start=new", "model.dropout=0.35"]
    pair = [
        f"model.{side}={ref}"
        for side, ref in zip(("vision", "text"), refs(corpus.captions, tmp_path, "tokens"), strict=True)
    ]
    whole = make(None, *sets, *pair)
    assert dropouts(whole) == {
        0.35: 5,
        0.0: 1,
    }  # one layer in each encoder: embeddings, two sublayers; BERT's attention
    assert (
        whole.config["text_config"]["hidden_dropout_prob"]
        == whole.config["vision_config"]["hidden_dropout_prob"]
        == 0.35
    )
    models.save(frozen_dual(corpus.captions, tmp_path / "frozen", "map"), tmp_path / "dual")
    loaded = make(None, *sets, f"model.start={tmp_path / 'dual'}")
    assert loaded.network.projections.dropout.p == loaded.config["projection"]["dropout"] == 0.35


def test_a_dual_encoder_without_dropout_refuses_it(corpus, tmp_path):
    dual = models.dual_from_backbones(*refs(corpus.captions, tmp_path, "clip"), projection_dim=8)
    dual.network.text_model = dual.network.vision_model
    message = (
        r"no encoder .* has dropout that can be set \(clip_vision_model and clip_vision_model\); leave "
        r"model\.dropout out"
    )
    with pytest.raises(ModelError, match=message):
        dual.set_dropout(0.1)


SIGMOID = ["model.kind=dual", "model.layers=[]", "model.start=new", "loss.terms={ sigmoid = 1.0 }"]


def new_dual_of(kind: str, corpus: Any, folder: Path) -> list[str]:
    """The settings of a new dual encoder: alone, over two encoders, or over two frozen ones."""
    sides = zip(("vision", "text"), refs(corpus.captions, folder, "tokens"), strict=True)
    pair = [f"model.{side}={ref}" for side, ref in sides]
    small = ["model.hidden_size=32", "model.num_layers=1", "model.vocab_size=200"]
    return [*SIGMOID, *{"alone": small, "over two": pair, "frozen": [*pair, "model.frozen_encoders=true"]}[kind]]


@pytest.mark.parametrize("kind", ["alone", "over two", "frozen"])
def test_a_new_student_of_the_sigmoid_loss_starts_as_siglip_and_its_bias_is_saved(kind, corpus, tmp_path):
    sets = new_dual_of(kind, corpus, tmp_path)
    model = make(None, *sets, captions=corpus.captions, name="tiny-student")
    assert (model.logit_scale.item(), model.logit_bias.item()) == pytest.approx((10, -10))
    run = training.train_model(
        TrainingJob("distill", "tiny-student", [*sets, *STEPS, "optimizer.warmup_share=0.0"], tmp_path / "run"),
        OpenInputs(corpus, [], None),
        options=TrainingOptions(),
    )
    trained = models.load_dual(run.model_folder)
    # AdamW moves a parameter by about the rate in each of the first steps, down while most pairs are negatives.
    assert 1e-4 < abs(trained.logit_bias.item() + 10) < 5e-3
    assert files.read_json(run.model_folder / "dcdctl.json")["logit_bias"] == trained.logit_bias.item()
    with torch.no_grad():
        trained.sigmoid_bias += 0.5
    assert trained.digest != models.load_dual(run.model_folder).digest
    # The same model without it: another loss leaves no bias.
    other = make(None, *sets, "loss.terms={ infonce = 1.0 }", captions=corpus.captions, name="tiny-student")
    assert other.logit_bias is None
    assert other.logit_scale.item() > 10.5


def test_an_exported_folder_keeps_the_bias_for_dcdctl(corpus, tmp_path):
    model = with_bias(FAMILIES["dual"](corpus.captions, tmp_path))
    models.save(model.export_copy(), tmp_path / "exported")
    assert models.load_dual(tmp_path / "exported").logit_bias.item() == -10


def test_a_late_student_leaves_out_the_bias_of_the_dual_encoder_that_it_starts_from(corpus, tmp_path):
    model = late(with_bias(FAMILIES["dual"](corpus.captions, tmp_path)))
    models.save(model, tmp_path / "late")
    assert "logit_bias" not in files.read_json(tmp_path / "late" / "dcdctl.json")
    assert models.load(tmp_path / "late").digest == model.digest


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid-kl"])
@pytest.mark.parametrize("kind", ["dual", "late"])
def test_a_model_whose_logits_have_no_bias_refuses_the_sigmoid_losses(loss, kind, corpus, tmp_path):
    start = FAMILIES["dual"](corpus.captions, tmp_path)
    models.save(start if kind == "dual" else with_bias(start), tmp_path / "start")
    sets = [f"model.kind={kind}", "model.layers=[]", f"model.start={tmp_path / 'start'}"]
    inputs = OpenInputs(corpus, [], None, [models.load_dual(tmp_path / "start")] if loss == "sigmoid-kl" else [])
    job = TrainingJob("distill", "tiny-student", [*sets, f"loss.terms={{ {loss} = 1.0 }}", *STEPS], tmp_path / "run")
    with pytest.raises(
        ConfigError, match=rf"{loss}, and the logits of this {kind} model have no bias; start from a Sig"
    ):
        training.train_model(job, inputs, options=TrainingOptions())
    assert not (tmp_path / "run").exists()


def test_a_late_student_starts_from_no_fusion_scorer(vilt, tmp_path):
    models.save(vilt, tmp_path / "vilt")
    loaded = recipe.load_recipe("demo-late", [f"model.start={tmp_path / 'vilt'}"])
    with pytest.raises(ModelError, match=r"is a fusion scorer, expected a dual encoder or a late-interaction model"):
        initial_model.check(loaded, has_teacher=False)
