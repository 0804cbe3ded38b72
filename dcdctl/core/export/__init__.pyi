from .check import checks_in_words
from .export import Exported, export_model
from .job import ExportJob

__all__ = ["ExportJob", "Exported", "checks_in_words", "export_model"]
