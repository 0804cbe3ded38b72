from .checkpoints import check_best, seals_of
from .coverage import Preview, check_cache_job
from .inputs import InputRefs
from .loop import TrainingOptions
from .losses.table import LossConfig
from .negatives import read_mined
from .next_step import command_after_cache, command_after_training
from .recipe import (
    BatchConfig,
    DualConfig,
    FusionConfig,
    LateConfig,
    OptimizerConfig,
    QueryConfig,
    Recipe,
    RecipeEntry,
    ValidationConfig,
    check_recipe_name,
    list_recipes,
    load_recipe,
    recipe_text,
    require_recipe_of_cache,
)
from .requests import CacheTeacher, Distill, FinetuneTeacher, RecipeArgument, RecipeRef, Training, TrainingRun
from .rounds import (
    own_terms,
    plan_rounds,
    preview,
    resolve_rounds,
    sets_of_captions,
    sets_of_own_loss,
    train_in_rounds,
)
from .runs import Run, TrainingJob, command_of
from .train import check_new_model, resolve, train_model
from .trained import Trained, preview_training, run_training
from .validation import run_document, say_of_query_model, validation_document, validation_table

__all__ = [
    "BatchConfig",
    "CacheTeacher",
    "Distill",
    "DualConfig",
    "FinetuneTeacher",
    "FusionConfig",
    "InputRefs",
    "LateConfig",
    "LossConfig",
    "OptimizerConfig",
    "Preview",
    "QueryConfig",
    "Recipe",
    "RecipeArgument",
    "RecipeEntry",
    "RecipeRef",
    "Run",
    "Trained",
    "Training",
    "TrainingJob",
    "TrainingOptions",
    "TrainingRun",
    "ValidationConfig",
    "check_best",
    "check_cache_job",
    "check_new_model",
    "check_recipe_name",
    "command_after_cache",
    "command_after_training",
    "command_of",
    "list_recipes",
    "load_recipe",
    "own_terms",
    "plan_rounds",
    "preview",
    "preview_training",
    "read_mined",
    "recipe_text",
    "require_recipe_of_cache",
    "resolve",
    "resolve_rounds",
    "run_document",
    "run_training",
    "say_of_query_model",
    "seals_of",
    "sets_of_captions",
    "sets_of_own_loss",
    "train_in_rounds",
    "train_model",
    "validation_document",
    "validation_table",
]
