"""A dual encoder where a fusion scorer is expected: as the teacher of a cache, or as a re-ranker.

Shape letters: I images, T texts, N vectors, P pairs, D length of the vectors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dcdctl.core.models.dual import DualEncoder
from dcdctl.core.models.fusion import FusionScorer
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.networks.over_encoders import Encoders
from dcdctl.core.models.protocols import Table

DENSE_FACTOR = 24
"""All images times all texts is computed at once if that has at most this many times the pairs asked for. Gathering the
vectors of 5,500 pairs takes as long as the product of 256 images with 512 texts (width 512, one core)."""
PAIRS_AT_A_TIME = 256
"""Pairs whose vectors a CPU gathers at a time: they fit its cache, and 16,384 pairs take 10 ms in place of 50."""


def vector_states(vectors_ND: Tensor) -> States:
    """States that are unit vectors alone: one token of width 0 each."""
    return States.of_full(vectors_ND.new_empty(len(vectors_ND), 1, 0), vectors_ND)


def pair_products(images_ID: Tensor, texts_TD: Tensor, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
    """Inner products of P pairs of vectors, given as positions; float32, also under autocast.

    >>> pair_products(torch.eye(2), torch.tensor([[3.0, 4.0]]), torch.tensor([1, 0]), torch.tensor([0, 0]))
    tensor([4., 3.])
    """
    image_ix_P = image_ix_P.to(images_ID.device, non_blocking=True)
    text_ix_P = text_ix_P.to(images_ID.device, non_blocking=True)
    if len(images_ID) * len(texts_TD) <= DENSE_FACTOR * len(image_ix_P):
        with torch.autocast(images_ID.device.type, enabled=False):
            all_IT = images_ID @ texts_TD.T
        return all_IT.flatten().index_select(0, image_ix_P * len(texts_TD) + text_ix_P)
    products_P = images_ID.new_empty(len(image_ix_P))
    step = PAIRS_AT_A_TIME if images_ID.device.type == "cpu" else max(1, len(image_ix_P))
    for part, image_ix, text_ix in zip(
        products_P.split(step), image_ix_P.split(step), text_ix_P.split(step), strict=True
    ):
        # Both in place: new tensors of this size would cost as much as the sums.
        torch.sum(images_ID.index_select(0, image_ix).mul_(texts_TD.index_select(0, text_ix)), dim=1, out=part)
    return products_P


class DualScorer(FusionScorer):
    """A dual encoder as a fusion scorer whose logit is the scaled cosine of two vectors.

    Its states are the unit vectors. Its digest is the dual encoder's own, because both give the same scores. What is
    saved is the dual encoder.
    """

    network: DualEncoder
    pairs_per_batch = 65_536
    keeps_states = True

    def __init__(self, dual: DualEncoder) -> None:
        """The dual encoder is shared, not copied. It may have more parameters than its scores need, such as a
        calibration."""
        super().__init__(dual, dual.preprocess, dual.unused_keys)

    @property
    def dual(self) -> DualEncoder:
        """The dual encoder."""
        return self.network

    @property
    def digest(self) -> str:
        """The dual encoder's."""
        return self.dual.digest

    @property
    def encoders(self) -> Encoders | None:
        """The dual encoder's."""
        return self.dual.encoders

    @property
    def settings(self) -> Table:
        """The dual encoder's."""
        return self.dual.settings

    def encode_images(self, images: ImageBatch | States) -> States:
        """The unit vectors of I images, of their features, or of images that are encoded already."""
        if isinstance(images, States) and images.vectors is not None:
            return images
        # In half precision, cosines of close candidates would be equal.
        return vector_states(self.dual.embed_images(images).float())

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The unit vectors of T captions, of their features, or of captions that are encoded already."""
        if isinstance(texts, States) and texts.vectors is not None:
            return texts
        return vector_states(self.dual.embed_texts(texts).float())

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Scaled cosines of P pairs, float32, also under autocast."""
        assert images.vectors is not None
        assert texts.vectors is not None
        logits_P = self.dual.logit_scale * pair_products(images.vectors, texts.vectors, image_ix_P, text_ix_P)
        if self.dual.logit_bias is not None:
            logits_P = logits_P + self.dual.logit_bias
        return logits_P.detach()

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write the dual encoder's own files."""
        self.dual.save_network(folder, half=half)
