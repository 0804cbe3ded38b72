"""Summary of a prepared corpus: counts, captions, sizes of images, and the origin from corpus.json. Reads no image
file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.artifacts import kind_of_folder, other_folder_error
from dcdctl.core.config import OMITTED
from dcdctl.core.data.captions import text_key, words_of
from dcdctl.core.data.corpus import Corpus
from dcdctl.core.data.corpus_json import CORPUS_FILE, read_corpus_json
from dcdctl.core.data.near_duplicates import Leakage
from dcdctl.core.errors import InputError
from dcdctl.core.places import url_of
from dcdctl.core.progress import byte_size

Kind = Literal["cache", "corpus", "index", "texts"]
INSPECTED: dict[str, Kind] = {
    "a corpus": "corpus",
    "an index": "index",
    "a text cache": "texts",
    "a teacher cache": "cache",
}
"""What `dcdctl inspect` shows, of what dcdctl writes a folder as."""
MAX_WORDS_COUNTED = 40
"""The last bin of the histogram of caption lengths: so many words or more."""
# A summary is read on one screen; corpus.json has all of them.
MAX_REASONS = 5


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The distribution of a number over images or captions."""

    min: int
    mean: float
    median: float
    max: int


@dataclass(frozen=True, kw_only=True)
class SplitInspection:
    """The content of a split, or of its first images. A Spread is None where there is nothing to count."""

    images: int
    captions: int
    """Or the texts of a pool."""
    is_pool: Annotated[bool, OMITTED] = False
    """Whether no text belongs to an image."""
    fingerprint: str
    bytes: int
    """The size of the split's files on disk, also of those of the images that are left out."""
    width_px: Spread | None
    height_px: Spread | None
    captions_per_image: Spread | None
    """None for a pool."""
    words_per_caption: Spread | None
    captions_by_words: list[int]
    """The number of captions with 0, 1, 2, ... words; the last bin, `MAX_WORDS_COUNTED`, includes longer ones."""
    different_words: int
    """Words as in `captions.words_of`: they hold a letter or a digit, and case makes no difference."""
    captions_by_label: Annotated[dict[str, dict[str, int]], OMITTED] = field(default_factory=dict)
    """The number of captions of each source and each language, by "source" and "language"."""
    repeated: float
    """The share of captions with the text of another caption of the split (`captions.text_key`)."""


@dataclass(frozen=True, kw_only=True)
class CorpusInspection:
    """The content of a corpus."""

    name: str
    license: str
    source: str
    """The format of the source, such as karpathy or csv."""
    left_out: dict[str, int]
    """Rows of the source that `prepare --on-error skip` skipped, by reason, the most frequent first."""
    protocol: str
    leakage: Leakage
    splits: dict[str, SplitInspection]


def artifact_kind(folder: Path) -> Kind:
    """Whether a folder is a teacher cache or a corpus, finished or not, or an index; InputError if it is none of
    them."""
    # Of what dcdctl writes, only a corpus is read from a URL.
    if url_of(folder) is not None:
        return "corpus"
    written_as = kind_of_folder(folder)
    if written_as in INSPECTED:
        return INSPECTED[written_as]
    # The plan of an unfinished cache.
    if not written_as and (folder / "plan.json").is_file():
        return "cache"
    if other := other_folder_error(folder, "corpus, a teacher cache or an index", error=InputError):
        raise other
    raise InputError(
        f"{folder} does not exist, or holds no corpus ({CORPUS_FILE}), no teacher cache (cache.json) and no index "
        "(index.json)",
        hint="name a folder written by `dcdctl prepare`, `dcdctl cache-teacher` or `dcdctl index`",
    )


def summarize_corpus(folder: Path, split: str | None = None, *, max_images: int | None = None) -> CorpusInspection:
    """The summary of a corpus, or of one split; CorpusError if there is no corpus, or if it is damaged."""
    document = read_corpus_json(folder)
    names = [split] if split else list(document.splits)
    return CorpusInspection(
        name=document.name,
        license=document.license,
        source=document.source.get("kind", ""),
        left_out=dict(Counter(row.reason for row in document.skipped).most_common()),
        protocol=document.protocol,
        leakage=document.leakage,
        splits={name: _inspect_split(Corpus.open(folder, name, max_images)) for name in names},
    )


def _inspect_split(corpus: Corpus) -> SplitInspection:
    counts_by_label: dict[str, dict[str, int]] = {}
    for label, groups in corpus.captions_by_label.items():
        counts_by_label[label] = {name: len(captions) for name, captions in groups.items()}
    texts, words, lengths = Counter[str](), set[str](), list[int]()
    for text in corpus.captions:
        caption_words = words_of(text)
        lengths.append(len(caption_words))
        words.update(caption_words)
        texts[text_key(text)] += 1
    return SplitInspection(
        images=corpus.num_images,
        captions=len(lengths),
        is_pool=corpus.is_pool,
        fingerprint=corpus.fingerprint,
        bytes=corpus.num_bytes,
        width_px=_spread(corpus.sizes("width")),
        height_px=_spread(corpus.sizes("height")),
        captions_per_image=None if corpus.is_pool else _spread(np.bincount(corpus.caption_image)),
        words_per_caption=_spread(np.array(lengths)),
        captions_by_words=np.bincount(np.minimum(np.array(lengths, np.int64), MAX_WORDS_COUNTED)).tolist(),
        different_words=len(words),
        captions_by_label=counts_by_label,
        repeated=sum(count for count in texts.values() if count > 1) / max(len(lengths), 1),
    )


def _spread(values: NDArray[Any]) -> Spread | None:
    if not len(values):
        return None
    return Spread(
        min=int(values.min()), mean=float(values.mean()), median=float(np.median(values)), max=int(values.max())
    )


def corpus_facts(inspection: CorpusInspection) -> list[tuple[str, str]]:
    """Names and values, in words, of the facts about the whole corpus."""
    left_out = [f"{count:,} x {reason}" for reason, count in inspection.left_out.items()]
    more = [f"more in {CORPUS_FILE}"] if len(left_out) > MAX_REASONS else []
    facts = [
        ("source", inspection.source or "unknown"),
        ("license", inspection.license or "unknown"),
        ("skipped rows", "; ".join([f"{sum(inspection.left_out.values()):,}", *left_out[:MAX_REASONS], *more])),
    ]
    if inspection.protocol:
        facts.append(("protocol", inspection.protocol))
    return facts + inspection.leakage.facts()


def corpus_table(inspection: CorpusInspection) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of the counts: one row per fact, one column per split."""
    facts = [_split_facts(split) for split in inspection.splits.values()]
    names = dict.fromkeys(name for fact in facts for name, value in fact.items() if value)
    rows = []
    for name in names:
        rows.append([name, *(fact.get(name, "") for fact in facts)])
    return ["", *inspection.splits], rows


def _split_facts(split: SplitInspection) -> dict[str, str]:
    texts, text = ("texts without pairing", "text") if split.is_pool else ("captions", "caption")
    facts = {"images": f"{split.images:,}", texts: f"{split.captions:,}"}
    for label, counts in split.captions_by_label.items():
        facts[f"{texts} by {label}"] = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return facts | {
        "captions per image": _in_words(split.captions_per_image),
        f"words per {text}": _in_words(split.words_per_caption),
        "different words": f"{split.different_words:,}",
        # Left out of a pool, whose texts are a log: many queries are asked again.
        "repeated captions": f"{split.repeated:.1%}" if texts == "captions" else "",
        "width [px]": _in_words(split.width_px),
        "height [px]": _in_words(split.height_px),
        "files": byte_size(split.bytes),
        "fingerprint": split.fingerprint[:8],
    }


def _in_words(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.min == spread.max:
        return f"{spread.min:,}"
    return f"{spread.min:,} to {spread.max:,}, median {spread.median:,g}, mean {spread.mean:,.1f}"
