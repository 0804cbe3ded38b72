"""TOML and --set to frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import pytest

from dcdctl.core import config
from dcdctl.core.errors import ConfigError


class Side(StrEnum):
    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    most: int | None = None
    is_on: bool = False


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    weights: Mapping[str, float] = field(default_factory=dict)


def test_tables_become_dataclasses_and_whole_numbers_rates():
    built = config.build(Outer, {"name": "x", "inner": {"rate": 1, "sizes": [1, 2], "most": 3}, "weights": {"kl": 2}})
    assert built == Outer(name="x", inner=Inner(rate=1.0, sizes=(1, 2), most=3), weights={"kl": 2.0})
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "x", "inner": {"rat": 1}}, r"unknown key inner\.rat; known keys here: rate, kind, sizes, most, is_on"),
        ({}, "name is missing"),
        ({"name": 3}, "name must be str, got 3"),
        ({"name": "x", "inner": {"rate": "fast"}}, r"inner\.rate must be float, got 'fast'"),
        ({"name": "x", "inner": {"rate": True}}, r"inner\.rate must be float, got True"),
        ({"name": "x", "inner": {"kind": "c"}}, r"inner\.kind must be one of a, b, got 'c'"),
        ({"name": "x", "inner": {"sizes": 3}}, r"inner\.sizes must be a list, got 3"),
        ({"name": "x", "inner": {"sizes": [1, "two"]}}, r"inner\.sizes\[1\] must be int, got 'two'"),
        ({"name": "x", "inner": {"most": 1.5}}, r"inner\.most must be int, got 1\.5"),
        ({"name": "x", "inner": {"is_on": 1}}, r"inner\.is_on must be bool, got 1"),
        ({"name": "x", "inner": 3}, "inner must be a table, got 3"),
        ({"name": "x", "weights": {"kl": "much"}}, r"weights\.kl must be float"),
    ],
)
def test_a_wrong_table_is_an_error_that_names_key_and_value(table, message):
    with pytest.raises(ConfigError, match=message):
        config.build(Outer, table)


def test_sets_reach_into_tables_and_leave_the_original_alone():
    table = {"inner": {"rate": 0.1, "kind": "a"}}
    changed = config.apply_sets(table, ["inner.rate=0.5", "inner.sizes=[1, 2]", "name=a b", "weights.dcd-kl=1", "path=runs/x"])
    assert changed == {
        "inner": {"rate": 0.5, "kind": "a", "sizes": [1, 2]},
        "name": "a b",
        "weights": {"dcd-kl": 1},
        "path": "runs/x",
    }
    assert table == {"inner": {"rate": 0.1, "kind": "a"}}


@pytest.mark.parametrize("assignment", ["rate", "=3", "inner.rate.x=1"])
def test_a_set_that_cannot_be_made_is_an_error(assignment):
    with pytest.raises(ConfigError, match="--set"):
        config.apply_sets({"inner": {"rate": 0.1}}, [assignment])


def test_broken_toml_names_the_file_and_the_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("a = 1\nb = = 2\n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: .*line 2"):
        config.read_toml(path)


def test_a_config_goes_through_its_plain_form_and_back():
    built = Outer(name="x", inner=Inner(sizes=(1, 2), most=3), weights={"kl": 2.0})
    table = config.to_table(built)
    assert table["inner"]["sizes"] == [1, 2]
    assert config.build(Outer, table) == built


def test_a_word_becomes_a_member_of_its_enum_and_a_plain_word_again():
    @dataclass(frozen=True, kw_only=True)
    class Sides:
        sides: tuple[Side, ...] = tuple(Side)

    built = config._convert(Sides, {"sides": ["right"]}, "batch")
    assert built.sides[0] is Side.RIGHT
    assert [type(word) for word in config.to_table(built)["sides"]] == [str]
    with pytest.raises(ConfigError, match=r"^batch\.sides\[0\] must be one of left, right, got 'up'$"):
        config._convert(Sides, {"sides": ["up"]}, "batch")
