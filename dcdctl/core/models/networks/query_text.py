"""The network of a query encoder: an encoder of transformers or, static, a vector per token, then a linear map into the
space of a teacher's vectors.

Shape letters: T texts, L tokens, H width of the encoder, D length of the teacher's vectors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dcdctl.core.models.inputs import TextBatch
from dcdctl.core.models.networks import backbones
from dcdctl.core.models.networks.projections import masked_mean
from dcdctl.core.models.protocols import Table

STATIC = "static"
"""The `model_type` of an encoder without attention."""
OWN_POOLING = (*backbones.CAUSAL, "siglip_text_model", "siglip2_text_model")
"""Text encoders whose pooled output is the vector of a text; of others it is the mean of the tokens."""


class StaticText(nn.Module):
    """A vector for each token of a vocabulary, whatever stands beside it, and one hidden layer. A text is the mean of
    its tokens' vectors before that layer, so its cost does not grow with the length."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, hidden_size)
        # Four times the width, as the feed-forward layers of transformers.
        self.dense = nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, vectors: Tensor) -> Tensor:
        """What the hidden layer makes of vectors of tokens or of their means."""
        return functional.gelu(self.dense(vectors))


class QueryText(nn.Module):
    """An encoder of texts, and its projection."""

    encoder: Any
    """A `StaticText`, or an encoder of transformers."""

    def __init__(self, encoder: PreTrainedModel | StaticText, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        if isinstance(encoder, StaticText):
            width = encoder.dense.out_features
        else:
            width = getattr(encoder.config, "projection_size", encoder.config.hidden_size)
            if encoder.config.model_type not in OWN_POOLING:
                backbones.drop_pooler(encoder)
        self.projection = nn.Linear(width, dim)

    @property
    def is_static(self) -> bool:
        """Whether no token sees another one."""
        return isinstance(self.encoder, StaticText)

    def texts(self, batch: TextBatch, word_TL: Tensor) -> Tensor:
        """The projected texts, T x D; of a static encoder `word_TL` are the tokens that count."""
        if self.is_static:
            mean_TH = masked_mean(self.encoder.embeddings(batch.input_ids), word_TL)
            return self.projection(self.encoder(mean_TH))
        output = self._output(batch)
        if self.encoder.config.model_type in OWN_POOLING:
            return self.projection(output.pooler_output)
        return self.projection(masked_mean(output.last_hidden_state, batch.attention_mask))

    def tokens(self, batch: TextBatch) -> Tensor:
        """The projected tokens, T x L x D."""
        if self.is_static:
            return self.projection(self.encoder(self.encoder.embeddings(batch.input_ids)))
        return self.projection(self._output(batch).last_hidden_state)

    def _output(self, batch: TextBatch) -> BaseModelOutputWithPooling:
        return self.encoder(input_ids=batch.input_ids, attention_mask=backbones.attention_mask(self.encoder, batch))

    def to_table(self) -> Table:
        """The configuration of the encoder, from which `of_table` makes an untrained network."""
        if self.is_static:
            vocab_size, hidden_size = self.encoder.embeddings.weight.shape
            return {"model_type": STATIC, "vocab_size": vocab_size, "hidden_size": hidden_size}
        table = self.encoder.config.to_dict()
        table.pop("_name_or_path", None)
        return table

    @staticmethod
    def of_table(table: Table, dim: int) -> QueryText:
        """An untrained network."""
        if table["model_type"] == STATIC:
            return QueryText(StaticText(table["vocab_size"], table["hidden_size"]), dim)
        return QueryText(backbones.new_encoder(AutoConfig.for_model(**table)), dim)
