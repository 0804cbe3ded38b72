"""`dcdctl bench`: how much faster the student is."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dcdctl.cli.declare import Ref, assignments, optional_ref, path
from dcdctl.cli.options import (
    TEACHER_HELP,
    Data,
    Device,
    Json,
    ModelSet,
    Precision,
    QueryRef,
    Split,
    argument,
    configures,
    reads_model,
)
from dcdctl.cli.views.bench import show_bench
from dcdctl.cli.views.terminal import bar, note, show_json

if TYPE_CHECKING:
    from dcdctl.core.bench import BenchConfig, ModelPair

Config: TypeAlias = "BenchConfig | None"


@dataclass(frozen=True)
class TimedModels:
    """The models to time, their pairs, and the device."""

    student: Annotated[Ref, argument("Run folder of the student, or another model reference.", "RUN"), str]
    teacher: Annotated[Ref | None, reads_model("--teacher", TEACHER_HELP, "REF"), str | None]
    data: Data
    _: KW_ONLY
    query_model: QueryRef = None
    split: Split = "test"
    model_overrides: ModelSet = None
    device: Device = "auto"
    config: Config = None
    """Sizes, repeats, and the precision; the command line has options for them."""
    progress: bool = False
    """Show bars. The command always shows them."""

    def pair(self) -> ModelPair:
        """The same as the core takes it."""
        from dcdctl.core import models
        from dcdctl.core.bench import ModelPair

        if self.teacher is None and self.query_model is None:
            raise typer.BadParameter("is missing: name the slow model, or --query-model", param_hint="--teacher")
        return ModelPair(
            # A query encoder is compared with the texts of its own teacher.
            teacher=os.fspath(self.teacher or self.student),
            query_model=optional_ref(self.query_model),
            student=os.fspath(self.student),
            overrides=models.parse_overrides(assignments(self.model_overrides)),
            data=path(self.data),
            split=self.split,
        )


def bench(
    timed: TimedModels,
    sets: Annotated[
        list[str] | None,
        configures("--set", "Override a setting: budget_s=2; repeatable. docs/bench.md lists them.", "KEY=VALUE"),
    ] = None,
    precision: Precision = "fp32",
    json: Json = False,
) -> None:
    """Time a student and its teacher on the same pairs. It prints the time of a query, the throughput and the size of
    both."""
    from dcdctl.core import devices
    from dcdctl.core.bench import BenchConfig, compare_saved
    from dcdctl.core.config import apply_sets, build

    device = devices.choose(timed.device)
    settings = {"precision": devices.precision_on(precision, device, note)}
    config = build(BenchConfig, settings | apply_sets({}, sets or []))
    result = compare_saved(timed.pair(), config, device=device, track=bar)
    if json:
        return show_json(result.to_json())
    show_bench(result)
