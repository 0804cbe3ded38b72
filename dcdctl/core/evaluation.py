"""Recall@K of a model on a corpus: a dual encoder, a fusion scorer, or a cascade of both.

- dual: every image and caption is embedded once; scores are streamed.
- fusion: every pair goes through the fusion layers, in chunks of images. The positives are scored first, so that no score needs
  to be kept; each caption is encoded once and each image twice, which costs little beside its pairs.
- cascade: the dual encoder finds the first `depth` captions of each image and images of each caption, the fusion scorer puts
  these in a new order; what lies below them stays in the dual encoder's order.

Shape letters: I images, T texts (captions), P pairs, Q queries, K the first few, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypeIs

from dcdctl.core import files, models, retrieval, scoring
from dcdctl.core.config import apply_sets
from dcdctl.core.corpus import Corpus
from dcdctl.core.errors import ModelError
from dcdctl.core.features import CorpusSource, Source, open_or_build
from dcdctl.core.models.protocols import DualEncoder, FusionScorer, States
from dcdctl.core.progress import Advance, Track, silent
from dcdctl.core.retrieval import Ranks, Recalls

FUSION_ROUNDING = 1e-5
"""Logits this close, relative to the larger of 1 and their size, are a tie: padding and batch size move a logit by this much."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model retrieves on a corpus."""

    recalls: Recalls
    text_ranks: NDArray[np.int64]
    """Rank of the best own caption of each image."""
    image_ranks: NDArray[np.int64]
    """Rank of the image of each caption."""
    seconds: float
    """Wall clock for everything, reading the images included."""
    pairs_scored: int
    """Pairs that went through fusion layers."""
    kind: Literal["dual", "fusion", "cascade"]
    depth: int | None
    """cascade: candidates re-ranked of each query."""
    features: Literal["float16"] | None
    """How the outputs of the fusion scorer's encoders were kept, where they were."""
    fingerprint: str
    """Of the corpus."""


@dataclass(frozen=True)
class _Setting:
    corpus: Corpus
    batch_size: int
    device: torch.device
    track: Track
    features: Path | None = None
    """Where outputs of a fusion scorer's encoders are kept; None to encode anew."""


def load_models(
    ref: str, rerank: str | None = None, model_sets: Sequence[str] = (), track: Track = silent
) -> tuple[FusionScorer | DualEncoder, FusionScorer | None]:
    """The model to evaluate, with settings such as "image_size=384", and the fusion scorer that re-ranks, if there is one."""
    scorer = _load(models.load, ref, apply_sets({}, model_sets), track)
    return scorer, None if rerank is None else _load(models.load_fusion, rerank, {}, track)


def _load(load: Callable[[str, dict[str, Any], Track], Any], ref: str, overrides: dict[str, Any], track: Track) -> Any:
    """A model; where there is none, the ModelError says how a run is made."""
    try:
        return load(ref, overrides, track)
    except ModelError as error:
        if Path(ref).exists():
            raise
        raise ModelError(error.args[0], hint=f"make a run with `dcdctl distill`; {error.hint}".removesuffix("; ")) from error


def evaluate(
    model: FusionScorer | DualEncoder,
    corpus: Corpus,
    *,
    rerank: FusionScorer | None = None,
    depth: int = 50,
    batch_size: int = 256,
    device: torch.device = CPU,
    features: Path | None = None,
    track: Track = silent,
) -> Evaluation:
    """Rank every caption for every image and every image for every caption; with `rerank`, the first `depth` of each anew.

    `batch_size` counts images, captions or pairs in one forward pass.
    """
    started = time.perf_counter()
    setting = _Setting(corpus, batch_size, device, track, features)
    num_images, num_captions = setting.corpus.num_images, setting.corpus.num_captions
    kind: Literal["dual", "fusion", "cascade"]
    if features is not None and is_dual(model) and not isinstance(model, models.EncoderDual) and rerank is None:
        raise ModelError("a dual encoder's features are its vectors, which are computed once in any case", hint="leave --features out")
    if not is_dual(model):
        if rerank is not None:
            raise ModelError("only a dual encoder's results can be re-ranked, and the model is a fusion scorer")
        kind, ranks, num_pairs = "fusion", _fusion_ranks(model, setting), num_images * num_captions
    elif rerank is None:
        kind, ranks, num_pairs = "dual", _dual_ranks(*_embed(model, setting), setting.corpus), 0
    else:
        kind, (ranks, num_pairs) = "cascade", _cascade_ranks(model, rerank, depth, setting)
    return Evaluation(
        recalls=retrieval.summarize(ranks),
        text_ranks=ranks.text,
        image_ranks=ranks.image,
        seconds=time.perf_counter() - started,
        pairs_scored=num_pairs,
        kind=kind,
        depth=depth if kind == "cascade" else None,
        features=None if features is None else "float16",
        fingerprint=setting.corpus.fingerprint,
    )


def is_dual(model: FusionScorer | DualEncoder) -> TypeIs[DualEncoder]:
    """Whether a model embeds images and captions apart."""
    return hasattr(model, "embed_images")


def to_document(evaluation: Evaluation, model_name: str, split: str) -> dict[str, Any]:
    """The evaluation as a JSON-able document; recalls are percentages."""
    recalls = evaluation.recalls
    return {
        "model": model_name,
        "split": split,
        "images": len(evaluation.text_ranks),
        "captions": len(evaluation.image_ranks),
        "text_retrieval": recalls.text_retrieval,
        "image_retrieval": recalls.image_retrieval,
        "rsum": recalls.rsum,
        "mean_recall": recalls.mean_recall,
        "protocol": {
            "kind": evaluation.kind,
            "depth": evaluation.depth,
            "features": evaluation.features,
            "ties": "count against the positive",
        },
        "pairs_scored": evaluation.pairs_scored,
        "seconds": evaluation.seconds,
        "corpus_fingerprint": evaluation.fingerprint,
    }


def write_result(ref: str, document: dict[str, Any]) -> Path | None:
    """Write the document to result.json in a run folder, a cascade's to cascade.json; its path, or None where the model is not a run."""
    if not Path(ref, "run.json").exists():
        return None
    path = Path(ref, "cascade.json" if document["protocol"]["kind"] == "cascade" else "result.json")
    files.write_json(path, document)
    return path


def write_ranks(path: Path, evaluation: Evaluation, corpus: Corpus) -> None:
    """Write the rank of every query to a Parquet table: direction, query, image_id, caption_id, caption, rank.

    `query` is an image index where the direction is "text", else a caption index. A query image has no caption.
    """
    num_images, num_captions = len(evaluation.text_ranks), len(evaluation.image_ranks)
    image_ids = np.array(corpus.image_ids[:num_images], dtype=object)
    text = {"direction": "text", "query": np.arange(num_images), "image_id": image_ids, "rank": evaluation.text_ranks}
    image = {
        "direction": "image",
        "query": np.arange(num_captions),
        "image_id": image_ids[corpus.caption_image[:num_captions]],
        "caption_id": pd.array(corpus.caption_ids[:num_captions], dtype="Int64"),
        "caption": corpus.captions[:num_captions],
        "rank": evaluation.image_ranks,
    }
    columns = ["direction", "query", "image_id", "caption_id", "caption", "rank"]
    nothing = {"caption_id": pd.array([pd.NA] * num_images, dtype="Int64"), "caption": pd.Series([None] * num_images, dtype="str")}
    table = pd.concat([pd.DataFrame({**text, **nothing})[columns], pd.DataFrame(image)[columns]], ignore_index=True)
    with files.atomic_path(path) as partial:
        table.to_parquet(partial, index=False)


@torch.inference_mode()
def _embed(model: Any, setting: _Setting) -> tuple[Tensor, Tensor]:
    """The vectors of all images and all captions. Captions of similar length go together."""
    corpus, device = setting.corpus, setting.device
    model.to(device).eval()
    source: Source = CorpusSource(corpus, model.preprocess)
    if setting.features is not None and isinstance(model, models.EncoderDual):
        source = open_or_build(setting.features, corpus, model, device=device, track=setting.track)
    with setting.track("embed images", total=corpus.num_images, unit="images") as advance:
        images = [
            model.embed_images(source.images(chunk).to(device)).float() for chunk in _chunks(corpus.num_images, setting.batch_size, advance)
        ]
    order = sorted(range(corpus.num_captions), key=lambda text: len(corpus.captions[text]))
    with setting.track("embed captions", total=corpus.num_captions, unit="captions") as advance:
        texts = [
            model.embed_texts(source.texts([order[i] for i in chunk]).to(device)).float()
            for chunk in _chunks(corpus.num_captions, setting.batch_size, advance)
        ]
    text_TD = torch.cat(texts)
    return torch.cat(images), torch.empty_like(text_TD).index_copy_(0, torch.tensor(order, device=device), text_TD)


def _dual_ranks(image_ID: Tensor, text_TD: Tensor, corpus: Corpus) -> Ranks:
    return retrieval.ranks_from_embeddings(image_ID, text_TD, corpus.caption_image)


def _fusion_ranks(scorer: FusionScorer, setting: _Setting) -> Ranks:
    corpus, owner_T = setting.corpus, setting.corpus.caption_image
    text_T = np.arange(corpus.num_captions)
    with setting.track("score", total=corpus.num_images * corpus.num_captions, unit="pairs") as advance:
        opened = _open(scorer, setting)
        own_T = _score(opened, owner_T, text_T, setting, advance)
        counter = retrieval.RankCounter(own_T, owner_T, margin=FUSION_ROUNDING)
        for chunk in _chunks(corpus.num_images, scoring.IMAGE_CHUNK):
            is_own_IT = np.array(chunk)[:, None] == owner_T
            image_P, text_P = np.nonzero(~is_own_IT)
            scores_IT = own_T.expand(is_own_IT.shape).clone()
            scores_IT[image_P, text_P] = _score(opened, image_P + chunk.start, text_P, setting, advance)
            counter.add(scores_IT, first_image=chunk.start)
    return counter.ranks()


def _cascade_ranks(model: DualEncoder, scorer: FusionScorer, depth: int, setting: _Setting) -> tuple[Ranks, int]:
    """Ranks of the cascade and the number of pairs the fusion scorer has seen; a pair wanted by both directions is scored once."""
    corpus, owner_T = setting.corpus, setting.corpus.caption_image
    image_ID, text_TD = _embed(model, setting)
    first = _dual_ranks(image_ID, text_TD, corpus)
    texts_IK = retrieval.top_k(image_ID, text_TD, depth)[1].cpu().numpy()
    images_TK = retrieval.top_k(text_TD, image_ID, depth)[1].cpu().numpy()
    pair_IK = np.arange(corpus.num_images)[:, None] * corpus.num_captions + texts_IK
    pair_TK = images_TK * corpus.num_captions + np.arange(corpus.num_captions)[:, None]
    pair_P = np.unique(np.concatenate([pair_IK.ravel(), pair_TK.ravel()]))
    with setting.track("re-rank", total=len(pair_P), unit="pairs") as advance:
        opened = _open(scorer, setting)
        scores_P = _score(opened, pair_P // corpus.num_captions, pair_P % corpus.num_captions, setting, advance)
    return Ranks(
        _reranked(first.text, scores_P, pair_P, pair_IK, owner_T[texts_IK] == np.arange(corpus.num_images)[:, None]),
        _reranked(first.image, scores_P, pair_P, pair_TK, images_TK == owner_T[:, None]),
    ), len(pair_P)


def _reranked(
    first_Q: NDArray[np.int64], scores_P: Tensor, pair_P: NDArray[np.int64], pair_QK: NDArray[np.int64], is_own_QK: NDArray[np.bool_]
) -> NDArray[np.int64]:
    scores_QK = scores_P[torch.from_numpy(np.searchsorted(pair_P, pair_QK))]
    return retrieval.reranked(first_Q, scores_QK, torch.from_numpy(is_own_QK), margin=FUSION_ROUNDING)


@dataclass(frozen=True)
class _Opened:
    """A fusion scorer, what it reads, and all captions encoded."""

    scorer: FusionScorer
    source: Source
    texts: States


def _open(scorer: FusionScorer, setting: _Setting) -> _Opened:
    scorer.to(setting.device).eval()
    source: Source = CorpusSource(setting.corpus, scorer.preprocess)
    if setting.features is not None:
        source = open_or_build(setting.features, setting.corpus, scorer, device=setting.device, track=setting.track)
    return _Opened(scorer, source, scoring.encode_texts(scorer, source, np.arange(setting.corpus.num_captions), setting.device))


def _score(opened: _Opened, image_P: NDArray[np.int64], text_P: NDArray[np.int64], setting: _Setting, advance: Advance) -> Tensor:
    """Logits of pairs in the order given, images ascending; a chunk of images is in memory at a time."""
    parts = []
    for chunk in _chunks(setting.corpus.num_images, scoring.IMAGE_CHUNK):
        start, stop = np.searchsorted(image_P, [chunk.start, chunk.stop])
        if start == stop:
            continue
        chunk_images, image_at_P = np.unique(image_P[start:stop], return_inverse=True)
        images = scoring.encode_images(opened.scorer, opened.source, chunk_images, setting.device)
        pairs = torch.from_numpy(image_at_P), torch.from_numpy(text_P[start:stop])
        parts.append(scoring.score_block(opened.scorer, images, opened.texts, *pairs, setting.batch_size, advance))
    return torch.cat(parts) if parts else torch.empty(0)


def _chunks(count: int, size: int, advance: Advance | None = None) -> Iterator[range]:
    """Ranges that cover 0 to `count`; `advance` hears of each when the next is asked for."""
    for start in range(0, count, size):
        chunk = range(start, min(start + size, count))
        yield chunk
        if advance is not None:
            advance(len(chunk))
