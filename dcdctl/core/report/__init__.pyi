from .compare_page import open_corpus, write_comparison_page
from .compare_tables import (
    comparison_details,
    comparison_document,
    comparison_facts,
    comparison_summary,
    how_to_read,
    rank_changes,
)
from .gallery import NUM_QUERIES
from .pages import NUM_IMAGES, write_cache_page, write_corpus_page, write_search_page
from .report import MissingPart, read_report, teachers_of
from .study import Contrast, Study, StudyModel, read_study, study_tables, write_study_page
from .write import report_document, write_csv, write_markdown, write_report_page

__all__ = [
    "NUM_IMAGES",
    "NUM_QUERIES",
    "Contrast",
    "MissingPart",
    "Study",
    "StudyModel",
    "comparison_details",
    "comparison_document",
    "comparison_facts",
    "comparison_summary",
    "how_to_read",
    "open_corpus",
    "rank_changes",
    "read_report",
    "read_study",
    "report_document",
    "study_tables",
    "teachers_of",
    "write_cache_page",
    "write_comparison_page",
    "write_corpus_page",
    "write_csv",
    "write_markdown",
    "write_report_page",
    "write_search_page",
    "write_study_page",
]
