"""Query encoders: a text encoder of its own in front of a teacher's images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, READ_ONLY, VARIANTS, late
from PIL import Image

from dcdctl.core import models
from dcdctl.core.errors import ModelError, StaleError

CAPTIONS = ["a red circle left of a blue square", "two dogs run on a beach", "a cat", "A DOG."] * 3
SIZES = {
    "new": models.QuerySize(hidden_size=16, num_layers=1),
    "static": models.QuerySize(hidden_size=16, num_layers=0),
    "teacher's": models.QuerySize(text="teacher"),
    "static, teacher's": models.QuerySize(text="teacher", num_layers=0),
}
TEACHERS: dict[str, Any] = {
    **{name: FAMILIES[name] for name in ("dual", "frozen dual", "CLIP", "SigLIP 2", "ALIGN", "open_clip with BERT")},
    "late": lambda captions, folder: late(FAMILIES["dual"](captions, folder), is_pooled=False, position_norm=0.7),
    "late over SigLIP 2": FAMILIES["late from SigLIP 2"],
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: make(CAPTIONS, tmp_path_factory.mktemp("teacher")) for name, make in TEACHERS.items()}


def new_query(teacher: Any, size: models.QuerySize, **options: Any) -> Any:
    tokenizer = models.word_piece(CAPTIONS, 120)
    return models.new_query(models.QuerySpace.of(teacher), size, tokenizer=tokenizer, teacher=teacher, **options)


def refuses(name: str, size: models.QuerySize) -> bool:
    """Whether a teacher has no text encoder, or no tokens, that such a student could have."""
    is_own = size.text == "teacher"
    return (name.startswith("late") and not is_own) or (name in ("ALIGN", "open_clip with BERT") and is_own)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TEACHERS)
def test_a_saved_query_encoder_gives_equal_vectors_beside_its_teachers_images(
    name: str, size: str, teachers: dict[str, Any], tmp_path: Path
) -> None:
    teacher = teachers[name]
    if refuses(name, SIZES[size]):
        with pytest.raises(ModelError, match=r"does not stand alone|reads other tokens"):
            new_query(teacher, SIZES[size])
        return
    query = new_query(teacher, SIZES[size])
    models.save(query, tmp_path)
    joined = models.with_queries(teacher, tmp_path)
    white = [Image.new("RGB", (64, 64), "white")]
    images, texts = joined.preprocess.images(white), joined.preprocess.texts(CAPTIONS[:4])
    assert joined.kind == teacher.kind
    assert joined.digest == query.digest
    assert torch.equal(joined.embed_texts(texts), query.embed_texts(query.preprocess.texts(CAPTIONS[:4])))
    assert torch.equal(joined.embed_images(images), teacher.embed_images(teacher.preprocess.images(white)))
    # The teacher is neither trained nor saved with it.
    assert {parameter.data_ptr() for parameter in joined.parameters()}.isdisjoint(
        parameter.data_ptr() for parameter in teacher.parameters()
    )


def test_a_late_teacher_without_a_text_encoder_of_its_own_is_not_answered_with_what_it_refuses(
    tmp_path: Path,
) -> None:
    teacher = READ_ONLY["MultiVectorEncoder"](CAPTIONS, tmp_path)
    with pytest.raises(ModelError, match="does not stand alone") as refused:
        new_query(teacher, SIZES["teacher's"])
    # Every other `model.text` is refused for late interaction.
    assert "take a run over encoders of transformers" in refused.value.hint


def test_a_static_text_is_the_mean_of_its_words(teachers: dict[str, Any]) -> None:
    query = new_query(teachers["dual"], SIZES["static"])
    texts = query.preprocess.texts(["a cat", "a cat a cat", "cat a"])
    with torch.no_grad():
        once, twice, turned = query.embed_texts(texts)
        word = {query.preprocess.tokenizer.decode([token]): token for token in texts.input_ids[0].tolist()}
        table = query.network.encoder.embeddings.weight
        mean = (table[word["a"]] + table[word["cat"]]) / 2
        hidden = torch.nn.functional.gelu(query.network.encoder.dense(mean))
        expected = torch.nn.functional.normalize(query.network.projection(hidden), dim=0)
    assert torch.allclose(once, expected, atol=1e-6)
    assert torch.allclose(once, twice, atol=1e-6)
    assert torch.allclose(once, turned, atol=1e-6)


def test_the_first_layers_of_the_teachers_encoder_are_kept(teachers: dict[str, Any]) -> None:
    teacher = FAMILIES["dual"](CAPTIONS, None)
    query = new_query(teacher, models.QuerySize(text="teacher", layers=[0]))
    assert len(query.network.encoder.encoder.layer) == 1
    own = dict(teacher.network.text_model.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in query.network.encoder.named_parameters())
    with pytest.raises(ModelError, match=r"model.text_layers is"):
        new_query(teacher, models.QuerySize(text="teacher", layers=[7]))


def test_no_part_of_a_query_encoder_is_trained_alone(teachers: dict[str, Any]) -> None:
    query = new_query(teachers["dual"], SIZES["static"])
    with pytest.raises(ModelError, match=r"^model\.trained projections is for dual encoders of transformers"):
        query.set_trained(models.TrainedParts(which="projections"))
    query.set_trained(models.TrainedParts())


def test_a_static_encoder_takes_the_teachers_word_vectors(teachers: dict[str, Any]) -> None:
    teacher = FAMILIES["dual"](CAPTIONS, None)
    query = new_query(teacher, SIZES["static, teacher's"])
    words = teacher.network.text_model.get_input_embeddings().weight
    assert torch.equal(query.network.encoder.embeddings.weight, words)


def test_another_teacher_is_refused(teachers: dict[str, Any], tmp_path: Path) -> None:
    models.save(new_query(teachers["dual"], SIZES["static"]), tmp_path)
    with pytest.raises(StaleError, match="speaks the space of the model"):
        models.with_queries(teachers["CLIP"], tmp_path)
    with pytest.raises(ModelError, match="embeds texts alone"):
        models.load(tmp_path)
    with pytest.raises(ModelError, match="embeds texts alone"):
        models.check_ref(tmp_path, kind="dual")
    alone = models.load(tmp_path, kind="query")
    with pytest.raises(ModelError, match="and its teacher the images"):
        alone.preprocess.images([Image.new("RGB", (64, 64))])


@pytest.mark.parametrize(("size", "is_long"), [("static", False), ("new", False), ("new", True)])
def test_a_saved_table_with_too_few_rows_is_named(
    size: str, is_long: bool, teachers: dict[str, Any], tmp_path: Path
) -> None:
    query = new_query(teachers["dual"], SIZES[size])
    query.preprocess = replace(query.preprocess, max_text_len=41 if is_long else 40)
    if not is_long:
        encoder = query.network.encoder
        table = encoder.embeddings if size == "static" else encoder.embeddings.word_embeddings
        table.weight = torch.nn.Parameter(table.weight[:1])
        if size == "new":
            encoder.config.vocab_size = 1
    models.save(query, tmp_path)
    message = "max_text_len is 41, but the model has 40" if is_long else r"has \d+ tokens, but .* table has 1 rows"
    with pytest.raises(ModelError, match=message):
        models.with_queries(teachers["dual"], tmp_path)


def test_vectors_from_elsewhere_are_known_by_their_length_alone(teachers: dict[str, Any]) -> None:
    space = models.QuerySpace(kind="dual", dim=8, logit_scale=1.0, teacher_name="another program")
    query = models.new_query(space, SIZES["static"], tokenizer=models.word_piece(CAPTIONS, 120))
    assert query.join(teachers["dual"]).teacher is teachers["dual"]
    with pytest.raises(StaleError, match="of 8 numbers, and this one is dual with 16"):
        query.join(teachers["ALIGN"])


def test_a_model_of_another_kind_is_refused_though_its_vectors_have_the_width(teachers: dict[str, Any]) -> None:
    space = models.QuerySpace(kind="late", dim=8, logit_scale=1.0, teacher_name="another program")
    with pytest.raises(StaleError, match="for a late model of 8 numbers, and this one is dual with 8"):
        space.check(teachers["dual"], "the student")


@pytest.mark.parametrize("name", ["dual", "dual with a bias", "late", "late with a sum"])
def test_logits_of_equal_vectors_are_the_teachers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its scale and bias; and of a late model with its MaxSim, a mean or a sum."""
    dual = VARIANTS["dual with a bias" if "bias" in name else "dual"](CAPTIONS, tmp_path)
    teacher = late(dual, is_pooled=False) if name.startswith("late") else dual
    if name == "late with a sum":
        monkeypatch.setattr(teacher, "is_mean", False)
    models.save(new_query(teacher, models.QuerySize(text="teacher", num_layers=0)), tmp_path / "query")
    joined = models.with_queries(teacher, tmp_path / "query")
    white = [Image.new("RGB", (64, 64), "white")]
    inputs = teacher.preprocess.images(white), teacher.preprocess.texts(CAPTIONS[:4])
    pairs = models.PairBatch(*inputs, torch.zeros(1, 4, dtype=torch.long), torch.arange(4)[None])
    with torch.no_grad():
        outputs = teacher.outputs(pairs)
        expected, _ = teacher.logits(outputs, pairs)
        torch.testing.assert_close(joined.logits(outputs, pairs)[0], expected)
    assert teacher.logit_scale > 2, "a scale of 1 would not show whether it is multiplied with"


def test_equal_seeds_give_equal_weights(teachers: dict[str, Any]) -> None:
    digests = [new_query(teachers["dual"], SIZES["new"], seed=seed).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
