"""Features of encoders whose last layers are trained: the states below these layers, which no training changes.

A step then reads no image, and computes only the trained layers, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models.fingerprint import digest_of, text_settings
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.networks.backbones import TIMM, EncoderPair, config_tables, spec_of
from dcdctl.core.models.networks.towers import Tower


@dataclass(frozen=True)
class LowerLayers:
    """The `encoders` of a dual encoder over two encoders of which the last layers are trained.

    A feature of an image is its whole state as one token, I x 1 x W: W is the size of a feature map, or that of all
    tokens. Features of captions are T x L x W; without `trains_texts` those of the whole encoder.
    """

    pair: EncoderPair
    towers: tuple[Tower, Tower]
    num_trained: int
    """Layers at the end of each encoder that are trained, with what follows them; fewer than it has."""
    trains_texts: bool = True
    is_frozen = True

    @property
    def pools_texts(self) -> bool:
        """As of the pair."""
        return self.pair.pools_texts

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the features. The trained layers do not count, so a run shares the features of
        its start."""
        both = nn.ModuleDict({"vision": self.pair.vision, "text": self.pair.text})
        sides = {"vision": 0, "text": 1} if self.trains_texts else {"vision": 0}
        above = tuple(f"{name}.{key}" for name, side in sides.items() for key in self._above(side))
        tables = config_tables(self.pair.vision, self.pair.text)
        return digest_of(
            both, config=tables, preprocess=self.pair.preprocess.settings, settings=self._settings, leave_out=above
        )

    @property
    def text_digest(self) -> str:
        """SHA-256 of all that decides the features of a caption."""
        if not self.trains_texts:
            return self.pair.text_digest
        table = {"text": config_tables(self.pair.vision, self.pair.text)["text"]}
        return digest_of(
            self.pair.text,
            config=table,
            preprocess=text_settings(self.pair.preprocess.settings),
            settings=self._settings,
            leave_out=tuple(self._above(1)),
        )

    @property
    def text_width(self) -> int:
        """Width of the text features."""
        return self.pair.text_width

    def freeze(self) -> None:
        """Does nothing: `set_trained` has frozen what lies below."""

    def image_features(self, images: ImageBatch) -> States:
        """The states of I images below the trained layers, I x 1 x W. ModelError if the encoder's output also reads a
        layer below them (`model.vision_levels`)."""
        self._check_levels()
        states = self._captured(0, lambda: self.pair.image_features(images))
        return States.of_full(states.flatten(1)[:, None])

    def text_features(self, texts: TextBatch) -> States:
        """The states of T captions below the trained layers, T x L x W, or the features of the pair."""
        if not self.trains_texts:
            return self.pair.text_features(texts)
        return texts.states(self._captured(1, lambda: self.pair.text_features(texts)))

    def image_output(self, features: States) -> States:
        """The features of the whole image encoder, I x V x W, from those below the trained layers."""
        state = features.tokens.float()[:, 0].unflatten(1, self._state_shape)
        if state.ndim == 4:
            # As the convolutions that follow compute it (`backbones.in_kernel_order`).
            state = state.contiguous(memory_format=torch.channels_last)
        # One image is enough for what lies below, unless its size gives the stages of `model.vision_levels` their form.
        count = len(state) if spec_of(self.pair.vision.config).levels else 1
        with self._replaced(0, state):
            return self.pair.image_features(self._blank_images(count, state.device))

    def text_output(self, features: States) -> States:
        """The features of the whole text encoder, T x L x W, from those below the trained layers."""
        if not self.trains_texts:
            return features
        mask = features.mask.long()
        # Only the shape and the mask count: what is computed of these ids is replaced.
        with self._replaced(1, features.tokens.float()):
            return self.pair.text_features(TextBatch(torch.zeros_like(mask), mask))

    @property
    def _settings(self) -> dict[str, Any]:
        texts = {} if self.trains_texts else {"texts": "whole"}
        return {"features": "lower layers", "trained_layers": self.num_trained, **texts}

    def _num_lower(self, side: int) -> int:
        return len(self.towers[side].layers[1]) - self.num_trained

    def _above(self, side: int) -> list[str]:
        """The names of the tensors of an encoder that its training changes, or that follow what it changes."""
        tower = self.towers[side]
        first = f"{tower.layers[0].removeprefix(f'{tower.name}.')}.{self._num_lower(side)}."
        # Tensors have the order in which they compute: embeddings, layers, final norms.
        names = list(tower.module.state_dict())
        below = set(takewhile(lambda name: not name.startswith(first), names))
        return [name for name in names if name not in below]

    def _check_levels(self) -> None:
        """ModelError if the encoder's output also reads a layer whose output is not stored."""
        encoder = self.pair.vision
        if not (levels := spec_of(encoder.config).levels):
            return
        num_layers, lowest = len(self.towers[0].layers[1]), -1
        if encoder.config.model_type == TIMM:
            modules = [encoder.timm_model.feature_info[level]["module"] for level in levels]
            lowest = min(int(name.partition(".")[2] or -1) for name in modules)
        if lowest < self._num_lower(0) - 1:
            problem = f"model.vision_levels {list(levels)} reads layers of the image encoder that are not stored"
            fewer = f"set model.trained_layers to {num_layers - lowest - 1} or more, or " if lowest >= 0 else ""
            raise ModelError(problem, hint=f"{fewer}leave --features out")

    def _captured(self, side: int, encode: Callable[[], object]) -> Tensor:
        """What the last layer below the trained ones returns while an encoder computes."""
        outputs: list[Any] = []
        tower = self.towers[side]
        layer = tower.layers[1][self._num_lower(side) - 1]
        # timm calls the blocks of a stage one by one where activations are computed again, and not the stage.
        last = layer[-1] if isinstance(layer, nn.Sequential) else layer
        with last.register_forward_hook(lambda _module, _arguments, output: outputs.append(output)):
            encode()
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            kind = tower.module.config.model_type
            raise ModelError(
                f"a layer of the {tower.side} encoder ({kind}) does not return one state", hint="leave --features out"
            )
        return outputs[0]

    def _blank_images(self, count: int, device: torch.device) -> ImageBatch:
        size = self.pair.preprocess.image_size_px
        return ImageBatch(torch.zeros(1, 3, size, size, device=device).expand(count, -1, -1, -1))

    @cached_property
    def _state_shape(self) -> torch.Size:
        """The shape of one image's state below the trained layers."""
        device = next(self.pair.vision.parameters()).device
        with torch.no_grad():
            return self._captured(0, lambda: self.pair.image_features(self._blank_images(1, device))).shape[1:]

    @contextmanager
    def _replaced(self, side: int, state: Tensor) -> Iterator[None]:
        """An encoder whose trained layers are given this state, and whose other layers compute nothing."""
        layers, count = self.towers[side].layers[1], self._num_lower(side)
        lower = [layers[number] for number in range(count)]
        try:
            for number, layer in enumerate(lower):
                giving = _Giving(state)
                layers[number] = nn.Sequential(giving) if isinstance(layer, nn.Sequential) else giving
            yield
        finally:
            for number, layer in enumerate(lower):
                layers[number] = layer


class _Giving(nn.Module):
    """A layer that returns a state whatever it is given."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state

    def forward(self, *_arguments: object, **_settings: object) -> Tensor:
        return self.state
