from .embed import Vectors, dual_embedder, embed_all, embed_batch, embed_corpus, embed_source, embed_with_model, load_embedder
from .encoded import encode_corpus
from .features import FEATURES, CorpusSource, Features, Source, find_faults, open_or_build, open_source
from .pairs import IMAGE_CHUNK, LOGIT_ROUNDING, PairScorer, Workload, measure_rate, score_pairs
from .quantize import VectorKind, bytes_per_vector, decoded
from .topk import BLOCK, GALLERY_BLOCK, finite_vectors, top_k, top_k_of_rows

__all__ = [
    "BLOCK",
    "FEATURES",
    "GALLERY_BLOCK",
    "IMAGE_CHUNK",
    "LOGIT_ROUNDING",
    "CorpusSource",
    "Features",
    "PairScorer",
    "Source",
    "VectorKind",
    "Vectors",
    "Workload",
    "bytes_per_vector",
    "decoded",
    "dual_embedder",
    "embed_all",
    "embed_batch",
    "embed_corpus",
    "embed_source",
    "embed_with_model",
    "encode_corpus",
    "find_faults",
    "finite_vectors",
    "load_embedder",
    "measure_rate",
    "open_or_build",
    "open_source",
    "score_pairs",
    "top_k",
    "top_k_of_rows",
]
