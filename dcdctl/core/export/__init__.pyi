from .check import checks_in_words
from .export import Exported, ExportJob, export_model
from .hub import push_options

__all__ = [
    "ExportJob",
    "Exported",
    "checks_in_words",
    "export_model",
    "push_options",
]
