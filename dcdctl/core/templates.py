"""Text from the Jinja2 templates in assets/templates: HTML pages and Markdown."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from dcdctl.core import files

ASSETS = files.packaged("assets")


def render(name: str, **values: object) -> Markup:
    """The text of a template. In .html templates every value is escaped, unless it is `Markup`; in .md templates none is.

    jinja2.UndefinedError if the template reads a value that is missing.
    """
    return Markup(_environment().get_template(name).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dcdctl", "assets/templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Jinja drops the last line break of a template by default.
        keep_trailing_newline=True,
    )
    environment.filters["thousands"] = _thousands
    environment.globals["asset"] = _asset
    return environment


def _thousands(count: int) -> str:
    """
    >>> _thousands(12345)
    '12,345'
    """
    return f"{count:,}"


def _asset(name: str) -> Markup:
    """A style sheet or a script of ours, to put into a page as it is."""
    return Markup((ASSETS / name).read_text(encoding="utf-8"))
