"""`dcdctl copy`: artifacts of every kind to a URL and back with equal bytes; a cut copy is never taken for a whole."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import error_of, run
from every_artifact import make_all
from tiny import contents

from dcdctl.core import artifacts
from dcdctl.core.data import Corpus
from dcdctl.core.errors import DcdError, InputError, SourceError, StaleError
from dcdctl.core.integrity import copies, copy, verify
from dcdctl.core.integrity.copies import COPYING

KINDS = ("data/corpus", "data/cache", "data/features", "index", "run", "models/dual")


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A folder with one of every kind of artifact. Not to be written to."""
    return make_all(tmp_path_factory.mktemp("all"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_artifact_comes_back_as_it_was(intact, bucket, tmp_path, kind):
    source, url, back = intact / kind, bucket.url("kept/here"), tmp_path / "back"
    up = copy(source, url)
    assert (up.num_files, up.num_copied) == (len(contents(source)), len(contents(source)))
    assert {key: bucket.get(f"kept/here/{key}") for key in contents(source)} == contents(source)
    assert bucket.keys() == sorted(f"kept/here/{name}" for name in contents(source))
    copy(url, back)
    assert contents(back) == contents(source)
    assert verify(back).is_well
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["back"]
    # What is there is compared and not copied again.
    assert copy(source, url).num_copied == copy(url, back).num_copied == copy(source, back).num_copied == 0
    name = max(contents(source), key=lambda name: len(contents(source)[name]))
    (back / name).write_bytes(b"damaged")
    bucket.put(f"kept/here/{name}", b"x" + contents(source)[name][1:])
    assert copy(source, url).num_copied == 1
    assert copy(url, back).num_copied == 1
    assert contents(back) == contents(source)


def test_folders_are_copied_on_this_machine_too(intact, tmp_path):
    assert copy(intact, tmp_path / "all").num_copied == len(contents(intact))
    assert contents(tmp_path / "all") == contents(intact)


def seals_of(names):
    return [name for name in names if copies._is_seal(name)]


@pytest.mark.parametrize("kind", ["data/corpus", pytest.param("run", marks=pytest.mark.slow)])
def test_an_upload_that_is_cut_anywhere_is_no_artifact_and_is_finished_by_the_next(intact, bucket, tmp_path, kind):
    source = intact / kind
    whole = contents(source)
    # Of a run not every file: it has many.
    for passes in range(0, len(whole) + 1, 1 if kind == "data/corpus" else len(whole) // 2):
        under = f"cut{passes}"
        url = bucket.url(under)
        # One object after the other: the trial of writing and the note come first.
        bucket.faults.clear()
        bucket.fail(method="PUT", key=f"/{under}/", passes=passes + 1, times=None, status=403, code="AccessDenied")
        with pytest.raises(SourceError, match=r"was refused \(AccessDenied\)"):
            copy(source, url)
        written = {key.removeprefix(f"{under}/") for key in bucket.keys(f"{under}/")}
        # The last document is missing until all else is there.
        assert not seals_of(written) or set(whole) - set(seals_of(whole)) <= written
        assert not set(seals_of(whole)) <= written
        with pytest.raises(DcdError):
            copy(url, tmp_path / under)
        assert not (tmp_path / under).exists()
        bucket.faults.clear()
        copy(source, url)
        assert {key: bucket.get(f"{under}/{key}") for key in whole} == whole
        assert bucket.keys(f"{under}/") == sorted(f"{under}/{name}" for name in whole)


def test_a_download_that_is_cut_is_no_artifact_and_is_finished_by_the_next(intact, bucket, tmp_path):
    source = intact / "data" / "cache"
    copy(source, bucket.url("cache"))
    whole = contents(source)
    for number, name in enumerate(whole):
        back = tmp_path / f"back{number}"
        bucket.fail(method="GET", key=f"/cache/{name}", times=None, cut_after=1)
        with pytest.raises(SourceError, match="gave up after 5 attempts"):
            copy(bucket.url("cache"), back)
        assert not back.exists()
        bucket.faults.clear()
        assert copy(bucket.url("cache"), back).num_copied <= len(whole)
        assert contents(back) == whole


def test_a_link_as_the_target_stays_and_its_folder_has_the_copy(intact, tmp_path):
    source = intact / "models" / "dual"
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / name)
        copy(source, link)
        assert link.is_symlink()
        assert contents(tmp_path / name) == contents(source)
        assert copy(source, link).num_copied == 0
    (tmp_path / "file").write_text("dear")
    (tmp_path / "link below a file").symlink_to(tmp_path / "file" / "x")
    with pytest.raises(InputError, match="file is a file; name another folder"):
        copy(source, tmp_path / "link below a file")


def test_what_a_killed_download_left_is_not_part_of_the_copy(intact, bucket, tmp_path, monkeypatch):
    source, back = intact / "models" / "dual", tmp_path / "back"
    copy(source, bucket.url("dual"))
    copying = shutil.copytree(source, tmp_path / "back.copying")
    # A model refuses weights that its document does not list.
    (copying / "model.safetensors.0badf00d-1.partial").write_bytes(b"half of it")
    (copying / "of-another-source.safetensors").write_bytes(b"old")
    assert copy(bucket.url("dual"), back).num_copied == 0
    assert contents(back) == contents(source)


def test_a_target_that_holds_something_else_is_refused_and_left_as_it_is(intact, bucket, tmp_path):
    corpus, url = intact / "data" / "corpus", bucket.url("kept")
    bucket.put("kept/notes.txt", b"mine")
    with pytest.raises(StaleError, match=r"kept holds something else \(found notes.txt\); name an empty"):
        copy(corpus, url)
    bucket.put("begun/train-00000-of-00001.parquet", b"of another program")
    with pytest.raises(StaleError, match=r"begun is not empty and holds no artifact \(found train-"):
        copy(corpus, bucket.url("begun"))
    other = shutil.copytree(corpus, tmp_path / "other")
    document = json.loads((other / "corpus.json").read_text())
    document.pop("checksum")
    artifacts.write_document(other / "corpus.json", {**document, "name": "another"})
    copy(other, bucket.url("other"))
    for target in (bucket.url("other"), str(other)):
        with pytest.raises(StaleError, match=r"other holds another artifact: its corpus\.json differs"):
            copy(corpus, target)
    bucket.fail(method="PUT", key="/half/c", passes=1, status=403, code="AccessDenied", times=None)
    with pytest.raises(SourceError):
        copy(other, bucket.url("half"))
    bucket.faults.clear()
    with pytest.raises(StaleError, match="half holds an unfinished copy of something else"):
        copy(corpus, bucket.url("half"))
    assert bucket.get("kept/notes.txt") == b"mine"
    assert f"half/{COPYING}" in bucket.keys("half/")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").write_text("mine")
    with pytest.raises(StaleError, match=r"own holds something else \(found a\.txt\)"):
        copy(corpus, tmp_path / "own")


def test_what_is_unfinished_or_damaged_is_refused_by_name(intact, bucket, tmp_path):
    url = bucket.url("kept")
    damaged = shutil.copytree(intact / "data" / "corpus", tmp_path / "damaged")
    shard = next(damaged.glob("train*.parquet"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + b"!")
    with pytest.raises(StaleError, match=rf"damaged is not copied: .*{shard.name} is damaged: its SHA-256"):
        copy(damaged, url)
    unfinished = shutil.copytree(intact / "data" / "cache", tmp_path / "unfinished")
    (unfinished / "cache.json").unlink()
    with pytest.raises(StaleError, match=r"unfinished is not copied: .*the teacher cache is not finished"):
        copy(unfinished, url)
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="photos holds no artifact"):
        copy(tmp_path / "photos", url)
    assert bucket.keys() == []


def test_a_damaged_object_is_named_after_the_download(intact, bucket, tmp_path):
    copy(intact / "data" / "corpus", bucket.url("kept"))
    name = next(path.name for path in (intact / "data" / "corpus").glob("train*.parquet"))
    data = bucket.get(f"kept/{name}")
    bucket.put(f"kept/{name}", data[:-1] + b"!")
    for _ in range(2):
        with pytest.raises(StaleError, match=rf"kept is not copied: s3://.*/kept/{name} is damaged: its SHA-256"):
            copy(bucket.url("kept"), tmp_path / "back")
        assert not (tmp_path / "back").exists()
    bucket.put(f"kept/{name}", data)
    assert copy(bucket.url("kept"), tmp_path / "back").num_copied == 1
    assert Corpus.open(tmp_path / "back", "train").num_images == 12


def test_wrong_places_are_one_line(intact, bucket, tmp_path):
    corpus = intact / "data" / "corpus"
    for source, target, words in (
        (bucket.url("a"), bucket.url("b"), "are both URLs"),
        (bucket.url("absent"), tmp_path / "x", "absent holds no finished artifact"),
        (corpus, corpus, "or inside it"),
        (corpus, corpus / "inside", "or inside it"),
        (tmp_path / "absent", tmp_path / "x", "absent is not there, a folder is expected"),
        (corpus, "https://host/x", "https:// is read only here"),
        (corpus, "hf://datasets/me/x", "hf:// is read only here"),
        ("https://host/x", tmp_path / "x", "a web server lists no files"),
        (corpus, "s3://nobody-has-this/x", "s3://nobody-has-this/x does not exist (NoSuchBucket)"),
    ):
        assert words in error_of(f"copy {source} {target}")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_did(intact, bucket, tmp_path):
    line = f"copy {intact / 'models' / 'dual'} {bucket.url('dual')}"
    assert run(line).stdout.endswith(f"files copied -> {bucket.url('dual')}\n")
    assert json.loads(run(f"{line} --json").stdout)["copied"] == 0
