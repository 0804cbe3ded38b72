"""Files of tasks that any engine hands out, and their results: a file of the same name in another folder.

    WORK/work-00000.parquet     a task: rows to compute
    OUT/work-00000.parquet      its results, whose Parquet metadata say what made them

Results are written atomically, so a file that is there is complete: a command that is repeated computes the others. An
engine calls the command once per file, and the calls share nothing but the two folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core import artifacts, files
from dcdctl.core.data import urls
from dcdctl.core.errors import NUM_EXAMPLES, DcdError, InputError, StaleError, first_line
from dcdctl.core.places import shown, url_of

FACTS = b"dcdctl"
"""The key of what made a file of results, as JSON, in its Parquet metadata."""
CORPUS_FACT = "corpus"
"""In these, the fingerprint of the corpus, which the file of tasks says of itself and its results repeat."""
_ANOTHER_FOLDER = "name another folder with --out"


@dataclass(frozen=True)
class TaskFile:
    """A file of tasks, and the file of its results."""

    source: Path
    target: Path
    noun: str
    """What a file of tasks is called in messages: work file."""
    version: tuple[int, str]
    """Size and version of the file of tasks when it was found."""

    @contextmanager
    def open(self, **options: Any) -> Iterator[pq.ParquetFile]:
        """The open file of tasks; InputError if it is not Parquet or is damaged, also for errors in the block."""
        try:
            with pq.ParquetFile(urls.readable(self.source), page_checksum_verification=True, **options) as file:
                yield file
        except OSError as error:
            raise files.unreadable(self.source, error) from error
        except pa.ArrowException as error:
            message = f"{shown(self.source)} cannot be read as a {self.noun}: {first_line(error)}"
            raise InputError(message, hint="copy it again, or write it again with --plan-only") from error

    @cached_property
    def num_rows(self) -> int:
        """The number of its rows."""
        with self.open() as file:
            return int(file.metadata.num_rows)

    def facts_of(self, maker: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the results: the model and its settings, and the rows of the file."""
        return {**maker, self.noun: urls.sha256_of(self.source)}

    def results(self) -> pq.FileMetaData | None:
        """The metadata of the results; None if there are none yet. InputError for a file that is no such results."""
        if not urls.exists(self.target):
            return None
        try:
            metadata = pq.read_metadata(urls.readable(self.target))
            facts = json.loads((metadata.metadata or {})[FACTS])
            # A file of tasks may have facts of its own.
            if not isinstance(facts, dict) or self.noun not in facts:
                raise ValueError("its metadata are not those of results")
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise InputError(
                f"{shown(self.target)} is there and is no result of this command, or is damaged",
                hint=f"remove it, or {_ANOTHER_FOLDER}",
            ) from error
        return metadata

    def is_finished(self, maker: Mapping[str, Any]) -> bool:
        """Whether the results are there; StaleError if another model or another file of tasks made them."""
        metadata = self.results()
        if metadata is not None:
            artifacts.expect(shown(self.target), facts_in(metadata), self.facts_of(maker), hint=_ANOTHER_FOLDER)
        return metadata is not None

    def write(self, results: pa.Table, facts: Mapping[str, Any]) -> None:
        """Write the results atomically."""
        table = results.replace_schema_metadata({FACTS: json.dumps(facts)})
        if urls.size_and_version(self.source) != self.version:
            raise StaleError(f"{shown(self.source)} has changed while it was read", hint="run the command again")
        if url_of(self.target) is None:
            with files.atomic_path(self.target) as partial:
                _write_table(table, partial)
            return
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / self.target.name
            _write_table(table, path)
            urls.write_file(self.target, path)


def _write_table(table: pa.Table, path: Path) -> None:
    """With checksums of the pages, because no document lists these files."""
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def check_rows(num_read: int, file: pq.ParquetFile, path: Path) -> None:
    """InputError if a file has other rows than were read. Its pages have checksums, and its footer, which says where
    they are, has none: a flipped bit there can hide rows."""
    if num_read != file.metadata.num_rows:
        raise InputError(
            f"{shown(path)} is damaged: {num_read:,} of its {file.metadata.num_rows:,} rows can be read",
            hint="make it again",
        )


def corpus_of(schema: pa.Schema) -> str | None:
    """The fingerprint of the corpus that a file of tasks or of results is of; None if it does not say, such as one that
    another program wrote."""
    try:
        facts = json.loads((schema.metadata or {})[FACTS])
    except (KeyError, ValueError):
        return None
    corpus = facts.get(CORPUS_FACT) if isinstance(facts, dict) else None
    return corpus if isinstance(corpus, str) else None


def facts_in(metadata: pq.FileMetaData) -> dict[str, Any]:
    """What made a file of results."""
    facts: dict[str, Any] = json.loads(metadata.metadata[FACTS])
    return facts


def find_tasks(names: Sequence[str], out: Path, *, noun: str, metavar: str) -> list[TaskFile]:
    """The files of tasks that files, folders and patterns name, and where their results go.

    InputError for a name without a file, for two files of one name, and for a folder that cannot be written to.
    """
    urls.check_writable(out)
    by_name: dict[str, TaskFile] = {}
    for source in urls.find_named(names, (".parquet", ".pq"), what=noun, option=metavar):
        task = TaskFile(source, out / source.name, noun, urls.size_and_version(source))
        if source.resolve() == task.target.resolve():
            raise InputError(
                f"--out is the folder of {shown(source)}, which would be overwritten", hint=_ANOTHER_FOLDER
            )
        if (other := by_name.setdefault(source.name, task)) is not task:
            raise InputError(
                f"{shown(other.source)} and {shown(source)} have the same name, and so would their results",
                hint="give them in two calls with two folders",
            )
    return list(by_name.values())


def complete_tasks(
    tasks: Sequence[TaskFile],
    maker: Mapping[str, Any],
    compute: Callable[[TaskFile], tuple[pa.Table, Mapping[str, Any]]],
) -> int:
    """Write the results that are not there yet, and return how many were. `compute` gives the results of a file, and
    what else is known of them.

    StaleError before anything is computed if results of another model are there. InputError at the end for files that
    failed; the results of all others are written.
    """
    missing = [task for task in tasks if not task.is_finished(maker)]
    if url_of(tasks[0].target) is None:
        files.remove_partials(tasks[0].target.parent)
    failed: dict[TaskFile, DcdError] = {}
    for task in missing:
        try:
            results, more = compute(task)
        except DcdError as error:
            failed[task] = error
            continue
        # Outside of the block above: what cannot be written would fail again and again.
        task.write(results, {**task.facts_of(maker), **more})
    if len(tasks) == 1 and failed:
        raise failed[tasks[0]]
    if failed:
        folder = shown(tasks[0].target.parent)
        reasons = [f"{task.source.name}: {error}" for task, error in failed.items()]
        raise InputError(
            f"{len(failed):,} of {len(tasks):,} files failed",
            details=[*reasons[:NUM_EXAMPLES], *(["..."] if len(reasons) > NUM_EXAMPLES else [])],
            hint=f"the results of the others are in {folder}; correct these and repeat the command",
        )
    return len(tasks) - len(missing)
