from .distill import InputRefs, Inputs, TrainingJob, train
from .loop import TrainingOptions
from .recipe import check_recipe_name, load_recipe
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
    "check_recipe_name",
    "grade",
    "load_recipe",
    "pretrain",
    "start_run",
    "train",
]
