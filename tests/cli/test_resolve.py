"""Every command checks what it was given before it opens weights: for each option that can be wrong, one line.

The models here have no weights, so a command that opened them first would say that.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import command_line
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from made_index import unit_vectors, write_index
from made_runs import finish_run, scores_of, write_evaluation, write_run
from PIL import Image

from dcdctl.cli.app import app
from dcdctl.core.data import Corpus
from dcdctl.core.engines import write_table
from dcdctl.core.errors import install_command

TREE = typer.main.get_command(app)
UNSET = "UNSET"
"""The value of an option that is left out."""

VALID = {
    "demo": "--out=NEW",
    "photos": "images=PHOTOS captions=PAIRS.csv --out=NEW",
    "recipes": "name=demo-dual",
    "models": "",
    "prepare": "manifest=scenes --out=NEW",
    "verify": "place=CORPUS",
    "convert": "checkpoint=FUSION --out=NEW",
    "finetune-teacher": "recipe=tiny-teacher --data=CORPUS --out=NEW",
    "cache-teacher": "--data=CORPUS --teacher=FUSION --recipe=tiny-student --out=NEW",
    "cache-texts": "--teacher=DUAL --texts=PAIRS.csv --out=NEW",
    "work": "files=TASKS.parquet --model=FUSION",
    "inspect": "place=CORPUS",
    "distill": "recipe=demo-dual-alone --data=CORPUS --out=NEW",
    "study": "recipe=demo-dual --start=DUAL --teacher=FUSION --data=CORPUS --out=NEW --set=batch.size=8",
    "eval": "model=DUAL --data=CORPUS",
    "bench": "student=DUAL --teacher=FUSION --data=CORPUS --split=test",
    "compare": "systems=EVALUATION",
    "report": "runs=EVALUATION --out=NEW.html",
    "export": "model=DUAL --out=NEW --to=transformers",
    "index": "model=DUAL --images=PHOTOS --out=NEW",
    "sync": "index=INDEX",
    "change": "index=INDEX --set=flat_up_to=40",
    "duplicates": "index=INDEX",
    "upload": "index=INDEX url=lancedb:store?table=photos",
    "search": "index=INDEX 'text=a dog'",
    "serve": "index=INDEX --port=0",
}
"""Values of each command that nothing is wrong with, by option, or by name for positional arguments; empty for a flag.
Capital words are files of the fixture `stage`."""


@dataclass(frozen=True)
class Mistake:
    """A wrong value of an option, and what the one line must say."""

    value: str
    message: str
    needs: str = ""
    """Further options, without which the option makes no sense."""
    code: int = 1


CORPUS = Mistake("ABSENT", r"no corpus in ABSENT.*; .*`dcdctl prepare")
CACHE = Mistake("ABSENT", r"no teacher cache in ABSENT.*; .*`dcdctl cache-teacher`")
MODEL = Mistake("ABSENT", r"ABSENT does not exist; .*`dcdctl models`")
FOLDER = [
    Mistake("FILE", r"FILE is a file, a folder is expected; name another folder"),
    Mistake("FILE/new", r"FILE/new cannot be written to: FILE is a file; name another folder"),
]
TAKEN = Mistake("TAKEN", r"TAKEN .*; name an(other| empty or a new) folder")
PAGE = [
    Mistake("TAKEN", r"TAKEN is a folder, a file is expected; name a file"),
    Mistake("FILE/new.html", r"FILE cannot be written to: FILE is a file; name another folder"),
]
RECIPE = Mistake("absent", r"no recipe absent; .*`dcdctl recipes`")
SETTING = Mistake("nonsense=1", r"unknown key nonsense; known keys here: ")
EVALUATION = Mistake("ABSENT", r"(ABSENT.*evaluation|evaluation in ABSENT).*; `dcdctl eval")
IMAGES = Mistake("ABSENT", r"ABSENT does not exist; .*--images")

TEACHER = "--teacher=FUSION"

MISTAKES: dict[str, list[Mistake]] = {
    "--device": [
        Mistake("gpu", r"device gpu .*auto, cpu, cuda.*; try --device cpu"),
        Mistake("cuda:77", r"device cuda:77 .*; try --device cpu"),
    ],
    "--engine": [
        Mistake("spark", r"engine 'spark' is unknown; known are .*processes:N, ray, and ray://HOST:PORT"),
        Mistake("ray://head", r"engine 'ray://head' is unknown; known are .*processes:N, ray, and ray://HOST:PORT"),
        Mistake("processes", r"--engine processes lacks the number of processes; such as processes:4"),
    ],
    "--precision": [Mistake("int9", r"precision .*fp32, bf16, fp16.*int9; .+")],
    "--accumulate": [
        Mistake("0", r"--accumulate: expected auto or a number of at least 1, got '0'", code=2),
        Mistake("many", r"--accumulate: expected auto or a number of at least 1, got 'many'", code=2),
    ],
    "--set": [SETTING, Mistake("nonsense", r"a setting must be KEY=VALUE, got 'nonsense'; write its name")],
    "--model-set": [
        Mistake(
            "image_sise=9",
            r"unknown key model-set\.image_sise; did you mean model-set\.image_size\? known keys here: image_size",
        ),
        Mistake("image_size", r"--model-set \w+ NAME=VALUE, got 'image_size'; for example --model-set image_size=384"),
        Mistake("image_size=0", r"image_size must lie in .*, got 0"),
    ],
    "--rerank-set": [
        Mistake(
            "dtipe=bfloat16",
            r"unknown key rerank-set\.dtipe; did you mean rerank-set\.dtype\? known keys here: image_size",
        ),
        Mistake("dtype", r"--rerank-set \w+ NAME=VALUE, got 'dtype'; for example --rerank-set image_size=384"),
    ],
    "--recipe": [RECIPE],
    "recipe": [RECIPE],
    "--data": [CORPUS],
    "--split": [Mistake("absent", r"split 'absent'.*; .*train, val, test")],
    "--out": [*FOLDER, TAKEN],
    "--features": [FOLDER[1]],
    "--html": PAGE,
    "--to-markdown": [PAGE[1]],
    "--teacher": [MODEL],
    "model": [MODEL],
    "student": [MODEL],
    "checkpoint": [MODEL],
    "--rerank": [MODEL],
    "--query-model": [MODEL],
    "--extend": [CACHE],
    "--cache": [CACHE],
    "--pool": [CORPUS, Mistake("CORPUS", r"CORPUS \(train\) has captions; --data names captioned images and --pool a")],
    "--queries": [Mistake("ABSENT", r"ABSENT is no file of texts, .*; a file of texts is a \.txt", "manifest=UNSET")],
    "--decontaminate": [replace(CORPUS, needs="manifest=UNSET --queries=PAIRS.csv")],
    "--against": [MODEL],
    "--relevance": [
        Mistake("ABSENT", r"ABSENT is no file of relevance by its name; it ends with \.parquet"),
        Mistake("ABSENT.csv", r"ABSENT\.csv cannot be read.*No such file"),
    ],
    "index": [Mistake("ABSENT", r"ABSENT .*; .*dcdctl index")],
    "place": [Mistake("ABSENT", r"ABSENT.*; .*dcdctl prepare.*dcdctl cache-teacher")],
    "--model": [Mistake("RUN", r"INDEX has its model in it; leave --model out")],
    "systems": [EVALUATION],
    "runs": [EVALUATION],
    "--baseline": [EVALUATION],
    "--karpathy": [
        Mistake(
            "ABSENT",
            r"ABSENT cannot be read: No such file or directory; an example of this format",
            "manifest=UNSET --images=PHOTOS",
        )
    ],
    "name": [Mistake("absent", r"absent.*; ")],
    "manifest": [Mistake("absent", r"absent.*; ")],
    "--from": [Mistake("ABSENT", r"ABSENT.*; --from takes a folder")],
    "--source": [Mistake("absent", r"absent.*; ")],
    "--train-split": [Mistake("absent", r"split 'absent'.*; .*train, val, test")],
    "--start": [MODEL, Mistake("FUSION", r"FUSION is a fusion scorer, expected a dual encoder")],
    "--seeds": [
        Mistake("x", r"'x' is not a list of whole numbers, such as 1,8,32", code=2),
        Mistake("1,1", r"--seeds must be different numbers of at least 0, got 1,1; such as 0,1,2"),
    ],
    "--splits": [Mistake("absent", r"split.*absent.*train, val")],
    "--on-error": [Mistake("absent", r"on_error .*stop.*skip.*absent")],
    "--images": [IMAGES],
    "--add": [Mistake("ABSENT", IMAGES.message)],
    "--image": [Mistake("ABSENT", r"ABSENT does not exist", "text=UNSET")],
    "--order": [Mistake("year", r"no column 'year' to order by: the columns are image_id, path; .*", "text=UNSET")],
    "--also": [Mistake(" ", r"the query is empty, it must be a text; for example")],
    "--not": [Mistake("a", r"'a' is both searched for and excluded; leave one of them out", "text=a")],
    "--protocol": [Mistake("absent", r"protocol.*absent.*; .*auto, whole")],
    "--depth": [Mistake("x", r"'x' is not a list of whole numbers", "--rerank=FUSION", code=2)],
    "--push-to-hub": [Mistake("absent", r"--push-to-hub .*absent.*OWNER/NAME")],
    "--allow-host": [Mistake("a b", r"allowed.host.*a b")],
    "--host": [Mistake("192.0.2.1", r"192\.0\.2\.1.*; .*--host")],
    "--where": [
        Mistake(
            "year = 2020",
            r"the condition 'year = 2020' has the unknown column year; .* image_id, path; .*--metadata FILE",
        ),
        Mistake("1 +", r"the condition '1 \+' cannot be read near .*, for example year >= 2020"),
    ],
    "--metadata": [
        Mistake("ABSENT.csv", r"ABSENT\.csv cannot be read: No such file.*; check the path"),
        Mistake("FILE", r"FILE is no table of metadata, .*; a table of metadata is a \.csv or \.parquet file"),
    ],
    "--drop-column": [Mistake("year", r"has no column 'year' to drop; its columns: none")],
}
"""By option or argument, for all commands that have it."""
MEASURED = "--set=validation.every=5"
TAUGHT = "'--set=loss.terms={ kl = 1.0 }'"
KL = "recipe=photos-self"
"""A loss that needs scores, by an override and by a recipe."""
TAKE = "--teacher=a --scores=PAIRS.csv"
"""A cache without a model."""
GIVEN = "--teacher=a --texts=UNSET"
"""Options of a cache of vectors from elsewhere."""
OWN: dict[tuple[str, str], list[Mistake]] = {
    ("index", "model"): [MODEL, Mistake("FUSION", r"FUSION is a fusion scorer.*dual encoder")],
    ("prepare", "--engine"): [
        Mistake("files:tasks", r"prepare writes no tasks; --engine files:DIR is for cache-teacher")
    ],
    ("cache-teacher", "--engine"): [
        Mistake("files:", r"--engine files: lacks the folder of the tasks; such as files:tasks"),
        Mistake("files:tasks?workers=2", r"unknown key --engine\.workers; known keys here: bytes"),
        Mistake("files:tasks?bytes=2", r"--engine\.bytes"),
        Mistake("ray", r"device gpu is unknown", "--device=gpu"),
        # The workers may have a device that this machine lacks.
        Mistake("ray?workers=0", r"--engine\.workers must lie in \[1, 100000\], got 0", "--device=cuda:77"),
        Mistake("ray?gpus=1.5", r"--engine\.gpus must be a share of one GPU or a whole number.*, got 1\.5"),
        Mistake("ray?wrokers=2", r"unknown key --engine\.wrokers; did you mean --engine\.workers\?"),
    ],
    ("cache-teacher", "--teacher"): [
        MODEL,
        Mistake("UNSET", r"--teacher: name the model that scores, or that gave --scores", code=2),
        Mistake("UNSET", r"--teacher: name the model that scores", "--engine=ray", code=2),
    ],
    ("cache-teacher", "--scores"): [
        Mistake(
            "ABSENT.csv", r"ABSENT\.csv does not exist; --scores takes a file, a folder or a pattern in quotes", TAKE
        ),
        Mistake("FILE", r"FILE is no file of scores by its name; a file of scores ends with \.parquet, ", TAKE),
        Mistake("TAKEN", r"TAKEN holds no file of scores; ", TAKE),
        Mistake("PAIRS.csv", r"--engine: is for a model that dcdctl runs", f"{TAKE} --engine=files:TASKS", code=2),
        Mistake(
            "PAIRS.csv", r"--teacher: name the model that scores, or that gave --scores", "--teacher=UNSET", code=2
        ),
        Mistake("PAIRS.csv", r"--teacher must be a line of text, got ' '; name the model", "'--teacher= '"),
    ],
    ("cache-teacher", "--data"): [CORPUS],
    ("cache-texts", "--texts"): [
        Mistake("ABSENT.txt", r"ABSENT\.txt does not exist; --texts takes a file, a folder or a pattern"),
        Mistake("FILE", r"FILE is no file of texts by its name; a file of texts ends with \.txt, \.csv"),
        Mistake("TAKEN", r"no corpus in TAKEN"),
        Mistake("PAIRS.csv", r"FUSION is a fusion scorer, .*; it scores pairs, and has no vectors", "--teacher=FUSION"),
        Mistake("PAIRS.csv", r"--texts: is for a model that dcdctl runs", f"{GIVEN} --vectors=PAIRS.csv", code=2),
        Mistake("UNSET", r"--texts: name the texts, or their vectors with --vectors", code=2),
    ],
    ("cache-texts", "--teacher"): [
        MODEL,
        Mistake("UNSET", r"--teacher: name the model that encodes the texts", code=2),
    ],
    ("cache-texts", "--extend"): [Mistake("ABSENT", r"no text cache in ABSENT.*dcdctl cache-texts`")],
    ("cache-texts", "--split"): [Mistake("val", r"PAIRS\.csv is a file of texts, and has no split 'val'")],
    ("cache-texts", "--vectors"): [
        Mistake("ABSENT.parquet", r"ABSENT\.parquet does not exist; --vectors takes a file", GIVEN),
        Mistake("FILE", r"FILE is no file of texts by its name", GIVEN),
        Mistake("FILE", r"--teacher: name the model .* that gave --vectors", "--teacher=UNSET --texts=UNSET", code=2),
    ],
    ("verify", "--teacher"): [
        replace(MODEL, needs="place=CORPUS --scores=3"),
        Mistake("FUSION", r"--teacher: is for scores that are computed again: add --scores N", code=2),
        Mistake("UNSET", r"--teacher: name the model that gave the scores", "--scores=3", code=2),
    ],
    **{
        ("verify", name): [Mistake("a", rf"{name}: is for scores that are computed again: add --scores N", code=2)]
        for name in ("--data", "--features", "--model-set")
    },
    ("verify", "--device"): [
        *MISTAKES["--device"],
        Mistake("cpu", r"--device: is for scores that are computed again: add --scores N", code=2),
    ],
    ("work", "files"): [
        Mistake("ABSENT.parquet", r"ABSENT\.parquet does not exist; FILE takes a file, a folder or a pattern"),
        Mistake("FILE", r"FILE is no task by its name; a task ends with \.parquet"),
        Mistake("TAKEN", r"TAKEN holds no task; "),
        Mistake("LIST.parquet", r"LIST\.parquet is no task; name the files tasks-\*\.parquet"),
    ],
    ("work", "--model"): [MODEL],
    ("photos", "images"): [Mistake("ABSENT", r"ABSENT .*; .*")],
    ("photos", "captions"): [Mistake("ABSENT.csv", r"ABSENT\.csv cannot be read: No such file.*; check the path")],
    ("photos", "--model"): [replace(MODEL, needs="captions=UNSET")],
    ("photos", "--queries"): [
        Mistake("ABSENT", r"ABSENT is no file of texts, .*; a file of texts is a \.txt", f"captions=UNSET {TEACHER}"),
        Mistake("PHOTOS", r"PHOTOS is a folder, and not a file of texts", f"captions=UNSET {TEACHER}"),
    ],
    ("photos", "--teacher"): [replace(MODEL, needs="captions=UNSET --queries=PAIRS.csv")],
    ("photos", "--out"): [*FOLDER, TAKEN],
    ("prepare", "--csv"): [
        Mistake(
            "ABSENT.csv",
            r"ABSENT\.csv cannot be read: No such file.*; check the path",
            "manifest=UNSET --images=PHOTOS",
        )
    ],
    ("prepare", "--jsonl"): [
        Mistake("ABSENT", r"ABSENT cannot be read: No such file.*; check the path", "manifest=UNSET --images=PHOTOS")
    ],
    ("prepare", "--hold-out"): [
        Mistake(
            "0.5",
            r"hold_out must lie in \[0, 0\.3\], got 0\.5",
            "manifest=UNSET --csv=PAIRS.csv --images=PHOTOS",
        )
    ],
    ("prepare", "--images"): [Mistake("ABSENT", r"ABSENT .*; .*", "manifest=UNSET --csv=PAIRS.csv")],
    ("inspect", "--data"): [Mistake("ABSENT", CORPUS.message, "place=CACHE")],
    ("verify", "place"): [
        Mistake("ABSENT", r"ABSENT is not there, a folder is expected; name a folder of artifacts"),
        Mistake("FILE", r"FILE is a file, a folder is expected; name a folder of artifacts"),
        Mistake("TAKEN", r"TAKEN holds no artifact of dcdctl; name a corpus"),
    ],
    ("compare", "--data"): [Mistake("ABSENT", CORPUS.message, "--html=NEW.html")],
    ("report", "--out"): PAGE,
    ("report", "--csv"): [PAGE[1]],
    ("report", "--teacher-eval"): [EVALUATION],
    ("eval", "--out"): FOLDER,
    ("distill", "--data"): [
        CORPUS,
        Mistake("ABSENT-{0..3}.tar", r"ABSENT-0\.tar cannot be read: No such file or directory; check the path"),
        Mistake("ABSENT-*.tar", r"no file matches ABSENT-\*\.tar; check the pattern, and quote it for the shell"),
        Mistake("bird://host/a.tar", r"the protocol bird:// is unknown; known are s3://"),
        Mistake(
            "a.tar",
            r"validation\.every is set, and a stream has no split.*; name a corpus with --validation-data",
            MEASURED,
        ),
        Mistake("a.tar", r"loss kl needs the teacher's scores", f"{TAUGHT} --teacher=UNSET"),
    ],
    ("distill", "--validation-data"): [replace(CORPUS, needs=MEASURED)],
    ("finetune-teacher", "--validation-data"): [replace(CORPUS, needs=MEASURED)],
    ("distill", "--teacher"): [
        MODEL,
        Mistake(
            "DUAL",
            r"DUAL has no fusion layers to start from, and loss infonce learns from no teacher; leave --teacher out",
        ),
        Mistake("DUAL", r"--cache and --teacher DUAL both give scores; leave one out", f"{TAUGHT} --cache=CACHE"),
        Mistake(
            "DUAL",
            r"starts from its teacher, and DUAL has no fusion layers; name a fusion scorer",
            "recipe=tiny-student",
        ),
        Mistake(
            "FUSION",
            r"loss kl needs the teacher's scores; .*`dcdctl cache-teacher`.*with --teacher a dual encoder or a late",
            TAUGHT,
        ),
        Mistake(
            "DUAL",
            r"candidates\.relative_margin is for .* cache.*; leave it out",
            f"{KL} --set=candidates.relative_margin=0.1",
        ),
    ],
    ("eval", "--dims"): [
        Mistake("8,16", r"--dims.* valid integer", code=2),
    ],
    ("eval", "--codes"): [
        Mistake("int4", r"vectors\.kind must be one of float32, int8, binary, got 'int4'"),
        Mistake("float32", r"--rescore 5 .* --codes is float32; add --codes int8", "--rescore=5"),
        Mistake("int8", r"--vector-table measures all kinds.*; leave all options", "--vector-table="),
    ],
    ("export", "--to"): [Mistake("absent", r"--to .*absent.*transformers, sentence-transformers, open-clip, onnx")],
    ("upload", "url"): [Mistake("absent", r"'absent' is not the URL of a store; write postgresql://.* or lancedb:")],
    ("index", "--vectors"): [
        Mistake(
            "absent.parquet", r"absent.parquet does not exist; --vectors takes a file, a folder or a pattern in quotes"
        ),
        Mistake("FILE", r"FILE is no file of vectors by its name; "),
    ],
    ("sync", "--vectors"): [
        Mistake("FILE", r"--vectors: is for images to add: name them with --add DIR", code=2),
        Mistake("FILE", r"FILE is no file of vectors by its name; ", "--add=PHOTOS"),
    ],
    ("study", "--depth"): [],
    ("search", "--depth"): [],
    ("serve", "--depth"): [],
    ("index", "--split"): [Mistake("absent", r"split 'absent'.*; .*train, val, test", "--images=CORPUS")],
    ("sync", "--split"): [Mistake("absent", r"split 'absent'.*; .*train, val, test", "--add=CORPUS")],
    ("recipes", "name"): [RECIPE],
    ("export", "--out"): [
        Mistake("FILE", r"FILE is a file, a new folder is expected; name another folder"),
        FOLDER[1],
        Mistake("TAKEN", r"TAKEN is not empty, a new folder is expected; name another folder"),
    ],
}
"""The same where an option of a command differs."""


@pytest.fixture(scope="module")
def stage(scenes_corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that a command reads. Models have a configuration and no weights that load."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "CORPUS").symlink_to(scenes_corpus_dir)
    write_run(folder / "DUAL", "demo-dual")
    for name, kind in (("FUSION", "vilt"), ("DUAL", "vision-text-dual-encoder"), ("INDEX", "vision-text-dual-encoder")):
        (folder / name / "model").mkdir(parents=True)
        (folder / name / "model" / "config.json").write_text(json.dumps({"model_type": kind}))
    finish_run(folder / "DUAL")
    write_index(folder / "INDEX", [unit_vectors(4)])
    corpus = Corpus.open(scenes_corpus_dir, "test")
    for seed, name in enumerate(["EVALUATION", "EVALUATION2"]):
        write_evaluation(folder / name, corpus, scores_of(corpus, 3, seed))
    (folder / "PAIRS.csv").write_text("image,caption\na.png,a dog\n")
    (folder / "PHOTOS").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "PHOTOS" / "a.png")
    (folder / "TAKEN").mkdir()
    (folder / "TAKEN" / "letter.txt").write_text("dear")
    (folder / "FILE").write_text("dear")
    rows = pa.table({name: ["1"] for name in ("image_id", "path", "model_digest")})
    pq.write_table(rows, folder / "LIST.parquet")
    job = {"work": "scores", "model": "FUSION", "overrides": {}, "digest": "1", "precision": "float32"}
    write_table(folder / "TASKS.parquet", rows, {"format": 1, "job": {**job, "batch_size": None}})
    (folder / "CACHE").mkdir()
    (folder / "CACHE" / "cache.json").write_text("{}")
    return folder


NOTHING_TO_CHECK = {"text", "--license", "--moved", "--remove", "--wandb"}
"""Options that take any text, or are tried in a file of their own. Numbers are compared with their limits by Typer."""
PACKAGES = [
    ("cache-teacher", "--set=candidates.kind=lexical", "bm25s", "mine"),
    ("finetune-teacher", "--wandb=project", "wandb", "wandb"),
    ("distill", "--wandb=project", "wandb", "wandb"),
    ("eval", "--eccv=", "eccv_caption", "eccv"),
    ("cache-teacher", "--engine=ray", "ray", "ray"),
    ("export", "--to=onnx", "onnxruntime", "onnx"),
    ("export", "--to=sentence-transformers", "sentence_transformers", "sentence-transformers"),
    ("index", "--set=flat_up_to=0", "faiss", "index"),
    ("index", "--set=keywords=true", "bm25s", "hybrid"),
    ("serve", "", "uvicorn", "serve"),
]
"""Options that need a package, which a command must miss before it opens weights, and the extra that it must name."""


def values(*lines: str) -> dict[str, str]:
    """Values by name; later ones replace earlier ones."""
    return dict(word.split("=", 1) for line in lines for word in shlex.split(line))


def run(command: str, words: dict[str, str], stage: Path, code: int | None = 1) -> Any:
    """The result of a command: positional arguments first, capital words as paths of the stage."""

    def shown(value: str) -> str:
        return str(stage / value) if re.match(r"[A-Z]+\b", value) else value

    given = {name: value for name, value in words.items() if value != UNSET}
    places = [shown(value) for name, value in given.items() if not name.startswith("-")]
    flags = [[name, shown(value)] if value else [name] for name, value in given.items() if name.startswith("-")]
    more = [str(stage / "EVALUATION2")] if command == "compare" else []
    line = [*places, *(word for flag in flags for word in flag), *more]
    return command_line.run(command, *line, code=code, catch_exceptions=code is None)


def option_names(command: str) -> list[str]:
    """The options and arguments of a command that take a value."""
    return [
        next(iter(one.opts), one.name) for one in TREE.commands[command].params if not getattr(one, "is_flag", False)
    ]


def cases() -> Iterator[Any]:
    for command in VALID:
        for option in option_names(command):
            for mistake in OWN.get((command, option), MISTAKES.get(option, [])):
                yield pytest.param(command, option, mistake, id=f"{command} {option} {mistake.value}")


@pytest.mark.parametrize(("command", "option", "mistake"), list(cases()))
def test_a_mistake_is_one_line_before_weights_are_opened(command, option, mistake, stage):
    words = {**values(VALID[command], mistake.needs), option: mistake.value}
    result = run(command, words, stage, mistake.code)
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1].replace(f"{stage}/", "")
    assert re.search(mistake.message, last), last
    if mistake.code == 1:
        assert len(result.stderr.splitlines()) == 1
        assert last.startswith("error: ")


@pytest.mark.parametrize("command", VALID)
def test_every_option_is_in_the_table_of_mistakes(command):
    ranges = {name for one in TREE.commands[command].params if one.min is not None for name in one.opts}
    assert set(option_names(command)) - ranges <= {
        *MISTAKES,
        *(option for name, option in OWN if name == command),
        *NOTHING_TO_CHECK,
    }


def test_every_command_is_in_the_table():
    assert set(VALID) == set(TREE.commands)


@pytest.mark.parametrize(("command", "words", "module", "extra"), PACKAGES)
def test_a_missing_package_is_named_with_its_extra_before_weights_are_opened(
    command, words, module, extra, stage, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    error = run(command, values(VALID[command], words), stage).stderr
    assert re.search(rf"needs .*{module.replace('_', '-')}.*not installed; {re.escape(install_command(extra))}", error)
    assert error.count("\n") == 1
