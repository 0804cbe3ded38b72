"""What a model has besides its network: how images and captions become tensors, and what reads its saved folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:  # commands that only list or check models import this file, and torch takes a second
    from PIL import Image

    from dcdctl.core.models.inputs import ImageBatch, TextBatch

Table = Mapping[str, Any]
"""JSON-able settings by name, such as the content of a config.json or of dcdctl.json."""


class Preprocessor(Protocol):
    """Images and captions to tensors, as the model was trained on them."""

    @property
    def tokenizer(self) -> Any:
        """A tokenizer of transformers."""

    @property
    def image_processor(self) -> Any:
        """An image processor of transformers."""

    @property
    def max_text_len(self) -> int:
        """Maximum number of tokens of a caption, including special ones."""

    @property
    def image_size_px(self) -> int:
        """Shorter side of a preprocessed image."""

    @property
    def settings(self) -> Table:
        """Everything that decides the tensors of an image and a caption, JSON-able; part of a model's digest."""

    def images(self, images: Sequence[Image.Image]) -> ImageBatch:
        """One batch of images of any size and mode."""

    def texts(self, texts: Sequence[str]) -> TextBatch:
        """One batch of captions, cut to `max_text_len` tokens, padded to the longest."""

    def save(self, folder: Path) -> None:
        """Write the files of the tokenizer and the image processor."""

    def self_contained(self) -> Self:
        """A copy whose saved files also contain the steps that this class adds to the tokenizer and the image
        processor."""


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """What reads a saved model without dcdctl."""

    model_class: str = ""
    """The class of transformers, or of `code`, that reads the folder; empty if none does."""
    library: str = ""
    """The format of `dcdctl export` that the saved folder has by itself: open-clip or sentence-transformers."""
    processor_class: str = ""
    """The class of transformers that joins the tokenizer and the image processor."""
    output: str = "logits"
    """The field of a fusion model's output that holds its logits."""
    is_two_rows: bool = False
    """Whether that field has two numbers per pair, no match and match, whose difference is the logit."""
    options: Mapping[str, bool] = field(default_factory=dict)
    """Arguments of a fusion model's forward pass besides the batch."""
    code: str = ""
    """The module of dcdctl/assets that defines `model_class`; it is saved with the weights and needs
    `trust_remote_code`."""
    timm_config: Any = None
    """The configuration of a timm vision encoder, whose image transform is saved as code too."""
    padded_length: int | None = None
    """Number of tokens to which a dual encoder's captions are all padded, without a mask; None: padded to the longest,
    with a mask."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Formats of `dcdctl export` that cannot hold this dual encoder, each with the reason."""

    @property
    def text_options(self) -> Table:
        """Arguments of the tokenizer for a dual encoder's captions; those of the folder cut captions at their own
        maximum length."""
        if self.padded_length is None:
            return {"padding": True, "truncation": True}
        # The processor of SigLIP 2 has a maximum length of its own, which only an argument changes.
        return {"padding": "max_length", "max_length": self.padded_length, "truncation": True}
