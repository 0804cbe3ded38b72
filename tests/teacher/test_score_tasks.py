"""`--engine files:DIR` of a cache: tasks that any number of processes do, whose results make the bytes of one process;
and what happens to them in between."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import document_of, error_of, run
from forks import run_forked
from made_caches import build_cache
from paths import DOCS
from processes import FAULT_TRIALS, TIMEOUT_S
from task_work import do, engine, flipped, names
from tiny import contents, make_models, make_teacher

from dcdctl.core import files, models
from dcdctl.core.engines import Compute, TasksWrittenError, facts_in, read_task_facts, write_table
from dcdctl.core.errors import ConfigError, InputError, MissingError, StaleError
from dcdctl.core.files import atomic
from dcdctl.core.teacher import CacheJob, CandidateConfig, TeacherCache, build, cache_scores

CONFIG = CandidateConfig(per_query=4)
SHARDS = [f"{shard:05d}" for shard in range(7)]
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
    """Two fusion teachers, a dual one, and a folder of tasks of a cache that is begun."""
    folder = tmp_path_factory.mktemp("stage")
    for seed, name in enumerate(("teacher", "other")):
        models.save(make_teacher(corpus.captions, seed), folder / name)
    models.save(make_models(corpus.captions)[1], folder / "dual")
    with pytest.raises(TasksWrittenError):
        collect(job_of(corpus, folder / "teacher", folder))
    return folder


@pytest.fixture(scope="module")
def own(corpus, stage) -> TeacherCache:
    """The cache of one process."""
    return build_cache(corpus, models.load_scorer(stage / "teacher"), stage / "own", CONFIG, compute=Compute(workers=0))


def job_of(corpus, teacher: object, folder: Path, **more) -> CacheJob:
    compute = Compute(workers=0, engine=engine(folder / "tasks"))
    plan = {"data": corpus.folder, "out": folder / "cache", "candidates": CONFIG, "compute": compute, **more}
    return CacheJob(teacher=str(teacher), **plan)


@pytest.fixture
def job(corpus, stage, tmp_path) -> CacheJob:
    """A cache whose tasks are written."""
    for name in ("tasks", "cache"):
        shutil.copytree(stage / name, tmp_path / name)
    return job_of(corpus, stage / "teacher", tmp_path)


def collect(job: CacheJob) -> TeacherCache:
    return cache_scores(job)


def tasks_of(job: CacheJob) -> Path:
    return job.out.parent / "tasks"


def same(cache: TeacherCache, own: TeacherCache) -> bool:
    return contents(cache.folder) == contents(own.folder)


def test_a_call_per_task_in_any_order_makes_the_bytes_of_one_process_and_leaves_no_task(job, own):
    tasks = tasks_of(job)
    assert names(tasks, "tasks") == SHARDS
    for shard in reversed(SHARDS):
        do(tasks / f"tasks-{shard}.parquet")
    assert same(collect(job), own)
    assert not tasks.exists()


def test_a_python_function_is_run_only_where_the_user_names_it(corpus, tmp_path, monkeypatch):
    (tmp_path / "scored_by_work.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(tmp_path)
    ref = "scored_by_work:score"
    own = build_cache(corpus, models.load_scorer(ref), tmp_path / "own", CONFIG, compute=Compute(workers=0))
    job = job_of(corpus, ref, tmp_path)
    with pytest.raises(TasksWrittenError):
        collect(job)
    with pytest.raises(ConfigError, match=rf"is code, {ref}, .*; if you trust it: --model {ref}"):
        do(tasks_of(job))
    do(tasks_of(job), model=ref)
    assert same(collect(job), own)


def test_a_dual_teacher_is_encoded_by_this_process_which_says_so(corpus, stage, tmp_path):
    said: list[str] = []
    job = job_of(corpus, stage / "dual", tmp_path)
    job.compute.engine.say = said.append
    own = build_cache(corpus, models.load_scorer(stage / "dual"), tmp_path / "own", CONFIG)
    assert same(collect(job), own)
    assert all("cannot be tasks in files: this process computes it" in line for line in said)
    assert said


def test_the_rows_of_a_task_are_for_other_programs_too(corpus, own, job):
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(tasks_of(job).iterdir())).to_pylist()
    assert [(row["image_index"], row["caption_index"]) for row in rows] == list(
        zip(own.image_P.tolist(), own.text_P.tolist(), strict=True)
    )
    for row in rows[::50]:
        image, text = row["image_index"], row["caption_index"]
        assert (row["image_id"], row["caption_id"]) == (corpus.image_ids[image], corpus.caption_ids[text])
        assert (row["caption"], row["image_bytes"]) == (corpus.captions[text], corpus.image_bytes(image))
    # The bytes of an image are in a file once, not once per pair.
    sizes = sum(len(corpus.image_bytes(image)) for image in range(corpus.num_images))
    assert sum(path.stat().st_size for path in tasks_of(job).iterdir()) < 2 * sizes + 200_000


def test_what_is_done_is_taken_and_what_is_missing_is_counted(job, own):
    tasks = tasks_of(job)
    done = do(tasks / "tasks-00001.parquet", tasks / "tasks-00004.parquet")
    assert (done.num_tasks, done.num_there) == (2, 0)
    with pytest.raises(MissingError, match=r"5 of 7 tasks in .*tasks have no result yet; .* `dcdctl work .*tasks-\*`"):
        collect(job)
    assert len(list(job.out.glob("pairs-*.parquet"))) == 2
    # The next call asks for the others alone, and removes what was taken.
    with pytest.raises(MissingError, match="5 of 5 tasks"):
        collect(job)
    assert names(tasks, "tasks") == [shard for shard in SHARDS if shard not in ("00001", "00004")]
    assert names(tasks, "results") == []
    again = do(tasks)
    assert (again.num_tasks, again.num_there, do(tasks).num_there) == (5, 0, 5)
    assert same(collect(job), own)


def test_tasks_that_were_lost_or_never_written_are_written(job, own):
    tasks = tasks_of(job)
    do(tasks / "tasks-00002.parquet")
    (tasks / "tasks-00002.parquet").unlink()
    (tasks / "tasks-00003.parquet").write_bytes(b"half of a ta")
    with pytest.raises(TasksWrittenError, match="6 tasks -> "):
        collect(job)
    do(tasks)
    assert same(collect(job), own)


def damage_a_page(path: Path, stage: Path) -> None:
    flipped(path, 200)


def cut(path: Path, stage: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path, stage: Path) -> None:
    path.write_bytes(b"")


def of_another_task(path: Path, stage: Path) -> None:
    shutil.copy(path.with_name("results-00003.parquet"), path)


def of_another_model(path: Path, stage: Path) -> None:
    """The results of the same pairs by another teacher."""
    table = pq.read_table(path)
    facts = facts_in(table.schema)
    facts["job"]["digest"] = models.load_scorer(stage / "other").digest
    write_table(path, table, facts)


def a_copy_of_the_task(path: Path, stage: Path) -> None:
    shutil.copy(path.with_name("tasks-00002.parquet"), path)


def fewer_rows(path: Path, stage: Path) -> None:
    pq.write_table(pq.read_table(path)[:-1], path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage_a_page, "results-00002.parquet is damaged: "),
        (cut, "results-00002.parquet is damaged: "),
        (empty, "results-00002.parquet is damaged: "),
        (of_another_task, "results-00002.parquet was made with another rows"),
        (of_another_model, "results-00002.parquet was made with another job.digest"),
        (a_copy_of_the_task, "results-00002.parquet was made with another is_result"),
        (fewer_rows, "results-00002.parquet has "),
    ],
)
def test_results_that_are_not_those_of_a_task_are_named_and_done_again_and_the_others_are_kept(
    spoil, message, job, own, stage
):
    tasks = tasks_of(job)
    do(tasks)
    spoil(tasks / "results-00002.parquet", stage)
    with pytest.raises(MissingError, match=message) as raised:
        collect(job)
    assert "1 of 7 tasks" in str(raised.value)
    assert len(list(job.out.glob("pairs-*.parquet"))) == 6
    assert do(tasks / "tasks-00002.parquet").num_there == 0
    assert same(collect(job), own)


def test_a_file_of_another_program_in_the_place_of_results_is_refused_and_stays(job):
    tasks = tasks_of(job)
    pq.write_table(pa.table({"score": [1.0]}), tasks / "results-00000.parquet")
    message = "results-00000.parquet is no result of `dcdctl work`"
    with pytest.raises(MissingError, match=message):
        collect(job)
    with pytest.raises(InputError, match=message):
        do(tasks / "tasks-00000.parquet")
    assert pq.read_table(tasks / "results-00000.parquet")["score"].to_pylist() == [1.0]


@pytest.mark.parametrize("kind", ["tasks", "results"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(kind, job, own):
    """Neither file is listed in another one with its checksum."""
    tasks = tasks_of(job)
    task, results = tasks / "tasks-00000.parquet", tasks / "results-00000.parquet"
    do(task)
    expected, changed = pq.read_table(results).to_pydict(), tasks / f"{kind}-00000.parquet"
    intact, num_errors = changed.read_bytes(), 0
    for at in range(8, len(intact), len(intact) // 16):
        changed.write_bytes(intact)
        flipped(changed, at)
        if kind == "tasks":
            results.unlink(missing_ok=True)
        try:
            done = do(task)
        except (InputError, StaleError) as error:
            assert str(changed) in str(error)  # noqa: PT017 - or there is none
            num_errors += 1
        else:
            num_errors += kind == "results" and done.num_there == 0
            assert pq.read_table(results).to_pydict() == expected, f"bit of byte {at}"
    assert num_errors > 8


def test_a_task_that_was_changed_is_refused_and_the_others_are_done(job, own):
    tasks = tasks_of(job)
    path = tasks / "tasks-00001.parquet"
    table = pq.read_table(path)
    captions = ["another text", *table["caption"].to_pylist()[1:]]
    pq.write_table(table.set_column(4, "caption", pa.array(captions)), path)
    with pytest.raises(
        InputError, match=r"1 of 7 tasks failed. .*tasks-00001.parquet was changed after it was written"
    ):
        do(tasks)
    assert names(tasks, "results") == [shard for shard in SHARDS if shard != "00001"]
    path.unlink()
    with pytest.raises(TasksWrittenError):
        collect(job)
    do(tasks)
    assert same(collect(job), own)


def test_what_fails_is_named_and_the_rest_is_kept(job, own, monkeypatch):
    """A damaged image, a text that is refused, a score that is not finite: what a worker raises."""
    tasks = tasks_of(job)
    scored = build.PairWorker.start

    def start(worker, pairs):
        finish = scored(worker, pairs)
        if "00003" in pairs.items.caption_names[0]:
            raise StaleError("the teacher gave 3 scores that are not finite")
        return finish

    with monkeypatch.context() as patch:
        patch.setattr(build.PairWorker, "start", start)
        with pytest.raises(InputError, match=r"1 of 7 tasks failed. tasks-00003.parquet: the teacher gave 3 scores"):
            do(tasks)
    assert len(names(tasks, "results")) == 6
    assert do(tasks).num_there == 6
    assert same(collect(job), own)


def test_a_model_that_is_not_the_one_of_the_tasks_does_none(job, stage):
    with pytest.raises(StaleError, match=r"are for the model \w{8}, and .*other is \w{8}; name the model of the tasks"):
        do(tasks_of(job), model=stage / "other")
    assert names(tasks_of(job), "results") == []


def test_another_job_does_not_touch_the_tasks_of_one(job, stage, corpus, own):
    before = contents(tasks_of(job))
    for other, difference in (
        (replace(job, out=job.out.with_name("second"), candidates=CandidateConfig(per_query=3)), r"job\.plan|plan"),
        (replace(job, out=job.out.with_name("third"), teacher=str(stage / "other")), "digest|model"),
    ):
        with pytest.raises(StaleError, match=f"was made with another ({difference}).*; name another folder"):
            collect(other)
    assert contents(tasks_of(job)) == before
    do(tasks_of(job))
    assert same(collect(job), own)


def test_two_that_collect_are_one(job, own):
    do(tasks_of(job))
    with files.lock(job.out), pytest.raises(StaleError, match=r"another run is writing to .*cache"):
        collect(job)
    second = replace(job, out=job.out.with_name("second"))
    with files.lock(tasks_of(job)), pytest.raises(StaleError, match=r"another run is writing to .*tasks"):
        collect(second)
    assert same(collect(job), own)


def test_a_full_disk_keeps_what_is_done(job, own, monkeypatch):
    """First of the worker, then of the one that collects."""
    tasks = tasks_of(job)
    sync = files.sync

    def full(name: str):
        def fail(path: Path) -> None:
            if path.name.startswith(name):
                raise OSError(28, "No space left on device", str(path))
            sync(path)

        return fail

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "sync", full("results-00002"))
        with pytest.raises(InputError, match=r"no room left for .*results-00002\.parquet; make room"):
            do(tasks)
    assert names(tasks, "results") == SHARDS[:2]
    do(tasks)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "sync", full("pairs-00004"))
        with pytest.raises(InputError, match=r"no room left for .*pairs-00004\.parquet.*; make room and run the same"):
            collect(job)
    assert 0 < len(list(job.out.glob("pairs-*.parquet"))) < 7
    assert len(names(tasks, "results")) == 7
    assert same(collect(job), own)


def test_a_task_that_another_process_does_is_left_to_it(job):
    tasks = tasks_of(job)
    with files.lock(tasks / "tasks-00003.parquet"):
        done = do(tasks)
    assert (done.num_tasks, done.num_there, done.num_busy) == (7, 0, 1)
    assert len(names(tasks, "results")) == 6


def test_tasks_that_are_taken_while_a_call_works_are_no_failure(job, monkeypatch):
    tasks, start = tasks_of(job), build.PairWorker.start

    def taken(worker, pairs):
        (tasks / "tasks-00005.parquet").unlink(missing_ok=True)
        return start(worker, pairs)

    monkeypatch.setattr(build.PairWorker, "start", taken)
    do(tasks)
    assert names(tasks, "results") == [shard for shard in SHARDS if shard != "00005"]


def test_a_task_that_another_one_replaces_while_a_call_works_gets_no_results(job, monkeypatch):
    tasks, start = tasks_of(job), build.PairWorker.start

    def replaced(worker, pairs):
        shutil.copy(tasks / "tasks-00001.parquet", tasks / "tasks-00005.parquet")
        return start(worker, pairs)

    monkeypatch.setattr(build.PairWorker, "start", replaced)
    with pytest.raises(InputError, match=r"tasks-00005\.parquet was changed after it was written"):
        do(tasks)
    assert names(tasks, "results") == [shard for shard in SHARDS if shard != "00005"]


WORK = [sys.executable, "-m", "dcdctl", "work", "--device", "cpu"]


@pytest.mark.slow
def test_two_processes_share_the_tasks_and_one_that_is_killed_leaves_its_task_to_the_other(job, own, tmp_path):
    tasks = tasks_of(job)
    with subprocess.Popen([*WORK, str(tasks)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + TIMEOUT_S
        while not names(tasks, "results") and time.monotonic() < deadline:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    assert len(names(tasks, "results")) > 0
    running = [subprocess.Popen([*WORK, str(tasks)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        assert process.communicate(timeout=TIMEOUT_S)[0].startswith(("0", "1", "2", "3", "4", "5", "6"))
        assert process.returncode == 0
    assert same(collect(job), own)


SCRIPT = """
import sys
from pathlib import Path
from kills import kill_often
from task_work import do, engine
from dcdctl.core.engines import Compute, TasksWrittenError
from dcdctl.core.errors import MissingError
from dcdctl.core.teacher import CacheJob, CandidateConfig, build, cache_scores
build.IMAGES_PER_SHARD = 5
data, teacher, whole, victim, num_kills = sys.argv[1:]
def work(folder):
    compute = Compute(workers=0, engine=engine(folder / "tasks"))
    candidates = CandidateConfig(per_query=4)
    job = CacheJob(data=Path(data), teacher=teacher, out=folder / "cache", candidates=candidates, compute=compute)
    try:
        cache_scores(job)
    except (TasksWrittenError, MissingError):
        do(folder / "tasks")
        cache_scores(job)
kill_often(work, Path(whole), Path(victim), num_kills=int(num_kills))
"""


def test_who_writes_does_and_collects_may_be_killed_at_any_step(corpus, stage, own, tmp_path):
    """The command, `work` and the command again, in one process that is killed at changes of files."""
    num_kills = 6 * int(os.environ.get(FAULT_TRIALS, "1"))
    run_forked(SCRIPT, corpus.folder, stage / "teacher", tmp_path / "whole", tmp_path / "victim", num_kills)
    assert contents(tmp_path / "whole" / "cache") == contents(own.folder)
    assert contents(tmp_path / "victim" / "cache") == contents(own.folder)
    assert not (tmp_path / "victim" / "tasks").exists()


def test_tasks_may_be_in_a_bucket(job, own, bucket):
    tasks = tasks_of(job)
    bucket.put_all(tasks, "tasks")
    for number in range(2):  # a call per file
        assert do(bucket.url(f"tasks/tasks-{number:05d}.parquet")).num_there == 0
    assert do(bucket.url("tasks")).num_there == 2
    for key in bucket.keys("tasks/results"):
        (tasks / key.rpartition("/")[2]).write_bytes(bucket.get(key))
    assert same(collect(job), own)


def test_a_bucket_that_fails_is_named(job, bucket):
    bucket.put_all(tasks_of(job), "tasks")
    url = bucket.url("tasks/tasks-00000.parquet")
    bucket.fail(method="PUT", key="/tasks/", status=403, code="AccessDenied")
    assert error_of(f"work {url} --device cpu").startswith(f"error: {bucket.url('tasks')} was refused (AccessDenied); ")
    bucket.fail(method="PUT", key="/tasks/results", times=None, status=503, code="SlowDown")
    assert "tasks/results-00000.parquet: gave up after 5 attempts (SlowDown)" in error_of(f"work {url} --device cpu")
    assert bucket.keys("tasks/results") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tasks: tasks / "absent.parquet", "absent.parquet does not exist; FILE takes a file"),
        (lambda tasks: tasks.parent / "cache", r"is no task; name the files tasks-\*.parquet"),
    ],
)
def test_what_is_no_task_is_refused(change, message, job):
    with pytest.raises(InputError, match=message):
        do(change(tasks_of(job)))


def test_the_array_of_slurm_in_the_docs_does_all_tasks(job, own, monkeypatch):
    """The script itself in bash, where a stand-in of `dcdctl` writes down its words."""
    folder = job.out.parent
    text = (DOCS / "scaling.md").read_text(encoding="utf-8")
    script = re.search(r"^ {4}#!/bin/bash\n(?: {4}.*\n)+", text, re.MULTILINE)[0]
    (folder / "array.sh").write_text(re.sub("^ {4}", "", script, flags=re.MULTILINE))
    (folder / "dcdctl").write_text(f'#!/bin/bash\necho "$@" >> {folder}/lines\n')
    (folder / "dcdctl").chmod(0o755)
    for task in range(2):
        env = {"SLURM_ARRAY_TASK_ID": str(task), "PATH": f"{folder}:{os.environ['PATH']}"}
        processes.run(["bash", "array.sh"], cwd=folder, env=env, check=True)
    monkeypatch.chdir(folder)
    for line in (folder / "lines").read_text().splitlines():
        run(f"{line} --device cpu")
    assert same(collect(job), own)


def test_the_commands_say_what_is_next(corpus, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = f"cache-teacher --data {corpus.folder} --recipe tiny-student --set candidates.per_query=4 --device cpu"
    cache += f" --teacher {stage}/teacher --out cache"
    run(cache.replace("--out cache", "--out own"))
    written = run(f"{cache} --engine files:tasks").stdout
    assert written == (
        "7 tasks -> tasks; do them with `dcdctl work tasks/tasks-*` on any machines, then run this command again\n"
    )
    assert "\nerror: 7 of 7 tasks in tasks have no result yet; " in error_of(f"{cache} --engine files:tasks")
    done = document_of("work tasks/tasks-00000.parquet --device cpu")
    assert {name: done[name] for name in ("tasks", "done", "already_there", "busy")} == {
        "tasks": 1,
        "done": 1,
        "already_there": 0,
        "busy": 0,
    }
    line = run("work tasks --device cpu").stdout
    assert line == "6 tasks done, 1 done before; next: the command that wrote them, again\n"
    facts, _ = read_task_facts(tmp_path / "tasks" / "tasks-00001.parquet", "")
    assert facts["job"]["digest"] == models.load_scorer(stage / "teacher").digest
    run(f"{cache} --engine files:tasks")
    assert contents(tmp_path / "cache") == contents(tmp_path / "own")
