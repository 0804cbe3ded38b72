from .build import Changes, IndexChange, run_index_job
from .columns.change import ColumnChanges
from .columns.table import NUM_SHOWN, ColumnSummary
from .columns.where import (
    COLUMN_TYPES,
    Compare,
    Condition,
    Joined,
    Value,
    parse_all,
    parse_where,
    quoted_name,
    quoted_value,
)
from .config import IndexConfig
from .exact import Floats, Half, Rows, best_first, best_of, cosines, maxsims, spread_over, unit
from .index import FolderIndex
from .part_files import IMAGE_COLUMNS, SourceImage, check_vectors
from .protocol import Hit, ImageIndex, text_side_beside
from .query import (
    SearchAnswer,
    answer_document,
    as_text,
    caption_of,
    check_query,
    columns_text,
    image_of,
    read_image,
    value_for_json,
)
from .searcher import WEAK, IndexSearcher
from .sources import SourceImages
from .storage import INDEX, INDEX_FILE, ImageSource, check_model, query_model_of, read_document, text_side_note
from .summary import index_document, index_facts
from .vector_files import write_image_list

__all__ = [
    "COLUMN_TYPES",
    "IMAGE_COLUMNS",
    "INDEX",
    "INDEX_FILE",
    "NUM_SHOWN",
    "WEAK",
    "Changes",
    "ColumnChanges",
    "ColumnSummary",
    "Compare",
    "Condition",
    "Floats",
    "FolderIndex",
    "Half",
    "Hit",
    "ImageIndex",
    "ImageSource",
    "IndexChange",
    "IndexConfig",
    "IndexSearcher",
    "Joined",
    "Rows",
    "SearchAnswer",
    "SourceImage",
    "SourceImages",
    "Value",
    "answer_document",
    "as_text",
    "best_first",
    "best_of",
    "caption_of",
    "check_model",
    "check_query",
    "check_vectors",
    "columns_text",
    "cosines",
    "image_of",
    "index_document",
    "index_facts",
    "maxsims",
    "parse_all",
    "parse_where",
    "query_model_of",
    "quoted_name",
    "quoted_value",
    "read_document",
    "read_image",
    "run_index_job",
    "spread_over",
    "text_side_beside",
    "text_side_note",
    "unit",
    "value_for_json",
    "write_image_list",
]
