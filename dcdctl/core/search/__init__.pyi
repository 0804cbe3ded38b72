from .alter import change_index, move_images
from .answers import (
    Browse,
    Question,
    SearchAnswer,
    answer_document,
    as_text,
    caption_of,
    check_query,
    columns_text,
    image_of,
    read_image,
    title_of,
    value_for_json,
)
from .build import add_images, build_index, follow_folders
from .changes import IndexChange
from .columns.order import Order, default_order, parse_order
from .columns.table import NUM_SHOWN, ColumnSummary
from .columns.where import (
    COLUMN_TYPES,
    Compare,
    Condition,
    Joined,
    Value,
    columns_of,
    like_regex,
    matches,
    parse_all,
    parse_where,
    quoted_name,
    quoted_value,
)
from .combined import CombinedQuery, question_of
from .copies import SameImages, find_copies
from .entries import ImageSource
from .exact import Floats, Rows, best_first, spread_over
from .index import FolderIndex
from .index_config import IndexConfig
from .job import Changes, Embedding, IndexJob, Vectors, WorkJob
from .library import STUDENT, Library, name_of_index
from .named import check_removable, open_to_change
from .part_files import IMAGE_COLUMNS, SourceImage, check_vectors
from .protocol import Hit, ImageIndex, text_side_beside
from .searcher import WEAK, IndexSearcher, browse_index
from .sources import SourceImages
from .storage import INDEX, INDEX_FILE, check_comes_first, check_model, query_model_of, read_document, text_side_note
from .stored import Stored, StoredTokens, StoredType, StoredVectors
from .summary import index_document, index_facts
from .watch import sync_index, watch_index
from .work import do_work

__all__ = [
    "COLUMN_TYPES",
    "IMAGE_COLUMNS",
    "INDEX",
    "INDEX_FILE",
    "NUM_SHOWN",
    "STUDENT",
    "WEAK",
    "Browse",
    "Changes",
    "ColumnSummary",
    "CombinedQuery",
    "Compare",
    "Condition",
    "Embedding",
    "Floats",
    "FolderIndex",
    "Hit",
    "ImageIndex",
    "ImageSource",
    "IndexChange",
    "IndexConfig",
    "IndexJob",
    "IndexSearcher",
    "Joined",
    "Library",
    "Order",
    "Question",
    "Rows",
    "SameImages",
    "SearchAnswer",
    "SourceImage",
    "SourceImages",
    "Stored",
    "StoredTokens",
    "StoredType",
    "StoredVectors",
    "Value",
    "Vectors",
    "WorkJob",
    "add_images",
    "answer_document",
    "as_text",
    "best_first",
    "browse_index",
    "build_index",
    "caption_of",
    "change_index",
    "check_comes_first",
    "check_model",
    "check_query",
    "check_removable",
    "check_vectors",
    "columns_of",
    "columns_text",
    "default_order",
    "do_work",
    "find_copies",
    "follow_folders",
    "image_of",
    "index_document",
    "index_facts",
    "like_regex",
    "matches",
    "move_images",
    "name_of_index",
    "open_to_change",
    "parse_all",
    "parse_order",
    "parse_where",
    "query_model_of",
    "question_of",
    "quoted_name",
    "quoted_value",
    "read_document",
    "read_image",
    "spread_over",
    "sync_index",
    "text_side_beside",
    "text_side_note",
    "title_of",
    "value_for_json",
    "watch_index",
]
