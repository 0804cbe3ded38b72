"""Late-interaction models of sentence-transformers (MultiVectorEncoder, also of PyLate) and of transformers (ColPali,
ColQwen2, ColModernVBERT), which are not trained here.

`MultiVectorEncoder` computes the token vectors: a caption is a query, an image is a document. Prefixes, augmentation
tokens, skip lists and token pooling are the model's.

Shape letters: I images, T texts, N tokens of an image, L tokens of a text, D length of a token vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcdctl.core.models.families.sentence_transformer import LibraryModel
from dcdctl.core.models.fusion import PairModel
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.late import LateInteraction
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references.folders import MULTI_VECTOR


class MultiVectorScorer(LibraryModel, LateInteraction):
    """Scores pairs with a MultiVectorEncoder."""

    model_type = MULTI_VECTOR
    library_class = "MultiVectorEncoder"
    packages = ("sentence_transformers.", "pylate.")
    alternative = "take a model such as ColPali, ColQwen2 or ColModernVBERT"

    def __init__(self, encoder: nn.Module, ref: str) -> None:
        super().__init__(encoder, ref)
        self.noun, self.token_dim = f"the multi-vector model {ref}", self.width
        self.is_mean = self.network.similarity_fn_name == "meanmaxsim"

    # It is not trained here, and its texts have no maximum to which micro-batches could be padded.
    outputs, logits = PairModel.outputs, PairModel.logits

    @property
    def settings(self) -> Table:
        """Those of the library's models, and whether MaxSim is a mean."""
        return {**super().settings, "similarity": str(self.network.similarity_fn_name)}

    def encode_images(self, images: ImageBatch | States) -> States:
        """The token vectors of I images; ValueError for features."""
        if isinstance(images, States) and images.vectors is not None:
            return images
        return self._states(self._vectors(images))

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The token vectors of T captions; ValueError for features."""
        if isinstance(texts, States) and texts.vectors is not None:
            return texts
        return self._states(self._vectors(texts))

    def _states(self, tokens: list[Tensor]) -> States:
        # Copies, because the library computes in inference mode.
        rows = [each.clone().float() for each in tokens]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=padded.device)
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        # Vectors without numbers tell these states from the features of an encoder, which it takes none of.
        return States(padded, mask, padded.new_empty(len(rows), 0))


load = MultiVectorScorer.load
