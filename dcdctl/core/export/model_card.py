"""What a model is, in the form that the Hub reads: README.md with a head of YAML, from run.json, result.json and bench.json of its run.

What these do not say is left out, or said with the command that finds it out; nothing is supposed.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dcdctl.core import evaluation, files
from dcdctl.core.data import CORPUS_FILE, Corpus, Direction, read_corpus_json
from dcdctl.core.errors import DcdError
from dcdctl.core.evaluation import Figure, Result, Times, flat
from dcdctl.core.report import Gap

TASK = "image-text-retrieval"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a run's folder says of how its model came to be, and of how good and fast it is."""

    ref: str
    facts: dict[str, Any] | None = None
    """run.json."""
    result: Result | None = None
    times: Times | None = None
    data: tuple[Path, ...] = ()
    """Folders where the corpora may be."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Every field of the recipe by its dotted name."""
        return flat(self.facts["recipe"]) if self.facts is not None else {}

    @property
    def has_teacher(self) -> bool:
        """Whether it learned from the scores of another model."""
        return self.facts is not None and bool(self.facts["inputs"].get("cache"))


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What the card says beside the past of the model."""

    name: str
    title: str
    """What kind of model it is, in a sentence."""
    library: str
    task: str | None
    tags: tuple[str, ...]
    usage: str
    requirements: tuple[str, ...]
    checked: str
    """What the exported files were found to give, in a sentence."""
    licence: str | None
    notes: tuple[str, ...] = ()


def read_past(ref: str, data: Path | None = None) -> Past:
    """What the folder of a run says; of a model that is none, nothing."""
    folder = Path(ref)
    facts = files.read_json(folder / "run.json", hint="restore it, or export another run") if (folder / "run.json").exists() else None
    result, times = evaluation.read_result(folder / "result.json"), evaluation.read_times(folder / "bench.json", "student")
    named = [data, None if result is None or result.data is None else Path(result.data), *_told(facts, "--data")]
    places = dict.fromkeys(place for place in named if place is not None and (place / CORPUS_FILE).exists())
    return Past(ref=ref, facts=facts, result=result, times=times, data=tuple(places))


def gaps_of(past: Past, licence: str | None) -> list[Gap]:
    """What the card cannot say, and the commands that change it."""
    ref, data = public(past.ref), "DIR"
    gaps = []
    if past.result is None or past.result.rsum.interval is None:
        what = "recall" if past.result is None else "intervals of the recalls"
        gaps.append(Gap(what, shlex.join(["dcdctl", "eval", ref, "--data", data])))
    if past.times is None:
        gaps.append(Gap("speed", shlex.join(["dcdctl", "bench", ref, "--teacher", "REF", "--data", data])))
    if licence is None:
        gaps.append(Gap("licence of the weights", "dcdctl export --license ID"))
    return gaps


def write(folder: Path, sheet: Sheet, past: Past) -> None:
    """Write README.md; ValueError if the Hub's own reader would not take it."""
    text = f"---\n{_head(sheet, past).to_yaml()}\n---\n\n{_body(sheet, past)}"
    (folder / "README.md").write_text(text, encoding="utf-8")
    ModelCard.load(folder / "README.md")


def public(word: str) -> str:
    """A word of a command line or a recipe without the folders of this machine.

    >>> public("/home/me/runs/dual"), public("model.vision=/data/vision"), public("data/scenes"), public("kl=0.5")
    ('dual', 'model.vision=vision', 'data/scenes', 'kl=0.5')
    """
    return re.sub(r"(^|=)[/~](?:[^/]*/)*(?=[^/])", r"\1", word)


def _head(sheet: Sheet, past: Past) -> ModelCardData:
    bases = [ref for side in ("vision", "text") if (ref := past.recipe.get(f"model.{side}")) and _is_hub_id(ref)]
    return ModelCardData(
        model_name=sheet.name,
        library_name=sheet.library,
        pipeline_tag=sheet.task,
        license=sheet.licence,
        base_model=bases or None,
        tags=[TASK, *(["knowledge-distillation"] if past.has_teacher else []), "dcdctl", *sheet.tags],
        eval_results=_eval_results(past.result, past) or None,
    )


def _eval_results(result: Result | None, past: Past) -> list[EvalResult]:
    if result is None:
        return []
    corpus = _corpus_name(past, result.split, result.fingerprint, result.num_images)
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image-text retrieval",
            dataset_type=re.sub(r"\W+", "-", corpus.lower()),
            dataset_name=corpus,
            dataset_split=result.split,
            dataset_args={"fingerprint": result.fingerprint, "images": result.num_images, "captions": result.num_captions},
            metric_type=f"{way.key}_{name.lower().replace('@', '_at_')}",
            metric_name=f"{way.title.capitalize()} {name}",
            metric_value=round(figure.value, 2),
        )
        for way in Direction
        for name, figure in result.retrieval[way].recalls.items()
    ]


def _body(sheet: Sheet, past: Past) -> str:
    parts = [f"# {sheet.name}", sheet.title, "## Use", f"    pip install {' '.join(map(shlex.quote, sheet.requirements))}"]
    parts += [f"```python\n{sheet.usage}```", *sheet.notes, sheet.checked, "## Recall", *_recall(past)]
    parts += ["## Speed", _speed(past), "## Training", *_training(past), "## Licence", *_licence(sheet, past)]
    return "\n\n".join(parts) + "\n"


def _recall(past: Past) -> list[str]:
    gap = next((f"Not measured: `{one.command}`." for one in gaps_of(past, "") if one.what == "recall"), None)
    result = past.result
    if result is None:
        return [gap or ""]
    names = list(result.retrieval[Direction.TEXT].recalls)
    rows = [["", *names], ["---"] * (1 + len(names))]
    rows += [[way.title.capitalize(), *(_with_interval(result.retrieval[way].recalls[name]) for name in names)] for way in Direction]
    corpus = _corpus_name(past, result.split, result.fingerprint, result.num_images)
    protocol = "" if result.protocol in (None, "whole") else f", protocol {result.protocol}"
    about = f"{corpus}, split {result.split}: {result.num_images:,} images, {result.num_captions:,} captions{protocol}"
    level = " In brackets the 95% interval over draws of images." if result.rsum.interval is not None else ""
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    words = f"Percent of queries with a right answer among the first K, on {about}; the sum of the six is {_with_interval(result.rsum)}."
    return [f"{words}{level} A tie counts against the right answer.", table]


def _with_interval(figure: Figure) -> str:
    interval = "" if figure.interval is None else f" ({figure.interval.low:.1f} to {figure.interval.high:.1f})"
    return f"{figure.value:.2f}{interval}"


def _speed(past: Past) -> str:
    times = past.times
    if times is None:
        return f"Not measured: `{next(one.command for one in gaps_of(past, '') if one.what == 'speed')}`."
    extrapolated = ", extrapolated" if times.is_extrapolated else ""
    faster = "" if times.speed_up is None else f", {times.speed_up:,.1f} times as fast as {public(times.teacher_model)}"
    return (
        f"A caption against {times.num_images:,} images that were encoded before: {times.query_ms:,.2f} ms{extrapolated}{faster}, "
        f"on {times.machine}, before the export. {times.num_parameters:,} parameters."
    )


def _training(past: Past) -> list[str]:
    facts = past.facts
    if facts is None:
        return [f"Not known here: {public(past.ref)} is no run of `dcdctl distill` or `dcdctl finetune-teacher`."]
    inputs, description = facts["inputs"], past.recipe.get("description")
    corpus = _corpus_name(past, inputs["split"], inputs["corpus"], None)
    said = [f"Recipe: {description}." if description else "", f"Trained on {corpus}, split {inputs['split']}; seed {facts['seed']}."]
    said.append(_teacher(facts))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    table = "\n".join(f"{key} = {_value(value)}" for key, value in past.recipe.items() if value not in (None, "", [], {}))
    return [
        " ".join(filter(None, said)),
        f"```\n{shlex.join(public(word) for word in facts['command'])}\n```",
        f"With {versions}. The whole recipe:",
        f"```toml\n{table}\n```",
    ]


def _teacher(facts: dict[str, Any]) -> str:
    """Whose scores it learned from."""
    cache = facts["inputs"].get("cache")
    plans = cache if isinstance(cache, list) else [] if cache is None else [cache]
    named = [public(str(ref)) for ref in _told(facts, "--teacher")]
    if not plans and not named:
        return "No teacher."
    prints = ", ".join(str(plan["teacher"])[:12] for plan in plans)
    caches = f"cached scores of {'a teacher' if len(plans) == 1 else f'{len(plans)} teachers'} (fingerprint {prints})" if plans else ""
    return f"Teacher: {', '.join(filter(None, [*named, caches]))}."


def _licence(sheet: Sheet, past: Past) -> list[str]:
    own = (
        f"Weights: {sheet.licence}." if sheet.licence else "Weights: none was named when they were exported (`dcdctl export --license ID`)."
    )
    inputs = None if past.facts is None else past.facts["inputs"]
    found = None if inputs is None else _corpus(past, inputs["split"], inputs["corpus"], None)
    if found is None:
        return [own]
    index, _ = found
    cited = f" ({index['citation']})" if index.get("citation") else ""
    return [f"{own} Training data: {index['name']}{cited}, {index.get('licence') or 'its licence is not known'}."]


def _corpus_name(past: Past, split: str, fingerprint: str, num_images: int | None) -> str:
    found = _corpus(past, split, fingerprint, num_images)
    return f"a corpus that is not here (fingerprint {fingerprint[:12]})" if found is None else found[1]


def _corpus(past: Past, split: str, fingerprint: str, num_images: int | None) -> tuple[dict[str, Any], str] | None:
    """What corpus.json says of a corpus, and its name, if it is where it was and still the same; `num_images` of it or all."""
    for place in past.data:
        index = read_corpus_json(place)
        entry = index["splits"].get(split)
        if entry is None:
            continue
        if entry["fingerprint"] == fingerprint:
            return index, str(index["name"])
        if num_images is not None and num_images < entry["images"] and _is_start(place, split, fingerprint, num_images):
            return index, f"{index['name']}, first {num_images:,} images"
    return None


def _is_start(place: Path, split: str, fingerprint: str, num_images: int) -> bool:
    try:
        return Corpus.open(place, split, num_images).fingerprint == fingerprint
    except DcdError:
        return False


def _told(facts: dict[str, Any] | None, option: str) -> list[Path]:
    """What a run's command line named with an option."""
    command = [] if facts is None else list(facts["command"])
    return [Path(after) for word, after in pairwise(command) if word == option]


def _value(value: Any) -> str:
    return json.dumps(public(value) if isinstance(value, str) else value)


def _is_hub_id(ref: str) -> bool:
    return _HUB_ID.fullmatch(ref) is not None and not Path(ref).exists()
