"""What a teacher encodes once, and what it computes again: the jobs of `dcdctl cache-texts` and of `dcdctl verify`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from dcdctl.core.arguments import Ref, configures, optional_path, reads
from dcdctl.core.engines import Embeddings
from dcdctl.core.options import TEACHER_HELP, Device, Features, ModelSet, Out, PairBatchSize, Split
from dcdctl.core.progress import unsaid

if TYPE_CHECKING:  # torch
    from dcdctl.core.engines import Compute


@dataclass(frozen=True, kw_only=True)
class TextCacheJob(Embeddings):
    """Which texts to encode, or whose vectors to take. The teacher is a dual encoder or a late-interaction model."""

    teacher: Annotated[
        Ref | None,
        reads(
            "--teacher",
            f"Dual or late-interaction model, or with --vectors the name of what gave them. {TEACHER_HELP}",
            "REF",
            "model",
        ),
    ] = None
    texts: Annotated[
        list[str] | None,
        reads(
            "--texts",
            ".txt, .csv, .tsv, .jsonl or .parquet with a column text, or the folder of a corpus; repeatable.",
            "PLACE",
        ),
    ] = None
    """`split` is that of a corpus or a pool among them."""
    vectors: Annotated[
        list[str] | None,
        reads(
            "--vectors",
            "In place of --texts: Parquet with the columns text and vector; repeatable.",
            "FILE",
        ),
    ] = None
    out: Out
    split: Split = "train"
    model_overrides: ModelSet = None
    extend: Annotated[Ref | None, reads("--extend", "Finished cache whose vectors are reused.", "CACHE")] = None


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """Scores of a cache, or vectors of its texts, that are computed again, and the model that gave them. Precision,
    split and number of images are those of the cache."""

    scores: Annotated[
        int | None,
        configures("--scores", "Compute N scores of a cache again too, or the vectors of N texts.", "N", min=1),
    ] = None
    """None for nothing."""
    teacher: Annotated[Ref | None, reads("--teacher", "With --scores: the model that gave them.", "REF", "model")] = (
        None
    )
    data: Annotated[
        Ref | None,
        reads("--data", "With --scores: the corpus of the pairs; a cache of texts needs none.", "DIR", "place"),
    ] = None
    model_overrides: ModelSet = None
    features: Features = None
    batch_size: PairBatchSize = None
    device: Device = "auto"

    def compute(self, precision: str) -> Compute:
        """Where and how to compute, in a precision of torch."""
        # Here, because torch takes a second to import.
        from dcdctl.core.engines import Compute, EngineChoice

        compute = Compute.chosen(
            EngineChoice(),
            device=self.device,
            batch_size=self.batch_size,
            features=optional_path(self.features),
            say=unsaid,
        )
        return replace(compute, precision=precision)
