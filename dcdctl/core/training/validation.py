"""Validation during a training: recalls or agreement with the teacher between steps on one corpus, which chooses the
weights, and on further ones, which show what the training loses elsewhere; and what a finished run has of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dcdctl.core import distributed, evaluation, models
from dcdctl.core.arguments import Ref, path
from dcdctl.core.data import Corpus, Direction, share_split
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.evaluation import KS, EvalOptions, RankingTask
from dcdctl.core.places import shown
from dcdctl.core.progress import CHOSEN, Say, chosen_by
from dcdctl.core.teacher import TeacherScores
from dcdctl.core.templates import Table
from dcdctl.core.training import checkpoints
from dcdctl.core.training.batches.texts import TextRows
from dcdctl.core.training.recipe import Recipe, ValidationConfig
from dcdctl.core.training.runs import ELSEWHERE, METRICS_FILE, Run

SHARES = tuple(tenth / 10 for tenth in range(11))
"""The shares of the start that `model.average_with_start` auto compares."""


LOW_COSINE = 80.0
"""Percent, of a query encoder's held-out texts to its teacher's vectors. Over 500 drawn scenes, students with 83 kept
half of their teacher's image R@1, with 71 a sixth and with 54 a twelfth (docs/query-students.md)."""


@dataclass
class Validation:
    """Validates a model between the steps of a run. If there are several processes, the main one does so while the
    others wait.

    Recalls of the first corpus are logged as val_text_r1, ..., val_rsum, its agreement as val_ndcg, those of a further
    one as NAME/val_rsum, and the cosine of held-out texts as val_cosine. The start has start_ in the place of val_, and
    the saved model saved_.
    """

    run: Run
    corpora: Mapping[str, Corpus | TextRows]
    """By name; the first chooses the best weights."""
    recipe: Recipe
    compute: Compute
    teachers: Mapping[str, TeacherScores] = field(default_factory=dict)
    """The scores of each corpus with `validation.metric` agreement, else none."""
    is_over: bool = False
    """Whether the training ends here, because its weights lose more elsewhere than `validation.max_loss_elsewhere`."""
    _start: list[float] = field(default_factory=list)
    """RSUM of the start on each corpus."""
    _done: int = 0
    _lost: float = 0.0
    """The largest loss of RSUM on a further corpus, at the last validation."""

    @property
    def at_start(self) -> bool:
        """Whether the start is validated: losses are counted from it."""
        return self.recipe.validation.at_start or len(self.corpora) > 1

    def is_due(self, done: int) -> bool:
        """Whether the model is validated after so many steps; after the last one it always is."""
        every = self.recipe.validation.every
        return bool(every) and done % every == 0

    def measure(self, model: Any, done: int) -> dict[str, float]:
        """Recalls of both directions in percent, also of the captions of each source, and their sum, or the agreement
        with the teacher; after the start also the best so far. Nothing outside the main process.

        Further corpora are measured at the start, and later only if a loss there may end the training. Saves the
        weights if they are the best so far and they lose no more elsewhere than they may. Leaves the model in
        evaluation mode.
        """
        values: dict[str, float] = {}
        is_over = False
        if distributed.is_main():
            self._done, when = done, "val" if done else "start"
            is_first_alone = done and not self.recipe.stops_elsewhere
            values = self._measures(model, when, list(self.corpora)[: 1 if is_first_alone else None])
            if not done:
                self._start = _values(values, when, self.corpora)
            elif self.recipe.stops_elsewhere:
                self._lost = _loss_elsewhere(self._of_start(), _values(values, when, self.corpora))
                is_over = self._lost > (self.recipe.validation.max_loss_elsewhere or 0.0)
            name = chosen_by(values, when)
            value, best = values[f"{when}_{name}"], checkpoints.best_value(self.run)
            if value > best and not is_over:
                checkpoints.save_best(self.run, done, value, model)
                best = value
            if done:
                values[f"val_best_{name}"] = best
        # Also a barrier: all processes end with the main one.
        self.is_over = bool(distributed.all_sum(torch.tensor(float(is_over))).item())
        return values

    def choose(self, model: Any, say: Say) -> None:
        """Load the best weights into a trained model if the recipe keeps these; it has the last ones. `say` gets why
        the training ended before its last step, if it did."""
        if self.is_over and (seal := checkpoints.read_best_seal(self.run)) is not None:
            say(
                f"the training ended after step {self._done}: RSUM on another corpus is {self._lost:.2f} below the "
                f"start's, and validation.max_loss_elsewhere is {self.recipe.validation.max_loss_elsewhere:g}; the "
                f"model has the weights after step {seal['step']}, the best before; lower optimizer.lr, raise the "
                "bound, or set model.average_with_start to auto, in another folder"
            )
        if self.recipe.validation.keep == "best":
            checkpoints.load_best(self.run, model)

    def choose_share(self, model: Any, average: Callable[[float], None]) -> float:
        """The best of `SHARES` for a model to which `average` gives the weights of a share (`best_share`), which the
        model has then."""
        lines = []
        for share in SHARES:
            average(share)
            lines.append(self.log_saved(model, share))
        bound = self.recipe.validation.max_loss_elsewhere
        best = best_share([_values(line, "saved", self.corpora) for line in lines], bound)
        average(SHARES[best])
        # The last line is that of the saved model.
        self.run.append(METRICS_FILE, lines[best])
        return SHARES[best]

    def log_saved(self, model: Any, share: float) -> dict[str, float]:
        """The line of the log with the recalls on every corpus of a model as it is saved, with this share of its
        start."""
        line = {"step": self._done - 1, "share": share, **self._measures(model, "saved", self.corpora)}
        self.run.append(METRICS_FILE, line)
        return line

    def _measures(self, model: Any, when: str, names: Iterable[str]) -> dict[str, float]:
        # Always in float32, like `dcdctl eval`: recalls of runs of different precision stay comparable.
        # Features of a query encoder's teacher are read before: its images are vectors here.
        features = None if model.encoders is None else self.compute.features
        options = EvalOptions(compute=replace(self.compute, precision="float32", features=features))
        values: dict[str, float] = {}
        keys = dict(zip(self.corpora, _keys(when, self.corpora), strict=True))
        for name in names:
            key, corpus = keys[name], self.corpora[name]
            if isinstance(corpus, TextRows):
                values[f"{key}_cosine"] = corpus.cosine(model, options.compute)
                continue
            if self.recipe.validation.metric == "agreement":
                task = RankingTask(corpus, options)
                values[f"{key}_ndcg"] = evaluation.agreement_of(model, self.teachers[name], task).ndcg
                continue
            measured = evaluation.evaluate_model(model, corpus, options=options)
            both = measured.text_retrieval, measured.image_retrieval
            for direction, measures in zip(Direction, both, strict=True):
                values |= {f"{key}_{direction}_r{k}": measures[f"R@{k}"] for k in KS}
            for groups in measured.image_recalls_by_label.values():
                for name, recalls in groups.items():
                    values |= {f"{key}_image_r{k}_{name.replace(' ', '_')}": recalls[f"R@{k}"] for k in KS}
            values[f"{key}_rsum"] = measured.rsum
        return values

    def _of_start(self) -> list[float]:
        """RSUM of the start on each corpus, which a run that resumes has logged."""
        if not self._start:
            lines = _lines(self.run.metrics(), "start")
            if not lines:
                raise InputError(
                    f"{self.run.folder / METRICS_FILE} has no recalls of the start, from which losses are counted",
                    hint=f"restore it, or {ELSEWHERE}",
                )
            self._start = _values(lines[0], "start", self.corpora)
        return self._start


def _keys(when: str, names: Iterable[str]) -> list[str]:
    """How the names of the logged recalls of each corpus begin; the first has no name in them."""
    return [when, *(f"{name}/{when}" for name in list(names)[1:])]


def _values(values: Mapping[str, float], when: str, names: Iterable[str]) -> list[float]:
    name = chosen_by(values, when)
    return [values[f"{key}_{name}"] for key in _keys(when, names)]


def _lines(metrics: Sequence[dict[str, Any]], when: str) -> list[dict[str, Any]]:
    return [line for line in metrics if chosen_by(line, when)]


def _loss_elsewhere(start: Sequence[float], rsums: Sequence[float]) -> float:
    """The largest loss of RSUM on a corpus after the first."""
    return max(before - after for before, after in zip(start[1:], rsums[1:], strict=True))


def best_share(curve: Sequence[Sequence[float]], bound: float | None) -> int:
    """The index of the best average with the start, by the RSUM of each average on each corpus; the last average is the
    start itself.

    With a bound, the highest RSUM on the first corpus among the averages that lose at most that many points on any
    other one. Without, the highest sum over all corpora. The first of equals, which has more of the training.

    >>> curve = [(300.0, 410.0), (290.0, 418.0), (200.0, 420.0)]
    >>> best_share(curve, bound=5.0), best_share(curve, bound=1.0), best_share(curve, bound=None)
    (1, 2, 0)
    """
    if bound is None:
        return max(range(len(curve)), key=lambda i: sum(curve[i]))
    # The start loses nothing, so there is always one.
    return max(
        (i for i, rsums in enumerate(curve) if _loss_elsewhere(curve[-1], rsums) <= bound), key=lambda i: curve[i][0]
    )


def check_corpora(recipe: Recipe, folders: Sequence[Path]) -> None:
    """ConfigError for settings of a recipe that need corpora which are not named."""
    if recipe.validation.max_loss_elsewhere is not None and len(folders) < 2:
        raise ConfigError(
            "validation.max_loss_elsewhere is set, and no second --validation-data is named",
            hint="name the corpus that chooses the weights first: --validation-data OWN --validation-data OTHER",
        )
    if recipe.model.average_with_start == "auto" and not (recipe.validation.every or folders):
        raise ConfigError(
            "model.average_with_start is auto, which is chosen on a validation corpus, and there is none",
            hint="--set model.average_with_start=0.5 needs none; or name a corpus with --validation-data",
        )


def open_corpora(config: ValidationConfig, folders: Sequence[Path], trained: Corpus | None = None) -> dict[str, Corpus]:
    """The splits that a training is validated on, by the names of their corpora: those of `folders`, or without any
    that of the corpus `trained`; none without validation. CorpusError if there is no such split.

    ConfigError if the training reads that split too: recalls on its own images would choose the weights that know them
    best by heart.
    """
    if trained is not None and config.every:
        folders = folders or [trained.folder]
    opened: dict[str, Corpus] = {}
    for number, folder in enumerate(folders, start=1):
        if trained is not None and folder == trained.folder and share_split(trained.split, config.split):
            hint = f"set validation.split to another split, set validation.every to 0, or train without {config.split}"
            raise ConfigError(
                f"validation.split is {config.split}, and the training reads --split {trained.split}", hint=hint
            )
        corpus = Corpus.open(folder, config.split, config.max_images)
        if corpus.is_pool and config.metric == "rsum":
            raise ConfigError(
                f"{shown(folder)} is a pool, and recalls need captions",
                hint="set validation.metric to agreement, name captioned images with --validation-data, or set "
                "validation.every to 0",
            )
        opened[f"{corpus.name}-{number}" if corpus.name in opened else corpus.name] = corpus
    return opened


def check_judged(judged: Mapping[str, Corpus], scored: Container[str]) -> None:
    """ConfigError for a corpus without scores of the teacher, if `validation.metric` needs them."""
    for name, corpus in judged.items():
        if name not in scored:
            where = f"--data {shown(corpus.folder)} --split {corpus.split}"
            raise ConfigError(
                f"validation.metric is agreement, and no teacher has scores of {shown(corpus.folder)} ({corpus.split})",
                hint=f"make a cache with `dcdctl cache-teacher {where}` and name it with --cache too, or learn from a "
                "dual --teacher",
            )


def facts_of(corpora: Mapping[str, Corpus | TextRows], teacher_plans: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprints of the validation corpora, and what the scores of their teachers depend on, for run.json."""
    prints = {name: corpus.fingerprint for name, corpus in corpora.items()}
    first = prints.pop(next(iter(prints), ""), None)
    more = {"validation_elsewhere": prints, "validation_teachers": dict(teacher_plans)}
    return {"validation": first, **{key: value for key, value in more.items() if value}}


def judged_corpora(recipe: Recipe, corpora: Mapping[str, Corpus]) -> Mapping[str, Corpus]:
    """The validation corpora that need the teacher: its scores, or the images that it embeds for a query encoder."""
    needs_teacher = recipe.validation.metric == "agreement" or recipe.model.learns_teacher_space
    return corpora if needs_teacher else {}


def run_document(run: Run) -> dict[str, Any]:
    """The result of a finished run for JSON. Loads the model, whose fingerprint is that of caches and indexes made with
    it.

    `best` is the validation that chose the weights, None for a run without one; `kept` says which weights the
    model has. InputError for a damaged log.
    """
    facts, metrics = run.facts(), run.metrics()
    # A query encoder is loaded only by its kind.
    kind: Literal["query"] | None = "query" if facts["recipe"]["model"]["kind"] == "query" else None
    seal = checkpoints.read_best_seal(run)
    best = None if seal is None else _best(seal["step"], metrics, facts.get("batches_per_epoch"))
    return {
        "run": str(run.folder),
        "model": str(run.model_folder),
        "model_digest": models.load(str(run.folder), kind=kind).digest,
        "steps": metrics[-1]["step"] + 1,
        "kept": "last" if best is None else facts["recipe"]["validation"]["keep"],
        "best": best,
        "validation": validation_document(run),
    }


def _best(step: int, metrics: list[dict[str, Any]], batches_per_epoch: float | None) -> dict[str, Any]:
    """The validation after a step."""
    # The names of the initial model's recalls begin with start_, all others with val_.
    prefix = "val" if step else "start"
    line = next(line for line in _lines(metrics, prefix) if not step or line["step"] + 1 == step)
    name = chosen_by(line, prefix)
    recalls = {}
    if name == "rsum":
        for direction in Direction:
            recalls[direction.key] = {f"R@{k}": line[f"{prefix}_{direction}_r{k}"] for k in KS}
    epoch = None if batches_per_epoch is None else round(step / batches_per_epoch, 3)
    return {"step": step, "epoch": epoch, **recalls, name: float(line[f"{prefix}_{name}"])}


def validation_document(run: Run) -> dict[str, Any] | None:
    """What a finished run gained and lost; None without validation.

    `corpora` has the `measure` (RSUM or nDCG@10) of the start, None if it was not measured, and of the saved model on
    each corpus. `share` is that of the start in the saved weights.
    """
    facts, metrics = run.facts(), run.metrics()
    names, validated = facts.get("validated_on", []), _lines(metrics, "val")
    if not names or not validated:
        return None
    start, last, compared = _lines(metrics, "start"), validated[-1], _lines(metrics, "saved")
    starts, name = _values(start[0], "start", names) if start else [], chosen_by(last)
    if compared:
        saved, share = _values(compared[-1], "saved", names), compared[-1]["share"]
    else:
        kept, share = facts["recipe"]["validation"]["keep"], 0.0
        saved = [last[f"val_{name}" if kept == "last" else f"val_best_{name}"]]
    corpora = []
    for number, corpus in enumerate(names):
        before = starts[number] if starts else None
        corpora.append({"corpus": corpus, "start": before, "saved": saved[number]})
    return {"measure": CHOSEN[name], "corpora": corpora, "share": share}


def cosine_note(run: Run) -> str | None:
    """What the user of a query encoder should know: that its held-out texts are far from its teacher's vectors. None
    for one that is near, and for a run without such a validation."""
    document = validation_document(run)
    if document is None or document["measure"] != CHOSEN["cosine"]:
        return None
    cosine = document["corpora"][0]["saved"]
    if cosine >= LOW_COSINE:
        return None
    return (
        f"the query encoder {run.folder} gives held-out texts vectors with a cosine of {cosine:.1f} % to its "
        f"teacher's, under {LOW_COSINE:g} %: it finds few of the images that the teacher finds; train it longer or on "
        "more texts, and measure it with `dcdctl eval TEACHER --query-model`"
    )


def say_of_query_model(ref: Ref | None, say: Say) -> None:
    """A line to `say` if a query encoder is far from its teacher, before it answers every search. Only a run knows its
    held-out texts."""
    if ref is None:
        return
    folder = path(ref)
    is_run = (folder / "run.json").is_file() and Run(folder).is_finished
    if is_run and (note := cosine_note(Run(folder))):
        say(note)


def validation_table(document: Mapping[str, Any]) -> Table:
    """The measure of start and saved model on each corpus."""
    rows = []
    for each in document["corpora"]:
        start, saved = each["start"], each["saved"]
        before, change = ("-", "-") if start is None else (f"{start:.2f}", f"{saved - start:+.2f}")
        rows.append([each["corpus"], before, f"{saved:.2f}", change])
    columns = ["corpus", "start", "saved model", "change"]
    return Table(f"Validation, {document['measure']}", columns, rows)
