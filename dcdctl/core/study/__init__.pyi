from .plan import StudyJob
from .study import StudyView, run_study

__all__ = ["StudyJob", "StudyView", "run_study"]
