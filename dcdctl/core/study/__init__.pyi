from .plan import StudyJob
from .study import StudyView, preview_study, run_study

__all__ = ["StudyJob", "StudyView", "preview_study", "run_study"]
