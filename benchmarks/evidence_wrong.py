"""The plan `wrong-captions`: what captions that are wrong cost a student, and what a teacher that checks them gives
back.

Scenes: 1,024 training scenes with 5 captions each. In the corpora `shuffled-N`, N % of the captions have moved to other
scenes, which the field calls noisy correspondence. In the others, half of the captions have one kind of error that real
captions have (`wrong_captions.KINDS`). Late-interaction students start from random weights, dual students from the
built-in CLIP, and the teacher is the built-in ViLT of the scenes.

Photos: 2,000 of Flickr8k, with shuffled captions. Three dual encoders of the 4,000 other photos of its train are one
teacher, and three students of the same captions are another one. A trained tower has one share.

All rows of a table are measured on the same captions, all of them right: of 500 test scenes, or of the 1,000 photos of
val.

The skeptic needs no teacher: the student of the captions checks these itself, and its own scores teach a new student.
It has one round, because it has already scored the images that it takes for the best. Its row is the base of every
table, and it also has a row with its check alone, since its scores may teach what is wrong. Late interaction is checked
by a dual student of the captions, too: that one starts from a CLIP, and so it has not learned the wrong ones by heart.

With dual teachers every pair has a score, so the rows of photos re-pair without a second round.

Expected, written on 2026-12-03 before the runs: the rows of `EXPECTED`. They come from trials with one seed on other
scenes, and from the rows of the plans `picked` and `towers` that are equal to those with clean captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import evidence_towers
import scenes_clip
from evidence_picked import ALONE, FROM_CLIP, FROZEN, NO_POOL, TEACHER, TEST
from evidence_steps import SEEDS, Step, sets
from wrong_captions import KINDS, SHARES

NUM_TEST = 500
COMMAND = "checked, re-paired, and the teacher's scores beside"
REPAIRED = "checked and re-paired, labels alone"
BESIDE = "the teacher's scores beside, every caption counts"
CHECKED = "checked by the teacher, labels alone"
SKEPTIC = "checked by the student of the captions, no teacher"
SKEPTIC_LABELS = f"{SKEPTIC}, labels alone"
BY_DUAL = "checked by a dual student of the captions, no teacher, labels alone"
NO_CHECK = "captions alone"
SMOOTH = "captions alone, label smoothing 0.1"
CLEAN, CLEAN_TAUGHT = "clean captions alone", "clean captions, and the teacher's scores beside"
OF_THREE = "checked by three students of the captions, no teacher"
THREE_BESIDE = "the scores of three students of the captions beside, every caption counts"
PARTS = {
    "the teacher rather than the skeptic": (COMMAND, SKEPTIC),
    "the teacher rather than the skeptic, labels alone": (REPAIRED, SKEPTIC_LABELS),
    "the check, beside the teacher's scores": (COMMAND, BESIDE),
    "the check, labels alone": (CHECKED, NO_CHECK),
    "re-pairing, labels alone": (REPAIRED, CHECKED),
    "what clean captions have more": (CLEAN_TAUGHT, COMMAND),
}
"""Differences of rows with an interval over queries and seeds. With dual teachers, the check also re-pairs."""


@dataclass(frozen=True)
class Student:
    """A student of scenes: what its runs and tables are called, and how it is trained."""

    name: str
    title: str
    recipe: str
    settings: tuple[str, ...] = ()

    def table(self, noise: str) -> str:
        return f"{self.title}, {noise}"

    def run(self, corpus: str, seed: int) -> str:
        return f"runs/{self.name}-{corpus}-{seed}"


LATE = Student("late", "Late interaction", "late-mined")
DUAL = Student("dual", "Dual from a small CLIP", "pool-picked", (*FROM_CLIP, *NO_POOL))
STUDENTS = (LATE, DUAL)
PHOTOS, TOWER, TEACHERS = "Photos, frozen encoders", "Photos, a trained tower", "Photos, the teachers"
SHUFFLED = "{} % of the captions shuffled"
TABLES = (
    *(student.table(SHUFFLED.format(share)) for student in STUDENTS for share in SHARES),
    *(student.table(kind) for student in STUDENTS for kind in KINDS.values()),
    *(f"{PHOTOS}, {SHUFFLED.format(share)}" for share in SHARES),
    f"{TOWER}, {SHUFFLED.format(SHARES[0])}",
)
ROWS = (NO_CHECK, SMOOTH, SKEPTIC, SKEPTIC_LABELS, CHECKED, BESIDE, REPAIRED, COMMAND)
PHOTO_ROWS = (NO_CHECK, SMOOTH, SKEPTIC, OF_THREE, THREE_BESIDE, BESIDE, COMMAND)
TOWER_ROWS = (NO_CHECK, SKEPTIC, BESIDE, COMMAND, CLEAN)
EXPECTED = {
    LATE.title: {
        0: (569, 570, 588, 591, 569, 592, 591, 592),
        20: (500, 505, 520, 525, 560, 578, 588, 591),
        40: (390, 400, 420, 420, 545, 555, 584, 588),
        60: (230, 240, 240, 240, 480, 500, 578, 584),
        "near": (430, 432, 430, 430, 540, 560, 575, 583),
        "cut": (530, 532, 545, 550, 535, 585, 560, 585),
        "swap": (500, 503, 515, 520, 545, 575, 570, 582),
        "file-name": (540, 540, 550, 555, 545, 575, 570, 582),
        "language": (545, 545, 555, 560, 545, 570, 570, 580),
    },
    DUAL.title: {
        0: (444, 444, 441, 444, 444, 440, 442, 440),
        20: (424, 425, 435, 437, 440, 430, 442, 440),
        40: (400, 402, 425, 428, 433, 420, 437, 437),
        60: (355, 358, 395, 400, 418, 400, 430, 433),
        "near": (415, 416, 415, 416, 425, 425, 432, 432),
        "cut": (428, 429, 430, 431, 430, 430, 432, 432),
        "swap": (425, 426, 427, 428, 432, 430, 434, 434),
        "file-name": (432, 432, 434, 436, 437, 432, 437, 437),
        "language": (430, 430, 432, 434, 437, 430, 437, 437),
    },
    PHOTOS: {
        0: (248, 245, 253, 257, 257, 284, 284),
        20: (230, 229, 243, 248, 245, 280, 282),
        40: (205, 206, 222, 228, 224, 272, 279),
        60: (165, 167, 185, 192, 188, 258, 273),
    },
    TOWER: {40: (215, 232, 268, 276, 264)},
}
"""RSUM of each row of `ROWS`, `PHOTO_ROWS` or `TOWER_ROWS` by corpus, a mean of three seeds; within 6, a row is as
expected. The rows of clean captions are those of 0 %. A dual student's check brings late interaction 560 with 40 %
shuffled captions, 575 with 20 % and 530 with 60 %, labels alone. The teachers of photos have 282 each."""
SMOOTHING, EVERY_CAPTION = sets(loss__label_smoothing=0.1), sets(captions__checked="none")
FEW_SCORES = sets(candidates__kind="random", candidates__model="", candidates__per_query=3)
"""So few that a check can doubt a caption, but not pick another image for it."""
OTHERS = tuple(f"runs/others-{seed}" for seed in SEEDS)
"""The three teachers of photos."""


def wrong_captions() -> list[Step]:
    """Shuffled captions of scenes, first for late interaction; then the kinds of errors, and the photos."""
    steps = corpora((*(f"shuffled-{share}" for share in SHARES), *KINDS))
    for student in STUDENTS:
        for share in SHARES:
            corpus, table = f"shuffled-{share}", student.table(SHUFFLED.format(share))
            seeds = [Rows(student, corpus, table, seed) for seed in SEEDS]
            steps += [step for rows in seeds for step in rows.main()]
            steps += [_few_scores(corpus)] if student == LATE else []
            # Row by row, so that a killed plan has rows of all seeds.
            steps += [step for row in zip(*(rows.further() for rows in seeds), strict=True) for step in row]
        for share in filter(None, SHARES):
            table = student.table(SHUFFLED.format(share))
            steps += [step for seed in SEEDS for step in Rows(student, f"shuffled-{share}", table, seed).clean()]
    steps += [step for share in SHARES for seed in SEEDS for step in _by_dual(share, seed)]
    kinds = [
        Rows(student, kind, student.table(noise), seed)
        for seed in SEEDS
        for kind, noise in KINDS.items()
        for student in STUDENTS
    ]
    steps += [step for rows in kinds for step in (*rows.main(), *rows.clean())]
    steps += map(_few_scores, KINDS)
    steps += [step for rows in kinds for step in rows.further()]
    return [*steps, *photos()]


def corpora(names: Iterable[str]) -> list[Step]:
    """The test scenes, and the training scenes with captions of these kinds."""
    size = sets(counts__train=0, counts__val=0, counts__test=NUM_TEST)
    steps = [Step("data/scenes", "prepare", ("scenes", "--image-size", str(scenes_clip.SIDE_PX), *size))]
    for name in names:
        words = ("--jsonl", f"{name}.jsonl", "--images", "photos/scenes")
        steps.append(Step(f"data/{name}", "prepare", words))
    return steps


def _few_scores(corpus: str) -> Step:
    """The teacher's scores of random pairs, which all students of a corpus share."""
    words = ("--data", f"data/{corpus}", "--teacher", TEACHER, "--recipe", LATE.recipe, *FEW_SCORES)
    return Step(f"caches/few-{corpus}", "cache-teacher", words, (f"data/{corpus}",))


@dataclass(frozen=True)
class Rows:
    """The rows of a student of scenes: a corpus, the table of it, and a seed."""

    student: Student
    corpus: str
    table: str
    seed: int

    @property
    def run(self) -> str:
        return self.student.run(self.corpus, self.seed)

    @property
    def name(self) -> str:
        return self.run.removeprefix("runs/")

    @property
    def own(self) -> tuple[str, ...]:
        return (*self.student.settings, *sets(seed=self.seed))

    @property
    def proposed(self) -> tuple[str, ...]:
        """The candidates that the student of the captions proposes."""
        return sets(candidates__model=f"{self.run}-rounds/run-0")

    def main(self) -> Iterator[Step]:
        """One command; the student of the captions, which it begins with; and the skeptic."""
        yield self._train("", ("--teacher", TEACHER), (f"data/{self.corpus}",), COMMAND)
        first = f"{self.run}-rounds/run-0"
        yield self._eval("alone", first, (self.run,), NO_CHECK)
        skeptic = f"caches/{self.name}-skeptic"
        words = ("--data", f"data/{self.corpus}", "--teacher", first, "--recipe", self.student.recipe)
        yield Step(skeptic, "cache-teacher", (*words, *self.student.settings, *self.proposed), (self.run,))
        yield self._train("skeptic", ("--cache", skeptic, *self.proposed), (skeptic,), SKEPTIC)

    def further(self) -> Iterator[Step]:
        """The parts of that command, one by one."""
        # A teacher that doubts no caption has no second round, and it may not doubt some kinds of errors.
        last = 2 if self.corpus in ("shuffled-20", "shuffled-40", "shuffled-60") else 1
        by_first, by_last = (("--cache", f"{self.run}-rounds/cache-{number}", *self.proposed) for number in (1, last))
        skeptic, after = f"caches/{self.name}-skeptic", (self.run,)
        yield self._train("scores", (*by_first, *EVERY_CAPTION), after, BESIDE)
        yield self._train("repaired", (*by_last, *ALONE), after, REPAIRED)
        few = f"caches/few-{self.corpus}"
        yield self._train("checked", ("--cache", few, *FEW_SCORES, *ALONE), (few,), CHECKED)
        yield self._train("smooth", (*ALONE, *SMOOTHING), (f"data/{self.corpus}",), SMOOTH)
        yield self._train("skeptic-labels", ("--cache", skeptic, *self.proposed, *ALONE), (skeptic,), SKEPTIC_LABELS)

    def clean(self) -> Iterator[Step]:
        """The students of captions that are all right, for a table of wrong ones."""
        run = self.student.run("shuffled-0", self.seed)
        yield self._eval("clean", f"{run}-rounds/run-0", (run,), CLEAN)
        yield self._eval("clean-taught", run, (run,), CLEAN_TAUGHT)

    def _train(self, name: str, words: tuple[str, ...], after: tuple[str, ...], label: str) -> Step:
        out = f"{self.run}-{name}" if name else self.run
        arguments = (self.student.recipe, "--data", f"data/{self.corpus}", *self.own, *words)
        return Step(out, "distill", arguments, (*after, "data/scenes"), self.table, label, SKEPTIC, TEST)

    def _eval(self, name: str, run: str, after: tuple[str, ...], label: str) -> Step:
        return Step(f"{self.run}-{name}", "eval", (run, *TEST), after, self.table, label, SKEPTIC)


def _by_dual(share: int, seed: int) -> Iterator[Step]:
    """Late interaction on captions that a dual student of the same captions has checked."""
    corpus = f"shuffled-{share}"
    dual, late = DUAL.run(corpus, seed), LATE.run(corpus, seed)
    cache = f"caches/late-{corpus}-{seed}-by-dual"
    proposed = sets(candidates__model=f"{dual}-rounds/run-0")
    data = ("--data", f"data/{corpus}")
    scoring = (*data, "--teacher", f"{dual}-rounds/run-0", "--recipe", LATE.recipe, *proposed)
    words = (LATE.recipe, *data, "--cache", cache, *proposed, *ALONE, *sets(seed=seed))
    table = LATE.table(SHUFFLED.format(share))
    yield Step(cache, "cache-teacher", scoring, (dual,))
    yield Step(f"{late}-by-dual", "distill", words, (cache,), table, BY_DUAL, SKEPTIC, TEST)


def photos() -> Iterator[Step]:
    """Students of photos over frozen encoders, by each share; then those that train the last layers of the encoders."""
    for name in ("photos-others", *(f"photos-{share}" for share in SHARES)):
        yield Step(f"data/{name}", "prepare", ("--karpathy", f"{name}.json", "--images", "images"))
    for seed in SEEDS:
        words = ("photos", "--data", "data/photos-others", *FROZEN, *sets(seed=seed))
        after = ("data/photos-others", "data/photos-0")
        yield Step(OTHERS[seed], "distill", words, after, TEACHERS, "teachers of 4,000 other photos", "", _val())
    for share in SHARES:
        # All seeds of the students of the captions first, since three of them are a teacher.
        for seed in SEEDS:
            yield _photo_student(share, seed, "alone", NO_CHECK, ("photos",))
        for seed in SEEDS:
            yield from _checked_photos(share, seed)
    for share in filter(None, SHARES):
        for seed in SEEDS:
            for name, label in {"alone": CLEAN, "taught": CLEAN_TAUGHT}.items():
                run, table = f"runs/photos-0-{seed}-{name}", f"{PHOTOS}, {SHUFFLED.format(share)}"
                out = f"runs/photos-{share}-{seed}-clean-{name}"
                yield Step(out, "eval", (run, *_val()), (run,), table, label, SKEPTIC)
    for seed in SEEDS:
        yield from _trained_towers(SHARES[0], seed)


def _val(*, stored: bool = True) -> tuple[str, ...]:
    return ("--data", "data/photos-0", "--split", "val", *(FROZEN[:2] if stored else ()))


def _by(*teachers: str) -> tuple[str, ...]:
    return tuple(word for teacher in teachers for word in ("--teacher", teacher))


def _photo_student(share: int, seed: int, name: str, label: str, words: tuple[str, ...]) -> Step:
    recipe, *rest = words
    arguments = (recipe, "--data", f"data/photos-{share}", *FROZEN, *sets(seed=seed), *rest)
    teachers = tuple(word for word in rest if word.startswith("runs/"))
    after = (f"data/photos-{share}", "data/photos-0", *teachers)
    out, table = f"runs/photos-{share}-{seed}-{name}", f"{PHOTOS}, {SHUFFLED.format(share)}"
    return Step(out, "distill", arguments, after, table, label, SKEPTIC, _val())


def _checked_photos(share: int, seed: int) -> Iterator[Step]:
    itself = _by(f"runs/photos-{share}-{seed}-alone")
    of_same = _by(*(f"runs/photos-{share}-{number}-alone" for number in SEEDS))
    rows = {
        "taught": (COMMAND, _by(*OTHERS)),
        "scores": (BESIDE, (*_by(*OTHERS), *EVERY_CAPTION)),
        "skeptic": (SKEPTIC, itself),
        "three": (OF_THREE, of_same),
        "three-scores": (THREE_BESIDE, (*of_same, *EVERY_CAPTION)),
    }
    for name, (label, words) in rows.items():
        yield _photo_student(share, seed, name, label, ("photos-distilled", *words))
    yield _photo_student(share, seed, "smooth", SMOOTH, ("photos", *SMOOTHING))


def _trained_towers(share: int, seed: int) -> Iterator[Step]:
    """The last layers of both encoders, trained as in the plan `towers` from the frozen student of the captions."""
    table = f"{TOWER}, {SHUFFLED.format(share)}"
    itself = _by(f"runs/photos-{share}-{seed}-alone")
    rows = {
        "taught": (COMMAND, share, ("photos-distilled", *_by(*OTHERS))),
        "alone": (NO_CHECK, share, ("photos",)),
        "skeptic": (SKEPTIC, share, ("photos-distilled", *itself)),
        "scores": (BESIDE, share, ("photos-distilled", *_by(*OTHERS), *EVERY_CAPTION)),
        "clean": (CLEAN, 0, ("photos",)),
    }
    for name, (label, percent, (recipe, *words)) in rows.items():
        start, data = f"runs/photos-{percent}-{seed}-alone", f"data/photos-{percent}"
        trained = (*FROZEN[:2], *evidence_towers.LAST_LAYERS, *evidence_towers.LENGTHS["few"])
        arguments = (recipe, "--data", data, *trained, *sets(model__start=start, seed=seed), *words)
        teachers = tuple(word for word in words if word.startswith("runs/"))
        after = (start, *teachers, "data/photos-0")
        out = f"runs/tower-{share}-{seed}-{name}"
        yield Step(out, "distill", arguments, after, table, label, SKEPTIC, _val(stored=False))
