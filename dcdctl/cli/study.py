"""`dcdctl study`: whether a teacher pays on the user's own data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from dcdctl.cli import options
from dcdctl.cli.completion import complete_split
from dcdctl.cli.declare import Ref, assignments, named, optional_ref, path
from dcdctl.cli.training_options import Training
from dcdctl.cli.views.scoring import show_estimate, show_workload
from dcdctl.cli.views.terminal import bar, note, show, show_json, show_tables
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.report import Study
    from dcdctl.core.study import StudyJob


@dataclass(frozen=True)
class StudyArguments(Training):
    """A start, its teacher, and the data to study them on."""

    recipe: options.RecipeArgument
    teacher: options.Teacher
    data: options.Data
    out: options.Out
    _: KW_ONLY
    start: Annotated[
        Ref | None,
        options.reads(
            "--start", "Dual encoder to train: a Hub id, folder or run; by default the recipe's model.start.", "REF"
        ),
        str,
    ] = None
    # Any for Typer, which takes a list in one word by `parser`, not by its type.
    seeds: Annotated[
        Sequence[int], options.configures("--seeds", "Seeds of the trainings.", "N,N,...", parser=options.sizes), Any
    ] = (0, 1, 2)
    train_split: Annotated[
        str,
        options.reads("--train-split", "Split to train on.", "NAME", autocompletion=complete_split),
    ] = "train"
    split: options.Split = "test"
    depth: Annotated[int, options.configures("--depth", options.DEPTH_HELP, "N", min=1)] = 20
    model_overrides: options.ModelSet = None
    batch_size: options.PairBatchSize = None

    def request(self, sets: Sequence[str] | None = None) -> StudyJob:
        """What to study, and how."""
        from dcdctl.core.study import StudyJob

        training = self.options(batch_size=self.batch_size)
        return StudyJob(
            recipe=named(self.recipe),
            start=optional_ref(self.start),
            teacher=os.fspath(self.teacher),
            data=path(self.data),
            out=path(self.out),
            sets=list(sets or ()),
            model_set=assignments(self.model_overrides),
            seeds=tuple(self.seeds),
            train_split=self.train_split,
            split=self.split,
            depth=self.depth,
            training=training,
            # A precision that is not auto holds for the teacher's cache too; only trainings read stored features.
            scoring=replace(training.compute, features=None),
        )


# Not the option of other trainings, because the data must be there.
DryRun = Annotated[bool, options.configures("--dry-run", "Show what the study would train and measure, and stop.")]


def study(
    arguments: StudyArguments, sets: options.Sets = None, dry_run: DryRun = False, json: options.Json = False
) -> None:
    """Find out whether a teacher pays on your data. It compares zero-shot, fine-tuned, distilled and cascade in one
    report."""
    options.check_overrides(arguments.recipe, sets)
    from dcdctl.cli.views.training import view as watch
    from dcdctl.core.study import StudyView, preview_study, run_study

    job = arguments.request(sets)
    if dry_run:
        planned = preview_study(job, bar)
        return show_json(planned) if json else _show_plan(planned)
    view = StudyView(
        announce=note, say=note, track=bar, watch=watch, on_estimate=show_estimate, on_workload=show_workload
    )
    result = run_study(job, view)
    if json:
        show_json(result.to_json())
    else:
        _show(result)
    # With --json, stdout holds one document and nothing else.
    (note if json else show)(f"report -> {job.out / 'report.html'}")


def _show_plan(planned: dict[str, Any]) -> None:
    for number, part in enumerate(planned["parts"], start=1):
        done = " (finished before)" if part["finished"] else ""
        show(f"{number}/{len(planned['parts'])} {part['name']}: {part['folder']}{done}")
    trainings, steps = planned["trainings"], planned["steps_per_training"]
    of_steps = "" if steps is None else f" of {counted(steps, 'steps')}, {trainings * steps:,} in all"
    show(f"{counted(trainings, 'trainings')}{of_steps}")
    if (most := planned.get("most_pairs")) is not None:
        rounds = planned.get("rounds")
        where = "" if rounds is None else f" in the {counted(rounds, 'rounds')} of each distillation"
        show(f"the teacher scores {most:,} pairs of a student's proposals at most{where}")
    show(f"{counted(planned['evaluations'], 'evaluations')}, {counted(planned['caches'], 'caches')} of scores")


def _show(study: Study) -> None:
    from dcdctl.core.report import study_tables

    show(f"{study.verdict}\n")
    show_tables(study_tables(study))
    for line in (*study.notes, *(f"left out: {part}" for part in study.left_out)):
        show(line)
