from .build import build_cache
from .cache import TeacherCache, TeacherEnsemble, read_cache, read_caches
from .cache_format import CACHE
from .candidates import CandidateConfig, Candidates, draw_candidates, mine_candidates
from .estimate import Estimate
from .false_negatives import FalseNegativeFilter, false_negative_filter
from .job import CacheJob, cache_scores, verify_cache
from .summary import CacheSummary, Negative, cache_document, cache_facts, summarize_cache

__all__ = [
    "CACHE",
    "CacheJob",
    "CacheSummary",
    "CandidateConfig",
    "Candidates",
    "Estimate",
    "FalseNegativeFilter",
    "Negative",
    "TeacherCache",
    "TeacherEnsemble",
    "build_cache",
    "cache_document",
    "cache_facts",
    "cache_scores",
    "draw_candidates",
    "false_negative_filter",
    "mine_candidates",
    "read_cache",
    "read_caches",
    "summarize_cache",
    "verify_cache",
]
