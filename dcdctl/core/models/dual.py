"""The contract of a dual encoder, and what all of them share; a family (`vision_text_dual`, `frozen_dual`) adds its
network.

Shape letters: I images, T texts, R x C pairs of a training step, D length of the vectors.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcdctl.core.errors import ModelError
from dcdctl.core.models.inputs import ImageBatch, PairBatch, States, TextBatch, select_rows
from dcdctl.core.models.model import Calibration, RetrievalModel
from dcdctl.core.models.networks.attention import enable_checkpointing
from dcdctl.core.models.networks.projections import MAX_LOGIT_SCALE
from dcdctl.core.models.networks.towers import TrainedParts
from dcdctl.core.models.protocols import Table


def unit_vectors(vectors_ND: Tensor) -> Tensor:
    """The vectors divided by their lengths, in float32: in half precision a length would be wrong by up to 0.4 %."""
    return functional.normalize(vectors_ND.float(), dim=-1)


def prefix_vectors(vectors_ND: Tensor, dims: int) -> Tensor:
    """The first `dims` numbers of unit vectors, divided by their lengths, N x `dims`, float32; at full width the
    vectors as they are.

    >>> prefix_vectors(torch.tensor([[0.48, 0.36, 0.8]]), 2)
    tensor([[0.8000, 0.6000]])
    """
    return vectors_ND.float() if dims == vectors_ND.shape[1] else unit_vectors(vectors_ND[:, :dims])


def of_pairs(all_IT: Tensor, pairs: PairBatch) -> Tensor:
    """The logits of the pairs, R x C, among those of all images with all texts."""
    # Flat positions, so that `select_rows` can be used: the gradient of `all_IT[image, text]` is not repeatable on a
    # CPU.
    flat_ix_RC = pairs.image_ix_RC * all_IT.shape[1] + pairs.text_ix_RC
    return select_rows(all_IT.flatten(), flat_ix_RC.flatten()).view(flat_ix_RC.shape)


class DualEncoder(RetrievalModel):
    """A model that embeds images and captions separately; a score is the cosine of two vectors times `logit_scale`,
    plus `logit_bias`."""

    kind: Literal["dual"] = "dual"
    has_one_vector: Literal[True] = True
    keeps_states: Literal[True] = True
    embedding_dim: int
    """Length D of the vectors; a family sets it."""
    calibration: Calibration

    def __init__(self, network: nn.Module, preprocess: Any, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__(network, preprocess, unused_keys)
        self.calibration = Calibration()
        self.projection: nn.Linear | None = None
        self.sigmoid_bias: nn.Parameter | None = None
        """The `logit_bias` of a network that has none of its own, saved in dcdctl.json."""
        self.space_of: str | None = None
        """The digest of the model whose vectors an image student gives: what embeds the texts of that model, such as a
        query encoder, goes with both. Saved in dcdctl.json."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.network).__name__}, {self.embedding_dim} numbers per vector)"

    @property
    def as_dual(self) -> DualEncoder:
        """Itself."""
        return self

    @property
    def logit_scale(self) -> Tensor:
        """Factor from cosine to logit; learned, 0-dimensional. Models that were trained as CLIP was have at most
        100."""
        # SigLIP stores a vector of one number.
        scale: Tensor = self.network.logit_scale.reshape(()).exp()
        return scale.clamp(max=MAX_LOGIT_SCALE) if self.logit_bias is None else scale

    @property
    def log_scale(self) -> nn.Parameter:
        """The logarithm of the logit scale, as it is stored and trained."""
        (scale,) = (each for name, each in self.network.named_parameters() if name.endswith("logit_scale"))
        return scale

    @property
    def logit_bias(self) -> Tensor | None:
        """Learned offset of all logits, 0-dimensional, of SigLIP and of a student of its loss; it changes no
        ranking."""
        bias: Tensor | None = getattr(self.network, "logit_bias", self.sigmoid_bias)
        return None if bias is None else bias.reshape(())

    @property
    def settings(self) -> Table:
        """As of every model, and the bias and the space."""
        bias = {} if self.sigmoid_bias is None else {"logit_bias": self.sigmoid_bias.item()}
        space = {} if self.space_of is None else {"space_of": self.space_of}
        return {**super().settings, **bias, **space}

    def start_as_siglip(self) -> None:
        """Give a new model a bias, and the scale and bias with which SigLIP starts: 10 and -10 (Zhai et al. 2023,
        section 3.2)."""
        nn.init.constant_(self.log_scale, math.log(10))
        self.add_bias(-10)

    def add_bias(self, value: float) -> None:
        """Give a model whose network has no bias a learned one."""
        self.sigmoid_bias = nn.Parameter(torch.tensor(float(value)))

    @abstractmethod
    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D. A model with `encoders` takes their features as well."""

    @abstractmethod
    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D. A model with `encoders` takes their features as well."""

    def _encode_images(self, images: ImageBatch) -> Tensor:
        return self.embed_images(images).float()

    def _encode_texts(self, texts: TextBatch) -> Tensor:
        return self.embed_texts(texts).float()

    def _all_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        logits_IT = self.logit_scale * images @ texts.T
        return logits_IT if self.logit_bias is None else logits_IT + self.logit_bias

    def image_tokens(self, images: ImageBatch | States) -> States:
        """What the image encoder gives for each token, I x N x W, and the unit vectors; a model with `encoders` that
        keep tokens takes their features as well. ModelError for a family without token states."""
        raise self._without_tokens()

    def text_tokens(self, texts: TextBatch | States) -> States:
        """What the text encoder gives for each token, T x L x W, and the unit vectors; errors as of `image_tokens`."""
        raise self._without_tokens()

    def _without_tokens(self) -> ModelError:
        problem = f"a {self.config['model_type']} gives no state for each token, which late interaction compares"
        return ModelError(
            problem, hint="start from a dual encoder of transformers or of open_clip, or from two encoders"
        )

    def forward(self, images: ImageBatch | States, texts: TextBatch | States) -> tuple[Tensor, Tensor]:
        """The vectors of a batch, I x D and T x D."""
        images_ID = self.embed_images(images)
        # Text encoders reject empty batches, which a training on images alone has.
        return images_ID, self.embed_texts(texts) if len(texts) else images_ID.new_empty(0, self.embedding_dim)

    def outputs(self, pairs: PairBatch) -> tuple[Tensor, ...]:
        """The vectors of all images and texts, I x D and T x D, float32."""
        images_ID, texts_TD = self(pairs.images, pairs.texts)
        return images_ID.float(), texts_TD.float()

    def logits(self, outputs: Sequence[Tensor], pairs: PairBatch) -> tuple[Tensor, Tensor]:
        """The logits of the pairs, R x C, and of all images with all texts, I x T; float32, also under autocast."""
        images_ID, texts_TD = outputs
        # Autocast would round the vectors of this product: at a scale of 100 a step of bfloat16 is half a logit.
        with torch.autocast(images_ID.device.type, enabled=False):
            all_IT = self.logit_scale * images_ID.float() @ texts_TD.float().T
            if self.logit_bias is not None:
                all_IT = all_IT + self.logit_bias
        return of_pairs(all_IT, pairs), all_IT

    def add_projection(self, teacher_width: int) -> None:
        """Add a learned linear map to the width of a teacher's vectors, for losses that compare vectors with vectors.

        One map for images and captions, so that it keeps how they lie to each other. It changes no ranking, so it is
        neither saved with the model nor part of its digest. At first it copies coordinates: the student may have been
        made from the teacher.
        """
        # Without random weights, which would take numbers from the global random state.
        self.projection = nn.utils.skip_init(nn.Linear, self.embedding_dim, teacher_width, bias=False)
        nn.init.eye_(self.projection.weight)

    def project(self, vectors_ND: Tensor) -> Tensor:
        """The vectors after that map, N x E, float32, also under autocast; without a map, for a student in the
        teacher's own space, the vectors."""
        if self.projection is None:
            return vectors_ND.float()
        with torch.autocast(vectors_ND.device.type, enabled=False):
            return self.projection(vectors_ND.float())

    def export_copy(self) -> Self:
        """The copy of every model, with the bias, which dcdctl alone reads from its folder."""
        exported = super().export_copy()
        exported.sigmoid_bias = self.sigmoid_bias
        return exported

    def set_trained(self, parts: TrainedParts) -> None:
        """Let training change only these parts; ModelError for a family that has no such parts.

        With adapters (lora), `merge_adapters` must be called before the model is saved. With `projections`, `encoders`
        gives the frozen towers, whose pooled outputs may be stored.
        """
        if parts.which != "all":
            raise self._without_towers(f"model.trained {parts.which}")

    def merge_adapters(self) -> None:
        """Add the adapters of `set_trained` to the weights that they adapt, and remove them; does nothing without
        adapters."""

    def keep_layers(self, vision: Sequence[int], text: Sequence[int]) -> None:
        """Remove all layers of the towers but these, which ascend; an empty list keeps all. ModelError for layers that
        a tower lacks, and for any choice in a family without towers."""
        if vision or text:
            raise self._without_towers("model.vision_layers and model.text_layers")

    def _without_towers(self, field: str) -> ModelError:
        problem = (
            f"{field} is for dual encoders of transformers, such as CLIP and SigLIP, and this is a "
            f"{self.config['model_type']}"
        )
        return ModelError(problem, hint="leave it out, or name another model.start")

    def checkpoint_activations(self) -> None:
        """Compute activations of trained encoders again in the backward pass; ModelError if no encoder supports it."""
        if not enable_checkpointing(self._encoder_modules):
            raise ModelError(
                "the encoders of this model cannot compute activations again", hint="leave --checkpoint-activations out"
            )
