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

from dcdctl.core import distributed, models, scoring
from dcdctl.core.data import Corpus, Index, Scores
from dcdctl.core.devices import CPU, Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import Model, States
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher.scores import AverageScores, TeacherScores, check_weights, in_range

ROWS_AT_A_TIME = 8192
"""Vectors converted to float64 at a time, so that no copy of all of them is made."""


class EmbeddedTeacher(TeacherScores):
    """The scores of a dual encoder for every image with every caption of a corpus: its logit scale times the cosine.

    `embed` comes before the first score. Until then, making one costs nothing but the fingerprint of the model.
    """

    def __init__(self, model: Model, corpus: Corpus, compute: Compute) -> None:
        """The model reads its stored features where `compute` names a folder and it has encoders; otherwise images and
        captions."""
        self._compute = compute if model.encoders is not None else replace(compute, features=None)
        self._corpus = corpus
        self._model: Model | None = model
        # The precision of the training is none of its teacher's: vectors are always computed in float32.
        features = None if self._compute.features is None else "float16"
        self.plan = {"teacher": model.digest, "corpus": corpus.fingerprint, "features": features}
        if model.kind == "dual":
            bias = model.logit_bias
            self._scale, self._bias = model.logit_scale.item(), 0.0 if bias is None else bias.item()
        self._images_ID, self._texts_TD = torch.empty(0), torch.empty(0)

    def embed(self, track: Track = silent) -> None:
        """Embed the corpus; the main process of several does so and gives the others its vectors. ModelError if one is
        not finite."""
        assert self._model is not None
        assert self._model.kind == "dual"
        # By one process, because others could round differently, and would then keep other negatives of a list.
        with distributed.main_first():
            if distributed.is_main():
                source = scoring.open_source(self._corpus, self._model, self._compute, track)
                vectors = scoring.embed_with_model(self._model, source, self._compute.device, track)
                self._images_ID, self._texts_TD = (
                    scoring.finite_vectors(side).cpu() for side in (vectors.images_ID, vectors.texts_TD)
                )
        if not distributed.is_main():
            self._images_ID, self._texts_TD = (
                torch.zeros(count, self._model.embedding_dim)
                for count in (self._corpus.num_images, self._corpus.num_captions)
            )
        for side in (self._images_ID, self._texts_TD):
            distributed.broadcast(side)
        # It has given all that a training needs, which needs the memory.
        self._model = None

    def lookup(self, image_ix: Index, text_ix: Index) -> Scores:
        """The scores of these pairs, in their common shape. A column of images and a row of captions cost one matrix
        product."""
        return self._scale * products_of(self._images_ID, self._texts_TD, image_ix, text_ix) + self._bias

    def vectors(self, image_ix: Index, text_ix: Index) -> tuple[Tensor, Tensor]:
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
        (image_D, image_DD), (text_D, text_DD) = (
            _mean_and_products(vectors) for vectors in (self._images_ID, self._texts_TD)
        )
        mean = float(image_D @ text_D)
        variance = max(float((image_DD * text_DD).sum()) - mean**2, 0.0)
        # A teacher whose scores are all equal has no spread to divide by.
        return self._scale * mean + self._bias, self._scale * variance**0.5 or 1.0


class LateTeacher(EmbeddedTeacher):
    """The scores of a late-interaction model for every image with every caption of a corpus. Each lookup computes
    MaxSim, on the CPU. It has no moments, which would take the scores of all pairs."""

    def embed(self, track: Track = silent) -> None:
        """Encode the corpus; of several processes each does its share. ModelError if a number is not finite."""
        assert self._model is not None
        assert self._model.kind != "dual"
        self._scorer, compute = self._model, replace(self._compute, precision="float32")
        # The main one stores the features, if they are asked for.
        with distributed.main_first():
            source = scoring.open_source(self._corpus, self._scorer, compute, track)
        encoded: Any = scoring.encode_corpus(self._scorer, source, compute, track=track, is_shared=True)
        self._images, self._texts = encoded.of_images.to(CPU), encoded.of_texts.to(CPU)
        for states in (self._images, self._texts):
            scoring.finite_vectors(states.tokens)
        self._scorer.to(CPU)

    @torch.inference_mode()
    def lookup(self, image_ix: Index, text_ix: Index) -> Scores:
        """The scores of these pairs, in their common shape."""
        pairs = np.broadcast_arrays(*in_range(image_ix, text_ix, len(self._images), len(self._texts)))
        flat = (torch.tensor(index.flatten()) for index in pairs)
        return self._scorer.score_pairs(self._images, self._texts, *flat).numpy().reshape(pairs[0].shape)

    def vectors(self, image_ix: Index, text_ix: Index) -> tuple[Tensor, Tensor]:
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

    def embed(self, track: Track = silent) -> None:
        """Embed the corpus with every teacher."""
        for teacher in self.teachers:
            teacher.embed(track)
        # Before worker processes copy this object: each would compute them again.
        _ = self._moments

    @cached_property
    def _moments(self) -> list[tuple[float, float]]:
        return [teacher.moments for teacher in self.teachers]


EmbeddedScores = EmbeddedTeacher | EmbeddedTeachers


def embedded_teachers(
    named: Sequence[tuple[str, Model]], corpus: Corpus, compute: Compute, weights: Sequence[float] = ()
) -> EmbeddedScores:
    """One teacher, a dual encoder or a late-interaction model, or the average of several dual encoders.

    ConfigError if the number of weights differs from the number of teachers, if two of them are the same model, or if
    one of several is a late-interaction model.
    """
    check_weights(weights, len(named), "teachers")
    names: dict[str, str] = {}
    for name, model in named:
        # By fingerprint, as for caches: a copy of a model counts its teacher twice as well.
        if model.digest in names:
            raise ConfigError(
                f"the teachers {names[model.digest]} and {name} are one model, by their fingerprints",
                hint="name each teacher once; teachers.weights gives the teachers different shares",
            )
        names[model.digest] = name
        if model.kind != "dual" and len(named) > 1:
            raise ConfigError(
                f"{name} is a late-interaction model, and only scores of dual encoders are averaged without caches",
                hint="cache each teacher with `dcdctl cache-teacher`, and name the caches",
            )
    teachers = [
        (EmbeddedTeacher if model.kind == "dual" else LateTeacher)(model, corpus, compute) for _, model in named
    ]
    return EmbeddedTeachers(teachers, weights) if teachers[1:] else teachers[0]


def products_of(images_ID: Tensor, texts_TD: Tensor, image_ix: Index, text_ix: Index) -> Scores:
    """Inner products of pairs of vectors on the CPU, in the common shape of their indices. A column of images and a row
    of captions cost one matrix product."""
    images, texts = in_range(image_ix, text_ix, len(images_ID), len(texts_TD))
    if images.ndim == texts.ndim == 2 and images.shape[1] == texts.shape[0] == 1:
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
