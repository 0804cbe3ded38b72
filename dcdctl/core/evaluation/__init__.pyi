from .compare import Contest, Duel, Shift, Side, hold
from .evaluate import EvalJob, evaluate_model, run_evaluation
from .files import Answers, read_answers, write_evaluation
from .protocols import SplitChoice
from .rankers import EvalOptions
from .ranks import RankTable
from .recall import KS
from .result import Evaluation, Figure, Result, Times, evaluation_document, flat, read_result, read_times
from .significance import LEVEL, Comparison, Estimate, Estimates, Interval, compare_ranks

__all__ = [
    "KS",
    "LEVEL",
    "Answers",
    "Comparison",
    "Contest",
    "Duel",
    "Estimate",
    "Estimates",
    "EvalJob",
    "EvalOptions",
    "Evaluation",
    "Figure",
    "Interval",
    "RankTable",
    "Result",
    "Shift",
    "Side",
    "SplitChoice",
    "Times",
    "compare_ranks",
    "evaluate_model",
    "evaluation_document",
    "flat",
    "hold",
    "read_answers",
    "read_result",
    "read_times",
    "run_evaluation",
    "write_evaluation",
]
