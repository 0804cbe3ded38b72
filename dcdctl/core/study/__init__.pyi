from .plan import StudyJob, StudyOptions
from .study import Step, StudyView, preview_study, run_study

__all__ = [
    "Step",
    "StudyJob",
    "StudyOptions",
    "StudyView",
    "preview_study",
    "run_study",
]
