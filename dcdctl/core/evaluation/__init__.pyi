from .against import agreement_of
from .agreement import AGREEMENT, Agreements
from .bootstrap import holm
from .compare import compare_systems
from .comparison import (
    Comparison,
    PairwiseComparison,
    RankShift,
    comparison_document,
    comparison_facts,
    comparison_tables,
    how_to_read,
    short_names,
)
from .document import (
    CASCADE_FILES,
    MODEL_FILES,
    POOL_FILES,
    Agreement,
    Evaluation,
    PoolEvaluation,
    check_comparable,
)
from .estimates import (
    AgreementComparison,
    Estimate,
    RankComparison,
    outcome,
)
from .evaluate import evaluate_model, run_evaluation, run_vector_table
from .files import SavedAgreement, SavedEvaluation, write_evaluation
from .job import CompareJob, EvalJob
from .measured import Measured
from .measures import ESTIMATED, KS, MEASURES, NDCG, RECALL_NAMES, on_front
from .protocols import Protocol
from .rankers import EvalOptions, RankingTask
from .ranking import RankTable
from .significance import (
    LEVEL,
    compare_agreements,
    compare_ranks,
)
from .tables import evaluation_tables, vector_table

__all__ = [
    "AGREEMENT",
    "CASCADE_FILES",
    "ESTIMATED",
    "KS",
    "LEVEL",
    "MEASURES",
    "MODEL_FILES",
    "NDCG",
    "POOL_FILES",
    "RECALL_NAMES",
    "Agreement",
    "AgreementComparison",
    "Agreements",
    "CompareJob",
    "Comparison",
    "Estimate",
    "EvalJob",
    "EvalOptions",
    "Evaluation",
    "Measured",
    "PairwiseComparison",
    "PoolEvaluation",
    "Protocol",
    "RankComparison",
    "RankShift",
    "RankTable",
    "RankingTask",
    "SavedAgreement",
    "SavedEvaluation",
    "agreement_of",
    "check_comparable",
    "compare_agreements",
    "compare_ranks",
    "compare_systems",
    "comparison_document",
    "comparison_facts",
    "comparison_tables",
    "evaluate_model",
    "evaluation_tables",
    "holm",
    "how_to_read",
    "on_front",
    "outcome",
    "run_evaluation",
    "run_vector_table",
    "short_names",
    "vector_table",
    "write_evaluation",
]
