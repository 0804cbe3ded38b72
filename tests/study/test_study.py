"""`dcdctl study`: every number is that of its own command, the baseline differs in the teacher alone, and a killed
study resumes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_fakes import QUICK
from duals import save_dual
from encoders import save_text, save_vision
from families import late
from speed_ups import check_speed_ups
from tiny import contents, make_pool, make_teacher, model_contents
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import evaluation, models, training
from dcdctl.core.artifacts import write_document
from dcdctl.core.bench import footprint
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, CorpusError, DcdError, InputError, ModelError, StaleError
from dcdctl.core.evaluation import (
    RECALL_NAMES,
    EvalJob,
    EvalOptions,
    Evaluation,
    RankTable,
    cascade,
    compare_ranks,
    run_evaluation,
)
from dcdctl.core.evaluation.bootstrap import holm
from dcdctl.core.evaluation.estimates import RankComparison
from dcdctl.core.progress import OnStep
from dcdctl.core.report.report import read_report
from dcdctl.core.report.study_report import Difference, planned_p_values, read_rows, verdict
from dcdctl.core.scoring import folds
from dcdctl.core.study import StudyJob, StudyView, preview_study, run_study, study
from dcdctl.core.study.plan import DISTILLED, FINE_TUNED, RANDOM, SETTINGS_FILE, resolve
from dcdctl.core.teacher import read_cache
from dcdctl.core.training import InputRefs, Run, TrainingJob, TrainingOptions, load_recipe

RECIPE = """
[candidates]
kind = "blocks"
block_size = 4
group_size = 1
captions_per_image = 2
[model]
kind = "dual"
start = "openai/clip-vit-base-patch32"
[loss]
terms = { infonce = 1.0, kl = 2.0 }
temperature = 2.0
[batch]
size = 8
[optimizer]
lr = 1e-3
steps = 3
save_every = 1
"""


@dataclass(frozen=True)
class Stage:
    """Tiny models and a corpus of 32 images to train on and 16 to evaluate on."""

    folder: Path
    data: Path

    @property
    def recipe(self) -> str:
        return str(self.folder / "recipe.toml")

    def job(self, out: Path, **changes: Any) -> StudyJob:
        job = StudyJob(
            recipe=self.recipe,
            start=str(self.folder / "clip"),
            teacher=str(self.folder / "teacher"),
            data=self.data,
            out=out,
            seeds=(0, 1),
            depth=3,
            precision="fp32",
            accumulate=1,
        )
        return replace(job, **changes)


@pytest.fixture(scope="module", autouse=True)
def _short_trials() -> Iterator[None]:
    """Estimates of the teacher's time from a single batch, times of few queries: they are shown, and change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "TRIAL_S", 0.001)
        patch.setattr(cascade, "MAX_ROUNDS", 3)
        patch.setattr(footprint, "NUM_COUNTED", 1)
        patch.setattr(study, "QUICK", QUICK)
        yield


@pytest.fixture(scope="module")
def stage(scenes_corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder, captions = tmp_path_factory.mktemp("stage"), Corpus.open(scenes_corpus_dir, "train").captions
    for kind, name in (("CLIP", "clip"), ("SigLIP", "siglip")):
        save_dual(kind, captions, folder / name)
    models.save(make_teacher(captions), folder / "teacher")
    (folder / "recipe.toml").write_text(RECIPE)
    return Stage(folder, scenes_corpus_dir)


@pytest.fixture(scope="module")
def finished(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two seeds."""
    out = tmp_path_factory.mktemp("finished") / "study"
    run_study(stage.job(out))
    return out


def document(out: Path) -> dict[str, Any]:
    return json.loads((out / "study.json").read_text())


def page_of(out: Path) -> str:
    return (out / "report.html").read_text()


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in document(out)["models"]}


def without_times(out: Path) -> dict[str, Any]:
    """study.json without what another run measures otherwise, and without the name of its folder."""
    found = json.loads((out / "study.json").read_text().replace(str(out), "OUT"))
    found["models"] = [
        {name: value for name, value in row.items() if "ms" not in name and name != "speed_up"}
        for row in found["models"]
    ]
    return {name: value for name, value in found.items() if name != "checksum"}


def evaluate(ref: object, stage: Stage, **more: Any) -> Evaluation:
    return evaluation.evaluate_model(models.load(str(ref)), Corpus.open(stage.data, "test"), **more)


def recalls(row: dict[str, Any]) -> list[float]:
    sides = (row["text_retrieval"], row["image_retrieval"])
    return [*(side[name] for side in sides for name in RECALL_NAMES), row["rsum"]]


def recalls_of(found: Sequence[Evaluation]) -> list[float]:
    """The same of evaluations: means over them."""
    each = [
        [*(one[name] for one in sides for name in RECALL_NAMES), recall_sum]
        for sides, recall_sum in (((one.text_retrieval, one.image_retrieval), one.rsum) for one in found)
    ]
    return np.mean(each, axis=0).tolist()


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("zero-shot", ["clip"]),
        ("fine-tuned", ["runs/fine-tuned-seed0", "runs/fine-tuned-seed1"]),
        ("fine-tuned, random batches", ["runs/fine-tuned-random-seed0", "runs/fine-tuned-random-seed1"]),
        ("taught by itself", ["runs/itself-seed0", "runs/itself-seed1"]),
        ("distilled", ["runs/distilled-seed0", "runs/distilled-seed1"]),
    ],
)
def test_the_recalls_of_a_row_are_the_means_of_evaluations_of_its_models(
    name: str, folders: list[str], stage: Stage, finished: Path
):
    found = [evaluate((stage.folder if name == "zero-shot" else finished) / folder, stage) for folder in folders]
    assert recalls(rows(finished)[name]) == pytest.approx(recalls_of(found))
    assert rows(finished)[name]["rsum_by_seed"] == pytest.approx([one.rsum for one in found])


def test_the_cascade_is_the_distilled_model_re_ranked_by_the_teacher(stage: Stage, finished: Path):
    teacher, options = models.load_fusion(stage.folder / "teacher"), EvalOptions(depths=(3,))
    found = [
        evaluate(finished / f"runs/distilled-seed{seed}", stage, rerank=teacher, options=options) for seed in (0, 1)
    ]
    assert recalls(rows(finished)["cascade"]) == pytest.approx(recalls_of(found))
    assert recalls(rows(finished)["cascade"]) != pytest.approx(recalls(rows(finished)["distilled"]))


@pytest.mark.parametrize(
    ("run", "terms", "has_cache", "seed"),
    [
        ("distilled-seed0", "{ infonce = 1.0, kl = 2.0 }", True, 0),
        ("fine-tuned-seed1", "{ infonce = 1.0 }", True, 1),
        ("fine-tuned-random-seed0", "{ infonce = 1.0 }", False, 0),
    ],
)
def test_a_run_has_the_weights_that_distill_gives(
    run, terms, has_cache, seed, stage: Stage, finished: Path, tmp_path: Path
):
    sets = [f"loss.terms={terms}", f"model.start={stage.folder / 'clip'}", f"seed={seed}"]
    job = TrainingJob("distill", stage.recipe, sets, tmp_path / "run")
    inputs = InputRefs(data=stage.data, caches=[finished / "cache"] if has_cache else [])
    alone = training.train_model(job, inputs, options=TrainingOptions())
    assert models.load(alone.folder).digest == models.load(finished / "runs" / run).digest


def test_without_the_weight_of_its_teacher_distillation_is_fine_tuning(stage: Stage, finished: Path, tmp_path: Path):
    """The same batches in the same order: only then do the weights agree. Random batches give others."""
    plan = resolve(stage.job(tmp_path, sets=["loss.terms={ infonce = 1.0, kl = 1e-12 }"]))
    shutil.copytree(finished / "cache", tmp_path / "cache")

    def weights(name: str) -> torch.Tensor:
        variant = next(variant for variant in plan.arms if variant.name == name)
        run = training.train_model(plan.training_job(variant, 0), plan.inputs(variant, 0), options=TrainingOptions())
        return models.load(run.folder).network.state_dict()["visual_projection.weight"]

    fine_tuned = weights(FINE_TUNED)
    torch.testing.assert_close(weights(DISTILLED), fine_tuned, rtol=0, atol=1e-6)
    assert (weights(RANDOM) - fine_tuned).abs().max() > 1e-4


def start_table(finished: Path) -> RankTable:
    return evaluation.SavedEvaluation.load(finished / "evaluations/zero-shot").table


def test_the_differences_are_paired_over_all_seeds(finished: Path):
    def tables(name: str) -> list[RankTable]:
        runs = [evaluation.SavedEvaluation.load(finished / "runs" / f"{name}-seed{seed}") for seed in (0, 1)]
        return [run.table for run in runs]

    expected = compare_ranks(tables("distilled"), tables("fine-tuned"), draw_seeds=True).difference
    found = {(one["ours"], one["base"]): one for one in document(finished)["differences"]}
    rsum = found["distilled", "fine-tuned"]["rsum"]
    assert (rsum["value"], rsum["interval"]) == (
        expected.rsum.value,
        [expected.rsum.interval.low, expected.rsum.interval.high],
    )
    assert found["distilled", "fine-tuned"]["interval_over"] == "images and seeds"
    # Only the differences from the baselines decide, adjusted for their number; a t-test needs seeds of both.
    planned = document(finished)["planned_p_values"]
    assert list(planned) == ["fine-tuned", "fine-tuned, random batches", "taught by itself"]
    raw = [max(found["distilled", base]["p_value"], found["distilled", base]["t_test_p_value"]) for base in planned]
    assert list(planned.values()) == holm(raw)
    # The start has no seed: the same model against each run.
    expected = compare_ranks(tables("fine-tuned"), [start_table(finished)] * 2, draw_seeds=True)
    assert found["fine-tuned", "zero-shot"]["t_test_p_value"] == expected.t_test_p_value
    assert found["fine-tuned", "zero-shot"]["interval_over"] == "images and seeds"
    assert list(found) == [
        ("distilled", "fine-tuned"),
        ("distilled", "fine-tuned, random batches"),
        ("distilled", "taught by itself"),
        ("fine-tuned", "zero-shot"),
        ("fine-tuned, random batches", "zero-shot"),
        ("taught by itself", "zero-shot"),
        ("cascade", "distilled"),
    ]


def test_a_time_is_that_of_the_benchmark_or_of_the_cascade(finished: Path):
    first = finished / "runs" / "distilled-seed0"
    bench = json.loads((first / "bench.json").read_text())
    ms = {
        name: 1000
        * next(query["seconds"] for query in bench[name]["queries"] if query["is_cached"] and query["num_images"] == 16)
        for name in ("teacher", "student")
    }
    found = rows(finished)
    assert found["teacher"]["query_ms"] == pytest.approx(ms["teacher"])
    assert found["distilled"]["query_ms"] == found["zero-shot"]["query_ms"] == pytest.approx(ms["student"])
    assert found["distilled"]["speed_up"] == pytest.approx(ms["teacher"] / ms["student"])
    table = re.findall(r"<td[^>]*>(~?[\d,.]+ ms)</td><td[^>]*>([\d,.]+)\N{MULTIPLICATION SIGN}", page_of(finished))
    assert len(table) == len(found)
    check_speed_ups(table)
    depths = [
        json.loads((finished / "runs" / f"distilled-seed{seed}" / "cascade.json").read_text())["depths"]
        for seed in (0, 1)
    ]
    assert found["cascade"]["query_ms"] == pytest.approx(np.mean([each[-1]["ms_per_query"] for each in depths]))


def test_the_page_and_other_commands_read_what_it_leaves(finished: Path):
    page, found = page_of(finished), document(finished)
    assert found["verdict"] in page
    # Commands look as such, not as on the terminal.
    assert "<code>dcdctl compare</code>" in page
    assert "`" not in page.partition("</style>")[2]  # a comment of the style sheet has some
    trained = ("distilled", "fine-tuned", "fine-tuned, random batches", "taught by itself")
    best = max(rows(finished)[name]["rsum"] for name in trained)
    assert ("The start without any training" in found["verdict"]) == (rows(finished)["zero-shot"]["rsum"] > best)
    assert all(f'<th scope="row">{name}' in page for name in rows(finished))
    assert any(line.startswith("recalls of the teacher") for line in found["left_out"])
    read = read_report([finished / "runs" / "distilled-seed0"], baseline=finished / "evaluations" / "zero-shot")
    assert [one.result.rsum for one in read.models if one.result] == pytest.approx(
        [rows(finished)[name]["rsum_by_seed"][0] for name in ("distilled", "cascade", "zero-shot")]
    )


class InterruptError(Exception):
    """What a test raises in the place of a kill."""


@contextmanager
def dies(*, total: int, done: int, unit: str = "steps", per_step: int = 1) -> Iterator[OnStep]:
    """A view of a training that ends it after its second step."""

    def on_step(steps: int, values: Mapping[str, float]) -> None:
        if steps == 2:
            raise InterruptError

    yield on_step


def test_a_killed_study_resumes_with_the_same_numbers_and_repeats_nothing(stage: Stage, finished: Path, tmp_path: Path):
    out = shutil.copytree(finished, tmp_path / "study")
    for name in ("distilled-seed0", "fine-tuned-random-seed1"):
        shutil.rmtree(out / "runs" / name)
    with pytest.raises(InterruptError):
        run_study(stage.job(out), StudyView(watch=dies))
    assert Run(out / "runs" / "distilled-seed0").checkpoint_steps() == [1, 2]
    others = [
        path for path in out.rglob("*") if path.is_file() and path.parent.name not in ("distilled-seed0", "study")
    ]
    before = {path: path.stat().st_mtime_ns for path in others if "distilled-seed0" not in path.parts}
    lines: list[str] = []
    run_study(stage.job(out), StudyView(announce=lines.append))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    repeated = [line.partition(" ")[2].partition(":")[0] for line in lines if "finished before" not in line]
    assert repeated == ["distilled, seed 0", "cascade, seed 0", "fine-tuned, random batches, seed 1", "time per query"]
    assert without_times(out) == without_times(finished)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, r"depth \(3, not 4\)"),
        ({"sets": ["optimizer.lr=1e-2"]}, r"recipe\.optimizer\.lr \(0\.001, not 0\.01\)"),
        ({"split": "val"}, r"corpora\.(test|val) "),
        ({"teacher": "scenes-vilt"}, r"teachers\[0\]\.ref"),
    ],
)
def test_a_folder_of_another_study_is_refused(changes: dict[str, Any], message: str, stage: Stage, finished: Path):
    with pytest.raises(StaleError, match=message) as refused:
        run_study(stage.job(finished, **changes))
    assert "name another folder with --out" in str(refused.value)


def test_a_start_that_has_changed_under_its_name_is_refused(stage: Stage, tmp_path: Path):
    start = shutil.copytree(stage.folder / "clip", tmp_path / "clip")
    job = stage.job(tmp_path / "study", start=str(start))
    resolved = resolve(job)
    job.out.mkdir()
    write_document(job.out / SETTINGS_FILE, resolved.settings)
    (job.out / "cache").mkdir()
    (job.out / "cache" / "plan.json").write_text("{}")
    resolve(job)
    config = start / "preprocessor_config.json"
    config.write_text(config.read_text().replace("0.485", "0.5").replace("0.48145466", "0.5"))
    with pytest.raises(StaleError, match=r"start\.digest"):
        resolve(job)


def test_a_study_that_failed_before_its_first_result_may_be_corrected(stage: Stage, tmp_path: Path):
    """The first step locks its folder, so an empty one is left."""
    job = stage.job(tmp_path / "study", depth=9)
    plan = resolve(job)
    (job.out / "evaluations").mkdir(parents=True)
    write_document(job.out / SETTINGS_FILE, plan.settings)
    assert resolve(replace(job, depth=3)).settings["depth"] == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"recipe": "tiny-student"},
            ConfigError,
            "recipe tiny-student trains a fusion model, and a study needs a student that can search",
        ),
        ({"recipe": "demo-dual-alone"}, ConfigError, r"learns from no teacher: loss\.terms has infonce"),
        ({"start": "scenes-vilt"}, ModelError, "scenes-vilt is a fusion scorer, expected a dual encoder"),
        ({"teacher": "absent"}, ModelError, "absent does not exist"),
        ({"sets": ["validation.every=1", "validation.split=absent"]}, CorpusError, "split 'absent'"),
        ({"seeds": (0, 0)}, ConfigError, "--seeds must be different numbers of at least 0, got 0,0"),
        ({"sets": ["seed=4"]}, ConfigError, "--set seed=4 sets one seed"),
        ({"split": "train"}, ConfigError, "trains on train and evaluates on train"),
        (
            {"split": "val", "sets": ["validation.every=1"]},
            ConfigError,
            r"validation\.split is val, on which the best weights are chosen",
        ),
        ({"sets": ["batch.size=1"]}, ConfigError, r"batch\.size must lie in"),
        (
            {"sets": ["loss.terms={ kl = 1.0, embedding-cosine = 1.0 }"]},
            ConfigError,
            "embedding-cosine needs the vectors of one dual teacher",
        ),
    ],
)
def test_what_a_study_cannot_use_is_refused_before_anything_is_written(
    changes, error, message, stage: Stage, tmp_path: Path
):
    out = tmp_path / "study"
    with pytest.raises(error, match=message) as refused:
        run_study(stage.job(out, **changes))
    assert isinstance(refused.value, DcdError)
    assert not out.exists()


def test_settings_of_the_teacher_go_with_it_and_with_no_other_model(stage: Stage, tmp_path: Path):
    teacher, sets = str(stage.folder / "siglip"), ("max_text_len=9",)
    plan = resolve(stage.job(tmp_path / "study", teacher=teacher, model_overrides=sets))
    fine_tuned, _, distilled = plan.arms
    assert plan.inputs(distilled, 1).model_set == plan.cache_job(teacher, tmp_path / "cache").model_set == sets
    own = plan.cache_job(str(stage.folder / "clip"), tmp_path / "cache")
    assert plan.inputs(fine_tuned, 1).model_set == own.model_set == ()


@pytest.mark.parametrize("kind", ["dual", "late"])
def test_a_teacher_that_encodes_items_once_needs_no_cache_and_has_no_cascade(kind, stage: Stage, tmp_path: Path):
    """Also with a student of that kind, which starts from a dual encoder."""
    out, teacher = tmp_path / "study", stage.folder / "siglip"
    if kind == "late":
        models.save(late(models.load_dual(teacher)), tmp_path / "late")
        teacher = tmp_path / "late"
    job = stage.job(out, teacher=str(teacher), seeds=(0,), sets=[f"model.kind={kind}", "optimizer.steps=1"])
    run_study(job)
    ms = [row["query_ms"] for row in rows(out).values()]
    assert (ms[0] is None) == (kind == "late")
    assert None not in ms[1:]
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"evaluations", "runs"}
    assert {path.name for path in (out / "runs").iterdir() if path.is_dir()} == {
        "fine-tuned-seed0",
        "itself-seed0",
        "distilled-seed0",
    }
    assert list(rows(out)) == ["zero-shot", "fine-tuned", "taught by itself", "distilled", "teacher"]
    # Nothing but the teacher differs.
    itself, taught = (Run(out / "runs" / f"{name}-seed0").facts() for name in ("itself", "distilled"))
    assert itself["inputs"].pop("teachers")["teacher"] == models.load(out / "runs" / "fine-tuned-seed0").digest
    assert taught["inputs"].pop("teachers")["teacher"] == models.load(teacher).digest
    assert (itself["recipe"], itself["inputs"]) == (taught["recipe"], taught["inputs"])
    assert any(
        line.startswith("cascade: the teacher encodes each image once itself") for line in document(out)["left_out"]
    )


def test_a_recipe_of_two_encoders_is_compared_with_itself_and_has_no_zero_shot_row(stage: Stage, tmp_path: Path):
    captions = Corpus.open(stage.data, "train").captions
    encoders = {
        "vision": save_vision("tokens", tmp_path / "vision"),
        "text": save_text("bert", captions, tmp_path / "t"),
    }
    sets = [f"model.{name}={encoder}" for name, encoder in encoders.items()]
    out = tmp_path / "study"
    run_study(stage.job(out, start=None, seeds=(0,), sets=[*sets, "model.start=new", "optimizer.steps=1"]))
    names = ["fine-tuned", "fine-tuned, random batches", "taught by itself", "distilled"]
    assert [name for name, row in rows(out).items() if row["folders"]] == [*names, "cascade"]
    for run in (out / "runs").iterdir():
        model = Run(run).facts()["recipe"]["model"]
        assert [model[name] for name in encoders] == list(encoders.values())
    # The cache of the control has the candidates of the teacher's, and scores of the fine-tuned model.
    teacher, own = (read_cache(out / name) for name in ("cache", "cache-itself-seed0"))
    assert own.plan["teacher"] == models.load(out / "runs" / "fine-tuned-seed0").digest
    assert own.plan["candidates"] == teacher.plan["candidates"]
    assert (
        f" against {max(names[:3], key=lambda name: rows(out)[name]['rsum']).replace(',', ' with')} in"
        in (document(out)["verdict"])
    )


def test_lists_of_the_baseline_have_as_many_negatives_which_no_teacher_chose(stage: Stage, tmp_path: Path):
    sets = [
        "loss.terms={ dcd = 1.0 }",
        "batch.random_negatives=4",
        "batch.hard_negatives=2",
        "loss.weight_group=2",
    ]
    plan = resolve(stage.job(tmp_path / "study", sets=sets))
    baseline, itself, distilled = plan.arms
    assert itself.sets == distilled.sets
    recipe = load_recipe(stage.recipe, baseline.sets)
    assert (baseline.caches, distilled.caches) == ((), (tmp_path / "study" / "cache",))
    assert (recipe.loss.terms, recipe.batch.random_negatives) == ({"infonce-hard": 1.0}, 2)
    assert load_recipe(stage.recipe, distilled.sets).batch.random_negatives == 4


def test_all_runs_have_the_precision_that_the_first_one_chose(stage: Stage, tmp_path: Path):
    dual = str(stage.folder / "siglip")
    job = stage.job(tmp_path / "study", teacher=dual, seeds=(0,), sets=["optimizer.steps=1"], precision="auto")
    plan = resolve(job)
    plan.out.mkdir()
    write_document(plan.out / SETTINGS_FILE, plan.settings)
    # As on a GPU where bfloat16 is faster.
    in_bf16 = TrainingOptions(compute=Compute(precision="bfloat16"))
    training.train_model(plan.training_job(plan.arms[0], 0), plan.inputs(plan.arms[0], 0), options=in_bf16)
    run_study(job)
    assert Run(tmp_path / "study" / "runs" / "distilled-seed0").facts()["inputs"]["precision"] == "bfloat16"


def test_a_benchmark_that_fails_leaves_out_the_times_alone(stage: Stage, finished: Path, tmp_path: Path, monkeypatch):
    out = shutil.copytree(finished, tmp_path / "study")
    (out / "runs" / "distilled-seed0" / "bench.json").unlink()

    def fails(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(study, "run_bench", fails)
    run_study(stage.job(out))
    assert any(line.startswith("times per query: the GPU has too little memory") for line in document(out)["left_out"])
    assert rows(out)["distilled"]["query_ms"] is None
    assert rows(out)["cascade"]["query_ms"] == rows(finished)["cascade"]["query_ms"]
    assert rows(out)["distilled"]["rsum"] == rows(finished)["distilled"]["rsum"]


def test_an_evaluation_without_its_ranks_is_made_again(stage: Stage, finished: Path, tmp_path: Path):
    out = shutil.copytree(finished, tmp_path / "study")
    (out / "runs" / "distilled-seed1" / "ranks.parquet").unlink()
    lines: list[str] = []
    run_study(stage.job(out), StudyView(announce=lines.append))
    assert [line for line in lines if "finished before" not in line] == [
        f"13/15 distilled, seed 1: {out / 'runs' / 'distilled-seed1'}"
    ]
    assert without_times(out) == without_times(finished)


def test_the_agreement_of_a_run_on_a_pool_is_no_part_of_a_study_with_labels(
    stage: Stage, finished: Path, tmp_path: Path
):
    out = shutil.copytree(finished, tmp_path / "study")
    texts = [["a red circle", "a blue square"]] * 4
    pool = make_pool(tmp_path / "pool", texts, has_colors=True)
    run = out / "runs" / "distilled-seed0"
    found = run_evaluation(
        EvalJob(model=str(run), data=pool.folder, split="train", against=str(stage.folder / "siglip"))
    )
    assert (run / "pool.json").exists()
    assert found.agreement.ndcg > 0
    run_study(stage.job(out))
    assert without_times(out) == without_times(finished)


def test_a_mean_over_fewer_seeds_than_named_is_an_error(finished: Path, tmp_path: Path):
    both = (finished / "runs" / "distilled-seed0", tmp_path)
    with pytest.raises(InputError, match=r"result\.json cannot be read"):
        read_rows({"distilled": both}, {})


def ranks(text: int, image: int, count: int = 4) -> RankTable:
    """Equal ranks of all images and captions."""
    ones = np.ones(count, dtype=np.int64)
    return RankTable(tuple("abcdefgh"[:count]), np.arange(count), np.arange(count), text * ones, image * ones)


def difference(ours: RankTable, base: RankTable, name: str = "fine-tuned") -> Difference:
    """Of three equal runs each."""
    return difference_of_runs([ours] * 3, [base] * 3, name)


def difference_of_runs(ours: list[RankTable], base: list[RankTable], name: str = "fine-tuned") -> Difference:
    comparison: RankComparison = compare_ranks(ours, base, draw_seeds=len(ours) > 1)
    return Difference("distilled", name, comparison, "images")


def test_the_verdict_says_in_words_whether_the_teacher_paid():
    # Rank 2 misses R@1 in both directions: 200 of 600 points.
    best, second = ranks(1, 1), ranks(2, 2)
    p = "p 0.0002."
    added = f"The teacher paid: distilled against fine-tuned, RSUM +200.0 (200.0 to 200.0), {p}"
    lost = f"The teacher did not pay: distilled against fine-tuned, RSUM -200.0 (-200.0 to -200.0), {p}"
    same = "Not shown to differ: distilled against fine-tuned, RSUM +0.0 (0.0 to 0.0), p 1."
    assert [verdict([difference(*pair)], 0.0) for pair in ((best, second), (second, best), (best, best))] == [
        added,
        lost,
        same,
    ]


def test_a_study_with_one_seed_tests_nothing():
    one_seed = [difference_of_runs([ranks(1, 1)], [ranks(2, 2)])]
    assert verdict(one_seed, 0.0) == (
        "Not tested: distilled against fine-tuned in these trainings, RSUM +200.0 (200.0 to 200.0). "
        "Fewer than 3 seeds per system: a claim about methods needs at least 3."
    )
    assert planned_p_values(one_seed) == {}


def test_a_verdict_from_two_seeds_says_that_they_are_few():
    found = verdict([difference_of_runs([ranks(1, 1), ranks(2, 2)], [ranks(2, 2), ranks(2, 6)])], 0.0)
    assert found.startswith("Not shown to differ: distilled against fine-tuned, RSUM +150.0 (")
    assert found.endswith("Fewer than 3 seeds per system: a claim about methods needs at least 3.")


def test_runs_that_are_all_better_show_no_difference_if_they_differ_too_much():
    # RSUM 600, 400 and 300 against 200: t = 233.3 / 88.2 with 2 degrees of freedom, p = 1 - t / sqrt(2 + t^2) = 0.118,
    # and 233.3 - 4.30 * 88.2 = -146. No difference is above 600.
    runs = difference_of_runs([ranks(1, 1), ranks(2, 2), ranks(2, 6)], [ranks(6, 6)] * 3)
    interval = runs.comparison.difference.total.interval
    assert interval == (pytest.approx(-146, abs=20), 600)
    expected = f"Not shown to differ: distilled against fine-tuned, RSUM +233.3 ({interval}), p 0.12."
    assert verdict([runs], 0.0) == expected
    # Beside a weaker baseline the larger p-value stays; that of an equal baseline doubles it.
    assert verdict([runs, difference(ranks(1, 1), ranks(11, 11), "other")], 0.0) == expected
    assert verdict([runs, replace(runs, base="other")], 0.0).endswith("p 0.24.")


def test_the_verdict_is_against_the_better_baseline():
    weak, strong = (
        difference(ranks(1, 1), ranks(20, 20)),
        difference(ranks(1, 1), ranks(1, 2), "fine-tuned, random batches"),
    )
    expected = "The teacher paid: distilled against fine-tuned with random batches, RSUM +100.0 (100.0 to 100.0), p 0."
    assert verdict([weak, strong], 0.0) == verdict([strong, weak], 0.0)
    assert verdict([weak, strong], 0.0).startswith(expected)


def test_the_verdict_says_if_the_start_is_better_than_what_was_trained():
    # RSUM 600 and 400, and a start between them and above them.
    both = [difference(ranks(1, 1), ranks(2, 2))]
    assert verdict(both, 599.0).endswith("p 0.0002.")
    assert verdict(both, 601.0).endswith("p 0.0002. The start without any training has a higher RSUM than both.")


def test_the_spread_is_the_sample_standard_deviation(finished: Path):
    first, second = rows(finished)["distilled"]["rsum_by_seed"]
    assert rows(finished)["distilled"]["rsum_spread"] == pytest.approx(abs(first - second) / np.sqrt(2))
    assert rows(finished)["zero-shot"]["rsum_spread"] is None


def run_cli(*words: object) -> Any:
    return CliRunner().invoke(app, ["study", *map(str, words)], catch_exceptions=False)


def words(stage: Stage, out: Path) -> list[object]:
    given = [
        stage.recipe,
        "--start",
        stage.folder / "clip",
        "--teacher",
        stage.folder / "teacher",
        "--data",
        stage.data,
        "--out",
        out,
    ]
    return [*given, "--seeds", "0,1", "--depth", 3, "--device", "cpu", "--precision", "fp32"]


def test_a_dry_run_shows_every_step_and_how_much_is_trained_and_writes_nothing(stage: Stage, tmp_path: Path):
    out = tmp_path / "study"
    result = run_cli(*words(stage, out), "--dry-run")
    assert result.exit_code == 0, result.stderr
    *steps, trained, measured = result.stdout.splitlines()
    of_seed = ["fine-tuned", "fine-tuned, random batches", "scores of fine-tuned", "taught by itself", "distilled"]
    names = ["zero-shot", f"scores of {stage.folder / 'teacher'}"]
    for seed in (0, 1):
        names += [f"{name}, seed {seed}" for name in (*of_seed, "cascade")]
    names.append("time per query")
    assert [line.partition(":")[0] for line in steps] == [f"{at}/15 {name}" for at, name in enumerate(names, start=1)]
    assert (trained, measured) == ("8 trainings of 3 steps, 24 in all", "11 evaluations, 3 caches of scores")
    assert not out.exists()


def test_a_dry_run_of_a_finished_study_says_so_and_is_json_too(stage: Stage, finished: Path):
    before = contents(finished)
    found = json.loads(run_cli(*words(stage, finished), "--dry-run", "--json").stdout)
    assert len(found["parts"]) == 15
    assert all(part["finished"] for part in found["parts"])
    assert {name: found[name] for name in ("trainings", "steps_per_training", "evaluations", "caches")} == {
        "trainings": 8,
        "steps_per_training": 3,
        "evaluations": 11,
        "caches": 3,
    }
    assert contents(finished) == before


def test_a_dry_run_raises_what_the_study_would(stage: Stage, tmp_path: Path):
    sets = ("--set", "validation.every=1", "--set", "validation.split=absent")
    result = run_cli(*words(stage, tmp_path / "study"), "--dry-run", *sets)
    assert result.exit_code == 1
    assert "no split 'absent'" in result.stderr


def test_the_command_prints_the_study_and_its_verdict(stage: Stage, finished: Path):
    result = run_cli(*words(stage, finished), "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("(finished before)") == 15
    assert json.loads(result.stdout)["verdict"] == document(finished)["verdict"]
    shown = run_cli(*words(stage, finished))
    assert document(finished)["verdict"] in shown.stdout
    assert "distilled \N{MINUS SIGN} fine-tuned" in shown.stdout


PROPOSED = (
    *(
        "candidates.kind=embedding",
        "candidates.model=start",
        "candidates.per_query=3",
        "candidates.directions=['image']",
    ),
    *("model.kind=late", "model.token_dim=8", "loss.terms={ infonce = 1.0, margin-mse = 0.1 }", "optimizer.steps=2"),
)
"""Settings as of late-mined: a student of the captions proposes what the teacher scores."""


@pytest.fixture(scope="module")
def proposed(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a study, which was killed between its proposer and its cache, and before the last seed."""
    out = tmp_path_factory.mktemp("proposed") / "study"
    job = stage.job(out, sets=PROPOSED, seeds=(1, 0))
    for number in (3, 9):

        def kill(line: str, start: str = f"{number}/") -> None:
            if line.startswith(start):
                raise InterruptError

        with pytest.raises(InterruptError):
            run_study(job, StudyView(announce=kill))
    run_study(job)
    return out


def test_a_student_of_the_captions_proposes_what_the_teacher_of_a_study_scores(stage: Stage, proposed: Path):
    # The first seed named is the proposer's.
    proposer = "fine-tuned-random-seed1"
    assert [one["folders"] for one in document(proposed)["models"]][1:5] == [
        [str(proposed / "runs" / f"{name}-seed{seed}") for seed in (1, 0)]
        for name in ("fine-tuned", "fine-tuned-random", "itself", "distilled")
    ]
    caches = [read_cache(proposed / name) for name in ("cache", "cache-itself-seed1", "cache-itself-seed0")]
    assert {cache.plan["candidates"]["model"] for cache in caches} == {str(proposed / "runs" / proposer)}
    # What is scored is the same, by whom is not.
    pairs = [list(zip(cache.image_P.tolist(), cache.text_P.tolist(), strict=True)) for cache in caches]
    assert pairs[0] == pairs[1] == pairs[2]
    assert caches[0].score_P.tolist() != caches[1].score_P.tolist()
    facts = {run.name: Run(run).facts() for run in (proposed / "runs").iterdir()}
    for name, found in facts.items():
        if name.startswith(("fine-tuned-seed", "distilled")):
            assert found["inputs"]["cache"] == caches[0].plan
    assert facts["fine-tuned-seed0"]["recipe"]["loss"]["terms"] == {"infonce": 1.0}
    assert any("of seed 1 proposes" in note for note in document(proposed)["notes"])
    # The same bytes as by one `dcdctl distill`, with run-0 in the place of the baseline.
    inputs = InputRefs(data=stage.data, teachers=[str(stage.folder / "teacher")])
    sets = [*PROPOSED, f"model.start={stage.folder / 'clip'}", "seed=1"]
    run = training.train_in_rounds(
        TrainingJob("distill", stage.recipe, sets, proposed.parent / "run"), inputs, options=TrainingOptions()
    )
    first = Run(Path(f"{run.folder}-rounds") / "run-0")
    assert first.facts()["recipe"] == facts[proposer]["recipe"]
    for ours, theirs in ((proposer, first), ("distilled-seed1", run)):
        assert model_contents(proposed / "runs" / ours / "model") == model_contents(theirs.model_folder)
    assert caches[0].score_P.tolist() == read_cache(Path(f"{run.folder}-rounds") / "cache-1").score_P.tolist()


def test_a_dry_run_of_such_a_study_counts_what_the_teacher_scores_and_its_first_seed_stays(
    stage: Stage, proposed: Path, tmp_path, monkeypatch
):
    monkeypatch.setattr(study, "cache_scores", lambda *_, **__: pytest.fail("the teacher was called"))
    out = tmp_path / "study"
    planned = preview_study(stage.job(out, sets=PROPOSED, seeds=(1, 0)))
    num_captions = Corpus.open(stage.data, "train").num_captions
    counts = {
        name: planned[name] for name in ("trainings", "steps_per_training", "evaluations", "caches", "most_pairs")
    }
    assert counts == {
        "trainings": 8,
        "steps_per_training": 2,
        "evaluations": 11,
        "caches": 3,
        "most_pairs": 4 * num_captions,
    }
    assert [part["name"] for part in planned["parts"]][:3] == [
        "zero-shot",
        "fine-tuned, random batches, seed 1",
        f"scores of {stage.folder / 'teacher'}",
    ]
    sets = [word for line in PROPOSED for word in ("--set", line)]
    shown = run_cli(*words(stage, out), *sets, "--dry-run").stdout
    assert f"\nthe teacher scores {4 * num_captions:,} pairs of a student's proposals at most\n" in shown
    assert not out.exists()
    with pytest.raises(StaleError, match=r"another proposer \(fine-tuned-random-seed1, not fine-tuned-random-seed0\)"):
        resolve(stage.job(proposed, sets=PROPOSED, seeds=(0, 1)))
    # What only the distillation has is refused before the first training.
    with pytest.raises(ConfigError, match="have no bias"):
        run_study(stage.job(out, sets=[*PROPOSED[:4], "loss.terms={ sigmoid-kl = 1.0 }"]))
    assert not out.exists()
    # A dual teacher scores every pair, so nothing is proposed.
    dual = resolve(stage.job(out, sets=PROPOSED, teacher=str(stage.folder / "siglip")))
    assert (dual.proposer, dual.caches, "proposer" in dual.settings) == (None, {}, False)
