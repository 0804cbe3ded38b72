"""Searches over stores of every kind: by the service, and in Python."""

from __future__ import annotations

import shutil

import pytest
from families import FAMILIES, late, with_noise
from made_index import build_of
from made_store import URLS
from noise_index import CAPTIONS
from starlette.testclient import TestClient

import dcdctl
from dcdctl.core import models
from dcdctl.core.errors import InputError
from dcdctl.core.search import Changes, FolderIndex, IndexSearcher, change_index
from dcdctl.core.serve import ServiceConfig, app
from dcdctl.core.stores import StoreIndex, open_store, upload_index


@pytest.fixture(scope="module")
def index(noise_index, tmp_path_factory):
    """The noise images, with the columns year and owner."""
    folder = tmp_path_factory.mktemp("columns") / "index"
    shutil.copytree(noise_index, folder)
    names = sorted(
        path.relative_to(noise_index.parent / "images").as_posix()
        for path in (noise_index.parent / "images").rglob("*.png")
    )
    rows = [f'"{name}",{2018 + number % 4},{"ann" if number % 3 else ""}' for number, name in enumerate(names)]
    table = folder.parent / "photos.csv"
    table.write_text("\n".join(["image,year,owner", *rows]), encoding="utf-8")
    change_index(str(folder), Changes(metadata=table))
    return FolderIndex.open(folder)


@pytest.fixture(scope="module", params=URLS)
def url(request, tmp_path_factory):
    return URLS[request.param](request, tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def store(url, index):
    opened = open_store(url)
    assert upload_index(index, opened).images == 12
    yield opened
    opened.close()


def client_of(index):
    searcher = IndexSearcher.for_index(index, device="cpu")
    return TestClient(app.build(searcher, ServiceConfig()), base_url="http://localhost", raise_server_exceptions=False)


def test_the_service_answers_from_a_store_as_from_the_index(store, index):
    with client_of(StoreIndex.open(store)) as ours, client_of(index) as theirs:
        for query in (
            {"text": CAPTIONS[0], "k": 12},
            {"text": CAPTIONS[0], "k": 5, "where": "year >= 2020 and owner = 'ann'"},
            {"text": CAPTIONS[1], "k": 5, "where": "owner is null"},
            {"row": 3, "k": 4},
        ):
            found, expected = (client.get("/search", params=query).json() for client in (ours, theirs))
            assert [found[key] for key in ("results", "bars", "weak")] == [
                expected[key] for key in ("results", "bars", "weak")
            ]
            assert found["results"]
        assert ours.get("/image/3?size=original").content == theirs.get("/image/3?size=original").content
        assert ours.get("/image/999").status_code == 404
        assert ours.get("/search", params={"text": "a", "where": "yaer = 3"}).status_code == 400
        listed = ours.get("/browse")
        assert listed.status_code == 400
        assert listed.json() == {"error": "this index is in a store, which lists no images without a query"}
        assert (ours.get("/health").json()["images"], ours.get("/").status_code) == (12, 200)


def test_changed_columns_are_found_after_the_next_upload(store, index, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(index.folder, folder)
    change_index(str(folder), Changes(drop_columns=("owner",)))
    changed = FolderIndex.open(folder)
    upload_index(changed, store)
    assert StoreIndex.open(store).columns == changed.columns
    upload_index(index, store)
    assert upload_index(index, store).sent == 0


def test_python_uploads_an_index_and_searches_the_store_by_its_url(url, index, store):
    opened = dcdctl.Index.open(index.folder)
    assert opened.upload(url).sent == 0
    found = dcdctl.Searcher(url, device="cpu").search(CAPTIONS[0], k=5)
    expected = dcdctl.Searcher(opened, device="cpu").search(CAPTIONS[0], k=5)
    assert list(found) == list(expected)
    assert found.image().size == expected.image().size
    moved = dcdctl.Searcher(url, model=index.folder / "model", device="cpu")
    assert list(moved.search(CAPTIONS[0], k=5)) == list(expected)
    assert found[0].path.is_file()
    with pytest.raises(InputError, match="is a store, which lists no images without a query"):
        moved.browse()


def test_a_late_index_in_a_store_is_served_as_from_its_folder(noise_index, tmp_path):
    late_model = with_noise(late(FAMILIES["dual"](CAPTIONS, tmp_path), is_pooled=False))
    models.save(late_model, tmp_path / "late")
    index = build_of(tmp_path / "late", noise_index.parent / "images", tmp_path / "index")
    opened = open_store(f"lancedb:{tmp_path}?table=photos")
    assert upload_index(index, opened).images == 12
    with client_of(StoreIndex.open(opened)) as ours, client_of(index) as theirs:
        for query in ({"text": CAPTIONS[0], "k": 5}, {"row": 3, "k": 4}):
            found, expected = (client.get("/search", params=query).json() for client in (ours, theirs))
            assert len(found["results"]) == query["k"]
            assert [found[key] for key in ("results", "bars", "weak")] == [
                expected[key] for key in ("results", "bars", "weak")
            ]
