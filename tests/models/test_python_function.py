"""A Python function of the user as a scorer: its scores, its digest, and errors by name."""

from __future__ import annotations

import itertools
import json
import re
import sys

import numpy as np
import pytest
import torch
from command_line import QUICK_BENCH, run

from dcdctl.core import models, scoring
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions, preview, train_model

SOURCE = """
import numpy as np
import torch

def brightness(images, texts):
    return [float(np.asarray(image)[0, 0, 0]) + len(text) for image, text in zip(images, texts)]

class Scaled:
    name, version, pairs_per_batch = "scaled", "1", 2
    factor = 2.0
    calls = []
    def score(self, images, texts):
        self.calls.append(len(texts))
        return torch.tensor([self.factor * score for score in brightness(images, texts)], dtype=torch.float64)

def short(images, texts): return [1.0]
def square(images, texts): return np.zeros((len(texts), 1))
def words(images, texts): return ["high" for text in texts]
def one(images, texts): return 1.0
def undefined(images, texts): return [float("nan")] * len(texts)
def broken(images, texts): raise KeyError("no such caption")
def ends(images, texts): raise SystemExit(0)
class Needs:
    def __init__(self, folder): pass
class Ends:
    def __init__(self): raise SystemExit(3)
class Encoder:
    pairs_per_batch = 8
    calls = []
    def score(self, images, texts):
        self.calls.append([id(image) for image in images])
        return [float(len(text)) for text in texts]
class InNone(Scaled): pairs_per_batch = 0
class InMany(Scaled): pairs_per_batch = "many"
class InTooMany(Scaled): pairs_per_batch = 10**20
number = 3
"""
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the current folder."""
    name = f"own_scorer_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(("name", "factor"), [("brightness", 1), ("Scaled", 2)])
def test_scores_are_those_of_the_function_for_the_same_pixels_and_strings(module, name, factor, pil_images, captions):
    scorer = models.load_scorer(f"{module}:{name}")
    images, texts = (
        scorer.encode_images(scorer.preprocess.images(pil_images)),
        scorer.encode_texts(scorer.preprocess.texts(captions)),
    )
    image_ix, text_ix = torch.tensor([2, 0, 1, 2]), torch.tensor([0, 3, 1, 1])
    expected = [int(np.asarray(pil_images[i])[0, 0, 0]) + len(captions[t]) for i, t in ((2, 0), (0, 3), (1, 1), (2, 1))]
    assert scorer.score_pairs(images, texts, image_ix, text_ix).tolist() == [factor * score for score in expected]


def test_a_cache_gives_the_pairs_of_an_image_as_one_object_in_a_row_and_in_one_call(module, scenes_corpus_dir):
    """As docs/models.md says, so that a scorer encodes each image once."""
    scorer = models.load_scorer(f"{module}:Encoder")
    corpus = Corpus.open(scenes_corpus_dir, "val")
    # Five captions for seven images, in an order that mixes them, and nineteen, more than a batch, for the last one.
    pairs = [(image, (3 * image + turn) % 40) for turn in range(5) for image in range(7)] + [(7, n) for n in range(19)]
    image_P, text_P = np.array(pairs).T
    compute = Compute(batch_size=None)
    scoring.score_pairs(scorer, scoring.CorpusSource(corpus, scorer.preprocess), image_P, text_P, compute=compute)
    runs = [[len(list(run)) for _, run in itertools.groupby(images)] for images in scorer.call.__self__.calls]
    assert runs == [[5]] * 7 + [[8], [8], [3]]


def test_the_digest_covers_the_source_the_name_and_what_the_object_declares(module, tmp_path):
    def digest(name):
        sys.modules.pop(module, None)
        return models.load(f"{module}:{name}").digest

    before = {name: digest(name) for name in ("brightness", "short", "Scaled")}
    assert len(set(before.values())) == 3
    assert digest("brightness") == before["brightness"]
    path = tmp_path / f"{module}.py"
    for change in (("len(text)", "len(text) * 9"), ('"scaled", "1"', '"scaled", "02"')):
        path.write_text(SOURCE.replace(*change))
        assert digest("Scaled") != before["Scaled"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "short",
            r"short returned \[1.0\] for captions such as 'a cross', expected 2 finite numbers, one for each pair",
        ),
        ("square", r"square returned .*expected 2 finite numbers"),
        ("words", r"words returned \['high', 'high'\] for captions"),
        ("one", r"one returned 1.0 for captions"),
        ("undefined", r"undefined returned \[nan, nan\] for captions"),
    ],
)
def test_wrong_scores_are_refused_by_name(module, name, message, pil_images):
    scorer = models.load_scorer(f"{module}:{name}")
    images, texts = scorer.preprocess.images(pil_images[:2]), scorer.preprocess.texts(["a cross", "a dog"])
    with pytest.raises(ModelError, match=message):
        scorer(images, texts, torch.tensor([0, 1]), torch.tensor([0, 1]))


def test_an_error_in_the_function_keeps_its_traceback_and_says_for_which_pairs(module, pil_images):
    scorer = models.load_scorer(f"{module}:broken")
    with pytest.raises(KeyError, match="no such caption") as caught:
        scorer(
            scorer.preprocess.images(pil_images),
            scorer.preprocess.texts(["a cross"]),
            torch.tensor([0]),
            torch.tensor([0]),
        )
    assert caught.value.__notes__ == [f"{module}:broken was called with 1 pairs; the first caption is 'a cross'"]


def test_code_that_ends_the_program_is_an_error_and_no_success(module, tmp_path, pil_images):
    (tmp_path / f"{module}_quits.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(ModelError, match=rf"{module}_quits:score ends the program \(exit code 0\); remove the exit"):
        models.load(f"{module}_quits:score")
    scorer = models.load_scorer(f"{module}:ends")
    inputs = scorer.preprocess.images(pil_images), scorer.preprocess.texts(["a cross"])
    with pytest.raises(ModelError, match=r"ends the program \(exit code 0\)"):
        scorer(*inputs, torch.tensor([0]), torch.tensor([0]))


def test_a_function_is_not_trained_and_a_dry_run_says_so(module, scenes_corpus_dir, tmp_path):
    """Without running the code."""
    sets = [f"model.start={module}:brightness", "model.layers=[]", "loss.terms={ ranking = 1.0 }"]
    job = TrainingJob("distill", "tiny-student", sets, tmp_path / "run")
    for start in (preview, train_model):
        with pytest.raises(ModelError, match=r"is a Python function, which is not trained; give it to --teacher"):
            start(job, InputRefs(data=scenes_corpus_dir), options=TrainingOptions())
    assert module not in sys.modules
    assert not job.out.exists()


def test_a_reference_that_names_no_scorer_is_refused(module, tmp_path):
    (tmp_path / "needs_absent.py").write_text("import absent_package\n")
    for ref, message in (
        ("absent_module:score", "there is no Python module absent_module for absent_module:score"),
        (f"{module}.part:score", f"there is no Python module {module}.part"),
        (f"{module}.py:Scaled", f"{module}.py:Scaled names a Python file, and code is named by its module; write "),
        (f"{module}.py:Scaled", f"; write {module}:Scaled"),
        (f"{module}.py", f"; write {module}:FUNCTION"),
        (f"here/{module}.py:score", f"; write {module}:score, and run the command in here"),
        (f"{module}:absent", "absent is no function or class of a scorer"),
        (f"{module}:number", "number is no function or class of a scorer"),
        (f"{module}:a:b", f"{module}:a:b does not exist; `dcdctl models` shows"),
        (f"{module}:Needs", "Needs cannot be made without arguments: missing a required argument: 'folder'"),
        (f"{module}:Ends", "Ends ends the program (exit code 3); remove the exit"),
        (f"{module}:InNone", "InNone has pairs_per_batch 0, expected a whole number from 1 to"),
        (f"{module}:InMany", "InMany has pairs_per_batch 'many', expected a whole number"),
        (f"{module}:InTooMany", "InTooMany has pairs_per_batch 100000000000000000000, expected"),
    ):
        with pytest.raises(ModelError, match=re.escape(message)):
            models.load(ref)
    with pytest.raises(ModuleNotFoundError, match="absent_package"):
        models.load("needs_absent:score")
    with pytest.raises(ModelError, match="absent_module"):
        models.check_ref("absent_module:score")
    assert models.check_ref(f"{module}:brightness") == "fusion"
    with pytest.raises(ModelError, match="is a fusion scorer, expected a dual encoder"):
        models.load_dual(f"{module}:brightness")
    with pytest.raises((ConfigError, ModelError), match="image_size"):
        models.load(f"{module}:brightness", {"image_size": 32})


def test_commands_announce_the_code_and_keep_to_its_batch_size(module, scenes_corpus_dir, tmp_path, dual):
    models.save(dual, tmp_path / "dual")
    common = f"--data {scenes_corpus_dir} --teacher {module}:Scaled"
    cached = run(
        f"cache-teacher {common} --recipe tiny-student --set candidates.per_query=3 --max-images 8 --device cpu "
        f"--out {tmp_path}/cache"
    )
    assert max(sys.modules[module].Scaled.calls) == 2
    timed = run(f"bench {tmp_path}/dual {common} {QUICK_BENCH} --json")
    for result in (cached, timed):
        assert f"runs code: {module}:Scaled\n" in result.stderr
    document = json.loads(timed.stdout)
    assert (document["teacher"]["kind"], document["student"]["kind"]) == ("fusion", "dual")
