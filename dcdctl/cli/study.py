"""`dcdctl study`: whether a teacher pays on the user's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from dcdctl.cli.options import Json, check_overrides
from dcdctl.cli.views.scoring import show_estimate, show_workload
from dcdctl.cli.views.terminal import bar, note, show, show_json, show_tables
from dcdctl.core.arguments import configures, path
from dcdctl.core.progress import counted
from dcdctl.core.study import StudyJob

if TYPE_CHECKING:
    from dcdctl.core.report import Study


# Not the option of other trainings, because the data must be there.
DryRun = Annotated[bool, configures("--dry-run", "Show what the study would train and measure, and stop.")]


def study(job: StudyJob, dry_run: DryRun = False, json: Json = False) -> None:
    """Find out whether a teacher pays on your data. It compares zero-shot, fine-tuned, distilled and cascade in one
    report."""
    check_overrides(job.recipe, job.sets)
    from dcdctl.cli.views.training import view as watch
    from dcdctl.core.study import StudyView, preview_study, run_study

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
    (note if json else show)(f"report -> {path(job.out) / 'report.html'}")


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
