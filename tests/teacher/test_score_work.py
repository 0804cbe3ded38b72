"""`dcdctl work`: a call per work file gives the scores of one process, to the bit, and keeps what is there."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import document_of, error_of, run
from made_caches import build_cache
from paths import DOCS
from tiny import contents, make_corpus, make_models, make_teacher

from dcdctl.core import models
from dcdctl.core.data import TaskFile
from dcdctl.core.engines import Compute
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.teacher import CacheJob, CandidateConfig, ScoreWorkJob, build, plan_work, score_work, take_scores
from dcdctl.core.teacher.score_files import read_batches

CONFIG = CandidateConfig(per_query=4)
FUNCTION = """
def score(images, texts):
    return [0.37 * image.getpixel((7, 9))[0] + len(text) for image, text in zip(images, texts)]
"""


@pytest.fixture(scope="module", autouse=True)
def _sharded():
    """Small shards, so that a tiny corpus has seven of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "IMAGES_PER_SHARD", 5)
        yield


@pytest.fixture(scope="module")
def stage(corpus, tmp_path_factory) -> Path:
    """A planned cache with its work list, a fusion teacher and another one."""
    folder = tmp_path_factory.mktemp("stage")
    job = CacheJob(data=corpus.folder, out=folder / "cache", candidates=CONFIG)
    plan_work(job, ("captions", "bytes"))
    plan_work(CacheJob(data=corpus.folder, out=folder / "bare", candidates=CONFIG))
    for seed, name in enumerate(("teacher", "other")):
        models.save(make_teacher(corpus.captions, seed), folder / name)
    models.save(make_models(corpus.captions)[1], folder / "dual")
    return folder


@pytest.fixture
def work(stage, tmp_path) -> Path:
    """A work list to change."""
    return Path(shutil.copytree(stage / "cache" / "work", tmp_path / "work"))


def score(work: Path | list[Path], teacher: Path | str, out: Path, **compute):
    names = [str(path) for path in (work if isinstance(work, list) else [work])]
    return score_work(ScoreWorkJob(work=names, teacher=str(teacher), out=out, compute=Compute(**compute)))


def change(path: Path, **columns) -> None:
    """Replace columns of a work file."""
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, path)


@pytest.mark.parametrize("kind", ["fusion", "function"])
def test_a_call_per_work_file_makes_the_bytes_of_the_cache_of_one_process(kind, corpus, stage, tmp_path, monkeypatch):
    ref = str(stage / "teacher")
    if kind == "function":
        (tmp_path / "scored_by_work.py").write_text(FUNCTION)
        monkeypatch.syspath_prepend(tmp_path)
        ref = "scored_by_work:score"
    compute = Compute(workers=0)
    own = build_cache(corpus, models.load_scorer(ref), tmp_path / "own", CONFIG, compute=compute)
    for path in reversed(sorted((stage / "cache" / "work").iterdir())):
        score(path, ref, tmp_path / "scores", workers=0)
    job = CacheJob(
        data=corpus.folder, out=Path(shutil.copytree(stage / "cache", tmp_path / "cache")), candidates=CONFIG
    )
    taken = take_scores(job, [str(tmp_path / "scores")], "by work files")
    pairs = [{name: data for name, data in contents(each.folder).items() if "pairs-" in name} for each in (own, taken)]
    assert len(pairs[0]) == 7
    assert pairs[0] == pairs[1]


def test_the_scores_of_a_dual_teacher_differ_from_its_cache_by_no_more_than_rounding(corpus, stage, tmp_path):
    own = build_cache(corpus, models.load_scorer(stage / "dual"), tmp_path / "own", CONFIG)
    score(stage / "cache" / "work", stage / "dual", tmp_path / "scores")
    scores = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "scores").iterdir()))
    np.testing.assert_allclose(scores["score"].to_numpy(), own.score_P, rtol=1e-5, atol=1e-5)


def test_a_repeated_call_scores_only_what_is_missing(stage, tmp_path, monkeypatch):
    out = tmp_path / "scores"
    first = score(stage / "cache" / "work", stage / "teacher", out)
    assert (first.num_files, first.num_there) == (7, 0)
    before = contents(out)
    (out / "work-00003.parquet").unlink()
    (out / "work-00004.parquet.0123abcd-1.partial").write_bytes(b"of a process that was killed")
    written: list[TaskFile] = []
    whole = TaskFile.write
    monkeypatch.setattr(TaskFile, "write", lambda task, *args: written.append(task) or whole(task, *args))
    again = score(stage / "cache" / "work", stage / "teacher", out)
    assert ([task.source.name for task in written], again.num_there) == (["work-00003.parquet"], 6)
    kept = {name: data for name, data in contents(out).items() if not name.endswith(".partial")}
    assert kept == before


def test_work_and_scores_may_be_in_a_bucket(corpus, stage, tmp_path, bucket):
    local = tmp_path / "scores"
    score(stage / "cache" / "work", stage / "teacher", local)
    bucket.put_all(stage / "cache" / "work", "work")
    for number in range(2):  # a call per file, as of an engine
        work = bucket.url(f"work/work-{number:05d}.parquet")
        assert score([work], stage / "teacher", Path(bucket.url("scores"))).num_there == 0
    line = f"work {bucket.url('work')} --model {stage}/teacher --out {bucket.url('scores')}"
    assert f"(2 already there) -> {bucket.url('scores')}\n" in run(line).stdout
    assert {f"scores/{name}": data for name, data in contents(local).items()} == {
        key: bucket.get(key) for key in bucket.keys("scores/")
    }
    caches = []
    for scores in (str(local), bucket.url("scores")):
        job = CacheJob(data=corpus.folder, out=tmp_path / f"cache{len(caches)}", candidates=CONFIG)
        caches.append(contents(take_scores(job, [scores], "one").folder))
    assert caches[0] == caches[1]


def test_a_bucket_that_fails_is_named_and_the_scores_are_never_of_another_file(stage, tmp_path, bucket):
    bucket.put_all(stage / "cache" / "work", "work")
    first = "work/work-00000.parquet"
    bucket.fail(method="PUT", key="/scores/", status=403, code="AccessDenied")
    line = f"work {bucket.url(first)} --model {stage}/teacher --out {bucket.url('scores')}"
    assert error_of(line).startswith(f"error: {bucket.url('scores')} was refused (AccessDenied); ")
    # One file takes the place of another while it is scored, and then the results cannot be written.
    other = bucket.get("work/work-00001.parquet")
    bucket.fail(method="HEAD", key="/scores/work", then=lambda: bucket.put(first, other))
    assert error_of(line).startswith(f"error: {bucket.url(first)} has changed while it was read; run")
    bucket.fail(method="PUT", key="/scores/work", times=None, status=503, code="SlowDown")
    assert "scores/work-00000.parquet: gave up after 5 attempts (SlowDown)" in error_of(line)
    assert bucket.keys("scores/") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "other"}, r"work-00000.parquet was made with another teacher \(\w{12}, not \w{12}\)"),
        ({"precision": "bfloat16"}, r"work-00000.parquet was made with another precision \(float32, not bfloat16\)"),
        ({"model_set": ("max_text_len=9",)}, r"another teacher \(\w{12}, not \w{12}\)"),
    ],
)
def test_scores_of_another_teacher_are_refused_and_nothing_is_scored(options, message, stage, tmp_path):
    first, work = sorted((stage / "cache" / "work").iterdir())[0], stage / "cache" / "work"
    score(first, stage / "teacher", tmp_path)
    before = contents(tmp_path)
    job = ScoreWorkJob(
        work=[str(work)],
        teacher=str(stage / options.get("teacher", "teacher")),
        model_set=options.get("model_set", ()),
        out=tmp_path,
        compute=Compute(precision=options.get("precision", "float32")),
    )
    with pytest.raises(StaleError, match=f"{message}; name another folder with --out"):
        score_work(job)
    assert contents(tmp_path) == before


def test_scores_of_another_work_list_are_refused(stage, work, tmp_path):
    path = work / "work-00000.parquet"
    score(path, stage / "teacher", tmp_path / "scores")
    pq.write_table(pq.read_table(path).slice(3), path)
    with pytest.raises(StaleError, match=r"was made with another work file \(\w{12}, not \w{12}\)"):
        score(path, stage / "teacher", tmp_path / "scores")


def test_scores_of_the_work_list_of_another_corpus_are_refused_though_the_ids_are_the_same(stage, tmp_path):
    texts = [[f"a circle {number}", f"round {number}"] for number in range(6)]
    jobs = []
    for name, captions in (("one", texts), ("other", texts[::-1])):
        folder = make_corpus(tmp_path / name, captions).folder
        jobs.append(CacheJob(data=folder, out=tmp_path / f"cache of {name}", candidates=CandidateConfig(per_query=2)))
        plan_work(jobs[-1], ("captions", "bytes"))
    works = [pq.read_table(job.out / "work").drop_columns(["caption", "image_bytes"]) for job in jobs]
    assert works[0].to_pydict() == works[1].to_pydict()
    one, other = jobs
    score(one.out / "work", stage / "teacher", tmp_path / "scores")
    message = r"work-00000\.parquet has scores of another corpus \(\w{8}, not \w{8}\); score the work list that"
    with pytest.raises(StaleError, match=message):
        take_scores(other, [str(tmp_path / "scores")], "one")
    # Rows of another program do not say what they are of.
    pq.write_table(pq.read_table(tmp_path / "scores").replace_schema_metadata(), tmp_path / "bare.parquet")
    take_scores(other, [str(tmp_path / "bare.parquet")], "one")
    assert take_scores(one, [str(tmp_path / "scores")], "one").num_pairs == len(works[0])


@pytest.mark.parametrize("kind", ["work file", "scores"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(kind, stage, work, tmp_path):
    """Neither file is listed in another one with its checksum."""
    path, results = work / "work-00000.parquet", tmp_path / "scores" / "work-00000.parquet"
    score(path, stage / "teacher", results.parent)
    expected = pq.read_table(results).to_pydict()
    changed = path if kind == "work file" else results
    intact, messages = changed.read_bytes(), []
    for number, at in enumerate(range(8, len(intact), len(intact) // 25)):
        changed.write_bytes(intact[:at] + bytes([intact[at] ^ 4]) + intact[at + 1 :])
        try:
            if kind == "work file":
                score(path, stage / "teacher", tmp_path / f"scores-{number}")
                found = pq.read_table(tmp_path / f"scores-{number}" / path.name)
            else:
                found = pa.Table.from_batches(read_batches(results))
        except InputError as error:
            messages.append(str(error))
        else:
            assert found.to_pydict() == expected, f"bit of byte {at}"
    assert len(messages) > 10
    assert all(str(changed) in message for message in messages)


def test_what_fails_is_named_and_the_rest_is_kept(stage, work, tmp_path):
    def spoil(number: int, name: str, value: object) -> None:
        values = pq.read_table(work / f"work-{number:05d}.parquet")[name].to_pylist()
        change(work / f"work-{number:05d}.parquet", **{name: pa.array([value, *values[1:]])})

    first = pq.read_table(work / "work-00001.parquet")
    is_first = np.array(first["image_index"]) == first["image_index"][0].as_py()
    data = [
        b"no image" if wrong else whole for wrong, whole in zip(is_first, first["image_bytes"].to_pylist(), strict=True)
    ]
    change(work / "work-00001.parquet", image_bytes=pa.array(data))
    spoil(2, "caption", None)
    damaged = bytearray((work / "work-00004.parquet").read_bytes())
    damaged[4:2000] = bytes(1996)
    (work / "work-00004.parquet").write_bytes(damaged)
    with pytest.raises(InputError) as caught:
        score(work, stage / "teacher", tmp_path / "scores")
    message = str(caught.value)
    image_id = first["image_id"][0].as_py()
    assert "3 of 7 files failed. " in message
    assert f"work-00001.parquet: image {image_id!r} of work-00001.parquet cannot be decoded: " in message
    assert "work-00002.parquet: 1 rows of " in message
    assert "have no caption; write the work list again" in message
    assert "work-00004.parquet cannot be read: " in message
    assert "None" not in message
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == [
        f"work-0000{number}.parquet" for number in (0, 3, 5, 6)
    ]
    # Mended, the command completes the others.
    shutil.copytree(stage / "cache" / "work", work, dirs_exist_ok=True)
    assert score(work, stage / "teacher", tmp_path / "scores").num_there == 4


def test_a_score_that_is_not_finite_names_its_pair(stage, tmp_path, monkeypatch):
    scored = build.scoring.score_pairs
    monkeypatch.setattr(
        build.scoring,
        "score_pairs",
        lambda *args, **more: np.where(np.arange(len(args[2])) == 5, np.nan, scored(*args, **more)),
    )
    path = stage / "cache" / "work" / "work-00000.parquet"
    row = pq.read_table(path).slice(5, 1).to_pylist()[0]
    expected = (
        f"1 scores that are not finite, such as nan for image {row['image_id']!r} of work-00000.parquet with caption "
        f"{row['caption_id']} of work-00000.parquet; try --precision fp32"
    )
    with pytest.raises(StaleError) as caught:
        score(path, stage / "teacher", tmp_path / "scores")
    assert expected in str(caught.value)
    assert not contents(tmp_path)


def without_column(work: Path) -> None:
    path = work / "work-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["image_bytes"]), path)


def half_written(work: Path) -> None:
    path = work / "work-00006.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def twice(work: Path) -> None:
    shutil.copytree(work, work / "more")


def emptied(work: Path) -> None:
    shutil.rmtree(work)
    work.mkdir()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("caption", pa.array([3]), r"the column caption of .* is int64, string is expected; write the work list"),
        ("caption", pa.array([{"a": 1}]), r"the column caption of .* is struct<a: int64>, string is expected"),
        ("image_bytes", pa.array(["x"]), r"the column image_bytes of .* is string, binary is expected"),
        ("image_bytes", pa.array([[1]]), r"the column image_bytes of .* is list<.*int64>, binary is expected"),
        ("image_index", pa.array(["x"]), r"cannot be read as a work file: Failed to parse string: 'x'"),
        ("caption_id", pa.array([1.5]), r"cannot be read as a work file: Float value 1\.500000 was truncated"),
        ("image_id", pa.array([None], pa.string()), r"1 rows of .*work-00000\.parquet have no image_id"),
        ("image_bytes", pa.array([None], pa.binary()), r"1 rows of .*work-00000\.parquet have no image_bytes"),
    ],
)
def test_a_column_of_another_type_is_named(name, values, message, stage, work, tmp_path):
    path = work / "work-00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 1), path)
    change(path, **{name: values})
    with pytest.raises(InputError, match=message):
        score(path, stage / "teacher", tmp_path / "scores")
    assert not contents(tmp_path / "scores")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            without_column,
            r"has no column image_bytes \(it has .*; write the work list with `dcdctl cache-.*captions,bytes`",
        ),
        (half_written, r"work-00006\.parquet cannot be read as a work file"),
        (twice, r"work-00000\.parquet have the same name, and so would their results; give them in two calls"),
        (emptied, r"work holds no work file; a work file ends with .parquet"),
        (shutil.rmtree, r"work does not exist; FILE takes a file, a folder or a pattern"),
    ],
)
def test_a_work_list_that_cannot_be_used_is_refused_before_anything_is_scored(prepare, message, stage, work, tmp_path):
    prepare(work)
    with pytest.raises(InputError, match=message):
        score(work, stage / "teacher", tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_a_cache_in_the_place_of_its_work_list_is_told(stage, tmp_path):
    with pytest.raises(InputError, match=r"has no column image_id .*; .*cache/work is the work list of this cache"):
        score(stage / "cache", stage / "teacher", tmp_path)


def test_a_folder_of_other_files_is_not_overwritten(stage, work, tmp_path):
    with pytest.raises(InputError, match=r"--out is the folder of .*work-00000\.parquet, which would be overwritten"):
        score(work, stage / "teacher", work)
    pq.write_table(pa.table({"score": [1.0]}).replace_schema_metadata({b"dcdctl": b"[1]"}), tmp_path / "of_a_list")
    others = [(tmp_path / "of_a_list").read_bytes(), (work / "work-00001.parquet").read_bytes()]
    for data in (b"", b"PAR1", *others):
        (tmp_path / "scores").mkdir(exist_ok=True)
        (tmp_path / "scores" / "work-00000.parquet").write_bytes(data)
        with pytest.raises(InputError, match=r"work-00000\.parquet is there and is no result of this command, or is"):
            score(work, stage / "teacher", tmp_path / "scores")
        assert contents(tmp_path / "scores") == {"work-00000.parquet": data}
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file, a folder is expected"):
        score(work, stage / "teacher", tmp_path / "file")


def test_a_file_without_pairs_has_no_scores(stage, work, tmp_path):
    path = work / "work-00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    score(path, stage / "teacher", tmp_path / "scores")
    scores = pq.read_table(tmp_path / "scores" / path.name)
    assert (len(scores), scores.column_names[-1]) == (0, "score")


def test_the_order_and_the_groups_of_rows_of_an_engine_change_no_score_beyond_rounding(stage, work, tmp_path):
    """An engine may have repartitioned the work list: rows of an image in many groups, bytes without a dictionary."""
    whole = pa.concat_tables(pq.read_table(path) for path in sorted(work.iterdir()))
    shuffled = whole.take(np.random.default_rng(0).permutation(len(whole)))
    pq.write_table(shuffled, tmp_path / "one.parquet", row_group_size=50, use_dictionary=False)
    score(tmp_path / "one.parquet", stage / "teacher", tmp_path / "scores")
    score(work, stage / "teacher", tmp_path / "scores")
    tables = [pq.read_table(path) for path in sorted((tmp_path / "scores").iterdir())]
    keys = [("image_index", "ascending"), ("caption_index", "ascending")]
    one, many = tables[0].sort_by(keys), pa.concat_tables(tables[1:]).sort_by(keys)
    assert one.drop_columns("score").equals(many.drop_columns("score"))
    np.testing.assert_allclose(one["score"].to_numpy(), many["score"].to_numpy(), rtol=1e-5, atol=1e-5)


def test_the_array_of_slurm_in_the_docs_scores_each_work_file(stage, tmp_path, monkeypatch):
    """The script itself in bash, where a stand-in of `dcdctl` writes down its words."""
    text = (DOCS / "scaling.md").read_text(encoding="utf-8")
    script = re.search(r"^ {4}#!/bin/bash\n(?: {4}.*\n)+", text, re.MULTILINE)[0]
    (tmp_path / "array.sh").write_text(re.sub("^ {4}", "", script, flags=re.MULTILINE))
    (tmp_path / "dcdctl").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/lines\n')
    (tmp_path / "dcdctl").chmod(0o755)
    for task in range(7):
        env = {"SLURM_ARRAY_TASK_ID": str(task), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        processes.run(["bash", "array.sh"], cwd=tmp_path, env=env, check=True)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stage / "cache" / "work", tmp_path / "cache" / "teacher" / "work")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher").symlink_to(stage / "teacher")
    for line in (tmp_path / "lines").read_text().splitlines():
        run(line)
    assert len(list((tmp_path / "scores").iterdir())) == 7


def test_the_command_prints_counts_and_its_cache_is_sealed_by_cache_teacher(stage, corpus, tmp_path):
    line = f"work '{stage}/cache/work/work-0000[0-2].parquet' --model {stage}/teacher --out {tmp_path}/scores"
    made = document_of(line)
    num_pairs = sum(pq.read_metadata(path).num_rows for path in sorted((tmp_path / "scores").iterdir()))
    assert {name: made[name] for name in ("pairs", "files", "already_there")} == {
        "pairs": num_pairs,
        "files": 3,
        "already_there": 0,
    }
    assert "(3 already there) -> " in run(line).stdout
    message = error_of(f"work {stage}/bare/work --model {stage}/teacher --out {tmp_path}/new")
    assert "has no column caption (it has image_id, caption_id, image_index, caption_index)" in message
    facts = json.loads(pq.read_metadata(tmp_path / "scores" / "work-00000.parquet").metadata[b"dcdctl"])
    assert facts["teacher"] == made["model"] == models.load_scorer(stage / "teacher").digest
