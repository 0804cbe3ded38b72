"""A step of an evidence plan: one `dcdctl` command, and the row of the tables that its result belongs to."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (0, 1, 2)
ALONE = "InfoNCE, no teacher"


@dataclass(frozen=True)
class Step:
    """A command with its dependencies, and the row of a table for its result."""

    out: str
    """Output folder, relative to the work folder: data, caches/NAME or runs/NAME; times/NAME for the times of
    runs/NAME."""
    command: str
    """`eval` for a row that trains nothing; its words are then all arguments but --out."""
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    """`out` of the steps that must finish first."""
    table: str = ""
    """Empty for a step that only prepares others."""
    label: str = ""
    base: str = ""
    """Label of the row that this row is compared with."""
    measure: tuple[str, ...] = ()
    """Arguments of `dcdctl eval` besides the run."""
    measured: str = ""
    """Model that is evaluated with the run as its `role`; empty if the run is evaluated alone."""
    role: str = "--rerank"
    """Option of `dcdctl eval` that takes the run, as the re-ranker or the query model of `measured`."""

    @property
    def name(self) -> str:
        return self.out.replace("/", "-")

    @property
    def short(self) -> str:
        """The folder of its files in docs/evidence/results/PLAN; the times of a run lie beside its results."""
        return self.out.split("/", 1)[-1]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words behind `dcdctl`; `bench` writes into the folder of the run that it times."""
        return (self.command, *self.words, *(() if self.command == "bench" else ("--out", self.out)))

    @property
    def is_run(self) -> bool:
        return self.out.startswith("runs/")

    @property
    def trains(self) -> bool:
        """Whether the command trains a model, which is measured afterwards."""
        return self.is_run and self.command != "eval"


def sets(**values: object) -> tuple[str, ...]:
    """`--set` arguments; two underscores stand for a dot."""
    return tuple(word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}"))
