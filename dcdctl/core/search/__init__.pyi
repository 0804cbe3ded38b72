from .background import Background, measure_background
from .build import Changes, IndexChange, run_index_job
from .config import IndexConfig
from .index import Index
from .keywords import check_hybrid
from .metadata import ColumnChanges
from .protocol import Hit, ImageIndex
from .query import Answer, answer_document, as_text, check_query, columns_text, image_of, looks_like_a_path, read_image
from .searcher import Searcher
from .storage import INDEX, INDEX_FILE, check_vectors, files_of, read_document
from .summary import index_document, index_facts, summarize_index
from .where import Condition, parse_where

__all__ = [
    "INDEX",
    "INDEX_FILE",
    "Answer",
    "Background",
    "Changes",
    "ColumnChanges",
    "Condition",
    "Hit",
    "ImageIndex",
    "Index",
    "IndexChange",
    "IndexConfig",
    "Searcher",
    "answer_document",
    "as_text",
    "check_hybrid",
    "check_query",
    "check_vectors",
    "columns_text",
    "files_of",
    "image_of",
    "index_document",
    "index_facts",
    "looks_like_a_path",
    "measure_background",
    "parse_where",
    "read_document",
    "read_image",
    "run_index_job",
    "summarize_index",
]
