"""Search by words: BM25, fusion of ranks, and the words of an index that is built, changed, killed and damaged."""

from __future__ import annotations

import importlib.metadata
import math
import shutil
import sys
from pathlib import Path

import bm25s
import numpy as np
import pytest
import torch
from image_files import png, put
from made_index import build, exact, killed_before, seal_index, unit_vectors, update
from tiny import make_models, make_splits

from dcdctl.core import models
from dcdctl.core.data import Corpus, tokens_of
from dcdctl.core.errors import MissingError
from dcdctl.core.search import FolderIndex, IndexSearcher, StoredVectors, keywords, part_files
from dcdctl.core.search.entries import ImageSource
from dcdctl.core.search.exact import token_type
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.keywords import Keywords, best, fuse, words_of_name
from dcdctl.core.search.part_files import SourceImage

pytestmark = pytest.mark.usefixtures("_duals_read_once")

CAPTIONS = [
    ["A dog in the snow.", "The dog runs."],
    ["Two cats on a sofa"],
    ["A cat and a dog"],
    ["a red bus", "The bus stops in the snow"],
    ["a sofa"],
]
WORDS = IndexConfig(keywords=True)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(part_files, "ROWS_PER_GROUP", 2)


@pytest.fixture
def photos(tmp_path):
    """A corpus of five images with captions."""
    make_splits(tmp_path / "corpus", {"val": CAPTIONS})
    return Corpus.open(tmp_path / "corpus", "val")


def captioned(
    folder: Path, corpus: Corpus, vectors_RD: np.ndarray, removed: tuple[int, ...] = (), **settings: object
) -> FolderIndex:
    """An index of made-up vectors of the images of a corpus, in parts of two."""
    source = ImageSource(kind="corpus", path=str(corpus.folder), split=corpus.split, fingerprint=corpus.fingerprint)
    images = [SourceImage(image_id=image_id, corpus_row=row) for row, image_id in enumerate(corpus.image_ids)]
    entries = []
    (folder / "vectors").mkdir(parents=True)
    for number, first in enumerate(range(0, len(images), 2)):
        path = folder / "vectors" / part_files.part_name(number)
        part_files.write_part(path, images[first : first + 2], StoredVectors(vectors_RD[first : first + 2]))
        entries.append(part_files.describe_part(path, 0, token_type(vectors_RD.shape[1], "float16"))[0])
    return seal_index(folder, source, entries, dim=vectors_RD.shape[1], removed=removed or None, **settings)


def lucene(words_R: list[list[str]], text: str) -> list[float]:
    """BM25 as written in the papers, word by word in double precision: the oracle."""
    documents = [words for words in words_R if words]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in words_R:
        score = 0.0
        for word in tokens_of(text):
            n, tf = sum(word in other for other in documents), words.count(word)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            score += idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * len(words) / mean))
        scores.append(score)
    return scores


def row_words(index: FolderIndex) -> list[list[str]]:
    return keywords.read_words(index.folder, index.document.keywords)


def test_bm25_of_a_small_example_worked_out_by_hand():
    words = Keywords.of([["a", "dog"], [], ["dog", "dog", "snow", "a"], ["cat"] * 3])
    # Three documents of 2, 4 and 3 words: mean 3. dog is in 2 of 3: idf = ln(1 + 1.5 / 2.5). snow is in 1 of 3: idf =
    # ln(1 + 2.5 / 1.5).
    dog, snow = 0.4700036, 0.9808293
    short, long = 1.2 * (0.25 + 0.75 * 2 / 3), 1.2 * (0.25 + 0.75 * 4 / 3)
    assert words.scores("DOG").tolist() == pytest.approx([dog / (1 + short), 0, 2 * dog / (2 + long), 0])
    assert words.scores("dog snow!").tolist() == pytest.approx(
        [dog / (1 + short), 0, 2 * dog / (2 + long) + snow / (1 + long), 0]
    )
    assert words.scores("bird").tolist() == [0, 0, 0, 0]


def test_bm25_equals_that_of_bm25s_and_of_the_formula():
    rng = np.random.default_rng(3)
    vocabulary = [f"w{number}" for number in range(30)]
    words_R = [rng.choice(vocabulary, rng.integers(1, 12), p=np.arange(1, 31) / 465).tolist() for _ in range(50)]
    theirs = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    theirs.index(words_R, show_progress=False)
    ours = Keywords.of(words_R)
    for query in (["w1"], ["w5", "w7", "w29", "w29"], vocabulary):
        text = " ".join(query)
        np.testing.assert_allclose(ours.scores(text), theirs.get_scores(query), rtol=1e-5)
        np.testing.assert_allclose(ours.scores(text), lucene(words_R, text), rtol=1e-5)


def test_fused_ranks_worked_out_by_hand():
    vectors, words = np.array([4, 2, 9]), np.array([9, 7])
    rows, fused = fuse(vectors, words, 10)
    assert rows.tolist() == [9, 4, 2, 7]  # 1/63 + 1/61; 1/61; 1/62 twice, the smaller row first
    assert fused.tolist() == pytest.approx([1 / 63 + 1 / 61, 1 / 61, 1 / 62, 1 / 62])
    assert fuse(vectors, words, 2)[0].tolist() == [9, 4]
    # Exchanged ranks are a tie, to the bit.
    assert fuse(np.array([5, 3]), np.array([3, 5]), 2)[0].tolist() == [3, 5]
    assert fuse(vectors, np.empty(0, dtype=np.int64), 3)[0].tolist() == [4, 2, 9]


def test_images_without_captions_beside_others_with_are_not_pushed_down():
    vectors, words = np.array([4, 2, 9, 1]), np.array([9, 2, 7, 1])
    assert fuse(vectors, words, 9)[0].tolist() == [
        9,
        2,
        1,
        4,
        7,
    ]  # 4, the nearest image, follows those that share a word
    has_captions = np.ones(10, dtype=bool)
    has_captions[[4, 7, 2]] = False
    rows, fused = fuse(vectors, words, 9, has_captions)
    # 4 has rank 1 twice. 2 keeps its rank 2 by words, which is also its rank by vectors; 7 has no rank by vectors.
    sums = {4: 2 / 61, 2: 2 / 62, 9: 1 / 63 + 1 / 61, 1: 2 / 64, 7: 1 / 63}
    assert rows.tolist() == sorted(sums, key=lambda row: -sums[row])
    assert fused.tolist() == pytest.approx(sorted(sums.values(), reverse=True))
    # A name ranks higher than the vector; of words that no caption has, a name alone has two ranks.
    assert fuse(np.array([3, 4]), np.array([4, 3]), 9, has_captions)[1].tolist() == pytest.approx([1 / 62 + 1 / 61] * 2)
    assert fuse(np.array([2, 4]), np.array([4]), 9, has_captions)[1].tolist() == pytest.approx(
        [1 / 62 + 1 / 61, 1 / 61]
    )


@pytest.mark.parametrize(
    ("scores", "count", "left_out", "rows"),
    [
        ([1, 3, 3, 0, 2], 2, [False] * 5, [1, 2]),
        ([1, 3, 3, 0, 2], 9, [False] * 5, [1, 2, 4, 0]),
        ([2, 2, 2, 2], 2, [True, False, False, False], [1, 2]),
        ([0, 0], 2, [False] * 2, []),
    ],
)
def test_the_best_rows_by_words_have_a_word_and_ties_are_by_row(scores, count, left_out, rows):
    assert best(np.array(scores, np.float32), count, np.array(left_out)).tolist() == rows


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("2019-07 Italy/sunsetBeach.JPEG", ["2019", "07", "italy", "sunsetbeach", "sunset", "beach"]),
        ("IMG_2041.jpg", ["img", "2041"]),
        ("DSC01234", ["dsc01234", "dsc", "01234"]),
        ("1000268201_693b08cb0e.jpg", ["1000268201", "693b08cb0e"]),
        ("dog12/v1.2", ["dog12", "v1", "2", "dog", "12"]),
        ("großerHund.png", ["grosserhund", "grosser", "hund"]),
        ("कुत्ता.webp", ["कुत्ता"]),
        ("---.png", []),
    ],
)
def test_words_of_names(name, words):
    assert words_of_name(name) == words


def test_hybrid_hits_are_the_fused_ranks_of_the_cosines_and_of_bm25(photos, tmp_path):
    vectors = unit_vectors(5)
    index = captioned(tmp_path / "index", photos, vectors, keywords=True)
    words_R = [
        [word for caption in captions for word in tokens_of(caption)] + [f"i{row}"]
        for row, captions in enumerate(CAPTIONS)
    ]
    assert row_words(index) == words_R
    queries = unit_vectors(3, seed=5).astype(np.float64)
    texts = ["a dog in snow", "i3", "sofa"]
    for text, query, hits in zip(texts, queries, index.hybrid(texts, queries, 4), strict=True):
        bm25 = lucene(words_R, text)
        by_words = sorted((row for row in range(5) if bm25[row] > 0), key=lambda row: -bm25[row])
        by_vectors = exact(vectors, query, 5)
        fused = {
            row: sum(1 / (61 + order.index(row)) for order in (by_vectors, by_words) if row in order)
            for row in range(5)
        }
        assert [hit.row for hit in hits] == sorted(fused, key=lambda row: -fused[row])[:4], text
        for hit in hits:
            cosine = float(
                vectors[hit.row].astype(np.float64) @ query / np.linalg.norm(vectors[hit.row].astype(np.float64))
            )
            assert (hit.fused, hit.score) == (
                pytest.approx(fused[hit.row]),
                pytest.approx(cosine / np.linalg.norm(query), abs=1e-6),
            )
            assert hit.bm25 == (pytest.approx(bm25[hit.row]) if bm25[hit.row] > 0 else None)
            assert hit.name == f"i{hit.row}"


def test_removed_images_are_not_found_and_leave_no_words(photos, tmp_path):
    vectors = unit_vectors(5)
    index = captioned(tmp_path / "index", photos, vectors, keywords=True)
    fewer = update(index.folder, remove=("i0", "i4"))
    assert row_words(fewer)[0] == row_words(fewer)[4] == []
    assert all("runs" not in str(path.read_bytes()) for path in (index.folder / "keywords").iterdir())
    assert sorted(hit.row for hit in fewer.hybrid(["a dog runs on a sofa"], vectors[:1], 5)[0]) == [1, 2, 3]
    # As if they had never been there.
    fresh = captioned(tmp_path / "fresh", photos, vectors, removed=(0, 4), keywords=True)
    assert keyword_bytes(fresh) == keyword_bytes(fewer)
    assert sorted(path.name for path in (index.folder / "keywords").iterdir()) == sorted(
        f"{kind}-2.{suffix}" for kind, suffix in KINDS.items()
    )


KINDS = {"words": "parquet", "vocabulary": "txt", "starts": "npy", "rows": "npy", "scores": "npy"}


def keyword_bytes(index: FolderIndex) -> dict[str, bytes]:
    """The files of words by kind, without the generation in their names."""
    files = index.document.keywords.files
    return {file.file.split("-")[0]: (index.folder / "keywords" / file.file).read_bytes() for file in files}


def test_words_are_added_to_an_index_and_taken_away_without_its_model(photos, tmp_path):
    built = captioned(tmp_path / "built", photos, unit_vectors(5), keywords=True)
    index = captioned(tmp_path / "index", photos, unit_vectors(5))
    assert not (index.folder / "keywords").exists()
    assert index.document.keywords is None
    more = update(index.folder, sets=("keywords=true",))
    assert keyword_bytes(more) == keyword_bytes(built)
    assert more.document.versions["bm25s"] == importlib.metadata.version("bm25s")
    less = update(index.folder, sets=("keywords=false",))
    assert not less.has_keywords
    assert "bm25s" not in less.document.versions
    assert list((index.folder / "keywords").iterdir()) == []


def test_words_of_a_corpus_that_is_gone_cannot_be_added_but_stay(photos, tmp_path):
    index = captioned(tmp_path / "index", photos, unit_vectors(5))
    kept = captioned(tmp_path / "kept", photos, unit_vectors(5), keywords=True)
    photos.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match="corpus"):
        update(index.folder, sets=("keywords=true",))
    assert not FolderIndex.open(index.folder).has_keywords
    fewer = update(kept.folder, remove=("i1",))
    assert fewer.hybrid(["sofa"], unit_vectors(1), 9)[0][0].row == 4


def test_words_killed_before_any_move_are_built_again_to_the_same_bytes(photos, tmp_path, monkeypatch):
    old = captioned(tmp_path / "old", photos, unit_vectors(5))
    shutil.copytree(old.folder, tmp_path / "new")
    new = update(tmp_path / "new", sets=("keywords=true",))
    number = 0
    while True:
        folder = tmp_path / f"killed {number}"
        shutil.copytree(tmp_path / "old", folder)
        was_killed = killed_before(monkeypatch, number, lambda: update(folder, sets=("keywords=true",)))  # noqa: B023
        index = FolderIndex.open(folder)
        assert not index.has_keywords or index.hybrid(["sofa"], unit_vectors(1), 1)
        update(folder, sets=("keywords=true",))
        assert keyword_bytes(FolderIndex.open(folder)) == keyword_bytes(new), number
        if not was_killed:
            break
        number += 1
    assert number > 10  # five files with their checksums, and index.json


def test_an_index_without_any_word_is_searched_by_vectors(tmp_path):
    images = put(tmp_path / "images", {"--.png": png(1)})
    models.save(make_models(["a dog"])[1], tmp_path / "dual")
    index = build(tmp_path / "dual", images, tmp_path / "index", WORDS)
    assert [hit.name for hit in index.hybrid(["a dog"], np.ones((1, index.dim)), 3)[0]] == ["--.png"]


def test_added_images_have_the_words_of_an_index_built_at_once(photos, tmp_path):
    models.save(make_models(["beach day", "zeppelins"])[1], tmp_path / "dual")
    pictures = put(tmp_path / "pictures", {"beachDay_1.png": png(1), "snow/dog.png": png(2)})
    first = build(tmp_path / "dual", photos.folder, tmp_path / "index", WORDS)
    expected = row_words(first)
    both = update(first.folder, add=pictures)
    # The nearest image has no captions and no word of the query, and stays the first.
    near = both.stored(np.array([6])).data.astype(np.float64)
    assert both.hybrid(["a the sofa"], near, 1)[0][0].row == 6
    expected = [*expected, ["beachday", "1", "beach", "day"], ["snow", "dog"]]
    assert row_words(both) == expected
    put(pictures, {"z dog.png": png(3)})
    more = update(first.folder, add=pictures)
    assert row_words(more) == [*expected, ["z", "dog"]]
    opened = keywords.open_keywords(more.folder, more.document.keywords)
    assert Keywords.of([*expected, ["z", "dog"]]).scores("dog").tolist() == opened.scores("dog").tolist()
    searcher = IndexSearcher.for_index(more, device=torch.device("cpu"))
    answer = searcher.by_text("beach day", 1, hybrid=True)
    assert (answer.hits[0].name, answer.notes) == ("beachDay_1.png", ())
    assert searcher.ask("beach day", 1, hybrid=True).hits == answer.hits
    unknown = searcher.by_text("zeppelins", 3, hybrid=True)
    assert (
        unknown.notes[-1]
        == "no word of the text is in the captions or names of these images: they are ordered by vectors alone"
    )
    assert [hit.row for hit in unknown.hits] == [hit.row for hit in searcher.by_text("zeppelins", 3).hits]


def test_words_are_searched_without_the_package_that_indexes_them(photos, tmp_path, monkeypatch):
    index = captioned(tmp_path / "index", photos, unit_vectors(5), keywords=True)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    assert index.hybrid(["sofa"], unit_vectors(1), 1)[0][0].bm25
