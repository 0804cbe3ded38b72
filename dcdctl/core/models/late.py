"""Late interaction: a vector for each token of an image and of a text, compared by MaxSim (`networks.maxsim`).

It lies between the other two kinds of model. As in a dual encoder each item is encoded once; as in a fusion model words
are compared with places of the image. So it scores pairs as a fusion model does, from states that are token vectors.

Shape letters: I images, T texts, N tokens of an image, L tokens of a text, D length of a token vector, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.models.dual import DualEncoder, of_pairs
from dcdctl.core.models.dual_scorer import pair_products
from dcdctl.core.models.fusion import FusionScorer, PairModel
from dcdctl.core.models.inputs import ImageBatch, PairBatch, States, TextBatch
from dcdctl.core.models.networks.maxsim import all_maxsims, pair_maxsims

DENSE_FACTOR = 4
"""All images times all texts is computed at once if that has at most this many times the pairs asked for."""
PAIRS_AT_A_TIME = 1024
"""Pairs whose tokens are gathered at a time: with 197 tokens of 128 numbers per image these are 103 MB."""


class LateInteraction(PairModel):
    """Compares the tokens of a text with those of an image: the logit is their MaxSim times `logit_scale`. A family
    gives the states, whose tokens are vectors, zeros for padding; with `vectors_scale`, the cosine of their vectors
    counts too."""

    kind: Literal["late"] = "late"
    # Many: `score_pairs` gathers the tokens of PAIRS_AT_A_TIME of them.
    pairs_per_batch = 65_536
    keeps_states = True
    keeps_tokens = True
    token_dim: int
    """Length D of a token vector; a family sets it."""
    is_mean = True
    """Whether MaxSim is the mean over the tokens of a text, and not the sum."""
    token_pooling = 1
    """An index stores the tokens of an image divided by this number (`networks.token_pooling`)."""

    @property
    def logit_scale(self) -> Tensor:
        """Factor from MaxSim to logit, 0-dimensional."""
        return torch.ones(())

    @property
    def vectors_scale(self) -> Tensor | None:
        """Factor of the cosine that is added; None for MaxSim alone."""
        return None

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Queries of an index, T x L x D, float32: token vectors whose largest products with the tokens of an image add
        up to their MaxSim; zeros for padding."""
        return self._queries(self.encode_texts(texts))

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Queries by images, I x N x D: MaxSim with the tokens of an image in place of a text's."""
        return self._queries(self.encode_images(images))

    def _queries(self, states: States) -> Tensor:
        weights = states.mask[:, :, None].float()
        return states.tokens.float() * (weights / weights.sum(dim=1, keepdim=True) if self.is_mean else weights)

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, float32, also under autocast."""
        images, image_ix_P = images.distinct(image_ix_P)
        texts, text_ix_P = texts.distinct(text_ix_P)
        if len(images) * len(texts) <= DENSE_FACTOR * len(image_ix_P):
            return self.score_all(images, texts).flatten().index_select(0, image_ix_P * len(texts) + text_ix_P)
        mask_IN = None if images.is_full else images.mask
        parts = []
        for image_ix, text_ix in zip(image_ix_P.split(PAIRS_AT_A_TIME), text_ix_P.split(PAIRS_AT_A_TIME), strict=True):
            mask_PN = None if mask_IN is None else mask_IN[image_ix]
            tokens_PLD, mask_PL = texts.tokens[text_ix], texts.mask[text_ix]
            parts.append(pair_maxsims(images.tokens[image_ix], mask_PN, tokens_PLD, mask_PL, is_mean=self.is_mean))
        maxsim_P = torch.cat(parts)
        logits_P = self.logit_scale.to(maxsim_P.device) * maxsim_P
        if self.vectors_scale is not None:
            assert images.vectors is not None
            assert texts.vectors is not None
            logits_P = logits_P + self.vectors_scale * pair_products(
                images.vectors, texts.vectors, image_ix_P, text_ix_P
            )
        return logits_P.detach()

    def score_all(self, images: States, texts: States) -> Tensor:
        """Logits of every image with every text, I x T, float32, also under autocast."""
        mask_IN = None if images.is_full else images.mask
        maxsim_IT = all_maxsims(images.tokens, mask_IN, texts.tokens, texts.mask, is_mean=self.is_mean)
        logits_IT = self.logit_scale.to(maxsim_IT.device) * maxsim_IT
        if self.vectors_scale is not None:
            assert images.vectors is not None
            assert texts.vectors is not None
            with torch.autocast(maxsim_IT.device.type, enabled=False):
                logits_IT = logits_IT + self.vectors_scale * images.vectors @ texts.vectors.T
        return logits_IT.detach()

    def outputs(self, pairs: PairBatch) -> tuple[Tensor, ...]:
        """The token vectors of all images and texts, I x N x D and T x L x D, padding as zeros, and with
        `vectors_scale` the vectors of both; float32. L is the maximum of all batches, so that micro-batches fit
        together."""
        images, texts = self.encode_images(pairs.images), self.encode_texts(pairs.texts)
        missing = self.preprocess.max_text_len - texts.tokens.shape[1]
        tokens = images.tokens, functional.pad(texts.tokens, (0, 0, 0, missing))
        if self.vectors_scale is None:
            return tokens
        assert images.vectors is not None
        assert texts.vectors is not None
        return *tokens, images.vectors.float(), texts.vectors.float()

    def logits(self, outputs: Sequence[Tensor], pairs: PairBatch) -> tuple[Tensor, Tensor | None]:
        """The logits of the pairs, R x C, and of all images with all texts, I x T; float32, also under autocast."""
        images_IND, texts_TLD, *pooled = outputs
        mask_IN = (images_IND.detach() != 0).any(dim=-1)
        mask_TL = (texts_TLD.detach() != 0).any(dim=-1)
        # One wait for a GPU, which the padding of all captions to the maximum would cost many times.
        length, num_padding = torch.stack([mask_TL.any(dim=0).sum(), (~mask_IN).sum()]).tolist()
        maxsim_IT = all_maxsims(
            images_IND,
            mask_IN if num_padding else None,
            texts_TLD[:, :length],
            mask_TL[:, :length],
            is_mean=self.is_mean,
        )
        all_IT = self.logit_scale * maxsim_IT
        if self.vectors_scale is not None:
            with torch.autocast(images_IND.device.type, enabled=False):
                all_IT = all_IT + self.vectors_scale * pooled[0] @ pooled[1].T
        return of_pairs(all_IT, pairs), all_IT


Scorer = FusionScorer | LateInteraction
"""What scores pairs of encoded images and captions: teachers and re-rankers."""
Searchable = DualEncoder | LateInteraction
"""Models whose images are encoded once and put into an index."""
Model = FusionScorer | LateInteraction | DualEncoder
"""What `load` gives; `model.kind` tells which of the three."""
