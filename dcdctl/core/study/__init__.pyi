from .demo import DemoJob, DemoResult, run_demo
from .job import StudyJob
from .study import StudyView, preview_study, run_study

__all__ = ["DemoJob", "DemoResult", "StudyJob", "StudyView", "preview_study", "run_demo", "run_study"]
