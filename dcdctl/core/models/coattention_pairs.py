"""Scores of many pairs of a co-attention network, with nothing computed twice and little computed for nothing.

Equal to running every pair through `FusionLayer`, but

- the first step's self-attention is computed once an image and once a caption: there neither stream has met the other;
- a projection of the long stream is folded into the short one where that is less work (`folding`);
- in the last step only the two first tokens are followed: one query each.

Shape letters as in `coattention`.
"""

from __future__ import annotations

from torch import Tensor

from dcdctl.core.models import folding
from dcdctl.core.models.activations import recomputed
from dcdctl.core.models.coattention import Attention, CoAttentionNetwork, FusionLayer
from dcdctl.core.models.protocols import States, rows

Layers = tuple[FusionLayer, FusionLayer]
Streams = tuple[Tensor, Tensor]
"""Text and image."""


def score_pairs(network: CoAttentionNetwork, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
    """Logits of P pairs, given as positions in `images` and `texts`; image tokens are all real."""
    used_images, image_at_P = image_ix_P.unique(return_inverse=True)
    used_texts, text_at_P = text_ix_P.unique(return_inverse=True)
    texts = texts.take(used_texts)
    image_IVD, text_TLD, mask_TL = rows(images.tokens, used_images), texts.tokens, texts.mask
    mask_PL = None if bool(mask_TL.all()) else mask_TL[text_at_P]
    streams = rows(text_TLD, text_at_P), rows(image_IVD, image_at_P)
    for step, layers in enumerate(network.steps):
        count = 1 if step == len(network.steps) - 1 else None
        if step == 0:
            own_mask = None if mask_PL is None else mask_TL
            text, image = recomputed(network, _look_around, layers, (text_TLD, image_IVD), own_mask, count)
            streams = recomputed(network, _meet, layers, (rows(text, text_at_P), rows(image, image_at_P)), streams, mask_PL)
        else:
            streams = recomputed(network, _step, layers, streams, mask_PL, count)
    image_PD = None if images.vectors is None else rows(images.vectors, image_ix_P)
    text_PD = None if texts.vectors is None else rows(texts.vectors, text_at_P)
    return network.add_cosine(network.rank(*streams), image_PD, text_PD)


def _step(layers: Layers, streams: Streams, mask_PL: Tensor | None, num_queries: int | None) -> Streams:
    return _meet(layers, _look_around(layers, streams, mask_PL, num_queries), streams, mask_PL)


def _look_around(layers: Layers, streams: Streams, text_mask: Tensor | None, num_queries: int | None) -> Streams:
    """Both streams after attending to themselves."""
    (text_layer, image_layer), (text, image) = layers, streams
    return (
        attend(text_layer.self_attention, text, text, text_mask, num_queries),
        attend(image_layer.self_attention, image, image, None, num_queries),
    )


def _meet(layers: Layers, own: Streams, entered: Streams, text_mask: Tensor | None) -> Streams:
    """Both streams after attending to the other as it entered the step."""
    (text_layer, image_layer), (text, image) = layers, entered
    return _fuse(text_layer, own[0], image, None), _fuse(image_layer, own[1], text, text_mask)


def _fuse(layer: FusionLayer, own_PND: Tensor, other_PMD: Tensor, other_mask_PM: Tensor | None) -> Tensor:
    fused: Tensor = layer.feed_forward(attend(layer.cross_attention, own_PND, other_PMD, other_mask_PM))
    return fused


def attend(attention: Attention, tokens_PND: Tensor, source_PMD: Tensor, mask_PM: Tensor | None, num_queries: int | None = None) -> Tensor:
    """`Attention.forward` for the first `num_queries` tokens, the way that is least work."""
    queries_PND, heads = tokens_PND[:, :num_queries], attention.parts
    num_queries, num_sources = queries_PND.shape[1], source_PMD.shape[1]
    if heads.is_worth_folding(num_queries, num_sources):
        output_PND = attention.dense(folding.into_queries(heads, queries_PND, source_PMD, mask_PM))
    elif heads.is_worth_folding(num_sources, num_queries):
        output_PND = folding.into_source(heads, attention.dense, queries_PND, source_PMD, mask_PM)
    else:
        plain: Tensor = attention(queries_PND, source_PMD, mask_PM)
        return plain
    return attention.close(output_PND, queries_PND)
