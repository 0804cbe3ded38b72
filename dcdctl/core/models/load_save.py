"""Models by name: what a reference may be, how a model is saved, and how two models are told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from dcdctl.core import files
from dcdctl.core.errors import ModelError
from dcdctl.core.models import coattention_scorer, dual, frozen_dual, published, vilt
from dcdctl.core.models.official import from_released
from dcdctl.core.models.overrides import read_overrides
from dcdctl.core.models.preprocess import hub_errors
from dcdctl.core.models.protocols import DualEncoder, FusionScorer, Model
from dcdctl.core.progress import Track, silent

BUILT_IN = ("scenes-vilt",)
SETTINGS_FILE = "dcdctl.json"
FORMAT_VERSION = 1
ACCEPTED = (
    "a model is a run folder, a transformers folder (ViLT or vision-text-dual-encoder), an official ViLT or METER .ckpt, "
    f"a Hugging Face Hub id (owner/name), built in ({', '.join(BUILT_IN)}), or a name that `dcdctl prepare --list` shows"
)
_TEACHERS = files.packaged("teachers")
# The Hub knows a few models without an owner, none of them a scorer; a misspelt run should not wait for the network.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_KINDS = {"fusion": "a fusion scorer", "dual": "a dual encoder"}


def load(ref: str | Path, overrides: Mapping[str, Any] | None = None, track: Track = silent) -> Model:
    """The model that a reference names, in eval mode, in float32 on the CPU.

    A reference is tried as: a built-in name, a .ckpt file, a folder with config.json, a run folder (with `model/`), the name of a
    published teacher (`named_teachers`, whose file is fetched once), a Hub id.
    """
    settings = dict(overrides or {})
    read_overrides(settings)
    form, source = _locate(ref)
    if form == "checkpoint":
        return from_released(Path(source), settings)
    if form != "published":
        return _load_transformers(source, settings)
    teacher = published.known()[source]
    source, settings = published.located(teacher, settings, track)
    return _load_transformers(source, settings) if teacher.hub else from_released(Path(source), settings)


def check_ref(ref: str | Path, overrides: Mapping[str, Any] | None = None) -> None:
    """Check a reference without opening weights or fetching anything.

    ModelError if it names nothing here and cannot be a Hub id, ConfigError for an unknown model setting.
    """
    read_overrides(dict(overrides or {}))
    _locate(ref)


def load_fusion(ref: str | Path, overrides: Mapping[str, Any] | None = None, track: Track = silent) -> FusionScorer:
    """The fusion scorer that a reference names; ModelError if it names another kind of model."""
    model = load(ref, overrides, track)
    if model.kind != "fusion":
        raise _wrong_kind(ref, model, "fusion")
    return model


def load_dual(ref: str | Path, overrides: Mapping[str, Any] | None = None) -> DualEncoder:
    """The dual encoder that a reference names; ModelError if it names another kind of model."""
    model = load(ref, overrides)
    if model.kind != "dual":
        raise _wrong_kind(ref, model, "dual")
    return model


def save(model: Model, folder: Path, *, half: bool = False) -> None:
    """Write a folder that loads again with nothing else, here and in plain transformers; `half` halves the weights' bytes.

    An older model in the folder is replaced; anything else in it is a ModelError.
    """
    if folder.exists() and not (folder / "config.json").exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} holds something else than a model", hint="save to a new folder")
    with files.atomic_folder(folder) as partial:
        model.save_network(partial, half=half)
        model.preprocess.save(partial)
        files.write_json(partial / SETTINGS_FILE, {"format": FORMAT_VERSION, **model.settings})
        # safetensors makes its files for the user alone; these are as readable as the others.
        for weights in partial.glob("*.safetensors"):
            weights.chmod((partial / SETTINGS_FILE).stat().st_mode)


def fingerprint(model: Model) -> str:
    """SHA-256, in hex, of all weights and of all settings that change a score."""
    return model.digest


def _locate(ref: str | Path) -> tuple[Literal["folder", "checkpoint", "published", "hub"], str]:
    """What a reference names, and the folder, file, name or Hub id that it is loaded from; ModelError if it names nothing."""
    path = Path(ref).expanduser()
    if str(ref) in BUILT_IN and not path.exists():
        return "folder", str(_built_in_folder(str(ref)))
    if path.is_file():
        if path.suffix != ".ckpt":
            raise ModelError(f"{path} is a file, but not a .ckpt", hint=ACCEPTED)
        return "checkpoint", str(path)
    if path.is_dir():
        return "folder", str(_model_folder(path))
    if published.find(str(ref)) is not None:
        return "published", str(ref)
    if not _HUB_ID.fullmatch(str(ref)) or path.suffix == ".ckpt":
        raise ModelError(f"{ref} does not exist", hint=ACCEPTED)
    return "hub", str(ref)


def _built_in_folder(name: str) -> Path:
    folder = _TEACHERS / name
    if not (folder / "config.json").exists():
        raise ModelError(f"this installation has no built-in model {name}", hint="install dcdctl from its wheel again")
    return folder


def _model_folder(path: Path) -> Path:
    """The folder itself, or `model/` in a run folder."""
    for folder in (path, path / "model"):
        if (folder / "config.json").exists():
            return folder
    if (path / "run.json").exists():
        raise ModelError(f"the run {path} has no finished model", hint="finish it with --resume")
    found = ", ".join(sorted(child.name for child in path.iterdir())[:6]) or "nothing"
    raise ModelError(f"{path} is no model: it holds {found}, and neither config.json nor model/", hint=ACCEPTED)


def _load_transformers(ref: str, overrides: Mapping[str, Any]) -> Model:
    told_path = Path(ref) / SETTINGS_FILE
    told = files.read_json(told_path, error=ModelError, hint="save the model again") if told_path.exists() else None
    if told is not None and told.get("format") != FORMAT_VERSION:
        raise ModelError(f"{told_path} has format {told.get('format')}, this dcdctl reads format {FORMAT_VERSION}", hint="update dcdctl")
    if told is not None and (read := _OWN.get(_model_type(Path(ref)))) is not None:
        return read(Path(ref), overrides, told)
    with hub_errors(ref, hint=ACCEPTED):
        kind = AutoConfig.from_pretrained(ref, trust_remote_code=False).model_type
    if kind == "vilt":
        return vilt.from_transformers(ref, overrides, told)
    if kind == "vision-text-dual-encoder":
        return dual.from_transformers(ref, overrides, told)
    raise ModelError(f"{ref} is a {kind} model", hint=ACCEPTED)


_OWN: dict[Any, Callable[[Path, Mapping[str, Any], Mapping[str, Any]], Model]] = {
    coattention_scorer.MODEL_TYPE: coattention_scorer.from_folder,
    frozen_dual.ENCODER_DUAL_TYPE: frozen_dual.from_folder,
}
"""How folders are read that are not transformers' own."""


def _model_type(folder: Path) -> Any:
    return files.read_json(folder / "config.json", error=ModelError, hint="save the model again").get("model_type")


def _wrong_kind(ref: str | Path, model: Model, requested: str) -> ModelError:
    return ModelError(f"{ref} is {_KINDS[model.kind]}, but {_KINDS[requested]} is wanted here")
