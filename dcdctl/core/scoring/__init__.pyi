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
from .folds import PairScorer, Workload, measure_rate
from .pair_files import SCORES, ScoreTasks, expect_digest, job_of_scores, named_model, pair_rows
from .pairs import IMAGE_CHUNK, LOGIT_ROUNDING, score_pairs, scored_apart
from .quantize import HIGHEST, VectorKind, binary_codes, bytes_per_vector, decoded, int8_codes
from .shards import PairWorker, ShardPairs
from .sources import CorpusSource, Reader, Source
from .topk import BLOCK, GALLERY_BLOCK, finite_vectors, top_k, top_k_of_rows

__all__ = [
    "BLOCK",
    "FEATURES",
    "GALLERY_BLOCK",
    "HIGHEST",
    "IMAGE_CHUNK",
    "LOGIT_ROUNDING",
    "SCORES",
    "CorpusSource",
    "PairScorer",
    "PairWorker",
    "Reader",
    "ScoreTasks",
    "ShardPairs",
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
    "expect_digest",
    "finite_vectors",
    "int8_codes",
    "is_late",
    "job_of_scores",
    "load_embedder",
    "measure_rate",
    "named_model",
    "open_or_build",
    "open_source",
    "pair_rows",
    "score_pairs",
    "scored_apart",
    "top_k",
    "top_k_of_rows",
]
