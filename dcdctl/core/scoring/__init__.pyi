from .embed import (
    Vectors,
    check_embedder,
    dual_embedder,
    embed_all,
    embed_batch,
    embed_corpus,
    embed_source,
    embed_with_model,
    is_late,
    load_embedder,
)
from .encoded import encode_corpus
from .feature_build import encoders_of, open_or_build, open_source
from .feature_files import FEATURES
from .features import CorpusSource, Reader, Source
from .folds import PairScorer, Workload, measure_rate
from .pairs import IMAGE_CHUNK, LOGIT_ROUNDING, score_pairs, scored_apart
from .quantize import HIGHEST, VectorKind, binary_codes, bytes_per_vector, decoded, int8_codes
from .shards import ImageFiles, PairWorker, ShardItems, ShardPairs, ShardSource
from .topk import BLOCK, GALLERY_BLOCK, finite_vectors, top_k, top_k_of_rows

__all__ = [
    "BLOCK",
    "FEATURES",
    "GALLERY_BLOCK",
    "HIGHEST",
    "IMAGE_CHUNK",
    "LOGIT_ROUNDING",
    "CorpusSource",
    "ImageFiles",
    "PairScorer",
    "PairWorker",
    "Reader",
    "ShardItems",
    "ShardPairs",
    "ShardSource",
    "Source",
    "VectorKind",
    "Vectors",
    "Workload",
    "binary_codes",
    "bytes_per_vector",
    "check_embedder",
    "decoded",
    "dual_embedder",
    "embed_all",
    "embed_batch",
    "embed_corpus",
    "embed_source",
    "embed_with_model",
    "encode_corpus",
    "encoders_of",
    "finite_vectors",
    "int8_codes",
    "is_late",
    "load_embedder",
    "measure_rate",
    "open_or_build",
    "open_source",
    "score_pairs",
    "scored_apart",
    "top_k",
    "top_k_of_rows",
]
