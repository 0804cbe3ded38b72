from .plan import StudyJob
from .study import Step, StudyView, preview_study, run_study

__all__ = [
    "Step",
    "StudyJob",
    "StudyView",
    "preview_study",
    "run_study",
]
