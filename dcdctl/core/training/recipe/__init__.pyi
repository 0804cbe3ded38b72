from .model_config import LORA, ModelConfig
from .packaged import RecipeEntry, check_recipe_name, list_recipes
from .recipe import (
    BatchConfig,
    OptimizerConfig,
    Recipe,
    TeachersConfig,
    ValidationConfig,
    load_recipe,
    require_recipe_of_cache,
)
from .toml import recipe_text, toml_value

__all__ = [
    "LORA",
    "BatchConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "RecipeEntry",
    "TeachersConfig",
    "ValidationConfig",
    "check_recipe_name",
    "list_recipes",
    "load_recipe",
    "recipe_text",
    "require_recipe_of_cache",
    "toml_value",
]
