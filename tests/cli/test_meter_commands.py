"""An official METER checkpoint in `convert`, `eval`, `cache-teacher` and `distill`."""

from __future__ import annotations

import re

import pytest
from byte_level import byte_level_bpe
from command_line import document_of, error_of, run
from huggingface_hub import constants
from paths import FIXTURES

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import cache
from dcdctl.core.training import runs

CHECKPOINT = FIXTURES / "meter_tiny_a.ckpt"
FOUR = "--recipe tiny-student --set candidates.per_query=4"
STUDENT = (
    "distill meter-flickr30k --set model.layers=[1] --set batch.size=4 --set batch.random_negatives=4 "
    "--set batch.hard_negatives=2"
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def model_sets(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    byte_level_bpe(corpus.captions, 110).save_pretrained(folder)
    return f"--model-set tokenizer={folder} --model-set text.num_attention_heads=3"


@pytest.fixture(scope="module")
def data(scenes_corpus_dir):
    return f"--data {scenes_corpus_dir} --device cpu"


@pytest.fixture(scope="module")
def converted(model_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "meter"
    result = run(f"convert {CHECKPOINT} --out {folder} {model_sets}")
    assert result.stdout == f"{CHECKPOINT} -> {folder}\n"
    assert "8 entries" in result.stderr
    again = folder.parent / "again"
    assert document_of(f"convert {CHECKPOINT} --out {again} {model_sets}") == {
        "model": str(again),
        "unused_entries": 8,
    }
    return folder


def test_convert_names_the_missing_setting(tmp_path):
    error = error_of(f"convert {CHECKPOINT} --out {tmp_path}/meter --model-set text.num_attention_heads=3")
    assert "roberta-base" in error
    assert "--model-set tokenizer=FOLDER" in error
    assert not (tmp_path / "meter").exists()


def test_a_checkpoint_is_evaluated_like_its_conversion(data, model_sets, converted):
    one = document_of(f"eval {CHECKPOINT} {data} --max-images 6 {model_sets}")
    other = document_of(f"eval {converted} {data} --max-images 6")
    assert one["protocol"]["kind"] == "fusion"
    assert one["pairs_scored"] == 6 * 30
    assert (one["text_retrieval"], one["image_retrieval"]) == (other["text_retrieval"], other["image_retrieval"])


def test_a_student_of_a_meter_is_distilled_from_its_cache(scenes_corpus_dir, data, converted, tmp_path):
    run(f"cache-teacher --teacher {converted} --out {tmp_path}/cache {FOUR} {data}")
    teacher = models.load(converted)
    assert cache.read_cache(tmp_path / "cache", corpus=Corpus.open(scenes_corpus_dir, "train"), teacher=teacher.digest)
    words = f"--teacher {converted} --cache {tmp_path}/cache --out {tmp_path}/run {data}"
    run(f"{STUDENT} --set optimizer.steps=3 {words}")
    assert runs.Run(tmp_path / "run").metrics()[-1]["dcd-released"] > 0
    student = models.load(tmp_path / "run")
    assert len(student.layers) == 1
    old, new = (
        teacher.network.text_layers[1].feed_forward.up.weight,
        student.network.text_layers[0].feed_forward.up.weight,
    )
    assert not old.equal(new)
    assert teacher.network.vision.embeddings.class_embedding.equal(student.network.vision.embeddings.class_embedding)


def test_features_on_disk_serve_eval_the_cache_and_the_student(data, converted, tmp_path):
    root = tmp_path / "features"
    data = f"{data} --max-images 8 --features {root}"
    assert document_of(f"eval {converted} {data}")["protocol"]["features"] == "float16"
    cached = run(f"cache-teacher --teacher {converted} --out {tmp_path}/cache {FOUR} {data}")
    assert re.search(r"encode 8 images, then 40 captions, [\d.]+ KB in all", cached.stderr)
    student = f"{STUDENT} --set optimizer.steps=1 --teacher {converted} --cache {tmp_path}/cache {data}"
    assert "encode" not in run(f"{student} --out {tmp_path}/run").stderr
    assert [path.name.partition("-")[0] for path in sorted(root.iterdir())] == ["test", "train"]
    refused = error_of(f"{student} --out {tmp_path}/other --set model.layers=[]")
    assert "--features stores the outputs of frozen encoders, and these encoders are trained" in refused


def test_a_meter_is_fine_tuned_in_both_directions_and_caches(data, converted, tmp_path):
    run(
        f"finetune-teacher meter-flickr30k-teacher --teacher {converted} --out {tmp_path}/run {data} "
        "--set batch.size=4 --set batch.random_negatives=3 --set optimizer.steps=2 --set optimizer.lr=1e-3 "
        "--set optimizer.warmup_share=0"
    )
    before, after = models.load(converted).network.state_dict(), models.load(tmp_path / "run").network.state_dict()
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    parts = ("vision.", "text.", "text_transform.", "image_transform.", "text_layers.", "image_pooler.", "rank_output.")
    assert all(any(name.startswith(part) for name in changed) for part in parts)
    run(f"cache-teacher --teacher {tmp_path}/run --out {tmp_path}/cache {FOUR} {data}")
