"""Which protocol a split is evaluated by, and what it says where it cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dcdctl.core import artifacts
from dcdctl.core.data import Corpus, manifest
from dcdctl.core.errors import CorpusError
from dcdctl.core.evaluation import protocols
from dcdctl.core.evaluation.protocols import PAPER_PROTOCOLS, WHOLE, Protocol, folds_of, open_split

TITLES = {"flickr30k-1k": "Flickr30K 1K", "coco-5k": "COCO 5K", "coco-1k": "COCO 5K"}


@pytest.fixture
def papers(tmp_path, monkeypatch, request) -> list[Protocol]:
    """The papers' protocols, about test splits of 16 images, or so many, and five captions each."""
    tiny, num_images = [], getattr(request, "param", 16)
    for protocol in PAPER_PROTOCOLS:
        path = tmp_path / f"{protocol.name}.toml"
        counts = f"[expected.test]\nimages = {num_images}\ncaptions = {5 * num_images}\n"
        path.write_text(
            f'format = "scenes"\nprotocol = "{TITLES[protocol.name]}: tiny"\ncounts = {{ test = 16 }}\n{counts}'
        )
        tiny.append(Protocol(name=protocol.name, num_folds=4 if protocol.num_folds > 1 else 1, data_set=str(path)))
    monkeypatch.setattr(protocols, "PAPER_PROTOCOLS", tuple(tiny))
    return tiny


def serving(scenes: Path, folder: Path, sentence: str | None) -> Path:
    """The corpus, saying that it serves a protocol."""
    shutil.copytree(scenes, folder)
    index = artifacts.read_document(folder / "corpus.json")
    index.pop("protocol")
    index |= {} if sentence is None else {"protocol": sentence}
    artifacts.write_document(folder / "corpus.json", index)
    return folder


def test_the_papers_protocols_are_those_of_the_manifests():
    counts = {
        protocol.name: manifest.find_manifest(str(protocol.data_set)).expected["test"] for protocol in PAPER_PROTOCOLS
    }
    assert {name: (expected.images, expected.captions) for name, expected in counts.items()} == {
        "flickr30k-1k": (1000, 5000),
        "coco-5k": (5000, 25010),
        "coco-1k": (5000, 25010),
    }
    assert {
        protocol.name: manifest.find_manifest(str(protocol.data_set)).protocol.partition(":")[0]
        for protocol in PAPER_PROTOCOLS
    } == TITLES
    assert {protocol.name: protocol.num_folds for protocol in PAPER_PROTOCOLS} == {
        "flickr30k-1k": 1,
        "coco-5k": 1,
        "coco-1k": 5,
    }


@pytest.mark.parametrize(
    ("sentence", "name"),
    [
        ("COCO 5K: Karpathy's test split", "coco-5k"),
        ("Flickr30K 1K: Karpathy's test split; but split 'val' has 3 images", "flickr30k-1k"),
        ("Flickr8k 1K: Karpathy's test split", "whole"),
        ("none: only the first 9 images of each split", "whole"),
        (None, "whole"),
    ],
)
def test_the_corpus_says_by_which_its_test_split_is_evaluated(scenes_corpus_dir, tmp_path, papers, sentence, name):
    folder = serving(scenes_corpus_dir, tmp_path / "corpus", sentence)
    assert open_split(folder, "test")[1].name == name
    assert open_split(folder, "val")[1] == WHOLE


def test_a_protocol_that_is_asked_for_is_used(scenes_corpus_dir, tmp_path, papers):
    folder = serving(scenes_corpus_dir, tmp_path / "corpus", "COCO 5K: Karpathy's test split")
    corpus, protocol = open_split(folder, "test", "coco-1k")
    assert (protocol.name, protocol.num_folds) == ("coco-1k", 4)
    assert [(list(fold.images), list(fold.texts)) for fold in folds_of(corpus, protocol)][1] == (
        [4, 5, 6, 7],
        list(range(20, 40)),
    )
    assert open_split(folder, "test", "whole")[1] == WHOLE


def test_the_first_images_are_a_protocol_of_their_own(scenes_corpus_dir):
    corpus, protocol = open_split(scenes_corpus_dir, "test", max_images=5)
    assert (corpus.num_images, corpus.num_captions, protocol.name) == (5, 25, "first-5")


def test_as_many_as_there_are_is_the_whole_split(scenes_corpus_dir):
    corpus, protocol = open_split(scenes_corpus_dir, "test", max_images=16)
    assert (corpus.num_images, protocol) == (16, WHOLE)


def test_counts_that_differ_are_an_error_that_tells_both(scenes_corpus_dir):
    message = (
        r"protocol coco-5k requires a test split of 5,000 images and 25,010 captions; split 'test' of .* has 16 and 80"
    )
    with pytest.raises(CorpusError, match=message) as error:
        open_split(scenes_corpus_dir, "test", "coco-5k")
    assert "dcdctl prepare coco" in error.value.hint


@pytest.mark.parametrize("papers", [8], indirect=True)
def test_another_split_of_the_same_size_does_not_serve_a_protocol(scenes_corpus_dir, tmp_path, papers):
    folder = serving(scenes_corpus_dir, tmp_path / "corpus", "Flickr30K 1K: Karpathy's test split")
    with pytest.raises(
        CorpusError, match=r"requires a test split of 8 images and 40 captions; split 'val' of .* has 8 and 40"
    ):
        open_split(folder, "val", "flickr30k-1k")


def test_another_data_set_of_the_same_size_does_not_serve_a_protocol(scenes_corpus_dir, tmp_path, papers):
    folder = serving(scenes_corpus_dir, tmp_path / "corpus", "Flickr30K 1K: Karpathy's test split")
    with pytest.raises(CorpusError, match=r"protocol coco-5k is for COCO 5K, but .* serves Flickr30K 1K"):
        open_split(folder, "test", "coco-5k")


def test_counts_alone_decide_where_a_corpus_says_nothing(scenes_corpus_dir, tmp_path, papers):
    folder = serving(scenes_corpus_dir, tmp_path / "corpus", None)
    assert open_split(folder, "test", "flickr30k-1k")[1].name == "flickr30k-1k"


def test_folds_cover_every_image_and_caption_once(scenes_corpus_dir):
    corpus = Corpus.open(scenes_corpus_dir, "test")
    folds = folds_of(corpus, Protocol(name="three", num_folds=3))
    assert [image for fold in folds for image in fold.images] == list(range(16))
    assert [text for fold in folds for text in fold.texts] == list(range(80))
    assert all(corpus.caption_image[text] in fold.images for fold in folds for text in fold.texts)
