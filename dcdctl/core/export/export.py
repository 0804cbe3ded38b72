"""`dcdctl export`: a model in the format of another library, with a model card, written atomically.

The exported files are read back by that library, and must give the same results as the model, before the folder takes
its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from dcdctl.core import files, locks, models
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.export import (
    check,
    hub,
    model_card,
    to_onnx,
    to_open_clip,
    to_sentence_transformers,
    to_transformers,
    usage,
)
from dcdctl.core.export.check import Check, Samples
from dcdctl.core.export.history import read_history
from dcdctl.core.export.hub import Push
from dcdctl.core.export.to_onnx import INT8
from dcdctl.core.export.usage import Format
from dcdctl.core.models import Model
from dcdctl.core.progress import Track, silent
from dcdctl.core.report import MissingPart

FORMATS: tuple[Format, ...] = get_args(Format)
_EMBED = {
    "transformers": to_transformers.embed,
    "sentence-transformers": to_sentence_transformers.embed,
    to_open_clip.EXTRA: to_open_clip.embed,
}
"""What embeds samples by a library alone, from an exported folder."""
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """An export as the user requested it."""

    ref: str
    out: Path
    to: str
    data: Path | None = None
    """Corpus for the check of the export; None: that of the run's evaluation, or the built-in scenes."""
    with_int8: bool = True
    """For ONNX: also write towers with int8 weights."""
    license: str | None = None
    """License of the weights, by its name on the Hub: apache-2.0."""
    push: Push | None = None
    model_sets: tuple[str, ...] = ()
    evaluations: tuple[Path, ...] = ()
    """Folders of `dcdctl eval --out` for the model card: of the start, or of this model on other corpora."""


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    folder: Path
    to: str
    kind: str
    """dual or fusion."""
    num_bytes: int
    checks: tuple[Check, ...]
    checked_on: str
    missing: tuple[MissingPart, ...]
    """Parts that the model card lacks."""
    page: str | None
    """The address where it was pushed."""

    def __repr__(self) -> str:
        return f"Exported({str(self.folder)!r}: {self.kind} model for {self.to}, {self.num_bytes:,} bytes)"

    def __fspath__(self) -> str:
        return str(self.folder)

    def to_json(self) -> dict[str, Any]:
        checks = [
            {
                "precision": check.precision,
                "lowest_cosine": check.lowest_cosine,
                "largest_difference": check.largest_difference,
            }
            for check in self.checks
        ]
        missing = [{"what": part.what, "command": part.command} for part in self.missing]
        facts = {"folder": str(self.folder), "to": self.to, "kind": self.kind, "bytes": self.num_bytes}
        return {**facts, "checks": checks, "checked_on": self.checked_on, "missing": missing, "page": self.page}


@dataclass(frozen=True)
class ExportPlan:
    """An export whose settings are checked, with nothing opened yet."""

    to: Format
    overrides: dict[str, Any]
    """Settings of the model."""


def export_model(job: ExportJob, track: Track = silent) -> Exported:
    """Export a model into a new folder, atomically and checked.

    The errors of `resolve`; ModelError for a model that the format cannot hold, or that gives other results when it is
    read back; SourceError if it cannot be pushed, and then the folder stays.
    """
    plan = resolve(job)
    to = plan.to
    with _new_folder(job.out) as folder:
        history = read_history(job.ref, job.data, job.evaluations)
        data = job.data or next(iter(history.data), None)
        samples = check.samples_of(data, None if history.result is None else history.result.split)
        model = models.load(job.ref, plan.overrides, track)
        _check_kind(model, to, job.ref)
        with track(f"export to {to}", total=3, unit="steps") as advance:
            _write(model, to, folder, job.with_int8)
            advance(1)
            checks = _checks(model, to, folder, samples, job.with_int8)
            advance(1)
            model_card.write(folder, _card_content(model, to, job, checks, samples), history)
            advance(1)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    # After the folder has its name, so that it stays if the push fails.
    page = None if job.push is None else hub.push_folder(job.out, job.push, track)
    missing = tuple(model_card.missing_parts(history, job.license))
    return Exported(job.out, to, model.kind, num_bytes, checks, samples.source, missing, page)


def resolve(job: ExportJob) -> ExportPlan:
    """The plan of an export. Opens no corpus and no weights.

    ConfigError for an unknown format, license or repository name, for a wrong model setting and for a folder that is
    not empty; ModelError for a reference that names nothing, MissingError for a package or a token, InputError if the
    folder cannot be written.
    """
    to = next((known for known in FORMATS if known == job.to), None)
    if to is None:
        raise ConfigError(f"--to {job.to} is not a format", hint=f"known: {', '.join(FORMATS)}")
    if job.license is not None and not _LICENSE.fullmatch(job.license):
        raise ConfigError(
            f"--license {job.license} is not a license name of the Hub",
            hint="for example apache-2.0, mit, cc-by-4.0, other",
        )
    if job.push is not None:
        hub.check(job.push)
    if to == "sentence-transformers":
        to_sentence_transformers.require()
    if to == "onnx":
        models.require_onnx()
    if to == to_open_clip.EXTRA:
        to_open_clip.require()
    overrides = models.parse_overrides(job.model_sets)
    models.check_ref(job.ref, overrides)
    _check_folder(job.out)
    return ExportPlan(to, overrides)


def _check_folder(out: Path) -> None:
    """ConfigError if there is something at the path of a new folder, InputError if it cannot be written."""
    if out.is_file() or not files.is_vacant(out):
        raise ConfigError(
            f"{out} is {'a file' if out.is_file() else 'not empty'}, a new folder is expected",
            hint="name another folder",
        )
    files.check_output_folder(out)


def _check_kind(model: Model, to: Format, ref: str) -> None:
    """ModelError for a fusion model in a format of vectors, and for a dual encoder that only its own library reads."""
    spec = model.export_spec()
    if to in spec.refusals:
        found = f"{ref} is a model of {spec.library}, and cannot be exported to {to}: {spec.refusals[to]}"
        raise ModelError(found, hint=f"export it with --to {spec.library}")
    if to == to_open_clip.EXTRA and spec.library != to:
        raise ModelError(
            f"{ref} is no model of open_clip, which cannot read it",
            hint=f"export it with --to {spec.library or FORMATS[0]}",
        )
    if model.kind == "dual" or to == "transformers":
        return
    reason = (
        "has no vectors" if to == "sentence-transformers" else "does not export to ONNX: its shapes depend on the data"
    )
    raise ModelError(
        f"{ref} is a fusion model, which {reason}",
        hint="export it with --to transformers, or a dual student to this format",
    )


def _write(model: Model, to: Format, folder: Path, with_int8: bool) -> None:
    if to == "transformers":
        to_transformers.write(model, folder)
        models.seal_again(folder)  # the folder of `models.save` has more files now
        return
    assert model.kind == "dual"  # `_check_kind`
    if to == "onnx":
        to_onnx.write(model, folder, with_int8=with_int8)
    elif to == to_open_clip.EXTRA:
        to_open_clip.write(model, folder)
    else:
        to_sentence_transformers.write(model, folder)
        models.seal_again(folder)


def _checks(model: Model, to: Format, folder: Path, samples: Samples, with_int8: bool) -> tuple[Check, ...]:
    """The results of the exported files compared with those of the model."""
    if model.kind == "fusion":
        exported = to_transformers.score(folder, model, samples)
        return (check.compare_logits(exported, to_transformers.scores_of(model, samples), hint="nothing was written"),)
    original = check.vectors_of(model, samples)
    if to == "onnx":
        hints = {"fp32": "this model cannot be served by ONNX Runtime"} | (
            {INT8: "export it with --no-int8"} if with_int8 else {}
        )
        return tuple(
            check.compare_vectors(precision, to_onnx.embed(folder, model, samples, precision), original, hint=hint)
            for precision, hint in hints.items()
        )
    embed = _EMBED[to]
    return (check.compare_vectors("fp32", embed(folder, model, samples), original, hint="nothing was written"),)


def _card_content(
    model: Model, to: Format, job: ExportJob, checks: tuple[Check, ...], samples: Samples
) -> model_card.CardContent:
    name = job.out.resolve().name if job.push is None else job.push.repo
    spec = model.export_spec()
    library = to if spec.model_class or spec.library else "dcdctl"
    task = (
        None
        if model.kind == "fusion"
        else "sentence-similarity"
        if to == "sentence-transformers"
        else "feature-extraction"
    )
    notes: tuple[str, ...] = ()
    if spec.code and to != "onnx":
        notes = ("`trust_remote_code=True` runs the Python file next to the weights; read it first.",)
    return model_card.CardContent(
        name=name,
        title=_title(model),
        library=library,
        task=task,
        tags=("onnx",) if to == "onnx" else ("sentence-transformers",) if to == "sentence-transformers" else (),
        usage=usage.usage(model, to, name, is_on_hub=job.push is not None),
        requirements=tuple(usage.requirements(model, to)),
        checked=f"Compared with the trained model when it was exported, on {samples.source}: "
        f"{check.checks_in_words(checks)}.",
        license=job.license,
        notes=notes,
    )


def _title(model: Model) -> str:
    length, side = model.preprocess.max_text_len, model.preprocess.image_size_px
    inputs = f"It reads images of {side} px and captions of up to {length} tokens."
    if model.kind == "dual":
        vectors = (
            f"it embeds images and captions as vectors of {model.embedding_dim} numbers, which are compared by "
            "their cosine"
        )
        return f"A dual encoder for image-text retrieval: {vectors}. {inputs}"
    return (
        "A cross-encoder for image-text retrieval: it reads an image and a caption together and scores how well "
        f"they match. {inputs}"
    )


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, renamed to `out` when the block succeeds and removed when it fails.

    StaleError while another export writes it. Folders that killed exports left behind are removed.
    """
    out = out.resolve()
    with locks.lock(out):
        files.remove_partials(out.parent, out.name)
        with files.atomic_folder(out) as partial:
            yield partial
