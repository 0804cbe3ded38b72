from .bench import ModelPair, compare_saved
from .config import BenchConfig
from .result import Bench, Duration, Latency, ModelTimes, Percentile, SpeedUp

__all__ = [
    "Bench",
    "BenchConfig",
    "Duration",
    "Latency",
    "ModelPair",
    "ModelTimes",
    "Percentile",
    "SpeedUp",
    "compare_saved",
]
