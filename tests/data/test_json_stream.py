"""Members of a JSON array read in parts: what `json.loads` gives, wherever the parts end, and an error wherever the file does."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcdctl.core.data.readers import json_stream
from dcdctl.core.data.readers.json_stream import ArrayError, items
from dcdctl.core.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(VALUES, min_size=1, max_size=5),
    st.dictionaries(st.text(max_size=3), VALUES, max_size=2),
    st.dictionaries(st.text(max_size=3), VALUES, max_size=2),
    st.integers(1, 9),
    st.sampled_from([None, 1, 3]),
)
def test_members_are_those_of_the_whole_file(tmp_path, members, before, after, size, indent):
    path = tmp_path / "x.json"
    document = {**before, "images": members, **{key: value for key, value in after.items() if key not in before}}
    document["images"] = members
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "FIRST_CHARS", size)
        path.write_text(json.dumps(document, indent=indent), encoding="utf-8")
        assert list(items(path, "images", "")) == members
        path.write_text(json.dumps(members, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert list(items(path, "", "")) == members


def test_a_file_that_is_cut_off_anywhere_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "FIRST_CHARS", 4)
    whole = json.dumps({"dataset": "x", "images": [{"filename": "a.jpg"}, {"n": -1.5}], "more": [1, 2]})
    path = tmp_path / "x.json"
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises((InputError, ArrayError)):
            list(items(path, "images", ""))
    path.write_text(whole + "]")
    with pytest.raises(InputError, match="Extra data"):
        list(items(path, "images", ""))


@pytest.mark.parametrize(
    ("content", "found"),
    [('{"images": 5}', r"a number \(5\)"), ('{"a": 1}', "^$"), ("{}", "^$"), ("[]", "^$"), ('{"images": []}', r"a list \(\[\]\)")],
)
def test_what_is_there_instead_is_said(tmp_path, content, found):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ArrayError, match=found):
        list(items(tmp_path / "x.json", "images", ""))
