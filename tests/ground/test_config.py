"""Configs: frozen dataclasses made from TOML and --set, with checked ranges."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest
from nested_configs import Inner, Outer
from paths import ROOT

from dcdctl.core import config
from dcdctl.core.config import Constraint, Count, Key, Share, between, settle_fields
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.toml import apply_sets


class Side(StrEnum):
    LEFT = "left"
    RIGHT = "right"


def test_tables_become_dataclasses_and_integers_become_floats():
    built = config.build(Outer, {"name": "x", "inner": {"rate": 1, "sizes": [1, 2], "most": 3}, "weights": {"kl": 2}})
    assert built == Outer(name="x", inner=Inner(rate=1.0, sizes=(1, 2), most=3), weights={"kl": 2.0})
    assert isinstance(built.inner.rate, float)


@dataclass(frozen=True, kw_only=True)
class Checked:
    sizes: tuple[Count, ...] = ()
    rate: Share | Literal["auto"] = 0.5
    most: Count | None = 3
    sides: tuple[Side, ...] = ()

    def __post_init__(self) -> None:
        settle_fields(self, "checked")


def test_a_config_made_in_python_is_the_one_that_its_table_gives():
    values = {"sizes": [1, 2], "rate": 1, "most": "none", "sides": ["left"]}
    made = Checked(**values)
    assert made == config.build(Checked, values)
    assert config.to_table(made) == {"sizes": [1, 2], "rate": 1.0, "most": None, "sides": ["left"]}
    assert (made.sizes, made.sides[0]) == ((1, 2), Side.LEFT)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sizes": 3}, r"checked\.sizes must be a list, got 3"),
        ({"sizes": [2, 0]}, r"checked\.sizes\[1\] must lie in \[1, 1000000000\], got 0"),
        ({"rate": 2.0}, r"checked\.rate must lie in \[0, 1\], got 2\.0; or auto"),
        ({"rate": "best"}, r"checked\.rate must be float, got 'best'; or auto"),
        ({"most": 2.5}, r"checked\.most must be int, got 2\.5"),
        ({"sides": ["up"]}, r"checked\.sides\[0\] must be one of left, right, got 'up'"),
    ],
)
def test_python_and_a_table_are_refused_alike(wrong, says):
    for make in (lambda: Checked(**wrong), lambda: config.build(Checked, wrong, "checked")):
        with pytest.raises(ConfigError, match=f"^{says}$"):
            make()


def test_assignments_change_nested_tables_and_not_the_original():
    table = {"inner": {"rate": 0.1, "kind": "a"}}
    changed = apply_sets(table, ["inner.rate=0.5", "inner.sizes=[1, 2]", "name=a b", "weights.dcd-kl=1", "path=runs/x"])
    assert changed == {
        "inner": {"rate": 0.5, "kind": "a", "sizes": [1, 2]},
        "name": "a b",
        "weights": {"dcd-kl": 1},
        "path": "runs/x",
    }
    assert table == {"inner": {"rate": 0.1, "kind": "a"}}


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


def test_a_document_may_have_further_entries():
    table = {"name": "x", "later": 1}
    assert config.build_document(Outer, table, "a.json", error=StaleError, hint="") == Outer(name="x")


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
    # `Key("R@1")` and `OMITTED` only say how the field is written, and the arguments of a job are checked as it is
    # settled.
    others = {"Key", "OMITTED", "argument", "model_argument", "reads", "reads_split", "configures", "computes"}
    return bool(names & set(RANGES)) and not names & others


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
                has_check = any("settle_fields(self" in method for method in methods)
                is_inherited = bool(bases & checked) and all("super().__post_init__()" in method for method in methods)
                assert has_check or is_inherited, f"{cls.name} in {path} has ranges that nothing checks"
                checked.add(cls.name)
    assert len(checked) >= 15
