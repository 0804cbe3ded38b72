"""The plan `clip-scenes`: what a pretrained CLIP is worth as a start, and what fine-tuning, distillation, LoRA and
WiSE-FT make of it.

No published CLIP is used. A small CLIPModel of transformers is pretrained here as the built-in `scenes-clip` was
(`scenes_clip`), on a "web" of other scenes with poorer captions; it keeps float32 weights. The target is 1,024 scenes
with full captions. Every row starts from this model, except the one from random weights, and takes the same images,
steps and batches: rows without a teacher read the cache of the others, whose pairs decide which images form a batch.
Learning rates were chosen on val with seed 0, from the same values for every row, once
(docs/evidence/results/clip-scenes/chosen.md). HOLD_OUT is the same rows on test scenes of the web, which they no longer
train on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import scenes_clip
from evidence_steps import SEEDS, Step, sets

TARGET, WEB = ("--data", "data"), ("--data", "web")
TEACHER, CACHE, START = "scenes-vilt", "caches/scenes", "runs/start"
START_MODEL = f"{START}/model"
STEPS = 192
PRETRAINING_STEPS = scenes_clip.SETTINGS["optimizer.steps"]
TABLE, HOLD_OUT = "A small CLIP on 1,024 scenes, 500 test scenes", "The same models on 500 test scenes of the web"
INFONCE = sets(loss__terms="{infonce=1.0}", loss__temperature=1.0)
KL = sets(loss__terms="{infonce=1.0,kl=1.0}", loss__temperature="auto")
MARGINS = sets()
"""The loss of recipe demo-dual: InfoNCE and margin-MSE."""
ALL, LORA, PROJECTIONS = (sets(model__trained=trained) for trained in ("all", "lora", "projections"))
ZERO_SHOT, TUNED, TAUGHT = "the start, zero-shot", "fine-tuned, all weights", "distilled (InfoNCE + KL), all weights"
TUNED_LORA, TAUGHT_LORA, PROJECTED = "fine-tuned, LoRA", "distilled (InfoNCE + KL), LoRA", "fine-tuned, projections"
MARGINS_LABEL, SHORT = "distilled (InfoNCE + margin-MSE), all weights", f"{TAUGHT}, loss.dims"
SCRATCH = "from random weights, InfoNCE"
LONG_SCRATCH = f"{SCRATCH}, {PRETRAINING_STEPS + STEPS:,} steps"
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    TUNED: ("tuned", (*INFONCE, *ALL)),
    TAUGHT: ("taught", (*KL, *ALL)),
    TUNED_LORA: ("tuned-lora", (*INFONCE, *LORA)),
    TAUGHT_LORA: ("taught-lora", (*KL, *LORA)),
    PROJECTED: ("tuned-projections", (*INFONCE, *PROJECTIONS)),
    SCRATCH: ("scratch", (*INFONCE, *ALL)),
    MARGINS_LABEL: ("margins", (*MARGINS, *ALL)),
}
"""Name of the runs and changes to recipe demo-dual for each label."""
RATES = {**dict.fromkeys(ROWS, 1e-3), TUNED_LORA: 3e-3, TAUGHT_LORA: 3e-3, SCRATCH: 3e-4}
"""The learning rate with the highest RSUM on val."""
AVERAGED = {TUNED: (0.3, 0.5), TAUGHT: (0.3, 0.5)}
"""Shares of the start in WiSE-FT."""
AVERAGED_LABEL = "{}, {:g} of the start (WiSE-FT)"
PARTS = {
    "fine-tuning": (TUNED, ZERO_SHOT),
    "the start, in place of random weights": (TUNED, SCRATCH),
    "the teacher's KL": (TAUGHT, TUNED),
    "the teacher's margins": (MARGINS_LABEL, TUNED),
    "the teacher's KL, with LoRA": (TAUGHT_LORA, TUNED_LORA),
    "LoRA in place of all weights": (TUNED_LORA, TUNED),
    "LoRA in place of all weights, distilled": (TAUGHT_LORA, TAUGHT),
    "projections in place of all weights": (PROJECTED, TUNED),
    **{
        f"{share:g} of the start (WiSE-FT), {name}": (AVERAGED_LABEL.format(label, share), label)
        for name, label in (("fine-tuned", TUNED), ("distilled", TAUGHT))
        for share in AVERAGED[label]
    },
    "loss.dims": (SHORT, TAUGHT),
}
"""Differences of two rows that are reported besides those from TUNED."""
DIMS = (16, 32, 64, 128, 256)


def clip_scenes() -> list[Step]:
    """The start, and every row for three seeds, the most important rows first."""
    size = sets(counts__train=1024, counts__val=300, counts__test=500)
    pretraining = sets(**scenes_clip.SETTINGS, model__start="new-0")
    steps = [
        Step("data", "prepare", ("scenes", "--image-size", str(scenes_clip.SIDE_PX), *size)),
        Step("web", "prepare", ("--jsonl", "web.jsonl", "--images", "web-images")),
        Step(START, "distill", (scenes_clip.RECIPE, *WEB, *pretraining), ("web",), measure=TARGET),
        Step(CACHE, "cache-teacher", (*TARGET, "--teacher", TEACHER, "--recipe", "demo-dual"), ("data",)),
        _evaluated("start-target", START, "data", (TABLE, ZERO_SHOT, TUNED)),
        _evaluated("start-web", START, "web", (HOLD_OUT, ZERO_SHOT, TUNED)),
    ]
    steps += [step for seed in SEEDS for label in ROWS for step in _row(label, seed)]
    steps += [step for seed in SEEDS for step in _short_vectors(seed)]
    steps += [
        step
        for label in reversed(AVERAGED)
        for seed in SEEDS
        for share in AVERAGED[label]
        for step in _averaged(label, seed, share)
    ]
    steps += [_cascade(seed) for seed in SEEDS]
    return [*steps, *_long_scratch()]


def _trained(label: str, seed: int) -> Step:
    """A training of a row at its learning rate."""
    name, changes = ROWS[label]
    start = f"new-{seed}" if label == SCRATCH else START_MODEL
    settings = sets(model__start=start, seed=seed, optimizer__steps=STEPS, optimizer__lr=RATES[label])
    words = ("demo-dual", *TARGET, "--cache", CACHE, *settings, *changes)
    return Step(f"runs/{name}-{seed}", "distill", words, (CACHE, START), TABLE, label, TUNED, TARGET)


def _row(label: str, seed: int) -> Iterator[Step]:
    """The training of a row, and its evaluation on the web."""
    run = _trained(label, seed)
    yield run
    yield _evaluated(f"{run.out.removeprefix('runs/')}-web", run.out, "web", (HOLD_OUT, label, TUNED))


def _averaged(label: str, seed: int, share: float) -> Iterator[Step]:
    """A row whose weights are averaged with those of the start."""
    run = _trained(label, seed)
    out, averaged = f"{run.out}-wise{share:g}", AVERAGED_LABEL.format(label, share)
    yield replace(run, out=out, words=(*run.words, *sets(model__average_with_start=share)), label=averaged)
    yield _evaluated(f"{out.removeprefix('runs/')}-web", out, "web", (HOLD_OUT, averaged, TUNED))


def _short_vectors(seed: int) -> Iterator[Step]:
    """The distilled student, trained for vectors of several widths."""
    run = _trained(TAUGHT, seed)
    yield replace(run, out=f"runs/dims-{seed}", words=(*run.words, *sets(loss__dims=list(DIMS))), label=SHORT)


def _long_scratch() -> Iterator[Step]:
    """Random weights with as many steps as the start and its fine-tuning have together, all of them on the target; seed
    0."""
    run = _trained(SCRATCH, 0)
    words = (*run.words, *sets(optimizer__steps=PRETRAINING_STEPS + STEPS))
    yield replace(run, out="runs/long-scratch-0", words=words, label=LONG_SCRATCH)
    yield _evaluated("long-scratch-0-web", "runs/long-scratch-0", "web", (HOLD_OUT, LONG_SCRATCH, TUNED))


def _cascade(seed: int) -> Step:
    """The first 20 results of the distilled student, in the teacher's order."""
    run = _trained(TAUGHT, seed).out
    words = (run, "--rerank", TEACHER, "--depth", "20", *TARGET)
    return Step(
        f"runs/cascade-{seed}", "eval", words, (run,), TABLE, f"{TAUGHT}, first 20 re-ranked by the teacher", TUNED
    )


def _evaluated(name: str, run: str, data: str, row: tuple[str, str, str]) -> Step:
    return Step(f"runs/{name}", "eval", (run, "--data", data), (run, data), *row)


def write_inputs(work: Path) -> None:
    """Write what the commands of the plan read: the web's images and captions, and a CLIPModel of random weights for
    each seed."""
    scenes_clip.write_web(work)
    for seed in SEEDS:
        scenes_clip.write_new_clip(work / f"new-{seed}", seed)
