"""What an evaluation leaves in a folder, a run's or another: the rank of every query, its first candidates, and the numbers, written last.

    DIR/ranks.parquet            direction, query, image_id, caption_id, caption, rank, score
    DIR/top.parquet              direction, query, place, candidate, score, is_own
    DIR/result.json              the document of `evaluation.to_document`

A cascade's are cascade-ranks.parquet, cascade-top.parquet and cascade.json, so that the dual encoder's own stay. docs/formats.md has the
columns. The numbers of before are removed first: an evaluation that is killed in between leaves none, and never those of other ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dcdctl.core import files
from dcdctl.core.comparison import ALONE, CASCADE, Names
from dcdctl.core.corpus import Corpus
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import Evaluation
from dcdctl.core.tally import NUM_TOP, Ranking


def names_of(*, is_cascade: bool) -> Names:
    return CASCADE if is_cascade else ALONE


def folder_of(ref: str, out: Path | None) -> Path | None:
    """Where the evaluation of a model belongs: in the folder that is named, else in the model's run; None where it has none."""
    return out if out is not None else Path(ref) if Path(ref, "run.json").exists() else None


def check_copy(path: Path, folder: Path | None, names: Names) -> None:
    """InputError if a copy of the ranks at `path` would take the place of ranks that other numbers belong to."""
    for other in (ALONE, CASCADE):
        is_ours = folder is not None and other == names and path.resolve() == (folder / names.ranks).resolve()
        if path.name == other.ranks and path.with_name(other.result).exists() and not is_ours:
            said = f"{path.with_name(other.result)} belongs to the ranks in {path}"
            raise InputError(f"{said}, which --ranks would replace by those of another evaluation", hint="name another file with --ranks")


def write(folder: Path, document: dict[str, Any], evaluation: Evaluation, corpus: Corpus) -> None:
    """Write the three files, the numbers last."""
    names = names_of(is_cascade=evaluation.kind == "cascade")
    (folder / names.result).unlink(missing_ok=True)
    write_ranks(folder / names.ranks, evaluation, corpus)
    _write_top(folder / names.top, evaluation)
    files.write_json(folder / names.result, document)


def write_ranks(path: Path, evaluation: Evaluation, corpus: Corpus) -> None:
    """Write the rank of every query to a Parquet table; `query` is an image index where the direction is "text", else a caption index.

    A query image has no caption.
    """
    num_images, num_captions = len(evaluation.text_ranks), len(evaluation.image_ranks)
    image_ids = np.array(evaluation.table.image_ids, dtype=object)
    text = {
        "direction": "text",
        "query": np.arange(num_images),
        "image_id": image_ids,
        "caption_id": pd.array([pd.NA] * num_images, dtype="Int64"),
        "caption": pd.Series([None] * num_images, dtype="str"),
        "rank": evaluation.text_ranks,
        "score": evaluation.rankings.text.best_Q.astype(np.float32),
    }
    image = {
        "direction": "image",
        "query": np.arange(num_captions),
        "image_id": image_ids[evaluation.table.caption_image],
        "caption_id": pd.array(evaluation.table.caption_ids, dtype="Int64"),
        "caption": corpus.captions[:num_captions],
        "rank": evaluation.image_ranks,
        "score": evaluation.rankings.image.best_Q.astype(np.float32),
    }
    _write(path, pd.concat([pd.DataFrame(text), pd.DataFrame(image)], ignore_index=True))


def _write_top(path: Path, evaluation: Evaluation) -> None:
    owner_T = evaluation.table.caption_image
    text, image = evaluation.rankings.text, evaluation.rankings.image
    is_own_IK = owner_T[text.top_QK] == np.arange(len(text.top_QK))[:, None]
    parts = [_top_table("text", text, is_own_IK), _top_table("image", image, image.top_QK == owner_T[:, None])]
    _write(path, pd.concat(parts, ignore_index=True))


def _top_table(direction: str, ranking: Ranking, is_own_QK: NDArray[np.bool_]) -> pd.DataFrame:
    """One row a candidate; `candidate` is a caption index where the direction is "text", else an image index."""
    top_QK = ranking.top_QK[:, :NUM_TOP]
    num_queries, k = top_QK.shape
    columns = {
        "direction": direction,
        "query": np.repeat(np.arange(num_queries), k),
        "place": np.tile(np.arange(1, k + 1, dtype=np.int16), num_queries),
        "candidate": top_QK.ravel(),
        "score": ranking.top_score_QK[:, :NUM_TOP].ravel().astype(np.float32),
        "is_own": is_own_QK[:, :NUM_TOP].ravel(),
    }
    return pd.DataFrame(columns)


def _write(path: Path, table: pd.DataFrame) -> None:
    with files.atomic_path(path) as partial:
        table.to_parquet(partial, index=False)
