from .bench import compare_saved
from .config import BenchConfig, ModelPair
from .result import Bench, Duration, Latency, ModelTimes, Percentile, QueryTimes, SpeedUp, read_times

__all__ = [
    "Bench",
    "BenchConfig",
    "Duration",
    "Latency",
    "ModelPair",
    "ModelTimes",
    "Percentile",
    "QueryTimes",
    "SpeedUp",
    "compare_saved",
    "read_times",
]
