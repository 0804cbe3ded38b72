"""A query student in front of its teacher's images: evaluated, compared with the teacher's own texts, and timed."""

from __future__ import annotations

import shutil

import pytest
import torch
from command_line import QUICK_BENCH, document_of, error_of, run
from tiny import make_teacher

from dcdctl.core import artifacts, models
from dcdctl.core.data import Corpus
from dcdctl.core.training import runs


@pytest.fixture(scope="module")
def folders(dual_run, scenes_corpus_dir, tmp_path_factory):
    """A dual encoder with its evaluation, and the run folder of a query student of it."""
    root = tmp_path_factory.mktemp("query")
    shutil.copytree(dual_run, root / "big")
    teacher = models.load_dual(root / "big")
    tokenizer = models.word_piece(Corpus.open(scenes_corpus_dir, "test").captions, 200)
    query = models.new_query(
        models.QuerySpace.of(teacher), models.QuerySize(hidden_size=16, num_layers=0), tokenizer=tokenizer
    )
    artifacts.write_document(root / "q" / "run.json", {"seed": 0})
    runs.finish(runs.Run(root / "q"), query)
    run("eval", root / "big", "--data", scenes_corpus_dir, "--device", "cpu", "--out", root / "own")
    return root


def test_an_evaluation_of_a_query_student_names_both_and_lies_in_its_run(folders, scenes_corpus_dir):
    big, query = folders / "big", folders / "q"
    before = {path: path.read_bytes() for path in big.rglob("*") if path.is_file()}
    document = document_of("eval", big, "--query-model", query, "--data", scenes_corpus_dir, "--device", "cpu")
    assert before == {path: path.read_bytes() for path in big.rglob("*") if path.is_file()}
    joined = models.with_queries(models.load_dual(big), query)
    assert [document[name] for name in ("model", "query_model", "query_fingerprint")] == [
        str(big), str(query), joined.digest,
    ]  # fmt: skip
    assert artifacts.read_document(query / "result.json")["query_model"] == str(query)
    corpus = Corpus.open(scenes_corpus_dir, "test")
    with torch.no_grad():
        images = joined.teacher.embed_images(joined.preprocess.images(corpus.images(range(corpus.num_images))))
        texts = joined.embed_texts(joined.preprocess.texts(corpus.captions))
    ranked = (texts @ images.T).argsort(dim=1, descending=True, stable=True)
    expected = sum(int(row[0]) == image for row, image in zip(ranked, corpus.caption_image, strict=True))
    assert document["image_retrieval"]["R@1"] == pytest.approx(100 * expected / len(ranked), abs=1e-3)


@pytest.mark.parametrize("more", [("--dims", 4), ("--against", "big")], ids=["recalls", "agreement"])
def test_every_table_says_whose_texts_it_measures(folders, scenes_corpus_dir, tmp_path, monkeypatch, more):
    monkeypatch.chdir(folders)
    out = ("--device", "cpu", "--out", tmp_path)
    shown = run("eval", "big", "--query-model", "q", "--data", scenes_corpus_dir, *out, *more).stdout
    assert shown.count("big, texts by q") == (2 if "--against" in more else 1)


def test_a_fusion_scorer_has_no_query_student(folders, scenes_corpus_dir, tmp_path):
    models.save(make_teacher(["a dog"]), tmp_path / "fusion")
    refused = error_of("eval", tmp_path / "fusion", "--query-model", folders / "q", "--data", scenes_corpus_dir)
    assert "fusion is a fusion scorer, expected a dual encoder or a late-interaction model" in refused


def test_it_is_compared_with_the_teachers_own_texts(folders, scenes_corpus_dir):
    big, query = folders / "big", folders / "q"
    run("eval", big, "--query-model", query, "--data", scenes_corpus_dir, "--device", "cpu", "--out", folders / "both")
    compared = document_of("compare", folders / "own", folders / "both")
    assert "interval" in str(compared)
    # Another model's student has no recall.
    other = models.load_dual(big)
    other.network.logit_scale.data.add_(0.5)
    models.save(other, folders / "another")
    message = error_of("eval", folders / "another", "--query-model", query, "--data", scenes_corpus_dir)
    assert "speaks the space of the model" in message
    assert "expected a query encoder" in error_of("eval", big, "--query-model", big, "--data", scenes_corpus_dir)


def test_a_benchmark_times_both_text_sides(folders, scenes_corpus_dir):
    big, query = folders / "big", folders / "q"
    document = document_of("bench " + QUICK_BENCH, big, "--query-model", query, "--data", scenes_corpus_dir)
    assert (document["teacher_model"], document["student_model"]) == (str(big), str(query))
    own, large = (document[name]["footprint"]["num_parameters"] for name in ("student", "teacher"))
    network = models.load(query, kind="query").network
    assert own == sum(parameter.numel() for parameter in network.parameters()) != large
    assert artifacts.read_document(query / "bench.json")["student_model"] == str(query)
    assert not (big / "bench.json").exists()
    assert "name the slow model" in error_of("bench", big, "--data", scenes_corpus_dir)
