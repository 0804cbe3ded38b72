"""What `evidence.py` runs: the steps of each plan, as words of `dcdctl` commands typed in the work folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

SEEDS = (0, 1, 2)
FEATURES = ("--features", "features")


@dataclass(frozen=True)
class Step:
    """One command, and the row of a table its result belongs to."""

    out: str
    """Folder it writes, in the work folder: data, caches/NAME or runs/NAME."""
    command: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    """`out` of the steps it needs."""
    table: str = ""
    label: str = ""
    base: str = ""
    """Label of the row it is compared with."""
    measure: tuple[str, ...] = ()
    """Words of `dcdctl eval` beside the run."""
    measured: str = ""
    """What is evaluated where it is not the run alone: a dual encoder whose results the run re-ranks."""

    @property
    def name(self) -> str:
        return self.out.replace("/", "-")

    @property
    def is_run(self) -> bool:
        return self.out.startswith("runs/")


def sets(**values: object) -> tuple[str, ...]:
    """`--set` words; two underscores stand for a dot."""
    return tuple(word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}"))


FLICKR8K = ("--data", "data", *FEATURES, *sets(model__vision="vision", model__text="text"))
VAL = ("--data", "data", *FEATURES, "--split", "val")
PAIRS = tuple(f"caches/pair-{seed}" for seed in SEEDS)
LISTS = sets(batch__size=64, optimizer__steps=1000)
EQUAL = sets(optimizer__epochs=60)
DUAL_LOSSES: dict[str, tuple[str, ...]] = {
    "InfoNCE + KL": sets(),
    "InfoNCE + DCD-KL": sets(loss__terms="{infonce=1.0,dcd-kl=4.0}"),
    "InfoNCE + margin-MSE": sets(loss__terms="{infonce=1.0,margin-mse=0.1}", optimizer__lr_factors="{calibration=100}"),
    "InfoNCE + WSL, all pairs": sets(loss__terms="{infonce=1.0,wsl-pairs=4.0}"),
    "InfoNCE + CPRD": sets(loss__terms="{infonce=1.0,cprd=1.0}"),
    "InfoNCE + affinity mimicking": sets(loss__terms="{infonce=1.0,affinity=1.0}"),
    "KL alone, dropout 0.1": sets(loss__terms="{kl=4.0}", model__dropout=0.1),
    "WSL, lists": sets(loss__terms="{ranking=1.0,wsl=2.5}", loss__temperature=2.0) + LISTS,
    "DCD as released, lists": sets(loss__terms="{dcd-released=1.0}", loss__alpha=0.5) + LISTS,
    "DCD, lists": sets(loss__terms="{dcd=1.0}", loss__alpha=0.5, optimizer__lr_factors="{calibration=100}") + LISTS,
}
"""How each differs from recipe dual-flickr8k-distilled."""
FUSION_LOSSES: dict[str, tuple[str, ...]] = {
    "ground truth (BCE)": sets(loss__terms="{ground-truth=1.0}"),
    "InfoNCE": sets(loss__terms="{infonce=1.0}", batch__size=16),
    "KL": sets(loss__terms="{kl=1.0}", batch__size=16),
    "DCD-KL": sets(loss__terms="{dcd-kl=1.0}", batch__size=16),
    "margin-MSE": sets(loss__terms="{margin-mse=0.1}", batch__size=16),
    "WSL": sets(loss__terms="{wsl=1.0}"),
    "CPRD": sets(loss__terms="{cprd=1.0,infonce=1.0}", batch__size=16),
    "DCD as released": sets(loss__terms="{dcd-released=1.0}", loss__alpha=0.5),
    "DCD": sets(),
}
"""How each differs from recipe fusion-flickr8k."""
WHOLE, FUSION, FEW = "Dual students, 6,000 photos", "Fusion students, 2 layers to 1", "Dual students, {} photos"
ALONE, TRUTH = "InfoNCE, no teacher", "ground truth (BCE), no teacher"


def flickr8k() -> list[Step]:
    """6,000 photos of Flickr8k to train on, the 1,000 of val to report on."""
    steps = [Step("data", "prepare", ("--karpathy", "karpathy.json", "--images", "images"))]
    for parts in (_teacher, _duals, _few, _losses, _fusions):
        steps += [step for seed in SEEDS for step in parts(seed)]
    return [*steps, *_ablations()]


def _teacher(seed: int) -> list[Step]:
    """The cosine at 288 px, the co-attention beside it, and its scores."""
    own = (*FLICKR8K, *sets(seed=seed))
    table = "Teachers, 288 px"
    large = Step(f"runs/large-{seed}", "distill", ("dual-flickr8k-large", *own), ("data",), table, "its cosine alone", "", VAL)
    words = ("pair-flickr8k", *own, *sets(model__cosine=large.out))
    label, measure = "co-attention beside it, re-ranking its first 50", (*VAL, "--depth", "50")
    pair = Step(f"runs/pair-{seed}", "finetune-teacher", words, (large.out,), table, label, large.label, measure, measured=large.out)
    scoring = ("--data", "data", *FEATURES, "--teacher", pair.out, "--recipe", "dual-flickr8k-distilled")
    return [large, pair, Step(f"caches/pair-{seed}", "cache-teacher", scoring, (pair.out,))]


def _dual(name: str, seed: int, table: str, label: str, words: Iterable[str], *, caches: tuple[str, ...] = (), base: str = ALONE) -> Step:
    """A dual student, of the recipe without a teacher where it has no caches."""
    recipe = ("dual-flickr8k-distilled", *(word for cache in caches for word in ("--cache", cache))) if caches else ("dual-flickr8k",)
    whole = (*recipe, *FLICKR8K, *sets(seed=seed), *words)
    return Step(f"runs/{name}-{seed}", "distill", whole, caches or ("data",), table, label, base, VAL)


def _duals(seed: int) -> list[Step]:
    """The best students of the whole corpus with and without a teacher."""
    long = _dual("plain1", seed, WHOLE, "InfoNCE, no teacher, 100 epochs", sets(optimizer__epochs=100))
    taught = _dual("distilled", seed, WHOLE, "InfoNCE + KL, 100 epochs (dual-flickr8k-distilled)", (), caches=PAIRS)
    return [_dual("plain0", seed, WHOLE, ALONE, ()), long, taught]


def _losses(seed: int) -> list[Step]:
    """What students of the whole corpus learn from, everything else alike."""
    plain = {
        TRUTH: sets(loss__terms="{ground-truth=1.0}") + LISTS,
        "ground truth (softmax), no teacher": sets(loss__terms="{ranking=1.0}") + LISTS,
    }
    steps = [_dual(f"truth{place}", seed, WHOLE, label, words) for place, (label, words) in enumerate(plain.items())]
    taught = enumerate(DUAL_LOSSES.items())
    return [*steps, *(_dual(f"dual{place}", seed, WHOLE, label, EQUAL + words, caches=PAIRS) for place, (label, words) in taught)]


def _few(seed: int) -> list[Step]:
    """Students whose corpus is small, as many steps as for the whole one; the teachers have seen 6,000 photos."""
    steps = []
    for count in (500, 1500):
        some, epochs, table = ("--max-images", str(count)), 40 * 6000 // count, FEW.format(f"{count:,}")
        words = ("--data", "data", *FEATURES, *some, "--recipe", "dual-flickr8k-distilled", *sets(candidates__block_size=250))
        cache = Step(f"caches/few{count}-{seed}", "cache-teacher", (*words, "--teacher", f"runs/pair-{seed}"), (f"runs/pair-{seed}",))
        caches = tuple(f"caches/few{count}-{each}" for each in SEEDS)
        alone = {
            ALONE: sets(optimizer__epochs=epochs // 4),
            "InfoNCE, no teacher, as many steps as with one": sets(optimizer__epochs=epochs),
        }
        taught = {
            "InfoNCE + KL": sets(optimizer__epochs=epochs),
            "KL alone, dropout 0.1": sets(optimizer__epochs=epochs, loss__terms="{kl=4.0}", model__dropout=0.1),
        }
        steps.append(cache)
        steps += [_dual(f"alone{count}-{place}", seed, table, label, (*some, *more)) for place, (label, more) in enumerate(alone.items())]
        steps += [
            _dual(f"taught{count}-{place}", seed, table, label, (*some, *more), caches=caches)
            for place, (label, more) in enumerate(taught.items())
        ]
    return steps


def _fusions(seed: int) -> list[Step]:
    """Half-depth students of one teacher; they re-rank what one dual student without a teacher finds."""
    steps = []
    first = "runs/plain0-0"
    for place, (label, words) in enumerate(FUSION_LOSSES.items()):
        whole = ("fusion-flickr8k", "--teacher", "runs/pair-0", "--cache", PAIRS[0], "--data", "data", *FEATURES, *sets(seed=seed), *words)
        measure = (*VAL, "--depth", "20")
        base = next(iter(FUSION_LOSSES))
        steps.append(Step(f"runs/fusion{place}-{seed}", "distill", whole, (PAIRS[0], first), FUSION, label, base, measure, measured=first))
    return steps


def _ablations() -> list[Step]:
    """One change at a time, one seed."""
    changes = {
        "KL at T = 0.5": sets(loss__temperature=0.5),
        "KL at T = 2": sets(loss__temperature=2.0),
        "KL of weight 1": sets(loss__terms="{infonce=1.0,kl=1.0}"),
        "dropout 0.1": sets(model__dropout=0.1),
        "DCD, alpha 0.2": DUAL_LOSSES["DCD, lists"] + sets(loss__alpha=0.2),
        "DCD, alpha 0.8": DUAL_LOSSES["DCD, lists"] + sets(loss__alpha=0.8),
        "DCD, 3 negatives": DUAL_LOSSES["DCD, lists"] + sets(batch__hard_negatives=3),
        "DCD, 15 negatives": DUAL_LOSSES["DCD, lists"] + sets(batch__hard_negatives=15),
        "MSE in place of DCD's weighted one": DUAL_LOSSES["DCD, lists"] + sets(loss__terms="{mse=0.5,ground-truth=0.5}"),
    }
    return [
        _dual(f"ablation{place}", 0, "Ablations, seed 0", label, EQUAL + words, caches=PAIRS)
        for place, (label, words) in enumerate(changes.items())
    ]


SCENES = ("--data", "data")
SCENES_CACHE = "caches/scenes"
SCENES_LISTS = sets(batch__size=24, batch__drawn_negatives=15, batch__hard_negatives=7, loss__temperature=1.0)
SCENES_DUAL_LOSSES: dict[str, tuple[str, ...]] = {
    "InfoNCE + margin-MSE": sets(),
    "KL": sets(loss__terms="{kl=1.0}", loss__temperature=1.0),
    "DCD-KL": sets(loss__terms="{dcd-kl=1.0}", loss__temperature=1.0),
    "margin-MSE": sets(loss__terms="{margin-mse=1.0}"),
    "WSL, all pairs": sets(loss__terms="{wsl-pairs=1.0}", loss__temperature=1.0),
    "CPRD": sets(loss__terms="{cprd=1.0,infonce=1.0}", loss__temperature=1.0),
    "affinity mimicking": sets(loss__terms="{affinity=1.0,infonce=1.0}"),
    "WSL, lists": sets(loss__terms="{wsl=1.0}") + SCENES_LISTS,
    "DCD as released, lists": sets(loss__terms="{dcd-released=1.0}", loss__alpha=0.5) + SCENES_LISTS,
    "DCD, lists": sets(loss__terms="{dcd=1.0}", loss__alpha=0.5, optimizer__lr_factors="{calibration=100}") + SCENES_LISTS,
}
"""How each differs from recipe demo-dual."""
SCENES_FUSION_LOSSES: dict[str, tuple[str, ...]] = {
    "ground truth (BCE)": sets(loss__terms="{ground-truth=1.0}"),
    "InfoNCE": sets(loss__terms="{infonce=1.0}", batch__size=12),
    "KL": sets(loss__terms="{kl=1.0}", batch__size=12),
    "margin-MSE": sets(loss__terms="{margin-mse=0.1}", batch__size=12),
    "WSL": sets(loss__terms="{wsl=1.0}"),
    "CPRD": sets(loss__terms="{cprd=1.0,infonce=1.0}", batch__size=12),
    "DCD as released": sets(loss__terms="{dcd-released=1.0}", loss__alpha=0.5),
    "DCD": sets(),
}
"""How each differs from recipe demo-fusion."""
SMALL_DUAL, SMALL_FUSION = ("InfoNCE + margin-MSE", "KL", "DCD, lists"), ("ground truth (BCE)", "KL", "DCD")


def scenes() -> list[Step]:
    """Drawn scenes and the built-in teacher: 1,024 scenes to train on, 500 new ones (100 for fusion students) to report on."""
    return [*_scenes_teacher(), *(step for seed in SEEDS for step in _scenes_students(seed, SCENES_DUAL_LOSSES, SCENES_FUSION_LOSSES))]


def small() -> list[Step]:
    """Of `scenes` some rows and two seeds."""
    return [*_scenes_teacher(), *(step for seed in SEEDS[:2] for step in _scenes_students(seed, SMALL_DUAL, SMALL_FUSION))]


def _scenes_teacher() -> list[Step]:
    size = sets(counts__train=1024, counts__val=0)
    return [
        Step("data", "prepare", ("scenes", "--image-size", "64", *size)),
        Step(SCENES_CACHE, "cache-teacher", (*SCENES, "--teacher", "scenes-vilt", "--recipe", "demo-dual"), ("data",)),
    ]


def _scenes_students(seed: int, dual_losses: Iterable[str], fusion_losses: Iterable[str]) -> list[Step]:
    """Students of one seed; a dual student without a teacher has the words of demo-dual-alone."""
    own = (*SCENES, *sets(seed=seed))
    table = "Dual students, 1,024 scenes"
    alone = Step(f"runs/alone-{seed}", "distill", ("demo-dual-alone", *own), ("data",), table, ALONE, "", SCENES)
    steps = [alone]
    for place, label in enumerate(dual_losses):
        words = ("demo-dual", "--cache", SCENES_CACHE, *own, *SCENES_DUAL_LOSSES[label])
        steps.append(Step(f"runs/dual{place}-{seed}", "distill", words, (SCENES_CACHE,), table, label, ALONE, SCENES))
    table, base = "Fusion students, 6 layers to 3, 1,024 scenes", next(iter(SCENES_FUSION_LOSSES))
    for place, label in enumerate(fusion_losses):
        words = ("demo-fusion", "--teacher", "scenes-vilt", "--cache", SCENES_CACHE, *own, *SCENES_FUSION_LOSSES[label])
        measure = (*SCENES, "--max-images", "100")
        steps.append(Step(f"runs/fusion{place}-{seed}", "distill", words, (SCENES_CACHE,), table, label, base, measure))
    return steps


PLANS: dict[str, Callable[[], list[Step]]] = {"flickr8k": flickr8k, "scenes": scenes, "small": small}
