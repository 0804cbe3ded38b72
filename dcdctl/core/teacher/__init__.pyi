from .build import CacheJob
from .cache import OF_ANOTHER, TeacherCache, TeacherEnsemble, read_cache, read_caches
from .cache_format import CACHE, TEXTS
from .candidate_lists import Candidates
from .candidates import (
    START,
    CandidateConfig,
    check_candidates,
    fewest_pairs,
    mine_candidates,
    most_pairs,
    most_per_query,
)
from .checked import CheckedCaptions, check_captions
from .embedded import (
    EmbeddedScores,
    EmbeddedTeacher,
    EmbeddedTeachers,
    LateTeacher,
    check_embedding,
    embed_corpus,
    embedding_plan,
    products_of,
)
from .external_scores import RowNames, plan_scores, take_scores
from .false_negatives import FalseNegativeFilter, false_negative_filter
from .job import Recheck, TextCacheJob
from .make import CacheCost, cache_scores, command_to_compare, preview_cost
from .picks import NO_PICK, CaptionPicks, NoPicks, Threshold, find_picks, find_threshold
from .recheck import check_recheck, recheck
from .score_files import READERS, read_batches
from .scores import TeacherScores
from .spread import lack_of_order, measure_spread
from .summary import cache_document, cache_facts, summarize_cache
from .text_cache import TextCache, cache_texts, read_text_cache, text_cache_facts, verify_texts

__all__ = [
    "CACHE",
    "NO_PICK",
    "OF_ANOTHER",
    "READERS",
    "START",
    "TEXTS",
    "CacheCost",
    "CacheJob",
    "CandidateConfig",
    "Candidates",
    "CaptionPicks",
    "CheckedCaptions",
    "EmbeddedScores",
    "EmbeddedTeacher",
    "EmbeddedTeachers",
    "FalseNegativeFilter",
    "LateTeacher",
    "NoPicks",
    "Recheck",
    "RowNames",
    "TeacherCache",
    "TeacherEnsemble",
    "TeacherScores",
    "TextCache",
    "TextCacheJob",
    "Threshold",
    "cache_document",
    "cache_facts",
    "cache_scores",
    "cache_texts",
    "check_candidates",
    "check_captions",
    "check_embedding",
    "check_recheck",
    "command_to_compare",
    "embed_corpus",
    "embedding_plan",
    "false_negative_filter",
    "fewest_pairs",
    "find_picks",
    "find_threshold",
    "lack_of_order",
    "measure_spread",
    "mine_candidates",
    "most_pairs",
    "most_per_query",
    "plan_scores",
    "preview_cost",
    "products_of",
    "read_batches",
    "read_cache",
    "read_caches",
    "read_text_cache",
    "recheck",
    "summarize_cache",
    "take_scores",
    "text_cache_facts",
    "verify_texts",
]
