"""Dual encoders with two towers, parts of which can be trained."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

from torch import nn

from dcdctl.core.models.dual import DualEncoder
from dcdctl.core.models.lora import add_adapters
from dcdctl.core.models.networks.towers import Tower, TrainedParts, freeze_others, set_depthwise_in_float32


class TowerDual(DualEncoder):
    """A dual encoder whose `towers` are networks of transformers or timm."""

    def __init__(self, network: nn.Module, preprocess: Any, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__(network, preprocess, unused_keys)
        self._parts = TrainedParts()
        # PEFT's model around the network, while it has adapters. In a tuple, because a module lists the parameters of
        # the modules among its attributes, here a second time.
        self._adapted: tuple[Any, ...] = ()

    @property
    @abstractmethod
    def towers(self) -> tuple[Tower, Tower]:
        """The image and the text encoder."""

    def set_trained(self, parts: TrainedParts) -> None:
        """Let training change only these parts of both towers."""
        if parts.which == "lora":
            self._adapted = (add_adapters(self.network, self.towers, parts),)
        self._parts = parts
        freeze_others(self, self.towers, parts)
        set_depthwise_in_float32(self)
        self.train(self.training)

    def merge_adapters(self) -> None:
        """Add the adapters to the weights that they adapt, and remove them."""
        for adapted in self._adapted:
            self.network = adapted.merge_and_unload()
        self._adapted = ()

    @property
    def digest(self) -> str:
        """SHA-256 of weights and settings; with adapters, that of the model that they are merged into."""
        if not self._adapted:
            return super().digest
        merged = copy.deepcopy(self)
        merged.merge_adapters()
        return merged.digest
