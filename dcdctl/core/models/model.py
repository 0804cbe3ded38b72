"""What all models share. The three kinds are `fusion.FusionScorer`, `late.LateInteraction` and `dual.DualEncoder`; a
family subclasses one of them, and callers use their members alone.

Shape letters: I images, T texts, R x C pairs of a training step, P pairs, D length of the vectors.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dcdctl.core import data, files
from dcdctl.core.errors import ConfigError, InputError, ModelError
from dcdctl.core.models.checkpoint import save_pretrained
from dcdctl.core.models.fingerprint import digest_of
from dcdctl.core.models.inputs import ImageBatch, PairBatch, States, TextBatch, up_to_padding
from dcdctl.core.models.networks.towers import restore_eval_mode
from dcdctl.core.models.protocols import ExportSpec, Preprocessor, Table

if TYPE_CHECKING:
    from dcdctl.core.models.dual import DualEncoder
    from dcdctl.core.models.networks.over_encoders import Encoders


Picture = str | os.PathLike[str] | bytes | Image.Image
"""An image: its file by path, the bytes of its file, or an image of Pillow."""
ROWS_AT_ONCE = 32
"""Images, or texts, in one forward pass of `score`."""


@dataclass(frozen=True, kw_only=True)
class TransformerSize:
    """The dimensions that a new ViLT and a new dual encoder share."""

    hidden_size: int = 128
    num_attention_heads: int = 4
    intermediate_size: int = 512
    image_size: int = 64
    """Side of the resized image, in pixels: the shorter one of a ViLT's, both of a dual encoder's."""
    patch_size: int = 16
    image_mean: float = 0.5
    image_std: float = 0.5
    """Mean and standard deviation by which every channel is normalized, with pixel values from 0 to 1."""
    max_text_len: int = 40
    """Tokens of a caption, as in the official retrieval models."""
    hidden_dropout_prob: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw new weights of the block from this seed, and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the generators of GPUs too, which this fork does not restore.
        torch.default_generator.manual_seed(seed)
        yield


class Calibration(nn.Module):
    """A learned factor above 0 and a learned offset that bring a dual encoder's logits to a teacher's scale; at first
    the identity.

    They serve losses that compare logits with logits, and change no ranking. So they are neither saved with the model
    nor part of its digest.
    """

    def __init__(self) -> None:
        super().__init__()
        # A logarithm, so that no step of training makes the factor negative.
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor) -> Tensor:
        """The logits on the teacher's scale, float32."""
        return self.log_scale.exp() * logits.float() + self.offset


class RetrievalModel(nn.Module, ABC):
    """Base of all models; created in eval mode. The defaults suit a network of transformers."""

    kind: str
    network: Any  # nn.Module; the libraries' networks have no common base with the members that families read
    """The module that holds all saved weights."""
    preprocess: Preprocessor
    known_images: Mapping[str, States] = MappingProxyType({})
    """What a query encoder's teacher gave the images of corpora, by fingerprint of the corpus."""

    def __init__(self, network: nn.Module, preprocess: Preprocessor, unused_keys: tuple[str, ...] = ()) -> None:
        """`unused_keys` are the entries of its checkpoint that the model does not need."""
        super().__init__()
        self.network = network
        self.preprocess = preprocess
        self.unused_keys = unused_keys
        self.calibration: Calibration | None = None
        self.noun = f"a {type(self).__name__}"
        """What messages call the model, with its article."""
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Train mode, except for what stays in eval mode (`restore_eval_mode`)."""
        super().train(mode)
        restore_eval_mode(self.network)
        return self

    @property
    def config(self) -> Table:
        """All settings of the network, as config.json holds them."""
        return dict(self.network.config.to_dict())

    @property
    def settings(self) -> Table:
        """JSON-able settings that no other file of a saved model holds: the content of dcdctl.json, which `load` passes
        to the family's loader."""
        return {"kind": self.kind, "max_text_len": self.preprocess.max_text_len}

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all weights and all settings that change a score."""
        return digest_of(self.network, config=self.config, preprocess=self.preprocess.settings, settings=self.settings)

    @property
    def encoders(self) -> Encoders | None:
        """The encoders whose features may be stored; None for a model that takes only pixels and tokens."""
        return None

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        """Encoders of other libraries in the network, the vision encoder first; none unless a family has them."""
        return ()

    @property
    def as_dual(self) -> DualEncoder | None:
        """The dual encoder that the model is, or has inside; None for one without."""
        return None

    @abstractmethod
    def outputs(self, pairs: PairBatch) -> tuple[Tensor, ...]:
        """The float32 tensors of a micro-batch from which `logits` computes a loss's inputs; row k of each comes from
        row k of its input. Outputs of several micro-batches may be concatenated row by row."""

    @abstractmethod
    def logits(self, outputs: Sequence[Tensor], pairs: PairBatch) -> tuple[Tensor, Tensor | None]:
        """The logits of the pairs, R x C, and those of all images with all texts, I x T; None instead of the latter for
        a fusion model."""

    @torch.inference_mode()
    def score(
        self, images: Sequence[Picture], texts: Sequence[str], *, batch_size: int = ROWS_AT_ONCE
    ) -> NDArray[np.float32]:
        """The raw logits of all images with all texts, I x T: higher fits better, and logits of different models cannot
        be compared.

        A dual encoder gives the cosine of two vectors times its logit scale, plus its bias if it has one, as SigLIP;
        late interaction MaxSim times its scale; a fusion scorer what its head says of the pair. Images are files by
        path, the bytes of files, or images of Pillow. InputError for one that cannot be read.
        """
        if isinstance(texts, str) or isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise InputError("score takes lists of images and of texts", hint="put a single one in brackets")
        was_training, device = self.training, self._device
        # In training mode, dropout would change the logits.
        self.eval()
        try:
            encoded = []
            for start in range(0, len(texts), batch_size):
                batch = self.preprocess.texts(texts[start : start + batch_size])
                encoded.append(self._encode_texts(batch.to(device)))
            logits_IT = np.empty((len(images), len(texts)), np.float32)
            for start in range(0, len(images), batch_size):
                opened = [_open(image) for image in images[start : start + batch_size]]
                if encoded:
                    of_images = self._encode_images(self.preprocess.images(opened).to(device))
                    rows = torch.cat([self._all_logits(of_images, of_texts) for of_texts in encoded], dim=1)
                    logits_IT[start : start + len(opened)] = rows.float().cpu().numpy()
        finally:
            self.train(was_training)
        return logits_IT

    @property
    def _device(self) -> torch.device:
        """Where the weights are; a Python function has none."""
        return next((weights.device for weights in self.parameters()), torch.device("cpu"))

    @abstractmethod
    def _encode_images(self, images: ImageBatch) -> Any:
        """What `_all_logits` takes of I images."""

    @abstractmethod
    def _encode_texts(self, texts: TextBatch) -> Any:
        """What `_all_logits` takes of T texts."""

    @abstractmethod
    def _all_logits(self, images: Any, texts: Any) -> Tensor:
        """Logits of all encoded images with all encoded texts, I x T."""

    def calibrate(self, logits: Tensor) -> Tensor:
        """The logits on the teacher's scale, for losses that compare logits with logits. A fusion student learns that
        scale itself, so its logits are unchanged."""
        return logits if self.calibration is None else self.calibration(logits)

    def not_trained(self) -> ModelError:
        """The error of a model that is not trained here."""
        hint = "use it as a teacher or to re-rank; a student starts from a CLIP or SigLIP of transformers or open_clip"
        return ModelError(f"{self.noun} cannot be trained here", hint=hint)

    def without_student(self) -> ModelError:
        """The error of a model that has no fusion layers, of which a student could have fewer."""
        return ModelError(
            f"{self.noun} has no student of fewer layers", hint="train a dual or a late student of it (model.kind)"
        )

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass, to save memory; ModelError if no part of the model supports
        it."""
        raise self.not_trained()

    def set_dropout(self, probability: float) -> None:
        """Set the dropout of training, as in a new model of this family; no score in eval mode changes. ModelError if
        there is none.

        ViLT and duals whose encoders are trained: embeddings and sublayer outputs, none of attention probabilities.
        Co-attention: sublayer outputs and attention probabilities of the fusion layers. Duals over frozen encoders: the
        features. Other parts keep their own. A saved model's config.json has the number; the digest does not depend on
        it.
        """
        raise self.not_trained()

    def _states_of(self, texts: TextBatch, tokens_TLW: Tensor, vectors_TD: Tensor) -> States:
        """The states of captions. Padding is no token, also for a model that attends to it."""
        states = texts.states(tokens_TLW).with_tokens(tokens_TLW, vectors_TD)
        if self.export_spec().padded_length is None:
            return states
        return States(tokens_TLW, up_to_padding(texts, self.preprocess.tokenizer.pad_token_id), vectors_TD)

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights, float16 where `half`."""
        save_pretrained(self.network, folder, half=half)

    def export_spec(self) -> ExportSpec:
        """The classes that read this model without dcdctl, once `export_copy` is saved."""
        return ExportSpec()

    def export_copy(self) -> Self:
        """The same model in the form that the classes of `export_spec` compute and preprocess; it may share weights."""
        return type(self)(self.network, self.preprocess.self_contained())


def _open(picture: Picture) -> Image.Image:
    """An image, upright and RGB; InputError that names it if it cannot be read."""
    if isinstance(picture, Image.Image | bytes):
        name, read = "the image in memory", picture
    else:
        path = Path(picture)
        files.check_exists(path)
        name, read = str(path), path.read_bytes()
    try:
        return data.decode_image(read) if isinstance(read, bytes) else data.upright_rgb(read)
    except data.ImageError as error:
        raise InputError(f"{name} cannot be used: {error}") from error
