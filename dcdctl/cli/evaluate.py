"""`dcdctl eval`: Recall@1, 5 and 10 of a model, alone or in a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcdctl.cli.options import Data, Device, Features, Json, MaxImages, ModelSet, Split
from dcdctl.cli.terminal import bar, show_json, show_table

ModelRef = Annotated[str, typer.Argument(help="Run folder, or another model reference.", metavar="RUN")]
Rerank = Annotated[str | None, typer.Option("--rerank", help="Fusion model that re-ranks what a dual model finds.", metavar="REF")]
Depth = Annotated[int, typer.Option("--depth", help="With --rerank: candidates re-ranked of each query.", min=1)]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images, captions or pairs in one forward pass.", min=1)]
RanksFile = Annotated[Path | None, typer.Option("--ranks", help="Write the rank of every query to this Parquet file.", metavar="FILE")]


def evaluate(
    model: ModelRef,
    data: Data,
    split: Split = "test",
    rerank: Rerank = None,
    depth: Depth = 50,
    max_images: MaxImages = None,
    batch_size: BatchSize = 256,
    device: Device = "auto",
    model_set: ModelSet = None,
    features: Features = None,
    ranks: RanksFile = None,
    json: Json = False,
) -> None:
    """Measure Recall@1, 5 and 10 of text and image retrieval."""
    from dcdctl.core import devices, evaluation
    from dcdctl.core.corpus import Corpus

    corpus, place = Corpus.open(data, split, max_images), devices.choose(device)
    scorer, reranker = evaluation.load_models(model, rerank, model_set or [], bar)
    result = evaluation.evaluate(
        scorer, corpus, rerank=reranker, depth=depth, batch_size=batch_size, device=place, features=features, track=bar
    )
    document = evaluation.to_document(result, model, split)
    evaluation.write_result(model, document)
    if ranks is not None:
        evaluation.write_ranks(ranks, result, corpus)
    if json:
        return show_json(document)
    _show(document)


def _show(document: dict[str, Any]) -> None:
    counts = f"{document['images']:,} images, {document['captions']:,} captions"
    kind, depth = document["protocol"]["kind"], document["protocol"]["depth"]
    title = f"{document['model']} ({kind}{f' of depth {depth}' if depth else ''}) on {document['split']}: {counts}"
    directions = {"text retrieval": document["text_retrieval"], "image retrieval": document["image_retrieval"]}
    columns = ["", *document["text_retrieval"]]
    rows = [[name, *(f"{value:.2f}" for value in recalls.values())] for name, recalls in directions.items()]
    sums = f"rsum {document['rsum']:.2f}, mean recall {document['mean_recall']:.2f}, {document['seconds']:,.1f} s"
    show_table(title, columns, rows, caption=sums)
