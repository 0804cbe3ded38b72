from .distill import preview, resolve, train
from .fit import Preview
from .inputs import InputRefs, Inputs
from .loop import TrainingOptions
from .negatives import read_mined
from .recipe import Recipe, check_recipe_name, load_recipe, require_recipe_of_cache
from .runs import Run, TrainingJob, check_best, start_run
from .scenes_teacher import GradingConfig, PretrainingConfig, grade, pretrain

__all__ = [
    "GradingConfig",
    "InputRefs",
    "Inputs",
    "PretrainingConfig",
    "Preview",
    "Recipe",
    "Run",
    "TrainingJob",
    "TrainingOptions",
    "check_best",
    "check_recipe_name",
    "grade",
    "load_recipe",
    "pretrain",
    "preview",
    "read_mined",
    "require_recipe_of_cache",
    "resolve",
    "start_run",
    "train",
]
