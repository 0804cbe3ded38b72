"""`dcdctl study` on pools: models are compared by their agreement with the teacher, and nothing reads a pairing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_fakes import QUICK
from duals import save_dual
from scipy import stats
from tiny import make_corpus, make_teacher, model_contents, write_pool

from dcdctl.core import models
from dcdctl.core.artifacts import read_document, write_document
from dcdctl.core.data import Direction
from dcdctl.core.errors import ConfigError
from dcdctl.core.evaluation import EvalJob, run_evaluation
from dcdctl.core.evaluation.agreement import Agreements, QueryAgreement
from dcdctl.core.evaluation.significance import (
    compare_agreements,
    compare_means,
)
from dcdctl.core.report.study_report import Difference, verdict
from dcdctl.core.study import StudyJob, StudyView, preview_study, run_study, study
from dcdctl.core.teacher import read_cache
from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions, rounds, train_in_rounds

CAPTIONS = [[f"a {color} {thing} {place}" for place in ("here", "there")] for color in ("red", "blue", "tan")
            for thing in ("car", "dog", "hat", "bus")]  # fmt: skip
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
terms = { kl = 1.0 }
[batch]
size = 4
[optimizer]
lr = 1e-3
steps = 3
"""


@pytest.fixture(scope="module", autouse=True)
def _short_times():
    """Times of few queries: they are shown, and change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "QUICK", QUICK)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models, a recipe, and a corpus with the captioned split `pairs` and the pools `train` and `test`."""
    folder = tmp_path_factory.mktemp("pools")
    data = make_corpus(folder / "data", CAPTIONS, has_colors=True).folder
    document = read_document(data / "corpus.json", 2)
    rng = np.random.default_rng(1)
    pools = {split: write_pool(data, split, CAPTIONS[cut], rng, has_colors=True)
             for split, cut in (("unpaired", slice(None)), ("test", slice(3, 10)))}  # fmt: skip
    write_document(data / "corpus.json", {**document, "splits": {**document["splits"], **pools}})
    words = [text for texts in CAPTIONS for text in texts]
    for kind, name in (("CLIP", "clip"), ("SigLIP", "siglip")):
        save_dual(kind, words, folder / name)
    models.save(make_teacher(words), folder / "fusion")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def job(folder: Path, out: Path, teacher: str, train_split: str = "unpaired", **more: Any) -> StudyJob:
    return StudyJob(
        recipe=str(folder / "recipe.toml"),
        start=str(folder / "clip"),
        teacher=str(folder / teacher),
        data=folder / "data",
        out=out,
        seeds=(0, 1),
        train_split=train_split,
        precision="fp32",
        accumulate=1,
        **more,
    )


def document(out: Path) -> dict[str, Any]:
    return json.loads((out / "study.json").read_text())


@pytest.mark.parametrize(
    ("teacher", "train_split", "names"),
    [
        ("siglip", "unpaired", ["zero-shot", "distilled"]),
        (
            "fusion",
            "train",
            ["zero-shot", "fine-tuned", "fine-tuned, random batches", "taught by itself", "distilled"],
        ),
    ],
)
def test_the_models_of_a_study_on_a_pool_have_the_agreement_that_eval_gives(
    folder, tmp_path, teacher, train_split, names
):
    out = tmp_path / "study"
    asked = job(folder, out, teacher, train_split)
    run_study(asked)
    rows = {row["name"]: row for row in document(out)["models"]}
    assert [name for name in rows if rows[name]["folders"]] == names
    against = str(folder / teacher if teacher == "siglip" else out / "against")
    for name, row in rows.items():
        found = [
            run_evaluation(
                EvalJob(
                    model=str(folder / "clip") if name == "zero-shot" else each,
                    data=folder / "data",
                    against=against,
                    out=tmp_path / "other",
                )
            )
            for each in row["folders"]
        ]
        assert row.get("ndcg_by_seed", []) == pytest.approx([one.agreement.ndcg for one in found])
        if found:
            means = [one.agreement.image_retrieval["spearman"] for one in found]
            assert row["image_retrieval"]["spearman"] == pytest.approx(np.mean(means))
    # The best baseline; without one, the start.
    best = max(names[1:-1], key=lambda name: rows[name]["ndcg"]) if train_split == "train" else "the start"
    baseline = best.replace(",", " with")
    assert f"distilled against {baseline}" in document(out)["verdict"]
    assert ", nDCG@10 of agreement with the teacher " in document(out)["verdict"]
    # The start has no seed, and is a baseline that each run is tested against.
    assert list(document(out)["planned_p_values"]) == (names[1:-1] or ["zero-shot"])
    assert "It favors models that learned from that teacher" in " ".join(document(out)["notes"])
    assert rows["distilled"]["query_ms"] > 0
    page = (out / "report.html").read_text()
    assert "same first" in page
    assert "RSUM" not in page
    lines: list[str] = []
    run_study(asked, StudyView(announce=lines.append))
    assert [line for line in lines if "finished before" not in line] == []


def test_what_a_pool_has_no_captions_for_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="opened without --model-set"):
        run_study(job(folder, tmp_path / "study", "siglip", model_overrides=("max_text_len=32",)))


def agreements(text_Q: list[float], image_Q: list[float]) -> Agreements:
    """A run with this nDCG@10 of its queries."""
    return Agreements(
        "all",
        {
            direction: QueryAgreement(
                np.arange(len(ndcg)), np.full(len(ndcg), 9), np.column_stack([np.zeros(len(ndcg)), ndcg, ndcg])
            )
            for direction, ndcg in zip(Direction, (text_Q, image_Q), strict=True)
        },
    )


def test_agreement_is_compared_by_the_mean_of_both_directions():
    # 60 and 40 of two images, 50 of four texts: (50 + 50) / 2; the base has 10 less everywhere.
    ours = agreements([0.6, 0.4], [0.5] * 4)
    base = agreements([0.5, 0.3], [0.4] * 4)
    found = compare_agreements([ours], [base])
    totals = [side.total.value for side in (found.ours, found.base, found.difference)]
    assert totals == pytest.approx([50.0, 40.0, 10.0])
    assert found.difference.total.interval == pytest.approx((10.0, 10.0))
    # Draws of two images: 40 (both the second), 50 or 60; of texts always 50.
    assert found.ours.total.interval == pytest.approx((45.0, 55.0))
    assert found.p_value == pytest.approx(2 / 10_001)
    # All six signs alike: 2 of 64 patterns.
    assert (found.sign_flip_p_value, found.sign_flip_is_exact) == (2 / 64, True)
    same = compare_agreements([ours], [ours])
    assert (same.difference.total.value, same.difference.total.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_agreement_in_one_direction_is_tested_like_any_mean():
    rng = np.random.default_rng(0)
    ours_Q, base_Q = rng.random(40), rng.random(40)
    runs = []
    for values_Q in (ours_Q, base_Q):
        whole = agreements(values_Q.tolist(), [0.0])
        runs.append([Agreements("all", {Direction.TEXT: whole.by_direction[Direction.TEXT]})])
    found, expected = compare_agreements(*runs), compare_means(ours_Q, base_Q, np.arange(40), 10_000, 0)
    assert found.p_value == expected.p_value
    assert found.sign_flip_p_value == pytest.approx(expected.sign_flip_p_value, abs=2e-4)


def test_seeds_are_covered_where_both_systems_have_several():
    # Runs of 30, 50 and 70 everywhere: no draw of queries changes anything, another three runs would.
    ours = [agreements([level] * 5, [level] * 5) for level in (0.3, 0.5, 0.7)]
    base = [agreements([0.5] * 5, [0.5] * 5)] * 3
    fixed, drawn = (compare_agreements(ours, base, draw_seeds=draws) for draws in (False, True))
    assert fixed.difference.total.interval == (0.0, 0.0)
    half = stats.t.ppf(0.975, 2) * 20 / np.sqrt(3)
    assert drawn.difference.total.interval == pytest.approx((-half, half), rel=0.1)
    assert drawn.runs == (pytest.approx((30.0, 50.0, 70.0)), pytest.approx((50.0, 50.0, 50.0)))


def test_a_verdict_by_agreement_says_so():
    ours, base = [agreements([0.6] * 5, [0.6] * 5)] * 3, [agreements([0.5] * 5, [0.5] * 5)] * 3
    comparison = compare_agreements(ours, base, draw_seeds=True)
    found = verdict([Difference("distilled", "zero-shot", comparison, "queries and seeds")], 50.0)
    assert found == (
        "The teacher paid: distilled against the start, nDCG@10 of agreement with the teacher +10.0 (10.0 to 10.0), "
        "p 0.0002."
    )


IN_ROUNDS = (
    *("pool.rounds=2", "pool.pseudo_positive_above=3.75", "pool.images=4", "pool.texts=6"),
    *("loss.terms={ infonce = 1.0, kl = 1.0 }", "candidates.kind=embedding", "candidates.model=start"),
    *("candidates.per_query=3", "candidates.directions=['image']"),
)
"""Settings as of pool-picked: each student proposes in rounds of its own what the teacher scores."""


def test_on_a_pool_each_distilled_model_has_rounds_of_its_own_which_a_killed_study_resumes(
    folder, tmp_path, monkeypatch
):
    asked = job(folder, tmp_path / "study", "fusion", sets=IN_ROUNDS)
    planned = preview_study(asked)
    counts = {name: planned[name] for name in ("trainings", "evaluations", "caches", "rounds", "most_pairs")}
    # Three of twelve images for each of 24 texts, in each of two rounds; the only cache is that of the test split.
    assert counts == {"trainings": 2, "evaluations": 3, "caches": 1, "rounds": 2, "most_pairs": 144}
    assert not asked.out.exists()

    def killed(*arguments: Any, train: Any = rounds.train_model, **more: Any) -> Any:
        done = train(*arguments, **more)
        if done.folder.name == "run-1":
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "train_model", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(asked)
    run_study(asked)
    assert {path.name for path in (asked.out / "runs").iterdir() if path.is_dir()} == {
        f"distilled-seed{seed}{suffix}" for seed in (0, 1) for suffix in ("", "-rounds")
    }
    rows = {row["name"]: row for row in document(asked.out)["models"]}
    assert list(rows) == ["zero-shot", "distilled", "teacher"]
    assert read_cache(asked.out / "against").plan["candidates"]["model"] == str(folder / "clip")
    notes = " ".join(document(asked.out)["notes"])
    assert ("in rounds of its own" in notes, "share one cache" in notes) == (True, False)
    # As `dcdctl distill` trains it.
    inputs = InputRefs(data=folder / "data", split="unpaired", teachers=[str(folder / "fusion")])
    sets = [*IN_ROUNDS, f"model.start={folder / 'clip'}", "seed=1"]
    alone = TrainingJob("distill", str(folder / "recipe.toml"), sets, tmp_path / "run")
    run = train_in_rounds(alone, inputs, options=TrainingOptions())
    assert model_contents(asked.out / "runs" / "distilled-seed1" / "model") == model_contents(run.model_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sets": ("candidates.kind=embedding", "candidates.model=start")},
            r"pool\.rounds is not set, and --data is a",
        ),
        ({"sets": IN_ROUNDS, "train_split": "train"}, r"pool\.rounds is 2, and .*data \(train\) has captions; name a"),
        ({"sets": (*IN_ROUNDS, "loss.dims=[8, 999]")}, r"loss\.dims ends with 999"),
        (
            {"sets": (*IN_ROUNDS[4:], "model.start=new", "pool.rounds=none"), "start": None, "train_split": "train"},
            r"candidates\.model is start, which proposes what models are compared by on split test, a pool",
        ),
    ],
)
def test_a_study_of_proposals_that_cannot_begin_is_refused_before_the_teacher_scores(
    folder, tmp_path, monkeypatch, changes, message
):
    for module in (rounds, study):
        monkeypatch.setattr(module, "cache_scores", lambda *_, **__: pytest.fail("the teacher was called"))
    asked = replace(job(folder, tmp_path / "study", "fusion"), **changes)
    with pytest.raises(ConfigError, match=message):
        run_study(asked)
    assert not asked.out.exists()
