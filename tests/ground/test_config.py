"""Configs: frozen dataclasses made from TOML and --set, with checked ranges."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest
from paths import ROOT

from dcdctl.core import config
from dcdctl.core.config import (
    ASCENDING,
    DISTINCT,
    NOT_EMPTY,
    Constraint,
    Count,
    Key,
    Positive,
    Share,
    between,
    check_fields,
)
from dcdctl.core.errors import ConfigError, StaleError


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


def test_tables_become_dataclasses_and_integers_become_floats():
    built = config.build(Outer, {"name": "x", "inner": {"rate": 1, "sizes": [1, 2], "most": 3}, "weights": {"kl": 2}})
    assert built == Outer(name="x", inner=Inner(rate=1.0, sizes=(1, 2), most=3), weights={"kl": 2.0})
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"name": "x", "inner": {"rat": 1}},
            r"unknown key inner\.rat; did you mean inner\.rate\? known keys here: rate, kind, sizes, most, is_on",
        ),
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
        ({"name": "x", "weights": "kl"}, r"weights must be a table, got 'kl'"),
    ],
)
def test_an_invalid_table_is_an_error_that_names_key_and_value(table, message):
    with pytest.raises(ConfigError, match=message):
        config.build(Outer, table)


def test_assignments_change_nested_tables_and_not_the_original():
    table = {"inner": {"rate": 0.1, "kind": "a"}}
    changed = config.apply_sets(
        table, ["inner.rate=0.5", "inner.sizes=[1, 2]", "name=a b", "weights.dcd-kl=1", "path=runs/x"]
    )
    assert changed == {
        "inner": {"rate": 0.5, "kind": "a", "sizes": [1, 2]},
        "name": "a b",
        "weights": {"dcd-kl": 1},
        "path": "runs/x",
    }
    assert table == {"inner": {"rate": 0.1, "kind": "a"}}


@pytest.mark.parametrize("assignment", ["rate", "=3", "inner.rate.x=1"])
def test_an_invalid_assignment_is_an_error(assignment):
    with pytest.raises(ConfigError, match="--set"):
        config.apply_sets({"inner": {"rate": 0.1}}, [assignment])


def test_invalid_toml_is_an_error_that_names_file_and_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("a = 1\nb = = 2\n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: .*line 2"):
        config.read_toml(path)


@dataclass(frozen=True, kw_only=True)
class Written:
    recall: Annotated[float, Key("R@1")]
    sides: dict[Side, list[Inner]]
    folder: Path
    is_compiled: Annotated[bool, Key("compile", omits_default=True)] = False


def test_a_document_has_its_own_keys_and_omits_a_default_that_says_so():
    written = Written(recall=50.0, sides={Side.LEFT: [Inner(most=2)]}, folder=Path("data"))
    table = json.loads(json.dumps(config.to_table(written)))
    assert table.keys() == {"R@1", "sides", "folder"}
    assert table["sides"]["left"][0]["most"] == 2
    assert config.build(Written, table) == written
    compiled = replace(written, is_compiled=True)
    assert config.to_table(compiled)["compile"] is True
    assert config.build(Written, config.to_table(compiled)) == compiled
    with pytest.raises(ConfigError, match=re.escape("R@1 is missing")):
        config.build(Written, {"sides": {}, "folder": "data"})


def test_a_document_may_have_further_entries_and_its_error_names_the_file():
    table = {"name": "x", "later": 1}
    built = config.build_document(Outer, table, "a.json", error=StaleError, hint="make it again")
    assert built == Outer(name="x")
    message = re.escape("a.json is not as this dcdctl writes it: name must be str, got 1; make it again")
    with pytest.raises(StaleError, match=message):
        config.build_document(Outer, {"name": 1}, "a.json", error=StaleError, hint="make it again")


@dataclass(frozen=True, kw_only=True)
class Ranged:
    rate: Positive = 0.1
    share: Share = 1.0
    dropout: Annotated[float, between(0, 1, "[)")] = 0.0
    most: Count | None = None
    steps: Annotated[tuple[Count, ...], ASCENDING] = ()
    betas: tuple[Share, Share] = (0.9, 0.98)
    sides: Annotated[tuple[Literal["text", "image"], ...], NOT_EMPTY, DISTINCT] = ("text",)
    weights: Mapping[str, Positive] = field(default_factory=dict)
    kind: Literal["a", "b"] = "a"
    cut: Share | Literal["auto", "none"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "ranged")


@dataclass(frozen=True, kw_only=True)
class WithRanged:
    ranged: Ranged = field(default_factory=Ranged)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0.0}, r"ranged\.rate must lie in \(0, 1000000000\], got 0\.0"),
        ({"share": 2.0}, r"ranged\.share must lie in \[0, 1\], got 2\.0"),
        ({"dropout": 1.0}, r"ranged\.dropout must lie in \[0, 1\), got 1\.0"),
        ({"most": 0}, r"ranged\.most must lie in \[1, 1000000000\], got 0"),
        ({"steps": (0,)}, r"ranged\.steps\[0\] must lie in \[1, .*, got 0"),
        ({"steps": (4, 2)}, r"ranged\.steps must ascend, got \[4, 2\]"),
        ({"betas": (0.9, 1.5)}, r"ranged\.betas\[1\] must lie in \[0, 1\], got 1\.5"),
        ({"betas": (0.9,)}, r"ranged\.betas must have 2 items, got \[0\.9\]"),
        ({"sides": ()}, r"ranged\.sides must not be empty, got \[\]"),
        ({"sides": ("text", "text")}, r"ranged\.sides must not repeat an item, got \['text', 'text'\]"),
        ({"sides": ("left",)}, r"ranged\.sides\[0\] must be one of text, image, got 'left'"),
        ({"weights": {"kl": -1.0}}, r"ranged\.weights\.kl must lie in \(0, .*, got -1\.0"),
        ({"kind": "c"}, r"ranged\.kind must be one of a, b, got 'c'"),
        ({"cut": 2.0}, r"ranged\.cut must lie in \[0, 1\], got 2\.0; or auto, none$"),
        ({"cut": "half"}, r"ranged\.cut must .*'half'"),
        ({"share": 10**400}, r"ranged\.share must (lie in|be at most) .*, got"),
    ],
)
def test_a_value_out_of_range_is_an_error_in_the_constructor_and_in_build(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Ranged(**wrong)
    with pytest.raises(ConfigError, match=message):
        config.build(WithRanged, {"ranged": wrong})


@pytest.mark.parametrize(
    ("constraint", "inside", "outside"),
    [
        (between(0, 1), [0, 0.5, 1], [-1e-9, 1.1, float("inf"), float("nan"), "0.5"]),
        (between(0, 1, "[)"), [0, 0.5], [1]),
        (between(0, 1, "(]"), [0.5, 1], [0]),
        (between(0, 1, "()"), [0.5], [0, 1]),
        *(
            (get_args(kind)[1], inside, outside)
            for kind, inside, outside in (
                (config.Count, [1, 10**9], [0, 10**9 + 1]),
                (config.Natural, [0, 10**9], [-1, 10**9 + 1]),
                (config.Positive, [1e-9, 1e9], [0, 1.1e9]),
                (config.NotNegative, [0, 1e9], [-1e-9, 1.1e9]),
                (config.Logit, [-3e38, 0, 3e38], [-3.5e38, 3.5e38]),
                (config.Share, [0, 1], [-1e-9, 1.1]),
                (config.Fraction, [0, 0.9], [-1e-9, 1]),
                (config.Width, [1, 2**16], [0, 2**16 + 1]),
                (config.Repeated, [1, 1000], [0, 1001]),
                (config.Seed, [0, 2**32 - 1], [-1, 2**32]),
            )
        ),
    ],
)
def test_a_range_admits_the_values_inside_it_only(constraint: Constraint, inside, outside):
    assert all(constraint.admits(value) for value in inside)
    assert not any(constraint.admits(value) for value in outside)


RANGES = ("Annotated", "Count", "Repeated", "NotNegative", "Positive", "Logit", "Seed", "Share", "Width")


def has_a_range(annotation: ast.expr) -> bool:
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    # `Key("R@1")` and `OMITTED` only say how the field is written.
    return bool(names & set(RANGES)) and not names & {"Key", "OMITTED"}


def test_every_config_with_a_range_checks_its_fields():
    checked: set[str] = set()
    for path in (ROOT / "dcdctl" / "core").rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        # Most files name none of them, and to parse all takes seconds.
        for cls in ast.walk(ast.parse(code)) if any(re.search(rf":.*\b{name}\b", code) for name in RANGES) else ():
            if isinstance(cls, ast.ClassDef) and any(
                isinstance(node, ast.AnnAssign) and has_a_range(node.annotation) for node in cls.body
            ):
                methods = [
                    ast.unparse(node)
                    for node in cls.body
                    if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"
                ]
                bases = {ast.unparse(base) for base in cls.bases}
                has_check = any("check_fields(self" in method for method in methods)
                is_inherited = bool(bases & checked) and all("super().__post_init__()" in method for method in methods)
                assert has_check or is_inherited, f"{cls.name} in {path} has ranges that nothing checks"
                checked.add(cls.name)
    assert len(checked) >= 15
