"""What models are worth: `evaluate`, `compare` and `bench`, and `export` for other libraries.

Results show a line as their repr and a table in a notebook.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from dcdctl.api import arguments
from dcdctl.api.arguments import Overrides, Ref, assignments, many, optional_path, path, say
from dcdctl.core import bench as bench_room
from dcdctl.core import devices, evaluation, models, report
from dcdctl.core import export as export_room
from dcdctl.core.bench import Bench, BenchConfig, ModelPair
from dcdctl.core.evaluation import Comparison, EvalJob, Evaluation, SplitChoice
from dcdctl.core.export import Exported, ExportJob
from dcdctl.core.models import Model


def evaluate(
    model: Ref | Model,
    data: Ref,
    *,
    split: str = "test",
    protocol: str = "auto",
    max_images: int | None = None,
    rerank: Ref | None = None,
    depth: int | Sequence[int] | None = None,
    dims: int | None = None,
    vectors: Literal["float32", "int8", "binary"] = "float32",
    rescore: int | None = None,
    eccv: bool = False,
    model_overrides: Overrides | None = None,
    rerank_overrides: Overrides | None = None,
    features: Ref | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "fp32",
    out: Ref | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure the retrieval of a model, or of a cascade with `rerank`; written into `out`, or into the run folder if
    `model` is a run.

    `model` is a name as for `load`, or a model that is loaded.

    `depth` is the number of candidates that are re-ranked per query (50), or several of them, whose times are then
    measured too. `dims`, `vectors` and `rescore` compare the vectors of a dual encoder by their first numbers or by
    codes, as an index does.
    """
    depths = [depth] if isinstance(depth, int) else depth
    job = EvalJob(
        model=os.fspath(model)
        if isinstance(model, str | os.PathLike)
        else f"{type(model).__name__} {model.digest[:8]}",
        loaded=None if isinstance(model, str | os.PathLike) else model,
        choice=SplitChoice(path(data), split, protocol, max_images),
        rerank=None if rerank is None else os.fspath(rerank),
        rerank_sets=assignments(rerank_overrides),
        depth=None if depths is None else ",".join(map(str, depths)),
        model_sets=assignments(model_overrides),
        with_eccv=eccv,
        dims=None if dims is None else str(dims),
        codes=vectors,
        rescore=rescore,
        compute=arguments.compute(
            device, precision=precision, batch_size=batch_size, workers=workers, features=features
        ),
        out=optional_path(out),
    )
    with arguments.threads(threads):
        return evaluation.run_evaluation(job, track=arguments.track(progress), say=say)


def compare(
    *systems: Ref | Sequence[Ref],
    base: Ref | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    draw_seeds: bool = False,
    queries: int = 6,
    html: Ref | None = None,
    data: Ref | None = None,
) -> Comparison:
    """Test whether models differ, query by query. A system is a run or another folder with an evaluation; a list of
    them is its seeds.

    `base` is the system that the others are compared with, by default the first. `html` is a file for a page with the
    queries that differ most; `data` is the corpus of its images, if it was moved.
    """
    names = [",".join(many(system)) for system in systems]
    comparison = evaluation.compare_systems(
        names,
        None if base is None else os.fspath(base),
        resamples=resamples,
        seed=seed,
        draw_seeds=draw_seeds,
        num_queries=queries,
    )
    if html is not None:
        report.write_comparison_page(path(html), comparison, report.open_corpus(comparison, optional_path(data)))
    return comparison


def bench(
    student: Ref,
    teacher: Ref,
    data: Ref,
    *,
    split: str = "test",
    config: BenchConfig | None = None,
    model_overrides: Overrides | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Bench:
    """Time a student and its teacher on the same pairs; `config` sets the sizes, the precision and the seconds per
    measurement."""
    overrides = models.parse_overrides(assignments(model_overrides))
    pair = ModelPair(
        teacher=os.fspath(teacher), student=os.fspath(student), overrides=overrides, data=path(data), split=split
    )
    track = arguments.track(progress)
    return bench_room.compare_saved(pair, config or BenchConfig(), device=devices.choose(device), track=track)


def export(
    model: Ref,
    out: Ref,
    to: Literal["transformers", "sentence-transformers", "open-clip", "onnx"],
    *,
    data: Ref | None = None,
    int8: bool = True,
    evaluations: Sequence[Ref] = (),
    license_id: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    model_overrides: Overrides | None = None,
    progress: bool = False,
) -> Exported:
    """Write a model for another library, with a model card; its outputs are compared with those of the original."""
    job = ExportJob(
        ref=os.fspath(model),
        out=path(out),
        to=to,
        data=optional_path(data),
        with_int8=int8,
        license=license_id,
        push=export_room.push_options(push_to_hub, is_private=private),
        model_sets=assignments(model_overrides),
        evaluations=tuple(path(folder) for folder in evaluations),
    )
    return export_room.export_model(job, arguments.track(progress))
