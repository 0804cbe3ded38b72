"""Whether a test split is the one that the papers report on, and how a split is evaluated: on which images, in how many galleries."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcdctl.core import data
from dcdctl.core.data import Corpus, read_corpus_json
from dcdctl.core.errors import ConfigError, CorpusError

FIRST_N = re.compile(r"first-([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a split is evaluated."""

    name: str
    num_folds: int = 1
    """Galleries of consecutive images, evaluated apart; their measures are averaged."""
    data_set: str | None = None
    """Manifest of the data set whose test split it is about; None for any split."""


@dataclass(frozen=True)
class Fold:
    """A gallery: consecutive images and their captions."""

    images: range
    texts: range


@dataclass(frozen=True)
class SplitChoice:
    """What a user asks to be evaluated on."""

    folder: Path
    split: str
    protocol: str = "auto"
    """One of `OF_PAPERS`, whole, first-N; auto is the one that the corpus says it serves, or whole."""
    max_images: int | None = None
    """The N of first-N."""


WHOLE = Protocol(name="whole")
OF_PAPERS = (
    Protocol(name="flickr30k-1k", data_set="flickr30k"),
    Protocol(name="coco-5k", data_set="coco"),
    Protocol(name="coco-1k", data_set="coco", num_folds=5),
)
"""Of those of one data set the first is what its corpus is evaluated by where nothing else is asked for."""


def open_split(choice: SplitChoice) -> tuple[Corpus, Protocol]:
    """A split and how it is evaluated. ConfigError for an unknown protocol, CorpusError for one that the corpus cannot serve."""
    name, first = choice.protocol, f"first-{choice.max_images}"
    if choice.max_images is not None and name not in ("auto", first):
        raise ConfigError(f"--max-images {choice.max_images} is the protocol {first}, and {name} is asked for", hint="leave one out")
    whole = Corpus.open(choice.folder, choice.split)
    if found := FIRST_N.fullmatch(name if choice.max_images is None else first):
        corpus = whole.subset(int(found[1]))
        return corpus, WHOLE if corpus is whole else Protocol(name=found[0])
    served = _title(read_corpus_json(choice.folder).get("protocol"))
    if name == "auto":
        serving = (one for one in OF_PAPERS if choice.split == "test" and served == _title_of(one))
        return whole, next(serving, WHOLE)
    protocol = {one.name: one for one in (WHOLE, *OF_PAPERS)}.get(name)
    if protocol is None:
        known = ", ".join(("auto", WHOLE.name, "first-N", *(one.name for one in OF_PAPERS)))
        raise ConfigError(f"no protocol {name!r}", hint=f"known: {known}")
    _check(whole, served, protocol)
    return whole, protocol


def folds_of(corpus: Corpus, protocol: Protocol) -> list[Fold]:
    """The galleries of a protocol, alike in size."""
    ends = [corpus.num_images * fold // protocol.num_folds for fold in range(protocol.num_folds + 1)]
    text_ends = np.searchsorted(corpus.caption_image, ends).tolist()
    pairs = zip(itertools.pairwise(ends), itertools.pairwise(text_ends), strict=True)
    return [Fold(range(*images), range(*texts)) for images, texts in pairs]


def _check(corpus: Corpus, served: str | None, protocol: Protocol) -> None:
    """CorpusError if the split is not the one that the protocol is about."""
    if protocol.data_set is None:
        return
    wanted = data.find_manifest(protocol.data_set).expected["test"]
    about = f"protocol {protocol.name} wants a test split of {wanted.images:,} images and {wanted.captions:,} captions"
    found = f"split {corpus.split!r} of {corpus.folder} has {corpus.num_images:,} and {corpus.num_captions:,}"
    hint = f"leave --protocol out, or run `dcdctl prepare {protocol.data_set} --out DIR`"
    if corpus.split != "test" or (corpus.num_images, corpus.num_captions) != (wanted.images, wanted.captions):
        raise CorpusError(f"{about}; {found}", hint=hint)
    if served not in (None, _title_of(protocol)):
        raise CorpusError(f"protocol {protocol.name} is one of {_title_of(protocol)}, and {corpus.folder} serves {served}", hint=hint)


def _title_of(protocol: Protocol) -> str | None:
    """What a paper's protocol is called in the corpora that serve it."""
    return None if protocol.data_set is None else _title(data.find_manifest(protocol.data_set).protocol)


def _title(sentence: str | None) -> str | None:
    """The name before the colon of what corpus.json says it serves; None where that is nothing.

    >>> _title("COCO 5K: Karpathy's test split"), _title("none: only the first 9 images of each split"), _title(None)
    ('COCO 5K', None, None)
    """
    title = (sentence or "").partition(":")[0]
    return None if title in ("", "none") else title
