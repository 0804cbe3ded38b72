"""Query encoders: a small text encoder that speaks the vector space of a frozen dual encoder, or the token space of a
late-interaction model. It stands in front of that model's images, which the teacher embeds once.

A query encoder is a dual encoder, or a late-interaction model, whose texts are its own and whose images are the
teacher's. It is saved without the teacher; `families.query.with_queries` joins the two again.

Shape letters: I images, T texts, L tokens of a text, D length of the teacher's vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from dcdctl.core import config
from dcdctl.core.errors import ModelError, StaleError
from dcdctl.core.models.checkpoint import save_own_format
from dcdctl.core.models.dual import DualEncoder, unit_vectors
from dcdctl.core.models.fingerprint import tokenizer_settings
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch, unencoded
from dcdctl.core.models.late import LateInteraction, Searchable
from dcdctl.core.models.model import Calibration, RetrievalModel
from dcdctl.core.models.networks.attention import set_hidden_dropout
from dcdctl.core.models.networks.query_text import QueryText
from dcdctl.core.models.preprocess import Preprocess
from dcdctl.core.models.protocols import ExportSpec, Preprocessor, Table
from dcdctl.core.models.references.folders import QUERY
from dcdctl.core.models.tokenizer import save_tokenizer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class QuerySpace:
    """The space of a teacher's vectors, as a query encoder remembers it."""

    kind: Literal["dual", "late"]
    dim: int
    """Length D of the teacher's vectors, or of its token vectors."""
    logit_scale: float
    logit_bias: float | None = None
    is_mean: bool = True
    """late: whether MaxSim is the mean over the tokens of a text, and not the sum."""
    teacher: str | None = None
    """The teacher's digest; None for vectors from elsewhere."""
    teacher_name: str | None = None
    """Who gave the vectors, if they come from elsewhere."""

    @property
    def has_tokens(self) -> bool:
        """Whether a text has a vector per token; otherwise it has one."""
        return self.kind == "late"

    @staticmethod
    def of(teacher: Searchable) -> QuerySpace:
        """The space of a model; ModelError for late interaction to which the cosine of whole vectors is added."""
        if teacher.has_one_vector:
            return QuerySpace(
                kind="dual",
                dim=teacher.embedding_dim,
                logit_scale=teacher.logit_scale.item(),
                logit_bias=None if teacher.logit_bias is None else teacher.logit_bias.item(),
                teacher=teacher.space_of or teacher.digest,
            )
        if teacher.vectors_scale is not None:
            raise ModelError(
                "the scores of this teacher add the cosine of whole vectors to MaxSim, and a query has tokens",
                hint="train the teacher with model.pooled=false",
            )
        return QuerySpace(
            kind="late",
            dim=teacher.token_dim,
            logit_scale=teacher.logit_scale.item(),
            is_mean=teacher.is_mean,
            teacher=teacher.digest,
        )

    def check(self, teacher: Searchable | QuerySpace, ref: object) -> None:
        """StaleError if a model, or the space of one, is not this one; of vectors from elsewhere, whose model is known
        by its name alone, kind and length count."""
        actual = teacher if isinstance(teacher, QuerySpace) else QuerySpace.of(teacher)
        if self.teacher not in (None, actual.teacher):
            problem = (
                f"{ref} speaks the space of the model {str(self.teacher)[:8]}, and this is {str(actual.teacher)[:8]}"
            )
            raise StaleError(problem, hint="name its teacher, or train a query encoder for this model")
        if (self.kind, self.dim) != (actual.kind, actual.dim):
            problem = f"{ref} is for a {self.kind} model of {self.dim} numbers, and this one is {actual.kind}"
            raise StaleError(f"{problem} with {actual.dim}", hint="name its teacher")


@dataclass(frozen=True, kw_only=True)
class QueryPreprocess(Preprocess):
    """The texts of a query encoder, and the images of its teacher."""

    image_processor: Any = None
    of_images: Preprocessor | None = None

    def images(self, images: Sequence[Image.Image]) -> ImageBatch:
        """As the teacher reads them; ModelError without a teacher."""
        return _joined(self.of_images).images(images)

    @property
    def image_size_px(self) -> int:
        """The teacher's."""
        return _joined(self.of_images).image_size_px

    @cached_property
    def settings(self) -> Table:
        """Everything that decides the tokens of a text."""
        return {
            "max_text_len": self.max_text_len,
            "pads_texts": self.pads_texts,
            "tokenizer": tokenizer_settings(self.tokenizer),
        }

    def save(self, folder: Path) -> None:
        """Write the files of the tokenizer."""
        save_tokenizer(self.tokenizer, folder)


def _joined(part: T | None) -> T:
    """The teacher, or its part; ModelError without a teacher."""
    if part is None:
        raise ModelError(
            "a query encoder embeds texts alone, and its teacher the images",
            hint="name its teacher, and the query encoder with --query-model",
        )
    return part


class _QuerySide(RetrievalModel):
    """What both kinds of query encoder share."""

    network: QueryText
    preprocess: QueryPreprocess
    is_word: Tensor

    def __init__(
        self, network: QueryText, preprocess: QueryPreprocess, space: QuerySpace, teacher: Searchable | None = None
    ) -> None:
        """`teacher` is the model that embeds the images."""
        super().__init__(network, preprocess)
        self.space, self.calibration = space, Calibration()
        # In a tuple, because a module trains, saves and counts the modules among its attributes.
        self._teachers = () if teacher is None else (teacher,)
        tokenizer = preprocess.tokenizer
        specials = sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
        # Not saved: it follows from the tokenizer.
        is_word = torch.ones(len(tokenizer)).index_fill(0, torch.tensor(specials), 0)
        self.register_buffer("is_word", is_word, persistent=False)

    def __repr__(self) -> str:
        encoder = type(self.network.encoder).__name__
        return f"{type(self).__name__}({encoder}, {self.space.dim} numbers per vector)"

    @property
    def teacher(self) -> Searchable | None:
        """The model that embeds the images, frozen; None before `join`."""
        return next(iter(self._teachers), None)

    def join(self, teacher: Searchable, ref: object = "the query encoder") -> Self:
        """A model of the same weights whose images the teacher embeds. StaleError for another teacher than that of its
        space."""
        self.space.check(teacher, ref)
        preprocess = replace(self.preprocess, of_images=teacher.preprocess)
        return type(self)(self.network, preprocess, self.space, teacher.requires_grad_(False).eval())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What moves the student to a device moves its teacher too.
        for teacher in self._teachers:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def config(self) -> Table:
        """The type, and the configuration of the text encoder."""
        return {"model_type": QUERY, "encoder": self.network.to_table()}

    @property
    def settings(self) -> Table:
        """The length of texts, and the teacher's space."""
        shape = {"max_text_len": self.preprocess.max_text_len, "pads_texts": self.preprocess.pads_texts}
        return {"kind": "query", **shape, "space": config.to_table(self.space)}

    @property
    def logit_scale(self) -> Tensor:
        """The teacher's, 0-dimensional."""
        return torch.tensor(self.space.logit_scale, device=self.is_word.device)

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        return () if self.network.is_static else (self.network.encoder,)

    def set_dropout(self, probability: float) -> None:
        """Set the hidden dropout of the text encoder; ModelError if it has none."""
        if not any(set_hidden_dropout(encoder, probability) for encoder in self._encoder_modules):
            raise ModelError("this query encoder has no dropout that can be set", hint="leave model.dropout out")

    def export_spec(self) -> ExportSpec:
        """No class of another library reads the saved folder."""
        padded = self.preprocess.max_text_len if self.preprocess.pads_texts else None
        return ExportSpec(padded_length=padded)

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights, in a format of our own."""
        save_own_format(self.network, self.config, folder, half=half)


class QueryEncoder(_QuerySide, DualEncoder):
    """A text encoder in front of a dual encoder's images."""

    def __init__(
        self, network: QueryText, preprocess: QueryPreprocess, space: QuerySpace, teacher: Searchable | None = None
    ) -> None:
        super().__init__(network, preprocess, space, teacher)
        self.embedding_dim = space.dim

    @property
    def logit_bias(self) -> Tensor | None:
        """The teacher's."""
        bias = self.space.logit_bias
        return None if bias is None else torch.tensor(bias, device=self.is_word.device)

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """The teacher's vectors, I x D, of images, or of what it encoded before (`dual_scorer.vector_states`)."""
        if isinstance(images, States) and images.vectors is not None:
            return images.vectors
        teacher = _joined(self.teacher)
        assert isinstance(teacher, DualEncoder)
        return teacher.embed_images(images)

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D, of the student."""
        batch = unencoded(texts)
        return unit_vectors(self.network.texts(batch, self.is_word[batch.input_ids] * batch.attention_mask))


class QueryLate(_QuerySide, LateInteraction):
    """A text encoder in front of a late-interaction model's images; it reads the tokens that its teacher reads."""

    def __init__(
        self, network: QueryText, preprocess: QueryPreprocess, space: QuerySpace, teacher: Searchable | None = None
    ) -> None:
        super().__init__(network, preprocess, space, teacher)
        self.token_dim, self.is_mean = space.dim, space.is_mean

    def encode_images(self, images: ImageBatch | States) -> States:
        """The teacher's token vectors."""
        if isinstance(images, States) and images.vectors is not None:
            return images
        teacher = _joined(self.teacher)
        assert isinstance(teacher, LateInteraction)
        return teacher.encode_images(images)

    def encode_texts(self, texts: TextBatch | States) -> States:
        """Unit vectors of the tokens of T texts, zeros for padding."""
        if isinstance(texts, States):
            return texts
        vectors_TLD = unit_vectors(self.network.tokens(texts))
        # Vectors without numbers, because states with none are not encoded.
        states = self._states_of(texts, vectors_TLD, vectors_TLD.new_empty(len(texts), 0))
        return states.with_tokens(vectors_TLD * states.mask[..., None], states.vectors)
