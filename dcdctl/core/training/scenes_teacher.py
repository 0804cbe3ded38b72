"""How the built-in teacher is made: a small ViLT pretrained on drawn scenes.

Four tasks, as in the pretraining of the large models, and without end of fresh pictures: name the words that are masked in a
caption (the picture tells); name the shape, colour and size of the object in each patch (in place of an object detector's labels);
say for each object a caption names in which patch it lies (in place of the boxes of phrase grounding); and tell the true caption from
those of the scene's three siblings and of other scenes, both ways. Matching comes last: from the first step it starts slowly, and without
the places it learns which color is whose but not where things stand.

Shape letters: B images of a batch, K candidates with the true one first, L text tokens, V patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from dcdctl.core import data, models
from dcdctl.core.devices import moved
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import ImageBatch, Preprocess, TextBatch
from dcdctl.core.progress import Track, silent, watched_by
from dcdctl.core.training import loop, runs
from dcdctl.core.training.grad_cache import Objective
from dcdctl.core.training.recipe import OptimizerConfig
from dcdctl.core.training.runs import Run

PIXEL_MEAN, PIXEL_STD = 0.92, 1.0
PLACE_STD, LINEAR_STD = 0.5, 0.06
RELATION_WORDS = ("above", "below", "over", "under", "left", "right", "upper", "lower", "directly", "straight")
CONTENT_WORDS = (
    *data.SHAPES,
    *data.COLORS,
    *(word for words in data.SIZES.values() for word in words),
    *("top", "bottom"),
    *RELATION_WORDS,
)
OBJECT_WORDS = (data.SHAPES, tuple(data.COLORS), tuple(data.SIZES))
NOTHING = -100
"""Label of a patch with no object, which cross-entropy leaves out."""


def num_steps(optimizer: OptimizerConfig) -> int:
    """Steps of a training on scenes that are drawn as it goes; ConfigError if they are not set."""
    if optimizer.steps is None:
        raise ConfigError("optimizer.steps must be set: fresh scenes have no epochs")
    return optimizer.steps


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Everything that can change the built-in teacher."""

    seed: int = 1
    """Also the seed of the scenes; the demo's corpus has another."""
    families: int = 12
    """Families of four scenes in a batch, once matching has begun; before, four thirds of it."""
    other_negatives: int = 3
    """Captions of other families each picture is compared with, besides those of its three siblings."""
    words_only_steps: int = 2500
    mask_share: float = 0.35
    """Share of the words that say something that are masked, in half of the captions; in the others all words of relation are, and
    no others, so that both objects can be looked up."""
    words_weight: float = 0.5
    objects_weight: float = 0.25
    places_weight: float = 0.5
    model: models.ViltSize = field(
        default_factory=lambda: models.ViltSize(hidden_dropout_prob=0.0, image_mean=PIXEL_MEAN, image_std=PIXEL_STD)
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=1e-3, weight_decay=0.05, steps=4000, warmup_share=0.02, schedule="cosine", max_grad_norm=1.0, save_every=250
        )
    )

    def __post_init__(self) -> None:
        num_steps(self.optimizer)


@dataclass(frozen=True)
class PretrainingBatch:
    images: ImageBatch
    texts: TextBatch
    masked_ids_BL: Tensor
    is_masked_BL: Tensor
    objects_BV3: Tensor
    """Place of each patch's shape, colour and size in OBJECT_WORDS, or NOTHING."""
    places_BL: Tensor
    """The patch of the object whose shape a token names, or NOTHING."""
    text_ix_BK: Tensor
    """Captions each picture is compared with, its own first; no columns while the words come alone."""

    def to(self, device: torch.device) -> PretrainingBatch:
        return moved(self, device)


class SceneSteps(Dataset[PretrainingBatch]):
    """Batches of scenes nobody has seen before; a function of seed and step."""

    def __init__(self, preprocess: Preprocess, config: PretrainingConfig) -> None:
        self.preprocess, self.config = preprocess, config
        self._content_ids, self._relation_ids = (
            torch.tensor(preprocess.tokenizer.convert_tokens_to_ids(list(words))) for words in (CONTENT_WORDS, RELATION_WORDS)
        )
        self._shape_ids = dict(zip(data.SHAPES, preprocess.tokenizer.convert_tokens_to_ids(list(data.SHAPES)), strict=True))

    def __getitem__(self, step: int) -> PretrainingBatch:
        rng = np.random.default_rng([self.config.seed, step])
        is_matching = step >= self.config.words_only_steps
        count = self.config.families if is_matching else self.config.families * 4 // 3
        family = range(step * 2 * self.config.families, step * 2 * self.config.families + count)
        described = [one for index in family for one in data.describe_family(self.config.seed, "train", index)]
        pictures = [data.draw_scene(one.scene) for one in described]
        texts = self.preprocess.texts([one.statements[rng.integers(len(one.statements))].text for one in described])
        is_masked = self._mask(texts.input_ids, rng)
        return PretrainingBatch(
            self.preprocess.images(pictures),
            texts,
            texts.input_ids.masked_fill(is_masked, self.preprocess.tokenizer.mask_token_id),
            is_masked,
            torch.stack([_object_labels(one.scene) for one in described]),
            torch.stack([self._places(ids, one.scene) for ids, one in zip(texts.input_ids, described, strict=True)]),
            compared_texts(rng, count, self.config.other_negatives if is_matching else None),
        )

    def _mask(self, ids_BL: Tensor, rng: np.random.Generator) -> Tensor:
        is_drawn_BL = torch.from_numpy(rng.random(tuple(ids_BL.shape)) < self.config.mask_share)
        is_any_B1 = torch.from_numpy(rng.random((len(ids_BL), 1)) < 0.5)
        return torch.where(is_any_B1, torch.isin(ids_BL, self._content_ids) & is_drawn_BL, torch.isin(ids_BL, self._relation_ids))

    def _places(self, ids_L: Tensor, scene: data.Scene) -> Tensor:
        places_L = torch.full_like(ids_L, NOTHING)
        for thing in scene.objects:
            places_L[ids_L == self._shape_ids[thing.shape]] = thing.row * data.GRID + thing.column
        return places_L


def _object_labels(scene: data.Scene) -> Tensor:
    labels = torch.full((data.GRID**2, len(OBJECT_WORDS)), NOTHING)
    for thing in scene.objects:
        words = (thing.shape, thing.color, thing.size)
        places = [known.index(word) for known, word in zip(OBJECT_WORDS, words, strict=True)]
        labels[thing.row * data.GRID + thing.column] = torch.tensor(places)
    return labels


def compared_texts(rng: np.random.Generator, num_families: int, other_negatives: int | None) -> Tensor:
    """For each picture the captions of its family, its own first, and one of each of some other families.

    Every column is a permutation, so that read the other way each caption is compared with as many pictures.
    """
    place_B = np.arange(num_families * data.FAMILY_SIZE)
    if other_negatives is None:
        return torch.empty((len(place_B), 0), dtype=torch.int64)
    family_B, member_B = np.divmod(place_B, data.FAMILY_SIZE)
    columns = [family_B * data.FAMILY_SIZE + (member_B + k) % data.FAMILY_SIZE for k in range(data.FAMILY_SIZE)]
    for shift in rng.choice(np.arange(1, num_families), other_negatives, replace=False):
        turn = rng.integers(data.FAMILY_SIZE)
        columns.append((family_B + shift) % num_families * data.FAMILY_SIZE + (member_B + turn) % data.FAMILY_SIZE)
    return torch.from_numpy(np.stack(columns, axis=1))


class PretrainingModel(nn.Module):
    """A ViLT with a head that names words, used for masked words and for objects, which reads the text's own word table, and a head
    that names patches."""

    def __init__(self, scorer: Any) -> None:
        super().__init__()
        self.scorer = scorer
        words = scorer.network.vilt.embeddings.text_embeddings.word_embeddings.weight
        self.transform = nn.Linear(words.shape[1], words.shape[1])
        self.bias = nn.Parameter(torch.zeros(words.shape[0]))
        self.place = nn.Linear(words.shape[1], data.GRID**2)
        tokenizer = scorer.preprocess.tokenizer
        self.object_ids = [torch.tensor(tokenizer.convert_tokens_to_ids(list(known))) for known in OBJECT_WORDS]

    def name(self, tokens: Tensor) -> Tensor:
        """Logits over the vocabulary for each token."""
        words = self.scorer.network.vilt.embeddings.text_embeddings.word_embeddings.weight
        return functional.linear(functional.gelu(self.transform(tokens)), words, self.bias)


def pretraining_objective(config: PretrainingConfig) -> Objective:
    """The tasks' losses, weighted."""

    def parts(model: PretrainingModel, batch: PretrainingBatch) -> dict[str, Tensor]:
        scorer = model.scorer
        images = scorer.encode_images(batch.images)
        own_B = torch.arange(len(batch.text_ix_BK), device=batch.text_ix_BK.device)
        masked = scorer.encode_texts(TextBatch(batch.masked_ids_BL, batch.texts.attention_mask))
        tokens = scorer.fuse(images, masked, own_B, own_B)
        length = batch.masked_ids_BL.shape[1]
        words = functional.cross_entropy(model.name(tokens[:, :length][batch.is_masked_BL]), batch.texts.input_ids[batch.is_masked_BL])
        named_BVW = model.name(tokens[:, length + 1 :])
        objects = torch.stack(
            [
                functional.cross_entropy(named_BVW[..., ids].flatten(0, 1), batch.objects_BV3[..., k].flatten(), ignore_index=NOTHING)
                for k, ids in enumerate(model.object_ids)
            ]
        ).mean()
        places = functional.cross_entropy(model.place(tokens[:, :length]).flatten(0, 1), batch.places_BL.flatten(), ignore_index=NOTHING)
        losses = {
            "words": config.words_weight * words,
            "objects": config.objects_weight * objects,
            "places": config.places_weight * places,
        }
        if batch.text_ix_BK.shape[1]:
            logits_BK = compared_logits(scorer, images, scorer.encode_texts(batch.texts), batch.text_ix_BK)
            losses["matching"] = matching_loss(logits_BK, batch.text_ix_BK)
        return losses

    return parts


def compared_logits(scorer: Any, images: Any, texts: Any, text_ix_BK: Tensor) -> Tensor:
    """The logits of each picture with its candidates, B x K."""
    num_images, num_candidates = text_ix_BK.shape
    image_ix_P = torch.arange(num_images, device=text_ix_BK.device).repeat_interleave(num_candidates)
    logits_P: Tensor = scorer.score_pairs(images, texts, image_ix_P, text_ix_BK.flatten())
    return logits_P.view(num_images, num_candidates)


def matching_loss(logits_BK: Tensor, text_ix_BK: Tensor) -> Tensor:
    """Cross-entropy of the true caption among a picture's candidates, and of the true picture among a caption's."""
    by_caption_BK = logits_BK.gather(0, text_ix_BK.argsort(dim=0))
    target_B = torch.zeros(len(logits_BK), dtype=torch.int64, device=logits_BK.device)
    return (functional.cross_entropy(logits_BK, target_B) + functional.cross_entropy(by_caption_BK, target_B)) / 2


def new_teacher(config: PretrainingConfig, captions: Sequence[str]) -> models.ViltScorer:
    """The untrained teacher.

    Pixels are normalized so that the pale backgrounds lie near 0 and the patches do not drown out the places they lie at: with three
    times the contrast and places less than half as loud, no place was learned in 1,700 steps. Weights are drawn for its width.
    """
    scorer = models.new_vilt(config.model, models.word_piece(captions), config.seed)
    torch.manual_seed(config.seed)
    nn.init.normal_(scorer.network.vilt.embeddings.position_embeddings, std=PLACE_STD)
    for module in scorer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=LINEAR_STD)
    return scorer


def pretrain(run: Run, config: PretrainingConfig, *, options: loop.TrainingOptions, track: Track = silent) -> None:
    """Train the built-in teacher and leave it, in half precision, in the run's model folder."""
    if run.is_finished:
        return
    torch.manual_seed(config.seed)
    captions = [line.text for one in islice(data.describe_scenes(config.seed, "train"), 2000) for line in one.statements]
    scorer = new_teacher(config, captions)
    model = PretrainingModel(scorer)
    loop.train(
        run,
        model,
        SceneSteps(scorer.preprocess, config),
        pretraining_objective(config),
        config.optimizer,
        num_steps=num_steps(config.optimizer),
        seed=config.seed,
        options=options,
        watch=watched_by(track),
    )
    runs.finish(run, scorer, half=True)


MIDDLE = 4.5
"""Half of the highest agreement: logits lie about 0."""


@dataclass(frozen=True, kw_only=True)
class GradingConfig:
    """Everything that can change the last stage of the built-in teacher."""

    seed: int = 2
    families: int = 10
    other_negatives: int = 6
    agreement_weight: float = 0.2
    """Weight of the squared distance between logits and agreements."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=4e-4, weight_decay=0.05, steps=500, warmup_share=0.05, schedule="cosine", max_grad_norm=1.0, save_every=100
        )
    )

    def __post_init__(self) -> None:
        num_steps(self.optimizer)


@dataclass(frozen=True)
class GradedBatch:
    images: ImageBatch
    texts: TextBatch
    text_ix_BK: Tensor
    agreement_BK: Tensor
    """How much of each caption holds of its picture, from 0 to 9."""

    def to(self, device: torch.device) -> GradedBatch:
        return moved(self, device)


class GradedSteps(Dataset[GradedBatch]):
    """Batches of scenes nobody has seen before; a function of seed and step."""

    def __init__(self, preprocess: Preprocess, config: GradingConfig) -> None:
        self.preprocess, self.config = preprocess, config

    def __getitem__(self, step: int) -> GradedBatch:
        rng = np.random.default_rng([self.config.seed, step])
        count = self.config.families
        family = range(step * count, (step + 1) * count)
        described = [one for index in family for one in data.describe_family(self.config.seed, "train", index)]
        said = [one.statements[rng.integers(len(one.statements))] for one in described]
        text_ix_BK = compared_texts(rng, count, self.config.other_negatives)
        agreements = [[said[text].agreement(one.scene) for text in row] for one, row in zip(described, text_ix_BK.tolist(), strict=True)]
        return GradedBatch(
            self.preprocess.images([data.draw_scene(one.scene) for one in described]),
            self.preprocess.texts([statement.text for statement in said]),
            text_ix_BK,
            torch.tensor(agreements, dtype=torch.float32),
        )


def grading_objective(config: GradingConfig) -> Objective:
    """Matching, and the agreement of logits with what holds."""

    def parts(scorer: Any, batch: GradedBatch) -> dict[str, Tensor]:
        images, texts = scorer.encode_images(batch.images), scorer.encode_texts(batch.texts)
        logits_BK = compared_logits(scorer, images, texts, batch.text_ix_BK)
        return {
            "matching": matching_loss(logits_BK, batch.text_ix_BK),
            "agreement": config.agreement_weight * functional.mse_loss(logits_BK, batch.agreement_BK - MIDDLE),
        }

    return parts


def grade(run: Run, scorer: Any, config: GradingConfig, *, options: loop.TrainingOptions, track: Track = silent) -> None:
    """Train a pretrained teacher on, in place, and leave it, in half precision, in the run's model folder."""
    if run.is_finished:
        return
    loop.train(
        run,
        scorer.requires_grad_(True),
        GradedSteps(scorer.preprocess, config),
        grading_objective(config),
        config.optimizer,
        num_steps=num_steps(config.optimizer),
        seed=config.seed,
        options=options,
        watch=watched_by(track),
    )
    runs.finish(run, scorer, half=True)
