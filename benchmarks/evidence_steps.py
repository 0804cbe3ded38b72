"""A step of a plan of evidence: one `dcdctl` command, and what its result is compared with."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (0, 1, 2)
ALONE = "InfoNCE, no teacher"


@dataclass(frozen=True)
class Step:
    """One command, and the row of a table its result belongs to."""

    out: str
    """Folder it writes, in the work folder: data, caches/NAME or runs/NAME."""
    command: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    """`out` of the steps it needs."""
    table: str = ""
    """None where it only makes what others need."""
    label: str = ""
    base: str = ""
    """Label of the row it is compared with."""
    measure: tuple[str, ...] = ()
    """Words of `dcdctl eval` beside the run."""
    measured: str = ""
    """What is evaluated where it is not the run alone: a dual encoder whose results the run re-ranks."""

    @property
    def name(self) -> str:
        return self.out.replace("/", "-")

    @property
    def is_run(self) -> bool:
        return self.out.startswith("runs/")


def sets(**values: object) -> tuple[str, ...]:
    """`--set` words; two underscores stand for a dot."""
    return tuple(word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}"))
