from .build import Changes, IndexChange, run_index_job
from .index import Index
from .query import Answer, Hit, answer_document, as_text, check_query, image_of, looks_like_a_path, read_image
from .searcher import DEPTH, Searcher
from .storage import INDEX_FILE

__all__ = [
    "DEPTH",
    "INDEX_FILE",
    "Answer",
    "Changes",
    "Hit",
    "Index",
    "IndexChange",
    "Searcher",
    "answer_document",
    "as_text",
    "check_query",
    "image_of",
    "looks_like_a_path",
    "read_image",
    "run_index_job",
]
