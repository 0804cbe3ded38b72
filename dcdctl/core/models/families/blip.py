"""BLIP (Li et al., ICML 2022) with its matching head as a fusion scorer: the weights of transformers, our own forward
pass.

The image is encoded once. A text layer attends to the caption, then to the image. The first layer's attention to the
caption does not depend on the image and is computed once per caption; keys and values of an image are computed once for
all of its pairs in a call, or folded into the queries where that is cheaper; the last layer computes only the first
token.

The scores are those of transformers. Its forward pass starts a caption with [CLS], where the original code puts [ENC]
(id 30523) before it scores a pair (salesforce/BLIP train_retrieval.py; huggingface/transformers#25629), so published
recalls need not be reached exactly.

Shape letters: I images, T texts, P pairs, B aligned pairs, G groups of pairs of one image, L text tokens, M image
tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional
from transformers import BlipForImageTextRetrieval
from transformers.models.blip.modeling_blip import BlipAttention

from dcdctl.core.models.families.matching import MatchingScorer, finish, self_attend
from dcdctl.core.models.inputs import States, TextBatch, select_rows
from dcdctl.core.models.networks.attention import Groups, compute_by, heads_of, recomputed
from dcdctl.core.models.preprocess import Preprocess


class FusedAttention(BlipAttention):
    """The self-attention of the vision encoder by torch's fused kernel, equal up to rounding; transformers computes it
    in four steps."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """The tokens after attention, and no probabilities."""
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        context = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        return self.projection(context.transpose(1, 2).flatten(2)), None


class BlipScorer(MatchingScorer):
    """Scores image-caption pairs with the matching head of a BLIP."""

    network: BlipForImageTextRetrieval
    family = "BLIP"
    network_class = BlipForImageTextRetrieval
    processor_class = "BlipProcessor"
    output = "itm_score"
    layers_name = "text_encoder.encoder.layer"
    head = "itm_head"
    unread = ("vision_proj", "text_proj")
    max_text_len = 35  # as in train_retrieval.py
    example = "Salesforce/blip-itm-base-coco"

    def __init__(self, network: nn.Module, preprocess: Preprocess, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__(network, preprocess, unused_keys)
        # The text layers need none: `score_pairs` computes their attention itself.
        compute_by(FusedAttention, BlipAttention, self.network.vision_model)

    def student(self, layers: Sequence[int]) -> Self:
        layers = self.checked_layers(layers)
        network = copy.deepcopy(self.network)
        network.text_encoder.encoder.layer = nn.ModuleList(
            [network.text_encoder.encoder.layer[index] for index in layers]
        )
        for config in (network.config.text_config, network.text_encoder.config):
            config.num_hidden_layers = len(layers)
        return type(self)(network, self.preprocess)

    def _text_tokens(self, texts: TextBatch) -> Tensor:
        return self.network.text_encoder.embeddings(input_ids=texts.input_ids)

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""
        texts, text_at_P = texts.distinct(text_ix_P)
        groups = Groups.of(image_ix_P.cpu())
        image_GMD = select_rows(images.tokens, groups.image_ix_G)
        groups = groups.to(image_GMD.device)
        mask_TL = None if texts.is_full else texts.mask
        mask_PL = None if mask_TL is None else mask_TL[text_at_P]
        tokens_PLD = texts.tokens

        def run_layer(
            layer: Any, tokens_PLD: Tensor, image_GMD: Tensor, is_first: bool, num_queries: int | None
        ) -> Tensor:
            # Before its first cross-attention a caption does not depend on an image, so it is computed once for all its
            # pairs.
            inner, outer, cross = layer.attention.self, layer.attention.output, layer.crossattention
            attended = self_attend(inner, outer, tokens_PLD, mask_TL if is_first else mask_PL, num_queries=num_queries)
            attended_PLD = select_rows(attended, text_at_P) if is_first else attended
            projected = groups.attend(heads_of(cross.self), cross.output.dense, attended_PLD, image_GMD)
            return layer.feed_forward_chunk(finish(cross.output, projected, attended_PLD))

        for index, layer in enumerate(self.layers):
            # The head reads only the first token.
            count = 1 if index == self.num_layers - 1 else None
            tokens_PLD = recomputed(self.network, run_layer, layer, tokens_PLD, image_GMD, index == 0, count)
        return self.match(tokens_PLD[:, 0])


load = BlipScorer.load
