"""The training of the built-in teacher: a small ViLT on drawn scenes, pretrained and then graded.

    python benchmarks/scenes_teacher.py --out work/scenes-teacher      an hour on one thread; resumes

Pretraining has four tasks, as for large models, on an endless stream of new images. Masked words: predict masked words
of a caption, which the image shows. Objects: predict shape, color and size of the object in each patch, in place of an
object detector's labels. Places: predict the patch of each object that a caption names, in place of the boxes of phrase
grounding. Matching: choose the true caption among those of the scene's three siblings and of other scenes, and the true
image for a caption. Matching starts last: from the first step it learns slowly, and without the places it learns which
color belongs to which object but not where the objects are.

Grading continues with matching, and fits the logits to the number of facts of a caption that hold in the image.

Shape letters: B images of a batch, K candidates with the true one first, L text tokens, V patches.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from dcdctl.core import models
from dcdctl.core.data import scenes
from dcdctl.core.devices import on_device
from dcdctl.core.models import FusionScorer, ImageBatch, Preprocessor, States, TextBatch
from dcdctl.core.progress import Track, silent, step_bar
from dcdctl.core.training import loop, runs
from dcdctl.core.training.grad_cache import Objective
from dcdctl.core.training.recipe import OptimizerConfig
from dcdctl.core.training.runs import Run

PIXEL_MEAN, PIXEL_STD = 0.92, 1.0
"""0.92 brings the pale backgrounds near 0; see `new_teacher`."""
POSITION_STD, LINEAR_STD = 0.5, 0.06
"""Standard deviations of the initial position embeddings and of linear weights; see `new_teacher`."""
NUM_VOCABULARY_SCENES = 2000
"""Scenes whose captions train the word pieces."""
RELATION_WORDS = ("above", "below", "over", "under", "left", "right", "upper", "lower", "directly", "straight")
CONTENT_WORDS = (
    *scenes.SHAPES,
    *scenes.COLORS,
    *(word for words in scenes.SIZES.values() for word in words),
    *("top", "bottom"),
    *RELATION_WORDS,
)
"""The words that describe a scene, and may be masked."""
OBJECT_WORDS = (scenes.SHAPES, tuple(scenes.COLORS), tuple(scenes.SIZES))
IGNORED = -100
"""Label of patches without an object and of tokens that name none; cross-entropy skips it."""
MIDDLE_AGREEMENT = 4.5
"""Half of the highest agreement, 9: logits are fitted to agreements around 0."""


OPTIMIZER = OptimizerConfig(weight_decay=0.05, schedule="cosine", max_grad_norm=1.0)
"""What both stages have in common."""


def draw_families(
    preprocess: Preprocessor, rng: np.random.Generator, seed: int, families: range
) -> tuple[list[scenes.DescribedScene], list[scenes.Statement], ImageBatch, TextBatch]:
    """The scenes of these families, and a caption of each: as they are, and preprocessed."""
    described = [scene for index in families for scene in scenes.describe_family(seed, "train", index)]
    statements = [item.statements[rng.integers(len(item.statements))] for item in described]
    images = preprocess.images([scenes.draw_scene(item.scene) for item in described])
    return described, statements, images, preprocess.texts([statement.text for statement in statements])


def candidate_texts(rng: np.random.Generator, num_families: int, other_negatives: int) -> Tensor:
    """Candidate captions of each image, B x K: those of its family, its own first, then one from each of some other
    families.

    Every column is a permutation, so each caption is also compared with K images.
    """
    index_B = np.arange(num_families * scenes.FAMILY_SIZE)
    family_B, member_B = np.divmod(index_B, scenes.FAMILY_SIZE)
    columns = [family_B * scenes.FAMILY_SIZE + (member_B + k) % scenes.FAMILY_SIZE for k in range(scenes.FAMILY_SIZE)]
    # A rotation of whole families, so that every column stays a permutation.
    for shift in rng.choice(np.arange(1, num_families), other_negatives, replace=False):
        rotation = rng.integers(scenes.FAMILY_SIZE)
        columns.append(
            (family_B + shift) % num_families * scenes.FAMILY_SIZE + (member_B + rotation) % scenes.FAMILY_SIZE
        )
    return torch.from_numpy(np.stack(columns, axis=1))


def candidate_logits(scorer: FusionScorer, images: States, texts: States, text_ix_BK: Tensor) -> Tensor:
    """The logits of each image with its candidates, B x K."""
    num_images, num_candidates = text_ix_BK.shape
    image_ix_P = torch.arange(num_images, device=text_ix_BK.device).repeat_interleave(num_candidates)
    logits_P: Tensor = scorer.score_pairs(images, texts, image_ix_P, text_ix_BK.flatten())
    return logits_P.view(num_images, num_candidates)


def matching_loss(logits_BK: Tensor, text_ix_BK: Tensor) -> Tensor:
    """Cross-entropy of the true caption among an image's candidates, and of the true image among a caption's; their
    mean."""
    # A column is a permutation of the captions, so its argsort gives the image that each caption is compared with.
    by_caption_BK = logits_BK.gather(0, text_ix_BK.argsort(dim=0))
    target_B = torch.zeros(len(logits_BK), dtype=torch.int64, device=logits_BK.device)
    return (functional.cross_entropy(logits_BK, target_B) + functional.cross_entropy(by_caption_BK, target_B)) / 2


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Everything that can change the pretraining of the built-in teacher."""

    seed: int = 1
    """Also the seed of the scenes; the demo's corpus uses another."""
    families: int = 12
    """Families of four scenes in a batch with matching. Earlier batches have a third more."""
    other_negatives: int = 3
    """Captions of other families that each image is compared with, beside its three siblings'."""
    words_only_steps: int = 2500
    """Steps before matching begins."""
    mask_share: float = 0.35
    """Share of the content words that are masked, in half of the captions. In the other half all relation words are
    masked and no others, so that both objects remain readable."""
    words_weight: float = 0.5
    objects_weight: float = 0.25
    places_weight: float = 0.5
    model: models.ViltSize = field(
        default_factory=lambda: models.ViltSize(hidden_dropout_prob=0.0, image_mean=PIXEL_MEAN, image_std=PIXEL_STD)
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: replace(OPTIMIZER, lr=1e-3, steps=4000, warmup_share=0.02, save_every=250)
    )


@dataclass(frozen=True)
class PretrainingBatch:
    """Scenes with one caption each, and the labels of the four tasks."""

    images: ImageBatch
    texts: TextBatch
    masked_ids_BL: Tensor
    """The tokens of `texts`, some of them masked."""
    objects_BV3: Tensor
    """Indices of each patch's shape, color and size in OBJECT_WORDS, or IGNORED."""
    patches_BL: Tensor
    """The patch that holds the object whose shape a token names, or IGNORED."""
    text_ix_BK: Tensor
    """Captions that each image is compared with, its own first; no columns before matching begins."""

    def to(self, device: torch.device) -> PretrainingBatch:
        return on_device(self, device)


class PretrainingBatches(Dataset[PretrainingBatch]):
    """Batches of new scenes; a batch is a function of seed and step."""

    def __init__(self, preprocess: Preprocessor, config: PretrainingConfig) -> None:
        self.preprocess, self.config = preprocess, config

    def __getitem__(self, step: int) -> PretrainingBatch:
        config, rng = self.config, np.random.default_rng([self.config.seed, step])
        is_matching = step >= config.words_only_steps
        count = config.families if is_matching else config.families * 4 // 3
        first = step * 2 * config.families  # leaves room for the larger batches before matching
        described, _, images, texts = draw_families(self.preprocess, rng, config.seed, range(first, first + count))
        masked_ids_BL = self._masked(texts.input_ids, rng)
        labels = [self._labels(ids_L, item.scene) for ids_L, item in zip(texts.input_ids, described, strict=True)]
        objects_BV3, patches_BL = map(torch.stack, zip(*labels, strict=True))
        no_columns_B0 = torch.empty((len(described), 0), dtype=torch.int64)
        text_ix_BK = candidate_texts(rng, count, config.other_negatives) if is_matching else no_columns_B0
        return PretrainingBatch(images, texts, masked_ids_BL, objects_BV3, patches_BL, text_ix_BK)

    def _masked(self, ids_BL: Tensor, rng: np.random.Generator) -> Tensor:
        """The tokens with masks: for a share of the content words in half of the captions, for all relation words in
        the other half."""
        tokenizer = self.preprocess.tokenizer
        content, relation = (
            torch.isin(ids_BL, torch.tensor(tokenizer.convert_tokens_to_ids(list(words))))
            for words in (CONTENT_WORDS, RELATION_WORDS)
        )
        is_drawn_BL = torch.from_numpy(rng.random(tuple(ids_BL.shape)) < self.config.mask_share)
        masks_content_B1 = torch.from_numpy(rng.random((len(ids_BL), 1)) < 0.5)
        is_masked_BL = torch.where(masks_content_B1, content & is_drawn_BL, relation)
        return ids_BL.masked_fill(is_masked_BL, tokenizer.mask_token_id)

    def _labels(self, ids_L: Tensor, scene: scenes.Scene) -> tuple[Tensor, Tensor]:
        """Indices in OBJECT_WORDS of what lies in each patch, V x 3, and the patch of the object that each token names
        the shape of, L; IGNORED elsewhere."""
        labels_V3, patches_L = torch.full((scenes.GRID**2, len(OBJECT_WORDS)), IGNORED), torch.full_like(ids_L, IGNORED)
        for drawn_object in scene.objects:
            patch = drawn_object.row * scenes.GRID + drawn_object.column
            words = (drawn_object.shape, drawn_object.color, drawn_object.size)
            indices = [known.index(word) for known, word in zip(OBJECT_WORDS, words, strict=True)]
            labels_V3[patch] = torch.tensor(indices)
            patches_L[ids_L == self.preprocess.tokenizer.convert_tokens_to_ids(drawn_object.shape)] = patch
        return labels_V3, patches_L


class PretrainingModel(nn.Module):
    """A ViLT with two heads: one over the vocabulary, for masked words and for objects, and one over the patches, for
    places.

    The head over the vocabulary shares the word embeddings of the text.
    """

    def __init__(self, scorer: models.ViltScorer) -> None:
        super().__init__()
        self.scorer = scorer
        words = scorer.network.vilt.embeddings.text_embeddings.word_embeddings.weight
        self.transform = nn.Linear(words.shape[1], words.shape[1])
        self.bias = nn.Parameter(torch.zeros(words.shape[0]))
        self.place = nn.Linear(words.shape[1], scenes.GRID**2)
        tokenizer = scorer.preprocess.tokenizer
        self.object_ids = [torch.tensor(tokenizer.convert_tokens_to_ids(list(known))) for known in OBJECT_WORDS]

    def word_logits(self, tokens: Tensor) -> Tensor:
        """Logits over the vocabulary for each token."""
        words = self.scorer.network.vilt.embeddings.text_embeddings.word_embeddings.weight
        return functional.linear(functional.gelu(self.transform(tokens)), words, self.bias)


def pretraining_objective(config: PretrainingConfig) -> Objective:
    """The weighted losses of the four tasks."""

    def parts(model: PretrainingModel, batch: PretrainingBatch) -> dict[str, Tensor]:
        scorer = model.scorer
        images = scorer.encode_images(batch.images)
        own_B = torch.arange(len(batch.text_ix_BK), device=batch.text_ix_BK.device)
        masked = scorer.encode_texts(TextBatch(batch.masked_ids_BL, batch.texts.attention_mask))
        tokens = scorer.fuse(images, masked, own_B, own_B)
        length = batch.masked_ids_BL.shape[1]
        is_masked_BL = batch.masked_ids_BL != batch.texts.input_ids
        masked_logits = model.word_logits(tokens[:, :length][is_masked_BL])
        words = functional.cross_entropy(masked_logits, batch.texts.input_ids[is_masked_BL])
        # The class token stands between the caption and the patches.
        word_logits_BVW = model.word_logits(tokens[:, length + 1 :])
        # Masked words alone do not teach the images; naming objects with the word embeddings teaches colors and shapes
        # in minutes.
        objects = torch.stack(
            [
                functional.cross_entropy(
                    word_logits_BVW[..., ids].flatten(0, 1), batch.objects_BV3[..., k].flatten(), ignore_index=IGNORED
                )
                for k, ids in enumerate(model.object_ids)
            ]
        ).mean()
        places = functional.cross_entropy(
            model.place(tokens[:, :length]).flatten(0, 1), batch.patches_BL.flatten(), ignore_index=IGNORED
        )
        losses = {
            "words": config.words_weight * words,
            "objects": config.objects_weight * objects,
            "places": config.places_weight * places,
        }
        if batch.text_ix_BK.shape[1]:
            logits_BK = candidate_logits(scorer, images, scorer.encode_texts(batch.texts), batch.text_ix_BK)
            losses["matching"] = matching_loss(logits_BK, batch.text_ix_BK)
        return losses

    return parts


def new_teacher(config: PretrainingConfig, captions: Sequence[str]) -> models.ViltScorer:
    """The untrained teacher.

    Pixels are normalized so that pale backgrounds lie near 0 and the patches do not dominate the position embeddings:
    with three times the contrast and position embeddings less than half as large, it learned no place in 1,700 steps.
    Linear weights are drawn for its width.
    """
    scorer = models.new_vilt(config.model, models.word_piece(captions), config.seed)
    torch.manual_seed(config.seed)
    nn.init.normal_(scorer.network.vilt.embeddings.position_embeddings, std=POSITION_STD)
    for module in scorer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=LINEAR_STD)
    return scorer


def pretrain(run: Run, config: PretrainingConfig, *, options: loop.TrainingOptions, track: Track = silent) -> None:
    """Pretrain the built-in teacher and save it, in half precision, in the run's model folder."""
    if run.is_finished:
        return
    described = islice(scenes.describe_scenes(config.seed, "train"), NUM_VOCABULARY_SCENES)
    captions = [statement.text for item in described for statement in item.statements]
    scorer = new_teacher(config, captions)
    learner = loop.Learner(
        PretrainingModel(scorer),
        pretraining_objective(config),
        config.optimizer,
        num_steps=cast(int, config.optimizer.steps),
        seed=config.seed,
        options=options,
    )
    loop.train(run, learner, PretrainingBatches(scorer.preprocess, config), watch=step_bar(track))
    # In half precision, because the weights are part of the package.
    runs.finish(run, scorer, half=True)


@dataclass(frozen=True, kw_only=True)
class GradingConfig:
    """Everything that can change the grading of the built-in teacher."""

    # Another seed than the pretraining's, and so other scenes.
    seed: int = 2
    families: int = 10
    other_negatives: int = 6
    agreement_weight: float = 0.2
    """Weight of the squared error between logits and agreements."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: replace(OPTIMIZER, lr=4e-4, steps=500, warmup_share=0.05, save_every=100)
    )


@dataclass(frozen=True)
class GradingBatch:
    """Scenes with one caption each, and how well the captions fit them."""

    images: ImageBatch
    texts: TextBatch
    text_ix_BK: Tensor
    agreement_BK: Tensor
    """How much of each caption holds in the image, from 0 to 9."""

    def to(self, device: torch.device) -> GradingBatch:
        return on_device(self, device)


def fits(mention: scenes.Mention, thing: scenes.SceneObject) -> bool:
    """Whether a mention describes an object."""
    return (
        (thing.shape, thing.color) == (mention.shape, mention.color)
        and mention.size in (None, thing.size)
        and mention.quarter in (None, thing.quarter)
    )


def holds(statement: scenes.Statement, scene: scenes.Scene) -> bool:
    """Whether a statement is true of a scene."""
    relation = scenes.RELATIONS[statement.relation]
    return any(
        fits(statement.subject, first) and fits(statement.object, second) and relation.holds(first, second)
        for first in scene.objects
        for second in scene.objects
    )


def agreement(statement: scenes.Statement, scene: scenes.Scene) -> int:
    """How well a scene agrees with a statement, from 0 to 9: up to 3 for each of its two objects, and 3 if it is true.

    An object gets 1 for its shape, 1 for its color, and 1 if everything fits, from the best object of the scene.
    """
    of_objects = (
        max((thing.shape == named.shape) + (thing.color == named.color) + fits(named, thing) for thing in scene.objects)
        for named in (statement.subject, statement.object)
    )
    return sum(of_objects) + 3 * holds(statement, scene)


class GradingBatches(Dataset[GradingBatch]):
    """Batches of new scenes; a batch is a function of seed and step."""

    def __init__(self, preprocess: Preprocessor, config: GradingConfig) -> None:
        self.preprocess, self.config = preprocess, config

    def __getitem__(self, step: int) -> GradingBatch:
        rng, count = np.random.default_rng([self.config.seed, step]), self.config.families
        families = range(step * count, (step + 1) * count)
        described, statements, images, texts = draw_families(self.preprocess, rng, self.config.seed, families)
        text_ix_BK = candidate_texts(rng, count, self.config.other_negatives)
        rows = zip(described, text_ix_BK.tolist(), strict=True)
        agreements = [[agreement(statements[text], item.scene) for text in row] for item, row in rows]
        return GradingBatch(images, texts, text_ix_BK, torch.tensor(agreements, dtype=torch.float32))


def grading_objective(config: GradingConfig) -> Objective:
    """Matching, and the squared error of the logits against the agreements."""

    def parts(scorer: FusionScorer, batch: GradingBatch) -> dict[str, Tensor]:
        images, texts = scorer.encode_images(batch.images), scorer.encode_texts(batch.texts)
        logits_BK = candidate_logits(scorer, images, texts, batch.text_ix_BK)
        return {
            "matching": matching_loss(logits_BK, batch.text_ix_BK),
            "agreement": config.agreement_weight
            * functional.mse_loss(logits_BK, batch.agreement_BK - MIDDLE_AGREEMENT),
        }

    return parts


def grade(
    run: Run, scorer: FusionScorer, config: GradingConfig, *, options: loop.TrainingOptions, track: Track = silent
) -> None:
    """Train a pretrained teacher further, in place, and save it, in half precision, in the run's model folder."""
    if run.is_finished:
        return
    learner = loop.Learner(
        cast(nn.Module, scorer.requires_grad_(True)),
        grading_objective(config),
        config.optimizer,
        num_steps=cast(int, config.optimizer.steps),
        seed=config.seed,
        options=options,
    )
    loop.train(run, learner, GradingBatches(scorer.preprocess, config), watch=step_bar(track))
    runs.finish(run, scorer, half=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for both runs; the teacher is OUT/teacher")
    out, options = parser.parse_args().out, loop.TrainingOptions()
    first, last = PretrainingConfig(), GradingConfig()
    run = runs.start_run(out / "pretrained", first, "pretrain-teacher", {}, resume=True)
    pretrain(run, first, options=options)
    scorer = models.load_fusion(str(run.folder))
    run = runs.start_run(out / "teacher", last, "grade-teacher", {"start": scorer.digest}, resume=True)
    grade(run, scorer, last, options=options)


if __name__ == "__main__":
    main()
