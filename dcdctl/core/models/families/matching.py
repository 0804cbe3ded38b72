"""What BLIP, BLIP-2 and BridgeTower share: networks of transformers with an image-text matching head of two rows.

The logit is that of "match" minus that of "no match", the log-odds of the head's probability of a match. Rows, sources:
BLIP's and BLIP-2's training labels a true pair 1 and a drawn one 0 (`itm_labels` in salesforce/BLIP
models/blip_retrieval.py and in salesforce/LAVIS blip2_qformer.py); so does BridgeTower's (`compute_itm` in
microsoft/BridgeTower src/modules/objectives.py). Their retrieval scripts rank by row 1 alone, and those of BLIP and
BLIP-2 add the cosine of the contrastive heads, which is not part of the logit here.

Shape letters: I images, T texts, B aligned pairs, P pairs, L text tokens, M image tokens, N tokens, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dcdctl.core.errors import ModelError
from dcdctl.core.models.checkpoint import check_complete
from dcdctl.core.models.fusion import FusionScorer
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch, unencoded
from dcdctl.core.models.networks.attention import attend_and_project, heads_of, set_hidden_dropout
from dcdctl.core.models.overrides import read_overrides
from dcdctl.core.models.preprocess import Preprocess, load_image_processor
from dcdctl.core.models.protocols import ExportSpec, Table
from dcdctl.core.models.references.loading import FOLDER_HINT, hub_errors
from dcdctl.core.models.tokenizer import check_text_length, check_vocabulary, load_own_tokenizer, num_text_positions

NO_MATCH, MATCH = 0, 1
"""Rows of the heads."""


class MatchingScorer(FusionScorer):
    """Scores image-caption pairs with a matching head of transformers; a family names its classes, its head and its
    unused parts."""

    # Keys and values of an image, and BridgeTower's upper encoder layers, are shared by the pairs of a batch.
    groups_by_image = True
    network: Any
    preprocess: Preprocess
    family: ClassVar[str]
    """As messages name it."""
    network_class: ClassVar[type[PreTrainedModel]]
    """The class of transformers that has the head."""
    processor_class: ClassVar[str]
    output: ClassVar[str] = "logits"
    """The field of the network's output that holds the rows of the head."""
    options: ClassVar[Mapping[str, bool]] = {}
    """Arguments of the network's forward pass that ask for the head."""
    layers_name: ClassVar[str]
    """The module that lists the fusion layers."""
    head: ClassVar[str]
    """The module of the head in the network."""
    text_part: ClassVar[str] = "text_config"
    """The part of the configuration that describes the text encoder and the fusion layers."""
    unread: ClassVar[tuple[str, ...]]
    """Modules of the network that no score depends on, such as contrastive heads. They are never trained."""
    max_text_len: ClassVar[int]
    """Default number of tokens of a caption."""
    example: ClassVar[str]
    """A model of the Hub that has the head."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__(network, preprocess, unused_keys)
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters, or none, but never the parts that no score depends on: they have no gradient."""
        super().requires_grad_(requires_grad)
        for name in self.unread:
            self.network.get_submodule(name).requires_grad_(False)
        return self

    @property
    def layers(self) -> nn.ModuleList:
        """The fusion layers; in BridgeTower their text side."""
        layers = self.network.get_submodule(self.layers_name)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        vision = getattr(self.network, "vision_model", None)
        return () if vision is None else (vision,)

    def _image_tokens(self, pixel_values: Tensor) -> Tensor:
        """What the fusion reads of images, I x M x D; all tokens are real."""
        return self.network.vision_model(pixel_values=pixel_values).last_hidden_state

    @abstractmethod
    def _text_tokens(self, texts: TextBatch) -> Tensor:
        """What the fusion reads of captions, T x L x D."""

    def encode_images(self, images: ImageBatch | States) -> States:
        """The part of scoring that depends on images alone. ValueError for features."""
        return States.of_full(self._image_tokens(unencoded(images).pixel_values))

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The part of scoring that depends on captions alone. ValueError for features."""
        texts = unencoded(texts)
        return texts.states(self._text_tokens(texts))

    def set_dropout(self, probability: float) -> None:
        """Set the hidden dropout of the text encoder and the fusion layers; vision encoders keep their
        own."""
        set_hidden_dropout(self.network, probability, self.text_part)

    def export_spec(self) -> ExportSpec:
        """A class of transformers."""
        return ExportSpec(
            model_class=self.network_class.__name__,
            processor_class=self.processor_class,
            output=self.output,
            is_two_rows=True,
            options=self.options,
        )

    def match(self, features_PD: Tensor) -> Tensor:
        """Logits of P pairs from the inputs of the head."""
        head: nn.Linear = self.network.get_submodule(self.head)
        # Autocast would round the logit itself: to one of 128 steps between 8 and 16 in bfloat16, so that close
        # candidates tie.
        with torch.autocast(features_PD.device.type, enabled=False):
            rows_P2 = head(features_PD.to(head.weight.dtype))
            return rows_P2[:, MATCH] - rows_P2[:, NO_MATCH]

    @classmethod
    def load(cls, ref: str, table: Table, saved: Table | None) -> Self:
        """The scorer of a transformers folder or Hub id; `table` are the user's overrides, `saved` is dcdctl.json if
        the folder has one."""
        overrides = read_overrides(table)
        with hub_errors(ref, hint=FOLDER_HINT):
            config = cls.network_class.config_class.from_pretrained(ref)
            cls._check_config(config, ref)
            # A .bin file is read without running its code, whatever the default of transformers is.
            network, report = cls.network_class.from_pretrained(
                ref, config=config, dtype=torch.float32, output_loading_info=True, weights_only=True
            )
        if any(name.startswith(f"{cls.head}.") for name in report["missing_keys"]):
            raise cls._no_head(config, ref)
        check_complete(ref, report["missing_keys"], f"a {cls.family} scorer")
        tokenizer = load_own_tokenizer(ref, config, overrides.tokenizer)
        cls._check_tokenizer(tokenizer, config)
        num_positions = num_text_positions(getattr(config, cls.text_part))
        length = overrides.max_text_len or (saved["max_text_len"] if saved else min(cls.max_text_len, num_positions))
        preprocess = Preprocess(
            tokenizer=tokenizer,
            image_processor=cls._checked_processor(load_image_processor(ref), config, ref),
            max_text_len=check_text_length(length, num_positions),
        )
        return cls(network, preprocess, tuple(sorted(report["unexpected_keys"])))

    @classmethod
    def _check_config(cls, config: PreTrainedConfig, ref: str) -> None:
        """ModelError, before any weights are read, for a configuration that the family cannot compute."""

    @classmethod
    def _no_head(cls, config: PreTrainedConfig, ref: str) -> ModelError:
        architecture = (config.architectures or [f"{cls.family} of unknown class"])[0]
        hint = f"use a {cls.network_class.__name__}, such as {cls.example}"
        return ModelError(f"{ref} is a {architecture}, which has no image-text matching head", hint=hint)

    @classmethod
    def _check_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
        check_vocabulary(tokenizer, getattr(config, cls.text_part).vocab_size)

    @classmethod
    def _checked_processor(
        cls, processor: BaseImageProcessor, config: PreTrainedConfig, ref: str
    ) -> BaseImageProcessor:
        """The image processor; ModelError if it gives images of another size than the network takes."""
        expected = config.vision_config.image_size
        size = dict(processor.size)
        if (size.get("height"), size.get("width")) != (expected, expected):
            given = {name: value for name, value in size.items() if value}
            raise ModelError(
                f"{ref}: the image processor resizes to {given}, but the vision encoder takes {expected} x "
                f"{expected} pixels",
                hint="restore preprocessor_config.json",
            )
        return processor


def finish(output: Any, projected_PND: Tensor, tokens_PND: Tensor) -> Tensor:
    """Dropout of the projected output, and LayerNorm of its sum with the first tokens of the input."""
    return output.LayerNorm(output.dropout(projected_PND) + tokens_PND[:, : projected_PND.shape[1]])


def self_attend(
    attention: nn.Module, output: Any, tokens_PND: Tensor, mask_PN: Tensor | None, num_queries: int | None = None
) -> Tensor:
    """The first `num_queries` tokens after self-attention, with residual and LayerNorm."""
    projected_PND = attend_and_project(
        heads_of(attention), output.dense, tokens_PND, source_PMD=tokens_PND, mask_PM=mask_PN, num_queries=num_queries
    )
    return finish(output, projected_PND, tokens_PND)
