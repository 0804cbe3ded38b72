"""Scores of many captions of one image by a causal vision-language model, whose prompt up to the caption is computed
once.

A causal model computes each token from the tokens before it. Where the image comes first in the prompt, the keys and
values of the image, and of the template around it, are equal for all captions. They are computed once, and each caption
adds only its own few tokens.

Token ids come from the cross-encoder's own preprocessing: one pair is tokenized with the image, each caption with a
small stand-in image. An image only changes the number of image tokens, which is checked for each image. So the
processor resizes an image once.

Shape letters: B captions, S tokens of a suffix, P tokens of the prefix.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dcdctl.core.artifacts import Document

Pair = tuple[Any, Any]
Ids = tuple[int, ...]
CAUSAL = ("any-to-any", "text-generation")
"""Tasks of a Transformer module of sentence-transformers whose last token gives the score."""
STAND_IN = (64, 64)
"""Width and height of the stand-in image; a processor may enlarge it."""
PROBES = ("a dog", "Two 3")
"""Captions without a common first letter: what their prompts have in common after the image belongs to the template."""
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.03}
"""Largest difference of the first scores from those of the plain way, relative to max(1, |logit|); half precision
rounds both logits."""
MAX_CAPTIONS = 20_000
"""Captions whose token ids are kept in memory: in a cache, a caption meets many images."""


class SharingError(Exception):
    """A model, or what its processor makes of an image, is not of the known shape. The message says why."""


class _PrefixLayer(DynamicLayer):
    """Keys and values of a prefix, put before those of any number of suffixes; it keeps none of the suffixes."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys = self.keys.expand(len(key_states), -1, -1, -1)
        values = self.values.expand(len(value_states), -1, -1, -1)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class SharedPrefix:
    """Scores captions of one image at a time; the prefix of the last image stays in memory."""

    def __init__(self, encoder: Any, to_pair: Callable[[Image.Image, str], Pair], prompt: str) -> None:
        """`encoder` is a CrossEncoder; `to_pair` puts the image first. SharingError unless it is a causal model of a
        known shape."""
        self._encoder, self._to_pair, self._prompt = encoder, to_pair, prompt
        transformer = encoder[0]
        if getattr(transformer, "transformer_task", None) not in CAUSAL:
            raise SharingError("it is no causal language model")
        token = getattr(transformer.processor, "image_token_id", None)
        if token is None:
            raise SharingError("its processor has no image token")
        self._image_token: int = token
        parameters = inspect.signature(transformer.model.forward).parameters
        # The name before transformers 5.24.
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._max_length: int = encoder.max_seq_length
        self._stand_in = Image.new("RGB", STAND_IN)
        self._prompts: dict[str, tuple[Ids, Ids]] = {}
        (self._head, first), (_, second) = (self._prompt_of(probe) for probe in PROBES)
        both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
        self._common = tuple(token for token, _ in both)
        self._key: object = None
        self._cache = DynamicCache()
        self._next_position = torch.tensor(0)

    def fits(self, caption: str) -> bool:
        """Whether the prompt of a caption begins as that of any other; one that starts with a space may merge with the
        template."""
        (head, tail), length = self._prompt_of(caption), len(self._common)
        # A prompt that was cut has lost its end.
        is_whole = len(head) + len(tail) < self._max_length
        return is_whole and head == self._head and tail[:length] == self._common and len(tail) > length

    def scores(self, image: Image.Image, captions: Sequence[str]) -> Tensor:
        """Raw logits of B captions that fit, with one image, float32. SharingError if the image's prompt is not of the
        expected shape."""
        suffixes = [self._prompt_of(caption)[1][len(self._common) :] for caption in captions]
        if not self.has_prefix_of(image):
            self._compute(image, captions[0])
        if self._cache.get_seq_length() + max(map(len, suffixes)) > self._max_length:
            raise SharingError("a caption and its image have more tokens than the model reads")
        return self._continue(suffixes)

    def has_prefix_of(self, image: Image.Image) -> bool:
        """Whether the prefix of this image is in memory."""
        return self._key == self._key_of(image)

    def _prompt_of(self, caption: str) -> tuple[Ids, Ids]:
        if caption not in self._prompts:
            if len(self._prompts) >= MAX_CAPTIONS:
                self._prompts.clear()
            self._prompts[caption] = self._split(self._preprocess(self._stand_in, caption))
        return self._prompts[caption]

    def _preprocess(self, image: Image.Image, caption: str) -> Document:
        features: Document = self._encoder.preprocess([self._to_pair(image, caption)], prompt=self._prompt)
        return features

    def _split(self, features: Document) -> tuple[Ids, Ids]:
        """The token ids of a pair, split behind the last image token."""
        ids = features["input_ids"][0].tolist()
        if self._image_token not in ids:
            raise SharingError("its prompts have no image token")
        end = len(ids) - ids[::-1].index(self._image_token)
        return tuple(ids[:end]), tuple(ids[end:])

    def _key_of(self, image: Image.Image) -> object:
        device = self._encoder.device
        cast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        return image.size, image.tobytes(), device, cast

    def _compute(self, image: Image.Image, caption: str) -> None:
        """Compute the prefix of an image, which replaces the last one."""
        # Emptied first, since two prefixes need not fit into memory.
        self._key, self._cache = None, DynamicCache()
        features = self._preprocess(image, caption)
        head, tail = self._split(features)
        expected_head, expected_tail = self._prompt_of(caption)
        words = [token for token in head if token != self._image_token]
        expected_words = [token for token in expected_head if token != self._image_token]
        if words != expected_words or tail != expected_tail:
            raise SharingError("an image changes more of the prompt than the number of its tokens")
        length, total = len(head) + len(self._common), len(head) + len(tail)
        for name, value in features.items():
            if isinstance(value, Tensor):
                per_token = value.ndim >= 2 and value.shape[:2] == (1, total)
                features[name] = (value[:, :length] if per_token else value).to(self._encoder.device)
        cache = DynamicCache(config=self._encoder[0].model.config)
        self._encoder[0](features | {self._cache_name: cache, "use_cache": True})
        if not all(type(layer) is DynamicLayer for layer in cache.layers) or cache.get_seq_length() != length:
            raise SharingError("its cache does not hold the keys and values of all tokens")
        # Models with rotary positions in three dimensions keep how far positions lag behind the count of tokens.
        kept = (getattr(module, "rope_deltas", None) for module in self._encoder.modules())
        deltas = [delta for delta in kept if delta is not None]
        # The rotary position after the prefix: an image advances positions in two dimensions by less than its tokens.
        position = length + (int(deltas[0].flatten()[0]) if deltas else 0)
        # Such models take three positions of each token: in time, height and width.
        self._next_position = torch.full((3, 1, 1) if deltas else (), position)
        cache.layers = [_PrefixLayer(layer) for layer in cache.layers]
        self._key, self._cache = self._key_of(image), cache

    def _continue(self, suffixes: Sequence[Ids]) -> Tensor:
        """The scores of the suffixes, padded at the left, so that the last position is the last token of each."""
        device, longest = self._encoder.device, max(map(len, suffixes))
        padding_B = torch.tensor([longest - len(suffix) for suffix in suffixes])
        # Any id does, because padding is masked.
        pad = self._encoder[0].tokenizer.pad_token_id or 0
        ids_BS = torch.tensor([[pad] * (longest - len(suffix)) + list(suffix) for suffix in suffixes])
        column_S = torch.arange(longest)
        # Padding is masked, so its positions do not matter.
        position_BS = self._next_position + (column_S - padding_B[:, None]).clamp(min=0)
        past_BP = torch.ones(len(suffixes), self._cache.get_seq_length(), dtype=torch.int64)
        features = {
            "input_ids": ids_BS.to(device),
            "attention_mask": torch.cat([past_BP, (column_S >= padding_B[:, None]).long()], dim=1).to(device),
            "position_ids": position_BS.to(device),
            self._cache_name: self._cache,
            "use_cache": True,
            # Logits of every token would take more memory than the cache: the vocabulary is large.
            "logits_to_keep": 1,
            "modality": "message",
        }
        scores: Tensor = self._encoder(features)["scores"]
        return scores.float().flatten()
