"""An official METER checkpoint in `convert`, `eval`, `cache-teacher` and `distill`."""

from __future__ import annotations

import json

import pytest
from byte_level import byte_level_bpe
from huggingface_hub import constants
from paths import FIXTURES
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import cache
from dcdctl.core.training import runs

CHECKPOINT = FIXTURES / "meter_tiny_a.ckpt"
RECIPE = ["--recipe", "tiny-student"]
CPU = ["--device", "cpu"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def run_cli(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def model_sets(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    byte_level_bpe(corpus.captions, 110).save_pretrained(folder)
    return ["--model-set", f"tokenizer={folder}", "--model-set", "text.num_attention_heads=3"]


@pytest.fixture(scope="module")
def converted(model_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "meter"
    result = run_cli("convert", CHECKPOINT, "--out", folder, *model_sets)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{CHECKPOINT} -> {folder}\n"
    assert "8 entries" in result.stderr
    again = run_cli("convert", CHECKPOINT, "--out", folder.parent / "again", "--json", *model_sets)
    assert json.loads(again.stdout) == {"model": str(folder.parent / "again"), "unused_entries": 8}
    return folder


def test_convert_names_the_missing_setting(tmp_path):
    result = run_cli("convert", CHECKPOINT, "--out", tmp_path / "meter", "--model-set", "text.num_attention_heads=3")
    assert result.exit_code == 1
    assert "roberta-base" in result.stderr
    assert "--model-set tokenizer=FOLDER" in result.stderr
    assert not (tmp_path / "meter").exists()


def test_a_checkpoint_is_evaluated_like_its_conversion(scenes_corpus_dir, model_sets, converted):
    words = ["--data", scenes_corpus_dir, "--max-images", 6, "--json", *CPU]
    results = [run_cli("eval", CHECKPOINT, *words, *model_sets), run_cli("eval", converted, *words)]
    assert [result.exit_code for result in results] == [0, 0]
    one, other = (json.loads(result.stdout) for result in results)
    assert one["protocol"]["kind"] == "fusion"
    assert one["pairs_scored"] == 6 * 30
    assert (one["text_retrieval"], one["image_retrieval"]) == (other["text_retrieval"], other["image_retrieval"])


def test_a_student_of_a_meter_is_distilled_from_its_cache(scenes_corpus_dir, converted, corpus, tmp_path):
    data = ["--data", scenes_corpus_dir, *CPU]
    cached = run_cli(
        "cache-teacher",
        "--teacher",
        converted,
        "--out",
        tmp_path / "cache",
        *RECIPE,
        "--set",
        "candidates.per_query=4",
        *data,
    )
    assert cached.exit_code == 0, cached.stderr
    assert cache.read_cache(
        tmp_path / "cache", corpus=Corpus.open(scenes_corpus_dir, "train"), teacher=models.load(converted).digest
    )
    sets = [
        "model.layers=[1]",
        "batch.size=4",
        "batch.random_negatives=4",
        "batch.hard_negatives=2",
        "optimizer.steps=3",
    ]
    options = [word for one in sets for word in ("--set", one)]
    words = ["--teacher", converted, "--cache", tmp_path / "cache", "--out", tmp_path / "run", *options, *data]
    distilled = run_cli("distill", "meter-flickr30k", *words)
    assert distilled.exit_code == 0, distilled.stderr
    assert runs.Run(tmp_path / "run").metrics()[-1]["dcd-released"] > 0
    student, teacher = models.load(tmp_path / "run"), models.load(converted)
    assert len(student.layers) == 1
    old, new = (
        teacher.network.text_layers[1].feed_forward.up.weight,
        student.network.text_layers[0].feed_forward.up.weight,
    )
    assert not old.equal(new)
    assert teacher.network.vision.embeddings.class_embedding.equal(student.network.vision.embeddings.class_embedding)


def test_features_on_disk_serve_eval_the_cache_and_the_student(scenes_corpus_dir, converted, tmp_path):
    root = tmp_path / "features"
    data = ["--data", scenes_corpus_dir, "--max-images", 8, "--features", root, *CPU]
    evaluated = run_cli("eval", converted, "--json", *data)
    assert evaluated.exit_code == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["protocol"]["features"] == "float16"
    cached = run_cli(
        "cache-teacher",
        "--teacher",
        converted,
        "--out",
        tmp_path / "cache",
        *RECIPE,
        "--set",
        "candidates.per_query=4",
        *data,
    )
    assert cached.exit_code == 0, cached.stderr
    assert "encode 8 images, then 40 captions, 0.00 GB in all" in cached.stderr
    sets = [
        "model.layers=[1]",
        "batch.size=4",
        "batch.random_negatives=4",
        "batch.hard_negatives=2",
        "optimizer.steps=1",
    ]
    words = ["--teacher", converted, "--cache", tmp_path / "cache", *[word for one in sets for word in ("--set", one)]]
    distilled = run_cli("distill", "meter-flickr30k", "--out", tmp_path / "run", *words, *data)
    assert distilled.exit_code == 0, distilled.stderr
    assert "encode" not in distilled.stderr
    assert [path.name.partition("-")[0] for path in sorted(root.iterdir())] == ["test", "train"]
    refused = run_cli(
        "distill", "meter-flickr30k", "--out", tmp_path / "other", *words, "--set", "model.layers=[]", *data
    )
    assert refused.exit_code == 1
    assert "--features stores the outputs of frozen encoders, and these encoders are trained" in refused.stderr


def test_a_meter_is_fine_tuned_in_both_directions_and_caches(scenes_corpus_dir, converted, tmp_path):
    data = ["--data", scenes_corpus_dir, *CPU]
    sets = [
        "batch.size=4",
        "batch.random_negatives=3",
        "optimizer.steps=2",
        "optimizer.lr=1e-3",
        "optimizer.warmup_share=0",
    ]
    tuning = ["finetune-teacher", "meter-flickr30k-teacher", "--teacher", converted, "--out", tmp_path / "run"]
    tuned = run_cli(*tuning, *[word for one in sets for word in ("--set", one)], *data)
    assert tuned.exit_code == 0, tuned.stderr
    before, after = models.load(converted).network.state_dict(), models.load(tmp_path / "run").network.state_dict()
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    parts = ("vision.", "text.", "text_transform.", "image_transform.", "text_layers.", "image_pooler.", "rank_output.")
    assert all(any(name.startswith(part) for name in changed) for part in parts)
    cached = run_cli(
        "cache-teacher",
        "--teacher",
        tmp_path / "run",
        "--out",
        tmp_path / "cache",
        *RECIPE,
        "--set",
        "candidates.per_query=2",
        *data,
    )
    assert cached.exit_code == 0, cached.stderr
