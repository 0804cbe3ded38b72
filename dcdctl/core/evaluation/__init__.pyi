from .compare import ComparisonReport, PairwiseComparison, RankShift, System, compare_systems
from .evaluate import EvalJob, evaluate_model, run_evaluation, run_vector_table
from .files import Answers, EvalResult, write_evaluation
from .protocols import SplitChoice
from .rankers import EvalOptions
from .ranking import RankTable
from .recall import KS
from .result import CASCADE_FILES, MODEL_FILES, EvalSummary, Evaluation, Figure, Retrieval, evaluation_document
from .significance import LEVEL, Comparison, Estimate, Estimates, Interval, compare_ranks
from .vector_form import FormChoice

__all__ = [
    "CASCADE_FILES",
    "KS",
    "LEVEL",
    "MODEL_FILES",
    "Answers",
    "Comparison",
    "ComparisonReport",
    "Estimate",
    "Estimates",
    "EvalJob",
    "EvalOptions",
    "EvalResult",
    "EvalSummary",
    "Evaluation",
    "Figure",
    "FormChoice",
    "Interval",
    "PairwiseComparison",
    "RankShift",
    "RankTable",
    "Retrieval",
    "SplitChoice",
    "System",
    "compare_ranks",
    "compare_systems",
    "evaluate_model",
    "evaluation_document",
    "run_evaluation",
    "run_vector_table",
    "write_evaluation",
]
