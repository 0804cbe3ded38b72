"""Caches of the vectors of texts: those of the teacher, the same bytes however made, and refused when stale."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from functools import partial

import families
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forks import run_forked
from tiny import contents, make_corpus, make_pool, make_teacher, make_wide_dual

from dcdctl.core import models
from dcdctl.core.artifacts import Build
from dcdctl.core.data import PrepareJob, choose_manifest, prepare_corpus, text_encoding
from dcdctl.core.devices import CPU
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import DcdError, InputError, MissingError, ModelError, StaleError
from dcdctl.core.integrity import verify
from dcdctl.core.teacher import TextCacheJob, cache_texts, read_cache, read_text_cache, text_cache, verify_texts

TEXTS = [f"{'a ' * (-2 * number % 5)}dog number {number}" for number in range(23)]
"""Their order is not that of their lengths."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dual encoder, a late-interaction model and a file of texts."""
    folder = tmp_path_factory.mktemp("texts")
    dual = make_wide_dual(TEXTS)
    models.save(dual, folder / "dual")
    models.save(families.late(dual, is_pooled=False), folder / "late")
    (folder / "a.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(text_cache, "TEXTS_PER_PART", 5)
    monkeypatch.setattr(text_cache, "BATCH_SIZE", 3)


def make(folder, out, *places, teacher="dual", **more):
    return cache_texts(
        TextCacheJob(out=out, texts=[str(place) for place in places], teacher=str(folder / teacher), **more)
    )


def columns_of(cache):
    """The texts, their languages and their vectors."""
    rows = [row for part in range(len(cache.part_sizes)) for row in cache.part(part)]
    return [list(column) for column in zip(*rows, strict=True)]


def texts_of(cache):
    return columns_of(cache)[0]


def test_vectors_are_those_of_embed_texts(folder, tmp_path):
    dual = models.load_dual(folder / "dual")
    cache = make(folder, tmp_path / "q", folder / "a.txt")
    with torch.no_grad():
        expected = dual.embed_texts(dual.preprocess.texts(TEXTS)).half().numpy()
    np.testing.assert_allclose(columns_of(cache)[2], expected, atol=1e-3)
    assert texts_of(cache) == TEXTS
    assert (cache.part_sizes, cache.num_texts, cache.plan["max_text_len"]) == ([5, 5, 5, 5, 3], 23, 12)
    assert cache.space == models.QuerySpace(
        kind="dual", dim=8, logit_scale=dual.logit_scale.item(), teacher=dual.digest
    )
    assert verify(tmp_path / "q").is_well


@pytest.mark.parametrize("bias", [0.0, -10.0])
def test_the_bias_of_logits_is_in_the_plan(folder, tmp_path, monkeypatch, bias):
    dual = type(models.load_dual(folder / "dual"))
    monkeypatch.setattr(dual, "logit_bias", property(lambda model: torch.tensor(bias)))
    assert make(folder, tmp_path / "q", folder / "a.txt").space.logit_bias == bias


def test_a_late_teacher_gives_its_tokens_and_their_counts(folder, tmp_path):
    late = models.load_searchable(folder / "late")
    cache = make(folder, tmp_path / "q", folder / "a.txt", teacher="late")
    texts, _, vectors = columns_of(cache)
    with torch.no_grad():
        states = late.encode_texts(late.preprocess.texts(texts))
    assert list(map(len, vectors)) == states.mask.sum(dim=1).tolist()
    np.testing.assert_allclose(np.concatenate(vectors), states.tokens[states.mask].half().numpy(), atol=1e-3)
    assert (len(texts), cache.space.kind, cache.space.dim) == (23, "late", late.token_dim)
    assert verify_texts(tmp_path / "q", models.load(folder / "late"), 9, compute=ON_CPU) < 1e-3


def test_equal_texts_are_kept_once_with_the_first_language(folder, tmp_path, bucket, monkeypatch):
    rows = [("A dog.", "en"), ("ein Hund", "de"), ("a  DOG", "fr"), ("un chien", None)]
    with (tmp_path / "a.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text, "language": language}) + "\n" for text, language in rows)
    (tmp_path / "b.csv").write_text("language,query\nde,Ein Hund\nde,eine Katze\n,a cat\n")
    (tmp_path / "c.tsv").write_text("caption\tx\na bird\t1\n")
    pq.write_table(
        pa.table({"text": ["a fish"], "language": pa.array(["en"]).dictionary_encode()}), tmp_path / "d.parquet"
    )
    names = ("a.jsonl", "b.csv", "c.tsv", "d.parquet")
    cache = make(folder, tmp_path / "q", *(tmp_path / name for name in names))
    assert texts_of(cache) == ["A dog.", "ein Hund", "un chien", "eine Katze", "a cat", "a bird", "a fish"]
    assert columns_of(cache)[1] == ["en", "de", None, "de", None, None, "en"]
    assert cache.plan["languages"] == {"de": 2, "en": 2}
    monkeypatch.setenv("DCDCTL_CACHE", str(tmp_path / "downloads"))
    for name in names:
        bucket.put(name, (tmp_path / name).read_bytes())
    remote = make(folder, tmp_path / "r", *map(bucket.url, names))
    assert (remote.fingerprint, contents(remote.folder)) == (cache.fingerprint, contents(cache.folder))


def test_the_captions_of_a_corpus_and_the_texts_of_a_pool(folder, tmp_path):
    captions = [["a dog", "A dog!"], ["a cat"], ["two birds", "a dog"]]
    corpus = make_corpus(tmp_path / "corpus", captions)
    cache = make(folder, tmp_path / "q", corpus.folder)
    assert texts_of(cache) == ["a dog", "a cat", "two birds"]
    rows = [{"query": "a dog", "language": "en"}, {"query": "ein Hund", "language": "de"}, {"query": "x"}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = choose_manifest(PrepareJob(queries=[tmp_path / "log.jsonl"], out=tmp_path / "log"))
    prepare_corpus(manifest, tmp_path / "log")
    spoken = columns_of(make(folder, tmp_path / "spoken", tmp_path / "log"))
    assert spoken[:2] == [["a dog", "ein Hund", "x"], ["en", "de", None]]
    pool = make_pool(tmp_path / "pool", captions)
    assert texts_of(make(folder, tmp_path / "p", pool.folder)) == list(
        {text.strip("!").lower(): 0 for text in pool.captions}
    )


SCRIPT = """
import sys
from pathlib import Path
from kills import kill_often
from dcdctl.core.teacher import TextCacheJob, cache_texts, text_cache

text_cache.TEXTS_PER_PART, text_cache.BATCH_SIZE = 5, 3

def work(out):
    cache_texts(TextCacheJob(out=out, texts=[f"{sys.argv[1]}/a.txt"], teacher=f"{sys.argv[1]}/dual"))

kill_often(work, Path(sys.argv[2]), Path(sys.argv[3]), num_kills=4)
"""


def test_a_build_killed_repeatedly_resumes_to_the_same_bytes(folder, tmp_path):
    run_forked(SCRIPT, folder, tmp_path / "whole", tmp_path / "killed")
    assert sorted(contents(tmp_path / "whole")) == [
        "plan.json",
        *(f"texts-0000{part}.parquet" for part in range(5)),
        "texts.json",
    ]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["texts-planned-00001.parquet", "texts-00001.parquet"])
def test_a_part_that_was_damaged_after_a_kill_is_noticed_when_the_build_resumes(folder, tmp_path, monkeypatch, name):
    whole = contents(make(folder, tmp_path / "whole", folder / "a.txt").folder)
    encode, encoded = text_cache._TextWorker._encode, []

    def killed_at_the_third_part(worker, batches, advance):
        encoded.append(batches)
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return encode(worker, batches, advance)

    with monkeypatch.context() as patch:
        patch.setattr(text_cache._TextWorker, "_encode", killed_at_the_third_part)
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path / "q", folder / "a.txt")
    if "planned" in name:
        # A finished part hides its plan, which a resumed build reads again only without it.
        (tmp_path / "q" / "texts-00001.parquet").unlink()
    damaged = bytearray((tmp_path / "q" / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "q" / name).write_bytes(damaged)
    if "planned" in name:
        with pytest.raises(StaleError, match=rf"{name} is damaged"):
            make(folder, tmp_path / "q", folder / "a.txt")
    else:
        assert contents(make(folder, tmp_path / "q", folder / "a.txt").folder) == whole


def test_an_extended_cache_encodes_only_new_texts(folder, tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("text,language\n" + "".join(f"{text},en\n" for text in TEXTS))
    old = make(folder, tmp_path / "old", tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("text,language\nDOG number 0,en\neine Katze,de\n")
    encoded, start = [], text_cache._TextWorker.start

    def noted(worker, batches):
        encoded.extend(text for batch in batches for text in batch)
        return start(worker, batches)

    monkeypatch.setattr(text_cache._TextWorker, "start", noted)
    cache = make(folder, tmp_path / "q", folder / "a.txt", tmp_path / "b.csv", extend=tmp_path / "old")
    assert encoded == ["eine Katze"]
    assert texts_of(cache) == [*TEXTS, "eine Katze"]
    assert (cache.plan["extends"], cache.plan["languages"]) == (old.fingerprint, {"de": 1, "en": len(TEXTS)})
    assert cache.fingerprint != old.fingerprint
    # Again: nothing is left to do.
    assert (
        make(folder, tmp_path / "q", folder / "a.txt", tmp_path / "b.csv", extend=tmp_path / "old").seal == cache.seal
    )
    assert encoded == ["eine Katze"]


def test_another_teacher_setting_or_file_is_refused(folder, tmp_path):
    shutil.copy(folder / "a.txt", tmp_path / "a.txt")
    make(folder, tmp_path / "q", tmp_path / "a.txt")
    other = make_wide_dual([*TEXTS, "unlike words"])
    models.save(other, tmp_path / "other")
    with pytest.raises(StaleError, match=r"made with another space\.teacher"):
        make(tmp_path, tmp_path / "q", tmp_path / "a.txt", teacher="other")
    with pytest.raises(StaleError, match=r"made with another space\.teacher.*; extend a cache of this teacher"):
        make(tmp_path, tmp_path / "new", tmp_path / "a.txt", teacher="other", extend=tmp_path / "q")
    with pytest.raises(StaleError, match=r"made with another space\.teacher"):
        verify_texts(tmp_path / "q", models.load_dual(tmp_path / "other"), 3, compute=ON_CPU)
    (tmp_path / "a.txt").write_text("a cat\n")
    with pytest.raises(StaleError, match="made with another sources"):
        make(folder, tmp_path / "q", tmp_path / "a.txt")


def test_the_prompt_and_the_length_of_texts_are_in_the_fingerprint(folder, tmp_path, monkeypatch):
    make(folder, tmp_path / "q", folder / "a.txt")
    shorter = models.load_dual(folder / "dual")
    shorter.preprocess = type(shorter.preprocess)(**{**vars(shorter.preprocess), "max_text_len": 6})
    models.save(shorter, tmp_path / "dual")
    with pytest.raises(StaleError, match=r"another max_text_len \(12, not 6\)"):
        make(tmp_path, tmp_path / "q", folder / "a.txt")


def test_a_cache_of_another_precision_is_refused(folder, tmp_path):
    make(folder, tmp_path / "q", folder / "a.txt")
    half = Compute(device=CPU, precision="bfloat16")
    with pytest.raises(StaleError, match=r"made with another precision \(float32, not bfloat16\)"):
        make(folder, tmp_path / "q", folder / "a.txt", precision="bf16")
    with pytest.raises(StaleError, match=r"another precision"):
        verify_texts(tmp_path / "q", models.load_dual(folder / "dual"), 3, compute=half)


@pytest.mark.parametrize(
    ("count", "of_parts"), [(1, [1]), (4, [1, 1, 1, 1]), (7, [2, 2, 1, 1, 1]), (20, [4, 4, 4, 4, 3])]
)
def test_verify_spreads_the_texts_that_it_compares_over_the_parts(folder, tmp_path, monkeypatch, count, of_parts):
    make(folder, tmp_path / "q", folder / "a.txt")
    compared, encode = [], text_cache._encode
    monkeypatch.setattr(
        text_cache, "_encode", lambda model, texts, *more: compared.append(texts) or encode(model, texts, *more)
    )
    verify_texts(tmp_path / "q", models.load_dual(folder / "dual"), count, compute=ON_CPU)
    assert compared == [TEXTS[5 * part :][:number] for part, number in enumerate(of_parts)]


def test_verify_computes_vectors_again_and_finds_wrong_ones(folder, tmp_path):
    cache = make(folder, tmp_path / "q", folder / "a.txt")
    again = partial(verify_texts, tmp_path / "q", models.load_dual(folder / "dual"), 7, compute=ON_CPU)
    assert again() < 1e-3
    name = "texts-00001.parquet"
    table = pq.read_table(tmp_path / "q" / name)
    half = pa.FixedSizeListArray.from_arrays(pa.array(-np.stack(columns_of(cache)[2])[:5].reshape(-1)), 8)
    build = Build(tmp_path / "q", cache.plan, text_cache.TEXTS)
    pq.write_table(table.set_column(2, "vectors", half), tmp_path / "q" / name)
    with pytest.raises(StaleError, match="is damaged"):
        again()
    listed = text_cache.artifacts.list_files(tmp_path / "q", cache.seal["files"])
    build.seal({**cache.seal, "files": listed}, list(listed))
    with pytest.raises(StaleError, match=r"vectors differ by [0-9.]+ when they are computed again"):
        again()


def given(path, vectors, texts, **more):
    pq.write_table(pa.table({"text": texts, "vector": vectors, **more}), path)
    return TextCacheJob(out=path.parent / "q", vectors=[str(path)], teacher="a large model")


def test_vectors_from_elsewhere_become_unit_vectors(tmp_path):
    vectors = pa.array([[3.0, 4.0], [1e30, 0.0], [0.0, -2.0]], pa.list_(pa.float32()))
    cache = cache_texts(given(tmp_path / "v.parquet", vectors, ["a", "b", "A"], language=["de", None, "en"]))
    texts, languages, vectors = columns_of(cache)
    assert (texts, languages) == (["a", "b"], ["de", None])
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [1, 0]], atol=1e-3)
    # Such vectors have no scale: their products are their cosines.
    assert cache.space == models.QuerySpace(kind="dual", dim=2, logit_scale=1.0, teacher_name="a large model")
    pq.write_table(pa.table({"vector": vectors}), tmp_path / "w.parquet")
    with pytest.raises(InputError, match=r"has no column query, caption, text"):
        cache_texts(TextCacheJob(out=tmp_path / "n", vectors=[str(tmp_path / "w.parquet")], teacher="x"))


def test_equal_texts_with_unlike_vectors_are_refused_and_both_rows_named(tmp_path):
    texts = ["a dog", "a cat", "a dog", "A dog."]
    like = [[1.0, 2.0], [0.0, 1.0], [2.001, 4.0], [-1.0, 0.5]]  # the last text is another one of the same words
    cache = cache_texts(given(tmp_path / "v.parquet", like, texts))
    assert texts_of(cache) == ["a dog", "a cat"]
    unlike = given(tmp_path / "w.parquet", [[0.0, 3.0], [2.0, 1.0]], ["a cat", "a dog"])
    both = [str(tmp_path / "v.parquet"), *unlike.vectors]
    message = r"w\.parquet row 1 has another vector than its text in {}; keep one"
    with pytest.raises(InputError, match=message.format(r"v\.parquet row 0")):
        cache_texts(TextCacheJob(out=tmp_path / "n", vectors=both, teacher="a large model"))
    extended = TextCacheJob(out=tmp_path / "e", vectors=unlike.vectors, teacher="a large model", extend=tmp_path / "q")
    with pytest.raises(InputError, match=message.format(r"\S+/q")):
        cache_texts(extended)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_a_line_that_fills_a_disk_is_not_read_into_memory(folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(text_encoding, "_LONGEST_LINE", 2**21)
    with (tmp_path / name).open("wb") as file:
        file.write(b"text\n" if name == "a.csv" else b"")
        file.truncate(2**25)
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"{name} line [12]"):
        make(folder, tmp_path / "q", tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_teacher_without_text_vectors_is_refused(folder, tmp_path):
    models.save(make_teacher(TEXTS), tmp_path / "fusion")
    with pytest.raises(ModelError, match=r"is a fusion scorer, expected .*; it scores pairs, and has no vectors"):
        make(tmp_path, tmp_path / "q", folder / "a.txt", teacher="fusion")
    pooled = families.late(families.FAMILIES["dual"](TEXTS, tmp_path))
    models.save(pooled, tmp_path / "pooled")
    with pytest.raises(ModelError, match=r"add the cosine of whole vectors to MaxSim.*; train the teacher with"):
        make(tmp_path, tmp_path / "q", folder / "a.txt", teacher="pooled")


def test_a_missing_or_damaged_cache_says_what_to_do(folder, tmp_path):
    with pytest.raises(MissingError, match=r"no text cache in .*; make one with `dcdctl cache-texts`"):
        read_text_cache(tmp_path)
    cache = make(folder, tmp_path / "q", folder / "a.txt")
    with pytest.raises(
        MissingError, match="q is a text cache, a teacher cache is expected; give it to --cache of a query"
    ):
        read_cache(tmp_path / "q")
    path = tmp_path / "q" / "texts-00002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert [text for text, *_ in cache.part(1)] == TEXTS[5:10]
    with pytest.raises(DcdError, match=r"texts-00002\.parquet is damaged"):
        cache.part(2)
    assert "texts-00002.parquet" in "".join(verify(tmp_path / "q").problems)
