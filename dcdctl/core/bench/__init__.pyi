from .bench import Pair, compare_saved
from .config import BenchConfig
from .result import Bench, Duration, Latency, ModelTimes, Percentile, SpeedUp

__all__ = [
    "Bench",
    "BenchConfig",
    "Duration",
    "Latency",
    "ModelTimes",
    "Pair",
    "Percentile",
    "SpeedUp",
    "compare_saved",
]
