"""The plan `flickr8k`: students of real photos with and without teachers, and ablations."""

from __future__ import annotations

from collections.abc import Iterable

from evidence_steps import ALONE, SEEDS, Step, sets

FEATURES = ("--features", "features")
FLICKR8K = ("--data", "data", *FEATURES, *sets(model__vision="vision", model__text="text"))
VAL = ("--data", "data", *FEATURES, "--split", "val")
PAIRS = tuple(f"caches/pair-{seed}" for seed in SEEDS)
LISTS = sets(batch__size=64, optimizer__steps=1000)
EQUAL = sets(optimizer__epochs=60)
DUAL_LOSSES: dict[str, tuple[str, ...]] = {
    "InfoNCE + KL": sets(),
    "InfoNCE + DCD-KL": sets(loss__terms="{infonce=1.0,dcd-kl=4.0}"),
    "InfoNCE + margin-MSE": sets(loss__terms="{infonce=1.0,margin-mse=0.1}", optimizer__lr_factors="{calibration=100}"),
    "KL alone, dropout 0.1": sets(loss__terms="{kl=4.0}", model__dropout=0.1),
    "WSL, lists": sets(loss__terms="{ranking=1.0,wsl=2.5}", loss__temperature=2.0) + LISTS,
    "DCD as released, lists": sets(loss__terms="{dcd-released=1.0}", loss__alpha=0.5) + LISTS,
    "DCD, lists": sets(loss__terms="{dcd=1.0}", loss__alpha=0.5, optimizer__lr_factors="{calibration=100}") + LISTS,
}
"""Changes to recipe photos-distilled at T = 1 for each label."""
FUSION_LOSSES: dict[str, tuple[str, ...]] = {
    "ground truth (BCE)": sets(loss="{terms={ground-truth=1.0}}"),
    "InfoNCE": sets(loss="{terms={infonce=1.0}}", batch__size=16),
    "KL": sets(loss="{terms={kl=1.0}}", batch__size=16),
    "DCD-KL": sets(loss="{terms={dcd-kl=1.0}}", batch__size=16),
    "margin-MSE": sets(loss="{terms={margin-mse=0.1}}", batch__size=16),
    "WSL": sets(loss="{terms={wsl=1.0}}"),
    "DCD as released": sets(loss__terms="{dcd-released=1.0}", loss__alpha=0.5),
    "DCD": sets(),
}
"""Changes to recipe photos-fusion for each label."""
ALL_PHOTOS, FUSION = "Dual students, 6,000 photos", "Fusion students, 2 layers to 1"
TRUTH, COSINE = "ground truth (BCE), no teacher", "its cosine alone"
PLAIN = "runs/plain0-0"
"""The dual student without a teacher that other steps start from."""


def flickr8k() -> list[Step]:
    """6,000 photos of Flickr8k to train on, and the 1,000 photos of val to report on."""
    steps = [Step("data", "prepare", ("--karpathy", "karpathy.json", "--images", "images")), *map(_features, SIZES)]
    for parts in (_teacher, _duals, _losses, _fusions):
        steps += [step for seed in SEEDS for step in parts(seed)]
    return [*steps, *_ablations()]


SIZES = {"photos": "224", "photos-large": "288"}


def _features(recipe: str) -> Step:
    """One training step, so that the cost of the features is charged to no run of the tables."""
    return Step(
        f"runs/features-{SIZES[recipe]}",
        "distill",
        (recipe, *FLICKR8K, *sets(optimizer__steps=1)),
        ("data",),
        measure=VAL,
    )


def _teacher(seed: int) -> list[Step]:
    """The cosine at 288 px, the co-attention that starts from it, and the scores of the latter."""
    own = (*FLICKR8K, *sets(seed=seed))
    table = "Teachers, 288 px"
    large = Step(
        f"runs/large-{seed}", "distill", ("photos-large", *own), ("runs/features-288",), table, COSINE, "", VAL
    )
    words = ("photos-teacher", *own, *sets(model__dual_init=large.out))
    label, measure = "co-attention beside it, re-ranking its first 50", (*VAL, "--depth", "50")
    pair = Step(
        f"runs/pair-{seed}",
        "finetune-teacher",
        words,
        (large.out,),
        table,
        label,
        large.label,
        measure,
        measured=large.out,
    )
    scoring = ("--data", "data", *FEATURES, "--teacher", pair.out, "--recipe", "photos-distilled")
    return [large, pair, Step(f"caches/pair-{seed}", "cache-teacher", scoring, (pair.out,))]


def _dual(
    name: str,
    seed: int,
    table: str,
    label: str,
    words: Iterable[str],
    *,
    caches: tuple[str, ...] = (),
    base: str = ALONE,
) -> Step:
    """A dual student. Without caches it uses the recipe without a teacher; T is 1 unless `words` set it."""
    recipe: tuple[str, ...] = ("photos",)
    if caches:
        recipe = (
            "photos-distilled",
            *(word for cache in caches for word in ("--cache", cache)),
            *sets(loss__temperature=1.0),
        )
    arguments = (*recipe, *FLICKR8K, *sets(seed=seed), *words)
    return Step(f"runs/{name}-{seed}", "distill", arguments, caches or ("runs/features-224",), table, label, base, VAL)


def _duals(seed: int) -> list[Step]:
    """The best students of all photos, with and without a teacher."""
    long = _dual("plain1", seed, ALL_PHOTOS, "InfoNCE, no teacher, 100 epochs", sets(optimizer__epochs=100))
    distilled = _dual("distilled", seed, ALL_PHOTOS, "InfoNCE + KL, 100 epochs", (), caches=PAIRS)
    best = _dual(
        "recipe",
        seed,
        ALL_PHOTOS,
        "InfoNCE + KL at T = 2, 100 epochs (photos-distilled)",
        sets(loss__temperature=2.0),
        caches=PAIRS,
    )
    return [_dual("plain0", seed, ALL_PHOTOS, ALONE, ()), long, distilled, best]


def _losses(seed: int) -> list[Step]:
    """Students of all photos that differ only in their loss."""
    plain = {
        TRUTH: sets(loss__terms="{ground-truth=1.0}") + LISTS,
        "ground truth (softmax), no teacher": sets(loss__terms="{ranking=1.0}") + LISTS,
    }
    steps = [
        _dual(f"truth{index}", seed, ALL_PHOTOS, label, words) for index, (label, words) in enumerate(plain.items())
    ]
    distilled = enumerate(DUAL_LOSSES.items())
    return [
        *steps,
        *(
            _dual(f"dual{index}", seed, ALL_PHOTOS, label, EQUAL + words, caches=PAIRS)
            for index, (label, words) in distilled
        ),
    ]


def _fusions(seed: int) -> list[Step]:
    """Half-depth students of one teacher; they re-rank the results of one dual student without a teacher."""
    steps = []
    for index, (label, words) in enumerate(FUSION_LOSSES.items()):
        teacher = ("--teacher", "runs/pair-0", "--cache", PAIRS[0])
        arguments = ("photos-fusion", *teacher, "--data", "data", *FEATURES, *sets(seed=seed), *words)
        measure = (*VAL, "--depth", "20")
        base = next(iter(FUSION_LOSSES))
        steps.append(
            Step(
                f"runs/fusion{index}-{seed}",
                "distill",
                arguments,
                (PAIRS[0], PLAIN),
                FUSION,
                label,
                base,
                measure,
                measured=PLAIN,
            )
        )
    return steps


def _ablations() -> list[Step]:
    """One change at a time, seed 0."""
    return [*_ablation_teachers(), *_pair_ablations(), *_list_ablations()]


MINED = {
    "random": sets(),
    "lexical": sets(candidates__kind="lexical"),
    "embedding": sets(candidates__kind="embedding", candidates__model=PLAIN),
}
"""Changes to the caches of 15 candidates per query."""


def _ablation_teachers() -> list[Step]:
    """A co-attention of one layer, and caches with other candidates than the recipe's."""
    words = ("photos-teacher", *FLICKR8K, *sets(seed=0, model__dual_init="runs/large-0", model__num_layers=1))
    table, label, measure = "Teachers, 288 px", "co-attention of 1 layer, seed 0", (*VAL, "--depth", "50")
    shallow = Step(
        "runs/shallow-0",
        "finetune-teacher",
        words,
        ("runs/large-0",),
        table,
        label,
        COSINE,
        measure,
        measured="runs/large-0",
    )

    def cache(name: str, teacher: str, more: tuple[str, ...], after: tuple[str, ...] = ()) -> Step:
        scoring = ("--data", "data", *FEATURES, "--teacher", teacher, "--recipe", "photos-distilled", *more)
        return Step(f"caches/{name}", "cache-teacher", scoring, (teacher, *after))

    lists = sets(candidates__kind="random", candidates__per_query=15)
    return [
        shallow,
        cache("shallow-0", shallow.out, ()),
        cache("blocks64-0", "runs/pair-0", sets(candidates__block_size=64)),
        cache("near-0", "runs/pair-0", sets(candidates__group_size=4)),
        *(cache(f"{kind}-0", "runs/pair-0", lists + more, (PLAIN,)) for kind, more in MINED.items()),
        cache("shallow-random-0", shallow.out, lists),
    ]


def _ablation(name: str, table: str, label: str, words: tuple[str, ...], caches: Iterable[str], base: str) -> Step:
    return _dual(name, 0, table, label, EQUAL + words, caches=tuple(caches), base=base)


def _pair_ablations() -> list[Step]:
    """Ablations of InfoNCE and KL over all scored pairs of a batch."""
    table, base = "Ablations of InfoNCE + KL, 60 epochs, seed 0", "three teachers, as above"
    one_teacher = PAIRS[:1]
    changes: dict[str, tuple[tuple[str, ...], Iterable[str]]] = {
        base: (sets(), PAIRS),
        "one teacher": (sets(), one_teacher),
        "one teacher, of 1 layer": (sets(), ("caches/shallow-0",)),
        "one teacher, blocks of 64": (sets(), ("caches/blocks64-0",)),
        "one teacher, blocks of photos near each other": (sets(), ("caches/near-0",)),
        "one teacher, 15 random candidates a query": (sets(), ("caches/random-0",)),
        "T = 0.5": (sets(loss__temperature=0.5), PAIRS),
        "T = 2": (sets(loss__temperature=2.0), PAIRS),
        "KL of weight 1": (sets(loss__terms="{infonce=1.0,kl=1.0}"), PAIRS),
        "weighted by the teacher's entropy (DCD-KL)": (sets(loss__terms="{infonce=1.0,dcd-kl=4.0}"), PAIRS),
        "dropout 0.1": (sets(model__dropout=0.1), PAIRS),
    }
    return [
        _ablation(f"pairs{index}", table, label, *change, base) for index, (label, change) in enumerate(changes.items())
    ]


def _list_ablations() -> list[Step]:
    """Ablations of DCD, whose lists hold the positive and the 7 hardest of 15 drawn candidates."""
    table, base = "Ablations of DCD on lists, one teacher, seed 0", "alpha 0.5, 7 negatives of 15 drawn, random"
    dcd = DUAL_LOSSES["DCD, lists"]
    changes: dict[str, tuple[tuple[str, ...], str]] = {
        base: (sets(), "random-0"),
        "alpha 0.2": (sets(loss__alpha=0.2), "random-0"),
        "alpha 0.8": (sets(loss__alpha=0.8), "random-0"),
        "T = 0.5": (sets(loss__temperature=0.5), "random-0"),
        "T = 2": (sets(loss__temperature=2.0), "random-0"),
        "3 negatives of 15": (sets(batch__hard_negatives=3), "random-0"),
        "15 negatives of 15": (sets(batch__hard_negatives=15), "random-0"),
        "7 negatives of 63": (sets(batch__random_negatives=63), "pair-0"),
        "15 negatives of 127": (sets(batch__random_negatives=127, batch__hard_negatives=15), "pair-0"),
        "unweighted": (sets(loss="{terms={mse=0.5,ground-truth=0.5}}"), "random-0"),
        "candidates by words (BM25)": (sets(), "lexical-0"),
        "candidates by a dual student": (sets(), "embedding-0"),
        "a teacher of 1 layer": (sets(), "shallow-random-0"),
    }
    rows = enumerate(changes.items())
    return [
        _ablation(f"lists{index}", table, label, dcd + words, (f"caches/{cache}",), base)
        for index, (label, (words, cache)) in rows
    ]
