"""`dcdctl export`: a model in the format of another library, with a model card, written atomically.

The exported files are read back by that library, and must give the same results as the model, before the folder takes
its name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from dcdctl.core import files, models
from dcdctl.core.arguments import optional_path, path
from dcdctl.core.artifacts import Document
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.export import check, model_card, push
from dcdctl.core.export.check import Check
from dcdctl.core.export.history import read_history
from dcdctl.core.export.job import ExportJob
from dcdctl.core.export.target import Target
from dcdctl.core.export.to_onnx import Onnx
from dcdctl.core.export.to_open_clip import OpenClip
from dcdctl.core.export.to_query import QUERY_TARGETS
from dcdctl.core.export.to_sentence_transformers import SentenceTransformers
from dcdctl.core.export.to_transformers import Transformers
from dcdctl.core.progress import Track, silent

TARGETS: dict[str, type[Target]] = {
    "transformers": Transformers,
    "sentence-transformers": SentenceTransformers,
    "open-clip": OpenClip,
    "onnx": Onnx,
}
"""The values of `--to`."""


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    folder: Path
    to: str
    kind: str
    """dual, late or fusion."""
    num_bytes: int
    checks: tuple[Check, ...]
    checked_on: str
    page: str | None
    """The address where it was pushed."""

    def __repr__(self) -> str:
        return f"Exported({str(self.folder)!r}: {self.kind} model for {self.to}, {self.num_bytes:,} bytes)"

    def __fspath__(self) -> str:
        return str(self.folder)

    def to_json(self) -> Document:
        facts = asdict(self) | {"folder": str(self.folder)}
        return {"bytes" if name == "num_bytes" else name: value for name, value in facts.items()}


def export_model(job: ExportJob, track: Track = silent) -> Exported:
    """Export a model into a new folder, atomically and checked.

    The errors of `resolve`; ModelError for a model that the format cannot hold, or that gives other results when it is
    read back; SourceError if it cannot be pushed, and then the folder stays.
    """
    target_class, overrides = resolve(job)
    asked, data = path(job.out), optional_path(job.data)
    out = asked.resolve()
    # StaleError while another export writes the folder.
    with files.lock(out):
        # Killed exports leave partial folders behind.
        files.remove_partials(out.parent, out.name)
        # Renamed to `out` when the block succeeds, removed when it fails.
        with files.atomic_folder(out) as folder:
            history = read_history(job.ref, data)
            data = data or next(iter(history.data), None)
            samples = check.samples_of(data, None if history.result is None else history.result.split)
            model = models.load(job.ref, overrides, track, kind="any")
            target = target_class(job, model, folder)
            target.check()
            with track(f"export to {target.name}", total=3, unit="steps") as advance:
                target.write()
                advance(1)
                checks = target.compare(samples)
                checked_on = samples.texts_in_words if target.has_texts_alone else samples.in_words
                advance(1)
                model_card.write(target, f"{checked_on}: {check.checks_in_words(checks)}", history)
                advance(1)
            num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    # After the folder has its name, so that it stays if the push fails.
    page = None
    if job.push_to_hub is not None:
        page = push.push_folder(asked, job.push_to_hub, track, private=job.private)
    return Exported(
        folder=asked,
        to=target.name,
        kind=model.kind,
        num_bytes=num_bytes,
        checks=checks,
        checked_on=checked_on,
        page=page,
    )


def resolve(job: ExportJob) -> tuple[type[Target], Document]:
    """The target of an export, and the settings of its model. Opens no corpus and no weights.

    ConfigError for an unknown format or repository name, for a wrong model setting and for a folder that is
    not empty; ModelError for a reference that names nothing, MissingError for a package or a token, InputError if the
    folder cannot be written.
    """
    if job.to not in TARGETS:
        raise ConfigError(f"--to {job.to} is not a format", hint=f"known: {', '.join(TARGETS)}")
    target = TARGETS[job.to]
    if job.push_to_hub is not None:
        # Before the model is loaded: a missing token should not cost an export.
        push.check(job.push_to_hub)
    elif not job.private:
        raise ConfigError("--public is for a repository of the Hub, and none is named", hint="add --push-to-hub")
    target.require()
    overrides = models.parse_overrides(job.model_overrides)
    out = path(job.out)
    if models.check_ref(job.ref, overrides, kind="any") == "query":
        if job.to not in QUERY_TARGETS:
            raise ModelError(
                f"{job.ref} is a query encoder, which embeds texts alone, and --to {job.to} holds images too",
                hint=f"export it with --to {' or '.join(QUERY_TARGETS)}",
            )
        target = QUERY_TARGETS[job.to]
    if out.is_file() or not files.is_vacant(out):
        found = "a file" if out.is_file() else "not empty"
        raise ConfigError(f"{out} is {found}, a new folder is expected", hint="name another folder")
    files.check_output_folder(out)
    return target, overrides
