"""A query encoder, which embeds texts alone, as a folder of other libraries.

OUT for sentence-transformers: its own modules. An encoder with attention gives Transformer, Pooling, Dense and
Normalize; a static one StaticEmbedding, Dense, Dense and Normalize.
OUT for onnx: model.onnx, tokenizer.json and text.json, as `models.TextTower` describes them.
"""

from __future__ import annotations

import copy
import tempfile
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import MODEL_MAPPING

from dcdctl.core import models
from dcdctl.core.errors import ModelError
from dcdctl.core.export.check import NOT_WRITTEN, Check, Samples, compare_vectors
from dcdctl.core.export.target import Target
from dcdctl.core.export.to_onnx import Onnx
from dcdctl.core.export.to_sentence_transformers import SentenceTransformers
from dcdctl.core.models import silence_transformers
from dcdctl.core.scoring import Vectors

UNKNOWN = "unknown"
"""In place of the teacher's fingerprint, for vectors from another program."""
_SENTENCE_TRANSFORMERS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
texts = model.encode(["a dog in the snow"])  # to be compared with the teacher's vectors of images, by their cosine
"""
_ONNX = """\
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

{folder}
settings = json.loads(Path(folder, "text.json").read_text())["settings"]
padding, length = settings["padding"], settings["max_text_len"]
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.enable_truncation(length, direction=settings["truncation_side"])
tokenizer.enable_padding(
    length=length if padding["to_maximum"] else None,
    direction=padding["side"],
    pad_id=padding["id"],
    pad_token=padding["token"],
)
session = onnxruntime.InferenceSession(folder + "/model.onnx")
texts = tokenizer.encode_batch(["a dog in the snow"])
inputs = {{"input_ids": [text.ids for text in texts], "attention_mask": [text.attention_mask for text in texts]}}
# To be compared with the teacher's vectors of images.
(vectors,) = session.run(None, {{node.name: np.array(inputs[node.name]) for node in session.get_inputs()}})
"""


class QueryTarget(Target):
    """An export of texts alone."""

    has_texts_alone = True

    @property
    def library(self) -> str:
        return self.name

    @property
    def title(self) -> str:
        space, length = self.model.space, self.model.preprocess.max_text_len
        per = "each token" if self.has_tokens else "a text"
        teacher = space.teacher_name or f"the model of the fingerprint {str(space.teacher)[:12]}"
        return (
            f"A query encoder: it gives {per} a vector of {space.dim} numbers, to be compared with the vectors of "
            f"images by its teacher, {teacher}. It reads texts of up to {length} tokens."
        )

    @abstractmethod
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Vectors of texts by the library alone, from the folder."""

    def compare(self, samples: Samples) -> tuple[Check, ...]:
        """The library's vectors beside ours: of the first caption alone, and of the others together."""
        texts = samples.captions
        rows = [*self.embed_texts(texts[:1])]
        if texts[1:]:
            rows += self.embed_texts(texts[1:])
        with torch.no_grad():
            original = self.model.embed_texts(self.model.preprocess.texts(texts)).flatten(1)
        exported = pad_sequence(rows, batch_first=True).flatten(1)
        no_images = torch.empty(0, 1)
        ours, theirs = Vectors(no_images, original), Vectors(no_images, exported)
        return (compare_vectors("fp32", theirs, ours, hint=NOT_WRITTEN),)


class QuerySentenceTransformers(QueryTarget, SentenceTransformers):
    """The modules of sentence-transformers."""

    def check(self) -> None:
        """ModelError for late interaction, and for an encoder that the library does not read alone."""
        encoder, reason = self.model.network.encoder, ""
        if self.has_tokens:
            reason = "it has a vector per token"
        elif not self.model.network.is_static and type(encoder.config) not in MODEL_MAPPING:
            reason = f"AutoModel of transformers reads no {encoder.config.model_type}"
        if reason:
            raise ModelError(
                f"{self.job.ref} is a query encoder that is not exported to {self.name}: {reason}",
                hint="export it with --to onnx",
            )

    def write(self) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Dense, Normalize
        from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer

        def dense(layer: nn.Linear, activation: nn.Module) -> Any:
            weight, bias = layer.weight.detach(), layer.bias.detach()
            return Dense(layer.in_features, layer.out_features, True, activation, weight, bias)

        encoder, projection = self.model.network.encoder, self.model.network.projection
        tokenizer, length = copy.deepcopy(self.model.preprocess.tokenizer), self.model.preprocess.max_text_len
        if self.model.network.is_static:
            tokens = tokenizer.backend_tokenizer
            # Cut as with its special tokens, which have no part in the mean.
            tokens.enable_truncation(length - tokenizer.num_special_tokens_to_add())
            first = [StaticEmbedding(tokens, encoder.embeddings.weight.detach()), dense(encoder.dense, nn.GELU())]
        else:
            with tempfile.TemporaryDirectory() as folder, silence_transformers():
                tokenizer.model_max_length = length
                tokenizer.save_pretrained(folder)
                encoder.save_pretrained(folder)
                if encoder.config.model_type in models.OWN_POOLING:
                    method = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
                    first = [Transformer(folder, modality_config=method, module_output_name="sentence_embedding")]
                else:
                    first = [Transformer(folder), Pooling(encoder.config.hidden_size, "mean")]
        modules = [*first, dense(projection, nn.Identity()), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(self.folder), create_model_card=False)

    def embed_texts(self, texts: list[str]) -> Tensor:
        from sentence_transformers import SentenceTransformer

        with silence_transformers():
            encoder = SentenceTransformer(str(self.folder), device="cpu")
        vectors: Tensor = encoder.encode(texts, show_progress_bar=False, convert_to_tensor=True)
        return vectors

    def usage(self) -> str:
        return _SENTENCE_TRANSFORMERS.format(name=self.job.name)

    def requirements(self) -> list[str]:
        return ["sentence-transformers>=6.0"]


class QueryOnnx(QueryTarget, Onnx):
    """A graph of the texts for ONNX Runtime, and their tokenizer."""

    def check(self) -> None:
        """Nothing: `models.export_text_tower` refuses what it cannot write."""

    def write(self) -> None:
        models.export_text_tower(self.model, self.folder, self.model.space.teacher or UNKNOWN)

    def embed_texts(self, texts: list[str]) -> Tensor:
        tower = models.TextTower.open(self.folder, self.model.space.teacher or UNKNOWN)
        return torch.from_numpy(tower.vectors(tower.tokenize(texts)[0]))

    def usage(self) -> str:
        return _ONNX.format(folder=self.folder_code)

    def requirements(self) -> list[str]:
        return ["onnxruntime", "tokenizers"]


QUERY_TARGETS: dict[str, type[Target]] = {target.name: target for target in (QuerySentenceTransformers, QueryOnnx)}
"""The values of `--to` for a query encoder."""
