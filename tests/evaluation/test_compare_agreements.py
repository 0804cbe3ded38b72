"""`dcdctl compare` of agreements with a teacher: numbers by hand and by all draws; what is read and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from command_line import document_of, error_of, run
from evaluations import add_agreement, agreements_of, write_evaluation, write_pool_agreement
from tiny import make_corpus

from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation import compare_agreements
from dcdctl.core.integrity import verify

# Two images and four texts: 60, 40 and 50 in percent; the base has 10 less everywhere.
OURS, BASE = ([0.6, 0.4], [0.5] * 4), ([0.5, 0.3], [0.4] * 4)
OWNER = [0, 0, 1, 1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the evaluations `base` and `ours` of one pool."""
    monkeypatch.chdir(tmp_path)
    for name, values in (("base", BASE), ("ours", OURS)):
        write_pool_agreement(tmp_path / name, agreements_of(*values))
    return tmp_path


def test_the_document_has_the_numbers_by_hand(here):
    document = document_of("compare base ours")
    about = {key: document[key] for key in ("split", "images", "captions", "corpus_fingerprint", "teacher", "over")}
    assert about == {
        "split": "train", "images": 2, "captions": 4, "corpus_fingerprint": "c0ffee", "teacher": "big", "over": "all",
    }  # fmt: skip
    base, ours = document["sides"]
    # (50 + 50) / 2, and (40 + 40) / 2.
    assert (base["ndcg"]["value"], ours["ndcg"]["value"]) == pytest.approx((40, 50))
    assert ours["text_retrieval"]["nDCG@10"] == {"value": 50, "interval": [40, 60]}
    assert ours["image_retrieval"]["spearman"] == {"value": 0.5, "interval": [0.5, 0.5]}
    (compared,) = document["comparisons"]
    assert compared["difference"]["ndcg"] == {"value": 10, "interval": [10, 10]}
    assert compared["difference"]["text_retrieval"]["same_first"]["value"] == 0
    # No draw is on the other side of zero; all six signs alike are 2 of 64 patterns.
    assert compared["bootstrap"]["p_value"] == pytest.approx(2 / 10_001)
    assert compared["sign_flip"] == {"p_value": 2 / 64, "holm_p_value": 2 / 64, "exact": True}
    counts = {
        way: [compared[f"{way}_queries"][key] for key in ("better", "equal", "worse")] for way in ("text", "image")
    }
    assert counts == {"text": [2, 0, 0], "image": [4, 0, 0]}
    assert document["verdicts"] == [
        "Better: ours against base, nDCG@10 of agreement with the teacher +10.0 (10.0 to 10.0), p 0.031."
    ]


def test_the_terminal_and_the_page_say_what_was_compared(here):
    result = run("compare base ours --html page.html")
    assert result.stderr == "page -> page.html\n"
    for text in (result.stdout, (here / "page.html").read_text()):
        for said in ("2 images, 4 texts; split train; agreement with big over all candidates", "10,000 of queries"):
            assert said in text
        assert "text nDCG@10" in text
        assert "nDCG@10 of captions: 4 better with ours than with base, 0 equal, 0 worse" in text
        assert not any(word in text for word in ("RSUM", "MRR", "Below:", "Without images"))


def test_images_are_drawn_with_their_captions_in_both_directions():
    ours, base = (agreements_of(*values, OWNER) for values in (([0.6, 0.6], [0.6] * 4), ([0.5, 0.5], [0.5] * 4)))
    # A sign for each of two images, not for each of six queries.
    assert compare_agreements([ours], [base], resamples=100).sign_flip_p_value == 2 / 4


@pytest.mark.parametrize("seed", range(4))
def test_the_bootstrap_is_near_the_share_of_all_draws(seed):
    rng, owner = np.random.default_rng(seed), np.array([0, 0, 1, 2, 2, 2])
    sides = [(rng.random(3), rng.random(6)) for _ in range(2)]
    (ours_text, ours_image), (base_text, base_image) = sides
    differences = []
    for draw in itertools.product(range(3), repeat=3):
        captions = np.concatenate([np.flatnonzero(owner == image) for image in draw])
        text = (ours_text - base_text)[list(draw)].mean()
        differences.append(50 * (text + (ours_image - base_image)[captions].mean()))
    found = compare_agreements(*([agreements_of(*side, owner)] for side in sides))
    expected = 2 * min(np.mean(np.array(differences) <= 0), np.mean(np.array(differences) >= 0))
    assert found.p_value == pytest.approx(min(1, expected), abs=0.03)
    whole = 50 * ((ours_text - base_text).mean() + (ours_image - base_image).mean())
    assert found.difference.ndcg.value == pytest.approx(whole)


def test_the_directions_of_a_pool_are_drawn_apart():
    # The same values in both directions: drawn together, their mean would vary as much as one of them.
    values = np.linspace(0, 1, 20)
    ours, base = agreements_of(values, values), agreements_of(values * 0, values * 0)
    difference = compare_agreements([ours], [base], resamples=1000).difference
    total, text = (
        high - low for low, high in (difference.total.interval, difference.text_retrieval["nDCG@10"].interval)
    )
    assert total == pytest.approx(text / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("owner", [None, [0, 0, 1, 1]])
def test_swapping_the_systems_changes_the_sign_alone(owner):
    rng = np.random.default_rng(1)
    first, second = ([agreements_of(rng.random(2), rng.random(4), owner)] for _ in range(2))
    there, back = compare_agreements(first, second, resamples=500), compare_agreements(second, first, resamples=500)
    assert (there.p_value, there.sign_flip_p_value) == (back.p_value, back.sign_flip_p_value)
    low, high = back.difference.total.interval
    assert there.difference.total.interval == pytest.approx((-high, -low))
    assert there.ours == back.base


def test_a_draw_without_a_query_of_a_direction_has_its_mean():
    # One of five images has a text query, so a third of the draws have none.
    ours, base = (agreements_of([value], [value] * 5, range(5)) for value in (0.6, 0.5))
    assert compare_agreements([ours], [base], resamples=100).difference.total.interval == pytest.approx((10, 10))


def test_one_direction_alone_is_compared(here):
    for name, value in (("base", 0.4), ("ours", 0.5)):
        write_pool_agreement(here / name, agreements_of([], [value] * 4))
    (compared,) = document_of("compare base ours")["comparisons"]
    assert compared["difference"]["text_retrieval"] == {}
    assert compared["difference"]["ndcg"]["value"] == pytest.approx(10)
    assert "text_queries" not in compared


def test_runs_of_one_system_are_averaged_and_may_be_drawn(here):
    for name, level in (("low", 0.3), ("high", 0.7)):
        write_pool_agreement(here / name, agreements_of([level] * 2, [level] * 4))
    _, mean = document_of("compare base low,high")["sides"]
    assert mean["ndcg"] == {"value": pytest.approx(50), "interval": pytest.approx([50, 50])}
    drawn = document_of("compare base,ours low,high --draw-seeds")
    # 50 and 12.7 times 20 to both sides, and no agreement is below 0 or above 100.
    assert drawn["sides"][1]["ndcg"]["interval"] == [0, 100]
    assert drawn["sides"][1]["text_retrieval"]["spearman"]["interval"] == [-1, 1]
    assert drawn["comparisons"][0]["t_test"]["p_value"] > 0.05
    for systems, name in (("base low,high", "base"), ("low,high ours", "ours")):
        assert f"error: {name} has 1 run, drawing its" in error_of(f"compare {systems} --draw-seeds")


def test_p_values_are_adjusted_for_all_comparisons(here):
    write_pool_agreement(here / "same", agreements_of(*BASE))
    ours, same = document_of("compare base ours same")["comparisons"]
    assert ours["sign_flip"] == {"p_value": 2 / 64, "holm_p_value": 4 / 64, "exact": True}
    assert same["bootstrap"]["p_value"] == 1
    assert [same["image_queries"][key] for key in ("better", "equal", "worse")] == [0, 4, 0]


def recalls(folder, captions=(("a", "b"), ("c", "d"))):
    """An evaluation with recalls, of the same corpus."""
    corpus = make_corpus(folder.parent / f"{folder.name}-corpus", captions)
    return write_evaluation(folder, corpus, [1, 1], [1, 1, 2, 1], corpus_fingerprint="c0ffee")


def test_the_agreement_beside_recalls_is_compared_by_request(here):
    for name, values in (("low", BASE), ("high", OURS)):
        add_agreement(recalls(here / name), agreements_of(*values, OWNER))
    document = document_of("compare low:agreement high:agreement")
    assert document["comparisons"][0]["difference"]["ndcg"]["value"] == pytest.approx(10)
    # Two images, each with its captions.
    assert document["comparisons"][0]["sign_flip"]["p_value"] == 2 / 4
    assert "rsum" in document_of("compare low high")["comparisons"][0]["difference"]


def test_of_recalls_and_a_pool_in_one_folder_the_recalls_are_meant_unless_asked(here):
    recalls(here / "both")
    write_pool_agreement(here / "both", agreements_of(*OURS))
    assert "rsum" in document_of("compare both both")["sides"][0]
    assert document_of("compare base both:agreement")["sides"][1]["ndcg"]["value"] == pytest.approx(50)


PAIRS = {"over": "cached", "pairs_fingerprint": "1" * 64}
OTHERWISE = {
    "the teacher is 'other fi' for other, 'big fing' for ours": {"teacher": "other"},
    "the split is 'val' for other, 'train' for ours": {"split": "val"},
    "the corpus is 'beef' for other, 'c0ffee' for ours": {"corpus_fingerprint": "beef"},
    "the candidates is 'cached' for other, 'all' for ours": {"more": PAIRS},
    "other has other candidates of images than ours": {"values": ([0.5], [0.5] * 4)},
    "other has other candidates of captions than ours": {"values": ([0.5] * 2, [])},
}


@pytest.mark.parametrize("message", OTHERWISE)
def test_agreements_over_something_else_are_refused_by_both_names(here, message):
    changes = {"values": OURS, "more": {}, **OTHERWISE[message]}
    agreements = agreements_of(*changes.pop("values"), **changes.pop("more"))
    write_pool_agreement(here / "other", agreements, **changes)
    assert message in error_of("compare ours other")


def test_caches_with_other_pairs_of_one_teacher_are_refused(here):
    for name in ("1", "2"):
        write_pool_agreement(here / name, agreements_of(*OURS, **{**PAIRS, "pairs_fingerprint": name * 64}))
    assert "the pairs of the cache is '22222222' for 2, '11111111' for 1" in error_of("compare 1 2")
    with pytest.raises(StaleError, match="run 2 has other candidates of images than run 1"):
        compare_agreements([agreements_of([0.5], [0.5])], [agreements_of([0.5] * 2, [0.5])])


def test_recalls_and_an_agreement_are_not_compared(here):
    recalls(here / "ranks")
    message = "the measure is 'recalls' for ranks, 'agreement with a teacher' for ours"
    assert message in error_of("compare ours ranks")
    assert "ranks:agreement was evaluated without a teacher" in error_of("compare ours ranks:agreement")


def test_what_is_missing_or_damaged_is_named(here):
    said = error_of("compare ours absent:agreement")
    assert "there is no finished evaluation in absent" in said
    assert "--against TEACHER" in said
    path = here / "base" / "pool-agreement.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "pool-agreement.parquet is damaged" in error_of("compare ours base")
    assert "pool-agreement.parquet" in str(verify(here / "base"))


def test_one_run_with_seeds_to_draw_is_an_error():
    one, two = [agreements_of(*OURS)], [agreements_of(*OURS)] * 2
    for sides, name in (((one, two), "ours"), ((two, one), "the base")):
        with pytest.raises(InputError, match=f"{name} has 1 run, drawing its seeds needs 2 or more"):
            compare_agreements(*sides, draw_seeds=True)
