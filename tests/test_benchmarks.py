"""Benchmarks find every name that they import and call it with known arguments, and the commands of the evidence plans
parse.

Nothing else reads these scripts: they take minutes to hours, so no test runs them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import random
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import DOCS, ROOT, SUPPORT
from typed_commands import parse

from dcdctl.core import artifacts
from dcdctl.core.data import scenes
from dcdctl.core.training import load_recipe

BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))
PLANS = [
    "clip-scenes",
    "elsewhere",
    "fair",
    "fewer-questions",
    "flickr8k",
    "images",
    "noisy-weights",
    "picked",
    "pools",
    "queries",
    "scenes",
    "small",
    "students",
    "ten-thousand",
    "weights",
    "wrong-captions",
]


def imports(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Module, name and local alias of each `from dcdctl.x import y`; the name is empty for `import dcdctl.x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dcdctl":
            yield from ((node.module, alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                (alias.name, "", alias.asname or "dcdctl")
                for alias in node.names
                if alias.name.split(".")[0] == "dcdctl"
            )


def member(owner: object, name: str) -> object:
    """An attribute of a module or class, or a submodule; None for other owners. MissingNameError if there is none."""
    if isinstance(owner, ModuleType) and not hasattr(owner, name):
        try:
            return importlib.import_module(f"{owner.__name__}.{name}")
        except ModuleNotFoundError as error:
            raise MissingNameError from error
    if isinstance(owner, type) and not hasattr(owner, name):
        raise MissingNameError
    return getattr(owner, name) if isinstance(owner, ModuleType | type) else None


class MissingNameError(Exception):
    """dcdctl has no such name."""


def imported(tree: ast.AST) -> tuple[dict[str, object], set[str]]:
    """What a script imports from dcdctl, by local name, and the imports that fail."""
    known: dict[str, object] = {}
    missing = set()
    for module, name, alias in imports(tree):
        try:
            found = importlib.import_module(module)
            known[alias] = member(found, name) if name else importlib.import_module(alias)
        except (MissingNameError, ModuleNotFoundError):
            missing.add(f"{module}.{name}".rstrip("."))
    return known, missing


def resolve(node: ast.expr, known: dict[str, object]) -> object:
    """What `a.b.c` is, where `a` was imported from dcdctl; None if it was not. MissingNameError if there is no such
    attribute."""
    if isinstance(node, ast.Attribute):
        return member(resolve(node.value, known), node.attr)
    return known.get(node.id) if isinstance(node, ast.Name) else None


def missing_names(tree: ast.AST) -> set[str]:
    """The imports, and the attributes of imported modules and classes, that dcdctl does not have."""
    known, missing = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            try:
                resolve(node, known)
            except MissingNameError:
                missing.add(ast.unparse(node))
    return missing


def wrong_calls(tree: ast.AST) -> set[str]:
    """The calls of imported functions and classes with unknown keywords or with too many arguments."""
    known, _ = imported(tree)
    wrong = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and callable(called := resolve(node.func, known)):
            arguments = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
            try:
                inspect.signature(called).bind_partial(
                    *arguments, **{word.arg: word.value for word in node.keywords if word.arg}
                )
            except TypeError as error:
                wrong.add(f"{ast.unparse(node.func)}: {error}")
    return wrong


def missing_local_names(tree: ast.Module) -> set[str]:
    """The names that other benchmarks and the modules of tests/support are asked for and do not define."""
    missing = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for folder in (BENCHMARKS, SUPPORT):
                if (path := folder / f"{node.module}.py").exists():
                    missing |= {f"{node.module}.{alias.name}" for alias in node.names} - {
                        f"{node.module}.{name}" for name in defined(path)
                    }
    return missing


def defined(path: Path) -> set[str]:
    """The names at the top of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_finds_every_name_it_imports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    compile(tree, path, "exec")
    assert missing_names(tree) == set()
    assert missing_local_names(tree) == set()
    assert wrong_calls(tree) == set()


@pytest.fixture(scope="module")
def evidence():
    """The script that runs the plans; its imports need the folder of the benchmarks on the path."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("evidence")


@pytest.mark.parametrize("plan", PLANS)
def test_the_commands_of_a_plan_parse_and_their_recipes_load(evidence, plan):
    for step in evidence.PLANS[plan]():
        if step.command == evidence.evidence_questions.CHOOSE:
            continue
        parse(shlex.join(["dcdctl", *step.arguments]))
        if step.trains:
            load_recipe(step.words[0], values_of("--set", step.words))
        if step.trains and step.table:
            model = [step.measured, "--rerank", step.out] if step.measured else [step.out]
            parse(shlex.join(["dcdctl", "eval", *model, *step.measure, "--out", step.out]))
        for recipe in values_of("--recipe", step.words):
            load_recipe(recipe, values_of("--set", step.words))


@pytest.mark.parametrize("plan", PLANS)
def test_the_measured_rows_of_a_plan_are_on_its_pages(evidence, plan):
    folder = DOCS / "evidence" / "results" / plan
    steps = [step for step in evidence.PLANS[plan]() if step.table]
    measured = [step for step in steps if (folder / step.out.split("/")[1] / "result.json").exists()]
    page = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.md"))
    for step in measured:
        assert f"### {step.table}\n" in page
        assert f"\n| {step.label} |" in page


def write_published(folder: Path, name: str, **documents: dict[str, Any]) -> None:
    """The small files that a plan publishes."""
    (folder / name).mkdir(parents=True)
    for kind, document in documents.items():
        artifacts.write_document(folder / name / f"{kind}.json", document)


def a_result(recall: float, rsum: float) -> dict[str, Any]:
    return {"text_retrieval": {"R@1": recall}, "image_retrieval": {"R@1": recall + 1}, "rsum": rsum}


def some_times(seconds: dict[int, float], num_bytes: int) -> dict[str, Any]:
    """A model of bench.json; images that are not encoded before take ten times as long."""
    queries = [
        {"num_images": size, "is_cached": is_cached, "seconds": each * (1 if is_cached else 10)}
        for is_cached in (True, False)
        for size, each in seconds.items()
    ]
    return {"queries": queries, "footprint": {"index_bytes_per_million_images": {"float32": num_bytes * 1_000_000}}}


def test_the_lead_table_has_means_over_seeds_and_the_costs_of_all_that_a_row_needs(evidence, tmp_path):
    write_published(tmp_path, "scenes", cache={"pairs": 80})
    write_published(tmp_path, "families", cache={"pairs": 100})
    times = {"student": some_times({1000: 0.002}, 1024), "teacher": some_times({20: 0.03, 1000: 0.7}, 64)}
    cost = {"train_seconds": 60}
    write_published(tmp_path, "dual-0", result=a_result(10, 200), cost=cost, bench=times)
    write_published(tmp_path, "dual-1", result=a_result(20, 204), cost={"train_seconds": 120})
    write_published(tmp_path, "dual-alone-0", result=a_result(9, 190), cost={"eval_seconds": 3})
    write_published(tmp_path, "query-dual-0", result=a_result(12, 210), cost={"train_seconds": 30})
    write_published(tmp_path, "first-0", cost={"train_seconds": 90})
    write_published(tmp_path, "placed-0", result=a_result(90, 580), cost={"train_seconds": 150})
    write_published(tmp_path, "dual-first-20-0", result=a_result(80, 470), cost={"eval_seconds": 3})
    write_published(tmp_path, "teacher", result=a_result(95, 590), cost={"eval_seconds": 3})
    table = evidence.evidence_lead.write(evidence.PLANS["students"](), tmp_path)
    assert table.splitlines()[2:] == [
        "| teacher, all pairs | 95.0, 96.0 | 590.0 | 700 | 1x | 64 |  |  |",
        "| dual | 15.0, 16.0 | 202.0 ± 2.8 | 2.00 | 350x | 1,024 | 1.5 | 80 |",
        "| dual, no teacher | 9.0, 10.0 | 190.0 |  |  |  |  | 0 |",
        "| dual, a static query student | 12.0, 13.0 | 210.0 |  |  |  | 1.5 | 80 |",
        "| late interaction with positions and families | 90.0, 91.0 | 580.0 |  |  |  | 5.0 | 180 |",
        "| dual, its first 20 by the teacher | 80.0, 81.0 | 470.0 | 32.0 | 22x | 1,024 | 1.0 | 80 |",
    ]
    assert (tmp_path / "lead.md").read_text() == f"### A teacher and its students, 500 test scenes\n\n{table}"
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"lead.md", "time.png", "pairs.png"}


def test_times_come_last_and_are_published_beside_the_results_of_their_run(evidence, tmp_path):
    steps = evidence.PLANS["students"]()
    last = steps[-1]
    assert last.command == "bench"
    assert set(last.after) == {step.out for step in steps[:-1]}
    folder = tmp_path / "plan"
    workspace = evidence.Workspace("students", folder, published=tmp_path / "results")
    assert not workspace.is_done(last)
    write_published(folder / "runs", last.short, bench={"student": {}}, result={"data": str(folder / "data")})
    assert workspace.is_done(last)
    workspace.publish(last)
    workspace.publish(next(step for step in steps if step.out == f"runs/{last.short}"))
    published = tmp_path / "results" / "students" / last.short
    assert artifacts.read_document(published / "bench.json") == {"student": {}}
    assert artifacts.read_document(published / "result.json") == {"data": "data"}


@pytest.fixture(scope="module")
def wrong(evidence):
    """The corpora of the plan `wrong-captions`, whose module is imported with the plans."""
    return evidence.wrong_captions


def a_corpus(num_images: int) -> list[list[str]]:
    """The captions of scenes."""
    described = islice(scenes.describe_scenes(0, "train", 5), num_images)
    return [[statement.text for statement in item.statements] for item in described]


def changed_places(before: list[list[str]], after: list[list[str]]) -> list[tuple[int, int]]:
    pairs = enumerate(zip(before, after, strict=True))
    return [(i, j) for i, (old, new) in pairs for j in range(len(old)) if old[j] != new[j]]


@pytest.mark.parametrize("share", [0, 20, 40, 60])
def test_exactly_a_share_of_the_captions_moves_to_another_image(wrong, share):
    images, per_image = 60, 5
    captions = [[f"{image} {number}" for number in range(per_image)] for image in range(images)]
    moved, places = wrong.shuffled(captions, share)
    assert len(places) == images * per_image * share // 100
    assert changed_places(captions, moved) == places
    assert all(int(moved[image][number].split()[0]) != image for image, number in places)
    assert sorted(chain(*moved)) == sorted(chain(*captions))
    assert wrong.shuffled(captions, share) == (moved, places)


@pytest.mark.parametrize("kind", ["near", "cut", "swap", "file-name", "language"])
def test_half_of_the_captions_of_each_family_have_an_error(wrong, kind):
    captions = a_corpus(40)
    changed, places = wrong.with_errors(captions, kind)
    assert changed_places(captions, changed) == places
    assert Counter(image // 4 for image, _ in places) == dict.fromkeys(range(10), 10)
    assert places == wrong.with_errors(captions, "near")[1]
    assert set(wrong.KINDS) == {"near", *wrong.ERRORS}


def test_a_near_caption_is_one_of_another_scene_of_the_family(wrong):
    captions = a_corpus(40)
    changed, places = wrong.with_errors(captions, "near")
    for image, number in places:
        owners = {other for other, texts in enumerate(captions) if changed[image][number] in texts}
        assert image not in owners
        assert owners & set(range(image - image % 4, image - image % 4 + 4))


def test_errors_of_captions_are_what_their_names_say(wrong):
    caption = "a small orange circle at the top left is above and left of a big red square"
    rng = random.Random(0)
    assert wrong.cut(caption) == "a small orange circle at the top left"
    assert wrong.in_german("an orange ring sits under the moon") == "ein orangefarben Reif sitzt unter der Mond"
    assert wrong.ERRORS["file-name"](caption, 412, rng) == "IMG_0412.JPG"
    for _ in range(50):
        swapped = wrong.with_one_word_swapped(caption, rng)
        ((old, new),) = [pair for pair in zip(caption.split(), swapped.split(), strict=True) if pair[0] != pair[1]]
        assert any({old, new} <= set(group) for group in wrong.ALIKE)
    assert "an orange" in {wrong.with_one_word_swapped("a red", rng) for _ in range(50)}
    assert "an " not in wrong.with_one_word_swapped("an orange", rng)


def test_each_word_of_the_scenes_has_a_german_one_of_its_own(wrong):
    words = {word for texts in a_corpus(400) for text in texts for word in text.split()}
    assert words <= set(wrong.GERMAN)
    assert not {wrong.GERMAN[word] for word in words} & set(wrong.GERMAN)
    of_one_word = [german for word, german in wrong.GERMAN.items() if word not in ("a", "an")]
    assert len(set(of_one_word)) == len(of_one_word)


def test_wrong_captions_are_written_beside_their_images(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(wrong, "NUM_SCENES", 8)
    wrong.write_inputs(tmp_path)
    places = json.loads((tmp_path / "wrong.json").read_text())
    assert {name: len(of_corpus) for name, of_corpus in places.items()} == {
        "shuffled-0": 0,
        "shuffled-20": 8,
        "shuffled-40": 16,
        "shuffled-60": 24,
        **dict.fromkeys(wrong.KINDS, 20),
    }
    captions = a_corpus(8)
    for name, of_corpus in places.items():
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert changed_places(captions, [row["captions"] for row in rows]) == [tuple(place) for place in of_corpus]
        assert all((tmp_path / "photos" / "scenes" / row["image"]).exists() for row in rows)


def test_the_photos_of_students_and_teachers_differ_and_the_measured_captions_are_right(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(wrong, "NUM_PHOTOS", 10)
    images = [
        {
            "filename": f"{i}.jpg",
            "split": "val" if i > 14 else "train",
            "sentences": [{"raw": f"{i} {j}"} for j in "ab"],
        }
        for i in range(20)
    ]
    (tmp_path / "karpathy.json").write_text(json.dumps({"images": images}))
    wrong.write_photos(tmp_path)
    written = {path.stem: json.loads(path.read_text())["images"] for path in tmp_path.glob("photos-*.json")}
    of_split = {
        (name, split): {image["filename"] for image in listed if image["split"] == split}
        for name, listed in written.items()
        for split in ("train", "val")
    }
    assert len(of_split["photos-others", "train"]) == 5
    for share in wrong.SHARES:
        name = f"photos-{share}"
        assert not of_split[name, "train"] & of_split["photos-others", "train"]
        on_another = {"train": 0, "val": 0}
        for image in written[name]:
            own = image["filename"].removesuffix(".jpg")
            on_another[image["split"]] += sum(text["raw"].split()[0] != own for text in image["sentences"])
        assert on_another == {"train": 20 * share // 100, "val": 0}


def test_the_steps_of_wrong_captions_are_distinct_and_find_what_they_read(evidence):
    steps = evidence.PLANS["wrong-captions"]()
    by_out = {step.out: step for step in steps}
    position = {out: at for at, out in enumerate(by_out)}
    assert len(by_out) == len(steps)
    assert all(position[before] < at for at, step in enumerate(steps) for before in step.after)
    for step in steps:
        values = [word.split("model=")[-1].split("start=")[-1] for word in step.words + step.measure]
        read = {value.split("-rounds/")[0] for value in values if value.startswith(("data/", "caches/", "runs/"))}
        assert read <= ancestors(step, by_out)


def ancestors(step: Any, by_out: dict[str, Any]) -> set[str]:
    """What must be done before a step."""
    found = set(step.after)
    for before in step.after:
        found |= ancestors(by_out[before], by_out)
    return found


def test_the_tables_of_wrong_captions_have_every_row_and_their_parts(evidence):
    plan = evidence.evidence_wrong
    rows = {}
    for step in evidence.PLANS["wrong-captions"]():
        rows.setdefault((step.table, step.label), []).append(step)
    assert all(len(members) == 3 for (table, _), members in rows.items() if table)
    labels = {table: {label for each, label in rows if each == table} for table in plan.TABLES}
    assert all({plan.COMMAND, plan.SKEPTIC, plan.BESIDE, plan.NO_CHECK} <= of_table for of_table in labels.values())
    compared = {part for parts in plan.PARTS.values() for part in parts}
    assert compared <= set().union(*labels.values())
    for title, of_corpus in plan.EXPECTED.items():
        for corpus, values in of_corpus.items():
            noise = evidence.wrong_captions.KINDS.get(corpus) or plan.SHUFFLED.format(corpus)
            expected = {plan.PHOTOS: plan.PHOTO_ROWS, plan.TOWER: plan.TOWER_ROWS}.get(title, plan.ROWS)
            assert set(expected) <= labels[f"{title}, {noise}"]
            assert len(values) == len(expected)


def test_shares_are_of_the_better_row_of_clean_captions_of_the_same_seed(evidence, tmp_path):
    plan = evidence.evidence_wrong
    rsum = {"": 297, "-alone": 200, "-clean": 250, "-clean-taught": 300}
    for suffix, value in rsum.items():
        write_published(tmp_path, f"late-shuffled-40-0{suffix}", result=a_result(50, value))
        write_published(tmp_path, f"late-shuffled-40-2{suffix}", result=a_result(50, 200 if suffix else 100))
    table = evidence.evidence_doubts.shares_table(evidence.PLANS["wrong-captions"](), tmp_path)
    shown = dict(zip(evidence.evidence_doubts.SHOWN, table.splitlines()[2].split(" | ")[1:], strict=True))
    assert shown[plan.COMMAND] == "99.0, 50.0 |"
    assert shown[plan.NO_CHECK] == "66.7, 100.0"
    assert shown[plan.SKEPTIC] == ""


def test_doubts_are_counted_over_all_seeds(evidence):
    seed = {"captions": 50, "wrong": 20, "doubted": 10, "doubted_wrong": 10, "picks": 4, "right_picks": 1}
    other = {**seed, "doubted": 30, "doubted_wrong": 20, "picks": 0, "right_picks": 0}
    rows = evidence.evidence_doubts.doubts_table({"a corpus, seed 0": seed, "a corpus, seed 1": other})
    assert rows.splitlines()[2:] == ["| a corpus | 20 | 20 | 75.0 % | 75.0 % | 2 | 25.0 % |"]


def test_parts_of_more_tables_than_parts_are_a_row_for_each_table(evidence):
    interval = {"difference": {"rsum": {"value": 4.0, "interval": [1.0, 7.0]}}}
    parts = {"gain": ("b", "a"), "loss": ("c", "a")}
    tables = {"one": parts, "two": parts, "three": parts}
    compared = {"one / gain": interval, "three / loss": interval}
    difference = "+4.0 (+1.0 to +7.0)"
    rows = evidence.evidence_tables._parts_table(tables, compared).splitlines()[2:]
    assert rows == [
        "|  | gain | loss |",
        "| --- | --- | --- |",
        f"| one | {difference} |  |",
        f"| three |  | {difference} |",
    ]
    few = evidence.evidence_tables._parts_table({"one": tables["one"]}, compared).splitlines()[2:]
    assert few == ["|  | one |", "| --- | --- |", f"| gain | {difference} |", "| loss |  |"]


def values_of(flag: str, words: tuple[str, ...]) -> list[str]:
    """The words behind each occurrence of a flag."""
    return [value for word, value in pairwise(words) if word == flag]
