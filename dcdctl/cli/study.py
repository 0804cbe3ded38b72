"""`dcdctl study`: whether a teacher pays on the user's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdctl.cli import options
from dcdctl.cli.bench import sizes
from dcdctl.cli.completion import complete_split, complete_teacher
from dcdctl.cli.views.scoring import show_estimate, show_workload
from dcdctl.cli.views.terminal import bar, clock, note, show, show_json, show_table, show_tables

if TYPE_CHECKING:
    from dcdctl.core.devices import Compute
    from dcdctl.core.report import Study
    from dcdctl.core.study import Step, StudyOptions


def announce_all(refs: list[str] | None) -> list[str] | None:
    """Callback of `--teacher`: a line on stderr for each that names Python code."""
    for ref in refs or ():
        options.announce_code(ref)
    return refs


Start = Annotated[
    str | None,
    typer.Option(
        "--start",
        help="Dual encoder to train: a Hub id, folder or run; by default the recipe's model.start.",
        metavar="REF",
    ),
]
Teachers = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        help="Fusion scorer, whose scores are cached, or dual encoder, which needs no cache; repeatable.",
        callback=announce_all,
        autocompletion=complete_teacher,
        metavar="REF",
    ),
]
Seeds = Annotated[Any, typer.Option("--seeds", help="Seeds of the trainings.", parser=sizes, metavar="N,N,...")]
TrainSplit = Annotated[
    str,
    typer.Option(
        "--train-split",
        help="Split to train on; train+val reads two as one.",
        autocompletion=complete_split,
        metavar="NAME",
    ),
]
Depth = Annotated[int, typer.Option("--depth", help=options.DEPTH_HELP, min=1, metavar="N")]
WithTeacher = Annotated[
    bool, typer.Option("--with-teacher", help="Also evaluate the teacher, which scores all pairs of the split.")
]


def study(
    recipe: options.RecipeArgument,
    teacher: Teachers,
    data: options.Data,
    out: options.Out,
    start: Start = None,
    sets: options.Sets = None,
    seeds: Seeds = "0,1,2",
    train_split: TrainSplit = "train",
    split: options.Split = "test",
    depth: Depth = 20,
    with_teacher: WithTeacher = False,
    model_set: options.ModelSet = None,
    features: options.Features = None,
    batch_size: options.PairBatchSize = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    precision: options.TrainingPrecision = "auto",
    workers: options.Workers = None,
    accumulate: options.Accumulate = "auto",
    checkpoint_activations: options.CheckpointActivations = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Find out whether a teacher pays on your data. It compares zero-shot, fine-tuned, distilled and cascade in one
    report."""
    options.check_overrides(recipe, sets)
    from dcdctl.cli.views.training import view as watch
    from dcdctl.core.devices import Compute, choose, use_threads
    from dcdctl.core.study import StudyJob, StudyView, preview_study, run_study

    use_threads(threads)
    job = StudyJob(
        recipe=recipe, start=start, teachers=teacher, data=data, out=out, sets=sets or (),
        model_set=model_set or (), seeds=seeds,
        train_split=train_split, split=split, depth=depth, with_teacher=with_teacher,
    )  # fmt: skip
    compute = Compute(device=choose(device), batch_size=batch_size, workers=workers, features=features)
    settings = _options(compute, precision, accumulate, checkpoint_activations)
    view = StudyView(
        announce=note, say=note, track=bar, watch=watch, on_estimate=show_estimate, on_workload=show_workload
    )
    if dry_run:
        steps = preview_study(job, settings, view)
        return show_json({"steps": [_step(step) for step in steps]}) if json else _show_steps(steps)
    result = run_study(job, settings, view)
    show_json(result.to_json()) if json else _show(result)
    (note if json else show)(f"report -> {out / 'report.html'}")


def _options(compute: Compute, precision: str, accumulate: str, checkpoint_activations: bool) -> StudyOptions:
    """How to train and to score. A precision that is not auto holds for the teacher's cache too; only trainings read
    stored features."""
    from dataclasses import replace

    from dcdctl.core import devices
    from dcdctl.core.study import StudyOptions

    scoring = replace(compute, precision=devices.precision("fp32" if precision == "auto" else precision), features=None)
    return StudyOptions(
        training=options.training_options(compute, precision, accumulate, checkpoint_activations, None), scoring=scoring
    )


def _step(step: Step) -> dict[str, Any]:
    """A step for JSON."""
    table = {
        "name": step.name,
        "folder": str(step.folder),
        "work": step.work,
        "seconds": step.seconds,
        "finished": step.is_done(),
    }
    return table | ({"pairs": step.num_pairs} if step.num_pairs else {})


def _show_steps(steps: list[Step]) -> None:
    rows = []
    for step in steps:
        time = "" if step.seconds is None else f"about {clock(step.seconds)}"
        rows.append([step.name, str(step.folder), step.work, "finished" if step.is_done() else time])
    caption = "Times: by a short trial of the teacher; those of trainings and dual encoders are not estimated."
    show_table("", ["step", "folder", "work", "time"], rows, caption=caption)


def _show(study: Study) -> None:
    from dcdctl.core.report import study_tables

    show_tables(study_tables(study))
    for line in (*study.notes, *(f"left out: {part}" for part in study.left_out)):
        show(line)
    show(f"\n{study.verdict}\n")
