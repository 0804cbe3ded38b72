"""Tasks as files, which any program on any machine does: Slurm, Spark, a loop over ssh.

    DIR/tasks-00000.parquet     a task: a row per pair or image, with ids, texts, and paths or the bytes of images
    DIR/results-00000.parquet   its results, a row for each row of the task

`FilesEngine` is an engine whose workers come later. Its first `map` writes the tasks and ends with
`TasksWrittenError`. `dcdctl work DIR/tasks-*` does them: it makes the worker that the metadata of a task describe,
which computes as a worker in this process does, and writes the results atomically. The same command again gets the same
`map`, which now gives the results that are there, and says what is missing. Nothing is pickled, so another program can
read the rows and give scores or vectors with `--scores` and `--vectors`.

The Parquet metadata `dcdctl` of a task are JSON: `job`, which all its tasks share (the kind of work, the model with its
fingerprint, the precision, the batch size, a digest of the artifact's plan), and a digest of the rows. Those of results
repeat them, so results of another model, of another plan or of rows that have changed are told from the expected ones.
The pages of a file have checksums. Its footer has none, so the rows are counted, and the metadata have a checksum of
their own.

Tasks whose results an earlier call has taken, and the tasks of a finished job, are removed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core import artifacts, files
from dcdctl.core.artifacts import CHECKSUM
from dcdctl.core.engines.engine import Output, Task, TaskOf, TaskRows, Worker
from dcdctl.core.engines.this_process import ThisProcess
from dcdctl.core.errors import NUM_EXAMPLES, DcdError, InputError, MissingError, StaleError, first_line
from dcdctl.core.places import shown
from dcdctl.core.progress import Advance, Say, counted

FACTS = b"dcdctl"
"""The key of what is known of a file of tasks or of results, as JSON, in its Parquet metadata."""
FORMAT = 1
TASKS, RESULTS = "tasks-", "results-"
IMAGE_BYTES = "image_bytes"
"""The column with the image file of each row, where the source has no files that can be named."""

Facts = dict[str, Any]


class TasksWrittenError(DcdError):
    """Not a failure: tasks were written, and their results are to come."""

    def __init__(self, folder: Path, num_tasks: int, hint: str) -> None:
        super().__init__(f"{counted(num_tasks, 'tasks')} -> {folder}", hint=hint)
        self.folder, self.num_tasks = folder, num_tasks


class FilesEngine:
    """Programs that do tasks of a folder, now or later."""

    sends_tasks = True

    def __init__(self, folder: Path, say: Say, *, with_bytes: bool = True) -> None:
        """Without bytes, tasks have the ids of images alone, for a program that has the images."""
        self.folder, self.say, self.with_bytes = folder, say, with_bytes

    def map(
        self, tasks: Iterable[TaskOf], make_worker: Callable[[], Worker[Any, Output]], advance: Advance
    ) -> Iterator[tuple[TaskOf, Output]]:
        """The results that are there. Tasks that cannot be files are done by this process.

        At the end TasksWrittenError if tasks were written, MissingError if results are missing; StaleError before
        anything is written if the folder has tasks of another job.
        """
        remaining = iter(tasks)
        first = next(remaining, None)
        if first is None:
            return
        all_tasks = chain([first], remaining)
        if first.in_file is None:
            self.say(f"this step ({first.name}, ...) cannot be tasks in files: this process computes it")
            yield from ThisProcess().map(all_tasks, make_worker, advance)
            return
        with self._held():
            yield from self._collect(all_tasks, advance)

    def write(self, tasks: Iterable[Task[Any]]) -> int:
        """Write tasks for another program to do them, and return their number. StaleError if the folder has tasks of
        another job."""
        with self._held():
            return sum(1 for _ in self._written(tasks))

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The folder for this process."""
        files.check_output_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.lock(self.folder):
            yield

    def _collect(self, tasks: Iterable[TaskOf], advance: Advance) -> Iterator[tuple[TaskOf, Any]]:
        taken: list[Path] = []
        num_written, open_ = 0, dict[str, DcdError]()
        for task, path, file, facts, is_new in self._written(tasks):
            num_written += is_new
            try:
                table = read_results(path, facts, len(file.rows))
                with reading(result_path(path), StaleError, DO_AGAIN):
                    output = file.result(table)
            except DcdError as error:
                open_[path.name] = error
            else:
                yield task, output
                taken.append(path)
                advance(len(file.rows))
        if open_:
            raise self._unfinished(num_written, len(taken) + len(open_), list(open_.values()))
        # The caller has written all results, since it asked for another one.
        for path in taken:
            _remove(path)
        files.remove_partials(self.folder)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _written(self, tasks: Iterable[TaskOf]) -> Iterator[tuple[TaskOf, Path, TaskRows[Any], Facts, bool]]:
        """Each task when its file is there, with its facts and whether the file is new. At the end, the other tasks of
        the job are removed: an earlier call has taken their results."""
        there: dict[Path, Facts] | None = None
        given: set[Path] = set()
        for task in tasks:
            assert task.in_file is not None, "all tasks of a call can be files, or none"
            file, path = task.in_file(), self.folder / _name(task)
            there = self._tasks_of(file.job) if there is None else there
            given.add(path)
            rows, facts = file.rows, {"format": FORMAT, "job": dict(file.job), "rows": digest_of(file.rows)}
            facts["has_bytes"] = file.images is not None and self.with_bytes
            if is_new := there.get(path) != facts:
                if file.images is not None and self.with_bytes:
                    rows = rows.append_column(IMAGE_BYTES, file.images())
                with files.atomic_path(path) as partial:
                    write_table(partial, rows, facts)
            yield task, path, file, facts, is_new
        for path in {*(there or {})} - given:
            _remove(path)

    def _tasks_of(self, job: Mapping[str, Any]) -> dict[Path, Facts]:
        """The facts of each readable task of the folder; StaleError for one of another job."""
        found = {}
        for path in sorted(self.folder.glob(f"{TASKS}*.parquet")):
            try:
                facts, _ = read_task_facts(path, str(path))
            except DcdError:  # written again if it is one of this job
                continue
            hint = f"name another folder: --engine files:DIR, or remove {self.folder}"
            artifacts.expect(path, facts["job"], job, hint=hint)
            found[path] = facts
        return found

    def _unfinished(self, num_written: int, num_tasks: int, errors: Sequence[DcdError]) -> DcdError:
        do_them = f"do them with `dcdctl work {self.folder}/{TASKS}*` on any machines, then run this command again"
        reasons = [str(error.args[0]) for error in errors if not isinstance(error, MissingError)]
        if num_written and not reasons:
            return TasksWrittenError(self.folder, len(errors), do_them)
        missing = f"{len(errors):,} of {num_tasks:,} tasks in {self.folder} have no result yet"
        return MissingError(missing, details=reasons[:NUM_EXAMPLES], hint=f"results that are there are kept; {do_them}")


def _name(task: Task[Any]) -> str:
    part = f"-{task.part:04d}" if task.num_parts > 1 else ""
    return f"{TASKS}{task.shard:05d}{part}.parquet"


def _remove(task: Path) -> None:
    """Remove a task, its results, and the lock of a killed process. The task first: without results, it would be done
    again."""
    task.unlink(missing_ok=True)
    result_path(task).unlink(missing_ok=True)
    for lock in task.parent.glob(f"{files.lock_prefix(task)}*"):
        lock.unlink(missing_ok=True)


def result_path(task: Path) -> Path:
    """Where the results of a file of tasks are.

    >>> result_path(Path("DIR/tasks-00003.parquet")).as_posix()
    'DIR/results-00003.parquet'
    """
    return task.with_name(f"{RESULTS}{task.name.removeprefix(TASKS)}")


def digest_of(rows: pa.Table) -> str:
    """A digest of the ids, texts and paths of a task, whatever file they are in."""
    rows = rows.drop_columns([IMAGE_BYTES]) if IMAGE_BYTES in rows.column_names else rows
    return hashlib.sha256(json.dumps(rows.to_pydict(), default=str).encode()).hexdigest()


def write_table(path: Path, table: pa.Table, facts: Facts) -> None:
    """Write a task or results."""
    pq.write_table(
        table.replace_schema_metadata({FACTS: json.dumps({**facts, CHECKSUM: files.digest_of(facts)})}),
        path,
        compression="zstd",
        row_group_size=max(1, len(table)),
        # Without a limit, so that the bytes of an image are stored once and not once per row.
        dictionary_pagesize_limit=2**30,
        # No document lists these files.
        write_page_checksum=True,
    )


def facts_in(schema: pa.Schema) -> Facts:
    """What is known of a file of tasks or of results; empty for a file of another program. ValueError for damage."""
    text = (schema.metadata or {}).get(FACTS)
    if text is None:
        return {}
    facts = json.loads(text)
    if not isinstance(facts, dict) or facts.pop(CHECKSUM, None) != files.digest_of(facts):
        raise ValueError("its metadata do not match their checksum")
    return facts


def read_task_facts(source: Any, name: str) -> tuple[Facts, int]:
    """What is known of a task, a path or an open file, and its rows; InputError for another or a damaged file."""
    with reading(name, InputError, WRITE_AGAIN), pq.ParquetFile(source) as file:
        facts, num_rows = facts_in(file.schema_arrow), file.metadata.num_rows
    if not facts or "is_result" in facts:
        raise InputError(f"{name} is no task", hint="name the files tasks-*.parquet that --engine files:DIR writes")
    if facts.get("format") != FORMAT:
        found = f"{name} is of format {facts.get('format')}, this dcdctl reads format {FORMAT}"
        raise StaleError(found, hint="use the dcdctl that wrote it")
    return facts, num_rows


def read_task(source: Any, name: str, facts: Facts) -> pa.Table:
    """The rows of a task with these facts; InputError for a file that is damaged or was changed after it was
    written."""
    with reading(name, InputError, WRITE_AGAIN), pq.ParquetFile(source, page_checksum_verification=True) as file:
        table, found = file.read(), facts_in(file.schema_arrow)
        check_rows(len(table), file, name)
    if found != facts or digest_of(table) != facts.get("rows"):
        raise InputError(f"{name} was changed after it was written", hint=WRITE_AGAIN)
    return table


def read_results(task: Path, facts: Facts, num_rows: int, open_file: Callable[[Path], Any] = Path) -> pa.Table:
    """The results of a task with these facts.

    MissingError if there are none. StaleError for damaged ones and for those of another task, which `dcdctl work`
    replaces. InputError for a file of another program.
    """
    path = result_path(task)
    name = shown(path)
    with reading(name, StaleError, DO_AGAIN), pq.ParquetFile(open_file(path), page_checksum_verification=True) as file:
        found = facts_in(file.schema_arrow)
        if not found:
            hint = "remove it; --scores and --vectors take results of other programs"
            raise InputError(f"{name} is no result of `dcdctl work`", hint=hint)
        artifacts.expect(name, found, {**facts, "is_result": True}, hint=DO_AGAIN)
        table: pa.Table = file.read()
        check_rows(len(table), file, name)
    if len(table) != num_rows:
        raise StaleError(f"{name} has {len(table):,} rows, and its task has {num_rows:,}", hint=DO_AGAIN)
    return table


def check_rows(num_read: int, file: pq.ParquetFile, name: str) -> None:
    """StaleError if a file has other rows than were read. Its pages have checksums, and its footer, which says where
    they are, has none: a flipped bit there can hide rows."""
    if num_read != file.metadata.num_rows:
        found = f"{num_read:,} of its {file.metadata.num_rows:,} rows can be read"
        raise StaleError(f"{name} is damaged: {found}", hint="make it again")


WRITE_AGAIN = "remove it, and run the command that wrote it again"
DO_AGAIN = "do the task again with `dcdctl work`"


@contextmanager
def reading(name: Path | str, error: type[DcdError], hint: str) -> Iterator[None]:
    """A block that reads a file: MissingError if it is not there, `error` with `hint` if it is damaged."""
    try:
        yield
    except FileNotFoundError as absent:
        raise MissingError(f"{name} is not there", hint=hint) from absent
    except (OSError, pa.ArrowException, KeyError, ValueError) as damage:
        # Arrow's own errors have no number.
        if isinstance(damage, OSError) and damage.errno:
            raise files.unreadable(Path(name), damage, error=error, hint=hint) from damage
        raise error(f"{name} is damaged: {first_line(damage)}", hint=hint) from damage
