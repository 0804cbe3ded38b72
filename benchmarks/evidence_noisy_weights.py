"""The plan `noisy-weights`: do DCD's dynamic weights pay where captions are wrong?

    python benchmarks/evidence.py noisy-weights --work work/noisy-weights

The corpora are the shuffled ones of the plan `wrong-captions`: 1,024 scenes with 5 captions each, of which 0, 20, 40 or
60 % have moved to other scenes. The teacher is the built-in ViLT of the scenes. All students of a corpus read one cache
and differ only in their loss. Every caption counts, wrong or not, so that the weights have something to cope with; in
one row the teacher's check removes the wrong ones before.

Fixed weights are the same loss as DCD, in which each query counts 1 / B: `mse` and `ground-truth` in equal parts. Lists
are as in the plan `scenes`: the positive, and the 7 hardest of 15 drawn candidates.

Fusion students are the teacher without three of its layers. They re-rank the first 20 results of one dual student of
clean captions, on all 500 test scenes. Dual students start from the built-in CLIP. Their batches of all pairs are as in
the plan `clip-scenes`, with `dcd-kl` as the dynamic form of `kl`. Their lists see as many queries.

One core takes about 4.5 hours. By published costs of the plans `scenes`, `students` and `clip-scenes`, a fusion student
takes 47 s and its measurement at most 64 s, a dual student 23 s on all pairs and 86 s on lists, and its measurement
5 s. 72 fusion students take 133 minutes, 72 dual ones on lists 109 minutes, 48 on all pairs 22, and 4 caches 6.

Expected, written on 2026-12-03 before the runs: the rows of `EXPECTED`. The weights follow the teacher's certainty
about its own list, and a wrong caption changes which column of a list is called right, not how the teacher's scores
spread. So no dynamic row is expected to lie more than 5 above the fixed one, and the check is expected to bring more
than any weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from evidence_picked import FROM_CLIP, TEACHER, TEST
from evidence_scenes import SCENES_FUSION, SCENES_LISTS
from evidence_steps import SEEDS, Step, sets
from evidence_wrong import EVERY_CAPTION, SHUFFLED, corpora
from wrong_captions import SHARES

FUSION, DUAL = "Fusion students, 6 layers to 3", "Dual students from a small CLIP"
FIRST = "runs/first"
"""The dual student whose first results the fusion students re-rank."""
LABELS, FIXED = "labels alone", "fixed weights"
DYNAMIC, GROUPS, RELEASED = "dynamic weights (DCD)", "dynamic weights, groups of 8", "DCD as released"
CHECKED = "dynamic weights (DCD), checked by the teacher"
PAIRS_LABELS, PAIRS_FIXED = "all pairs: labels alone", "all pairs: fixed weights (InfoNCE + KL)"
PAIRS_DYNAMIC, PAIRS_CHECKED = "all pairs: dynamic weights (InfoNCE + DCD-KL)", "all pairs: dynamic weights, checked"
UNWEIGHTED = sets(loss="{terms={mse=0.5,ground-truth=0.5}}")
DCD = sets(loss__terms="{dcd=1.0}", loss__alpha=0.5, loss__temperature=1.0)
OF_RELEASED = sets(loss__terms="{dcd-released=1.0}", loss__alpha=0.5, loss__temperature=1.0)
LISTS: dict[str, tuple[str, ...]] = {
    FIXED: (*UNWEIGHTED, *EVERY_CAPTION),
    DYNAMIC: (*DCD, *EVERY_CAPTION),
    RELEASED: (*OF_RELEASED, *EVERY_CAPTION),
    LABELS: (*sets(loss="{terms={ground-truth=1.0}}"), *EVERY_CAPTION),
    CHECKED: DCD,
    GROUPS: (*DCD, *sets(loss__weight_group=8), *EVERY_CAPTION),
}
"""Losses of lists for both kinds of students, the most telling rows first."""
PAIRS: dict[str, tuple[str, ...]] = {
    PAIRS_FIXED: (*sets(loss__terms="{infonce=1.0,kl=1.0}", loss__temperature="auto"), *EVERY_CAPTION),
    PAIRS_DYNAMIC: (*sets(loss__terms="{infonce=1.0,dcd-kl=1.0}", loss__temperature="auto"), *EVERY_CAPTION),
    PAIRS_LABELS: (*sets(loss="{terms={infonce=1.0}}"), *EVERY_CAPTION),
    PAIRS_CHECKED: sets(loss__terms="{infonce=1.0,dcd-kl=1.0}", loss__temperature="auto"),
}
"""Losses of all pairs of a batch, for dual students."""
SCALED = sets(optimizer__lr_factors="{calibration=100}")
"""A dual student's cosines reach the scale of the teacher's logits in time."""
SHORTER = sets(optimizer__steps=512)
"""With 24 lists in a batch, as many queries as 192 batches of 64 captions."""
EXPECTED = {
    FUSION: {
        LABELS: {0: 552, 20: 535, 40: 510, 60: 460},
        FIXED: {0: 556, 20: 550, 40: 542, 60: 525},
        DYNAMIC: {0: 556, 20: 551, 40: 544, 60: 528},
        GROUPS: {0: 556, 20: 551, 40: 544, 60: 528},
        RELEASED: {0: 556, 20: 548, 40: 538, 60: 520},
        CHECKED: {0: 556, 20: 554, 40: 552, 60: 548},
    },
    DUAL: {
        PAIRS_LABELS: {0: 446, 20: 424, 40: 400, 60: 355},
        PAIRS_FIXED: {0: 444, 20: 430, 40: 420, 60: 400},
        PAIRS_DYNAMIC: {0: 444, 20: 431, 40: 421, 60: 401},
        PAIRS_CHECKED: {0: 444, 20: 441, 40: 437, 60: 430},
        LABELS: {0: 250, 20: 235, 40: 215, 60: 180},
        FIXED: {0: 250, 20: 245, 40: 235, 60: 220},
        DYNAMIC: {0: 250, 20: 246, 40: 237, 60: 222},
        GROUPS: {0: 250, 20: 246, 40: 237, 60: 222},
        RELEASED: {0: 240, 20: 235, 40: 225, 60: 210},
        CHECKED: {0: 250, 20: 248, 40: 245, 60: 240},
    },
}
"""RSUM of each row by the share of shuffled captions, a mean of three seeds; within 6, a row is as expected, and within
20 for a dual student on lists, of which there was no trial."""
PARTS = {
    "dynamic weights": (DYNAMIC, FIXED),
    "dynamic weights in groups": (GROUPS, FIXED),
    "as released": (RELEASED, FIXED),
    "the check": (CHECKED, DYNAMIC),
    "the teacher's scores, fixed weights": (FIXED, LABELS),
    "dynamic weights, all pairs": (PAIRS_DYNAMIC, PAIRS_FIXED),
    "the check, all pairs": (PAIRS_CHECKED, PAIRS_DYNAMIC),
}
"""Differences of rows with an interval over queries and seeds."""
TABLES = tuple(f"{title}, {SHUFFLED.format(share)}" for title in (FUSION, DUAL) for share in SHARES)


def noisy_weights() -> list[Step]:
    """For each share, most telling first, the fusion students and then the dual ones; all seeds of a row before the
    next row."""
    first = ("demo-dual", "--data", "data/shuffled-0", "--cache", "caches/shuffled-0", *FROM_CLIP, *PAIRS[PAIRS_LABELS])
    steps = corpora(f"shuffled-{share}" for share in SHARES)
    steps += [_cache(f"shuffled-{share}") for share in SHARES]
    steps.append(Step(FIRST, "distill", (*first, *sets(seed=0)), ("caches/shuffled-0",)))
    for share in SHARES:
        steps += [*_fusion(share), *_dual(share)]
    return steps


def _cache(corpus: str) -> Step:
    """Every pair of blocks of 16 scenes, for all students of a corpus."""
    words = ("--data", f"data/{corpus}", "--teacher", TEACHER, "--recipe", "demo-dual")
    return Step(f"caches/{corpus}", "cache-teacher", words, (f"data/{corpus}",))


def _fusion(share: int) -> Iterator[Step]:
    corpus, table = f"shuffled-{share}", f"{FUSION}, {SHUFFLED.format(share)}"
    common = ("demo-fusion", "--data", f"data/{corpus}", "--teacher", TEACHER, "--cache", f"caches/{corpus}")
    measure, after = (*TEST, "--depth", "20"), (f"caches/{corpus}", FIRST, "data/scenes")
    for number, (label, words) in enumerate(LISTS.items()):
        for seed in SEEDS:
            out, own = f"runs/fusion{number}-{share}-{seed}", sets(seed=seed)
            every = (*common, *SCENES_FUSION, *own, *words)
            yield Step(out, "distill", every, after, table, label, FIXED, measure, FIRST)


def _dual(share: int) -> Iterator[Step]:
    corpus, table = f"shuffled-{share}", f"{DUAL}, {SHUFFLED.format(share)}"
    common = ("demo-dual", "--data", f"data/{corpus}", "--cache", f"caches/{corpus}", *FROM_CLIP)
    rows = {label: (words, PAIRS_FIXED) for label, words in PAIRS.items()}
    rows |= {label: ((*SCENES_LISTS, *SHORTER, *_scaled(label), *words), FIXED) for label, words in LISTS.items()}
    for number, (label, (words, base)) in enumerate(rows.items()):
        for seed in SEEDS:
            out, own = f"runs/dual{number}-{share}-{seed}", sets(seed=seed)
            after = (f"caches/{corpus}", "data/scenes")
            yield Step(out, "distill", (*common, *own, *words), after, table, label, base, TEST)


def _scaled(label: str) -> tuple[str, ...]:
    """The released loss and the labels compare no logits of both models, which `calibration` is for."""
    return () if label in (LABELS, RELEASED) else SCALED
