"""Search by words: BM25 over the captions and the file names of images, and its fusion with the nearest vectors.

    INDEX/keywords/words-N.parquet    the words of each row, from which a change of the index computes the other
        files again
    INDEX/keywords/vocabulary-N.txt   each word once, in order; its number is its line
    INDEX/keywords/starts-N.npy       where the rows of each word begin
    INDEX/keywords/rows-N.npy         the rows that have a word
    INDEX/keywords/scores-N.npy       what a word adds to the BM25 of each of these rows

BM25 is that of Lucene, computed by bm25s (Lù 2024). A word adds idf * tf / (tf + K1 * (1 - B + B * length / mean
length)), with idf = ln(1 + (N - n + 0.5) / (n + 0.5)) for a word of n of the N rows that have words. Shape letters: R
rows, C candidates, W entries of words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core.artifacts import Build, seal_of
from dcdctl.core.data import tokens_of
from dcdctl.core.errors import require_extra
from dcdctl.core.progress import Track
from dcdctl.core.search import part_files
from dcdctl.core.search.entries import SealedFile, WordFiles
from dcdctl.core.search.exact import Floats, Rows
from dcdctl.core.search.sources import SourceImages
from dcdctl.core.search.storage import INDEX, IndexDocument, mapped_arrays, removed_rows, save_arrays

K1, B = 1.2, 0.75
"""Lucene's defaults; they are not tuned here."""
RRF_K = 60
"""The constant of reciprocal rank fusion; Cormack et al. (2009) take 60."""
DEPTH = 100
"""Minimum number of images of each list that are fused."""
# IMG and 2041 of IMG2041 are words besides IMG2041, but the pieces of a hexadecimal number are not.
_INNER_BORDER = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_]{3})(?=\d)|(?<=\d)(?=[^\W\d_]{3})")
_SUFFIX = re.compile(r"\.[A-Za-z]{3,4}$")


def words_of_name(name: str) -> list[str]:
    """The words of a file name or an image id, without a suffix such as .jpg, then the parts of words such as
    sunsetBeach and IMG2041.

    >>> words_of_name("Italy 2019/sunsetBeach_IMG2041.jpg")
    ['italy', '2019', 'sunsetbeach', 'img2041', 'sunset', 'beach', 'img', '2041']
    """
    stem = _SUFFIX.sub("", name)
    words = tokens_of(stem)
    return [*words, *(part for part in tokens_of(_INNER_BORDER.sub(" ", stem)) if part not in words)]


def require() -> None:
    """MissingError if bm25s is not installed."""
    require_extra("hybrid", "bm25s", needed_by="an index of words")


@dataclass(frozen=True)
class Keywords:
    """What each word adds to the BM25 of each row; safe to use from threads."""

    num_rows: int
    vocabulary: dict[str, int]
    starts_W: NDArray[np.int64]
    rows_W: NDArray[np.int32]
    scores_W: Floats

    @staticmethod
    def of(words_R: Sequence[Sequence[str]]) -> Keywords:
        """The words of rows; a row without words does not count as a document."""
        import bm25s

        all_words = sorted(set().union(*words_R))
        vocabulary = {word: number for number, word in enumerate(all_words)}
        # Half of the bytes of int64, and an index has fewer than 2**31 rows.
        rows = np.array([row for row, words in enumerate(words_R) if words], dtype=np.int32)
        if not len(rows):
            return Keywords(
                num_rows=len(words_R),
                vocabulary={},
                starts_W=np.zeros(1, dtype=np.int64),
                rows_W=np.empty(0, dtype=np.int32),
                scores_W=np.empty(0, dtype=np.float32),
            )
        bm25 = bm25s.BM25(method="lucene", k1=K1, b=B, backend="numpy")
        documents = []
        for row in rows.tolist():
            documents.append([vocabulary[word] for word in words_R[row]])
        # The empty token would stand for texts without words, which score nothing here.
        bm25.index((documents, vocabulary), create_empty_token=False, show_progress=False)
        data, indices, starts = (bm25.scores[name] for name in ("data", "indices", "indptr"))
        return Keywords(
            num_rows=len(words_R),
            vocabulary=vocabulary,
            starts_W=starts.astype(np.int64),
            rows_W=rows[indices],
            scores_W=data.astype(np.float32),
        )

    def scores(self, text: str) -> Floats:
        """(R,): the BM25 of each row, 0 for a row without a word of the text. A word that the text repeats counts as
        often."""
        scores_R = np.zeros(self.num_rows, dtype=np.float32)
        for word in tokens_of(text):
            if (number := self.vocabulary.get(word)) is not None:
                entries = slice(self.starts_W[number], self.starts_W[number + 1])
                # A word has a row at most once.
                scores_R[self.rows_W[entries]] += self.scores_W[entries]
        return scores_R


def best(scores_R: Floats, count: int, is_left_out: NDArray[np.bool_]) -> Rows:
    """The rows of the highest positive scores, best first, ties by row.

    >>> best(np.array([0, 2, 3, 2], np.float32), 2, np.zeros(4, np.bool_)).tolist()
    [2, 1]
    """
    rows = np.flatnonzero((scores_R > 0) & ~is_left_out)
    if len(rows) > count:
        rows = rows[scores_R[rows] >= np.partition(scores_R[rows], -count)[-count]]
    # Stable, so that equal scores stay in the order of rows.
    return rows[np.argsort(-scores_R[rows], kind="stable")[:count]].astype(np.int64)


def fuse(
    by_vectors: Rows, by_words: Rows, count: int, has_captions_R: NDArray[np.bool_] | None = None
) -> tuple[Rows, NDArray[np.float64]]:
    """The first `count` rows by the sum of 1 / (RRF_K + rank) over the lists that have them, and the sums; ties by row.

    If only some rows have captions and one of these is found by words, a row without takes its rank by vectors as its
    rank by words too, unless its name ranks higher. Otherwise the rows whose captions share any word with the query
    would precede almost every row without.

    >>> rows, fused = fuse(np.array([7, 8]), np.array([8, 9]), 3)  # 1/62 + 1/61, 1/61, 1/62
    >>> rows.tolist(), fused.round(4).tolist()
    ([8, 7, 9], [0.0325, 0.0164, 0.0161])
    """
    rows, places = np.unique(np.concatenate([by_vectors, by_words]), return_inverse=True)
    # Infinity adds nothing for a list without the row.
    rank_2C = np.full((2, len(rows)), np.inf)
    rank_2C[0, places[: len(by_vectors)]] = np.arange(1, len(by_vectors) + 1)
    rank_2C[1, places[len(by_vectors) :]] = np.arange(1, len(by_words) + 1)
    if has_captions_R is not None and has_captions_R[by_words].any():
        rank_2C[1] = np.where(has_captions_R[rows], rank_2C[1], rank_2C.min(axis=0))
    fused_C = (1 / (RRF_K + rank_2C)).sum(axis=0)
    # Stable, because `np.unique` has sorted the rows.
    order = np.argsort(-fused_C, kind="stable")[:count]
    return rows[order].astype(np.int64), fused_C[order]


def fill(folder: Path, document: IndexDocument, track: Track) -> WordFiles | None:
    """The entry of the words of all rows, whose files are written; None without the setting.

    Rows that have words already are not read from their sources again. MissingError or StaleError for a corpus that is
    gone or has changed.
    """
    if not document.settings.keywords:
        return None
    existing, removed = document.keywords, document.removed.count
    if existing is not None and (existing.num_rows, existing.removed) == (document.num_rows, removed):
        return existing
    words_R = [] if existing is None else read_words(folder, existing)
    sources, first = SourceImages(str(folder), document.sources), 0
    with track("read words", total=document.num_rows - len(words_R), unit="images") as advance:
        for part in document.parts:
            # Sources come part by part, so the words end where a part ends.
            if first >= len(words_R):
                for image in part_files.read_images(part_files.part_path(folder, part)):
                    captions = sources.read_captions(part.source, image)
                    words = [word for caption in captions for word in tokens_of(caption)]
                    words_R.append([*words, *words_of_name(image.path or image.image_id)])
                advance(part.rows)
            first += part.rows
    # Removed images leave no words behind.
    is_removed = removed_rows(folder, document)
    words_R = [[] if is_gone else words for is_gone, words in zip(is_removed, words_R, strict=True)]
    return _write(folder, document.generation, words_R, removed)


def _write(folder: Path, generation: int, words_R: Sequence[Sequence[str]], num_removed: int) -> WordFiles:
    """Write the files of the words of rows."""
    build, keywords = Build(folder, {}, INDEX), Keywords.of(words_R)
    table = pa.table({"words": pa.array(words_R, type=pa.list_(pa.string()))})
    lines = "".join(f"{word}\n" for word in keywords.vocabulary)
    writers: dict[str, Callable[[Path], object]] = {
        "words.parquet": lambda path: pq.write_table(table, path, compression="zstd"),
        "vocabulary.txt": lambda path: path.write_text(lines, encoding="utf-8", newline="\n"),
        "starts.npy": partial(save_arrays, [keywords.starts_W]),
        "rows.npy": partial(save_arrays, [keywords.rows_W]),
        "scores.npy": partial(save_arrays, [keywords.scores_W]),
    }
    entries = {}
    for name, write in writers.items():
        kind, _, suffix = name.partition(".")
        path = folder / "keywords" / f"{kind}-{generation}.{suffix}"
        with build.write(f"keywords/{path.name}") as partial_path:
            write(partial_path)
        entries[kind] = SealedFile(file=path.name, **seal_of(path))
    return WordFiles(num_rows=len(words_R), removed=num_removed, **entries)


def read_words(folder: Path, files: WordFiles) -> list[list[str]]:
    """The words of each row. StaleError for a damaged file."""
    path = _checked(folder, files.words)
    with part_files.reading(path):
        column = pq.read_table(path).column("words").cast(pa.list_(pa.string()))
        column.validate(full=True)
        words: list[list[str] | None] = column.to_pylist()
    if len(words) != files.num_rows or None in words or any(None in row for row in words if row):
        raise INDEX.damaged(path, f"it has not the words of {files.num_rows:,} rows")
    return words  # type: ignore[return-value]


def open_keywords(folder: Path, files: WordFiles) -> Keywords:
    """The words of an index, memory-mapped. StaleError for a damaged file."""
    vocabulary = _read_vocabulary(_checked(folder, files.vocabulary))
    path = _checked(folder, files.starts)
    (starts_W,) = mapped_arrays(path, (np.int64, (len(vocabulary) + 1,)))
    if starts_W[0] != 0 or (np.diff(starts_W) < 0).any():
        raise INDEX.damaged(path, "its numbers do not ascend from 0")
    path = _checked(folder, files.rows)
    (rows_W,) = mapped_arrays(path, (np.int32, (int(starts_W[-1]),)))
    if len(rows_W) and not (rows_W.min() >= 0 and rows_W.max() < files.num_rows):
        raise INDEX.damaged(path, f"it has rows that are not among {files.num_rows:,}")
    path = _checked(folder, files.scores)
    (scores_W,) = mapped_arrays(path, (np.float32, (len(rows_W),)))
    if not (np.isfinite(scores_W).all() and (scores_W >= 0).all()):
        raise INDEX.damaged(path, "it has scores that are negative, NaN or infinite")
    return Keywords(num_rows=files.num_rows, vocabulary=vocabulary, starts_W=starts_W, rows_W=rows_W, scores_W=scores_W)


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        words = path.read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        raise INDEX.damaged(path, "it is no UTF-8 text") from error
    vocabulary = {word: number for number, word in enumerate(words)}
    if len(vocabulary) != len(words):
        raise INDEX.damaged(path, "it has a word twice")
    return vocabulary


def _checked(folder: Path, file: SealedFile) -> Path:
    return INDEX.checked(folder / "keywords" / file.file, file.sha256)
