"""The plan `fair`: what part of a distilled student's gain is regularization, resolution, data and knowledge, on
Flickr8k.

Teachers and students of a row see the same photos unless its label says otherwise. Settings were chosen on the last
1,000 photos of train, with students and teachers of the photos before them, once and outside of this plan
(docs/evidence/results/fair/chosen.md); results are reported on val. Teachers and students of one seed belong together;
the co-attention has one seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from evidence_steps import SEEDS, Step, sets

FEATURES = ("--features", "features")
ENCODERS = (*FEATURES, *sets(model__vision="vision", model__text="text"))
ALL = 6000
SIZES = (500, 1500, ALL)
"""Numbers of photos: the first ones of train."""
RECIPES = {224: "photos", 288: "photos-large"}
TABLE, FUSION = "Flickr8k, {:,} photos", "Fusion students, 2 layers to 1, fresh negatives"

EPOCHS = {(500, 224): 120, (500, 288): 120, (1500, 224): 80, (1500, 288): 80, (ALL, 224): 100, (ALL, 288): 100}
"""Undistilled students take these, by number of photos and size of their images."""
SMOOTHING = 0.1
TAUGHT_EPOCHS = {500: 480, 1500: 160, ALL: 100}
"""Epochs of distilled students: 480, 800 and 2,300 steps."""
WARM_KL_ALONE = sets(loss__terms="{kl=4.0}", model__dropout=0.1)
"""Changes to recipe photos-distilled for students of few photos and a teacher of more. Others have its InfoNCE + KL."""
SELF, SAME, MORE = (
    "self-distillation",
    "dual teacher at 288 px",
    "dual teacher at 288 px, trained on 6,000 photos (more data)",
)

PLAIN, LONG, LARGE = "undistilled, 224 px", "undistilled, 224 px, as many steps as distilled", "undistilled, 288 px"
SMOOTH = "label smoothing"
DYNAMIC, ENSEMBLE = "dual teacher at 288 px, DCD-KL in place of KL", "three dual teachers at 288 px"
PAIR, PAIR_ITSELF = (
    "co-attention teacher at 288 px",
    "the co-attention teacher itself, re-ranking the first 50 of its dual",
)
BETTER_TEACHERS: dict[str, str] = {}
"""Label and run folder of further dual teachers of 6,000 photos, such as `{"a teacher with trained encoders":
"runs/tuned-0"}`."""
PARTS = {
    "more steps": (LONG, PLAIN),
    "regularization: label smoothing": (SMOOTH, PLAIN),
    "regularization: self-distillation": (SELF, PLAIN),
    "resolution: a teacher at 288 px in place of itself": (SAME, SELF),
    "resolution without a teacher": (LARGE, PLAIN),
    "data: a teacher of 6,000 photos in place of the same photos": (MORE, SAME),
    "knowledge: three teachers in place of one": (ENSEMBLE, SAME),
    "knowledge: co-attention in place of a dual encoder": (PAIR, SAME),
    "dynamic weights: DCD-KL in place of KL": (DYNAMIC, SAME),
    "the student at 224 px against its teacher at 288 px": (SAME, LARGE),
}
"""Parts of a gain: the difference of two rows."""
FUSION_LOSSES: dict[str, tuple[str, ...]] = {
    "ground truth (BCE)": sets(loss="{terms={ground-truth=1.0}}"),
    "MSE and ground truth": sets(loss="{terms={mse=0.5,ground-truth=0.5}}"),
    "DCD": sets(),
    "DCD as released": sets(loss__terms="{dcd-released=1.0}"),
    "InfoNCE": sets(loss="{terms={infonce=1.0}}", batch__size=16),
    "KL": sets(loss="{terms={kl=1.0}}", batch__size=16),
}
"""Changes to recipe photos-fusion for each label."""


def fair() -> list[Step]:
    """Every row of the fair tables, the most important first."""
    steps = [Step("data", "prepare", ("--karpathy", "karpathy.json", "--images", "images")), *_features()]
    few = [(size, seed) for size in SIZES[:-1] for seed in SEEDS]
    many = [(ALL, seed) for seed in SEEDS]
    # Teachers of 6,000 photos come before the students of few photos that learn from them.
    steps += [step for photos in (*few, *many) for step in _undistilled_rows(*photos)]
    steps += [step for photos in few for step in _distilled_rows(*photos)]
    steps += [step for size, seed in few for step in _regularized_rows(size, seed)]
    steps += [step for photos in many for step in _distilled_rows(*photos)]
    steps += [step for rows in (_more_teacher_rows, _co_attention_rows) for photos in few for step in rows(*photos)]
    steps += [
        step
        for rows in (_regularized_rows, _more_teacher_rows, _co_attention_rows)
        for photos in many
        for step in rows(*photos)
    ]
    steps += [step for seed in SEEDS for step in _fusion_rows(seed)]
    return list({step.out: step for step in steps}.values())


def _photos(size: int) -> tuple[str, ...]:
    """The first photos of train."""
    return ("--data", "data", *(() if size == ALL else ("--max-images", str(size))))


VAL = ("--data", "data", *FEATURES, "--split", "val")


def _features() -> Iterator[Step]:
    """One training step for each set of features, so that their cost is charged to no row."""
    for size in SIZES:
        for pixels, recipe in RECIPES.items():
            words = (recipe, *_photos(size), *ENCODERS, *sets(optimizer__steps=1))
            yield Step(_features_of(size, pixels), "distill", words, ("data",), measure=VAL)


def _features_of(size: int, pixels: int) -> str:
    return f"runs/features-data-{size}-{pixels}"


def _undistilled(size: int, pixels: int, words: Iterable[str], name: str, row: tuple[str, str, str], seed: int) -> Step:
    """A dual encoder that learns from the photos alone; `row` is table, label and base."""
    arguments = (RECIPES[pixels], *_photos(size), *ENCODERS, *sets(seed=seed), *words)
    return Step(f"runs/{name}-{seed}", "distill", arguments, (_features_of(size, pixels),), *row, VAL)


def _distilled(
    size: int,
    teachers: tuple[str, ...],
    words: Iterable[str],
    name: str,
    row: tuple[str, str, str],
    seed: int,
) -> Step:
    """A dual encoder at 224 px that learns from dual teachers, or from caches of other teachers."""
    taught = (
        word for teacher in teachers for word in ("--cache" if teacher.startswith("caches/") else "--teacher", teacher)
    )
    settings = sets(seed=seed, optimizer__epochs=TAUGHT_EPOCHS[size])
    arguments = ("photos-distilled", *taught, *_photos(size), *ENCODERS, *settings, *words)
    needs = (*teachers, _features_of(size, 224))
    return Step(f"runs/{name}-{seed}", "distill", arguments, needs, *row, VAL)


def _row(size: int, label: str) -> tuple[str, str, str]:
    return TABLE.format(size), label, PLAIN


def _large(size: int, seed: int) -> str:
    return f"runs/large{size}-{seed}"


def _undistilled_rows(size: int, seed: int) -> Iterator[Step]:
    """No teacher; the students at 288 px are the dual teachers of other rows."""
    for pixels, label, name in ((224, PLAIN, "plain"), (288, LARGE, "large")):
        words = sets(optimizer__epochs=EPOCHS[size, pixels])
        yield _undistilled(size, pixels, words, f"{name}{size}", _row(size, label), seed)


def _distilled_rows(size: int, seed: int) -> Iterator[Step]:
    """The student itself as its teacher, a larger dual encoder of the same photos, and one of all photos."""
    teachers = {SELF: f"runs/plain{size}-{seed}", SAME: _large(size, seed), MORE: _large(ALL, seed)}
    for index, (label, teacher) in enumerate(teachers.items()):
        if label != MORE or size != ALL:
            words = WARM_KL_ALONE if label == MORE else ()
            yield _distilled(size, (teacher,), words, f"taught{size}-{index}", _row(size, label), seed)


def _regularized_rows(size: int, seed: int) -> Iterator[Step]:
    """Label smoothing, and as many steps as the distilled students take."""
    words = sets(optimizer__epochs=EPOCHS[size, 224], loss__label_smoothing=SMOOTHING)
    yield _undistilled(size, 224, words, f"smooth{size}", _row(size, SMOOTH), seed)
    if EPOCHS[size, 224] != TAUGHT_EPOCHS[size]:
        words = sets(optimizer__epochs=TAUGHT_EPOCHS[size])
        yield _undistilled(size, 224, words, f"long{size}", _row(size, LONG), seed)


def _more_teacher_rows(size: int, seed: int) -> Iterator[Step]:
    """Dynamic weights, and other teachers."""
    dynamic = sets(loss__terms="{infonce=1.0,dcd-kl=4.0}")
    yield _distilled(size, (_large(size, seed),), dynamic, f"dynamic{size}", _row(size, DYNAMIC), seed)
    three = tuple(_large(size, each) for each in SEEDS)
    yield _distilled(size, three, (), f"ensemble{size}", _row(size, ENSEMBLE), seed)
    for index, (label, teacher) in enumerate(BETTER_TEACHERS.items()):
        yield _distilled(size, (teacher,), (), f"better{size}-{index}", _row(size, label), seed)


def _co_attention_rows(size: int, seed: int) -> Iterator[Step]:
    """A co-attention that starts from the dual encoder at 288 px, trained on the same photos; one teacher for the
    students of all seeds."""
    cache = f"caches/pair{size}-0"
    if seed == SEEDS[0]:
        large = _large(size, 0)
        words = ("photos-teacher", *_photos(size), *ENCODERS, *sets(seed=0, model__dual_init=large))
        row, measure = _row(size, PAIR_ITSELF), (*VAL, "--depth", "50")
        pair = Step(f"runs/pair{size}-0", "finetune-teacher", words, (large,), *row, measure, measured=large)
        scoring = (*_photos(size), *FEATURES, "--teacher", pair.out, "--recipe", "photos-distilled")
        yield from (pair, Step(cache, "cache-teacher", scoring, (pair.out,)))
    yield _distilled(size, (cache,), (), f"paired{size}", _row(size, PAIR), seed)


def _fusion_rows(seed: int) -> Iterator[Step]:
    """Half-depth students of the co-attention of all photos, which re-rank the first 20 of an undistilled dual
    encoder."""
    pair, cache, plain = f"runs/pair{ALL}-0", f"caches/pair{ALL}-0", f"runs/plain{ALL}-0"
    for index, (label, words) in enumerate(FUSION_LOSSES.items()):
        row = (FUSION, label, next(iter(FUSION_LOSSES)))
        arguments = (
            "photos-fusion",
            "--teacher",
            pair,
            "--cache",
            cache,
            "--data",
            "data",
            *FEATURES,
            *sets(seed=seed),
            *words,
        )
        measure = (*VAL, "--depth", "20")
        yield Step(f"runs/fusion{index}-{seed}", "distill", arguments, (cache, plain), *row, measure, measured=plain)
