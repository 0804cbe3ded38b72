import typing

# Under TYPE_CHECKING, so that mypy does not read the whole package before the module that asks for the version.
if typing.TYPE_CHECKING:
    from .api.configs import (
        BatchConfig,
        BenchConfig,
        CandidateConfig,
        IndexConfig,
        LossConfig,
        ModelConfig,
        OptimizerConfig,
        Recipe,
        StreamConfig,
        TeachersConfig,
        ValidationConfig,
        load_recipe,
    )
    from .api.results import bench, compare, evaluate, export
    from .api.search import Answer, Index, Searcher
    from .api.training import cache_teacher, distill, finetune_teacher, load, prepare, study
    from .core.data import Corpus
    from .core.errors import DcdError
    from .core.evaluation import Comparison, Evaluation

__version__: str

__all__ = [
    "Answer",
    "BatchConfig",
    "BenchConfig",
    "CandidateConfig",
    "Comparison",
    "Corpus",
    "DcdError",
    "Evaluation",
    "Index",
    "IndexConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "Searcher",
    "StreamConfig",
    "TeachersConfig",
    "ValidationConfig",
    "bench",
    "cache_teacher",
    "compare",
    "distill",
    "evaluate",
    "export",
    "finetune_teacher",
    "load",
    "load_recipe",
    "prepare",
    "study",
]
