"""What to time: the job of `dcdctl bench` and `dcdctl.bench`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

from dcdctl.core.arguments import Ref, argument, computes, configures, reads
from dcdctl.core.options import TEACHER_HELP, Data, Device, ModelSet, QueryRef, Split

if TYPE_CHECKING:  # torch
    from dcdctl.core.bench.config import BenchConfig

Config: TypeAlias = "BenchConfig | None"


@dataclass(frozen=True)
class BenchJob:
    """The models to time, their pairs, and the device."""

    student: Annotated[Ref, argument("Run folder of the student, or another model reference.", "RUN", "model")]
    teacher: Annotated[Ref | None, reads("--teacher", TEACHER_HELP, "REF", "model")]
    """None beside a query encoder, which is compared with the texts of its own teacher: the student."""
    data: Data
    _: KW_ONLY
    query_model: QueryRef = None
    split: Split = "test"
    model_overrides: ModelSet = None
    """Settings that the teacher's files lack."""
    device: Device = "auto"
    config: Config = None
    """Sizes, repeats and the precision; the command line has `sets` and `precision`."""
    sets: Annotated[
        list[str] | None,
        configures(
            "--set",
            "Override a setting: budget_s=2; repeatable. docs/bench.md lists them.",
            "KEY=VALUE",
            is_keyword=False,
        ),
    ] = None
    precision: Annotated[str, computes("--precision", "fp32, bf16 or fp16.", "NAME", "precision", is_keyword=False)] = (
        "fp32"
    )
    progress: bool = False
    """Show bars. The command always shows them."""
