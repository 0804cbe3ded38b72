"""Late-interaction models of sentence-transformers (MultiVectorEncoder, also of PyLate) and of transformers (ColPali,
ColQwen2, ColModernVBERT), which are not trained here.

`MultiVectorEncoder` computes the token vectors: a caption is a query, an image is a document. Prefixes, augmentation
tokens, skip lists and token pooling are the model's.

Shape letters: I images, T texts, N tokens of an image, L tokens of a text, D length of a token vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models.families.raw_pairs import RawPreprocess, captions_of, check_read, pictures_of
from dcdctl.core.models.families.sentence_transformer import LibraryModel, check_folder
from dcdctl.core.models.fusion import FusionScorer
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch, unencoded
from dcdctl.core.models.late import LateInteraction
from dcdctl.core.models.preprocess import hub_errors, quiet_sentence_transformers
from dcdctl.core.models.references.folders import MULTI_VECTOR

OWN_MODULES = ("sentence_transformers.", "pylate.")
"""Packages whose modules sentence-transformers reads by classes of its own."""


class MultiVectorScorer(LibraryModel, LateInteraction):
    """Scores pairs with a MultiVectorEncoder; `ref` is where it was loaded from, for messages."""

    model_type = MULTI_VECTOR

    def __init__(self, encoder: nn.Module, ref: str) -> None:
        super().__init__(encoder, RawPreprocess())
        self.ref = ref
        self.is_mean = self.encoder.similarity_fn_name == "meanmaxsim"
        # One image and one text show whether the processor reads both.
        image = self.encode_images(self.preprocess.images([Image.new("RGB", (64, 64))]))
        text = self.encode_texts(self.preprocess.texts(["a"]))
        if image.tokens.shape[2] != text.tokens.shape[2]:
            raise ModelError(f"{ref} has tokens of {image.tokens.shape[2]} and of {text.tokens.shape[2]} numbers")
        self._token_dim = image.tokens.shape[2]

    # It is not trained here, and its texts have no maximum to which micro-batches could be padded.
    outputs, logits = FusionScorer.outputs, FusionScorer.logits

    @property
    def token_dim(self) -> int:
        """Length D of a token vector."""
        return self._token_dim

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the library's models, and whether MaxSim is a mean."""
        return {**super().settings, "similarity": str(self.encoder.similarity_fn_name)}

    def encode_images(self, images: ImageBatch | States) -> States:
        """The token vectors of I images; ValueError for features."""
        if isinstance(images, States) and images.vectors is not None:
            return images
        return self._states(
            self.encoder.encode_document, [{"image": picture} for picture in pictures_of(unencoded(images))]
        )

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The token vectors of T captions; ValueError for features."""
        if isinstance(texts, States) and texts.vectors is not None:
            return texts
        # As dictionaries: a caption that is the path or the address of an image would be read as that image.
        return self._states(self.encoder.encode_query, [{"text": text} for text in captions_of(unencoded(texts))])

    def _states(self, encode: Callable[..., list[Tensor]], inputs: list[dict[str, Any]]) -> States:
        tokens = encode(inputs, batch_size=len(inputs), show_progress_bar=False)
        # Copies, because the library computes in inference mode.
        rows = [each.clone().float() for each in tokens]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=padded.device)
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        # Vectors without numbers tell these states from the features of an encoder, which it takes none of.
        return States(padded, mask, padded.new_empty(len(rows), 0))

    @property
    def noun(self) -> str:
        """What messages call the model."""
        return f"the multi-vector model {self.ref}"


def load(ref: str, table: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> MultiVectorScorer:
    """The model of a folder; `table` are the user's overrides, of which it takes none.

    MissingError if sentence-transformers is not installed; ModelError for a model of texts alone, and for modules with
    code of their own. No code of the folder is run.
    """
    check_folder(ref, "a multi-vector model", OWN_MODULES)
    from sentence_transformers import MultiVectorEncoder

    with quiet_sentence_transformers(), hub_errors(ref, hint=f"try `MultiVectorEncoder({ref!r})`"):
        encoder = MultiVectorEncoder(
            ref, device="cpu", trust_remote_code=False, local_files_only=True, model_kwargs={"dtype": torch.float32}
        ).float()
        if not {"image", "text"} <= set(encoder.modalities):
            modalities = ", ".join(map(str, encoder.modalities))
            problem = f"{ref} reads {modalities} alone, and a scorer of pairs reads images and texts"
            raise ModelError(problem, hint="take a model such as ColPali, ColQwen2 or ColModernVBERT")
        check_read(encoder[0], ref, "its network")
        return MultiVectorScorer(encoder.requires_grad_(False).eval(), ref)
