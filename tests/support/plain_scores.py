"""The plain way to score aligned pairs, which every family's `score_pairs` must equal: each pair alone through all of
the model, by the library's own forward pass where there is one.

Shape letters: B aligned pairs.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.models import CoAttentionScorer, ImageBatch, RawPairScorer, TextBatch, ViltScorer
from dcdctl.core.models.dual_scorer import DualScorer
from dcdctl.core.models.families.blip2 import Blip2Scorer
from dcdctl.core.models.families.coattention import Attention, FusionLayer
from dcdctl.core.models.families.matching import MATCH, NO_MATCH, MatchingScorer
from dcdctl.core.models.families.raw_pairs import captions_of, pictures_of
from dcdctl.core.models.late import LateInteraction
from dcdctl.core.models.model import seeded


@singledispatch
def plain_score(
    scorer: Any, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, pixel_mask: Tensor | None = None
) -> Tensor:
    """Logits of B aligned pairs. No images of variable resolution, which have a grid too."""
    raise NotImplementedError(type(scorer))


@plain_score.register
def _vilt(
    scorer: ViltScorer,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """By the forward pass of transformers."""
    pixel_mask = pixel_values.sum(dim=1) != 0 if pixel_mask is None else pixel_mask
    # transformers draws the order of patches from the CPU generator.
    with seeded(0):
        # A length of -1 keeps all patches; a positive one drops random patches of larger images.
        image_embeds, patch_mask, _ = scorer.network.vilt.embeddings.visual_embed(
            pixel_values, pixel_mask, max_image_length=-1
        )
    logits_B1 = scorer.network(
        input_ids=input_ids, attention_mask=attention_mask, image_embeds=image_embeds, pixel_mask=patch_mask
    ).logits
    return logits_B1.squeeze(-1)


@plain_score.register
def _co_attention(
    scorer: CoAttentionScorer,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """Each pair through all of every layer."""
    mask = attention_mask.bool()
    images = scorer.encode_images(ImageBatch(pixel_values))
    texts = scorer.encode_texts(TextBatch(input_ids, attention_mask))
    image, text = images.tokens, texts.tokens
    for text_layer, image_layer in scorer.layers:
        text, image = _update(text_layer, text, mask, image, None), _update(image_layer, image, None, text, mask)
    logits = scorer.network.rank(text, image)
    cosine = scorer.network.cosine
    return logits if cosine is None else logits + cosine.logits(images.vectors, texts.vectors)


def _update(layer: FusionLayer, stream: Tensor, mask: Tensor | None, other: Tensor, other_mask: Tensor | None) -> Any:
    """The stream after a fusion step, every token projected."""
    tokens = _attend(layer.self_attention, stream, stream, mask)
    return layer.feed_forward(_attend(layer.cross_attention, tokens, other, other_mask))


def _attend(attention: Attention, tokens: Tensor, source: Tensor, mask: Tensor | None) -> Any:
    heads = attention.heads
    query, key, value = attention.query(tokens), attention.key(source), attention.value(source)
    context = heads.context(heads.split(query), heads.split(key), heads.split(value), mask)
    return attention.norm(attention.dropout(attention.dense(context)) + tokens)


@plain_score.register
def _matching(
    scorer: MatchingScorer,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """By the forward pass of transformers."""
    batch = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
    rows = getattr(scorer.network(**batch, **scorer.options), scorer.output)
    return rows[:, MATCH] - rows[:, NO_MATCH]


@plain_score.register
def _blip2(
    scorer: Blip2Scorer,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """The same, with the image tokens before a caption that the network cuts off: as many as it has queries."""
    if scorer.network.config.image_token_index is not None:
        first = (scorer.num_queries, 0)
        input_ids, attention_mask = functional.pad(input_ids, first), functional.pad(attention_mask, first, value=1)
    return _matching(scorer, pixel_values, input_ids, attention_mask, pixel_mask)


@plain_score.register
def _dual(
    scorer: DualScorer,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """Scaled cosines."""
    dual = scorer.dual
    images_BD = dual.embed_images(ImageBatch(pixel_values, pixel_mask))
    texts_BD = dual.embed_texts(TextBatch(input_ids, attention_mask))
    logits_B = dual.logit_scale * (images_BD * texts_BD).sum(dim=-1)
    return logits_B if dual.logit_bias is None else logits_B + dual.logit_bias


@plain_score.register
def _late(
    scorer: LateInteraction,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """MaxSim of one pair after another."""
    images = scorer.encode_images(ImageBatch(pixel_values, pixel_mask))
    texts = scorer.encode_texts(TextBatch(input_ids, attention_mask))
    logits = []
    for row in range(len(images)):
        products_LN = texts.tokens[row, texts.mask[row]] @ images.tokens[row, images.mask[row]].T
        largest_L = products_LN.max(dim=1).values
        logit = scorer.logit_scale * (largest_L.mean() if scorer.is_mean else largest_L.sum())
        if scorer.vectors_scale is not None:
            logit = logit + scorer.vectors_scale * (images.vectors[row] @ texts.vectors[row])
        logits.append(logit)
    return torch.stack(logits)


@plain_score.register
def _raw(
    scorer: RawPairScorer,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """Each pair in a call of its own."""
    pictures = pictures_of(ImageBatch(pixel_values, pixel_mask))
    captions = captions_of(TextBatch(input_ids, attention_mask))
    alone = [scorer._score([picture], [caption], [0], [0]) for picture, caption in zip(pictures, captions, strict=True)]
    return torch.cat(alone)
