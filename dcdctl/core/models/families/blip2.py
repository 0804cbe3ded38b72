"""BLIP-2 (Li et al., ICML 2023) with its matching head as a fusion scorer: the weights of transformers, our own forward
pass.

The image is encoded once. The Q-Former's learned queries and the caption attend to each other in every layer, and the
queries to the image in every second one; the head's rows are averaged over the queries. In the first layer nothing
depends on the image before the queries attend to it, so that part is computed once per caption. Keys and values of an
image are computed once for all of its pairs in a call, or folded into the queries where that is cheaper. The last layer
computes only the queries.

Shape letters: I images, T texts, P pairs, B aligned pairs, G groups of pairs of one image, Q queries, L text tokens, N
= Q + L, M image tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Blip2ForImageTextRetrieval, PreTrainedConfig, PreTrainedTokenizerBase

from dcdctl.core.errors import ModelError
from dcdctl.core.models.families.matching import MatchingScorer, finish, self_attend
from dcdctl.core.models.inputs import States, TextBatch, select_rows
from dcdctl.core.models.networks.attention import Groups, heads_of, recomputed
from dcdctl.core.models.tokenizer import check_vocabulary

IMAGE_TOKEN = "<image>"
"""What the processor of transformers puts before a caption, once for each query; the network cuts it off."""


class Blip2Scorer(MatchingScorer):
    """Scores image-caption pairs with the matching head of a BLIP-2."""

    network: Blip2ForImageTextRetrieval
    family = "BLIP-2"
    network_class = Blip2ForImageTextRetrieval
    processor_class = "Blip2Processor"
    output = "logits_per_image"
    options: ClassVar[Mapping[str, bool]] = {"use_image_text_matching_head": True}
    layers_name = "qformer.encoder.layer"
    head = "itm_head"
    text_part = "qformer_config"
    unread = ("vision_projection", "text_projection")
    max_text_len = 32  # `max_txt_len` in salesforce/LAVIS blip2_image_text_matching.py
    example = "Salesforce/blip2-itm-vit-g"

    @property
    def num_queries(self) -> int:
        """Number of learned queries."""
        return int(self.network.query_tokens.shape[1])

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters that a score depends on, or none. The last layer's feed-forward part for captions has no
        gradient either."""
        super().requires_grad_(requires_grad)
        for part in (self.layers[-1].intermediate, self.layers[-1].output):
            part.requires_grad_(False)
        return self

    def export_copy(self) -> Self:
        """The same scores from a network that expects no image tokens before a caption."""
        network = copy.deepcopy(self.network)
        network.config.image_token_index = None
        preprocess = self.preprocess.self_contained()
        # The processor of BLIP-2 subtracts from this entry the image tokens, of which there are none; it obeys
        # model_max_length without it.
        del preprocess.tokenizer.init_kwargs["max_length"]
        return type(self)(network, preprocess)

    def _text_tokens(self, texts: TextBatch) -> Tensor:
        """ModelError for a caption that contains the image token."""
        if len(self.preprocess.tokenizer) > (vocab_size := self.network.config.qformer_config.vocab_size):
            largest = int(texts.input_ids.max())
            if largest >= vocab_size:
                token = self.preprocess.tokenizer.convert_ids_to_tokens(largest)
                raise ModelError(
                    f"a caption contains {token}, for which BLIP-2 has no embedding", hint="remove it from the captions"
                )
        return self._embedded(self.network.embeddings(input_ids=texts.input_ids))

    def _embedded(self, tokens: Tensor) -> Tensor:
        qformer = self.network.qformer
        return qformer.dropout(qformer.layernorm(tokens))

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""
        texts, text_at_P = texts.distinct(text_ix_P)
        groups = Groups.of(image_ix_P.cpu())
        image_GMD = select_rows(images.tokens, groups.image_ix_G)
        groups = groups.to(image_GMD.device)
        queries_TQD = self._embedded(self.network.query_tokens.expand(len(texts), -1, -1))
        mask_TN = None if texts.is_full else functional.pad(texts.mask, (self.num_queries, 0), value=True)
        mask_PN = None if mask_TN is None else mask_TN[text_at_P]
        tokens_PND = torch.cat([queries_TQD, texts.tokens], dim=1)

        def run_layer(layer: Any, tokens_PND: Tensor, image_GMD: Tensor, is_first: bool, is_last: bool) -> Tensor:
            inner, outer = layer.attention.attention, layer.attention.output
            count = self.num_queries if is_last else None
            attended_PND = self_attend(inner, outer, tokens_PND, mask_TN if is_first else mask_PN, num_queries=count)
            queries, text = attended_PND[:, : self.num_queries], attended_PND[:, self.num_queries :]
            text = text if is_last else layer.feed_forward_chunk(text)
            if is_first:
                queries, text = select_rows(queries, text_at_P), select_rows(text, text_at_P)
            if layer.has_cross_attention:
                cross = layer.crossattention
                projected = groups.attend(heads_of(cross.attention), cross.output.dense, queries, image_GMD)
                queries = finish(cross.output, projected, queries)
            return torch.cat([layer.feed_forward_chunk_query(queries), text], dim=1)

        for index, layer in enumerate(self.layers):
            # In the last layer captions are only attended to, because the head reads the queries alone.
            arguments = tokens_PND, image_GMD, index == 0, index == self.num_layers - 1
            tokens_PND = recomputed(self.network, run_layer, layer, *arguments)
        # The mean of the queries' logits is the logit of their mean, because the head is linear.
        return self.match(tokens_PND[:, : self.num_queries].mean(dim=1))

    @classmethod
    def _check_config(cls, config: PreTrainedConfig, ref: str) -> None:
        if not config.qformer_config.use_qformer_text_input:
            raise cls._no_head(config, ref)

    @classmethod
    def _check_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
        # Its processor adds an image token to the tokenizer, which has no embedding; `encode_texts` refuses captions
        # that contain it.
        vocab_size = config.qformer_config.vocab_size
        has_image_token = len(tokenizer) > vocab_size and tokenizer.convert_ids_to_tokens(vocab_size) == IMAGE_TOKEN
        check_vocabulary(tokenizer, vocab_size + has_image_token)


load = Blip2Scorer.load
