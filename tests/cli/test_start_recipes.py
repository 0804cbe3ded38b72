"""The recipes that start from CLIP or SigLIP: every command in their heads, run on tiny models in place of the
published ones."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from command_line import run
from duals import save_dual
from origins import ORIGINS
from safetensors.torch import load_file
from typed_commands import commands_of_head

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.evaluation import evaluate
from dcdctl.core.training import load_recipe
from dcdctl.core.training.losses.table import LOSSES, VECTOR_LOSSES
from dcdctl.core.training.recipe.packaged import RECIPES
from dcdctl.core.training.runs import Run

START = {name: "clip" for name in ("clip-finetune", "clip-distilled", "tinyclip-from-clip", "self-distilled")} | {
    "siglip-distilled": "siglip"
}
"""The recipes, and the stand-in for the start of each."""
# Teachers of another width than their students, as the published ones.
STAND_INS = {
    "openai/clip-vit-large-patch14": "siglip",
    "google/siglip-so400m-patch14-384": "clip",
    "blip-flickr30k": "blip",
    "model.start=openai/clip-vit-base-patch32": "model.start=clip",
    "model.vision_layers=[0, 2, 4, 7, 9, 11]": "model.vision_layers=[1]",
}
TOY = ["batch.size=8", "optimizer.steps=2", "validation.every=2", "validation.keep=last", "optimizer.warmup_share=0.0"]
NUM_IMAGES = 8
PARTS = {
    "clip-finetune": {"logit_scale", "visual_projection.weight", "text_projection.weight"},
    # A softmax cancels the bias but for rounding, which AdamW brings to full size.
    "siglip-distilled": {"logit_scale", "logit_bias", "text_model.head.weight", "text_model.head.bias"},
}
"""What the command for a CPU trains; SigLIP has no projection of images."""


@pytest.fixture(scope="module")
def workplace(scenes_corpus_dir, tmp_path_factory) -> Path:
    """A folder with the corpus at data/flickr30k, and the stand-ins beside it."""
    folder, captions = tmp_path_factory.mktemp("workplace"), Corpus.open(scenes_corpus_dir, "train").captions
    (folder / "data").mkdir()
    (folder / "data" / "flickr30k").symlink_to(scenes_corpus_dir)
    for name, kind in (("clip", "CLIP"), ("siglip", "SigLIP")):
        # Saved again by us: transformers changes some unused weights when it loads a model.
        models.save(models.load_dual(save_dual(kind, captions, folder / name)), folder / name)
    ORIGINS["BLIP"].save(captions, folder / "blip")
    return folder


def head(name: str) -> list[str]:
    return commands_of_head(RECIPES / f"{name}.toml")


def run_in(folder: Path, line: str) -> Run:
    """Run a command of a recipe's head with the stand-ins, on a few images; the run of a training."""
    words = [STAND_INS.get(word, word) for word in shlex.split(line)[1:]]
    sets = [f"model.start={START[words[1]]}", *TOY] if words[0] == "distill" else []
    # Before those of the command, so that these win.
    words[2:2] = [word for each in sets for word in ("--set", each)]
    # No processes that read ahead, which take longer to start than eight images to read.
    options = ["--device", "cpu", "--max-images", NUM_IMAGES, *(["--workers", 0] if "--workers" in words else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(shlex.join(words), *options)
    return Run(folder / words[words.index("--out") + 1])


def changed(run: Run, start: Path) -> set[str]:
    before, after = (load_file(folder / "model.safetensors") for folder in (start, run.model_folder))
    return {name for name, tensor in after.items() if name not in before or not torch.equal(before[name], tensor)}


def recalls(model: models.DualEncoder, workplace: Path) -> float:
    return evaluate.evaluate_model(model, Corpus.open(workplace / "data" / "flickr30k", "val")).rsum


@pytest.mark.parametrize("name", START)
def test_the_commands_of_a_head_train_from_zero_shot_quality(name, workplace):
    if name == "self-distilled":
        # Its teachers are finished runs of clip-finetune.
        for line in head("clip-finetune"):
            if "A100" not in line and not (workplace / shlex.split(line)[-1]).exists():
                run_in(workplace, line)
    # The command for an A100 differs in --accumulate alone, and has the same --out.
    commands = {shlex.split(line)[-1]: line for line in reversed(head(name))}
    for out, line in reversed(commands.items()):
        shutil.rmtree(workplace / out, ignore_errors=True)
        made = run_in(workplace, line)
        if line.startswith("dcdctl distill"):
            check_run(made, name, line, workplace)


def check_run(run: Run, name: str, line: str, workplace: Path) -> None:
    """Its settings are those of the command, its recalls before the first step those of its start, and its losses those
    of the recipe."""
    facts, first, start = run.facts(), run.metrics()[0], workplace / START[name]
    count = re.search(r"--accumulate (\d+)", line)
    assert facts["micro_batches"] == (int(count[1]) if count else 1)
    assert facts["inputs"]["precision"] == ("bfloat16" if "--precision bf16" in line else "float32")
    assert {term for term in first if term in (LOSSES | VECTOR_LOSSES)} == load_recipe(name).loss.terms.keys()
    student = models.load_dual(start)
    if "vision_layers" in line:
        student.keep_layers([1], [])
    if "--features" not in line:
        assert first["start_rsum"] == recalls(student, workplace)
        return
    # From features that are rounded to float16.
    assert first["start_rsum"] == pytest.approx(recalls(student, workplace), rel=0.1)
    assert facts["recipe"]["optimizer"]["lr"] == 1e-4
    if name in PARTS:
        assert changed(run, start) == PARTS[name]
