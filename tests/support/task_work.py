"""Tasks in files: done in this process, and what a folder of them has."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core.data import WorkDone
from dcdctl.core.engines import FilesEngine
from dcdctl.core.progress import unsaid
from dcdctl.core.search import WorkJob, do_work
from dcdctl.core.teacher import CacheJob, plan_scores


def engine(folder: Path) -> FilesEngine:
    return FilesEngine(folder, unsaid)


def do(*places: object, **options: object) -> WorkDone:
    """What `dcdctl work` does with files or folders."""
    return do_work(WorkJob([str(place) for place in places], device="cpu", **{"workers": 0, **options}))


def tasks_of(job: CacheJob) -> Path:
    """Where `plan` writes the pairs of a cache."""
    return job.out.with_name(f"tasks of {job.out.name}")


def plan(job: CacheJob, **options: bool) -> tuple[int, int]:
    """Write the pairs of a cache that have no score, for another program; the numbers of pairs and tasks."""
    return plan_scores(job, FilesEngine(tasks_of(job), unsaid, **options))


def rows_of(job: CacheJob) -> pa.Table:
    """All rows of the tasks of a cache."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(tasks_of(job).iterdir()))


def names(folder: Path, kind: str) -> list[str]:
    """The numbers of the tasks, or of the results, of a folder."""
    return sorted(path.stem.removeprefix(f"{kind}-") for path in folder.glob(f"{kind}-*.parquet"))


def flipped(path: Path, at: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
