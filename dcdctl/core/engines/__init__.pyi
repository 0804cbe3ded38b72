from .choice import EngineChoice, open_engine
from .compute import ON_CPU, Compute
from .engine import Engine, Task, whole_shards
from .this_process import ThisProcess

__all__ = [
    "ON_CPU",
    "Compute",
    "Engine",
    "EngineChoice",
    "Task",
    "ThisProcess",
    "open_engine",
    "whole_shards",
]
