from .compare import compare_saved
from .config import QUICK, BenchConfig, ModelPair
from .result import Bench, Duration, Latency, ModelTimes, Percentile, QueryTimes, SpeedUp, read_times

__all__ = [
    "QUICK",
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
