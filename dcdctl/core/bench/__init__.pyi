from .compare import run_bench
from .config import QUICK, BenchConfig
from .job import BenchJob
from .result import Bench, Duration, Latency, ModelTimes, Percentile, QueryTimes, SpeedUp, read_times

__all__ = [
    "QUICK",
    "Bench",
    "BenchConfig",
    "BenchJob",
    "Duration",
    "Latency",
    "ModelTimes",
    "Percentile",
    "QueryTimes",
    "SpeedUp",
    "read_times",
    "run_bench",
]
