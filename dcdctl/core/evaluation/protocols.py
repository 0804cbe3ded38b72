"""Evaluation protocols: which images of a split are evaluated, in how many galleries, and whether it is the test split
of the papers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dcdctl.core import data
from dcdctl.core.data import Corpus, read_corpus_json
from dcdctl.core.errors import ConfigError, CorpusError
from dcdctl.core.places import shown


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a split is evaluated."""

    name: str
    num_folds: int = 1
    """Galleries of consecutive images, evaluated separately; their measures are averaged."""
    data_set: str | None = None
    """Manifest of the data set whose test split the protocol is for; None for any split."""


class Fold(NamedTuple):
    """A gallery: consecutive images and their captions."""

    images: range
    texts: range


WHOLE = Protocol(name="whole")
PAPER_PROTOCOLS = (
    Protocol(name="flickr30k-1k", data_set="flickr30k"),
    Protocol(name="coco-5k", data_set="coco"),
    Protocol(name="coco-1k", data_set="coco", num_folds=5),
)
"""Protocols of the papers. The first of a data set is its default."""


def open_split(folder: Path, split: str, name: str = "auto", max_images: int | None = None) -> tuple[Corpus, Protocol]:
    """A split and its protocol. ConfigError for an unknown protocol, CorpusError for one that does not fit the corpus.

    `name` is one of `PAPER_PROTOCOLS`, or whole; auto is the protocol that the corpus names, or whole. With
    `max_images` it is that of the first images of a split.
    """
    if max_images is not None and name != "auto":
        raise ConfigError(
            f"--max-images {max_images} is a protocol of its own, but the protocol {name} is given",
            hint="leave one out",
        )
    # After the check of the options, because a corpus at a URL takes seconds to open.
    whole = Corpus.open(folder, split)
    if max_images is not None:
        corpus = whole.subset(max_images)
        return corpus, WHOLE if corpus is whole else Protocol(name=f"first-{max_images}")
    served = _title(read_corpus_json(folder).protocol)
    if name == "auto":
        fitting = (protocol for protocol in PAPER_PROTOCOLS if split == "test" and served == _title_of(protocol))
        return whole, next(fitting, WHOLE)
    protocol = {protocol.name: protocol for protocol in (WHOLE, *PAPER_PROTOCOLS)}.get(name)
    if protocol is None:
        known = ", ".join(("auto", WHOLE.name, *(protocol.name for protocol in PAPER_PROTOCOLS)))
        raise ConfigError(f"no protocol {name!r}", hint=f"known: {known}")
    _check(whole, served, protocol)
    return whole, protocol


def folds_of(corpus: Corpus, protocol: Protocol) -> list[Fold]:
    """The galleries of a protocol, of equal size up to one image."""
    if protocol.num_folds == 1:  # also of a pool, whose texts have no images
        return [Fold(range(corpus.num_images), range(corpus.num_captions))]
    ends = [corpus.num_images * fold // protocol.num_folds for fold in range(protocol.num_folds + 1)]
    # Captions are in the order of their images, so consecutive images have consecutive captions.
    text_ends = np.searchsorted(corpus.caption_image, ends).tolist()
    pairs = zip(itertools.pairwise(ends), itertools.pairwise(text_ends), strict=True)
    return [Fold(range(*images), range(*texts)) for images, texts in pairs]


def _check(corpus: Corpus, served: str | None, protocol: Protocol) -> None:
    """CorpusError if the split is not the one that the protocol is for."""
    if protocol.data_set is None:
        return
    expected = data.find_manifest(protocol.data_set).expected["test"]
    requirement = (
        f"protocol {protocol.name} requires a test split of {expected.images:,} images and "
        f"{expected.captions:,} captions"
    )
    has = f"split {corpus.split!r} of {shown(corpus.folder)} has {corpus.num_images:,} and {corpus.num_captions:,}"
    hint = f"leave --protocol out, or run `dcdctl prepare {protocol.data_set} --out DIR`"
    if corpus.split != "test" or (corpus.num_images, corpus.num_captions) != (expected.images, expected.captions):
        raise CorpusError(f"{requirement}; {has}", hint=hint)
    if served not in (None, _title_of(protocol)):
        raise CorpusError(
            f"protocol {protocol.name} is for {_title_of(protocol)}, but {shown(corpus.folder)} serves {served}",
            hint=hint,
        )


def _title_of(protocol: Protocol) -> str | None:
    """The name that the corpora of a protocol's data set give it; None for a protocol for any split."""
    return None if protocol.data_set is None else _title(data.find_manifest(protocol.data_set).protocol)


def _title(sentence: str | None) -> str | None:
    """The name before the colon of a corpus's `protocol`; None if it serves none.

    >>> _title("COCO 5K: Karpathy's test split"), _title("none: only the first 9 images of each split"), _title(None)
    ('COCO 5K', None, None)
    """
    title = (sentence or "").partition(":")[0]
    return None if title in ("", "none") else title
