"""The model card: README.md with a YAML header, as the Hugging Face Hub reads it, from the files of a run (`history`).

What these files do not say is left out, or replaced by the command that measures it.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import huggingface_hub
from huggingface_hub import ModelCard, ModelCardData

from dcdctl.core import artifacts, templates
from dcdctl.core.artifacts import Document
from dcdctl.core.data import Direction
from dcdctl.core.evaluation import RECALL_NAMES, Estimate, Evaluation, SavedEvaluation
from dcdctl.core.export.history import RunHistory, option_values, public
from dcdctl.core.export.target import Target
from dcdctl.core.progress import counted
from dcdctl.core.report import teachers_of
from dcdctl.core.training import Run, command_of, validation_document, validation_table

TASK = "image-text-retrieval"
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@.+)?")


def _command(target: Target, history: RunHistory, name: str, *options: str) -> str:
    """The command that measures a part."""
    ref = public(history.ref)
    if target.has_texts_alone and history.facts is not None:
        return shlex.join(["dcdctl", name, "TEACHER", "--query-model", ref, "--data", "DIR"])
    return shlex.join(["dcdctl", name, ref, *options, "--data", "DIR"])


def write(target: Target, checked: str, history: RunHistory) -> None:
    """Write README.md; ValueError if the Hub's reader refuses it. `checked` says on which images the exported files
    were compared with the model, and how close they come."""
    path = target.folder / "README.md"
    text = f"---\n{_header(target, history).to_yaml()}\n---\n\n{_body(target, checked, history)}"
    path.write_text(text, encoding="utf-8")
    # Read back by the Hub's own reader, so that a wrong header is an error here.
    ModelCard.load(path)


def _header(target: Target, history: RunHistory) -> ModelCardData:
    refs = [history.recipe.get(f"model.{part}") or "" for part in ("start", "vision", "text")]
    tags = [TASK]
    if history.facts is not None and teachers_of(history.facts["inputs"]):
        tags.append("knowledge-distillation")
    # The Hub links ids without a revision; a folder of the same form is no model there.
    pretrained = [match[1] for ref in refs if (match := _HUB_ID.fullmatch(ref)) and not Path(ref).exists()]
    return ModelCardData(
        model_name=target.job.name,
        library_name=target.library,
        # No pipeline of the Hub scores pairs of an image and a text.
        pipeline_tag=target.task if target.has_vectors else None,
        license=target.job.license_id,
        base_model=pretrained or None,
        tags=[*tags, "dcdctl", *target.tags],
        eval_results=_eval_results(history.result, history) or None,
    )


def _eval_results(result: Evaluation | None, history: RunHistory) -> list[huggingface_hub.EvalResult]:
    if result is None:
        return []
    corpus, results = history.corpus_name(result.split, result.corpus_fingerprint), []
    size = {"fingerprint": result.corpus_fingerprint, "images": result.images, "captions": result.captions}
    for direction in Direction:
        for name in RECALL_NAMES:
            metric = name.lower().replace("@", "_at_")
            results.append(
                huggingface_hub.EvalResult(
                    task_type=TASK,
                    task_name="Image-text retrieval",
                    # The Hub reads this as the id of a data set, which has no spaces.
                    dataset_type=re.sub(r"\W+", "-", corpus.lower()),
                    dataset_name=corpus,
                    dataset_split=result.split,
                    dataset_args=size,
                    metric_type=f"{direction.key}_{metric}",
                    metric_name=f"{direction.title.capitalize()} {name}",
                    metric_value=round(result.measures(direction)[name], 2),
                )
            )
    return results


def _body(target: Target, checked: str, history: RunHistory) -> str:
    times = history.times
    return templates.render(
        "model_card.md",
        model_name=target.job.name,
        title=target.title,
        usage=target.usage(),
        requirements=" ".join(map(shlex.quote, target.requirements())),
        # The towers for ONNX Runtime are graphs, which hold no code.
        runs_code=bool(target.spec.code) and target.name != "onnx",
        checked=checked,
        license=target.job.license_id,
        recall=_recall(history),
        start=_start(history),
        eval_command=_command(target, history, "eval"),
        speed=times,
        teacher_model=None if times is None else public(times.teacher_model),
        bench_command=_command(target, history, "bench", "--teacher", "REF"),
        training=_training(history),
        ref=public(history.ref),
        training_data=_training_data(history),
    )


def _recall(history: RunHistory) -> Document | None:
    result = history.result
    if result is None:
        return None
    rows = []
    for direction in Direction:
        recalls = [_with_interval(result.recall(direction, name)) for name in RECALL_NAMES]
        rows.append([direction.title.capitalize(), *recalls])
    return dict(
        measured_on=history.measured_on(result),
        kept=_kept(result),
        rsum=_with_interval(result.rsum_estimate),
        columns=list(RECALL_NAMES),
        rows=rows,
    )


def _start(history: RunHistory) -> Document | None:
    """The dual encoder that a model started from, and what was gained and lost by the validation of its training; None
    for a model without one."""
    start = history.recipe.get("model.start", "new")
    # `teacher` copies a fusion scorer, which the training does not validate.
    if history.facts is None or start in ("new", "teacher"):
        return None
    validated = validation_document(Run(Path(history.ref)))
    return dict(
        model=f"{public(start)} (fingerprint {history.facts['inputs']['start'][:12]})",
        validation=None if validated is None else validation_table(validated),
    )


def _kept(result: Evaluation) -> str:
    """The share of its teacher's image R@1 that a query student keeps, if both were evaluated on the same."""
    teacher = None if result.query_model is None else SavedEvaluation.load(Path(result.model)).evaluation
    if teacher is None or teacher.basis != result.basis:
        return ""
    student, whole = result.image_retrieval["R@1"], teacher.image_retrieval["R@1"]
    kept = f"; {student / whole:.1%} of it are kept" if whole else ""
    return f"The teacher's own image R@1 is {whole:.2f}{kept}."


def _texts(facts: Document) -> str:
    """How many texts a query student learned from."""
    # By the plan of the cache, because this room does not read caches.
    plans = [cache / "plan.json" for cache in option_values(facts, "--cache")]
    counts = [sum(artifacts.read_document(plan)["part_sizes"]) for plan in plans if plan.exists()]
    return f"{counts[0]:,} texts" if counts else "texts that are not available"


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.interval})"


def _training(history: RunHistory) -> Document | None:
    facts = history.facts
    if facts is None:
        return None
    recipe = []
    for key, value in history.recipe.items():
        if value not in (None, "", [], {}):
            # Strings, numbers, booleans and lists are written alike in TOML and JSON.
            written = json.dumps(public(value) if isinstance(value, str) else value)
            recipe.append(f"{key} = {written}")
    return dict(
        description=history.recipe.get("description") or "",
        data=_trained_on(history, facts),
        seed=facts["seed"],
        teacher=_teacher(facts),
        command=shlex.join(public(word) for word in command_of(facts)),
        versions=", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        recipe="\n".join(recipe),
    )


def _trained_on(history: RunHistory, facts: Document) -> str:
    """The split of a corpus that a run was trained on; how many texts alone; or the shards that it streamed, without
    folders of this machine, and the pairs of all its steps."""
    inputs = facts["inputs"]
    if "shards" not in inputs:
        split = inputs["split"]
        return _texts(facts) if split == "texts" else f"{history.corpus_name(split, inputs['corpus'])}, split {split}"
    first, *more = [public(name) for name in inputs["shards"]]
    names = f"{first} to {more[-1].rpartition('/')[2]}" if more else first
    # Each image of a batch comes with one of its captions.
    pairs = inputs["steps"] * facts["recipe"]["batch"]["size"]
    shards = counted(len(inputs["shards"]), "shards")
    return f"{pairs:,} image-caption pairs, streamed from {shards} ({names})"


def _teacher(facts: Document) -> str:
    """The models and caches that it learned from, in a sentence."""
    refs = [*option_values(facts, "--teacher"), *option_values(facts, "--cache")]
    about = [", ".join(public(str(ref)) for ref in refs)] if refs else []
    if fingerprints := ", ".join(fingerprint[:12] for fingerprint in teachers_of(facts["inputs"])):
        about.append(f"(fingerprint {fingerprints})")
    return "Teacher: " + " ".join(about) + "." if about else "No teacher."


def _training_data(history: RunHistory) -> str:
    """Name, citation and license of the training corpus; empty if the corpus is not where it was."""
    inputs = None if history.facts is None else history.facts["inputs"]
    document = None if inputs is None else history.corpus(inputs["split"], inputs["corpus"])
    if document is None:
        return ""
    citation, terms = f" ({document.citation})" if document.citation else "", document.license or "license unknown"
    return f"{document.name}{citation}, {terms}"
