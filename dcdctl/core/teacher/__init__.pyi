from .build import ScoringOptions, build_cache, claimed, plan_cache, score_planned, scoring_options
from .cache import TeacherCache, TeacherEnsemble, read_cache, read_caches
from .candidates import CPU, CandidateConfig, Candidates, Lists, draw_candidates, mine_candidates, text_classes
from .estimate import estimate_cost, verify_scores
from .false_negatives import FalseNegativeFilter
from .miners import Index
from .summary import CacheSummary, Negative, cache_document, cache_facts, summarize_cache

__all__ = [
    "CPU",
    "CacheSummary",
    "CandidateConfig",
    "Candidates",
    "FalseNegativeFilter",
    "Index",
    "Lists",
    "Negative",
    "ScoringOptions",
    "TeacherCache",
    "TeacherEnsemble",
    "build_cache",
    "cache_document",
    "cache_facts",
    "claimed",
    "draw_candidates",
    "estimate_cost",
    "mine_candidates",
    "plan_cache",
    "read_cache",
    "read_caches",
    "score_planned",
    "scoring_options",
    "summarize_cache",
    "text_classes",
    "verify_scores",
]
