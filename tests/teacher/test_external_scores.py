"""Scores from elsewhere: tasks that any program reads, files of scores by ids, a cache that equals one of a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_caches import build_cache
from open_inputs import OpenInputs
from task_work import do, plan, rows_of, tasks_of
from tiny import contents

from dcdctl.core import scoring, training
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.teacher import (
    CacheJob,
    CandidateConfig,
    TeacherCache,
    build,
    read_cache,
    read_caches,
    take_scores,
)
from dcdctl.core.training import TrainingJob, TrainingOptions

CONFIG = CandidateConfig(per_query=4)
COMPUTE = Compute(batch_size=64)
NAME = "reranker 1.0, prompt 3"


@pytest.fixture(scope="module", autouse=True)
def _sharded():
    """Small shards, so that a tiny corpus has seven of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "IMAGES_PER_SHARD", 5)
        yield


@pytest.fixture(scope="module")
def own(corpus, teacher, tmp_path_factory) -> TeacherCache:
    """The cache that dcdctl makes with the teacher."""
    return build_cache(corpus, teacher, tmp_path_factory.mktemp("own") / "cache", CONFIG, compute=COMPUTE)


def job_in(folder: Path, scenes_corpus_dir: Path, **more) -> CacheJob:
    return CacheJob(**{"data": scenes_corpus_dir, "out": folder / "cache", "candidates": CONFIG, **more})


@pytest.fixture
def job(tmp_path, scenes_corpus_dir) -> CacheJob:
    return job_in(tmp_path, scenes_corpus_dir)


@pytest.fixture(scope="module")
def scored(corpus, teacher, scenes_corpus_dir, tmp_path_factory) -> pa.Table:
    """The columns image_id, caption_id and score of every planned pair, by a loop over the tasks with the
    teacher."""
    job = job_in(tmp_path_factory.mktemp("plan"), scenes_corpus_dir)
    plan(job)
    source, tables = CorpusSource(corpus, teacher.preprocess), []
    for path in sorted(tasks_of(job).iterdir()):
        rows = pq.read_table(path)
        image = np.array([corpus.image_ids.index(name) for name in rows["image_id"].to_pylist()])
        text = np.array([corpus.caption_ids.tolist().index(number) for number in rows["caption_id"].to_pylist()])
        score = scoring.score_pairs(teacher.eval(), source, image, text, compute=COMPUTE)
        tables.append(pa.table({"image_id": rows["image_id"], "caption_id": rows["caption_id"], "score": score}))
    return pa.concat_tables(tables)


def shuffled(table: pa.Table, seed: int = 0) -> pa.Table:
    return table.take(np.random.default_rng(seed).permutation(len(table)))


def write(path: Path, table: pa.Table, encoding: str = "utf-8") -> str:
    """Write a table in the format of its name, as pandas does."""
    frame = table.to_pandas()
    if path.suffix == ".csv":
        frame.to_csv(path, index=False, encoding=encoding)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        pq.write_table(table, path)
    return str(path)


def test_the_tasks_have_each_planned_pair_once_and_the_bytes_unless_they_are_refused(own, job):
    assert plan(job) == (own.num_pairs, 7)
    rows, before = rows_of(job), contents(tasks_of(job))
    assert rows["image_index"].to_pylist() == own.image_P.tolist()
    assert rows["caption_index"].to_pylist() == own.text_P.tolist()
    assert rows.column_names[4:] == ["caption", "image_bytes"]
    assert plan(job) == (own.num_pairs, 7)
    assert contents(tasks_of(job)) == before
    plan(job, with_bytes=False)
    assert rows_of(job).column_names == rows.column_names[:5]
    with pytest.raises(InputError, match=r"tasks-00000.parquet names no model; write the tasks with --teacher REF, or"):
        do(tasks_of(job))


@pytest.mark.parametrize(
    ("suffix", "encoding", "place"),
    [
        ("parquet", "", "folder"),
        ("parquet", "", "bucket"),
        ("csv", "utf-8", "folder"),
        ("csv", "utf-8-sig", "bucket"),
        ("jsonl", "", "folder"),
    ],
    ids=["parquet", "parquet in a bucket", "csv", "csv of a spreadsheet in a bucket", "jsonl"],
)
def test_scores_in_any_order_and_format_give_the_cache_of_the_model_itself(
    corpus, own, scored, job, suffix, encoding, place, request
):
    half = len(scored) // 2
    rows = shuffled(scored)
    (job.out.parent / "scores").mkdir()
    for name, part in (("a", rows[: half + 10]), ("b", rows[half:])):  # ten rows are in both
        write(job.out.parent / "scores" / f"{name}.{suffix}", part, encoding)
    (job.out.parent / "scores" / "_SUCCESS").write_text("")
    scores = str(job.out.parent / "scores")
    if place == "bucket":
        bucket = request.getfixturevalue("bucket")
        bucket.put_all(job.out.parent / "scores", "scores")
        scores = bucket.url("scores")
    cache = take_scores(job, [scores], NAME)
    assert cache.image_P.tolist() == own.image_P.tolist()
    assert cache.text_P.tolist() == own.text_P.tolist()
    assert cache.role_P.tobytes() == own.role_P.tobytes()
    assert cache.score_P.tobytes() == own.score_P.tobytes()
    assert read_cache(job.out, corpus=corpus).plan["teacher"] == f"external:{NAME}"
    assert {path.name for path in job.out.iterdir()} == {path.name for path in own.folder.iterdir()}


def test_the_digest_is_that_of_the_scores_and_of_nothing_else(scored, tmp_path, scenes_corpus_dir):
    digests = []
    changed = scored.set_column(
        2, "score", pa.array(np.nextafter(scored["score"].to_numpy(), np.float32(9), dtype=np.float32))
    )
    for number, (suffix, table) in enumerate([("csv", scored), ("parquet", shuffled(scored)), ("csv", changed)]):
        (tmp_path / str(number)).mkdir()
        job = job_in(tmp_path / str(number), scenes_corpus_dir)
        digests.append(take_scores(job, [write(tmp_path / f"{number}.{suffix}", table)], NAME).plan["scores_sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_training_from_both_caches_gives_equal_losses_and_run_json_names_the_teacher(
    corpus, teacher, own, scored, job, tmp_path
):
    external = take_scores(job, [write(tmp_path / "scores.parquet", scored)], NAME)
    sets = [
        "model.layers=[0, 2]",
        "batch.size=4",
        "batch.random_negatives=2",
        "batch.hard_negatives=1",
        "optimizer.steps=2",
    ]
    runs = [
        training.train_model(
            TrainingJob("distill", "tiny-student", sets, tmp_path / name),
            OpenInputs(corpus, [cache], teacher),
            options=TrainingOptions(),
        )
        for name, cache in (("own", own), ("external", external))
    ]
    assert [[step["loss"] for step in run.metrics()] for run in runs] == [
        [step["loss"] for step in runs[0].metrics()]
    ] * 2
    named = runs[1].facts()["inputs"]["cache"]
    assert (named["teacher_name"], named["scores_sha256"]) == (NAME, external.plan["scores_sha256"])


def test_scores_of_some_shards_may_come_first_and_what_is_missing_is_counted(own, scored, job, tmp_path):
    image_P = own.image_P
    early = image_P < 12  # shards 0 and 1, and the first images of shard 2
    with pytest.raises(MissingError) as raised:
        take_scores(job, [write(tmp_path / "early.csv", shuffled(scored.filter(early)))], NAME)
    missing = int((image_P >= 12).sum())
    assert f"{missing} of {own.num_pairs} pairs in {job.out} have no score yet" in str(raised.value)
    assert sorted(path.name for path in job.out.glob("pairs-*.parquet")) == [
        "pairs-00000.parquet",
        "pairs-00001.parquet",
    ]
    # The tasks are now those of the missing pairs alone.
    assert plan(job) == (missing, 5)
    rows = rows_of(job)
    assert rows["image_index"].to_pylist() == image_P[~early].tolist()
    # A call with nothing new changes nothing; another teacher or another plan is refused.
    before = contents(job.out)
    with pytest.raises(MissingError):
        take_scores(job, [str(tmp_path / "early.csv")], NAME)
    with pytest.raises(StaleError, match=rf"cache has scores of '{NAME}', not of 'another'; name another folder"):
        take_scores(job, [str(tmp_path / "early.csv")], "another")
    with pytest.raises(StaleError, match=r"another candidates\.per_query \(4, not 3\)"):
        plan(CacheJob(data=job.data, out=job.out, candidates=CandidateConfig(per_query=3)))
    assert contents(job.out) == before
    cache = take_scores(job, [write(tmp_path / "late.parquet", scored.filter(~early))], NAME)
    assert cache.score_P.tobytes() == own.score_P.tobytes()
    with pytest.raises(StaleError, match="cache is finished: no pair is left to score"):
        plan(job)


def test_scores_given_without_the_settings_of_the_plan_leave_it(scored, job, tmp_path):
    plan(job)
    before = contents(job.out)
    other = CacheJob(data=job.data, out=job.out, candidates=CandidateConfig(per_query=3))
    with pytest.raises(StaleError, match=r"another candidates\.per_query \(4, not 3\)"):
        take_scores(other, [write(tmp_path / "scores.parquet", scored)], NAME)
    assert contents(job.out) == before
    assert take_scores(job, [str(tmp_path / "scores.parquet")], NAME).num_pairs == len(scored)


def changed_row(table: pa.Table, row: int, **values: object) -> pa.Table:
    rows = table.to_pylist()
    rows[row] |= values
    return pa.Table.from_pylist(rows, schema=table.schema)


def more_row(table: pa.Table, **values: object) -> pa.Table:
    return pa.concat_tables([table, pa.Table.from_pylist([{**table.to_pylist()[0], **values}], schema=table.schema)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: more_row(t, image_id="absent"),
            r"1 rows of unknown images \(image 'absent' with caption \d+: .* in scores\.csv\)",
        ),
        (lambda t: more_row(t, caption_id=987654), r"1 rows of unknown captions \(image '.*' with caption 987654: "),
        (lambda t: more_row(t, image_id=t["image_id"][-1].as_py()), r"1 rows of pairs that are not planned \(image '"),
        (
            lambda t: more_row(t, score=99.5),
            r"1 rows of pairs with two different scores \(image '.*: -6\.\d+ and 99\.5 in scores\.csv\)",
        ),
        (
            lambda t: changed_row(t, 3, score=float("nan")),
            r"1 scores that are not finite \(image '.*: (nan|None) in scores\.csv\)",
        ),
        (lambda t: changed_row(t, 3, score=float("-inf")), r"1 scores that are not finite \(image '.*: -inf in"),
        (
            lambda t: t.drop_columns("score"),
            r"scores\.csv has no column score \(it has image_id, caption_id\); give a row per pair",
        ),
        (
            lambda t: t.set_column(2, "score", pa.array(["high"] * len(t))),
            r"scores\.csv cannot be read as scores: .*'high'",
        ),
        (lambda t: t.set_column(2, "score", pa.array([1e39] * len(t))), r"\d+ scores that are not finite"),
        (
            lambda t: t.append_column("caption", pa.array(["a cat"] * len(t))),
            r"\d+ rows with another caption than the corpus \(image '.*' with caption \d+: 'a cat' and '.*' in scores",
        ),
        (lambda t: t.append_column("caption_index", pa.array([0] * len(t))), r"\d+ rows of unknown captions"),
    ],
    ids=[
        "image",
        "caption",
        "pair",
        "twice",
        "nan",
        "infinite",
        "no score",
        "text",
        "float64",
        "text of another corpus",
        "index",
    ],
)
def test_rows_that_do_not_fit_are_named_by_kind_and_nothing_is_stored(scored, job, tmp_path, change, message):
    plan(job)
    before = contents(job.out)
    with pytest.raises(InputError, match=message):
        take_scores(job, [write(tmp_path / "scores.csv", change(scored))], NAME)
    assert contents(job.out) == before


def test_a_pattern_names_files_and_one_without_a_file_is_an_error(own, scored, job, tmp_path):
    write(tmp_path / "part-0.csv", scored[:300])
    write(tmp_path / "part-1.csv", scored[300:])
    with pytest.raises(
        InputError, match=r"part-\*\.jsonl does not exist; --scores takes a file, a folder or a pattern in quotes"
    ):
        take_scores(job, [str(tmp_path / "part-*.jsonl")], NAME)
    cache = take_scores(job, [str(tmp_path / "part-*.csv"), str(tmp_path / "part-1.csv")], NAME)
    assert cache.score_P.tobytes() == own.score_P.tobytes()


def test_a_finished_cache_compares_further_scores_with_its_own(scored, job, tmp_path):
    take_scores(job, [write(tmp_path / "all.csv", scored)], NAME)
    before = contents(job.out)
    take_scores(job, [write(tmp_path / "again.csv", scored[:9])], NAME)
    with pytest.raises(InputError, match="1 rows of pairs with two different scores"):
        take_scores(job, [write(tmp_path / "other.csv", changed_row(scored, 4, score=1.25))], NAME)
    assert contents(job.out) == before


def test_ids_that_repeat_in_joined_splits_need_the_columns_of_indices(job, tmp_path):
    """Each split of scenes numbers its captions from 0."""
    joined = CacheJob(data=job.data, out=job.out, candidates=CandidateConfig(per_query=1), split="train+val")
    plan(joined)
    rows = rows_of(joined)
    rows = rows.append_column("score", pa.array(np.arange(len(rows)) / 7, pa.float32()))
    without = write(tmp_path / "without.csv", rows.drop_columns("caption_index"))
    with pytest.raises(
        InputError,
        match=r"several captions with the id 0 in split train\+val; keep the columns image_index and caption_",
    ):
        take_scores(joined, [without], NAME)
    cache = take_scores(joined, [write(tmp_path / "with.csv", shuffled(rows))], NAME)
    assert cache.score_P.tolist() == rows["score"].to_pylist()


def test_an_external_cache_is_extended_by_scores_of_the_same_teacher(corpus, teacher, own, scored, job, tmp_path):
    take_scores(job, [write(tmp_path / "first.csv", scored)], NAME)
    more = CacheJob(data=job.data, out=tmp_path / "more", candidates=CandidateConfig(per_query=6), extend=job.out)
    expected = build_cache(corpus, teacher, tmp_path / "own", more.candidates, compute=COMPUTE, extend=own.folder)
    assert plan(more)[0] == expected.num_pairs - own.num_pairs
    rows = rows_of(more)
    score = expected.lookup(rows["image_index"].to_numpy(), rows["caption_index"].to_numpy())
    new = write(tmp_path / "new.csv", rows.append_column("score", pa.array(score)))
    with pytest.raises(StaleError, match=rf"more, which extends .*cache, has scores of '{NAME}', not of 'another'"):
        take_scores(more, [new], "another")
    assert take_scores(more, [new], NAME).score_P.tobytes() == expected.score_P.tobytes()
    with pytest.raises(StaleError, match="are those of a model that dcdctl ran; extend it with --teacher"):
        plan(CacheJob(data=job.data, out=tmp_path / "third", candidates=CONFIG, extend=own.folder))
    with pytest.raises(StaleError, match=r"was made with another image_size_px \(null, not 64\)"):
        build_cache(corpus, teacher, tmp_path / "fourth", CONFIG, compute=COMPUTE, extend=job.out)


def test_an_extended_cache_without_a_new_pair_is_finished_by_a_score_that_it_has(own, scored, job, tmp_path):
    take_scores(job, [write(tmp_path / "first.csv", scored)], NAME)
    same = CacheJob(data=job.data, out=tmp_path / "same", candidates=CONFIG, extend=job.out)
    assert plan(same)[0] == 0
    cache = take_scores(same, [write(tmp_path / "again.csv", scored[:1])], NAME)
    assert cache.score_P.tobytes() == own.score_P.tobytes()


def test_an_external_cache_is_averaged_like_any_and_cannot_be_verified(corpus, teacher, own, scored, job, tmp_path):
    cache = take_scores(
        job,
        [write(tmp_path / "half.csv", scored.set_column(2, "score", pa.array(scored["score"].to_numpy() / 2)))],
        NAME,
    )
    pairs = own.image_P[:50], own.text_P[:50]
    average = read_caches([own, cache])
    # Half the scores are the same scores on another scale: the average has the mean of both scales.
    np.testing.assert_allclose(average.lookup(*pairs), 0.75 * own.lookup(*pairs), rtol=1e-4, atol=1e-4)


def test_a_corpus_of_other_captions_is_refused(job, scored, tmp_path):
    plan(job)
    few = CacheJob(data=job.data, out=job.out, candidates=CONFIG, max_images=9)
    take_scores(job, [write(tmp_path / "all.csv", scored)], NAME)
    with pytest.raises(StaleError, match="was made with another corpus"):
        take_scores(few, [str(tmp_path / "all.csv")], NAME)
    assert Corpus.open(job.data, "train", 9).fingerprint != read_cache(job.out).plan["corpus"]
