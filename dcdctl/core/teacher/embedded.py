"""Teachers without a cache. A dual teacher embeds a corpus once, and then the score of any pair is a product of two
vectors; a late-interaction teacher keeps a vector per token, and the score of a pair is their MaxSim.

The vectors are float32 and stay in memory: 4 x D bytes per image and per caption, or per token, with D = 512 1.4 GB
for COCO's 113,287 training images and their 566,747 captions. Half of that in float16 would change logits of a scale of
100 in the third decimal.

Shape letters: I images, T texts, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcdctl.core import models, scoring
from dcdctl.core.data import Corpus, Indices, Scores
from dcdctl.core.devices import CPU
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import DualEncoder, LateInteraction, Searchable, States
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher.scores import AverageScores, TeacherScores, in_range

ROWS_AT_A_TIME = 8192
"""Vectors converted to float64 at a time, so that no copy of all of them is made."""
STATES_AT_A_TIME = 1024
"""Images or captions whose token vectors are copied at a time: with 197 tokens of 128 numbers these are 103 MB."""


class EmbeddedTeacher(TeacherScores):
    """The scores of a dual encoder for every image with every caption of a corpus: its logit scale times the cosine."""

    def __init__(self, plan: dict[str, Any], model: DualEncoder, images_ID: Tensor, texts_TD: Tensor) -> None:
        """The vectors of a corpus by this model, which is not kept."""
        self.plan = plan
        self._scale = model.logit_scale.item()
        self._bias = 0.0 if model.logit_bias is None else model.logit_bias.item()
        self._images_ID, self._texts_TD = images_ID, texts_TD

    def lookup(self, image_ix: Indices, text_ix: Indices) -> Scores:
        """The scores of these pairs, in their common shape. A column of images and a row of captions cost one matrix
        product."""
        return self._scale * products_of(self._images_ID, self._texts_TD, image_ix, text_ix) + self._bias

    def vectors(self, image_ix: Indices, text_ix: Indices) -> tuple[Tensor, Tensor]:
        """The unit vectors of these images and of these captions."""
        return self._images_ID[torch.from_numpy(image_ix)], self._texts_TD[torch.from_numpy(text_ix)]

    @property
    def image_states(self) -> States:
        """All images as a query encoder of this teacher takes them."""
        return models.vector_states(self._images_ID)

    @cached_property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the scores of all images with all captions.

        From the mean vectors and the mean products of their components: mean (i . t)^2 = sum of (mean i i^T) (mean t
        t^T). COCO has 64 billion pairs.
        """
        image_D, image_DD = _mean_and_products(self._images_ID)
        text_D, text_DD = _mean_and_products(self._texts_TD)
        mean = float(image_D @ text_D)
        variance = max(float((image_DD * text_DD).sum()) - mean**2, 0.0)
        # A teacher whose scores are all equal has no spread to divide by.
        return self._scale * mean + self._bias, self._scale * variance**0.5 or 1.0


class LateTeacher(TeacherScores):
    """The scores of a late-interaction model for every image with every caption of a corpus. Each lookup computes
    MaxSim, on the CPU."""

    def __init__(self, plan: dict[str, Any], scorer: LateInteraction, images: States, texts: States) -> None:
        """The token vectors of a corpus by this model, which scores them."""
        self.plan, self._scorer, self._images, self._texts = plan, scorer, images, texts

    @torch.inference_mode()
    def lookup(self, image_ix: Indices, text_ix: Indices) -> Scores:
        """The scores of these pairs, in their common shape. A column of images and a row of captions are scored in
        blocks: a miner asks for some with all others, whose tokens are more than a copy of them should be."""
        images, texts = in_range(image_ix, text_ix, len(self._images), len(self._texts))
        if _is_grid(images, texts):
            return self._score_grid(torch.tensor(images[:, 0]), torch.tensor(texts[0]))
        pairs = np.broadcast_arrays(images, texts)
        flat = (torch.tensor(index.flatten()) for index in pairs)
        return self._scorer.score_pairs(self._images, self._texts, *flat).numpy().reshape(pairs[0].shape)

    def _score_grid(self, image_ix: Tensor, text_ix: Tensor) -> Scores:
        """The scores of these images with these captions."""
        scores = np.empty((len(image_ix), len(text_ix)), np.float32)
        row = 0
        for image_part in image_ix.split(STATES_AT_A_TIME):
            images, column = self._images.take(image_part), 0
            for text_part in text_ix.split(STATES_AT_A_TIME):
                block = self._scorer.score_all(images, self._texts.take(text_part)).numpy()
                scores[row : row + len(image_part), column : column + len(text_part)] = block
                column += len(text_part)
            row += len(image_part)
        return scores

    def vectors(self, image_ix: Indices, text_ix: Indices) -> tuple[Tensor, Tensor]:
        """The vectors of the tokens of these images and of these captions, zeros for padding."""
        return self._images.tokens[torch.from_numpy(image_ix)], self._texts.tokens[torch.from_numpy(text_ix)]

    @property
    def image_states(self) -> States:
        """All images as a query encoder of this teacher takes them."""
        tokens = self._images.tokens
        # Vectors without numbers, because states with none are not encoded.
        return self._images.with_tokens(tokens, tokens.new_empty(len(tokens), 0))


class EmbeddedTeachers(AverageScores):
    """Several dual teachers as one, averaged over all pairs."""

    noun = "teachers"
    teachers: Sequence[EmbeddedTeacher]

    def __init__(self, teachers: Sequence[EmbeddedTeacher]) -> None:
        super().__init__(teachers)
        # Before worker processes copy this object: each would compute them again.
        _ = self._moments

    @cached_property
    def _moments(self) -> list[tuple[float, float]]:
        return [teacher.moments for teacher in self.teachers]


EmbeddedScores = EmbeddedTeacher | LateTeacher | EmbeddedTeachers
NamedModels = Sequence[tuple[str, Searchable]]


def check_embedding(named: NamedModels) -> None:
    """ConfigError for models that are not averaged: if two of them are the same model, or if one of several is a
    late-interaction model."""
    names: dict[str, str] = {}
    for name, model in named:
        # By fingerprint, as for caches: a copy of a model counts its teacher twice as well.
        if model.digest in names:
            raise ConfigError(
                f"the teachers {names[model.digest]} and {name} are one model, by their fingerprints",
                hint="name each teacher once",
            )
        names[model.digest] = name
        if model.kind != "dual" and len(named) > 1:
            raise ConfigError(
                f"{name} is a late-interaction model, and only scores of dual encoders are averaged without caches",
                hint="cache each teacher with `dcdctl cache-teacher`, and name the caches",
            )


def embedding_plan(named: NamedModels, corpus: Corpus, compute: Compute) -> Any:
    """The `plan` of `embed_corpus`: the fingerprint of each model, the corpus, and how its inputs are read."""
    plans = [_plan(model, corpus, compute) for _, model in named]
    return plans if len(plans) > 1 else plans[0]


def embed_corpus(named: NamedModels, corpus: Corpus, compute: Compute, track: Track = silent) -> EmbeddedScores:
    """The scores of all pairs of a corpus by one teacher, a dual encoder or a late-interaction model, or by the average
    of several dual encoders. Each model encodes the corpus once.

    It reads its stored features where `compute` names a folder and it has encoders; otherwise images and captions.
    ConfigError as from `check_embedding`, ModelError if a vector is not finite.
    """
    check_embedding(named)
    duals = [_embed_dual(model, corpus, compute, track) for _, model in named if model.kind == "dual"]
    if len(duals) > 1:
        return EmbeddedTeachers(duals)
    ((_, model),) = named
    return duals[0] if model.kind == "dual" else _embed_late(model, corpus, compute, track)


def _plan(model: Searchable, corpus: Corpus, compute: Compute) -> dict[str, Any]:
    features = None if _compute_of(model, compute).features is None else "float16"
    return {"teacher": model.digest, "corpus": corpus.fingerprint, "features": features}


def _compute_of(model: Searchable, compute: Compute) -> Compute:
    """The training's, with stored features only if the teacher has encoders."""
    return compute if model.encoders is not None else replace(compute, features=None)


def _embed_dual(model: DualEncoder, corpus: Corpus, compute: Compute, track: Track) -> EmbeddedTeacher:
    compute = _compute_of(model, compute)
    source = scoring.open_source(corpus, model, compute, track)
    vectors = scoring.embed_with_model(model, source, compute.device, track)
    sides = [scoring.finite_vectors(side).cpu() for side in (vectors.images_ID, vectors.texts_TD)]
    return EmbeddedTeacher(_plan(model, corpus, compute), model, *sides)


def _embed_late(model: LateInteraction, corpus: Corpus, compute: Compute, track: Track) -> LateTeacher:
    # The precision of the training is none of its teacher's.
    compute = replace(_compute_of(model, compute), precision="float32")
    source = scoring.open_source(corpus, model, compute, track)
    encoded: Any = scoring.encode_corpus(model, source, compute, track=track)
    images, texts = encoded.of_images.to(CPU), encoded.of_texts.to(CPU)
    for states in (images, texts):
        scoring.finite_vectors(states.tokens)
    return LateTeacher(_plan(model, corpus, compute), model.to(CPU), images, texts)


def _is_grid(image_ix: Indices, text_ix: Indices) -> bool:
    """Whether these are a column of images and a row of captions."""
    return image_ix.ndim == text_ix.ndim == 2 and image_ix.shape[1] == text_ix.shape[0] == 1


def products_of(images_ID: Tensor, texts_TD: Tensor, image_ix: Indices, text_ix: Indices) -> Scores:
    """Inner products of pairs of vectors on the CPU, in the common shape of their indices. A column of images and a row
    of captions cost one matrix product."""
    images, texts = in_range(image_ix, text_ix, len(images_ID), len(texts_TD))
    if _is_grid(images, texts):
        return (images_ID[torch.tensor(images[:, 0])] @ texts_TD[torch.tensor(texts[0])].T).numpy()
    images, texts = np.broadcast_arrays(images, texts)
    # Copies, because broadcast arrays are read-only, and torch warns of that.
    flat = torch.from_numpy(images.flatten()), torch.from_numpy(texts.flatten())
    return models.pair_products(images_ID, texts_TD, *flat).view(images.shape).numpy()


def _mean_and_products(vectors_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The mean vector, D, and the means of the products of any two components, D x D, in float64."""
    width = vectors_ND.shape[1]
    sum_D, sum_DD = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for part in vectors_ND.split(ROWS_AT_A_TIME):
        # In float64, because the variance is a small difference of two means.
        rows = part.double()
        sum_D += rows.sum(dim=0)
        sum_DD += rows.T @ rows
    return sum_D / len(vectors_ND), sum_DD / len(vectors_ND)
