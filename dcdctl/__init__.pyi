import typing

# Under TYPE_CHECKING, so that mypy does not read the whole package before the module that asks for the version.
if typing.TYPE_CHECKING:
    from .api.results import bench, compare, evaluate, export
    from .api.search import Answer, Index, Searcher
    from .api.training import (
        cache_teacher,
        distill,
        finetune_teacher,
        load,
        load_recipe,
        photos,
        prepare,
        study,
        work,
    )
    from .core.bench import BenchConfig
    from .core.data import Corpus, StreamConfig
    from .core.engines import TasksWrittenError
    from .core.errors import DcdError
    from .core.evaluation import Comparison, Evaluation
    from .core.search import IndexConfig
    from .core.teacher import CandidateConfig
    from .core.training import (
        BatchConfig,
        DualConfig,
        FusionConfig,
        LateConfig,
        LossConfig,
        OptimizerConfig,
        QueryConfig,
        Recipe,
        ValidationConfig,
    )

__version__: str

__all__ = [
    "Answer",
    "BatchConfig",
    "BenchConfig",
    "CandidateConfig",
    "Comparison",
    "Corpus",
    "DcdError",
    "DualConfig",
    "Evaluation",
    "FusionConfig",
    "Index",
    "IndexConfig",
    "LateConfig",
    "LossConfig",
    "OptimizerConfig",
    "QueryConfig",
    "Recipe",
    "Searcher",
    "StreamConfig",
    "TasksWrittenError",
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
    "photos",
    "prepare",
    "study",
    "work",
]
