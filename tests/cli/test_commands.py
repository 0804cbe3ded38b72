"""cache-teacher, distill and finetune-teacher on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import contents, make_teacher
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import cache as teacher_cache

Run = Callable[..., Any]
LISTS = [
    "--set",
    "batch.size=8",
    "--set",
    "batch.random_negatives=4",
    "--set",
    "batch.hard_negatives=2",
    "--set",
    "optimizer.steps=3",
]
NEW = [
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_text_layers=1",
    "model.vocab_size=200",
    "model.projection_dim=16",
]
FOUR = ["--recipe", "tiny-student", "--set", "candidates.per_query=4"]
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def run_cli() -> Run:
    runner = CliRunner()

    def run(*words: object) -> Any:
        return runner.invoke(app, [str(word) for word in words], catch_exceptions=False)

    return run


@pytest.fixture(scope="module")
def teacher(scenes_corpus_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    models.save(make_teacher(Corpus.open(scenes_corpus_dir, "train").captions), folder)
    return folder


@pytest.fixture(scope="module")
def cache(run_cli, scenes_corpus_dir, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "cache"
    result = run_cli("cache-teacher", "--data", scenes_corpus_dir, "--teacher", teacher, "--out", folder, *FOUR, *CPU)
    assert result.exit_code == 0, result.stderr
    made = f"{teacher_cache.read_cache(folder).num_pairs:,} scored pairs of 32 images and 160 captions -> {folder}"
    place = f"--data {scenes_corpus_dir} --cache {folder} --teacher {teacher}"
    assert (
        result.stdout == f"{made}; next: dcdctl distill tiny-student {place} --set candidates.per_query=4 --out RUN\n"
    )
    assert "score: " in result.stderr
    return folder


def test_cache_teacher_writes_the_requested_cache(scenes_corpus_dir, cache):
    read = teacher_cache.read_cache(cache, corpus=Corpus.open(scenes_corpus_dir, "train"))
    assert read.plan["candidates"]["per_query"] == 4
    assert read.plan["precision"] == "float32"
    assert {path.name for path in cache.iterdir()} == {
        "plan.json",
        "items.parquet",
        "pairs-00000.parquet",
        "cache.json",
    }


def test_cache_teacher_with_other_settings_into_the_same_folder_names_both(run_cli, scenes_corpus_dir, teacher, cache):
    before = contents(cache)
    words = ["cache-teacher", "--data", scenes_corpus_dir, "--teacher", teacher, "--out", cache, *FOUR, *CPU]
    result = run_cli(*words, "--precision", "bf16")
    assert result.exit_code == 1
    assert "another precision (float32, not bfloat16); name another folder, or delete this one" in result.stderr
    assert result.stdout == ""
    assert contents(cache) == before


def test_cache_teacher_takes_the_first_images_and_a_model_setting(run_cli, scenes_corpus_dir, teacher, tmp_path):
    words = ["--max-images", 8, "--split", "test", "--model-set", "max_text_len=9", *FOUR, *CPU]
    result = run_cli(
        "cache-teacher", "--data", scenes_corpus_dir, "--teacher", teacher, "--out", tmp_path / "cache", *words
    )
    assert result.exit_code == 0, result.stderr
    plan = json.loads((tmp_path / "cache" / "plan.json").read_text())
    assert (plan["split"], plan["images"], plan["max_text_len"]) == ("test", 8, 9)


def test_distill_writes_a_student_and_names_the_next_command(run_cli, scenes_corpus_dir, teacher, cache, tmp_path):
    out = tmp_path / "run"
    words = ["tiny-student", "--data", scenes_corpus_dir, "--cache", cache, "--teacher", teacher, "--out", out]
    result = run_cli("distill", *words, "--set", "model.layers=[0, 2]", *LISTS, *CPU)
    assert result.exit_code == 0, result.stderr
    # The corpus has a split test, the default of eval.
    assert result.stdout == f"student -> {out / 'model'}; next: dcdctl eval {out} --data {scenes_corpus_dir}\n"
    assert "train: 3/3 steps, loss " in result.stderr
    assert len(models.load_fusion(out).layers) == 2
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [0, 2]
    assert list((out / "tensorboard").iterdir())
    again = run_cli("distill", *words, "--set", "model.layers=[0, 2]", *LISTS, *CPU)
    assert again.exit_code == 1
    assert "already holds a run; resume with --resume" in again.stderr
    assert run_cli("distill", *words, "--set", "model.layers=[0, 2]", *LISTS, *CPU, "--resume").exit_code == 0


def test_a_dry_run_of_a_training_shows_its_negatives_and_writes_nothing(run_cli, scenes_corpus_dir, cache, tmp_path):
    out = tmp_path / "run"
    words = ["--data", scenes_corpus_dir, "--out", out, *LISTS, "--set", "optimizer.steps=60", *CPU, "--dry-run"]
    # The teacher is not opened, so that any reference of a model will do.
    result = run_cli("distill", "tiny-student", "--cache", cache, "--teacher", "owner/absent", *words)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(
        "steps: 60\nbatches per epoch: 20\nepochs: 3\nbatch: 8 lists\nthe cache covers: 100% of the captions"
    )
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if line.startswith("│")
    ]
    assert [(row[0], *row[2:6], row[6]) for row in rows] == [
        ("image", "4", "4", "2", "2", "32"),
        ("caption", "4", "4", "2", rows[1][5], "32"),
    ]
    assert result.stderr.count("warning: 4 of the 4 cached candidates") == 1
    assert "--set candidates.per_query=40" in result.stderr
    tuned = run_cli("finetune-teacher", "tiny-teacher", *words)
    assert tuned.exit_code == 0, tuned.stderr
    assert "│ image   │" in tuned.stdout
    assert "155" in tuned.stdout
    assert not tuned.stderr
    assert not list(tmp_path.iterdir())


def test_distill_makes_a_dual_without_a_teacher_model(run_cli, scenes_corpus_dir, cache, tmp_path):
    sets = [word for assignment in [*NEW, "batch.size=8", "optimizer.steps=2"] for word in ("--set", assignment)]
    words = [
        "--data",
        scenes_corpus_dir,
        "--cache",
        cache,
        "--out",
        tmp_path / "run",
        *sets,
        *CPU,
        "--precision",
        "bf16",
    ]
    result = run_cli("distill", "demo-dual", *words)
    assert result.exit_code == 0, result.stderr
    assert models.load_dual(tmp_path / "run").embed_texts(
        models.load_dual(tmp_path / "run").preprocess.texts(["a"])
    ).shape == (1, 16)


def test_distill_with_a_cache_of_another_teacher_is_one_line_and_no_run(run_cli, scenes_corpus_dir, cache, tmp_path):
    models.save(make_teacher(Corpus.open(scenes_corpus_dir, "train").captions, seed=1), tmp_path / "other")
    words = ["--data", scenes_corpus_dir, "--cache", cache, "--teacher", tmp_path / "other", "--out", tmp_path / "run"]
    result = run_cli("distill", "tiny-student", *words, *CPU)
    assert result.exit_code == 1
    assert "was made with another teacher" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_finetune_teacher_writes_a_teacher_that_can_be_cached(run_cli, scenes_corpus_dir, tmp_path):
    out = tmp_path / "run"
    sets = [word for assignment in NEW for word in ("--set", assignment)]
    result = run_cli("finetune-teacher", "tiny-teacher", "--data", scenes_corpus_dir, "--out", out, *sets, *LISTS, *CPU)
    assert result.exit_code == 0, result.stderr
    next_step = f"dcdctl cache-teacher --teacher {out} --data {scenes_corpus_dir} --recipe RECIPE --out CACHE"
    assert result.stdout == f"teacher -> {out / 'model'}; next: {next_step}\n"
    assert json.loads((out / "run.json").read_text())["what"] == "finetune-teacher"
    words = ["--data", scenes_corpus_dir, "--teacher", out, "--out", tmp_path / "cache", *FOUR, *CPU]
    assert run_cli("cache-teacher", *words).exit_code == 0


def test_finetune_teacher_with_a_students_recipe_says_what_it_expects(run_cli, scenes_corpus_dir, tmp_path):
    result = run_cli("finetune-teacher", "demo-dual", "--data", scenes_corpus_dir, "--out", tmp_path / "run", *CPU)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: recipe demo-dual trains a student; finetune-teacher expects a fusion model")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["distill", "finetune-teacher"])
def test_a_misspelt_field_lists_the_known_ones(run_cli, scenes_corpus_dir, tmp_path, command):
    result = run_cli(
        command, "tiny-teacher", "--data", scenes_corpus_dir, "--out", tmp_path / "run", "--set", "batch.sise=8", *CPU
    )
    assert result.exit_code == 1
    assert "unknown key batch.sise; known keys here: size, random_negatives" in result.stderr


@pytest.mark.parametrize("command", ["distill", "finetune-teacher"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu", "--precision", "int8"], "precision must be one of fp32, bf16, fp16, got int8"),
        (["--device", "gpu"], "device gpu is unknown, expected auto, cpu"),
        (["--model-set", "max_text_len=9"], "--model-set is for the model named by --teacher, and none is named"),
    ],
)
def test_a_wrong_value_is_one_line_and_no_run(run_cli, scenes_corpus_dir, tmp_path, command, words, message):
    result = run_cli(command, "tiny-teacher", "--data", scenes_corpus_dir, "--out", tmp_path / "run", *words)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_every_option_of_finetune_teacher_has_its_effect(run_cli, scenes_corpus_dir, tmp_path):
    out = tmp_path / "run"
    sets = [
        word
        for assignment in [*NEW, "batch.size=4", "batch.negatives=mined", "optimizer.steps=2"]
        for word in ("--set", assignment)
    ]
    words = [
        "--data",
        scenes_corpus_dir,
        "--out",
        out,
        "--split",
        "test",
        "--max-images",
        8,
        *sets,
        *CPU,
        "--precision",
        "bf16",
    ]
    result = run_cli(
        "finetune-teacher", "tiny-teacher", *words, "--workers", 1, "--accumulate", 2, "--checkpoint-activations"
    )
    assert result.exit_code == 0, result.stderr
    facts = json.loads((out / "run.json").read_text())
    assert (facts["inputs"]["split"], facts["inputs"]["precision"]) == ("test", "bfloat16")
    assert facts["inputs"]["corpus"] == Corpus.open(scenes_corpus_dir, "test", 8).fingerprint
    assert (out / "mined.safetensors").is_file()
    refused = run_cli(
        "finetune-teacher", "tiny-teacher", *words, "--accumulate", 5, "--resume", "--set", "optimizer.weight_decay=0.5"
    )
    assert "batch.size is 4, too few for 5 micro-batches" in refused.stderr


def test_cache_teacher_asks_for_its_recipe_and_lists_those_with_candidates(
    run_cli, scenes_corpus_dir, teacher, tmp_path
):
    words = ["cache-teacher", "--data", scenes_corpus_dir, "--teacher", teacher, "--out", tmp_path / "cache", *CPU]
    for more in ([], ["--dry-run"], ["--verify", 5, "--set", "candidates.per_query=4"]):
        result = run_cli(*words, *more)
        assert result.exit_code == 1
        assert result.stderr.startswith(
            "error: no --recipe is named, and its [candidates] say which pairs the teacher scores; name the recipe"
        )
        listed = result.stderr.rpartition("one of ")[2].strip().split(", ")
        assert {"demo-dual", "tiny-student", "vilt-flickr30k", "meter-coco"} <= set(listed)
        assert {"demo-dual-alone", "tiny-teacher", "photos-teacher"}.isdisjoint(listed)
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_shows_the_estimate_and_scores_nothing(run_cli, scenes_corpus_dir, teacher, tmp_path):
    words = [
        "cache-teacher",
        "--data",
        scenes_corpus_dir,
        "--teacher",
        teacher,
        "--out",
        tmp_path / "cache",
        "--device",
        "cpu",
    ]
    result = run_cli(*words, *FOUR, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert re.search(
        r"\d+ pairs, \d+ to score: [\d,]+ pairs/s in a trial, about [\d:]+; at most 0\.0 MB on disk", result.stderr
    )
    assert result.stdout == ""
    assert not list((tmp_path / "cache").glob("pairs-*"))


def test_a_cache_is_extended_and_verified_from_the_command_line(run_cli, scenes_corpus_dir, teacher, cache, tmp_path):
    words = ["cache-teacher", "--data", scenes_corpus_dir, "--teacher", teacher, "--device", "cpu"]
    extended = run_cli(
        *words,
        "--out",
        tmp_path / "more",
        "--recipe",
        "tiny-student",
        "--set",
        "candidates.per_query=6",
        "--extend",
        cache,
    )
    assert extended.exit_code == 0, extended.stderr
    old, new = teacher_cache.read_cache(cache), teacher_cache.read_cache(tmp_path / "more")
    assert f"{new.num_pairs:,} pairs, {new.num_pairs - old.num_pairs:,} to score" in extended.stderr
    verified = run_cli(*words, "--out", tmp_path / "more", "--verify", 50)
    assert verified.exit_code == 0, verified.stderr
    assert re.fullmatch(r".*more: 50 pairs scored again, the largest difference is \d\.\de-\d+\n", verified.stdout)
    refused = run_cli(*words, "--out", tmp_path / "more", "--verify", 50, "--precision", "bf16")
    assert refused.exit_code == 1
    assert "was made with another precision" in refused.stderr


def test_a_cache_is_planned_scored_elsewhere_and_sealed(run_cli, scenes_corpus_dir, cache, tmp_path):
    words = ["cache-teacher", "--data", scenes_corpus_dir, "--out", tmp_path / "cache", *FOUR, *CPU]
    planned = run_cli(*words, "--plan-only", "--with", "captions,paths")
    assert planned.exit_code == 0, planned.stderr
    own = teacher_cache.read_cache(cache)
    work = tmp_path / "cache" / "work"
    assert planned.stdout.startswith(
        f"{own.num_pairs} pairs without a score in 1 files -> {work}; next: dcdctl cache-teacher --data "
    )
    rows = pq.read_table(work / "work-00000.parquet")
    assert rows.schema.names == ["image_id", "caption_id", "image_index", "caption_index", "caption", "image_path"]
    scored = rows.append_column(
        "score", pa.array(own.lookup(rows["image_index"].to_numpy(), rows["caption_index"].to_numpy()))
    )
    pq.write_table(scored[:-1], tmp_path / "scores.parquet")
    take = [*words, "--scores", tmp_path / "scores.parquet", "--teacher-name", "a vilt"]
    partial = run_cli(*take)
    assert (partial.exit_code, partial.stdout) == (1, "")
    assert f"1 of {own.num_pairs} pairs" in partial.stderr
    scored[-1:].select(["image_id", "caption_id", "score"]).to_pandas().to_json(
        tmp_path / "last.jsonl", orient="records", lines=True
    )
    taken = run_cli(*take, "--scores", tmp_path / "last.jsonl")
    assert taken.exit_code == 0, taken.stderr
    cached = (
        f"{tmp_path / 'cache'}; next: dcdctl distill tiny-student --data {scenes_corpus_dir} --cache "
        f"{tmp_path / 'cache'} --teacher REF "
    )
    assert taken.stdout.startswith(f"{own.num_pairs} scored pairs of 32 images and 160 captions -> {cached}")
    np.testing.assert_allclose(teacher_cache.read_cache(tmp_path / "cache").score_P, own.score_P, rtol=1e-6)
    assert "\n  scores from elsewhere: a vilt\n" in run_cli("inspect", tmp_path / "cache").stdout
    assert "elsewhere" not in run_cli("inspect", cache).stdout
    verified = run_cli(
        "cache-teacher",
        "--data",
        scenes_corpus_dir,
        "--teacher",
        "vilt-coco",
        "--out",
        tmp_path / "cache",
        "--verify",
        5,
    )
    assert verified.exit_code == 1
    assert "are those of a vilt, which dcdctl cannot compute again; score some pairs again elsewhere" in verified.stderr


def test_joined_splits_go_from_cache_to_student_to_recall(run_cli, scenes_corpus_dir, teacher, cache, tmp_path):
    """The scores of train are reused, and the cache of the joined splits fits no other."""
    data = ["--data", scenes_corpus_dir]
    words = ["--split", "train+val", "--teacher", teacher, "--extend", cache, "--out", tmp_path / "joined"]
    result = run_cli("cache-teacher", *data, *words, *FOUR, *CPU)
    assert result.exit_code == 0, result.stderr
    assert "40 images and 200 captions" in result.stdout
    joined = teacher_cache.read_cache(tmp_path / "joined", corpus=Corpus.open(scenes_corpus_dir, "train+val"))
    assert joined.plan["split"] == "train+val"
    words = ["--teacher", teacher, "--cache", tmp_path / "joined", "--out", tmp_path / "run"]
    train = ["distill", "tiny-student", *data, *words, "--set", "model.layers=[0, 2]", *LISTS, *CPU]
    result = run_cli(*train)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "was made with another corpus" in result.stderr
    result = run_cli(*train, "--split", "train+val", "--set", "validation.every=2")
    assert result.exit_code == 1
    assert "validation.split is val, and the training reads --split train+val" in result.stderr
    assert not (tmp_path / "run").exists()
    result = run_cli(*train, "--split", "train+val")
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]["split"] == "train+val"
    result = run_cli("eval", tmp_path / "run", *data, "--split", "val+test", "--max-images", 10, "--json", *CPU)
    assert (json.loads(result.stdout)["split"], json.loads(result.stdout)["images"]) == ("val+test", 10)
    assert (
        "run was trained on split train+val: recalls on val+test do not show how it does on other images"
        in result.stderr
    )
    assert (
        "was trained on"
        not in run_cli("eval", tmp_path / "run", *data, "--split", "test", "--max-images", 2, "--json", *CPU).stderr
    )
    few = [
        *data,
        "--max-images",
        8,
        "--set",
        "model.layers=[0, 2]",
        "--set",
        "loss.terms={ground-truth=1.0}",
        *LISTS,
        *CPU,
    ]
    assert run_cli("distill", "tiny-student", *few, "--teacher", teacher, "--out", tmp_path / "few").exit_code == 0
    result = run_cli("eval", tmp_path / "few", *data, "--split", "train", "--max-images", 2, "--json", *CPU)
    assert "few was trained on split train: recalls on train" in result.stderr
    result = run_cli("inspect", scenes_corpus_dir, "--split", "train+val", "--json")
    assert json.loads(result.stdout)["splits"]["train+val"]["images"] == 40
