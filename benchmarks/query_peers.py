"""From a text to its ten best images by a static query student: dcdctl, and sentence-transformers with an export of the
same student.

    OMP_NUM_THREADS=1 python benchmarks/query_peers.py --query-model runs/query

Image vectors are those of benchmarks/search.py, of the student's length, and texts are captions of drawn scenes. dcdctl
tokenizes and encodes a text by ONNX Runtime, and searches an index on disk, names included: with its defaults (exact up
to 50,000 images, then a graph), and exactly. sentence-transformers encodes it by the StaticEmbedding of `dcdctl
export`, and `semantic_search` compares it with float32 vectors in memory. Vectors of texts and rows of exact searches
must agree. Texts are searched one after the other, in turns with the other ways, and encoding is also timed alone. One
thread. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from search import K, linked, rows_of, seal
from search_peers import Vectors
from side_by_side import facts, in_turns, median_processor, ratios, table

from dcdctl.core import models
from dcdctl.core.data.scenes import describe_scenes
from dcdctl.core.export import ExportJob, export_model
from dcdctl.core.search import FolderIndex
from dcdctl.core.search.index_config import IndexConfig

OURS, EXACT, THEIRS = "dcdctl", "dcdctl, exact", "sentence-transformers"
TOLERANCE = 1e-4


class Encoders:
    """A query student as dcdctl runs it, and exported to sentence-transformers."""

    def __init__(self, ref: str, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        student = models.load(ref, kind="query")
        self.dim = student.space.dim
        models.export_text_tower(student, folder / "text")
        self.tower = models.TextTower.open(folder / "text", student.digest, 1)
        export_model(ExportJob(ref=ref, out=folder / "export", to=THEIRS))
        self.exported = SentenceTransformer(str(folder / "export"), device="cpu")

    def ours(self, text: str) -> NDArray[np.float32]:
        return self.tower.vectors(self.tower.tokenize([text])[0])

    def theirs(self, text: str) -> torch.Tensor:
        return self.exported.encode([text], convert_to_tensor=True, show_progress_bar=False)

    def check(self, texts: list[str]) -> None:
        largest = max(np.abs(self.ours(text) - self.theirs(text).numpy()).max() for text in texts)
        if largest > TOLERANCE:
            raise SystemExit(f"vectors of the two libraries differ by up to {largest:.1e}")


def compare(encoders: Encoders, texts: list[str], num_images: int, repeats: int) -> tuple[list[list[str]], Any]:
    """Rows of the table, and numbers, at one number of images."""
    from sentence_transformers import util

    with tempfile.TemporaryDirectory() as scratch:
        vectors = Vectors(Path(scratch), num_images, encoders.dim)
        default, flat = linked(Path(scratch) / "default", vectors.flat / "vectors"), FolderIndex.open(vectors.flat)
        seal(default, vectors.parts, vectors.dim, IndexConfig())
        index, unit_RD = FolderIndex.open(default), torch.from_numpy(vectors.unit_RD)

        def theirs(text: str) -> list[int]:
            found = util.semantic_search(encoders.theirs(text), unit_RD, top_k=K, score_function=util.dot_score)
            return [hit["corpus_id"] for hit in found[0]]

        ways: dict[str, Callable[[str], Any]] = {
            OURS: lambda text: rows_of(index.search(encoders.ours(text), K)[0]),
            EXACT: lambda text: rows_of(flat.search(encoders.ours(text), K)[0]),
            THEIRS: theirs,
            f"{OURS}: the encoding": encoders.ours,
            f"{THEIRS}: the encoding": encoders.theirs,
        }
        found = {name: [ways[name](text) for text in texts] for name in (OURS, EXACT, THEIRS)}
        rounds = in_turns({name: lambda way=way: [way(text) for text in texts] for name, way in ways.items()}, repeats)
    if (different := sum(a != b for a, b in zip(found[EXACT], found[THEIRS], strict=True))) > len(texts) // 20:
        raise SystemExit(f"exact searches disagree for {different} of {len(texts)} texts")
    recall = np.mean([len({*a} & {*b}) / K for a, b in zip(found[OURS], found[EXACT], strict=True)])
    factor = ratios(rounds, OURS)
    numbers = {
        name: {"processor_ms": 1000 * median_processor(rounds[name]) / len(texts), **vars(factor[name])}
        for name in ways
    }
    rows = [
        [f"{num_images:,}", name, f"{each['processor_ms']:.3f} ms", f"{each['processor']:.2f}", f"{each['wall']:.2f}"]
        for name, each in numbers.items()
    ]
    return rows, {"images": num_images, "recall@10": float(recall), "different": different, "ways": numbers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--query-model", required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes = itertools.islice(describe_scenes(77, "test", 1), args.texts)
    texts = [described.statements[0].text for described in scenes]
    with tempfile.TemporaryDirectory() as folder:
        encoders = Encoders(args.query_model, Path(folder))
        encoders.check(texts)
        compared = [compare(encoders, texts, num_images, args.repeats) for num_images in args.images]
    columns = ["images", "way", "processor time per text", "to dcdctl", "to dcdctl by the clock"]
    sys.stdout.write(table(columns, [row for rows, _ in compared for row in rows]) + "\n")
    packages = facts("sentence-transformers", "onnxruntime", "usearch")
    sys.stdout.write(json.dumps({**packages, "runs": [numbers for _, numbers in compared]}) + "\n")


if __name__ == "__main__":
    main()
