"""Stores on the command line: an index is brought to one, and searched, shown and served from there."""

from __future__ import annotations

import json
import shutil
from urllib.parse import unquote

import pytest
from noise_index import CAPTIONS, NAMES
from typer.testing import CliRunner

from dcdctl.cli.app import app


def run(*words):
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


def shown(url):
    return unquote(url)


@pytest.fixture(scope="module")
def url(noise_index, postgres_url):
    """A store with the noise images."""
    found = f"{postgres_url}&table=noise"
    result = run("index", noise_index, "--to", found)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"12 images, 12 sent -> {shown(found)}"
    return found


def hits(*words):
    result = run("search", *words, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_store_answers_a_text_like_the_index_and_re_ranks_with_its_images(url, noise_index):
    fusion = noise_index.parent / "fusion"
    for options in ([], ["--rerank", fusion], ["--image", noise_index.parent / "images" / "plain.png"]):
        text = [] if "--image" in options else [CAPTIONS[0]]
        ours, theirs = (hits(place, *text, *options) for place in (noise_index, url))
        assert theirs["hits"] == ours["hits"]
        assert theirs["index"] == {**ours["index"], "folder": shown(url)}
        assert all(hit["is_there"] for hit in theirs["hits"])


def test_a_store_on_another_machine_is_searched_with_a_model_that_is_named(noise_index, postgres_url, tmp_path):
    moved = tmp_path / "index"
    shutil.copytree(noise_index, moved)
    url = f"{postgres_url}&table=moved"
    run("index", moved, "--to", url)
    expected = hits(url, CAPTIONS[0])["hits"]
    shutil.rmtree(moved)
    result = run("search", url, CAPTIONS[0], "--device", "cpu")
    assert result.exit_code == 1
    assert "copy the folder `model` of the index to this machine, and name it with --model" in result.stderr
    assert hits(url, CAPTIONS[0], "--model", noise_index / "model")["hits"] == expected
    result = run("search", url, CAPTIONS[0], "--device", "cpu", "--model", noise_index.parent / "fusion")
    assert result.exit_code == 1


def test_inspect_shows_what_a_store_holds(url, noise_index):
    result = run("inspect", url)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"postgresql {shown(url)}", "  images: 12"]
    assert f"  source: folder {noise_index.parent / 'images'}" in lines
    document = json.loads(run("inspect", url, "--json").stdout)
    assert (document["images"], document["expected"], document["columns"]) == (12, 12, {})
    assert document["bytes"] > 8192
    result = run("inspect", url, "--hardest", 3)
    assert (result.exit_code, "is for a corpus or a teacher cache" in result.stderr) == (2, True)


def test_an_upload_as_json_names_the_store(noise_index, url):
    document = json.loads(run("index", noise_index, "--to", url, "--replace", "--json").stdout)
    assert document["store"] == {
        "location": shown(url),
        "kind": "postgresql",
        "images": len(NAMES),
        "sent": len(NAMES),
        "deleted": 0,
        "is_new": True,
    }


def test_mistakes_are_told_before_any_work(noise_index, tmp_path):
    result = run("index", noise_index, "--replace")
    assert (result.exit_code, "name it with --to" in result.stderr) == (2, True)
    result = run("index", tmp_path / "absent", "--to", "redis://host/photos")
    assert (result.exit_code, "'redis://host/photos' is not the URL of a store" in result.stderr) == (1, True)
    result = run("search", noise_index, "a dog", "--model", tmp_path)
    assert (result.exit_code, "leave --model out" in result.stderr) == (1, True)
