"""Training rate of a dual student: dcdctl against a bare PyTorch loop over the same encoders, and with a teacher
against without.

    OMP_NUM_THREADS=1 python benchmarks/dual_step.py [--cases trained frozen] [--steps 3] [--frozen-steps 920]
        [--repeats 5] [--threads 1]
    OMP_NUM_THREADS=1 python benchmarks/dual_step.py --cases teacher --frozen-steps 230

InfoNCE, float32, on the CPU, random weights, the optimizer of the recipe photos.
- trained: ViT-S/16 at 224 px and a BERT of 6 layers and width 384, 32 JPEGs of 640 x 480 per step, each image once
  per round. The bare loop reads them from a folder.
- frozen: the recipe's linear layers over features on disk, 50 x 1280 per image and 12 to 24 x 384 per caption, 6,000
  images, 256 per step. The bare loop maps the same files and reads only what it uses.
- teacher: the frozen student without a teacher (InfoNCE), with a cache, and with a dual teacher (InfoNCE and KL,
  recipes photos-distilled and photos-self). The cache has blocks of 128 images with all their captions, as its recipe
  has; the dual teacher has vectors of 512 numbers. Scores are noise. Reading the cache and embedding the corpus, once
  per training, are not counted.

dcdctl runs all of `train`: drawing batches, reading, log, TensorBoard, live view and checkpoints. The bare loop gets
its batches drawn beforehand. It preprocesses, tokenizes and projects by the same calls, with the same dropout, AdamW
and allocator (`devices.choose`), so the losses agree. The two loops run in turn and change their order every round,
after one step each that is not counted. Rates are medians. Ratios are medians over the rounds, of wall-clock seconds
and of processor seconds, which other work on the machine disturbs less. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, BertConfig, TimmWrapperConfig, ViTConfig
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))
from cache_scale import MadeUp
from prepare import made_up, prepare, to_jpeg
from scoring import processor

from dcdctl.cli.views.training import view
from dcdctl.core import devices, models
from dcdctl.core.artifacts import seal_of
from dcdctl.core.data import Corpus
from dcdctl.core.models.families.frozen_dual import FrozenDualNetwork
from dcdctl.core.models.preprocess import square_image_processor
from dcdctl.core.scoring import CorpusSource, Features, Source
from dcdctl.core.scoring.features import IMAGES_PER_FILE
from dcdctl.core.teacher import EmbeddedTeacher, TeacherCache, TeacherScores, cache_format
from dcdctl.core.teacher.candidate_lists import IMAGE_CANDIDATE, POSITIVE, TEXT_CANDIDATE
from dcdctl.core.training import distill, runs
from dcdctl.core.training import recipe as training_recipe
from dcdctl.core.training.batches.all_pairs import AllPairsBatches
from dcdctl.core.training.batches.make import make_batches, work_per_step
from dcdctl.core.training.loop import learning_rate_factor, train
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import Recipe

Index = NDArray[np.int64]
Batches = list[tuple[list[int], list[int]]]
"""The images and captions of each step."""
TRAINED = ["batch.size=32", "optimizer.lr=1e-4"]
"""Changes to the recipe for trained encoders."""
CAPTIONS_PER_IMAGE = 5
IMAGE_TOKENS, IMAGE_WIDTH, MAX_TEXT_TOKENS = 50, 1280, 24
"""Sizes of the features: the mean and the 7 x 7 map of EfficientNet-Lite0 at 224 px, and MiniLM's tokens."""
VIT = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=224, patch_size=16)
BERT = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


@dataclass(frozen=True)
class Case:
    """A model, its training data, and the bare loop that trains it."""

    model: models.DualModel
    source: Callable[[], Source]
    recipe: Recipe
    bare: Callable[[Any, Batches, Recipe], float]

    def batches(self, num_steps: int) -> Batches:
        """The batches that dcdctl draws."""
        indices: Any = Indices(self.source().corpus)
        batches: Any = AllPairsBatches(indices, self.recipe.batch, self.recipe.seed, None)
        drawn = [batches[step] for step in range(num_steps)]
        return [(batch.images.tolist(), batch.texts[batch.text_ix_RC[0].numpy()].tolist()) for batch in drawn]


class Indices:
    """A source that returns the requested indices in place of images and captions."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def images(self, image_ix: Index) -> Index:
        return image_ix

    def texts(self, text_ix: Index) -> Index:
        return text_ix


@dataclass(frozen=True)
class Round:
    """Time of one round, and the loss of its last step."""

    seconds: float
    processor_seconds: float
    loss: float


def timed(work: Callable[[], float]) -> Round:
    started, started_processor = time.perf_counter(), time.process_time()
    loss = work()
    return Round(time.perf_counter() - started, time.process_time() - started_processor, loss)


def dcdctl(case: Case, num_steps: int, folder: Path, scores: TeacherScores | None = None) -> Round:
    """Train as the command does."""
    model, batches = copy.deepcopy(case.model), make_batches(case.source(), case.recipe, scores)
    run = runs.start_run(folder, case.recipe, "benchmark", {}, resume=False)
    objective, config = PairObjective(case.recipe.loss), case.recipe.optimizer
    unit, per_step = work_per_step(case.recipe, scores)
    watch = functools.partial(view, unit=unit, per_step=per_step)

    def work() -> float:
        train(run, model, batches, objective, config, num_steps=num_steps, seed=case.recipe.seed, watch=watch)
        return run.metrics()[-1]["loss"]

    return timed(work)


def bare(case: Case, num_steps: int, folder: Path) -> Round:
    """Train with the bare loop on the same batches."""
    model, batches = copy.deepcopy(case.model).train(), case.batches(num_steps)
    return timed(lambda: case.bare(model, batches, case.recipe))


LOOPS = {"bare": bare, "dcdctl": dcdctl}


def bare_steps(
    trained: nn.Module, batches: Batches, recipe: Recipe
) -> Iterator[tuple[list[int], list[int], Callable[[Tensor], None]]]:
    """Images and captions of each step, and a function that updates the weights from its loss."""
    config = recipe.optimizer
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for step, (image_ix, text_ix) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * learning_rate_factor(step, len(batches), config)
        torch.default_generator.manual_seed(step)  # as dcdctl does for the recipe's seed 0
        yield image_ix, text_ix, update


def bare_trained(folder: Path, captions: list[str], model: models.DualModel, batches: Batches, recipe: Recipe) -> float:
    """Train both encoders on the JPEGs of a folder. Returns the loss of the last step."""
    network, preprocess = model.network, model.preprocess
    for image_ix, text_ix, update in bare_steps(network, batches, recipe):
        images = preprocess.images([decoded(folder / file_name(image)) for image in image_ix]).pixel_values
        texts = preprocess.texts([captions[text] for text in text_ix])
        outputs = network(
            pixel_values=images, input_ids=texts.input_ids, attention_mask=texts.attention_mask, return_loss=True
        )
        update(outputs.loss)
    return outputs.loss.item()


def bare_frozen(folder: Path, corpus: MadeUp, model: models.FrozenDual, batches: Batches, recipe: Recipe) -> float:
    """Train two linear layers on features on disk. Returns the loss of the last step."""
    images, texts = (
        [np.asarray(np.load(path, mmap_mode="r")) for path in sorted(folder.glob(f"{kind}-*.npy"))]
        for kind in ("images", "texts")
    )
    lengths = np.load(folder / "lengths.npy").astype(np.int64)
    file_of = corpus.caption_image // IMAGES_PER_FILE
    starts = np.cumsum(lengths) - lengths
    starts -= starts[np.searchsorted(file_of, file_of)]
    projections, target = model.network.projections, torch.arange(recipe.batch.size)
    for image_ix, text_ix, update in bare_steps(projections, batches, recipe):
        first = torch.from_numpy(np.stack([images[i // IMAGES_PER_FILE][i % IMAGES_PER_FILE, :1] for i in image_ix]))
        tokens = torch.zeros(len(text_ix), int(lengths[text_ix].max()), BERT.hidden_size, dtype=torch.float16)
        for row, i in zip(tokens.numpy(), text_ix, strict=True):
            row[: lengths[i]] = texts[file_of[i]][starts[i] : starts[i] + lengths[i]]
        mask = torch.arange(tokens.shape[1]) < torch.from_numpy(lengths[text_ix])[:, None]
        logits = projections.scale * projections.project_images(first) @ projections.project_texts(tokens, mask).T
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        update(loss)
    return loss.item()


def decoded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def file_name(image: int) -> str:
    return f"{image:06}.jpg"


def make_corpus(folder: Path, num_images: int) -> list[str]:
    """Write made-up photos and the corpus of them in `folder`; returns their captions."""
    captions = MadeUp(num_images, num_images * CAPTIONS_PER_IMAGE).captions
    images = folder / "images"
    images.mkdir(parents=True)
    for image in range(num_images):
        (images / file_name(image)).write_bytes(to_jpeg(made_up(image)))
    lines = [f"{file_name(i // CAPTIONS_PER_IMAGE)},{caption},train\n" for i, caption in enumerate(captions)]
    (folder / "pairs.csv").write_text("image,caption,split\n" + "".join(lines), encoding="utf-8")
    prepare(images, folder / "pairs.csv", folder / "corpus", 0, 1)
    return captions


def make_trained(folder: Path, num_images: int) -> Case:
    """Two trainable encoders, and a corpus of JPEGs made by `dcdctl prepare`."""
    captions = make_corpus(folder, num_images)
    vision, text = folder / "vision", folder / "text"
    corpus = Corpus.open(folder / "corpus", "train")
    square_image_processor(VIT.image_size).save_pretrained(vision)
    models.word_piece(captions, 2000).save_pretrained(text)
    for config, path in ((VIT, vision), (BERT, text)):
        AutoModel.from_config(config).save_pretrained(path)
    model = models.dual_from_backbones(str(vision), str(text))
    source = functools.partial(CorpusSource, corpus, model.preprocess, distill.IMAGE_CACHE_BYTES)
    return Case(
        model,
        source,
        training_recipe.load_recipe("photos", TRAINED),
        functools.partial(bare_trained, folder / "images", captions),
    )


def make_frozen(folder: Path, num_images: int) -> Case:
    """Linear layers over features of noise; the frozen encoders are never run."""
    corpus: Any = MadeUp(num_images, num_images * CAPTIONS_PER_IMAGE)
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lengths = rng.integers(MAX_TEXT_TOKENS // 2, MAX_TEXT_TOKENS + 1, corpus.num_captions)
    np.save(folder / "lengths.npy", lengths.astype(np.uint16))
    for part, start in enumerate(range(0, num_images, IMAGES_PER_FILE)):
        count = min(IMAGES_PER_FILE, num_images - start)
        num_tokens = int(lengths[start * CAPTIONS_PER_IMAGE : (start + count) * CAPTIONS_PER_IMAGE].sum())
        for kind, shape in (("images", (count, IMAGE_TOKENS, IMAGE_WIDTH)), ("texts", (num_tokens, BERT.hidden_size))):
            np.save(folder / f"{kind}-{part:05d}.npy", rng.standard_normal(shape, dtype=np.float32).astype(np.float16))
    plan = {"image_tokens": IMAGE_TOKENS, "image_width": IMAGE_WIDTH, "text_width": BERT.hidden_size}
    recipe = training_recipe.load_recipe("photos")
    vision = AutoModel.from_config(TimmWrapperConfig(architecture="tf_efficientnet_lite0", num_labels=0))
    size = models.ProjectionSize(projection_dim=recipe.model.projection_dim, dropout=recipe.model.dropout or 0.0)
    model = models.FrozenDual(FrozenDualNetwork(vision, AutoModel.from_config(BERT), size), None)
    seals = {path.name: seal_of(path) for path in folder.glob("*.npy")}
    return Case(
        model,
        functools.partial(Features, corpus, folder, plan, seals),
        recipe,
        functools.partial(bare_frozen, folder, corpus),
    )


def measure(title: str, case: Case, num_steps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Rates, ratios and losses of a case."""
    for name, loop in LOOPS.items():
        loop(case, 1, folder / f"{name}-first")
    rounds: dict[str, list[Round]] = {name: [] for name in LOOPS}
    for repeat in range(repeats):
        for name in sorted(LOOPS, reverse=repeat % 2 == 1):
            rounds[name].append(LOOPS[name](case, num_steps, folder / f"{name}-{repeat}"))
            sys.stdout.write(f"{title}, {name}: {rounds[name][-1].seconds:.2f} s\n")
            sys.stdout.flush()
    num_images = num_steps * case.recipe.batch.size
    rounds_of_both = list(zip(rounds["dcdctl"], rounds["bare"], strict=True))
    return {
        "steps": num_steps,
        "images_per_step": case.recipe.batch.size,
        "images_per_s": {
            name: num_images / statistics.median(each.seconds for each in timed) for name, timed in rounds.items()
        },
        "ratio": statistics.median(bare.seconds / dcdctl.seconds for dcdctl, bare in rounds_of_both),
        "processor_ratio": statistics.median(
            bare.processor_seconds / dcdctl.processor_seconds for dcdctl, bare in rounds_of_both
        ),
        "loss": {name: timed[-1].loss for name, timed in rounds.items()},
    }


class NoiseTeacher(EmbeddedTeacher):
    """A dual teacher of random unit vectors, without a model."""

    def __init__(self, corpus: Corpus, width: int) -> None:
        self.plan, self._scale = {"corpus": corpus.fingerprint}, 20.0
        counts = (corpus.num_images, corpus.num_captions)
        self._images_ID, self._texts_TD = (functional.normalize(torch.randn(count, width), dim=-1) for count in counts)


def noise_cache(corpus: Corpus, folder: Path, block_size: int) -> TeacherCache:
    """A cache of random scores of every image of a block with every caption of it."""
    rng = np.random.default_rng(0)
    first_text = np.searchsorted(corpus.caption_image, np.arange(corpus.num_images + 1))
    plan = {
        "images": corpus.num_images,
        "captions": corpus.num_captions,
        "images_per_shard": block_size,
        "corpus": corpus.fingerprint,
    }
    plan["candidates"] = {"absolute_margin": None, "relative_margin": None}
    parts = {}
    folder.mkdir(parents=True)
    for shard, images in enumerate(cache_format.shards_of(plan)):
        texts = np.arange(first_text[images.start], first_text[images.stop])
        image_P, text_P = np.repeat(images, len(texts)), np.tile(texts, len(images))
        role_P = np.where(corpus.caption_image[text_P] == image_P, POSITIVE, TEXT_CANDIDATE + IMAGE_CANDIDATE)
        score_P = rng.standard_normal(len(image_P), dtype=np.float32)
        name = cache_format.pairs_name(shard)
        cache_format.write_pairs(folder / name, cache_format.Pairs(image_P, text_P, score_P, role_P))
        parts[name] = seal_of(folder / name, pairs=len(image_P))
    return TeacherCache(folder, plan, {"files": parts})


def measure_teachers(case: Case, num_steps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Seconds and processor seconds of a step of each variant, and their ratios to those of a step without a
    teacher."""
    corpus, recipes = case.source().corpus, {"without": "photos", "cache": "photos-distilled", "dual": "photos-self"}
    loaded = {name: training_recipe.load_recipe(recipe) for name, recipe in recipes.items()}
    cache = noise_cache(corpus, folder / "cache", loaded["cache"].candidates.block_size)
    scores = {"without": None, "cache": cache, "dual": NoiseTeacher(corpus, loaded["dual"].model.projection_dim)}
    cases = {name: dataclasses.replace(case, recipe=recipe) for name, recipe in loaded.items()}
    rounds: dict[str, list[Round]] = {name: [] for name in cases}
    for name, each in cases.items():
        dcdctl(each, 1, folder / f"{name}-first", scores[name])
    for repeat in range(repeats):
        # Each variant comes first in some rounds and last in others.
        for name in [*cases][repeat % 3 :] + [*cases][: repeat % 3]:
            rounds[name].append(dcdctl(cases[name], num_steps, folder / f"{name}-{repeat}", scores[name]))
            sys.stdout.write(f"teacher, {name}: {rounds[name][-1].processor_seconds:.2f} s of the processor\n")
            sys.stdout.flush()

    def ratio(name: str, kind: str) -> float:
        pairs = zip(rounds[name], rounds["without"], strict=True)
        return statistics.median(getattr(taught, kind) / getattr(alone, kind) for taught, alone in pairs)

    return {
        name: {
            "processor_ms_per_step": 1e3 * statistics.median(each.processor_seconds for each in timed) / num_steps,
            "ratio": ratio(name, "seconds"),
            "processor_ratio": ratio(name, "processor_seconds"),
        }
        for name, timed in rounds.items()
    }


def teacher_table(result: dict[str, dict[str, float]]) -> str:
    lines = ["| teacher | processor, ms per step | to a step without | by processor seconds |", "|---|---|---|---|"]
    for name, row in result.items():
        lines.append(
            f"| {name} | {row['processor_ms_per_step']:.1f} | {row['ratio']:.2f} | {row['processor_ratio']:.2f} |"
        )
    return "\n".join(lines)


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| encoders | dcdctl, images/s | bare loop, images/s | dcdctl / bare | by processor seconds | last loss, "
        "dcdctl | bare loop |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        rates, loss = result["images_per_s"], result["loss"]
        ratios = f"{result['ratio']:.3f} | {result['processor_ratio']:.3f}"
        lines.append(
            f"| {name} | {rates['dcdctl']:,.1f} | {rates['bare']:,.1f} | {ratios} | {loss['dcdctl']:.4f} | "
            f"{loss['bare']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=("trained", "frozen", "teacher"), default=["trained", "frozen"])
    parser.add_argument("--steps", type=int, default=3, help="steps per round with trained encoders")
    parser.add_argument("--frozen-steps", type=int, default=920, help="steps per round with frozen encoders")
    parser.add_argument("--frozen-images", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    devices.choose("cpu")
    results, taught = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.cases:
            made = Path(scratch, name, "made")
            if name == "teacher":
                case = make_frozen(made, options.frozen_images)
                taught = measure_teachers(case, options.frozen_steps, options.repeats, made.parent)
                continue
            if name == "trained":
                num_steps, case = options.steps, make_trained(made, 32 * options.steps)
            else:
                num_steps, case = options.frozen_steps, make_frozen(made, options.frozen_images)
            results[name] = measure(name, case, num_steps, options.repeats, made.parent)
    setting = {
        "machine": processor(),
        "torch": torch.__version__,
        "threads": options.threads,
        "repeats": options.repeats,
    }
    sys.stdout.write(
        "\n\n".join(([table(results)] if results else []) + ([teacher_table(taught)] if taught else [])) + "\n"
    )
    sys.stdout.write(json.dumps({**setting, "cases": {**results, **taught}}) + "\n")


if __name__ == "__main__":
    main()
