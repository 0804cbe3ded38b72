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
    toml_value,
)
from .rounds import (
    own_terms,
    plan_rounds,
    preview,
    resolve_rounds,
    sets_of_captions,
    sets_of_own_loss,
    train_in_rounds,
)
from .runs import Run, TrainingJob, check_folder, command_of
from .train import check_new_model, resolve, train_model
from .validation import note_of_query_model, run_document, validation_document, validation_table

__all__ = [
    "BatchConfig",
    "DualConfig",
    "FusionConfig",
    "InputRefs",
    "LateConfig",
    "LossConfig",
    "OptimizerConfig",
    "Preview",
    "QueryConfig",
    "Recipe",
    "RecipeEntry",
    "Run",
    "TrainingJob",
    "TrainingOptions",
    "ValidationConfig",
    "check_best",
    "check_cache_job",
    "check_folder",
    "check_new_model",
    "check_recipe_name",
    "command_after_cache",
    "command_after_training",
    "command_of",
    "list_recipes",
    "load_recipe",
    "note_of_query_model",
    "own_terms",
    "plan_rounds",
    "preview",
    "read_mined",
    "recipe_text",
    "require_recipe_of_cache",
    "resolve",
    "resolve_rounds",
    "run_document",
    "seals_of",
    "sets_of_captions",
    "sets_of_own_loss",
    "toml_value",
    "train_in_rounds",
    "train_model",
    "validation_document",
    "validation_table",
]
