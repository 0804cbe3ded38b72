from .embed import Vectors, embed_corpus, embed_source, embed_with_model, load_embedder
from .features import CorpusSource, Features, Source, open_or_build, open_source
from .pairs import IMAGE_CHUNK, ROUNDING, PairScorer, Workload, score_pairs
from .topk import BLOCK, GALLERY_BLOCK, finite_vectors, first_k, top_k

__all__ = [
    "BLOCK",
    "GALLERY_BLOCK",
    "IMAGE_CHUNK",
    "ROUNDING",
    "CorpusSource",
    "Features",
    "PairScorer",
    "Source",
    "Vectors",
    "Workload",
    "embed_corpus",
    "embed_source",
    "embed_with_model",
    "finite_vectors",
    "first_k",
    "load_embedder",
    "open_or_build",
    "open_source",
    "score_pairs",
    "top_k",
]
