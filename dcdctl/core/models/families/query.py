"""Query encoders: new ones, those that dcdctl saved, and a query encoder joined with its teacher (`query`)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel

from dcdctl.core import config
from dcdctl.core.errors import ModelError
from dcdctl.core.models import load_save
from dcdctl.core.models.late import Searchable
from dcdctl.core.models.model import seeded
from dcdctl.core.models.networks import backbones
from dcdctl.core.models.networks.over_encoders import load_weights, read_folder
from dcdctl.core.models.networks.query_text import QueryText, StaticText
from dcdctl.core.models.networks.towers import Tower, keep_layers
from dcdctl.core.models.preprocess import Preprocess
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.query import QueryEncoder, QueryLate, QueryPreprocess, QuerySpace
from dcdctl.core.models.tokenizer import check_text_length, check_vocabulary, load_tokenizer, num_text_positions

ATTENTION = ("align_text_model", "aimv2_text_model")
"""Text encoders whose attention here is not the default that they have alone (`vision_text_dual.ATTENTION`)."""
TEACHER = "teacher"
"""The value of `text` that stands for the teacher's own text encoder."""
QueryModel = QueryEncoder | QueryLate


@dataclass(frozen=True, kw_only=True)
class QuerySize:
    """What the text encoder of a query encoder is."""

    text: str = ""
    """Empty for a new one; the reference of a pretrained text encoder; or `teacher`."""
    layers: Sequence[int] = ()
    """Layers of a pretrained encoder to keep; empty for all."""
    num_layers: int = 2
    """Layers of a new encoder; 0 for a static one, also over the token embeddings of a pretrained encoder."""
    hidden_size: int = 128
    num_heads: int = 4
    dropout: float = 0.0
    max_text_len: int = 40


def new_query(
    space: QuerySpace, size: QuerySize, *, tokenizer: Any = None, teacher: Searchable | None = None, seed: int = 0
) -> QueryModel:
    """An untrained query encoder for the space of a teacher. `tokenizer` is that of a new encoder.

    ModelError for late interaction without the teacher's own tokens, for `teacher` without a teacher or with one whose
    text encoder is none of transformers, and for layers or a length that the encoder lacks. Equal seeds give equal
    weights; the global random state is not touched.
    """
    if space.has_tokens and size.text != TEACHER:
        raise ModelError(
            "a late-interaction teacher has a vector for each of its tokens, and this encoder reads other tokens",
            hint="name it with --teacher, and give --set model.text=teacher",
        )
    pads_texts = False
    if size.text == TEACHER:
        encoder, tokenizer, pads_texts = _of_teacher(teacher)
    elif size.text:
        # Copied layers of a pretrained encoder need no seed.
        encoder, tokenizer = backbones.load_text(size.text), load_tokenizer(size.text)
    else:
        encoder = None
    with seeded(seed):
        network = QueryText(_encoder(encoder, size, tokenizer), space.dim)
    length = size.max_text_len
    if not network.is_static:
        positions = num_text_positions(network.encoder.config)
        length = positions if pads_texts else min(length, positions)
    preprocess = QueryPreprocess(tokenizer=tokenizer, max_text_len=length, pads_texts=pads_texts)
    return (QueryLate if space.has_tokens else QueryEncoder)(network, preprocess, space)


def _of_teacher(teacher: Searchable | None) -> tuple[Any, Any, bool]:
    """A copy of the teacher's text encoder, its tokenizer, and whether it reads padding."""
    if teacher is None:
        raise ModelError("model.text is teacher, and no teacher is given", hint="name it with --teacher")
    preprocess = teacher.preprocess
    # The vision encoder and the text encoder, where a dual encoder has both as modules.
    modules: tuple[Any, ...] = () if teacher.as_dual is None else teacher.as_dual._encoder_modules
    if not isinstance(preprocess, Preprocess) or len(modules) != 2 or modules[1].config.model_type in ATTENTION:
        hint = "set model.text to an empty text, or name a text encoder such as MiniLM with --text"
        if teacher.kind == "late":
            hint = "of late interaction, take a run over encoders of transformers; its export has no such encoder"
        raise ModelError("the text encoder of this teacher does not stand alone as one of transformers", hint=hint)
    return copy.deepcopy(modules[1]).requires_grad_(True), preprocess.tokenizer, preprocess.pads_texts


def _encoder(pretrained: Any, size: QuerySize, tokenizer: Any) -> nn.Module:
    """The encoder of a new network, on the random numbers of the current seed."""
    if size.num_layers == 0:
        if pretrained is None:
            return StaticText(len(tokenizer), size.hidden_size)
        weight = pretrained.get_input_embeddings().weight.detach()
        static = StaticText(*weight.shape)
        with torch.no_grad():
            static.embeddings.weight.copy_(weight)
        return static
    if pretrained is not None:
        if size.layers:
            keep_layers(Tower("text", "network.encoder", pretrained), size.layers, pretrained.config)
        return pretrained
    shape = BertConfig(
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        intermediate_size=4 * size.hidden_size,
        hidden_dropout_prob=size.dropout,
        attention_probs_dropout_prob=0.0,
        # The usual 0.02 suits a width of 768 (`vision_text_dual.new_dual`).
        initializer_range=size.hidden_size**-0.5,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=size.max_text_len,
    )
    return BertModel(shape)


def load(ref: str, table: Table, saved: Table | None) -> QueryModel:
    """The query encoder of a folder that `load_save.save` wrote, without its teacher; `saved` is its dcdctl.json."""
    assert saved is not None
    document, weights = read_folder(ref)
    space = config.build(QuerySpace, saved["space"])
    network = QueryText.of_table(document["encoder"], space.dim)
    load_weights(network, weights, ref, "a query encoder")
    tokenizer, length = load_tokenizer(ref), saved["max_text_len"]
    check_vocabulary(tokenizer, network.to_table()["vocab_size"])
    check_text_length(length, length if network.is_static else num_text_positions(network.encoder.config))
    preprocess = QueryPreprocess(tokenizer=tokenizer, max_text_len=length, pads_texts=saved["pads_texts"])
    return (QueryLate if space.has_tokens else QueryEncoder)(network, preprocess, space)


def with_queries(teacher: Searchable, ref: str | Path) -> QueryModel:
    """A query encoder in front of its teacher's images: a dual encoder or a late-interaction model, whose texts are the
    student's. StaleError for another teacher than its own, ModelError if the reference names no query encoder."""
    query = load_save.load(ref, kind="query")
    assert isinstance(query, QueryEncoder | QueryLate)
    return query.join(teacher, ref)
