"""Image students: a small image tower learns the vectors of a large model, whose text side it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from encoders import TEXT, save_vision
from families import FAMILIES, frozen_dual, with_noise
from made_index import build_of, searcher_of, update
from tiny import make_corpus, make_pool
from training_steps import distill
from transformers import AutoModel, BertConfig

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, ModelError, StaleError
from dcdctl.core.export import ExportJob, export_model
from dcdctl.core.models.networks.lower_layers import LowerLayers
from dcdctl.core.models.networks.towers import TrainedParts
from dcdctl.core.training import InputRefs, Run, TrainingJob, TrainingOptions, load_recipe
from dcdctl.core.training.next_step import command_after_training

ONE_LAYER = TEXT["bert"]
TEXTS = ["a red car", "a blue dog here", "a tan hat there", "a bus"]
SMALL = ["model.vision_levels=[]", "model.vision_grid=none", "optimizer.steps=40", "optimizer.lr=1e-2", "batch.size=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A teacher over two encoders, a small image encoder, and a folder of images without texts."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        # A layer below the last one, whose states features store.
        patch.setitem(TEXT, "bert", lambda size: BertConfig(**{**ONE_LAYER(size).to_dict(), "num_hidden_layers": 2}))
        models.save(frozen_dual(TEXTS, folder, "tokens"), folder / "large")
    save_vision("map", folder / "small")
    make_pool(folder / "data", [[]] * 24, has_colors=True)
    return folder


def train(folder: Path, out: Path, *sets: str, teacher: str = "large", **options: object) -> Run:
    refs = InputRefs(data=folder / "data", teachers=[str(folder / teacher)])
    of_small = [f"model.vision={folder / 'small'}", *SMALL]
    return distill(refs, out, *of_small, *sets, recipe="image-student", **options)


@pytest.fixture(scope="module")
def run(folder) -> Run:
    return train(folder, folder / "run", "model.trained=all", "model.trained_layers=none")


def vectors(model: models.DualEncoder, corpus: Corpus) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        images = model.preprocess.images([corpus.image(number) for number in range(corpus.num_images)])
        return model.embed_images(images), model.embed_texts(model.preprocess.texts(TEXTS))


def test_the_images_learn_the_teachers_vectors_and_the_texts_keep_them(folder, run):
    corpus = Corpus.open(folder / "data", "train")
    teacher, student = (models.load_dual(ref) for ref in (folder / "large", run.folder))
    (large, text), (small, kept) = vectors(teacher, corpus), vectors(student, corpus)
    assert torch.equal(kept, text)
    assert torch.equal(student.logit_scale, teacher.logit_scale)
    losses = [json.loads(line)["embedding-cosine"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    # What the loss says is what the vectors say, without a projection between them.
    assert float((1 - (small * large).sum(dim=1)).mean()) == pytest.approx(losses[-1], abs=0.05)
    assert losses[-1] < losses[0] / 2


def test_it_speaks_the_space_of_its_teacher_until_its_texts_are_trained(folder, run, tmp_path):
    teacher, student = (models.load_dual(ref) for ref in (folder / "large", run.folder))
    space = models.QuerySpace.of(teacher)
    space.check(student, "a query encoder")
    assert student.digest != teacher.digest
    with pytest.raises(StaleError, match="speaks the space of the model"):
        space.check(frozen_dual(TEXTS, tmp_path, "map"), "a query encoder")
    captioned = make_corpus(tmp_path / "captioned", [[text] for text in TEXTS], has_colors=True)
    sets = [f"model.start={run.folder}", "model.layers=[]", "model.kind=dual", "loss.terms={ infonce = 1.0 }"]
    trained = distill(captioned, tmp_path / "trained", *sets, "optimizer.steps=2", "batch.size=4")
    with pytest.raises(StaleError, match="speaks the space of the model"):
        space.check(models.load_dual(trained.folder), "a query encoder")


def test_an_index_of_the_student_is_searched_by_the_teachers_texts_and_by_its_query_student(folder, run, tmp_path):
    corpus, teacher = Corpus.open(folder / "data", "train"), models.load_dual(folder / "large")
    index = build_of(run.folder, folder / "data", tmp_path / "index")
    found = searcher_of(index.folder).by_texts(TEXTS, corpus.num_images)
    (small, _), (_, text) = (vectors(model, corpus) for model in (models.load_dual(run.folder), teacher))
    expected = (text @ small.T).sort(dim=1, descending=True).values
    torch.testing.assert_close(
        torch.tensor([[hit.score for hit in answer.hits] for answer in found]), expected, rtol=0, atol=2e-3
    )
    size = models.QuerySize(hidden_size=16, num_layers=0)
    query = models.new_query(models.QuerySpace.of(teacher), size, tokenizer=models.word_piece(TEXTS, 60))
    models.save(query, tmp_path / "query")
    searcher = searcher_of(update(index.folder, query_model=str(tmp_path / "query")).folder)
    with torch.no_grad():
        text = query.embed_texts(query.preprocess.texts(TEXTS))
    expected = (text @ small.T).sort(dim=1, descending=True).values
    found = searcher.by_texts(TEXTS, corpus.num_images)
    torch.testing.assert_close(
        torch.tensor([[hit.score for hit in answer.hits] for answer in found]), expected, rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("trained", ["projections", "last-layers"])
def test_stored_features_change_the_vectors_by_rounding_alone(folder, tmp_path, trained):
    parts = [f"model.trained={trained}", f"model.trained_layers={'none' if trained == 'projections' else 1}"]
    sets = [*parts, "optimizer.steps=4"]
    options = TrainingOptions(compute=Compute(features=tmp_path / "features"))
    stored = train(folder, tmp_path / "stored", *sets, options=options)
    read = train(folder, tmp_path / "read", *sets)
    corpus = Corpus.open(folder / "data", "train")
    sides = [vectors(models.load_dual(each.folder), corpus) for each in (stored, read)]
    torch.testing.assert_close(sides[0][0], sides[1][0], rtol=0, atol=0.02)
    assert torch.equal(sides[0][1], sides[1][1])


def test_micro_batches_change_nothing(folder, tmp_path):
    sets = ["model.trained=projections", "model.trained_layers=none", "optimizer.steps=3"]
    whole, split = (
        train(folder, tmp_path / str(count), *sets, options=TrainingOptions(micro_batches=count)) for count in (1, 3)
    )
    corpus = Corpus.open(folder / "data", "train")
    sides = [vectors(models.load_dual(each.folder), corpus)[0] for each in (whole, split)]
    torch.testing.assert_close(*sides, rtol=0, atol=1e-5)


def test_the_next_command_is_an_index_because_there_are_no_captions(folder):
    job = TrainingJob("distill", "image-student", [], folder / "run", resume=False)
    command = command_after_training(job, InputRefs(data=folder / "data", teachers=[str(folder / "large")]))
    assert command == f"dcdctl index {folder / 'run'} --images {folder / 'data'} --out INDEX"


@pytest.mark.parametrize("kind", ["CLIP", "MetaCLIP 2", "SigLIP", "SigLIP 2", "dual"])
def test_the_texts_of_a_clip_or_a_siglip_are_kept_too(kind, folder, tmp_path):
    teacher = with_noise(FAMILIES[kind](TEXTS, tmp_path))
    models.save(teacher, tmp_path / "large")
    sets = ["model.trained=all", "model.trained_layers=none", "optimizer.steps=3"]
    student = models.load_dual(train(folder, tmp_path / "run", *sets, teacher=str(tmp_path / "large")).folder)
    corpus = Corpus.open(folder / "data", "train")
    assert torch.equal(vectors(student, corpus)[1], vectors(models.load_dual(tmp_path / "large"), corpus)[1])
    assert torch.equal(student.logit_scale, teacher.logit_scale)
    assert (student.logit_bias is None) == (teacher.logit_bias is None)
    models.QuerySpace.of(models.load_dual(tmp_path / "large")).check(student, "a query encoder")


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
def test_features_and_an_export_of_pooled_texts_have_their_vectors(kind, folder, tmp_path):
    models.save(with_noise(FAMILIES[kind](TEXTS, tmp_path)), tmp_path / "large")
    corpus = make_corpus(tmp_path / "captioned", [[text] for text in TEXTS], has_colors=True)
    refs = InputRefs(data=corpus.folder, teachers=[str(tmp_path / "large")])
    of_small = [f"model.vision={folder / 'small'}", *SMALL, "batch.size=4", "optimizer.steps=3"]
    runs = []
    for name, compute in {"stored": Compute(features=tmp_path / "features"), "read": Compute()}.items():
        sets = [*of_small, "loss.terms={ infonce = 1.0 }", "optimizer.lr=1e-3"]
        options = TrainingOptions(compute=compute)
        runs.append(distill(refs, tmp_path / name, *sets, recipe="image-student", options=options))
    losses = [json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    export_model(ExportJob(model=str(runs[0].folder), out=tmp_path / "export", to="transformers", data=corpus.folder))
    exported = AutoModel.from_pretrained(tmp_path / "export", trust_remote_code=True)
    student = models.load_dual(runs[0].folder)
    batch = student.preprocess.texts(TEXTS)
    mask = None if student.preprocess.pads_texts else batch.attention_mask
    with torch.no_grad():
        theirs = exported.get_text_features(input_ids=batch.input_ids, attention_mask=mask).pooler_output
        torch.testing.assert_close(theirs, student.embed_texts(batch), rtol=0, atol=1e-6)


def test_a_run_that_trains_the_texts_of_a_clip_stores_no_lower_layers(folder, tmp_path):
    """What a CLIP pools follows from the ids, which stored states have not."""
    models.save(with_noise(FAMILIES["CLIP"](TEXTS, tmp_path)), tmp_path / "large")
    run = train(folder, tmp_path / "run", teacher=str(tmp_path / "large"))
    student = models.load_dual(run.folder)
    student.set_trained(TrainedParts(which="last-layers", num_layers=1))
    assert isinstance(student.encoders, LowerLayers)
    student.space_of = None
    student.set_trained(TrainedParts(which="last-layers", num_layers=1))
    assert not isinstance(student.encoders, LowerLayers)


@pytest.mark.parametrize("kind", ["Chinese-CLIP", "ALIGN"])
def test_a_teacher_whose_texts_are_pooled_otherwise_is_refused(kind, folder, tmp_path):
    models.save(with_noise(FAMILIES[kind](TEXTS, tmp_path)), tmp_path / "large")
    with pytest.raises(ModelError, match=r"the text side of a \w+ cannot be copied") as error:
        train(folder, tmp_path / "run", teacher=str(tmp_path / "large"))
    assert "a CLIP, a SigLIP or a dual encoder over two encoders" in error.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["model.projection_dim=64"], "model.projection_dim is for texts of its own, and model.text is teacher"),
        (["model.max_text_len=24"], "model.max_text_len is for texts of its own, and model.text is teacher"),
        (["model.vision="], "model.vision and model.text go together"),
    ],
)
def test_settings_that_an_image_student_has_not_are_refused(sets, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("image-student", sets)


def test_no_teacher_and_two_teachers_are_refused(folder, tmp_path):
    for teachers, found in ([], "none"), ([str(folder / "large")] * 2, "2"), (["scenes-vilt"], "1 of another kind"):
        with pytest.raises(ConfigError, match=f"the text side of one dual encoder, and --teacher names {found}"):
            distill(InputRefs(data=folder / "data", teachers=teachers), tmp_path / "run", recipe="image-student")


def test_captions_train_the_images_alone_where_a_loss_reads_them(folder, tmp_path):
    corpus = make_corpus(tmp_path / "captioned", [[text] for text in TEXTS], has_colors=True)
    refs = InputRefs(data=corpus.folder, teachers=[str(folder / "large")])
    for terms in ("{ infonce = 1.0 }", "{ infonce = 1.0, kl = 1.0, embedding-mse = 1.0 }"):
        sets = [f"model.vision={folder / 'small'}", *SMALL, "model.trained=all", "model.trained_layers=none"]
        sets += [f"loss.terms={terms}", "batch.size=4", "optimizer.steps=3"]
        trained = distill(refs, tmp_path / str(len(terms)), *sets, recipe="image-student")
        teacher, student = (models.load_dual(ref) for ref in (folder / "large", trained.folder))
        assert torch.equal(vectors(student, corpus)[1], vectors(teacher, corpus)[1])
