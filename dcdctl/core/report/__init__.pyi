from .compare_page import write_page_of
from .html import embed_image
from .report import read_report, teachers_of
from .search_page import write_search_page
from .study_report import (
    CASCADE,
    DISTILLED,
    TEACHER,
    ZERO_SHOT,
    Study,
    compare_rows,
    read_rows,
    study_tables,
    write_study_page,
)
from .write import csv_text, headline, report_document, write_csv, write_markdown, write_report_page

__all__ = [
    "CASCADE",
    "DISTILLED",
    "TEACHER",
    "ZERO_SHOT",
    "Study",
    "compare_rows",
    "csv_text",
    "embed_image",
    "headline",
    "read_report",
    "read_rows",
    "report_document",
    "study_tables",
    "teachers_of",
    "write_csv",
    "write_markdown",
    "write_page_of",
    "write_report_page",
    "write_search_page",
    "write_study_page",
]
