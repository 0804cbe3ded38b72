"""Training rate of a dual encoder: dcdctl against the trainer of sentence-transformers, on the same CLIP, photos and
batches.

    OMP_NUM_THREADS=1 python benchmarks/training_peers.py [--steps 3] [--repeats 3] [--threads 1]

The CLIP has a ViT-Ti/16 at 224 px and a text encoder of 6 layers and width 192, with random weights; a step has 32
JPEGs of 640 x 480 and a caption each, and each image comes once per round. InfoNCE of both directions, float32, on the
CPU, AdamW.

- whole batches: `train` of dcdctl against `SentenceTransformerTrainer` with `MultipleNegativesRankingLoss` of both
  directions
- micro-batches of 8: `--accumulate 4` against `CachedMultipleNegativesRankingLoss`, which both use GradCache

dcdctl runs all of `train`: drawing batches, reading, log, TensorBoard, live view and checkpoints. Its model is exported
for sentence-transformers, whose trainer gets the batches in the drawn order as a data set of image files, logs as
often, and saves nothing. The losses of the first step must agree. dcdctl also trains the logit scale, which is a
constant of the other library's loss. The ways run in turns, after one step each that is not counted. Ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parent))
from prepare import made_up, to_jpeg
from side_by_side import Spent, facts, median_processor, ratios, say, spent, table

import dcdctl
from dcdctl.cli.views.training import view
from dcdctl.core import devices, models
from dcdctl.core.data import Corpus
from dcdctl.core.export import to_sentence_transformers
from dcdctl.core.scoring import CorpusSource, Source
from dcdctl.core.teacher import false_negative_filter
from dcdctl.core.training import corpus_data, load_recipe, runs
from dcdctl.core.training.batches.all_pairs import AllPairs
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.step_pairs import CorpusBatches
from dcdctl.core.training.loop import TrainingOptions, train
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import Recipe

Batches = list[tuple[list[int], list[int]]]
"""The images and captions of each step."""
BATCH = 32
MICRO_BATCHES = 4
RECIPE = [f"batch.size={BATCH}", "optimizer.lr=1e-4"]
WIDTH = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
VISION = {**WIDTH, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16}
TEXT = {
    **WIDTH,
    "num_hidden_layers": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Inputs:
    """A CLIP in both layouts, and photos with captions."""

    folder: Path
    captions: list[str]
    model: models.DualEncoder
    source: Callable[[], Source]
    recipe: Recipe
    batches: Batches

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def exported(self) -> str:
        return str(self.folder / "exported")


class Indices:
    """A source that returns the requested indices in place of images and captions."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def images(self, image_ix: NDArray[np.int64]) -> NDArray[np.int64]:
        return image_ix

    def texts(self, text_ix: NDArray[np.int64]) -> NDArray[np.int64]:
        return text_ix


def drawn_batches(corpus: Corpus, recipe: Recipe, num_steps: int) -> Batches:
    """The batches that dcdctl draws."""
    indices: Any = Indices(corpus)
    batches: Any = CorpusBatches(indices, AllPairs(corpus, recipe, None, false_negative_filter(corpus, None)))
    drawn = [batches[step] for step in range(num_steps)]
    return [(batch.images.tolist(), batch.texts[batch.text_ix_RC[0].numpy()].tolist()) for batch in drawn]


def file_name(image: int) -> str:
    return f"{image:06}.jpg"


def make_corpus(folder: Path, num_images: int) -> list[str]:
    """Write made-up photos and the corpus of them in `folder`; returns their captions, one per photo."""
    rng = np.random.default_rng(0)
    captions = [" ".join(f"word{word}" for word in row) for row in rng.integers(0, 800, (num_images, 10))]
    images = folder / "images"
    images.mkdir(parents=True)
    for image in range(num_images):
        (images / file_name(image)).write_bytes(to_jpeg(made_up(image)))
    lines = [f"{file_name(i)},{caption},train\n" for i, caption in enumerate(captions)]
    (folder / "pairs.csv").write_text("image,caption,split\n" + "".join(lines), encoding="utf-8")
    dcdctl.prepare(csv=folder / "pairs.csv", images=images, out=folder / "corpus")
    return captions


def make(folder: Path, num_steps: int) -> Inputs:
    """Write photos, a corpus and a CLIP."""
    captions = make_corpus(folder, BATCH * num_steps)
    tokenizer = models.word_piece(captions, 2000)
    config = CLIPConfig(
        vision_config=VISION, text_config={**TEXT, "vocab_size": len(tokenizer) + 2}, projection_dim=256
    )
    for part in (CLIPModel(config), tokenizer, CLIPImageProcessorPil()):
        part.save_pretrained(folder / "clip")
    model = models.load_dual(str(folder / "clip"))
    to_sentence_transformers.SentenceTransformers().write(model, folder / "exported", with_int8=False)
    corpus = Corpus.open(folder / "corpus", "train")
    source = functools.partial(CorpusSource, corpus, model.preprocess, corpus_data.IMAGE_CACHE_BYTES)
    recipe = load_recipe("clip-finetune", RECIPE)
    return Inputs(folder, captions, model, source, recipe, drawn_batches(corpus, recipe, num_steps))


def ours(inputs: Inputs, num_steps: int, micro_batches: int) -> Callable[[], float]:
    """A training by dcdctl, as its command does it; it returns the loss of the first step."""
    plan = MicroBatchPlan(micro_batches, range(micro_batches), by_side=True)
    model, source = copy.deepcopy(inputs.model), inputs.source()
    pairs = AllPairs(source.corpus, inputs.recipe, None, false_negative_filter(source.corpus, None))
    batches = CorpusBatches(source, pairs, plan, None)
    run = runs.start_run(Path(tempfile.mkdtemp(dir=inputs.folder)), inputs.recipe, "benchmark", {}, resume=False)
    watch = functools.partial(view, unit="images", per_step=inputs.recipe.batch.size)
    options = TrainingOptions(micro_batches=micro_batches)
    settings = {"num_steps": num_steps, "seed": inputs.recipe.seed, "options": options, "watch": watch}

    def work() -> float:
        train(run, model, batches, PairObjective(inputs.recipe.loss), inputs.recipe.optimizer, **settings)
        return run.metrics()[0]["loss"]

    return work


def theirs(inputs: Inputs, num_steps: int, micro_batches: int) -> Callable[[], float]:
    """A training by sentence-transformers; it returns the loss of the first step."""
    from datasets import Dataset, Image
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    class InOrder(DefaultBatchSampler):
        """Batches in the order of the data set."""

        def __init__(self, dataset: Any, batch_size: int, drop_last: bool, **settings: Any) -> None:
            super().__init__(torch.utils.data.SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)

    optimizer, model = inputs.recipe.optimizer, SentenceTransformer(inputs.exported, device="cpu")
    rows = [
        (image, text) for images, texts in inputs.batches[:num_steps] for image, text in zip(images, texts, strict=True)
    ]
    columns = {
        "image": [str(inputs.images / file_name(image)) for image, _ in rows],
        "caption": [inputs.captions[text] for _, text in rows],
    }
    dataset = Dataset.from_dict(columns).cast_column("image", Image())
    settings: dict[str, Any] = {
        "scale": inputs.model.logit_scale.item(),
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    }
    if micro_batches == 1:
        loss: Any = MultipleNegativesRankingLoss(model, **settings)
    else:
        loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=BATCH // micro_batches, **settings)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(dir=inputs.folder),
        per_device_train_batch_size=BATCH,
        max_steps=num_steps,
        learning_rate=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=0.0,
        batch_sampler=InOrder,
        logging_steps=10,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss)

    def work() -> float:
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    return work


WAYS = {"dcdctl": ours, "sentence-transformers": theirs}
KINDS = {"whole batches": 1, f"micro-batches of {BATCH // MICRO_BATCHES}": MICRO_BATCHES}


def compare(inputs: Inputs, kind: str, args: argparse.Namespace) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of the table, and all numbers, of whole batches or of micro-batches."""
    losses: dict[str, float] = {}
    for make_way in WAYS.values():
        make_way(inputs, 1, KINDS[kind])()
    rounds: dict[str, list[Spent]] = {name: [] for name in WAYS}
    for repeat in range(args.repeats):
        for name in sorted(WAYS, reverse=repeat % 2 == 1):
            work = WAYS[name](inputs, args.steps, KINDS[kind])
            rounds[name].append(spent(lambda name=name, work=work: losses.__setitem__(name, work())))
            say(f"{kind}, {name}: {rounds[name][-1].processor:.2f} s of processors")
    if abs(losses["dcdctl"] - losses["sentence-transformers"]) > args.tolerance:
        raise SystemExit(f"the losses of the first step differ: {losses}")
    factor, num_images = ratios(rounds, "dcdctl"), args.steps * BATCH
    rows = [
        [
            kind,
            name,
            f"{num_images / median_processor(rounds[name]):.2f}",
            f"{factor[name].processor:.3f}",
            f"{factor[name].wall:.3f}",
            f"{losses[name]:.5f}",
        ]
        for name in WAYS
    ]
    return rows, {"kind": kind, "losses": losses, "ratio": {name: vars(each) for name, each in factor.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="of the loss of the first step; the other library logs four decimals",
    )
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    devices.choose("cpu")
    with tempfile.TemporaryDirectory() as scratch:
        inputs = make(Path(scratch), args.steps)
        compared = [compare(inputs, kind, args) for kind in args.kinds]
    columns = [
        "batches",
        "trainer",
        "images per processor second",
        "times ours",
        "times ours by the clock",
        "loss of the first step",
    ]
    sys.stdout.write(table(columns, [row for rows, _ in compared for row in rows]) + "\n")
    sys.stdout.write(
        json.dumps({**facts("sentence-transformers", "transformers"), "kinds": [numbers for _, numbers in compared]})
        + "\n"
    )


if __name__ == "__main__":
    main()
