"""The functions of `import dcdctl` do what the commands do, and their results show themselves in a notebook."""

from __future__ import annotations

import base64
import inspect
import io
import json
import operator
import re
import shutil
import sys

import pandas as pd
import processes
import pyarrow as pa
import pytest
from command_line import document_of, run
from paths import ROOT
from PIL import Image

import dcdctl
from dcdctl.cli.app import COMMANDS
from dcdctl.cli.declare import as_typer
from dcdctl.core import arguments
from dcdctl.core.config import to_table
from dcdctl.core.data import for_browser
from dcdctl.core.errors import ConfigError, InputError, MissingError
from dcdctl.core.search import CombinedQuery, IndexSearcher
from dcdctl.core.training import DualConfig, LossConfig, Run

TINY = {
    "candidates.block_size": 4,
    "optimizer.steps": 3,
    "batch.size": 8,
    "model.projection_dim": 16,
    "model.hidden_size": 32,
    "loss.terms": {"infonce": 1.0},
}


def test_importing_dcdctl_takes_under_a_tenth_of_a_second_and_loads_no_torch():
    code = (
        "import sys, time; before = time.process_time(); import dcdctl; print(time.process_time() - before, "
        "*sys.modules)"
    )

    def imported() -> tuple[float, set[str]]:
        done = processes.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, *names = done.stdout.split()
        return float(seconds), set(names)

    found = [imported() for _ in range(3)]
    assert not found[0][1] & {"torch", "numpy", "transformers", "typer"}
    assert min(seconds for seconds, _ in found) < 0.1


@pytest.mark.parametrize("name", sorted(set(dcdctl.__all__)))
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert inspect.getdoc(getattr(dcdctl, name))


DECLARED = {
    "Index.build": "IndexJob",
    "bench": "BenchJob",
    "cache_teacher": "CacheTeacher",
    "distill": "Distill",
    "evaluate": "EvalJob",
    "export": "ExportJob",
    "finetune_teacher": "FinetuneTeacher",
    "prepare": "PrepareJob",
    "study": "StudyJob",
    "work": "WorkJob",
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_function_has_the_arguments_of_its_command(name):
    function = operator.attrgetter(name)(dcdctl)
    command = next(function for _, _, function, _ in COMMANDS if function.__name__ == name.partition(".")[0].lower())
    (declared,) = (
        each.annotation
        for each in inspect.signature(command, eval_str=True).parameters.values()
        if getattr(each.annotation, "__name__", "") == DECLARED[name]
    )
    ours = inspect.signature(function).parameters
    fields = arguments.declared(declared)
    options_alone = {name for name, (_, argument) in fields.items() if argument and not argument.is_keyword}
    assert options_alone <= {"sets", "vectors", "precision"}
    assert {name: each.default for name, each in ours.items()} == {
        name: each.default for name, each in inspect.signature(declared).parameters.items() if name not in options_alone
    }
    options = {name: each.default for name, each in inspect.signature(as_typer(command)).parameters.items()}
    assert {name for name in ours if name not in options} <= {"progress", "config", "settings"}
    for name in ours.keys() & options.keys():
        written = ours[name].default
        assert options[name] == (",".join(map(str, written)) if isinstance(written, tuple) else written) or (
            written is inspect.Parameter.empty and options[name] is None
        )


def test_help_of_a_function_has_types_of_python_and_its_result():
    shown = str(inspect.signature(dcdctl.distill))
    assert "recipe: 'Ref | Recipe'" in shown
    assert "max_images: int | None = None" in shown
    assert "Annotated" not in shown
    with pytest.raises(TypeError, match=r"distill\(\) has no argument recipes; did you mean recipe\?"):
        dcdctl.distill("demo-dual", "data", "out", recipes=1)
    # In Python, a recipe is loaded with its overrides.
    with pytest.raises(TypeError, match=r"distill\(\) has no argument sets; it takes recipe, data, out, "):
        dcdctl.distill("demo-dual", "data", "out", sets=["seed=1"])


def test_an_evaluation_is_that_of_the_command(dual_run, scenes_corpus_dir):
    found = dcdctl.evaluate(dual_run, str(scenes_corpus_dir), batch_size=64, dims=4, vectors="int8", rescore=3)
    by_command = document_of(f"eval {dual_run} --data {scenes_corpus_dir} --dims 4 --codes int8 --rescore 3")
    assert {**found.document, "seconds": 0} == {**by_command, "seconds": 0}
    assert found.document["protocol"]["vectors"] == {"dims": 4, "kind": "int8", "rescore": 3}
    with pytest.raises(MissingError, match="out=FOLDER"):
        dcdctl.compare([found, dual_run])


def test_a_loaded_model_is_evaluated_as_its_run_and_writes_nothing(dual_run, scenes_corpus_dir):
    before = (dual_run / "result.json").stat().st_mtime_ns
    model = dcdctl.load(dual_run)
    found = dcdctl.evaluate(model, scenes_corpus_dir, batch_size=64)
    by_name = json.loads((dual_run / "result.json").read_text(encoding="utf-8"))
    assert found.document["intervals"] == by_name["intervals"]
    assert (found.text_retrieval, found.image_retrieval) == (by_name["text_retrieval"], by_name["image_retrieval"])
    assert (found.document["model"], found.folder) == (f"VisionTextDual {model.digest[:8]}", None)
    assert (dual_run / "result.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="in memory"):
        dcdctl.evaluate(model, scenes_corpus_dir, model_overrides={"max_text_len": 8})


def test_the_bar_of_a_training_shows_its_steps(scenes_corpus_dir, tmp_path, capfd):
    dcdctl.distill(
        dcdctl.load_recipe("demo-dual-alone", TINY), scenes_corpus_dir, tmp_path / "run", device="cpu", progress=True
    )
    shown = capfd.readouterr().err
    assert "train: 100%" in shown
    assert "3/3" in shown


def test_a_recipe_in_memory_trains_as_the_same_fields_set_on_the_command_line(scenes_corpus_dir, tmp_path):
    recipe = dcdctl.load_recipe("demo-dual-alone", TINY)
    assert recipe.loss == LossConfig(terms={"infonce": 1.0}, temperature=recipe.loss.temperature)
    ours = dcdctl.distill(recipe, str(scenes_corpus_dir), str(tmp_path / "python"), device="cpu", precision="fp32")
    terms = [f"{name}={value}" for name, value in TINY.items() if name != "loss.terms"]
    sets = " ".join(f"--set {line}" for line in [*terms, "loss.terms={infonce=1.0}"])
    run(
        f"distill demo-dual-alone --data {scenes_corpus_dir} --out {tmp_path}/command {sets} --precision fp32 "
        "--device cpu"
    )
    theirs = Run(tmp_path / "command")
    assert ours.facts()["recipe"] == theirs.facts()["recipe"] == to_table(recipe)
    assert [step["loss"] for step in ours.metrics()] == [step["loss"] for step in theirs.metrics()]
    assert dcdctl.load(ours).digest == dcdctl.load(theirs).digest


def test_the_repr_of_a_recipe_is_what_differs_from_the_defaults():
    recipe = dcdctl.Recipe(seed=3, model=DualConfig(num_heads=2))
    assert repr(recipe) == "Recipe(seed=3, model=DualConfig(num_heads=2))"
    assert repr(dcdctl.load_recipe(recipe, {"seed": 0})) == "Recipe(model=DualConfig(num_heads=2))"


def test_an_evaluation_is_shown_as_a_line_and_as_a_table_with_intervals(dual_run, scenes_corpus_dir):
    found = dcdctl.evaluate(dual_run, scenes_corpus_dir, batch_size=64)
    text, (low, high) = found.text_retrieval["R@5"], found.document["intervals"]["text_retrieval"]["R@5"]
    assert repr(found).endswith(f"image R@1 {found.image_retrieval['R@1']:.2f}, RSUM {found.rsum:.2f})")
    html = found._repr_html_()
    assert f"<td>{text:.2f}</td>" in html
    assert f"<td>{low:.1f} to {high:.1f}</td>" in html
    assert "16 images, 80 captions" in html


def test_a_comparison_has_the_numbers_of_the_command(dual_run, scenes_corpus_dir, tmp_path):
    other = dcdctl.evaluate(dual_run, scenes_corpus_dir, batch_size=64, dims=2, out=tmp_path / "short")
    found = dcdctl.compare([dual_run, other])
    (theirs,) = document_of(f"compare {dual_run} {tmp_path}/short")["comparisons"]
    (ours,) = found.comparisons
    assert (
        ours.comparison.difference.rsum.value
        == theirs["difference"]["rsum"]["value"]
        == pytest.approx(other.rsum - rsum_of(dual_run))
    )
    (verdict,) = found.verdicts
    assert repr(found) == f"Comparison({verdict})"
    assert f"<td>{ours.comparison.difference.rsum.value:+.2f}</td>" in found._repr_html_()


def rsum_of(run) -> float:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))["rsum"]


@pytest.fixture
def own_index(noise_index, tmp_path):
    """A copy of an index of two images, with a folder of more, `more`; the dual encoder and the fusion scorer beside
    it."""
    source = noise_index.parent
    for name in ("dual", "fusion", "images"):
        shutil.copytree(source / name, tmp_path / name)
    (tmp_path / "more").mkdir()
    for path in sorted((tmp_path / "images").glob("[hijkl].png")):
        path.rename(tmp_path / "more" / path.name)
    settings = dcdctl.IndexConfig(flat_up_to=5, segment_rows=7)
    return dcdctl.Index.build(tmp_path / "dual", tmp_path / "images", tmp_path / "own", settings=settings)


def test_an_index_is_built_changed_and_searched_in_place(own_index, tmp_path):
    assert (own_index.num_images, own_index.config.flat_up_to, own_index.config.segment_rows) == (7, 5, 7)
    searcher = dcdctl.Searcher(str(own_index.folder), device="cpu")
    mine = dcdctl.Searcher(own_index)
    added = own_index.add(str(tmp_path / "more"))
    assert (added.added, len(own_index), len(mine.search("a red circle", k=99))) == (5, 12, 12)
    assert len(searcher.search("a red circle", k=99)) == 7  # opened before the change
    assert own_index.remove("h.png", "[ij].png").removed == 3
    assert {hit.name for hit in mine.search("a red circle", k=99)} & {"h.png", "i.png", "j.png", "k.png"} == {"k.png"}
    assert repr(own_index) == repr(dcdctl.Index.open(own_index))
    with pytest.raises(InputError, match="absent"):
        own_index.remove("absent.png")


def test_columns_are_set_from_tables_and_searched_under_conditions(own_index, tmp_path):
    rows = [{"image": "plain.png", "year": 2020, "owner": "<b>"}, {"image": "g.png", "year": 2021, "owner": "ann"}]
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    in_memory, file = pa.Table.from_pylist(rows), str(tmp_path / "m.csv")
    for table, where in ((in_memory, "the table of metadata"), (file, file)):
        change = own_index.set_columns(table)
        assert change.notes == (f"not in {where}: 5 images of the index",)
        assert own_index.values("year").drop_null().to_pylist() == [2021, 2020]
        own_index.set_columns(drop=["year", "owner"])
        assert own_index.columns.names == ["taken", "camera"]
    own_index.set_columns(in_memory, exif="place")
    assert own_index.columns.names == ["taken", "camera", "year", "owner", "latitude", "longitude", "city", "country"]
    searcher = dcdctl.Searcher(own_index)
    answer = searcher.search("a red circle", where="owner = '<b>'")
    assert [(hit.name, hit.columns["owner"]) for hit in answer] == [("plain.png", "<b>")]
    assert "owner &lt;b&gt;" in answer._repr_html_()
    assert len(searcher.search("blue", where="owner is null")) == 5
    listed = searcher.browse(2, order="year desc")
    assert [hit.name for hit in listed] == ["g.png", "plain.png"]
    assert (listed.total, {hit.score for hit in listed}, listed[0].path.is_file()) == (7, {None}, True)
    assert repr(listed) == "Answer(Images, by year desc: 2 images, the first 'g.png')"
    assert "Images, by year desc: 2 of 7 images" in listed._repr_html_()
    assert len(searcher.browse(9, where="owner is null", offset=3)) == 2


def test_an_answer_shows_small_images_and_escaped_names(noise_index):
    answer = dcdctl.Searcher(noise_index).search("a <b>red</b> circle", k=12)
    html = answer._repr_html_()
    assert "&lt;img src=x&gt;.png" in html
    assert "&lt;b&gt;red" in html
    assert "<img src=x>" not in html
    images = [base64.b64decode(data) for data in re.findall(r'src="data:image/webp;base64,([^"]+)"', html)]
    assert [for_browser(image)[1] for image in images] == ["image/webp"] * 12
    assert max(max(Image.open(io.BytesIO(image)).size) for image in images) <= 112
    assert repr(answer) == f"Answer('a <b>red</b> circle': 12 images, the best {answer[0].name!r})"


def test_an_image_in_memory_finds_what_its_file_finds(noise_index):
    searcher, path = dcdctl.Searcher(noise_index), noise_index.parent / "images" / "plain.png"
    by_file, by_image = (searcher.search(query, k=5) for query in (path, Image.open(path).convert("RGBA")))
    assert by_file.hits == by_image.hits
    assert by_file[0].name == "plain.png"
    assert by_image.image().tobytes() == Image.open(path).convert("RGB").tobytes()
    damaged = Image.open(io.BytesIO(path.read_bytes()[:-500]))
    with pytest.raises(InputError, match="query image"):
        searcher.search(damaged)


def test_a_list_of_texts_has_the_answers_of_each_alone(noise_index):
    searcher = dcdctl.Searcher(noise_index)
    texts = ["a red circle", "green", "a blue square"] * 30
    together = searcher.search(texts, k=4)
    assert [answer.query for answer in together] == texts
    for text, answer in zip(texts[:3], together, strict=False):
        alone = searcher.search(text, k=4)
        assert {hit.row: hit.score for hit in answer} == pytest.approx({hit.row: hit.score for hit in alone}, abs=1e-5)
        assert answer.notes == alone.notes
    assert (searcher.search([]), len(searcher.search(("red",)))) == ([], 1)


def test_a_text_an_image_and_other_texts_are_one_query(noise_index):
    searcher, path = dcdctl.Searcher(noise_index), noise_index.parent / "images" / "plain.png"
    answer = searcher.search("red", image=path, also="circle", without=["green", "blue"])
    expected = CombinedQuery("red", path, ("circle",), ("green", "blue"))
    assert list(answer) == list(IndexSearcher.for_index(searcher.index, device="cpu").ask(expected).hits)
    assert repr(answer).startswith("Answer(red, like plain.png, also circle, not green, not blue: 10 images")
    assert list(searcher.search("red", image=str(path))) == list(searcher.search("red", image=Image.open(path)))
    similar = searcher.search(path, without="green")
    assert list(similar) == list(searcher.search(Image.open(path), without="green"))


def test_a_bar_is_shown_only_if_asked_for(noise_index, tmp_path, capfd):
    for progress in (False, True):
        out = tmp_path / f"index-{progress}"
        dcdctl.Index.build(noise_index.parent / "dual", noise_index.parent / "images", out, progress=progress)
        shown = capfd.readouterr()
        assert shown.out == ""
        assert ("12/12" in shown.err) is progress
