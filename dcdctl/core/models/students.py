"""Students made from their teachers, and from nothing."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from torch import nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models.dual import DualModel, DualSize, new_dual
from dcdctl.core.models.meter import CoAttentionScorer
from dcdctl.core.models.store import FusionModel
from dcdctl.core.models.tokenizer import word_piece
from dcdctl.core.models.vilt import ViltScorer


def fusion_student(teacher: FusionModel, layers: Sequence[int]) -> FusionModel:
    """A scorer with only these of the teacher's fusion layers, the weights copied, all of it trainable.

    Of a co-attention teacher only the layers, the poolers and the head are its own, as in DCD: both encoders, the transforms and the
    modality's vectors are the teacher's very tensors, and frozen from now on.
    """
    wanted = _checked_layers(layers, len(teacher.layers))
    if isinstance(teacher, CoAttentionScorer):
        return _co_attention_student(teacher, wanted)
    network = copy.deepcopy(teacher.network)
    network.vilt.encoder.layer = nn.ModuleList([network.vilt.encoder.layer[index] for index in wanted])
    network.config.num_hidden_layers = len(wanted)
    network.requires_grad_(True)
    return ViltScorer(network, teacher.preprocess)


def _co_attention_student(teacher: CoAttentionScorer, layers: list[int]) -> CoAttentionScorer:
    whole = teacher.network
    shared = {id(module): module for module in whole.shared_modules}
    # What stands in the memo is taken as copied already.
    network = copy.deepcopy(whole, memo=dict(shared))
    network.requires_grad_(True)
    for module in shared.values():
        module.requires_grad_(False)
    network.text_layers, network.image_layers = (
        nn.ModuleList([stream[index] for index in layers]) for stream in (network.text_layers, network.image_layers)
    )
    network.size = dataclasses.replace(whole.size, num_layers=len(layers))
    return CoAttentionScorer(network, teacher.preprocess)


def _checked_layers(layers: Sequence[int], count: int) -> list[int]:
    wanted = list(layers)
    if not wanted:
        raise ModelError("a student needs at least one layer", hint=f"the teacher has layers 0 to {count - 1}")
    strange = [index for index in wanted if not 0 <= index < count]
    if strange:
        raise ModelError(f"the teacher has no layer {strange[0]}", hint=f"it has layers 0 to {count - 1}")
    if any(later <= earlier for earlier, later in itertools.pairwise(wanted)):
        raise ModelError(f"student layers must ascend without repeats, got {wanted}")
    return wanted


def every_other(num_layers: int) -> list[int]:
    """Half of the layers, evenly spread, the first and the last among them: what DCD takes of 6, and DistilBERT of 12.

    >>> every_other(6)
    [0, 3, 5]
    >>> every_other(12)
    [0, 2, 4, 7, 9, 11]
    """
    count = (num_layers + 1) // 2
    return [int(index * (num_layers - 1) / max(count - 1, 1) + 0.5) for index in range(count)]


def dual_student(size: DualSize, captions: Iterable[str], *, vocab_size: int = 2000, seed: int = 0) -> DualModel:
    """An untrained dual encoder with a tokenizer trained on these captions."""
    return new_dual(size, word_piece(captions, vocab_size), seed)
