"""Evaluation folders as `dcdctl eval` leaves them, with ranks that a test chooses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcdctl.core import artifacts, files, models
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.evaluation import (
    MODEL_FILES,
    POOL_FILES,
    Agreement,
    Agreements,
    PoolEvaluation,
    RankTable,
    SavedEvaluation,
    measures,
    significance,
)
from dcdctl.core.evaluation import files as files_of
from dcdctl.core.evaluation.agreement import QueryAgreement
from dcdctl.core.evaluation.document import TIES, HowMeasured
from dcdctl.core.training import runs


def write_evaluation(
    folder: Path, corpus: Corpus, text: Sequence[int], image: Sequence[int], *, cascade: bool = False, **changes: Any
) -> Path:
    """The three files; `changes` are keys of the document, or of its protocol where it has them."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "cascade-" if cascade else ""
    write_ranks(folder / f"{prefix}ranks.parquet", corpus, text, image)
    document = document_of(corpus, text, image, cascade=cascade)
    for key, value in changes.items():
        (document["protocol"] if key in document["protocol"] else document)[key] = value
    write_json(folder / ("cascade.json" if cascade else "result.json"), document)
    reseal(folder)
    return folder


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A document as dcdctl writes it, with its checksum and, in a run folder, its run, in place of the one that is
    there."""
    run = {} if path.name == "run.json" else models.run_of(path.parent)
    artifacts.write_document(path, {key: value for key, value in document.items() if key != artifacts.CHECKSUM} | run)
    if path.name == "run.json":
        _name_run_again(path.parent)


def _name_run_again(folder: Path) -> None:
    """Name the run in the other files of its folder, after run.json was changed."""
    digest = files.digest_of(artifacts.read_document(folder / "run.json"))
    model = folder / "model" / "dcdctl.json"
    if model.exists():
        artifacts.write_document(model, {**artifacts.read_document(model), artifacts.RUN: digest})
    log = folder / "metrics.jsonl"
    if log.exists():
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        write_metrics(folder, [{key: line[key] for key in line if key != artifacts.CHECKSUM} for line in lines])
    for name in ("result.json", "cascade.json", "bench.json"):
        if (folder / name).exists():
            change_json(folder / name)


def write_metrics(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """metrics.jsonl of a run, and metrics.json."""
    (folder / "metrics.jsonl").write_text("".join(map(runs.Run(folder).log_line, lines)))
    write_json(folder / "metrics.json", {"files": artifacts.list_files(folder, ["metrics.jsonl"])})


def change_json(path: Path, **changes: Any) -> None:
    """Change keys of a document, and its checksum."""
    write_json(path, {**json.loads(path.read_text()), **changes})


def reseal(folder: Path) -> None:
    """List the tables of an evaluation in its documents again, as if they had been written with these tables."""
    for prefix, name in (("", "result.json"), ("cascade-", "cascade.json")):
        if (folder / name).exists():
            tables = [
                table for table in (f"{prefix}ranks.parquet", f"{prefix}top.parquet") if (folder / table).exists()
            ]
            change_json(folder / name, files=artifacts.list_files(folder, tables))


def write_ranks(
    path: Path, corpus: Corpus, text: Sequence[int], image: Sequence[int], **columns: Sequence[float]
) -> Path:
    """The ranks of images, then of captions; `columns` are further ones in that order, such as other scores than 1."""
    owner = corpus.caption_image
    texts = pd.DataFrame({"direction": "text", "query": range(len(text)), "image_id": corpus.image_ids, "rank": text})
    captions = {"caption_id": pd.array(corpus.caption_ids, dtype="Int64"), "caption": corpus.captions, "rank": image}
    images = pd.DataFrame(
        {"direction": "image", "query": range(len(image)), "image_id": np.array(corpus.image_ids)[owner], **captions}
    )
    texts = texts.assign(caption_id=pd.array([pd.NA] * len(text), dtype="Int64"), caption=None)
    pd.concat([texts, images], ignore_index=True).assign(**{"score": 1.0, **columns}).to_parquet(path, index=False)
    return path


def document_of(corpus: Corpus, text: Sequence[int], image: Sequence[int], *, cascade: bool = False) -> dict[str, Any]:
    """The document of these ranks, with few resamples. mAP@R is simply R@1 here."""
    table = RankTable(
        tuple(corpus.image_ids), corpus.caption_ids, corpus.caption_image, np.array(text), np.array(image)
    )
    sides = {}
    for direction in Direction:
        rank_Q = table.ranks(direction)
        recalls = {row.name: 100 * float(np.mean(row.of_rank(rank_Q))) for row in measures.ESTIMATED}
        median, mean = float(np.median(rank_Q)), float(rank_Q.mean())
        sides[direction.key] = {**recalls, "mAP@R": recalls["R@1"], "median_rank": median, "mean_rank": mean}
    rsum, estimates = measures.rsum(*sides.values()), significance.bootstrap([table], resamples=50)
    bounds = {
        direction.key: {row.name: list(estimates.of(direction)[row.name].interval) for row in measures.ESTIMATED}
        for direction in Direction
    }
    kind = {"kind": "cascade", "depth": 50} if cascade else {"kind": "dual", "depth": None}
    return {
        "model": "made",
        "split": corpus.split,
        "images": corpus.num_images,
        "captions": corpus.num_captions,
        **sides,
        "rsum": rsum,
        "mean_recall": rsum / 6,
        "intervals": {"level": 0.95, "resamples": 50, "rsum": list(estimates.rsum.interval), **bounds},
        "protocol": {"name": "whole", "folds": 1, **kind, "features": None, "ties": "count against the positive"},
        "pairs_scored": 0,
        "seconds": 1.0,
        "corpus_fingerprint": corpus.fingerprint,
        "data": str(corpus.folder),
    }


def write_top(
    path: Path, corpus: Corpus, first_text: Sequence[Sequence[int]], first_image: Sequence[Sequence[int]]
) -> Path:
    """The first places of every query, scored by how far they are from 1."""
    rows = [
        {
            "direction": direction,
            "query": query,
            "place": np.int16(place),
            "candidate": candidate,
            "score": np.float32(1 / place),
            "is_own": corpus.caption_image[candidate] == query
            if direction == "text"
            else corpus.caption_image[query] == candidate,
        }
        for direction, lists in (("text", first_text), ("image", first_image))
        for query, candidates in enumerate(lists)
        for place, candidate in enumerate(candidates, 1)
    ]
    pd.DataFrame(rows).to_parquet(path, index=False)
    reseal(path.parent)
    return path


def agreements_of(
    text_Q: Sequence[float], image_Q: Sequence[float], image_of_text: Sequence[int] | None = None, **more: Any
) -> Agreements:
    """Nine candidates for every query, whose nDCG@10 this is, and also its correlation; a direction without queries is
    left out."""
    by_direction = {}
    for direction, ndcg in zip(Direction, (text_Q, image_Q), strict=True):
        if count := len(ndcg):
            measures_QM = np.column_stack([np.zeros(count), ndcg, ndcg])
            by_direction[direction] = QueryAgreement(np.arange(count), np.full(count, 9), measures_QM)
    images = None if image_of_text is None else np.array(image_of_text)
    return Agreements(**{"over": "all", "by_direction": by_direction, "image_of_text": images, **more})


def write_pool_agreement(folder: Path, agreements: Agreements, teacher: str = "big", **changes: Any) -> Path:
    """The evaluation of a pool with this agreement; `changes` are fields of the document."""
    folder.mkdir(parents=True, exist_ok=True)
    protocol = HowMeasured(name="whole", folds=1, kind="dual", depth=None, features=None, ties=TIES)
    facts = {"model": folder.name, "split": "train", "images": 2, "captions": 4, "data": str(folder / "gone")}
    facts |= {"corpus_fingerprint": "c0ffee", "seconds": 1.0, "protocol": protocol}
    facts["agreement"] = Agreement.of(agreements, teacher, f"{teacher} fingerprint")
    files_of.write_evaluation(folder, PoolEvaluation(**{**facts, **changes}), agreements=agreements)
    return folder


def add_agreement(folder: Path, agreements: Agreements, teacher: str = "big") -> Path:
    """An agreement beside the recalls that `write_evaluation` wrote."""
    saved = SavedEvaluation.load(folder)
    rows = write_pool_agreement(folder / "pool", agreements) / POOL_FILES.agreement
    rows.rename(folder / MODEL_FILES.agreement)
    shutil.rmtree(folder / "pool")
    agreement = to_table(Agreement.of(agreements, teacher, f"{teacher} fingerprint"))
    tables = artifacts.list_files(folder, [*saved.listed, MODEL_FILES.agreement])
    change_json(folder / "result.json", agreement=agreement, files=tables)
    return folder
