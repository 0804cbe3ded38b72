"""`--json` of the commands that train, score, report and serve: one document on stdout, with the numbers of their
files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import document_of, run
from made_runs import write_demo
from tiny import make_teacher

from dcdctl.cli import serve as serve_command
from dcdctl.cli.search_models import SearchModels
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.serve import Started
from dcdctl.core.teacher import CacheJob, read_cache
from dcdctl.core.training import Run, command_after_cache

FUSION = (
    "--device cpu --set model.hidden_size=32 --set model.num_layers=2 --set model.vocab_size=200 --set batch.size=8"
)
TINY = f"{FUSION} --set model.num_text_layers=1 --set model.projection_dim=16"
SETS = f"{TINY} --set optimizer.steps=6 --set optimizer.lr=0.01 --set validation.every=2 --set validation.split=val"


def next_line(document: dict[str, Any]) -> str:
    """The command that a document names as the next one, without the program."""
    return document["next"].removeprefix("dcdctl ")


@pytest.fixture(scope="module")
def teacher(scenes_corpus_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    models.save(make_teacher(Corpus.open(scenes_corpus_dir, "train").captions), folder)
    return folder


def test_a_training_prints_its_model_and_its_best_validation(scenes_corpus_dir, tmp_path):
    out = tmp_path / "a run"
    line = f"distill demo-dual-alone --data {scenes_corpus_dir} --out '{out}' {SETS}"
    found = document_of(line)
    assert found == {
        "run": str(out),
        "model": str(out / "model"),
        "model_digest": models.load_dual(out).digest,
        "steps": 6,
        "kept": "best",
        "best": found["best"],
        "validation": {
            "measure": "RSUM",
            "corpora": [{"corpus": "scenes", "start": None, "saved": found["best"]["rsum"]}],
            "share": 0.0,
        },
        "seconds": found["seconds"],
        "already_there": False,
        "next": f"dcdctl eval '{out}' --data {scenes_corpus_dir}",
    }
    best = max((entry for entry in Run(out).metrics() if "val_rsum" in entry), key=lambda entry: entry["val_rsum"])
    step, recalls = best["step"] + 1, found["best"]
    # 32 images in batches of 8 are 4 steps per epoch.
    assert (recalls["step"], recalls["epoch"], recalls["rsum"]) == (step, step / 4, best["val_rsum"])
    assert recalls["text_retrieval"]["R@5"] == best["val_text_r5"]
    assert recalls["image_retrieval"] == {f"R@{k}": best[f"val_image_r{k}"] for k in (1, 5, 10)}
    assert Run(out).facts()["threads"] == torch.get_num_threads()

    again = document_of(f"{line} --resume")
    assert again["already_there"]
    assert {**again, "already_there": False, "seconds": found["seconds"]} == found
    evaluated = document_of(f"{next_line(found)} --device cpu")
    assert (evaluated["model"], evaluated["split"]) == (str(out), "test")


def test_a_teacher_prints_its_model_and_a_dry_run_its_steps(scenes_corpus_dir, tmp_path):
    out = tmp_path / "run"
    line = f"finetune-teacher tiny-teacher --data {scenes_corpus_dir} --out {out} {FUSION} --set optimizer.steps=2"
    planned = document_of(f"{line} --set batch.random_negatives=4 --dry-run")
    # 160 captions in batches of 8.
    assert (planned["steps"], planned["batches_per_epoch"], planned["epochs"], planned["batch_size"]) == (2, 20, 0.1, 8)
    assert planned["different_negatives"]["per_caption"]["drawn"] == 4
    assert not out.exists()
    found = document_of(line)
    assert (found["model_digest"], found["kept"], found["best"]) == (
        models.load_fusion(out).digest,
        "last",
        None,
    )
    assert found["next"].startswith(f"dcdctl cache-teacher --teacher {out} --data {scenes_corpus_dir} --recipe")


def test_a_cache_prints_its_counts_and_a_training_that_runs(scenes_corpus_dir, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = (
        f"cache-teacher --data {scenes_corpus_dir} --max-images 16 --teacher {teacher} --out 'my cache' --device cpu "
        "--recipe tiny-student --set candidates.per_query=4 --set batch.size=4 --set batch.random_negatives=4 "
        "--set batch.hard_negatives=2 --set optimizer.steps=1 --set 'model.layers=[0, 2]'"
    )
    cost = document_of(f"{line} --dry-run")
    assert cost["pairs"] == cost["to_score"] > 0
    found = document_of(line)
    cache = read_cache(tmp_path / "my cache")
    assert (found["cache"], found["pairs"], found["teacher"]) == (
        "my cache",
        cache.num_pairs,
        models.load_fusion(teacher).digest,
    )
    assert (found["images"], found["captions"], found["already_there"]) == (16, 80, False)
    assert document_of(line)["already_there"]
    verify = f"verify 'my cache' --scores 5 --data {scenes_corpus_dir} --teacher {teacher} --device cpu"
    assert document_of(verify)["again"]["largest_difference"] < 1e-4
    trained = document_of(f"{next_line(found)} --device cpu")
    assert trained["model_digest"] == models.load_fusion(tmp_path / "RUN").digest
    assert Run(tmp_path / "RUN").facts()["inputs"]["images"] == 16


def test_the_training_after_a_cache_names_the_teacher_where_it_reads_more_than_scores():
    job = CacheJob(
        teacher="vilt",
        model_set=["max_text_len=9"],
        data=Path("hf://datasets/me/birds"),
        out=Path("c"),
    )
    assert (
        command_after_cache(job, "demo-dual", [])
        == "dcdctl distill demo-dual --data hf://datasets/me/birds --cache c --out RUN"
    )
    # The student of the paper starts from its teacher.
    named = "--cache c --teacher vilt --model-set max_text_len=9 --set 'model.layers=[0, 2]' --out RUN"
    assert command_after_cache(job, "tiny-student", ["model.layers=[0, 2]"]).endswith(named)


def test_tasks_for_another_program_name_their_folder(scenes_corpus_dir, tmp_path):
    planned = f"--recipe tiny-student --set candidates.per_query=4 --device cpu --engine files:{tmp_path}/tasks"
    found = document_of(f"cache-teacher --data {scenes_corpus_dir} --out {tmp_path}/cache {planned}")
    assert (found["folder"], found["tasks"]) == (str(tmp_path / "tasks"), 1)


def test_a_report_prints_its_files_and_models(scenes_corpus_dir, tmp_path):
    teacher, dual, *_ = write_demo(tmp_path / "demo", Corpus.open(scenes_corpus_dir, "test"))
    page, markdown, table = (tmp_path / f"r.{ending}" for ending in ("html", "md", "csv"))
    found = document_of(f"report {dual} --teacher-eval {teacher} --out {page} --to-markdown {markdown} --csv {table}")
    assert (found["page"], found["markdown"], found["csv"]) == (str(page), str(markdown), str(table))
    assert found["models"][0]["role"] == "teacher"
    assert all(part["command"].startswith("dcdctl ") for part in found["left_out"])


def test_a_service_starts_with_the_threads_and_prints_its_address(noise_index, monkeypatch, capsys):
    class StoppedError(Exception):
        pass

    show = serve_command._show_start

    def stop(*started: object, **options: bool) -> None:
        show(*started, **options)
        raise StoppedError

    monkeypatch.setattr(serve_command, "_show_start", stop)
    with pytest.raises(StoppedError):
        serve_command.serve(
            noise_index,
            serve_command.Service(port=0),
            SearchModels(device="cpu"),
            json=True,
        )
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert printed.count("\n") == 1
    assert (found["index"], found["images"]) == (str(noise_index), 12)
    assert found["url"].startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("has_keys", "warning"),
    [(False, "there is no key"), (True, "can be read on the network, unless a proxy adds HTTPS")],
)
def test_a_service_that_others_reach_warns_on_stderr(capsys, has_keys, warning):
    serve_command._show_start(
        True, Started("http://0.0.0.0:80/", "photos.index", 3, is_loopback=False, has_keys=has_keys)
    )
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"url": "http://0.0.0.0:80/", "index": "photos.index", "images": 3}
    assert warning in printed.err


def test_only_the_first_of_several_processes_prints_the_document(scenes_corpus_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    line = f"distill demo-dual-alone --data {scenes_corpus_dir} --out {tmp_path}/run {SETS} --dry-run --json"
    assert run(line).stdout == ""
