"""What scores pairs of encoded images and captions, and its first kind, the fusion scorer; a family (`vilt`,
`coattention_scorer`) adds its network. The second kind is in `late`.

Shape letters: I images, T texts, P pairs, R x C pairs of a training step, B aligned pairs.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models.inputs import ImageBatch, PairBatch, States, TextBatch
from dcdctl.core.models.model import RetrievalModel
from dcdctl.core.models.networks.attention import enable_checkpointing


class PairModel(RetrievalModel):
    """A model that scores pairs of an image and a caption, each encoded before: a raw logit, higher is better."""

    pairs_per_batch = 256
    """Pairs in one call of `score_pairs`, unless the user sets a batch size."""
    has_one_vector: Literal[False] = False
    """Whether an item is one vector, and a score the cosine of two, as of a dual encoder."""
    keeps_states: bool = False
    """Whether states are small enough to keep for a whole corpus, such as unit vectors; then each item is encoded
    once for all its pairs."""
    keeps_tokens = False
    """Whether these states have a vector for each token, and not one alone."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.network).__name__})"

    @abstractmethod
    def encode_images(self, images: ImageBatch | States) -> States:
        """The part of scoring that depends on I images alone. A scorer with `encoders` takes their features as well."""

    @abstractmethod
    def encode_texts(self, texts: TextBatch | States) -> States:
        """The part of scoring that depends on T captions alone. A scorer with `encoders` takes their features as
        well."""

    @abstractmethod
    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""

    def _encode_images(self, images: ImageBatch) -> States:
        return self.encode_images(images)

    def _encode_texts(self, texts: TextBatch) -> States:
        return self.encode_texts(texts)

    def _all_logits(self, images: States, texts: States) -> Tensor:
        image_ix_P = torch.arange(len(images)).repeat_interleave(len(texts))
        text_ix_P = torch.arange(len(texts)).repeat(len(images))
        parts = zip(image_ix_P.split(self.pairs_per_batch), text_ix_P.split(self.pairs_per_batch), strict=True)
        logits_P = torch.cat([self.score_pairs(images, texts, image_ix, text_ix) for image_ix, text_ix in parts])
        return logits_P.view(len(images), len(texts))

    def forward(
        self, images: ImageBatch | States, texts: TextBatch | States, image_ix_P: Tensor, text_ix_P: Tensor
    ) -> Tensor:
        """Logits of P pairs of a batch."""
        return self.score_pairs(self.encode_images(images), self.encode_texts(texts), image_ix_P, text_ix_P)

    def outputs(self, pairs: PairBatch) -> tuple[Tensor, ...]:
        """The logits of the pairs, R x C, float32."""
        image_ix_RC, text_ix_RC = pairs.indices_on_cpu
        logits_P = self(pairs.images, pairs.texts, image_ix_RC.flatten(), text_ix_RC.flatten())
        return (logits_P.view(pairs.image_ix_RC.shape).float(),)

    def logits(self, outputs: Sequence[Tensor], pairs: PairBatch) -> tuple[Tensor, Tensor | None]:
        """The logits of the pairs; those of all images with all texts would each need a pass through the fusion
        layers."""
        return outputs[0], None


class FusionScorer(PairModel):
    """A cross-encoder: it reads an image and a caption together, in fusion layers."""

    kind: Literal["fusion"] = "fusion"
    groups_by_image = False
    """Whether pairs of one image cost less in one batch. Callers then score them one after another, and few images at a
    time."""

    @property
    def layers(self) -> Sequence[Any] | nn.ModuleList:
        """The fusion layers that a student may take over; none unless a family has them."""
        return ()

    @property
    def num_layers(self) -> int:
        """Number of fusion layers."""
        return len(self.layers)

    def student(self, layers: Sequence[int]) -> Self:
        """A scorer with only these fusion layers, the weights copied, trainable. ModelError unless the layers exist and
        ascend, and for a scorer that has no such student."""
        raise self.without_student()

    def checked_layers(self, layers: Sequence[int]) -> list[int]:
        """The fusion layers of a student. ModelError unless the layers exist and ascend."""
        chosen = list(layers)
        ascends = all(earlier < later for earlier, later in itertools.pairwise(chosen))
        if not (chosen and ascends and 0 <= chosen[0] <= chosen[-1] < self.num_layers):
            raise ModelError(
                f"the layers of a student are {chosen}, expected some of 0 to {self.num_layers - 1}, ascending and "
                "each once"
            )
        return chosen

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass: those of the fusion layers, and of trained encoders that
        support it."""
        if not self.layers:
            raise self.not_trained()
        # The result does not matter: the fusion layers can always be computed again.
        enable_checkpointing(self._encoder_modules)
        self.network.recomputes = True
