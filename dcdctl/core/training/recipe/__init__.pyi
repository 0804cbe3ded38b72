from .model_config import (
    LORA,
    DualConfig,
    FusionConfig,
    ImageTextConfig,
    LateConfig,
    ModelConfig,
    QueryConfig,
    TwoTowerConfig,
)
from .packaged import RecipeEntry, check_recipe_name, list_recipes
from .recipe import (
    BatchConfig,
    CaptionsConfig,
    OptimizerConfig,
    PoolConfig,
    Recipe,
    ValidationConfig,
    load_recipe,
    require_recipe_of_cache,
)
from .toml import recipe_text

__all__ = [
    "LORA",
    "BatchConfig",
    "CaptionsConfig",
    "DualConfig",
    "FusionConfig",
    "ImageTextConfig",
    "LateConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PoolConfig",
    "QueryConfig",
    "Recipe",
    "RecipeEntry",
    "TwoTowerConfig",
    "ValidationConfig",
    "check_recipe_name",
    "list_recipes",
    "load_recipe",
    "recipe_text",
    "require_recipe_of_cache",
]
