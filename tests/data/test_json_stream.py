"""Items of a JSON array, one at a time: equal to those of `json.loads`; a truncated file is an error."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcdctl.core.data.readers.json_stream import ArrayError, items
from dcdctl.core.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(VALUES, min_size=1, max_size=5),
    st.dictionaries(st.text(max_size=3), VALUES, max_size=2),
    st.dictionaries(st.text(max_size=3), VALUES, max_size=2),
    st.sampled_from([None, 1, 3]),
)
def test_items_are_those_of_the_whole_file(tmp_path, members, before, after, indent):
    path = tmp_path / "x.json"
    document = {**before, "images": members, **{key: value for key, value in after.items() if key not in before}}
    document["images"] = members
    path.write_text(json.dumps(document, indent=indent), encoding="utf-8")
    assert list(items(path, "images", "")) == members
    path.write_text(json.dumps(members, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(items(path, "", "")) == members


def test_a_file_that_is_truncated_anywhere_is_an_error(tmp_path):
    whole = json.dumps({"dataset": "x", "images": [{"filename": "a.jpg"}, {"n": -1.5}], "more": [1, 2]})
    path = tmp_path / "x.json"
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises((InputError, ArrayError)):
            list(items(path, "images", ""))
    path.write_text(whole + "]")
    with pytest.raises(InputError, match="Extra data"):
        list(items(path, "images", ""))


@pytest.mark.parametrize("indent", [None, 1])
def test_an_error_gives_the_position_in_the_file_as_json_does(tmp_path, indent):
    whole = json.dumps(
        {"dataset": "ü", "images": [{"filename": "a.jpg"}, {"n": -15}, 7], "more": 3}, indent=indent, ensure_ascii=False
    )
    path = tmp_path / "x.json"
    for at in (at for at, character in enumerate(whole) if character in " {[:]7"):
        broken = f"{whole[:at]}?{whole[at:]}"
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(json.JSONDecodeError) as expected:
            json.loads(broken)
        with pytest.raises(
            InputError, match=rf"is not JSON: .*: {re.escape(str(expected.value).rpartition(': ')[2])}; a"
        ):
            list(items(path, "images", ""))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"images": ["a\xff"]}', "is not UTF-8 text (invalid start byte)"),
        (b'{"images": [%s]}' % (b"1" * 5000), "is not JSON: Exceeds the limit (4300 digits)"),
        (b'{"images": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}", "is not JSON: maximum recursion depth exceeded"),
        (b"", "is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_a_file_that_json_does_not_take_is_an_error(tmp_path, content, reason):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(reason)):
        list(items(tmp_path / "x.json", "images", ""))


def test_values_that_other_parsers_change_or_refuse_are_those_of_json(tmp_path):
    content = b'\xef\xbb\xbf{"images": ["\\ud83d", 123456789012345678901, {"a": 1, "a": 2}, 1E400]}'
    (tmp_path / "x.json").write_bytes(content)
    assert list(items(tmp_path / "x.json", "images", "")) == ["\ud83d", 123456789012345678901, {"a": 2}, float("inf")]


@pytest.mark.parametrize(
    ("content", "actual"),
    [
        ('{"images": 5}', r"a number \(5\)"),
        ('{"a": 1}', "^$"),
        ("{}", "^$"),
        ("[]", "^$"),
        ('{"images": []}', r"a list \(\[\]\)"),
    ],
)
def test_the_error_describes_the_value_in_place_of_the_array(tmp_path, content, actual):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ArrayError, match=actual):
        list(items(tmp_path / "x.json", "images", ""))
