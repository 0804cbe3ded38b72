from .distill import InputRefs, Inputs, TrainingJob, train
from .loop import TrainingOptions
from .recipe import load_recipe
from .runs import Run, start_run
from .scenes_teacher import GradingConfig, PretrainingConfig, grade, pretrain

__all__ = [
    "GradingConfig",
    "InputRefs",
    "Inputs",
    "PretrainingConfig",
    "Run",
    "TrainingJob",
    "TrainingOptions",
    "grade",
    "load_recipe",
    "pretrain",
    "start_run",
    "train",
]
