"""Relevance and clicks as a teacher: scores by ids or by texts, of captioned images and of pools."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from task_work import plan, rows_of, tasks_of
from tiny import contents, make_corpus, make_pool

from dcdctl.core.data import Corpus
from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.integrity import verify
from dcdctl.core.teacher import CacheJob, CandidateConfig, TeacherCache, build, take_scores

TEXTS = [[f"a {word} of thing {image}" for word in ("view", "photo")[: 1 + image % 2]] for image in range(8)]
CONFIG = CandidateConfig(per_query=3)
FORM = "log(1 + clicks)"


@pytest.fixture(scope="module", autouse=True)
def _sharded():
    """Small shards, so that a tiny corpus has two of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "IMAGES_PER_SHARD", 5)
        yield


@pytest.fixture(scope="module", params=["captions", "pool"])
def corpus(request, tmp_path_factory) -> Corpus:
    make = make_corpus if request.param == "captions" else make_pool
    return make(tmp_path_factory.mktemp(request.param) / "data", TEXTS)


@pytest.fixture
def job(corpus, tmp_path) -> CacheJob:
    return CacheJob(data=corpus.folder, out=tmp_path / "cache", candidates=CONFIG)


def work_of(job: CacheJob) -> pd.DataFrame:
    """The rows of the tasks without images, as a program reads them."""
    plan(job, with_bytes=False)
    return pd.read_parquet(tasks_of(job))


def graded(job: CacheJob, **columns: object) -> pd.DataFrame:
    """A row per planned pair with image_id, caption_id and these columns."""
    return work_of(job)[["image_id", "caption_id"]].assign(**columns)


def take(job: CacheJob, *tables: pd.DataFrame, suffix: str = "csv", name: str = "judges") -> TeacherCache:
    paths = [job.out.parent / f"{number}.{suffix}" for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        if suffix == "csv":
            table.to_csv(path, index=False)
        elif suffix == "jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            table.to_parquet(path)
    return take_scores(job, [str(path) for path in paths], name)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_clicks_become_log_1_plus_clicks_and_the_plan_says_so(job, suffix):
    table = graded(job)
    clicks = np.resize([0, 1, 9, 3], len(table))
    cache = take(job, table.assign(clicks=clicks), suffix=suffix)
    expected = np.resize([0, math.log(2), math.log(10), math.log(4)], len(table)).astype(np.float32)
    assert cache.score_P.tolist() == expected.tolist()
    assert (cache.plan["scores_from"], cache.teacher_name) == (FORM, "judges")
    assert list(verify(job.out).problems) == []


def test_relevance_is_a_score_as_it_is(job, tmp_path):
    grades = np.resize([3.0, 0.0, 1.5], len(graded(job)))
    other = CacheJob(data=job.data, out=tmp_path / "plain", candidates=CONFIG)
    relevance, plain = take(job, graded(job, relevance=grades)), take(other, graded(other, score=grades))
    assert relevance.score_P.tolist() == plain.score_P.tolist() == grades.tolist()
    assert relevance.plan["scores_sha256"] == plain.plan["scores_sha256"]
    assert relevance.plan["scores_from"] == "relevance"
    assert "scores_from" not in plain.plan


def test_a_log_of_clicks_joined_with_the_tasks_is_a_cache(corpus, job):
    """As docs/scaling.md shows it: by texts, and pairs without a click have 0."""
    work = work_of(job)
    clicks = work[["image_id", "caption"]].iloc[::3].assign(clicks=5)
    never_planned = pd.DataFrame([{"image_id": "absent", "caption": "words", "clicks": 2}])
    joined = work.merge(pd.concat([clicks, never_planned]), how="left", on=["image_id", "caption"])
    cache = take(job, joined.fillna({"clicks": 0}))
    expected = np.zeros(len(work), np.float32)
    expected[::3] = np.float32(math.log(6))
    assert cache.score_P.tolist() == expected.tolist()


def test_a_caption_may_be_named_by_its_text(corpus, job, tmp_path):
    grades = np.arange(len(work_of(job))) / 8
    cache = take(job, work_of(job)[["image_id", "caption"]].assign(relevance=grades).sample(frac=1, random_state=0))
    assert cache.score_P.tolist() == grades.tolist()
    other = CacheJob(data=job.data, out=tmp_path / "other", candidates=CONFIG)
    with pytest.raises(InputError, match=r"1 rows of unknown captions \(image 'i\d' with caption nobody: 2"):
        take(other, work_of(other)[["image_id", "caption"]].iloc[:1].assign(caption="nobody", relevance=2))


def test_a_text_of_several_captions_names_none_of_them(tmp_path):
    corpus = make_corpus(tmp_path / "data", [["a dog"], ["a cat"], ["a dog"], ["a bird"], ["a cow"]])
    job = CacheJob(data=corpus.folder, out=tmp_path / "cache", candidates=CandidateConfig(per_query=2))
    table = work_of(job)[["image_id", "caption"]].assign(clicks=1)
    with pytest.raises(MissingError, match=r"pairs in .* have no score yet"):
        take(job, table[table.caption != "a dog"])
    with pytest.raises(InputError, match=r"several captions with the text 'a dog' in split train; keep the columns"):
        take(job, table)


def test_clicks_in_parts_give_the_cache_of_all_at_once(job, tmp_path):
    table = graded(job)
    table["clicks"] = np.arange(len(table)) % 7
    half = len(table) // 2
    whole = CacheJob(data=job.data, out=tmp_path / "whole", candidates=CONFIG)
    with pytest.raises(MissingError):
        take(job, table[:half])
    with pytest.raises(StaleError, match=r"has scores from log\(1 \+ clicks\), not from relevance; name another"):
        take(job, table[half:].rename(columns={"clicks": "relevance"}))
    with pytest.raises(StaleError, match=r"has scores from log\(1 \+ clicks\), not from score"):
        take(job, table[half:].rename(columns={"clicks": "score"}))
    take(job, table[half:])
    work_of(whole)
    take(whole, table)
    for name in ("pairs-00000.parquet", "pairs-00001.parquet", "plan.json"):
        assert contents(job.out)[name] == contents(whole.out)[name]
    more = CacheJob(data=job.data, out=tmp_path / "more", candidates=CandidateConfig(per_query=5), extend=job.out)
    rest = graded(more)
    with pytest.raises(StaleError, match=r"more, which extends .*cache, has scores from log\(1 \+ clicks\), not from"):
        take(more, rest.assign(relevance=1))
    assert take(more, rest.assign(clicks=1)).plan["scores_from"] == FORM


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"clicks": -1}, r"scores that are not finite \(image '.*: -1.0 in 0\.csv"),
        ({"clicks": -0.5}, r"scores that are not finite"),
        ({"clicks": np.nan}, r"scores that are not finite"),
        ({"clicks": np.inf}, r"scores that are not finite"),
        ({"relevance": np.nan}, r"scores that are not finite"),
        ({"clicks": "many"}, r"0\.csv cannot be read as scores: .*'many'"),
        ({"clicks": 1, "score": 2}, r"0\.csv has columns score and clicks, expected one of them"),
        ({"grade": 1}, r"0\.csv has no column score \(it has image_id, caption_id, grade\); .* relevance, or clicks"),
    ],
)
def test_bad_grades_are_errors_and_nothing_is_stored(job, columns, message):
    table = graded(job)
    before = contents(job.out)
    with pytest.raises(InputError, match=message):
        take(job, table.assign(**columns))
    assert contents(job.out) == before


def test_files_of_two_kinds_are_not_mixed(job):
    table = graded(job)
    with pytest.raises(InputError, match=r"1\.csv gives relevance, and a file before it clicks; make a cache of each"):
        take(job, table[:5].assign(clicks=1), table[5:].assign(relevance=1))


def test_texts_without_ids_and_images_without_names_are_told_apart(job):
    table = work_of(job)[["caption"]].assign(clicks=1)
    with pytest.raises(InputError, match=r"0\.csv has no column image_id"):
        take(job, table)
    with pytest.raises(InputError, match=r"0\.csv has no column caption_id"):
        take(job, graded(job, clicks=1).drop(columns="caption_id"))
    assert not list(Path(job.out).glob("pairs-*"))
    assert rows_of(job).column_names[:2] == ["image_id", "caption_id"]
