"""The parts of `strong_teacher.py`: a dual encoder in two pieces, what its lower piece gave, and the training of its
upper piece.

Shape letters: I images, T texts, K captions per image, C channels, h and w sides of a map, L text tokens, W width of
tokens, D length of vectors.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from dcdctl.core import files, models
from dcdctl.core.evaluation.ranks import rank_matrix
from dcdctl.core.evaluation.recall import Recalls
from dcdctl.core.training.losses.all_pairs import kl

PHOTOS_PER_FILE, CHUNK, STEPS_PER_SAVE = 250, 25, 20
"""Photos in a file of a store, and in one forward pass."""
MAX_TEXT_LEN, NUM_CAPTIONS = 24, 5
LEVELS = (3, 4)
"""Stages whose means are appended to the encoder's output, as in the recipe; entries of feature_info."""
Half = NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a store is made from."""

    vision: str
    text: str
    size: int
    cut: int = 5
    """The first block of the vision encoder that is trained; maps are those before it."""
    text_cut: int = 3
    """The first layer of the text encoder that is trained."""
    copies: int = 1
    """Augmented copies per photo of train."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a dual encoder is trained."""

    photos: int = 6000
    seed: int = 0
    head_epochs: int = 30
    epochs: float = 4.0
    batch_size: int = 128
    captions: int = 2
    """Captions of a photo in one step."""
    head_lr: float = 3e-4
    vision_lr: float = 1e-4
    text_lr: float = 5e-5
    weight_decay: float = 0.05
    dropout: float = 0.4
    copies: int = 1
    """Augmented copies to use, at most those of the store."""
    tune_vision: bool = True
    tune_text: bool = True
    crop: int = 2
    """Rows and columns that are cut at random from a map; 0 for none."""
    kl_weight: float = 4.0
    kl_temperature: float = 2.0
    """With teachers: the settings of the recipe photos-distilled."""


class TunableDual:
    """A dual encoder whose upper stages and layers compute from what a store keeps."""

    def __init__(self, plan: Plan, dropout: float, seed: int = 0) -> None:
        size, spec = (
            models.ProjectionSize(projection_dim=512, dropout=dropout),
            models.FeatureSpec(levels=LEVELS, grid=4, size=plan.size),
        )
        self.plan = plan
        self.dual = models.new_frozen_dual(
            plan.vision, plan.text, size, max_text_len=MAX_TEXT_LEN, features=spec, seed=seed
        )
        # Channels last is the faster order of convolutions on a CPU.
        self.timm: Any = self.dual.network.vision.timm_model.to(memory_format=torch.channels_last)
        self.bert: Any = self.dual.network.text

    def lower_images(self, pixels_ICHW: Tensor) -> Tensor:
        """Maps before the first trained block, I x C x h x w. In bfloat16, which takes half the time on a CPU that has
        it."""
        with torch.autocast("cpu", torch.bfloat16):
            maps = self.timm.bn1(self.timm.conv_stem(pixels_ICHW.contiguous(memory_format=torch.channels_last)))
            for block in self.timm.blocks[: self.plan.cut]:
                maps = block(maps)
        return maps.float()

    def upper_images(self, maps_IChw: Tensor) -> Tensor:
        """Features of images, I x W: the means of the output and of two stages, in the order in which `FrozenDual`
        reads them."""
        stages, maps = [maps_IChw.mean(dim=(2, 3))], maps_IChw
        for block in self.timm.blocks[self.plan.cut :]:
            maps = block(maps)
        stages.append(maps.mean(dim=(2, 3)))
        return torch.cat([self.timm.bn2(self.timm.conv_head(maps)).mean(dim=(2, 3)), *stages], dim=1)

    def lower_texts(self, texts: models.TextBatch) -> Tensor:
        """States before the first trained layer, T x L x W."""
        states = self.bert.embeddings(input_ids=texts.input_ids)
        return self._layers(states, texts.attention_mask, range(self.plan.text_cut))

    def upper_texts(self, states_TLW: Tensor, mask_TL: Tensor) -> Tensor:
        """The states after the last layer, T x L x W."""
        return self._layers(states_TLW, mask_TL, range(self.plan.text_cut, len(self.bert.encoder.layer)))

    def _layers(self, states: Tensor, mask_TL: Tensor, layers: range) -> Tensor:
        bias = (1.0 - mask_TL[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in layers:
            output = self.bert.encoder.layer[layer](states, bias)
            states = output[0] if isinstance(output, tuple) else output
        return states

    def project_images(self, features_IW: Tensor) -> Tensor:
        return self.dual.network.projections.project_images(features_IW[:, None])

    def project_texts(self, states_TLW: Tensor, mask_TL: Tensor) -> Tensor:
        return self.dual.network.projections.project_texts(states_TLW, mask_TL)

    @torch.inference_mode()
    def check(self, images: Sequence[Image.Image], captions: Sequence[str]) -> None:
        """RuntimeError unless the split encoders give what the whole ones give; bfloat16 stages differ a little."""
        pixels, texts = self.dual.preprocess.images(images), self.dual.preprocess.texts(captions)
        whole = self.dual.encoders.image_features(pixels).tokens[:, 0]
        parts = self.upper_images(self.lower_images(pixels.pixel_values))
        similarity = functional.cosine_similarity(whole, parts).min().item()
        states = self.upper_texts(self.lower_texts(texts), texts.attention_mask)
        real = texts.attention_mask.bool()
        error = (states - self.dual.encoders.text_features(texts).tokens)[real].abs().max().item()
        if similarity < 0.995 or error > 1e-3:
            raise RuntimeError(
                f"the parts of the encoders differ from the whole: cosine {similarity:.4f} of images, {error:.1e} of "
                "texts"
            )

    def trained(self, tuning: Tuning) -> dict[str, list[torch.nn.Parameter]]:
        """Parameters by part; each part has its own learning rate."""
        vision = [
            *self.timm.blocks[self.plan.cut :].parameters(),
            *self.timm.conv_head.parameters(),
            *self.timm.bn2.parameters(),
        ]
        text = [*self.bert.encoder.layer[self.plan.text_cut :].parameters()]
        parts = {"head": list(self.dual.network.projections.parameters())}
        parts |= ({"vision": vision} if tuning.tune_vision else {}) | ({"text": text} if tuning.tune_text else {})
        return parts


@dataclass(frozen=True)
class Store:
    """Files of a store, all of train: maps and means of photos and their copies, states and means of captions."""

    folder: Path

    def path(self, kind: str, copy: int, first: int) -> Path:
        return self.folder / f"{kind}-{copy}-{first:05d}.npy"

    @property
    def plan(self) -> Plan:
        return Plan(**files.read_json(self.folder / "plan.json"))

    def mapped(self, kind: str, copy: int = 0) -> list[Half]:
        """The memory-mapped files of a kind, in order."""
        return [np.load(path, mmap_mode="r") for path in sorted(self.folder.glob(f"{kind}-{copy}-*.npy"))]

    def rows(self, kind: str, copy: int = 0) -> Tensor:
        """All rows of a small kind."""
        return torch.from_numpy(np.concatenate(self.mapped(kind, copy))).float()


def save(path: Path, array: NDArray[Any]) -> None:
    with files.atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, array)


class Training:
    """A tunable dual encoder, its store and its settings."""

    def __init__(self, store: Store, tuning: Tuning, teachers: Sequence[Path] = ()) -> None:
        self.tuning = tuning
        self.teachers = [torch.load(run / "train.pt", weights_only=True) for run in teachers]
        self.tunable = TunableDual(store.plan, tuning.dropout, tuning.seed)
        self.copies = [store.mapped("maps", copy) for copy in range(1 + tuning.copies)]
        self.means = [store.rows("means", copy) for copy in range(1 + tuning.copies)]
        self.states, self.text_means = store.mapped("states"), store.rows("text-means")[:, None]

    @torch.inference_mode()
    def start_from(self, run: Path, means: Path) -> None:
        """Start from a tuned dual over the same encoders; `means` keeps those of its captions if the text encoder stays
        as it is."""
        weights = load_file(run / "model" / "model.safetensors")
        self.tunable.dual.network.load_state_dict(weights)
        if self.tuning.tune_text:
            return
        if not means.exists():
            chunks = [range(start, start + 250) for start in range(0, len(self.text_means), 250)]
            save(means, np.concatenate([self.text_features(chunk).half().numpy() for chunk in chunks]))
        self.text_means = torch.from_numpy(np.load(means)).float()[:, None]

    def text_features(self, texts: Sequence[int]) -> Tensor:
        """Means of captions, T x W, by the upper layers."""
        states, mask = self.read_states(texts)
        real = mask[:, :, None].float()
        return (self.tunable.upper_texts(states, mask) * real).sum(dim=1) / real.sum(dim=1)

    def read_states(self, texts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Stored states of captions, T x L x W, and their masks."""
        per_file = PHOTOS_PER_FILE * NUM_CAPTIONS
        states = torch.from_numpy(np.stack([self.states[text // per_file][text % per_file] for text in texts])).float()
        mask = states.abs().sum(dim=2) > 0
        length = int(mask.sum(dim=1).max())
        return states[:, :length], mask[:, :length]

    def train_heads(self) -> None:
        """Train the linear layers on stored means, as the recipe photos-large does, with the augmented copies."""
        tuning, projections = self.tuning, self.tunable.dual.network.projections
        optimizer = torch.optim.AdamW(projections.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98))
        batches = [batch for epoch in range(tuning.head_epochs) for batch in self.batches(epoch, 256)]
        for step, (photos, copies, texts_IK) in enumerate(batches):
            set_rates(optimizer, {"": 1e-3}, step / len(batches))
            features = torch.stack([self.means[copy][photo] for photo, copy in zip(photos, copies, strict=True)])
            texts_ID = self.tunable.project_texts(
                self.text_means[texts_IK[:, 0]], torch.ones(len(photos), 1, dtype=torch.bool)
            )
            take_step(optimizer, contrast(projections.scale, self.tunable.project_images(features), texts_ID[:, None]))

    def batches(self, epoch: int, size: int) -> Iterator[tuple[list[int], list[int], NDArray[np.int64]]]:
        """Photos, the copy of each, and K captions of each; the last, smaller batch of an epoch is left out."""
        rng = np.random.default_rng([self.tuning.seed, epoch, size])
        order = rng.permutation(self.tuning.photos)
        copies = rng.integers(0, len(self.copies), self.tuning.photos)
        texts = (
            rng.permuted(np.tile(np.arange(NUM_CAPTIONS), (self.tuning.photos, 1)), axis=1)
            + NUM_CAPTIONS * np.arange(self.tuning.photos)[:, None]
        )
        for start in range(0, len(order) - size + 1, size):
            photos = order[start : start + size]
            yield photos.tolist(), copies[photos].tolist(), texts[photos][:, : self.tuning.captions]

    def images(self, photos: Sequence[int], copies: Sequence[int], rng: np.random.Generator | None = None) -> Tensor:
        """Vectors of photos, I x D, from their maps, cropped if there is a generator; from their means if the encoder
        is not trained."""
        tuning = self.tuning
        if not tuning.tune_vision:
            return self.tunable.project_images(
                torch.stack([self.means[copy][photo] for photo, copy in zip(photos, copies, strict=True)])
            )
        rows = [
            self.copies[copy][photo // PHOTOS_PER_FILE][photo % PHOTOS_PER_FILE]
            for photo, copy in zip(photos, copies, strict=True)
        ]
        maps = torch.from_numpy(np.stack(rows))
        if rng is not None and tuning.crop:
            top, left = rng.integers(0, tuning.crop + 1, 2)
            height, width = (side - tuning.crop for side in maps.shape[2:])
            maps = maps[:, :, top : top + height, left : left + width]
        return self.tunable.project_images(
            self.tunable.upper_images(maps.float().contiguous(memory_format=torch.channels_last))
        )

    def texts(self, texts: Sequence[int]) -> Tensor:
        """Vectors of captions, T x D: from their states, or from their means if the encoder is not trained."""
        means_TW = self.text_features(texts)[:, None] if self.tuning.tune_text else self.text_means[list(texts)]
        return self.tunable.project_texts(means_TW, torch.ones(len(texts), 1, dtype=torch.bool))

    def loss(self, photos: list[int], copies: list[int], texts_IK: NDArray[np.int64], step: int) -> Tensor:
        """InfoNCE of a batch, and KL to the mean of the teachers' logits; crops and dropout follow from the seed and
        the step."""
        torch.manual_seed(1_000_003 * self.tuning.seed + step)
        images_ID = self.images(photos, copies, np.random.default_rng([self.tuning.seed, step]))
        texts_IKD = self.texts(texts_IK.ravel().tolist()).view(*texts_IK.shape, -1)
        scale = self.tunable.dual.network.projections.scale
        loss = contrast(scale, images_ID, texts_IKD)
        if self.teachers:
            taught_II = torch.stack(
                [each["images"][photos] @ each["texts"][texts_IK[:, 0]].T for each in self.teachers]
            ).mean(dim=0)
            student_II = scale * images_ID @ texts_IKD[:, 0].T
            every_II = torch.ones_like(taught_II, dtype=torch.bool)
            loss = loss + self.tuning.kl_weight * kl(
                student_II, taught_II, every_II, temperature=self.tuning.kl_temperature
            )
        return loss

    @torch.inference_mode()
    def vectors(self, photos: range) -> tuple[Tensor, Tensor]:
        """Vectors of photos and of their captions, without augmentation."""
        self.set_mode(training=False)
        texts = range(photos.start * NUM_CAPTIONS, photos.stop * NUM_CAPTIONS)
        texts_TD = torch.cat([self.texts(texts[start : start + 250]) for start in range(0, len(texts), 250)])
        chunks = [range(start, min(start + CHUNK, photos.stop)) for start in range(photos.start, photos.stop, CHUNK)]
        return torch.cat([self.images(chunk, [0] * len(chunk)) for chunk in chunks]), texts_TD

    def set_mode(self, *, training: bool) -> None:
        """BatchNorm always uses its trained statistics; dropout is on in training."""
        self.tunable.dual.network.projections.train(training)
        self.tunable.bert.encoder.layer[self.tunable.plan.text_cut :].train(training and self.tuning.tune_text)


def contrast(scale: Tensor, images_ID: Tensor, texts_IKD: Tensor) -> Tensor:
    """InfoNCE of images with K captions each, mean of both directions; other captions of the same image are no
    negatives."""
    num_images, num_captions, _ = texts_IKD.shape
    logits_IKI = scale * torch.einsum("ikd,jd->ikj", texts_IKD, images_ID)
    target_I = torch.arange(num_images)
    to_image = functional.cross_entropy(logits_IKI.flatten(0, 1), target_I.repeat_interleave(num_captions))
    logits_ITK = logits_IKI.movedim(2, 0)
    own_II = torch.eye(num_images, dtype=torch.bool)
    to_text = torch.zeros(())
    for caption in range(num_captions):
        others = [
            logits_ITK[:, :, other].masked_fill(own_II, -torch.inf) for other in range(num_captions) if other != caption
        ]
        to_text = (
            to_text
            + functional.cross_entropy(torch.cat([logits_ITK[:, :, caption], *others], dim=1), target_I) / num_captions
        )
    return (to_image + to_text) / 2


def set_rates(optimizer: torch.optim.Optimizer, rates: dict[str, float], progress: float) -> None:
    """Warm-up over a twentieth of the steps, then half a cosine to 0; one rate per parameter group."""
    # Plain floats: torch.load refuses the scalars of numpy in the state of an optimizer.
    factor = min(1.0, progress / 0.05 + 0.02) * 0.5 * (1 + math.cos(math.pi * progress))
    for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
        group["lr"] = rate * factor


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(
        [parameter for group in optimizer.param_groups for parameter in group["params"]], 5.0
    )
    optimizer.step()


def fine_tune(training: Training, out: Path, result: dict[str, Any], dev: range | None) -> None:
    """Train the upper stages and layers; `result` gets the recalls on `dev` after every second epoch and the last."""
    tuning, parts = training.tuning, training.tunable.trained(training.tuning)
    for parameters in parts.values():
        for parameter in parameters:
            parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": part} for part in parts.values()], weight_decay=tuning.weight_decay, betas=(0.9, 0.98)
    )
    state = State(out / "state.pt", training.tunable, optimizer)
    done = state.load(result)
    rates = {"head": tuning.head_lr, "vision": tuning.vision_lr, "text": tuning.text_lr}
    per_epoch = tuning.photos // tuning.batch_size
    num_steps = round(tuning.epochs * per_epoch)
    for epoch in range(done // per_epoch, -(-num_steps // per_epoch)):
        training.set_mode(training=True)
        losses = []
        for step, batch in enumerate(training.batches(1000 + epoch, tuning.batch_size), epoch * per_epoch):
            if not done <= step < num_steps:
                continue
            set_rates(optimizer, {part: rates[part] for part in parts}, step / num_steps)
            loss = training.loss(*batch, step)
            take_step(optimizer, loss)
            losses.append(loss.item())
            if step % STEPS_PER_SAVE == STEPS_PER_SAVE - 1:
                state.save(step + 1, result)
                say(f"step {step + 1} of {num_steps}, loss {np.mean(losses[-STEPS_PER_SAVE:]):.4f}")
        if dev is not None and (epoch % 2 or (epoch + 1) * per_epoch >= num_steps):
            result["dev"][f"{min(epoch + 1, tuning.epochs):g} epochs"] = report(
                training, dev, f"epoch {epoch + 1}", out / "dev.pt"
            )
        state.save(min(num_steps, (epoch + 1) * per_epoch), result)


@dataclass(frozen=True)
class State:
    """The file from which a killed training resumes: trained parameters, optimizer, step, and recalls so far."""

    path: Path
    tunable: TunableDual
    optimizer: torch.optim.Optimizer

    def save(self, step: int, result: dict[str, Any]) -> None:
        trained = {
            name: value.detach() for name, value in self.tunable.dual.network.named_parameters() if value.requires_grad
        }
        with files.atomic_path(self.path) as partial:
            torch.save(
                {"trained": trained, "optimizer": self.optimizer.state_dict(), "step": step, "dev": result["dev"]},
                partial,
            )

    def load(self, result: dict[str, Any]) -> int:
        """The step to resume at; 0 if there is no file."""
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, weights_only=True)
        self.tunable.dual.network.load_state_dict(saved["trained"], strict=False)
        self.optimizer.load_state_dict(saved["optimizer"])
        result["dev"] = saved["dev"]
        return int(saved["step"])


def say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}, {time.process_time():.0f} processor seconds\n")
    sys.stderr.flush()


def report(training: Training, photos: range, label: str, keep: Path | None = None) -> dict[str, float]:
    """Recalls on photos of the store; the vectors may be kept for ensembles."""
    images_ID, texts_TD = training.vectors(photos)
    if keep is not None:
        save_vectors(keep, training.tunable.dual.network.projections.scale, images_ID, texts_TD)
    recalls = recalls_of(images_ID @ texts_TD.T)
    say(f"{label}: {json.dumps(recalls)}")
    return recalls


def save_vectors(path: Path, scale: Tensor, images_ID: Tensor, texts_TD: Tensor) -> None:
    """Vectors whose products are logits."""
    with files.atomic_path(path) as partial:
        torch.save({"images": scale.detach() * images_ID, "texts": texts_TD}, partial)


def recalls_of(scores_IT: Tensor) -> dict[str, float]:
    caption_image = np.repeat(np.arange(len(scores_IT)), scores_IT.shape[1] // len(scores_IT))
    recalls = Recalls.from_ranks(rank_matrix(scores_IT, caption_image).ranks)
    text, image = recalls.text_retrieval, recalls.image_retrieval
    return {
        "rsum": round(recalls.rsum, 2),
        **{f"text {k}": v for k, v in text.items()},
        **{f"image {k}": v for k, v in image.items()},
    }
