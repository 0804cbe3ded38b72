from .choice import EngineChoice, open_engine
from .compute import ON_CPU, Compute
from .engine import Engine, Task, whole_shards
from .options import Embeddings, Inference, Machine, Passes
from .this_process import ThisProcess

__all__ = [
    "ON_CPU",
    "Compute",
    "Embeddings",
    "Engine",
    "EngineChoice",
    "Inference",
    "Machine",
    "Passes",
    "Task",
    "ThisProcess",
    "open_engine",
    "whole_shards",
]
