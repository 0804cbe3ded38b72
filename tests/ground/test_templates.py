"""Templates: escaping, and errors for missing values."""

from __future__ import annotations

import re

import pytest
from jinja2 import UndefinedError

from dcdctl.core import templates

HOSTILE = """</title><script>alert("1")</script>&'"""
FOLDER = templates.ASSETS / "templates"


def test_values_are_escaped_in_html():
    page = templates.render("page.html", title=HOSTILE)
    assert page.count("&lt;/title&gt;&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;&#39;") == 2
    assert "<script" not in page


def test_no_character_hides_or_turns_what_stands_beside_it():
    page = templates.render("page.html", title="run \x1b[31m \u202egnp.exe \u2067 caf\u00e9 \u05d0")
    assert page.count("run \\u001b[31m \\u202egnp.exe \\u2067 caf\u00e9 \u05d0") == 2


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        templates.render("page.html")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.html")), ids=lambda path: path.stem)
def test_no_template_turns_escaping_off(path):
    assert not re.search(r"\|\s*safe\b|autoescape", path.read_text(encoding="utf-8"))
