"""cache-teacher, distill and finetune-teacher on the command line."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import document_of, error_of, run
from tiny import make_teacher, make_wide_dual

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import cache as teacher_cache

LISTS = (
    "--set batch.size=8 --set batch.random_negatives=4 --set batch.hard_negatives=2 --set optimizer.steps=3 "
    "--device cpu"
)
STUDENT = f"--set 'model.layers=[0, 2]' {LISTS}"
NEW_FUSION = "--set model.hidden_size=32 --set model.num_layers=2 --set model.vocab_size=200 --device cpu"
NEW = f"{NEW_FUSION} --set model.num_text_layers=1 --set model.projection_dim=16"
FOUR = "--recipe tiny-student --set candidates.per_query=4 --device cpu"


@pytest.fixture(scope="module")
def teacher(scenes_corpus_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    models.save(make_teacher(Corpus.open(scenes_corpus_dir, "train").captions), folder)
    return folder


@pytest.fixture(scope="module")
def scored(scenes_corpus_dir, teacher):
    """A command that scores, but for its pairs and its output."""
    return f"cache-teacher --data {scenes_corpus_dir} --teacher {teacher}"


@pytest.fixture(scope="module")
def cache(scored, scenes_corpus_dir, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "cache"
    result = run(f"{scored} --out {folder} {FOUR}")
    made = f"{teacher_cache.read_cache(folder).num_pairs:,} scored pairs of 32 images and 160 captions -> {folder}"
    place = f"--data {scenes_corpus_dir} --cache {folder} --teacher {teacher}"
    assert (
        result.stdout == f"{made}; next: dcdctl distill tiny-student {place} --set candidates.per_query=4 --out RUN\n"
    )
    assert "score: " in result.stderr
    return folder


def test_cache_teacher_takes_the_first_images_and_a_model_setting(scored, tmp_path):
    run(f"{scored} --out {tmp_path}/cache --max-images 8 --split test --model-set max_text_len=9 {FOUR}")
    plan = json.loads((tmp_path / "cache" / "plan.json").read_text())
    assert (plan["split"], plan["images"], plan["max_text_len"]) == ("test", 8, 9)


def test_distill_writes_a_student_and_names_the_next_command(scenes_corpus_dir, teacher, cache, tmp_path):
    out = tmp_path / "run"
    line = f"distill tiny-student --data {scenes_corpus_dir} --cache {cache} --teacher {teacher} --out {out} {STUDENT}"
    result = run(line)
    # The corpus has a split test, the default of eval.
    assert result.stdout == f"student -> {out / 'model'}; next: dcdctl eval {out} --data {scenes_corpus_dir}\n"
    assert "train: 3/3 steps, loss " in result.stderr
    assert len(models.load_fusion(out).layers) == 2
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [0, 2]
    assert list((out / "tensorboard").iterdir())
    assert "already holds a run; resume with --resume" in error_of(line)
    run(f"{line} --resume")


def test_a_dry_run_of_a_training_shows_its_negatives_and_writes_nothing(scenes_corpus_dir, cache, tmp_path):
    words = f"--data {scenes_corpus_dir} --out {tmp_path}/run {LISTS} --set optimizer.steps=60 --dry-run"
    # The teacher is not opened, so that any reference of a model will do.
    result = run(f"distill tiny-student --cache {cache} --teacher owner/absent {words}")
    assert result.stdout.startswith("steps: 60\nbatches per epoch: 20\nepochs: 3\nbatch size: 8\n")
    assert "\nthe cache covers 100% of the captions" in result.stdout
    assert result.stdout.count("(4 of 4 candidates drawn, 2 kept)") == 2
    assert result.stderr.count("warning: 4 of the 4 cached candidates") == 1
    assert "--set candidates.per_query=40" in result.stderr
    tuned = run(f"finetune-teacher tiny-teacher {words}")
    assert "of 155 candidates drawn" in tuned.stdout
    assert not tuned.stderr
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_manifest_counts_what_that_of_its_corpus_measures(
    scenes_corpus_dir, scored, cache, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    split = "train = { images = 32, captions = 160 }"
    (tmp_path / "mine.toml").write_text(f'format = "csv"\npairs = "absent.csv"\nimages = "."\n[expected]\n{split}\n')
    more = "--set batch.size=40 --set optimizer.epochs=3 --out NEW --dry-run"
    for line, unit, count in (
        # Lists of a student are 1 + 2 pairs, of a teacher 1 + 4; a batch of all pairs has no more than 32 images.
        (f"distill tiny-student {LISTS} --cache {cache} --teacher owner/absent", "pairs", 40 * 3),
        (f"finetune-teacher tiny-teacher {LISTS}", "pairs", 40 * 5),
        ("distill demo-dual-alone --set validation.every=0", "images", 32),
    ):
        real, counted = (document_of(f"{line} {more} --data {data}") for data in (scenes_corpus_dir, "mine.toml"))
        assert counted.pop("warnings") == [
            "only counted, with every caption covered; `dcdctl prepare mine.toml --out mine` makes the corpus"
        ]
        assert counted.items() <= real.items()
        assert counted[f"{unit}_per_step"] == count
    # Needs no teacher, and loads none.
    line = f"cache-teacher {FOUR} --max-images 16 --out NEW --dry-run"
    real = document_of(f"{line.replace('NEW', 'plan')} {scored.removeprefix('cache-teacher')}")
    for named in ("--data mine.toml", "--data mine.toml --teacher owner/absent", f"--data {scenes_corpus_dir}"):
        counted = document_of(f"{line} {named}")
        # Four of each side beside the positives; fewer where both propose the same pair.
        assert real["pairs"] < counted["pairs"] == 80 + 16 * 4 + 80 * 4
        assert counted["disk_bytes"] * real["pairs"] == real["disk_bytes"] * counted["pairs"]
        assert counted.keys() == real.keys()
        assert counted["seconds"] is counted["pairs_per_s"] is None
    told = run(f"{line} --data mine.toml --max-pairs 200 --extend {cache}").stderr
    pairs = 200 + teacher_cache.read_cache(cache).num_pairs
    assert f"at most {pairs:,} pairs, 200 to score (264 more exceed --max-pairs): 0:02 at 100 pairs/s (--teach" in told
    assert {path.name for path in tmp_path.iterdir()} == {"mine.toml", "plan"}
    assert "`dcdctl prepare mine.toml --out mine`" in error_of("distill demo-dual-alone --data mine.toml --out NEW")


def test_finetune_teacher_writes_a_teacher_that_can_be_cached(scenes_corpus_dir, tmp_path):
    out = tmp_path / "run"
    result = run(f"finetune-teacher tiny-teacher --data {scenes_corpus_dir} --out {out} {NEW_FUSION} {LISTS}")
    next_step = f"dcdctl cache-teacher --teacher {out} --data {scenes_corpus_dir} --recipe RECIPE --out CACHE"
    assert result.stdout == f"teacher -> {out / 'model'}; next: {next_step}\n"
    assert json.loads((out / "run.json").read_text())["what"] == "finetune-teacher"
    run(f"cache-teacher --data {scenes_corpus_dir} --teacher {out} --out {tmp_path}/cache {FOUR}")


UNSET = "--model-set is for the model named by --teacher, and none is named"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "distill tiny-student --cache CACHE --teacher OTHER --set batch.random_negatives=4 "
            "--set batch.hard_negatives=2",
            r".* was made with another teacher",
        ),
        ("finetune-teacher demo-dual", "recipe demo-dual trains a student; finetune-teacher expects a fusion model"),
        ("distill tiny-teacher --model-set max_text_len=9", UNSET),
        ("finetune-teacher tiny-teacher --model-set max_text_len=9", UNSET),
        (
            "finetune-teacher tiny-teacher --set batch.size=4 --accumulate 5",
            "batch.size is 4, too few for 5 micro-batches",
        ),
    ],
)
def test_a_mistake_is_one_line_and_no_run(line, message, scenes_corpus_dir, cache, tmp_path):
    models.save(make_teacher(Corpus.open(scenes_corpus_dir, "train").captions, seed=1), tmp_path / "other")
    line = line.replace("CACHE", str(cache)).replace("OTHER", f"{tmp_path}/other")
    error = error_of(f"{line} --data {scenes_corpus_dir} --out {tmp_path}/run --device cpu")
    assert re.match(f"error: {message}", error)
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_every_option_of_finetune_teacher_has_its_effect(scenes_corpus_dir, tmp_path):
    out = tmp_path / "run"
    sets = f"{NEW_FUSION} --set batch.size=4 --set batch.negatives=mined --set optimizer.steps=2 --precision bf16"
    run(
        f"finetune-teacher tiny-teacher --data {scenes_corpus_dir} --out {out} --split test --max-images 8 {sets} "
        "--workers 1 --accumulate 2 --checkpoint-activations"
    )
    facts = json.loads((out / "run.json").read_text())
    assert (facts["inputs"]["split"], facts["inputs"]["precision"]) == ("test", "bfloat16")
    assert facts["inputs"]["corpus"] == Corpus.open(scenes_corpus_dir, "test", 8).fingerprint
    assert (out / "mined.safetensors").is_file()


@pytest.mark.parametrize("more", ["", "--dry-run"])
def test_cache_teacher_asks_for_its_recipe_and_lists_those_with_candidates(more, scored, tmp_path):
    error = error_of(f"{scored} --out {tmp_path}/cache {more}")
    assert error.startswith(
        "error: no --recipe is named, and its [candidates] say which pairs the teacher scores; name the recipe"
    )
    listed = error.rpartition("one of ")[2].strip().split(", ")
    assert {"demo-dual", "tiny-student", "vilt-flickr30k", "meter-coco"} <= set(listed)
    assert {"demo-dual-alone", "tiny-teacher", "photos-teacher"}.isdisjoint(listed)
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_shows_the_estimate_and_scores_nothing(scored, tmp_path):
    result = run(f"{scored} --out {tmp_path}/cache {FOUR} --dry-run")
    assert re.search(
        r"\d+ pairs, \d+ to score: [\d,]+ pairs/s in a trial, about [\d:]+; at most [\d.]+ KB on disk", result.stderr
    )
    assert result.stdout == ""
    assert not list((tmp_path / "cache").glob("pairs-*"))


def test_a_cache_is_extended_and_verified_from_the_command_line(scored, cache, teacher, scenes_corpus_dir, tmp_path):
    of_teacher = f"--data {scenes_corpus_dir} --teacher {teacher} --device cpu"
    line = f"{scored} --out {tmp_path}/more --device cpu"
    extended = run(f"{line} --recipe tiny-student --set candidates.per_query=6 --extend {cache}")
    old, new = teacher_cache.read_cache(cache), teacher_cache.read_cache(tmp_path / "more")
    assert f"{new.num_pairs:,} pairs, {new.num_pairs - old.num_pairs:,} to score" in extended.stderr
    verified = run(f"verify {tmp_path}/more --scores 50 {of_teacher}").stdout
    assert re.search(r"\n50 pairs computed again, the largest difference is \d\.\de-\d+\n", verified)
    assert "name their corpus: --data DIR" in error_of(f"verify {cache} --scores 5 --teacher {teacher}")


def test_a_cache_is_planned_scored_elsewhere_and_sealed(scenes_corpus_dir, cache, tmp_path):
    out = tmp_path / "cache"
    line = f"cache-teacher --data {scenes_corpus_dir} --out {out} {FOUR}"
    planned = run(f"{line} --engine files:{tmp_path}/tasks").stdout
    own = teacher_cache.read_cache(cache)
    work = f"{own.num_pairs} pairs without a score in 1 task -> {tmp_path}/tasks"
    take = "the same command with --scores FILES --teacher NAME in place of --engine"
    assert planned == f"{work}; next: {take}\n"
    rows = pq.read_table(tmp_path / "tasks" / "tasks-00000.parquet")
    assert rows.schema.names == ["image_id", "caption_id", "image_index", "caption_index", "caption", "image_bytes"]
    scores = own.lookup(rows["image_index"].to_numpy(), rows["caption_index"].to_numpy())
    scored = rows.append_column("score", pa.array(scores))
    pq.write_table(scored[:-1], tmp_path / "scores.parquet")
    take = f"{line} --scores {tmp_path}/scores.parquet --teacher 'a vilt'"
    assert f"1 of {own.num_pairs} pairs" in error_of(take)
    last = scored[-1:].select(["image_id", "caption_id", "score"]).to_pandas()
    last.to_json(tmp_path / "last.jsonl", orient="records", lines=True)
    taken = run(f"{take} --scores {tmp_path}/last.jsonl").stdout
    cached = f"{out}; next: dcdctl distill tiny-student --data {scenes_corpus_dir} --cache {out} --teacher REF "
    assert taken.startswith(f"{own.num_pairs} scored pairs of 32 images and 160 captions -> {cached}")
    np.testing.assert_allclose(teacher_cache.read_cache(out).score_P, own.score_P, rtol=1e-6)
    assert "\n  scores from elsewhere: a vilt\n" in run(f"inspect {out}").stdout
    assert "elsewhere" not in run(f"inspect {cache}").stdout
    refused = error_of(f"verify {out} --scores 5 --data {scenes_corpus_dir} --teacher vilt-coco")
    assert "are those of a vilt, which dcdctl cannot compute again; score some pairs again elsewhere" in refused


def test_texts_are_encoded_verified_and_inspected(tmp_path):
    models.save(make_wide_dual(["a red circle"]), tmp_path / "dual")
    (tmp_path / "a.csv").write_text("text,language\na red circle,en\nein roter Kreis,de\nA red circle.,en\n")
    line = f"cache-texts --teacher {tmp_path}/dual --texts {tmp_path}/a.csv --out {tmp_path}/q --device cpu"
    following = f"{tmp_path}/q; next: dcdctl distill query-minilm --cache {tmp_path}/q --out RUN\n"
    assert run(line).stdout == f"vectors of 2 texts, 8 numbers each -> {following}"
    document = json.loads(run(f"{line} --json").stdout)
    assert document["texts"] == 2
    assert document["languages"] == {"de": 1, "en": 1}
    verified = run(f"verify {tmp_path}/q --scores 2 --teacher {tmp_path}/dual").stdout
    assert "2 texts computed again, the largest difference is 0.0e+00\n" in verified
    shown = run(f"inspect {tmp_path}/q").stdout
    assert "texts: 2, 8 numbers per text\n" in shown
    assert "languages: 1 de, 1 en\n" in shown
    assert json.loads(run(f"inspect {tmp_path}/q --json").stdout)["part_sizes"] == [2]
    assert "is an index" not in error_of(f"inspect {tmp_path}/q --split val", code=2)


def test_scores_without_an_order_get_a_note(scenes_corpus_dir, tmp_path):
    line = f"cache-teacher --data {scenes_corpus_dir} --out {tmp_path}/cache {FOUR}"
    run(f"{line} --engine files:{tmp_path}/tasks")
    rows = pq.read_table(tmp_path / "tasks")
    is_own = np.random.default_rng(0).random(len(rows)) < 0.5
    pq.write_table(rows.append_column("score", pa.array(is_own.astype(float))), tmp_path / "scores.parquet")
    taken = run(f"{line} --scores {tmp_path}/scores.parquet --teacher judge")
    sentence = "every score is 0 or 1: nothing can be learned from the order of the scores"
    assert sentence in taken.stderr
    assert sentence in run(f"inspect {tmp_path}/cache").stdout
    assert json.loads(run(f"inspect {tmp_path}/cache --json").stdout)["lack_of_order"] == sentence


def test_joined_splits_go_from_cache_to_student_to_recall(scored, scenes_corpus_dir, teacher, cache, tmp_path):
    """The scores of train are reused, and the cache of the joined splits fits no other."""
    joined, trained, few = (tmp_path / name for name in ("joined", "run", "few"))
    made = run(f"{scored} --split train+val --extend {cache} --out {joined} {FOUR}")
    assert "40 images and 200 captions" in made.stdout
    read = teacher_cache.read_cache(joined, corpus=Corpus.open(scenes_corpus_dir, "train+val"))
    assert read.plan["split"] == "train+val"
    train = f"distill tiny-student --data {scenes_corpus_dir} --teacher {teacher} {STUDENT}"
    cached = f"{train} --cache {joined} --out {trained}"
    assert "was made with another corpus" in error_of(cached)
    both = f"{cached} --split train+val"
    refused = error_of(f"{both} --set validation.every=2")
    assert "validation.split is val, and the training reads --split train+val" in refused
    assert not trained.exists()
    run(both)
    assert json.loads((trained / "run.json").read_text())["inputs"]["split"] == "train+val"
    on_data = f"--data {scenes_corpus_dir} --device cpu --json"
    result = run(f"eval {trained} {on_data} --split val+test --max-images 10")
    document = json.loads(result.stdout)
    assert (document["split"], document["images"]) == ("val+test", 10)
    assert (
        "run was trained on split train+val: recalls on val+test do not show how it does on other images"
        in result.stderr
    )
    assert "was trained on" not in run(f"eval {trained} {on_data} --split test --max-images 2").stderr
    run(f"{train} --max-images 8 --set loss.terms={{ground-truth=1.0}} --out {few}")
    warned = run(f"eval {few} {on_data} --split train --max-images 2").stderr
    assert "few was trained on split train: recalls on train" in warned
    found = document_of(f"inspect {scenes_corpus_dir} --split train+val")
    assert found["splits"]["train+val"]["images"] == 40
