"""`dcdctl eval` on the command line: output, files, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_caches import build_cache
from tiny import make_models, make_pool
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import artifacts, models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import CandidateConfig
from dcdctl.core.training import runs


@pytest.fixture(scope="module")
def folders(scenes_corpus_dir, tmp_path_factory) -> Path:
    """Tiny models on disk: `vilt`, and a dual encoder as the finished run `run`."""
    folder = tmp_path_factory.mktemp("models")
    vilt, dual = make_models(Corpus.open(scenes_corpus_dir, "test").captions)
    models.save(vilt, folder / "vilt")
    artifacts.write_document(folder / "run" / "run.json", {"seed": 0})
    runs.finish(runs.Run(folder / "run"), dual)
    return folder


@pytest.fixture
def run(folders, tmp_path) -> Path:
    """The run, for one test alone."""
    shutil.copytree(folders / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def run_eval(scenes_corpus_dir):
    def of(*arguments):
        return CliRunner().invoke(
            app, ["eval", "--data", str(scenes_corpus_dir), "--device", "cpu", *map(str, arguments)]
        )

    return of


def read(path: Path):
    """What the command prints of a document: all but its checksums and its run."""
    return {
        key: value
        for key, value in artifacts.read_document(path).items()
        if key not in ("files", "run", "model_fingerprint")
    }


def test_it_prints_one_document_and_writes_it_into_the_run(run, run_eval, scenes_corpus_dir):
    result = run_eval(run, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert read(run / "result.json") == document
    assert (document["images"], document["captions"], document["split"]) == (16, 80, "test")
    assert document["protocol"]["name"] == "whole"
    assert document["data"] == str(scenes_corpus_dir)
    assert len(pd.read_parquet(run / "ranks.parquet")) == 96
    assert len(pd.read_parquet(run / "top.parquet")) == 960


def test_a_cascade_does_not_replace_the_dual_encoders_own_result(folders, run, run_eval):
    alone = json.loads(run_eval(run, "--json").stdout)
    result = run_eval(run, "--rerank", folders / "vilt", "--depth", 4, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["protocol"] == {**alone["protocol"], "kind": "cascade", "depth": 4}
    assert document["reranker"] == str(folders / "vilt")
    assert "depths" not in document
    assert read(run / "cascade.json") == document
    assert read(run / "result.json") == alone


def test_several_depths_are_shown_and_written(folders, run, run_eval):
    result = run_eval(run, "--rerank", folders / "vilt", "--depth", "5,0,2")
    assert result.exit_code == 0, result.output
    document = read(run / "cascade.json")
    assert [one["depth"] for one in document["depths"]] == [0, 2, 5]
    keys = ["depth", "text_retrieval", "image_retrieval", "rsum", "ms_per_query", "pairs", "on_front"]
    assert list(document["depths"][0]) == keys
    assert document["depths"][-1]["rsum"] == document["rsum"]
    assert document["depths"][-1]["pairs"] == document["pairs_scored"]
    assert document["depths"][0]["on_front"]
    assert all(
        word in result.stdout
        for word in ("0 (first only)", "query", "front", f"{document['depths'][1]['ms_per_query']:,.2f} ms")
    )


def test_a_table_shows_intervals_protocol_and_ranks(folders, run_eval):
    result = run_eval(folders / "vilt", "--max-images", 3)
    assert result.exit_code == 0, result.output
    assert "protocol first-3: 3 images, 15 captions" in result.stdout
    shown = ("text retrieval", "image retrieval", "R@10", "mAP@R", "median rank", "95% interval", "rsum", " to ")
    assert all(word in result.stdout for word in shown)


def test_the_number_of_pairs_and_the_time_are_shown_before_scoring(folders, run_eval):
    result = run_eval(folders / "vilt", "--max-images", 3)
    first, *_, last = result.stderr.splitlines()
    assert first.startswith("45 pairs to score: ")
    assert "about 0:" in first
    assert last.startswith("score: 45 pairs in")


def test_results_of_a_model_that_is_not_a_run_are_written_to_out(folders, run_eval, tmp_path):
    before = {path.name for path in (folders / "vilt").iterdir()}
    assert run_eval(folders / "vilt", "--max-images", 3).exit_code == 0
    assert {path.name for path in (folders / "vilt").iterdir()} == before
    result = run_eval(folders / "vilt", "--max-images", 3, "--out", tmp_path / "teacher")
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == {"ranks.parquet", "top.parquet", "result.json"}
    assert f"results -> {tmp_path / 'teacher'}" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--protocol", "coco-1k"],
            "protocol coco-1k requires a test split of 5,000 images and 25,010 captions; split 'test' of",
        ),
        (["--protocol", "coco"], "no protocol 'coco'; known: auto, whole, flickr30k-1k, coco-5k, coco-1k"),
        (
            ["--depth", "5"],
            "--rerank-set and --depth are for a re-ranker, and there is none; add --rerank REF",
        ),
        (["--rerank", "vilt", "--depth", "0"], "depths must end above 0, got 0"),
        (["--eccv"], "ECCV Caption requires the protocol coco-5k, and"),
    ],
)
def test_a_mistake_is_an_error_with_the_next_step(run, run_eval, options, message):
    result = run_eval(run, *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not list(run.glob("*result.json"))


@pytest.fixture(scope="module")
def val_cache(folders, scenes_corpus_dir, tmp_path_factory) -> Path:
    """A cache of the test split by the ViLT."""
    corpus, out = Corpus.open(scenes_corpus_dir, "test"), tmp_path_factory.mktemp("caches") / "test"
    config = CandidateConfig(block_size=8, rounds=1)
    build_cache(corpus, models.load_fusion(str(folders / "vilt")), out, config)
    return out


def test_a_model_agrees_with_itself_and_the_results_keep_its_agreement(folders, run, run_eval):
    result = run_eval(run, "--against", folders / "run", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert read(run / "result.json") == document
    agreement = document["agreement"]
    assert (agreement["teacher"], agreement["over"], agreement["ndcg"]) == (str(folders / "run"), "all", 100)
    assert agreement["teacher_fingerprint"] == models.load(str(folders / "run")).digest
    for key, num_candidates, num_queries in (("text_retrieval", 80, 16), ("image_retrieval", 16, 80)):
        measures = agreement[key]
        assert (measures["queries"], measures["candidates"]) == (num_queries, num_candidates)
        assert (measures["same_first"], measures["nDCG@10"]) == (100, 100)
        assert measures["spearman"] == pytest.approx(1)
    # Recalls are those of an evaluation without a teacher.
    alone = json.loads(run_eval(run, "--json").stdout)
    assert {**document, "seconds": 0} == {**alone, "seconds": 0, "agreement": agreement}


def test_a_cross_encoder_is_compared_on_what_its_cache_scores(folders, run, run_eval, val_cache):
    cached = run_eval(run, "--against", val_cache)
    assert cached.exit_code == 0, cached.output
    assert f"agreement of {run} with {val_cache} on test" in cached.stdout
    assert "over the candidates that the cache has scores of" in cached.stdout
    result = read(run / "result.json")["agreement"]
    assert result["over"] == "cached"
    assert result["teacher_fingerprint"] == models.load(str(folders / "vilt")).digest


def test_a_teacher_that_cannot_be_compared_is_one_line(folders, run, run_eval, val_cache, tmp_path):
    for arguments, message in (
        (("--against", tmp_path / "absent"), "absent"),
        (("--against", val_cache, "--split", "val"), "corpus"),
        (("--against", folders / "vilt"), "make one, `dcdctl cache-teacher --data "),
        (("--against", folders / "vilt", "--rerank", folders / "vilt"), "leave --rerank"),
        (("--against", folders / "vilt", "--codes", "int8"), "leave --rerank"),
    ):
        result = run_eval(run, *arguments)
        assert result.exit_code == 1, result.output
        assert message in result.stderr
    assert not (run / "result.json").exists()


@pytest.fixture
def pool(tmp_path) -> Path:
    """A pool of six images and nine texts."""
    captions = [[f"a red circle {image}", "a blue square"][: 1 + image % 2] for image in range(6)]
    return make_pool(tmp_path / "pool", captions, split="test", has_colors=True).folder


def test_a_pool_has_an_agreement_and_no_recalls(folders, run, run_eval, pool):
    assert run_eval(run).exit_code == 0
    before = (run / "result.json").read_bytes()
    arguments = ["eval", str(run), "--data", str(pool), "--device", "cpu", "--against", str(folders / "run")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert read(run / "pool.json") == document
    assert (document["images"], document["captions"], document["protocol"]["kind"]) == (6, 9, "dual")
    assert "rsum" not in document
    assert "text_retrieval" not in document
    agreement = document["agreement"]
    assert agreement["text_retrieval"]["queries"] == agreement["image_retrieval"]["candidates"] == 6
    assert agreement["ndcg"] == 100
    assert len(pd.read_parquet(run / "pool-agreement.parquet")) == 15
    # The recalls of the run stay as they are.
    assert (run / "result.json").read_bytes() == before
    shown = CliRunner().invoke(app, arguments)
    assert "6 images, 9 texts" in " ".join(shown.stdout.split())
    verified = CliRunner().invoke(app, ["verify", str(run)])
    assert verified.exit_code == 0, verified.output
    (run / "pool-agreement.parquet").write_bytes(b"other")
    assert "pool-agreement.parquet" in CliRunner().invoke(app, ["verify", str(run)]).output


def test_a_pool_without_a_teacher_or_with_relevance_is_one_line(folders, run, pool):
    for options, message in (
        ((), "is a pool, whose images and texts are not paired: there are no recalls"),
        (("--vector-table",), "is a pool"),
        (("--against", str(folders / "run"), "--relevance", str(pool / "corpus.json")), "leave --relevance"),
    ):
        result = CliRunner().invoke(app, ["eval", str(run), "--data", str(pool), "--device", "cpu", *options])
        assert result.exit_code == 1, result.output
        assert message in " ".join(result.stderr.split())
    assert not (run / "pool.json").exists()


def test_relevance_adds_ndcg_to_recalls_and_comparisons(folders, run, run_eval, scenes_corpus_dir, tmp_path):
    corpus = Corpus.open(scenes_corpus_dir, "test")
    alone = json.loads(run_eval(run, "--json").stdout)
    rows = {
        "image_id": [corpus.image_ids[0], corpus.image_ids[1]],
        "caption_id": corpus.caption_ids[:2],
        "relevance": [2, 1],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "relevance.csv", index=False)
    result = run_eval(run, "--relevance", tmp_path / "relevance.csv", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert read(run / "result.json") == document
    assert document["relevance"] == artifacts.sha256_of(tmp_path / "relevance.csv")
    for key in ("text_retrieval", "image_retrieval"):
        assert {name: value for name, value in document[key].items() if name != "nDCG@10"} == alone[key]
        low, high = document["intervals"][key]["nDCG@10"]
        assert 0 <= low <= document[key]["nDCG@10"] <= high <= 100
    ranks = pd.read_parquet(run / "ranks.parquet")
    assert ranks.ndcg.count() == 4
    assert ranks[ranks.direction == "text"].ndcg.mean() == pytest.approx(document["text_retrieval"]["nDCG@10"] / 100)
    assert len(pd.read_parquet(run / "top.parquet")) == 960
    assert "nDCG@10" in run_eval(run, "--relevance", tmp_path / "relevance.csv").stdout
    arguments = ["--relevance", str(tmp_path / "relevance.csv"), "--out", str(tmp_path / "vilt")]
    assert run_eval(folders / "vilt", *arguments).exit_code == 0
    compared = CliRunner().invoke(app, ["compare", str(run), str(tmp_path / "vilt"), "--json"])
    assert compared.exit_code == 0, compared.output
    (comparison,) = json.loads(compared.stdout)["comparisons"]
    assert set(comparison["ndcg"]) == {"text_retrieval", "image_retrieval"}
    assert "nDCG@10" in comparison["difference"]["text_retrieval"]
    # Of another file, or of none, they are not comparable.
    assert run_eval(folders / "vilt", "--out", tmp_path / "vilt").exit_code == 0
    refused = CliRunner().invoke(app, ["compare", str(run), str(tmp_path / "vilt")])
    assert "the relevance is" in " ".join(refused.stderr.split())
