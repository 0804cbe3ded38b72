"""Multi-vector models of other libraries: the scores of their own code, whatever their settings."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from encoders import save_text
from families import FAMILIES, late
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from torch.testing import assert_close
from transformers.models.colpali import ColPaliForRetrieval, ColPaliProcessor
from vlm import save_colpali

from dcdctl.core import models, training
from dcdctl.core.errors import ModelError
from dcdctl.core.export.export import export_model
from dcdctl.core.export.target import ExportJob
from dcdctl.core.training import initial_model

CAPTIONS = ["a dog runs over grass", "two people", "a man with a red hat looks at the sea", "a dog"]


@torch.no_grad()
def scores_of(folder, images):
    """By dcdctl, of each image with each caption."""
    model, index = models.load(folder), torch.arange(len(images)).repeat_interleave(len(CAPTIONS))
    states = model.encode_images(model.preprocess.images(images)), model.encode_texts(model.preprocess.texts(CAPTIONS))
    logits = model.score_pairs(*states, index, torch.arange(len(CAPTIONS)).repeat(len(images)))
    return logits.view(len(images), len(CAPTIONS))


def own_scores(folder, images):
    """The library's, of each image with each caption."""
    encoder = MultiVectorEncoder(str(folder), device="cpu")
    return encoder.similarity(encoder.encode_query(CAPTIONS), encoder.encode_document(list(images))).T


@pytest.fixture(scope="module")
def colpali(tmp_path_factory):
    return save_colpali(tmp_path_factory.mktemp("colpali") / "model", CAPTIONS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A multi-vector model over a CLIP: a prefix, an expansion or a skip list is not inside its processor."""
    root = tmp_path_factory.mktemp("clip")
    models.save(late(FAMILIES["CLIP"](CAPTIONS, root / "parts"), is_pooled=False), root / "late")
    export_model(ExportJob(model=str(root / "late"), out=root / "out", to="sentence-transformers"))
    return root / "out"


@torch.no_grad()
def test_colpali_has_the_scores_of_its_own_processor(colpali, photos):
    network, processor = ColPaliForRetrieval.from_pretrained(colpali).eval(), ColPaliProcessor.from_pretrained(colpali)
    pixels = processor.process_images(photos)
    del pixels["labels"]
    vectors = [network(**batch).embeddings for batch in (processor.process_queries(CAPTIONS), pixels)]
    found = scores_of(colpali, photos)
    assert_close(found, processor.score_retrieval(*vectors).T, rtol=1e-5, atol=1e-5)
    assert found.std() > 1


def test_colpali_saved_as_a_multi_vector_encoder_and_as_pylate_does(colpali, photos, tmp_path):
    MultiVectorEncoder(str(colpali), device="cpu").save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    expected = scores_of(colpali, photos)
    assert_close(scores_of(tmp_path / "saved", photos), expected, rtol=1e-5, atol=1e-5)
    path = tmp_path / "saved" / "config_sentence_transformers.json"
    table = {**json.loads(path.read_text()), "model_type": "ColBERT", "query_prefix": "[Q] "}
    path.write_text(json.dumps({**table, "do_query_expansion": False, "prompts": {}}))
    found = scores_of(tmp_path / "saved", photos)
    assert_close(found, own_scores(tmp_path / "saved", photos), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, expected, atol=1e-2)


def _prefix(encoder):
    encoder.prompts = {"query": "a red ", "document": ""}


def _expansion(encoder):
    encoder[0].query_expansion = {"strategy": "fixed", "attend": False, "length": 20}


def _skip_list(encoder):
    encoder[2].skiplist_words, encoder[2].skiplist_tasks = ["a"], ["query"]


def _sum(encoder):
    encoder.similarity_fn_name = "maxsim"


def _token_pooling(encoder):
    encoder.add_module("4", HierarchicalTokenPooling(3))


@pytest.mark.parametrize("change", [_prefix, _expansion, _skip_list, _sum, _token_pooling])
def test_settings_of_a_model_count_as_in_its_library(change, exported, photos, tmp_path):
    encoder = MultiVectorEncoder(str(exported), device="cpu")
    change(encoder)
    encoder.save_pretrained(str(tmp_path / "changed"), create_model_card=False)
    found = scores_of(tmp_path / "changed", photos)
    assert_close(found, own_scores(tmp_path / "changed", photos), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, scores_of(exported, photos), atol=1e-3)
    assert models.load(tmp_path / "changed").digest != models.load(exported).digest


def test_a_copy_of_an_export_reads_images_as_the_export_does(exported, photos, tmp_path):
    """As the copy in an index, which is refused if it is another model."""
    model = models.load(exported)
    models.save(model, tmp_path / "copy")
    assert models.load(tmp_path / "copy").digest == model.digest
    assert torch.equal(scores_of(tmp_path / "copy", photos), scores_of(exported, photos))


def test_no_late_student_starts_from_a_model_that_is_not_trained(exported, colpali):
    for ref in (exported, colpali):
        recipe = training.load_recipe("demo-late", [f"model.start={ref}"])
        initial_model.check(recipe, has_teacher=False)
        with pytest.raises(ModelError, match=r"multi-vector model .* cannot be trained here"):
            initial_model.make_model(recipe, CAPTIONS, None)


def test_a_pylate_model_of_texts_alone_is_refused_by_name(tmp_path):
    bert = save_text("bert", CAPTIONS, tmp_path / "bert")
    MultiVectorEncoder(str(bert), device="cpu").save_pretrained(str(tmp_path / "own"), create_model_card=False)
    folder = tmp_path / "pylate"
    shutil.copytree(tmp_path / "own", folder)
    modules = json.loads((folder / "modules.json").read_text())[:2]
    modules[1]["type"] = "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16, "document_length": 20}
    table = {"model_type": "ColBERT", **settings, "attend_to_expansion_tokens": False, "skiplist_words": ["."]}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(table))
    with pytest.raises(ModelError, match="pylate reads text alone, not images and texts"):
        models.load(folder)
