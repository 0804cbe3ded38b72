"""The contract of all models: the two protocols, and the capabilities that callers use.

Shape letters: I images, T texts, P pairs, R x C pairs of a training step, B aligned pairs, H and W pixels, L text
tokens, V image tokens, N tokens of an encoded input, D width of tokens or vectors, W width of features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

if TYPE_CHECKING:  # commands that only list or check models import this file, and torch takes a second
    from PIL import Image
    from torch import Tensor, nn

    from dcdctl.core.models.inputs import Device, ImageBatch, Pairs, States, TextBatch
    from dcdctl.core.models.networks.towers import TrainedParts


class Preprocessor(Protocol):
    """Images and captions to tensors, as the model was trained on them."""

    @property
    def tokenizer(self) -> Any:
        """A tokenizer of transformers."""
        ...

    @property
    def image_processor(self) -> Any:
        """An image processor of transformers."""
        ...

    @property
    def max_text_len(self) -> int:
        """Maximum number of tokens of a caption, including special ones."""
        ...

    @property
    def image_size_px(self) -> int:
        """Shorter side of a preprocessed image."""
        ...

    def images(self, images: Sequence[Image.Image]) -> ImageBatch:
        """One batch of images of any size and mode."""
        ...

    def texts(self, texts: Sequence[str]) -> TextBatch:
        """One batch of captions, cut to `max_text_len` tokens, padded to the longest."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files of the tokenizer and the image processor."""
        ...

    def self_contained(self) -> Self:
        """A copy whose saved files also contain the steps that this class adds to the tokenizer and the image
        processor."""
        ...


class _Module(Protocol):
    """The part of torch.nn.Module that callers of a model use."""

    training: bool

    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...

    def named_parameters(
        self, prefix: str = ..., recurse: bool = ..., remove_duplicate: bool = ...
    ) -> Iterator[tuple[str, nn.Parameter]]: ...

    def train(self, mode: bool = ...) -> Self: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = ...) -> Self: ...

    def to(self, device: Device) -> Self: ...

    def state_dict(self) -> dict[str, Any]: ...


class Encoders(Protocol):
    """A vision and a text encoder whose outputs, the features, may be computed once and stored while they are
    frozen."""

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all that decides the features of an image and a caption; models with equal digests share
        them."""
        ...

    @property
    def text_digest(self) -> str:
        """The same for the features of a caption alone, so that models for several image sizes share these."""
        ...

    @property
    def text_width(self) -> int:
        """Width of the text features."""
        ...

    @property
    def pools_texts(self) -> bool:
        """Whether the features of a caption are one token, its pooled output; otherwise one for each token of the
        caption."""
        ...

    @property
    def is_frozen(self) -> bool:
        """Whether training leaves both encoders unchanged."""
        ...

    def freeze(self) -> None:
        """Leave both encoders unchanged in training."""
        ...

    def image_features(self, images: ImageBatch) -> States:
        """Features of I images, I x V x W; the first of V tokens stands for the whole image."""
        ...

    def text_features(self, texts: TextBatch) -> States:
        """Features of T captions, T x L x W; T x 1 x W if the encoders pool texts."""
        ...


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
    def text_options(self) -> dict[str, Any]:
        """Arguments of the tokenizer for a dual encoder's captions; those of the folder cut captions at their own
        maximum length."""
        if self.padded_length is None:
            return {"padding": True, "truncation": True}
        # The processor of SigLIP 2 has a maximum length of its own, which only an argument changes.
        return {"padding": "max_length", "max_length": self.padded_length, "truncation": True}


class _Model(_Module, Protocol):
    """Members that both kinds of model have, so that callers need not distinguish them."""

    network: Any
    """The module that holds all saved weights."""

    @property
    def preprocess(self) -> Preprocessor: ...

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all weights and all settings that change a score."""
        ...

    @property
    def encoders(self) -> Encoders | None:
        """The encoders whose features may be stored; None for a model that takes only pixels and tokens."""
        ...

    def outputs(self, pairs: Pairs) -> tuple[Tensor, ...]:
        """The float32 tensors of a micro-batch from which `logits` computes a loss's inputs; row k of each comes from
        row k of its input.

        A fusion model gives the logits of the pairs, R x C. A dual encoder gives the vectors of all images and texts, I
        x D and T x D, and does not read the indices of `pairs`. Outputs of several micro-batches may be concatenated
        row by row.
        """
        ...

    def logits(self, outputs: Sequence[Tensor], pairs: Pairs) -> tuple[Tensor, Tensor | None]:
        """The logits of the pairs, R x C, and those of all images with all texts, I x T; None instead of the latter for
        a fusion model."""
        ...

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """Entries of its checkpoint that the model does not need."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """JSON-able settings that no other file of a saved model holds; `load` passes them to the family's loader."""
        ...

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights, float16 where `half`."""
        ...

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass, to save memory; ModelError if no part of the model supports
        it."""
        ...

    def set_dropout(self, probability: float) -> None:
        """Set the dropout of training, as in a new model of this family; no score in eval mode changes. ModelError if
        there is none.

        ViLT and duals whose encoders are trained: embeddings and sublayer outputs, none of attention probabilities.
        Co-attention: sublayer outputs and attention probabilities of the fusion layers. Duals over frozen encoders: the
        features. Other parts keep their own. A saved model's config.json has the number; the digest does not depend on
        it.
        """
        ...

    def export_spec(self) -> ExportSpec:
        """The classes that read this model without dcdctl, once `export_copy` is saved."""
        ...

    def export_copy(self) -> Self:
        """The same model in the form that the classes of `export_spec` compute and preprocess; it may share weights."""
        ...

    def calibrate(self, logits: Tensor) -> Tensor:
        """The logits on the teacher's scale, for losses that compare logits with logits; unchanged for a fusion
        model."""
        ...


class FusionScorer(_Model, Protocol):
    """A cross-encoder: it reads an image and a caption together and gives a raw logit, higher is better."""

    @property
    def kind(self) -> Literal["fusion"]: ...

    @property
    def keeps_states(self) -> bool:
        """Whether states are small enough to keep those of a whole corpus, such as unit vectors; then each item is
        encoded once for all its pairs."""
        ...

    @property
    def num_layers(self) -> int:
        """Number of fusion layers."""
        ...

    @property
    def pairs_per_batch(self) -> int:
        """Pairs in one call of `score_pairs`, unless the user sets a batch size."""
        ...

    @property
    def groups_by_image(self) -> bool:
        """Whether pairs of one image cost less in one batch. Callers then score them one after another, and few images
        at a time."""
        ...

    def student(self, layers: Sequence[int]) -> FusionScorer:
        """A trainable scorer with only these fusion layers, which ascend; it starts from copies of their weights."""
        ...

    def encode_images(self, images: ImageBatch | States) -> States:
        """The part of scoring that depends on I images alone. A scorer with `encoders` takes their features as well."""
        ...

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The part of scoring that depends on T captions alone. A scorer with `encoders` takes their features as
        well."""
        ...

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""
        ...

    def score(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, pixel_mask: Tensor | None = None
    ) -> Tensor:
        """Logits of B aligned pairs by the plain, slow forward pass: the oracle of `score_pairs`."""
        ...


class DualEncoder(_Model, Protocol):
    """A model that embeds images and captions separately; a score is the cosine of two vectors times `logit_scale`,
    plus `logit_bias`."""

    @property
    def kind(self) -> Literal["dual"]: ...

    @property
    def logit_scale(self) -> Tensor:
        """Factor from cosine to logit; 0-dimensional."""
        ...

    @property
    def logit_bias(self) -> Tensor | None:
        """Offset of all logits, 0-dimensional, of a model that has one (SigLIP); it changes no ranking."""
        ...

    @property
    def embedding_dim(self) -> int:
        """Length D of the vectors."""
        ...

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D. A model with `encoders` takes their features as well."""
        ...

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D. A model with `encoders` takes their features as well."""
        ...

    def set_trained(self, parts: TrainedParts) -> None:
        """Let training change only these parts; ModelError for a family that has no such parts.

        With adapters (lora), `merge_adapters` must be called before the model is saved. With `projections`, `encoders`
        gives the frozen towers, whose pooled outputs may be stored.
        """
        ...

    def merge_adapters(self) -> None:
        """Add the adapters of `set_trained` to the weights that they adapt, and remove them; does nothing without
        adapters."""
        ...

    def depth_of(self, parameter: str) -> int:
        """Distance of a parameter, by its dotted name, from the top of its tower; ModelError for a family without
        towers of layers.

        0 for projections, logit scale and what follows the layers, 1 for the last layer, N + 1 for what comes before N
        layers.
        """
        ...

    def keep_layers(self, vision: Sequence[int], text: Sequence[int]) -> None:
        """Remove all layers of the towers but these, which ascend; an empty list keeps all. ModelError for layers that
        a tower lacks."""
        ...

    def add_average(self) -> None:
        """Add a copy of the network that is its own average over the steps, for training alone: it is neither saved nor
        in the digest."""
        ...

    def update_average(self, decay: float) -> None:
        """Set each weight of the average to `decay` times itself plus 1 - `decay` times the network's. ValueError
        before `add_average`."""
        ...

    def averaged(self) -> DualEncoder:
        """This model with the weights of the average, in eval mode. ValueError before `add_average`."""
        ...

    def add_projection(self, teacher_width: int) -> None:
        """Add a learned linear map to the width of a teacher's vectors, for training alone: it is neither saved nor in
        the digest."""
        ...

    def project(self, vectors_ND: Tensor) -> Tensor:
        """The vectors after that map, N x E, float32. ValueError before `add_projection`."""
        ...


Model = FusionScorer | DualEncoder
"""What `load` gives; `model.kind` tells which of the two."""
