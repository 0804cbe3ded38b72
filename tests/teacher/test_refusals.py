"""What caches of scores and of text vectors refuse: settings, files of scores, texts and vectors."""

from __future__ import annotations

import json
import os
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import refusals
from refusals import Refusal

from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.teacher import CacheJob, CandidateConfig, TextCacheJob, cache_texts, take_scores

CANDIDATES = [
    ({"kind": "embedding"}, r"needs candidates\.model"),
    ({"directions": ()}, r"candidates\.directions must not be empty"),
    ({"duplicate_bits": 64}, r"candidates\.duplicate_bits must lie in \[0, 64\), got 64"),
    ({"relative_margin": 1.0}, r"candidates\.relative_margin must lie in \[0, 1\), got 1\.0"),
    ({"kind": "embedding", "model": "m", "per_query": 4, "random_per_query": 4}, "must be less than per_query"),
    ({"kind": "random", "random_per_query": 2}, "is for mined candidates, and the kind is random"),
    ({"kind": "blocks", "random_per_query": 2}, "is for mined candidates, and the kind is blocks"),
    ({"kind": "lexical", "random_per_query": -1}, "random_per_query must lie in"),
]
SCORES = [
    (
        "a.jsonl",
        '{"image_id": "a", "caption_id": 1}\n',
        r"a\.jsonl has no column score \(it has image_id",
    ),
    ("a.jsonl", '{"image_id": "a", "caption_id": 1, "score"\n', r"a\.jsonl cannot be read as scores"),
    ("a.jsonl", '{"image_id": 7, "caption_id": 1, "score": 1}\n', r"a\.jsonl cannot be read as scores: .*image_id"),
    ("a.json", "[1, 2]", r"a\.json cannot be read as scores: a line is not a JSON object"),
    ("a.csv", "", r"a\.csv has no column image_id \(it has none\)"),
    ("a.csv", "image_id,score,caption_id,score\na,1,1,1\n", r"a\.csv has the column score twice"),
    ("a.parquet", "dear", r"a\.parquet cannot be read as scores: .*[Pp]arquet"),
    ("a.txt", "dear", r"a\.txt is no file of scores by its name; a file of scores ends with \.parquet, "),
    ("a.xyz/b.txt", "dear", r"a\.xyz holds no file of scores"),
]
TEXTS = [
    ("a.txt", "\n \n", r"a\.txt has no text"),
    ("a.csv", "", r"a\.csv has no column query, caption, text: it is empty"),
    ("a.csv", "texts,x\na dog,1\n", r"a\.csv has no column query, caption, text: its columns are texts, x"),
    ("a.csv", "text\n' '\n\" \"\n", r"a\.csv line 3: the text is empty"),
    ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', r"a\.jsonl line 2: the text is a number \(3\).*; correct the text, or"),
    ("a.jsonl", '{"text": "a", "language": 3}\n', r"a\.jsonl line 1: the language is a number"),
    ("a.csv", "text,language\na,\x1b[31m\n", r"a\.csv line 2: the language is '\\x1b\[31m', expected a short name"),
    ("a.jsonl", '{"txt": "a"}\n', r"a\.jsonl line 1 has no column query, caption, text"),
    ("a.txt", "grün\n".encode("cp1252"), "not UTF-8 .*; save the file as UTF-8; .* --set encoding="),
]
VECTORS = [
    ([[1.0, 2.0], [3.0]], r"v\.parquet row 1: 1 of the 1 values .* finite numbers, expected 2 that"),
    ([[1.0, 2.0], None], "row 1: 0 of the 0 values"),
    ([[1.0, 2.0], [None, 1.0, 2.0]], "row 1: 2 of the 3 values"),
    ([[1.0, 2.0], [0.0, 0.0]], "row 1: 2 of the 2 values .*, expected 2 that are not all zero"),
    ([[1.0, 2.0], [1.0, float("nan")]], "row 1: 1 of the 2 values"),
    ([[1.0, 2.0], [1.0, float("inf")]], "row 1: 1 of the 2 values"),
    ([[], []], "row 0: 0 of the 0 values .*, expected some that"),
    ([None, [1.0, 2.0]], "row 0: 0 of the 0 values .*, expected some that"),
]


def write(path, content: str | bytes):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def job(tmp_path, scenes_corpus_dir) -> CacheJob:
    return CacheJob(data=scenes_corpus_dir, out=tmp_path / "cache", candidates=CandidateConfig(per_query=4))


def of_scores(name: str, content: str):
    """Take the scores of a file, or of the folder that holds it."""

    def take(job, tmp_path):
        write(tmp_path / name, content)
        take_scores(job, [str(tmp_path / name.split("/")[0])], "a reranker")

    return take


def of_texts(name: str, content: str | bytes | None, **more):
    """Cache the vectors of texts of a file; without content it is a named pipe."""

    def cache(tmp_path):
        if content is None:
            os.mkfifo(tmp_path / name)
        else:
            write(tmp_path / name, content)
        cache_texts(TextCacheJob(out=tmp_path / "q", texts=[str(tmp_path / name)], teacher="scenes-clip", **more))

    return cache


def of_vectors(vectors, **more):
    """Cache given vectors of the texts a and b; without any, a line with a number that float64 does not hold."""

    def cache(tmp_path):
        path = tmp_path / ("v.parquet" if vectors else "v.jsonl")
        if vectors:
            pq.write_table(pa.table({"text": ["a", "b"], "vector": pa.array(vectors, pa.list_(pa.float64()))}), path)
        else:
            path.write_text(json.dumps({"text": "a", "vector": [10**400, 2]}))
        cache_texts(TextCacheJob(out=tmp_path / "q", vectors=[str(path)], teacher="a large model", **more))

    return cache


ROWS = [
    *(Refusal(f"{wrong}", partial(CandidateConfig, **wrong), ConfigError, says) for wrong, says in CANDIDATES),
    *(Refusal(f"scores {content}", of_scores(name, content), InputError, says) for name, content, says in SCORES),
    *(Refusal(f"texts {content!r}", of_texts(name, content), InputError, says) for name, content, says in TEXTS),
    Refusal("a named pipe", of_texts("a.txt", None), InputError, r"a\.txt is no file of texts by its kind"),
    Refusal("a split of texts", of_texts("a.txt", "a", split="test"), InputError, "has no split 'test'; leave --split"),
    Refusal("a split of vectors", of_vectors([[1, 2]] * 2, split="test"), InputError, "has no split 'test'"),
    *(Refusal(f"vectors {vectors}", of_vectors(vectors), InputError, says) for vectors, says in VECTORS),
    Refusal("an integer beyond float64", of_vectors(None), InputError, r"v\.jsonl line 1: 1 of the 2 values"),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
