"""The document of an evaluation, result.json or cascade.json, as one value: it is written, read back, compared, shown
and reported as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from dcdctl.core import templates
from dcdctl.core.artifacts import Document
from dcdctl.core.config import OMITTED, Count, settle_fields, to_table
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.errors import ConfigError, MissingError, StaleError
from dcdctl.core.evaluation import significance
from dcdctl.core.evaluation.agreement import AGREEMENT, Agreements, Over
from dcdctl.core.evaluation.estimates import (
    Estimate,
    Interval,
)
from dcdctl.core.evaluation.measures import ESTIMATED, NDCG
from dcdctl.core.evaluation.published import Reproduction, compare_with_published
from dcdctl.core.evaluation.significance import LEVEL
from dcdctl.core.places import shown, url_of
from dcdctl.core.scoring import VectorKind

Kind = Literal["dual", "late", "fusion", "cascade"]
Bounds = tuple[float, float]
Measures = dict[str, float]
"""The measures of a direction by their names in `measures.MEASURES`; of an agreement, by those in AGREEMENT."""
TIES = "count against the positive"
RESAMPLES = 10_000
"""Bootstrap draws of an interval."""


@dataclass(frozen=True)
class FileNames:
    """The names of the files of an evaluation; empty for a file that it does not have."""

    ranks: str
    top: str
    result: str
    agreement: str


MODEL_FILES = FileNames("ranks.parquet", "top.parquet", "result.json", "agreement.parquet")
CASCADE_FILES = FileNames("cascade-ranks.parquet", "cascade-top.parquet", "cascade.json", "")
POOL_FILES = FileNames("", "", "pool.json", "pool-agreement.parquet")
"""The files of a pool, whose queries have no ranks."""


@dataclass(frozen=True, kw_only=True)
class VectorForm:
    """How the vectors of a dual encoder are compared: their width and their codes."""

    dims: Count | None = None
    """Only the first numbers of each vector, divided by their length; None for all."""
    kind: VectorKind = "float32"
    rescore: Count | None = None
    """int8, binary: first candidates of each query that are scored again by their float32 vectors; None for none."""

    def __post_init__(self) -> None:
        settle_fields(self, "vectors")
        if self.rescore is not None and not self.is_coded:
            raise ConfigError(
                f"--rescore {self.rescore} scores candidates again by float32 vectors, and --codes is float32",
                hint="add --codes int8 or --codes binary, or leave --rescore out",
            )

    @property
    def is_coded(self) -> bool:
        return self.kind != "float32"


FULL_VECTORS = VectorForm()


@dataclass(frozen=True, kw_only=True)
class HowMeasured:
    """How a split was evaluated."""

    name: str
    """The protocol: flickr30k-1k, whole, ..."""
    folds: int
    kind: Kind
    depth: int | None
    """cascade: candidates per query that are re-ranked."""
    features: Literal["float16"] | None
    """Number type of the stored encoder outputs; None if none were read."""
    ties: str
    precision: Annotated[str, OMITTED] = "float32"
    """Torch name of the type that the models computed in."""
    vectors: Annotated[VectorForm, OMITTED] = FULL_VECTORS
    """dual: how its vectors were compared."""

    @property
    def is_cascade(self) -> bool:
        return self.depth is not None

    @property
    def model_in_words(self) -> str:
        """The kind of the model, and the depth of a cascade."""
        return f"{self.kind} of depth {self.depth}" if self.depth else self.kind


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Bootstrap intervals over images, of the measures that are means over queries."""

    level: float
    resamples: int
    rsum: Bounds
    text_retrieval: Mapping[str, Bounds]
    image_retrieval: Mapping[str, Bounds]

    def of(self, direction: Direction) -> Mapping[str, Bounds]:
        return self.text_retrieval if direction == Direction.TEXT else self.image_retrieval


@dataclass(frozen=True, kw_only=True)
class Depth:
    """A cascade at one depth; depth 0 is the dual encoder alone."""

    depth: int
    text_retrieval: Measures
    image_retrieval: Measures
    rsum: float
    ms_per_query: float
    """One caption against images that both models encoded before, see `cascade.query_ms`."""
    pairs: int
    """Pairs that the fusion scorer scores for all queries of both directions."""
    on_front: bool
    """Whether no other depth is at least as good and as fast, and better or faster."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well a model's order agrees with a teacher's, in percent, correlations in [-1, 1] (`agreement`)."""

    teacher: str
    teacher_fingerprint: str
    over: Over
    pairs_fingerprint: Annotated[str | None, OMITTED] = None
    """SHA-256 of the pairs of a cache that were compared; None for all pairs."""
    text_retrieval: Annotated[Measures | None, OMITTED] = None
    """The means of the measures in AGREEMENT over `queries`, and the mean number of `candidates` per query; None if no
    query of the direction has two."""
    image_retrieval: Annotated[Measures | None, OMITTED] = None
    ndcg: float
    """nDCG@10, the mean of both directions."""
    level: float = LEVEL
    resamples: int = RESAMPLES
    intervals: dict[str, dict[str, Bounds]]
    """Bootstrap intervals by direction: over images with their captions; for the texts of a pool, over texts."""

    def measures(self, direction: Direction) -> Measures | None:
        """None if no query of the direction has two candidates."""
        return self.text_retrieval if direction == Direction.TEXT else self.image_retrieval

    def estimate(self, direction: Direction, name: str) -> Estimate | None:
        """A measure of AGREEMENT with its interval."""
        measures = self.measures(direction)
        return None if measures is None else Estimate(measures[name], Interval(*self.intervals[direction.key][name]))

    @property
    def candidates_in_words(self) -> str:
        return {"all": "all candidates", "cached": "the candidates that the cache has scores of"}[self.over]

    @property
    def basis(self) -> dict[str, object]:
        """What must be equal for two agreements to be compared, besides the split."""
        return {
            "teacher": self.teacher_fingerprint[:8],
            "candidates": self.over,
            "pairs of the cache": self.pairs_fingerprint and self.pairs_fingerprint[:8],
        }

    @staticmethod
    def of(agreements: Agreements, teacher: str, fingerprint: str) -> Agreement:
        """The agreement with the teacher of this name."""
        means: Document = {}
        intervals: dict[str, dict[str, Bounds]] = {}
        for direction, agreement in agreements.by_direction.items():
            # Always with seed 0, so that evaluating again gives the same intervals.
            unit_Q = agreements.unit_Q(direction)
            estimates = significance.estimate_means(agreement.scaled_QM, unit_Q, RESAMPLES, seed=0)
            means[direction.key] = {
                "queries": len(unit_Q),
                "candidates": float(agreement.num_candidates_Q.mean()),
            }
            intervals[direction.key] = {}
            for row, estimate in zip(AGREEMENT, estimates, strict=True):
                means[direction.key][row.name] = estimate.value
                intervals[direction.key][row.name] = estimate.interval
        return Agreement(
            teacher=teacher,
            teacher_fingerprint=fingerprint,
            over=agreements.over,
            pairs_fingerprint=agreements.pairs_fingerprint,
            ndcg=agreements.ndcg,
            intervals=intervals,
            **means,
        )


@dataclass(frozen=True, kw_only=True)
class _OnSplit:
    """What every evaluation has."""

    model: str
    query_model: Annotated[str | None, OMITTED] = None
    """The query encoder that embedded the captions in the model's place."""
    query_fingerprint: Annotated[str | None, OMITTED] = None
    split: str
    images: int
    captions: int
    """Captions, or the texts of a pool."""
    protocol: HowMeasured
    seconds: float
    """Wall-clock time, reading the images included."""
    corpus_fingerprint: str
    data: str
    """Folder of the corpus."""
    folder: Annotated[Path | None, OMITTED] = None
    """Where it was written, or read from; no entry of the document."""

    @staticmethod
    def facts(corpus: Corpus) -> Document:
        """The fields that say what was measured on."""
        # Absolute, so that a report or a comparison finds the images from any folder.
        folder = corpus.folder if url_of(corpus.folder) else Path(corpus.folder).absolute()
        return {
            "split": corpus.split,
            "images": corpus.num_images,
            "captions": corpus.num_captions,
            "corpus_fingerprint": corpus.fingerprint,
            "data": shown(folder),
        }

    @property
    def document(self) -> Document:
        """The contents of its JSON document as plain values."""
        return dict(to_table(dataclasses.replace(self, folder=None)))

    def _repr_html_(self) -> str:
        assert isinstance(self, Evaluation | PoolEvaluation)
        from dcdctl.core.evaluation.tables import evaluation_tables  # it reads these documents

        return templates.render("notebook.html", title="", tables=evaluation_tables(self), cards=[], notes=[])


@dataclass(frozen=True, kw_only=True)
class PoolEvaluation(_OnSplit):
    """How a model agrees with a teacher on a pool, whose images and texts are not paired: there are no recalls."""

    shown: ClassVar = AGREEMENT
    """The measures of a direction that a study shows; the number that sums both directions up, by its name in tables
    and in documents, its highest value, and words for it; and what the texts are called."""
    total_title: ClassVar = NDCG.name
    total_key: ClassVar = "ndcg"
    max_total: ClassVar = 100
    about_total: ClassVar = f"the highest agreement with the teacher ({NDCG.name})"
    quality: ClassVar = "Agreement"
    unit: ClassVar = "percentage points, of spearman in correlation"
    texts: ClassVar = "texts"
    agreement: Agreement
    published = None
    """Nobody reports recalls of a pool."""
    reranked: ClassVar[tuple[Depth, ...]] = ()
    """A cascade is not evaluated on a pool."""

    @property
    def total(self) -> float:
        return self.agreement.ndcg

    def measures(self, direction: Direction) -> Measures | None:
        """None if no query of the direction has two candidates."""
        return self.agreement.measures(direction)

    @property
    def how_measured(self) -> tuple[str, str]:
        """A fact for a report."""
        agreement = self.agreement
        about = f"agreement with {agreement.teacher} over {agreement.candidates_in_words}"
        return "measured by", f"{about}; a tie counts against the model"

    @property
    def basis(self) -> tuple[object, ...]:
        return self.corpus_fingerprint, self.split, *self.agreement.basis.values()

    @property
    def about_basis(self) -> str:
        about = f"split {self.split} of the corpus {self.corpus_fingerprint[:12]}"
        return f"{about}, by agreement with {self.agreement.teacher}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(_OnSplit):
    """How a model retrieves on a split; recalls and mAP@R in percent, with bootstrap intervals over images."""

    shown: ClassVar = ESTIMATED
    total_title: ClassVar = "RSUM"
    total_key: ClassVar = "rsum"
    # Six recalls of 100 %.
    max_total: ClassVar = 600
    about_total: ClassVar = "the highest sum of recalls (RSUM)"
    quality: ClassVar = "Recall"
    unit: ClassVar = "percentage points"
    texts: ClassVar = "captions"
    text_retrieval: Measures
    """Images as queries, captions as answers; the mean over the protocol's folds."""
    image_retrieval: Measures
    """Captions as queries, images as answers."""
    rsum: float
    """Sum of R@1, R@5 and R@10 in both directions, at most 600."""
    mean_recall: float
    intervals: Intervals
    pairs_scored: int
    """Pairs that went through fusion layers."""
    depths: Annotated[tuple[Depth, ...], OMITTED] = ()
    """cascade: each of several depths; empty for one depth."""
    reranker: Annotated[str | None, OMITTED] = None
    eccv_caption: Annotated[dict[str, Measures] | None, OMITTED] = None
    """By direction, including the positives that COCO's own pairs lack (`eccv`)."""
    cxc: Annotated[dict[str, Measures] | None, OMITTED] = None
    image_recalls_by_label: Annotated[dict[str, dict[str, Measures]], OMITTED] = dataclasses.field(default_factory=dict)
    """By "source" and "language", if captions have them: R@1, R@5 and R@10 of image retrieval for the captions of
    each."""
    agreement: Annotated[Agreement | None, OMITTED] = None
    """With a teacher, if one was named."""
    relevance: Annotated[str | None, OMITTED] = None
    """SHA-256 of the file of relevance, if one was named; the measures then have nDCG@10."""

    @property
    def total(self) -> float:
        return self.rsum

    def measures(self, direction: Direction) -> Measures:
        return self.text_retrieval if direction == Direction.TEXT else self.image_retrieval

    def recall(self, direction: Direction, name: str) -> Estimate:
        """A measure of a direction that has an interval, such as R@1."""
        return Estimate(self.measures(direction)[name], Interval(*self.intervals.of(direction)[name]))

    @property
    def rsum_estimate(self) -> Estimate:
        return Estimate(self.rsum, Interval(*self.intervals.rsum))

    @property
    def published(self) -> Reproduction | None:
        """The recalls that others report of the model by this protocol; no entry of the document, because the rows may
        change."""
        # Reported recalls are those of a model alone, by its full vectors and its own texts.
        is_alone = (self.protocol.vectors, self.reranker, self.query_model) == (FULL_VECTORS, None, None)
        measured = {direction: self.measures(direction) for direction in Direction}
        return compare_with_published(self.model, self.protocol.name, measured) if is_alone else None

    @property
    def reranked(self) -> tuple[Depth, ...]:
        """The depths above 0, ascending: depth 0 is the dual encoder, which has a result of its own."""
        above_0 = [depth for depth in self.depths if depth.depth]
        return tuple(sorted(above_0, key=lambda depth: depth.depth))

    @property
    def dual_query_ms(self) -> float | None:
        """cascade: time of its depth 0; None if that depth was not measured."""
        return next((depth.ms_per_query for depth in self.depths if not depth.depth), None)

    @property
    def gallery_size(self) -> int:
        """Images that a caption is compared with."""
        return self.images // self.protocol.folds

    @property
    def how_measured(self) -> tuple[str, str]:
        """A fact for a report."""
        folds = f", the mean of {self.protocol.folds} folds" if self.protocol.folds > 1 else ""
        return "protocol", f"{self.protocol.name}{folds}; a tie counts against the positive"

    @property
    def basis(self) -> tuple[object, ...]:
        """What must be equal for two results to be compared."""
        return self.corpus_fingerprint, self.split, self.protocol.name, self.protocol.folds

    @property
    def about_basis(self) -> str:
        """The basis in words."""
        folds = f" in {self.protocol.folds} folds" if self.protocol.folds > 1 else ""
        return f"split {self.split} of the corpus {self.corpus_fingerprint[:12]}, protocol {self.protocol.name}{folds}"

    def __fspath__(self) -> str:
        if self.folder is None:
            raise MissingError(
                "this evaluation was not written, so it has no folder", hint="evaluate again with out=FOLDER"
            )
        return str(self.folder)

    def __repr__(self) -> str:
        text, image = self.text_retrieval["R@1"], self.image_retrieval["R@1"]
        about = f"{self.model!r} on {self.split}"
        return f"Evaluation({about}: text R@1 {text:.2f}, image R@1 {image:.2f}, RSUM {self.rsum:.2f})"


def check_comparable(named: Sequence[tuple[object, Evaluation | PoolEvaluation]], otherwise: str) -> None:
    """StaleError if an evaluation, by a name, has another basis than the first; the hint ends in what to do
    `otherwise` than to evaluate again."""
    for name, result in named[1:]:
        first_name, first = named[0]
        if result.basis != first.basis:
            raise StaleError(
                f"{name} was evaluated on {result.about_basis}, {first_name} on {first.about_basis}",
                hint=f"evaluate both on the same with `dcdctl eval`, or {otherwise}",
            )
