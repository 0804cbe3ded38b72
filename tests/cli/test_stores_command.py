"""Stores on the command line: an index is brought to one, and searched, shown and served from there."""

from __future__ import annotations

import re
import shutil
from urllib.parse import unquote

import pytest
from command_line import document_of, error_of, run
from made_index import write_late
from noise_index import CAPTIONS, NAMES

from dcdctl.core.stores import retry


def shown(url):
    return unquote(url)


@pytest.fixture(scope="module")
def url(noise_index, postgres_url):
    """A store with the noise images."""
    found = f"{postgres_url}&table=noise"
    result = run(f"upload {noise_index} '{found}'")
    assert result.stdout.splitlines()[-1] == f"12 images, 12 sent -> {shown(found)}"
    return found


def hits(index, query):
    return document_of(f"search '{index}' {query} --device cpu")


def test_a_store_answers_a_text_like_the_index_and_re_ranks_with_its_images(url, noise_index):
    folder, text = noise_index.parent, f"'{CAPTIONS[0]}'"
    for query in (text, f"{text} --rerank {folder}/fusion", f"--image {folder}/images/plain.png"):
        ours, theirs = (hits(place, query) for place in (noise_index, url))
        assert theirs["hits"] == ours["hits"]
        assert theirs["index"] == {**ours["index"], "folder": shown(url)}


def test_a_store_on_another_machine_is_searched_with_a_model_that_is_named(noise_index, postgres_url, tmp_path):
    moved = tmp_path / "index"
    shutil.copytree(noise_index, moved)
    url = f"{postgres_url}&table=moved"
    run(f"upload {moved} '{url}'")
    text = f"'{CAPTIONS[0]}'"
    expected = hits(url, text)["hits"]
    shutil.rmtree(moved)
    refused = error_of(f"search '{url}' {text} --device cpu")
    assert "copy the folder `model` of the index to this machine, and name it with --model" in refused
    assert hits(url, f"{text} --model {noise_index}/model")["hits"] == expected
    run(f"search '{url}' {text} --device cpu --model {noise_index.parent}/fusion", code=1)


def test_an_upload_as_json_names_the_store(noise_index, url):
    document = document_of(f"upload {noise_index} '{url}' --replace")
    assert document == {
        "index": str(noise_index),
        "location": shown(url),
        "images": len(NAMES),
        "sent": len(NAMES),
        "deleted": 0,
    }


def test_mistakes_are_told_before_any_work(noise_index, tmp_path):
    error = error_of(f"upload {tmp_path}/absent redis://host/photos")
    assert "'redis://host/photos' is not the URL of a store" in error
    assert "leave --model out" in error_of(f"search {noise_index} 'a dog' --model {tmp_path}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql://nobody@127.0.0.1:1/photos?table=a",
            r"photos\?table=a does not answer",
        ),
        ("lancedb:{file}/store?table=a", "file"),
        ("lancedb:{file}?table=a", "file"),
    ],
)
def test_a_store_that_cannot_be_filled_is_one_line(noise_index, tmp_path, monkeypatch, url, message):
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    (tmp_path / "file").write_text("x")
    url = url.format(file=tmp_path / "file")
    assert re.search(message, error_of(f"upload {noise_index} '{url}'"))


def test_a_late_index_is_no_upload_for_a_store_of_single_vectors(postgres_url, tmp_path):
    index, _ = write_late(tmp_path / "late.index", [4, 2])
    assert "takes one vector per image" in error_of(f"upload {index.folder} '{postgres_url}&table=late'")
