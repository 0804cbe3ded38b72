"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import json

import pytest

from dcdctl.core import files


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")

    def write_half() -> None:
        with files.atomic_path(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]


def test_the_file_has_no_name_before_it_is_whole(tmp_path):
    with files.atomic_path(tmp_path / "deep" / "a.bin") as partial:
        partial.write_bytes(b"all")
        assert not (tmp_path / "deep" / "a.bin").exists()
    assert (tmp_path / "deep" / "a.bin").read_bytes() == b"all"


def test_json_keeps_the_order_of_keys_and_letters_beyond_ascii(tmp_path):
    files.write_json(tmp_path / "a.json", {"z": "é", "a": 1})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.index("z") < text.index("a")
    assert "é" in text
    assert json.loads(text) == {"z": "é", "a": 1}


def test_leftovers_of_killed_writers_do_not_take_a_folder(tmp_path):
    (tmp_path / "plan.json.123.partial").write_text("{")
    assert files.is_vacant(tmp_path)
    assert files.is_vacant(tmp_path / "absent")
    (tmp_path / "thesis.txt").write_text("dear")
    assert not files.is_vacant(tmp_path)
    files.remove_partials(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_digests_are_of_content_and_not_of_the_order_of_keys(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert files.digest_of({"a": 1, "b": 2}) == files.digest_of({"b": 2, "a": 1})
    assert files.digest_of({"a": 1}) != files.digest_of({"a": 2})
