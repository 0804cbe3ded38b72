"""What all fusion scorers share; a family (`vilt`, `coattention_scorer`) adds its network.

Shape letters: P pairs, R x C pairs of a training step.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor, nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models.fingerprint import digest_of
from dcdctl.core.models.inputs import ImageBatch, Pairs, States, TextBatch
from dcdctl.core.models.networks.attention import enable_checkpointing
from dcdctl.core.models.preprocess import Preprocess
from dcdctl.core.models.protocols import Encoders, ExportSpec


class FusionModel(nn.Module, ABC):
    """Base of the fusion scorers; created in eval mode. `unused_keys` are the entries of a checkpoint that scoring does
    not need."""

    kind: Literal["fusion"] = "fusion"
    pairs_per_batch = 256
    groups_by_image = False
    keeps_states = False
    network: nn.Module

    def __init__(self, network: nn.Module, preprocess: Preprocess, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess
        self.unused_keys = unused_keys
        self.eval()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.network).__name__})"

    @abstractmethod
    def encode_images(self, images: ImageBatch | States) -> States:
        """See `FusionScorer.encode_images`."""

    @abstractmethod
    def encode_texts(self, texts: TextBatch | States) -> States:
        """See `FusionScorer.encode_texts`."""

    @abstractmethod
    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """See `FusionScorer.score_pairs`."""

    @abstractmethod
    def score(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, pixel_mask: Tensor | None = None
    ) -> Tensor:
        """See `FusionScorer.score`."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """See `FusionScorer.settings`."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """All settings of the network, as config.json holds them."""

    @abstractmethod
    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """See `FusionScorer.save_network`."""

    @property
    def digest(self) -> str:
        """See `FusionScorer.digest`."""
        return digest_of(self.network, config=self.config, preprocess=self.preprocess.settings, settings=self.settings)

    @property
    def encoders(self) -> Encoders | None:
        """See `FusionScorer.encoders`; None unless a family has them."""
        return None

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of fusion layers."""

    @abstractmethod
    def _with_layers(self, layers: list[int]) -> Self:
        """The student of `student`, from checked layers."""

    def student(self, layers: Sequence[int]) -> Self:
        """A scorer with only these fusion layers, the weights copied, trainable. ModelError unless the layers exist and
        ascend.

        The student of a co-attention scorer owns its layers, poolers and head, as in DCD. Both encoders, the transforms
        and the modality vectors are the teacher's own tensors, and are frozen from now on.
        """
        return self._with_layers(_checked_layers(layers, self.num_layers))

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        """Encoders of other libraries in the network; none unless a family has them."""
        return ()

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass: those of the fusion layers, and of trained encoders that
        support it."""
        # The result does not matter: the fusion layers can always be computed again.
        enable_checkpointing(self._encoder_modules)
        self.network.recomputes = True  # type: ignore[assignment]

    @abstractmethod
    def set_dropout(self, probability: float) -> None:
        """See `FusionScorer.set_dropout`."""

    def export_spec(self) -> ExportSpec:
        """No class but ours computes this model, unless a family says otherwise."""
        return ExportSpec()

    def export_copy(self) -> Self:
        """The same network, with preprocessing files that need no dcdctl."""
        return type(self)(self.network, self.preprocess.self_contained())

    def forward(
        self, images: ImageBatch | States, texts: TextBatch | States, image_ix_P: Tensor, text_ix_P: Tensor
    ) -> Tensor:
        """Logits of P pairs of a batch."""
        return self.score_pairs(self.encode_images(images), self.encode_texts(texts), image_ix_P, text_ix_P)

    def outputs(self, pairs: Pairs) -> tuple[Tensor, ...]:
        """The logits of the pairs, R x C, float32."""
        image_ix_RC, text_ix_RC = pairs.indices_on_cpu
        logits_P = self(pairs.images, pairs.texts, image_ix_RC.flatten(), text_ix_RC.flatten())
        return (logits_P.view(pairs.image_ix_RC.shape).float(),)

    def logits(self, outputs: Sequence[Tensor], pairs: Pairs) -> tuple[Tensor, None]:
        """The logits of the pairs; those of all images with all texts would each need a pass through the fusion
        layers."""
        return outputs[0], None

    def calibrate(self, logits: Tensor) -> Tensor:
        """The logits, unchanged: a fusion student learns the teacher's scale itself."""
        return logits


def _checked_layers(layers: Sequence[int], num_layers: int) -> list[int]:
    chosen = list(layers)
    if not chosen:
        raise ModelError("a student needs at least one layer", hint=f"the teacher has layers 0 to {num_layers - 1}")
    unknown = [index for index in chosen if not 0 <= index < num_layers]
    if unknown:
        raise ModelError(f"the teacher has no layer {unknown[0]}", hint=f"it has layers 0 to {num_layers - 1}")
    if any(later <= earlier for earlier, later in itertools.pairwise(chosen)):
        raise ModelError(f"student layers must ascend without repeats, got {chosen}")
    return chosen
