"""Load a model by reference, and save it.

A folder is loaded by the family of its model's type (`folders`), and so is the folder that a Hub id is fetched into
(`hub`). A folder that `save` wrote also has dcdctl.json (`saved_folder`); `load` compares the files with it before it
reads anything.

Importing this module does not import transformers: many commands only check a reference or list the families.

A new family is a file of `families` with a subclass of `FusionScorer`, `LateInteraction` or `DualEncoder` and a
function `load`, one line in `family_table`, and one in tests/support/families.py.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dcdctl.core import artifacts, files
from dcdctl.core.arguments import Settings
from dcdctl.core.errors import ModelError
from dcdctl.core.models import run_documents, saved_folder
from dcdctl.core.models.naming import NAMED, naming_uses
from dcdctl.core.models.overrides import (
    OF_METER,
    OF_VILT,
    check_taken,
    parse_overrides,
    read_overrides,
)
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references import folders, hub, published
from dcdctl.core.models.references.family_table import ACCEPTED, ALWAYS_OPEN, find_family
from dcdctl.core.models.references.folders import CONFIG_FILE, SETTINGS_FILE
from dcdctl.core.models.references.plugins import Family, Kind
from dcdctl.core.models.saved_folder import REMAKE
from dcdctl.core.progress import Track, silent

if TYPE_CHECKING:  # torch takes a second
    from dcdctl.core.models.dual import DualEncoder
    from dcdctl.core.models.fusion import FusionScorer
    from dcdctl.core.models.late import Model, Scorer, Searchable

T = TypeVar("T")
ExpectedKind = Kind | Literal["searchable", "any"]
Form = Literal["folder", "checkpoint", "published", "function", "hub"]
MAX_NAMED = 6
"""Runs that a message names."""
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""module:function"""
_PYTHON_FILE = re.compile(r"(?P<file>.+\.py)(:(?P<name>\w*))?")
"""What users write in its place: vlm.py:Reranker, or vlm.py."""
_KINDS = {
    "fusion": "a fusion scorer",
    "dual": "a dual encoder",
    "late": "a late-interaction model",
    "query": "a query encoder",
    "searchable": "a dual encoder or a late-interaction model",
}


def load(
    ref: str | Path, overrides: Table | None = None, track: Track = silent, *, kind: ExpectedKind | None = None
) -> Model:
    """The model that a reference names, in eval mode, in float32 on the CPU; ModelError for a model of another kind
    than `kind`, before its weights are downloaded or opened.

    A reference is tried as a built-in name, a .ckpt file, a model folder, a run folder (with `model/`), module:function
    (which runs), the name of a published teacher (`published`; its file is downloaded once), and a Hub id
    (`OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, tag or commit).
    """
    settings = dict(overrides or {})
    read_overrides(settings)
    form, source = _locate(ref)
    if form in ("checkpoint", "published", "function"):
        _check_kind(ref, "fusion", kind)
    if form == "function":
        from dcdctl.core.models.families import python_function

        return python_function.load(source, settings)
    is_official, uses = form == "checkpoint", {}
    if form == "published":
        teacher = published.list_teachers()[source]
        is_official, uses = not teacher.hub, _uses(teacher, source)
        source, settings = published.locate(teacher, settings, track)
    with naming_uses(uses):
        model = _load_official(Path(source), settings) if is_official else _load_pretrained(source, settings, kind)
    # Here, because torch takes a second to import.
    from dcdctl.core.models.checkpoint import check_finite

    # A NaN in the weights would otherwise show only as senseless ranks.
    check_finite(model.state_dict(), source)
    return model


def check_ref(ref: str | Path, overrides: Table | None = None, *, kind: ExpectedKind | None = None) -> Kind | None:
    """The kind of model that a reference names; None for a Hub id, whose kind is not known before it is loaded.

    Opens no weights and fetches nothing. ModelError if the reference names nothing here and cannot be a Hub id, or if
    it names a model of another kind than `kind`; ConfigError for a wrong model setting.
    """
    read_overrides(overrides or {})
    form, source = _locate(ref)
    if form == "hub":
        return None
    actual: Kind = "fusion"  # official checkpoints, published teachers and Python functions
    if form == "function":
        from dcdctl.core.models.families import python_function

        python_function.check(source)
    if form == "folder":
        family = _family(Path(source), ref, kind)
        check_taken(overrides or {}, family.takes, ref)
        actual = family.kind
    _check_kind(ref, actual, kind)
    return actual


def check_found(ref: str | Path, overrides: Table | None = None, *, kind: ExpectedKind | None = None) -> None:
    """What `check_ref` checks, and that what a Hub id or the name of a published teacher stands for can be fetched: for
    work that needs the model hours later. Fetches small files of the Hub."""
    check_ref(ref, overrides, kind=kind)
    form, source = _locate(ref)
    hub_id, uses = source if form == "hub" else "", {}
    if form == "published":
        teacher = published.list_teachers()[source]
        hub_id, uses = teacher.hub, _uses(teacher, source)
    if not hub_id:
        return
    with naming_uses(uses):
        actual = kind_of(hub_id)
    if actual is not None:
        _check_kind(ref, actual, kind)


def _uses(teacher: published.PublishedTeacher, name: str) -> dict[str, str]:
    """How the error for a published teacher that cannot be fetched names it: by the name that the user gave, with the
    settings that a folder lacks."""
    given = "".join(f" --model-set {key}={value}" for key, value in teacher.overrides.items())
    return {teacher.hub: NAMED.format(ref=name) + (f", with{given}" if given else "")}


def digest_of_files(ref: str | Path) -> str | None:
    """A digest of the files of the model that a folder or a run holds; None for a reference that is neither."""
    form, source = _locate(ref)
    return saved_folder.digest_of_files(Path(source)) if form == "folder" else None


def is_function(ref: str | Path) -> bool:
    """Whether a reference is module:function, which scores and is not trained."""
    return _locate(ref)[0] == "function"


def kind_of(ref: str | Path) -> Kind | None:
    """The kind of the model that a folder holds or a Hub id names, whose small files are fetched; None if it is none of
    these."""
    family = _read_small(ref, lambda folder: find_family(_checked_type(folder) or ""), otherwise=None)
    return None if family is None else family.kind


def text_pooling(ref: str | Path) -> folders.Pooling:
    """How the tokens of a text encoder in a folder or of a Hub id become its vector; see `folders.text_pooling`."""
    # Old models of the Hub without an owner are all of transformers.
    return _read_small(ref, folders.text_pooling, otherwise="mean")


def _read_small(ref: str | Path, read: Callable[[Path], T], *, otherwise: T) -> T:
    """What is read from a folder, or from the small files of a Hub id; `otherwise` if a reference is neither."""
    if (folder := folders.path_of(ref)).is_dir():
        return read(folder)
    if not hub.is_id(str(ref)):
        return otherwise
    with _hub_errors(str(ref), hint=ACCEPTED):
        return read(hub.fetch(str(ref)))


def load_fusion(ref: str | Path, overrides: Table | None = None, track: Track = silent) -> FusionScorer:
    """The fusion scorer that a reference names; ModelError if it names another kind of model."""
    model = load(ref, overrides, track, kind="fusion")
    assert model.kind == "fusion"
    return model


def load_scorer(ref: str | Path, overrides: Table | None = None, track: Track = silent) -> Scorer:
    """Any model as a scorer of pairs: a dual encoder scores a pair by its scaled cosine (`DualScorer`)."""
    from dcdctl.core.models.dual_scorer import DualScorer

    model = load(ref, overrides, track)
    return DualScorer(model) if model.has_one_vector else model


def load_dual(ref: str | Path, overrides: Table | None = None) -> DualEncoder:
    """The dual encoder that a reference names; ModelError if it names another kind of model."""
    model = load(ref, overrides, kind="dual")
    assert model.has_one_vector
    return model


def load_searchable(
    ref: str | Path,
    overrides: Table | None = None,
    *,
    kind: Literal["dual", "searchable"] = "searchable",
) -> Searchable:
    """The dual encoder or, unless `kind` is dual, the late-interaction model that a reference names; ModelError if it
    names another model."""
    model = load(ref, overrides, kind=kind)
    assert model.kind != "fusion"
    return model


def save(
    model: Model,
    folder: Path,
    *,
    half: bool = False,
    run: Mapping[str, str] | None = None,
    fingerprint: str | None = None,
) -> None:
    """Write a folder that `load` reads without other files, atomically; the weights are float16 if `half`, else
    float32. `run` is the entry that names the run whose model it is, `fingerprint` the model's if it was computed
    before, which takes a second for 1.5 GB.

    A model that is already in the folder is replaced. ModelError if the folder holds anything else.
    """
    _check_folder(folder)
    if half:
        # Rounded as they are loaded, so that the fingerprint is that of the loaded model.
        model = copy.deepcopy(model).half().float()
    with files.atomic_folder(folder) as partial:
        model.save_network(partial, half=half)
        model.preprocess.save(partial)
        saved_folder.seal(
            partial, {**model.settings, **(run or {}), artifacts.FINGERPRINT: fingerprint or model.digest}
        )
        # safetensors creates files that only their owner may read; give them the mode of the other files.
        for weights in partial.glob("*.safetensors"):
            weights.chmod((partial / SETTINGS_FILE).stat().st_mode)


def convert(ref: str | Path, folder: Path, model_set: Settings | None = None, track: Track = silent) -> Model:
    """Save the model of a reference as a folder that loads without further settings, and return it.

    The reference, its settings (`image_size=384`) and the folder are checked before weights are opened.
    """
    # First what is fast to check: a wrong folder should not cost a download.
    overrides = parse_overrides(model_set)
    check_ref(ref, overrides)
    _check_folder(folder)
    model = load(ref, overrides, track)
    save(model, folder)
    return model


def _check_folder(folder: Path) -> None:
    """InputError if a model cannot be written to a folder, ModelError if the folder holds something other than a
    model."""
    files.check_output_folder(folder)
    if not files.is_vacant(folder) and not folders.holds_model(folder):
        raise ModelError(f"{folder} holds something that is not a model", hint="name an empty or a new folder")


def _locate(ref: str | Path) -> tuple[Form, str]:
    """What a reference names, and the folder, file, name or Hub id that it is loaded from; ModelError if it names
    nothing."""
    path = folders.path_of(ref)
    _refuse_python_file(str(ref))
    if path.is_file():
        if path.suffix != ".ckpt":
            raise ModelError(f"{path} is a file, but not a .ckpt", hint=ACCEPTED)
        return "checkpoint", str(path)
    if path.is_dir():
        return "folder", str(_model_folder(path))
    if _FUNCTION.fullmatch(str(ref)):
        return "function", str(ref)
    if str(ref) in published.list_teachers():
        return "published", str(ref)
    # The path of a missing file, such as runs/teacher.ckpt, has the form of a Hub id.
    if not hub.is_id(str(ref)) or path.suffix == ".ckpt":
        raise ModelError(f"{ref} does not exist", hint="`dcdctl models` shows what a model may be")
    if runs := _runs_in(path.parent):
        # A misspelled run: runs/studnet has the form of a Hub id too.
        names = ", ".join(runs[:MAX_NAMED]) + (", ..." if len(runs) > MAX_NAMED else "")
        raise ModelError(f"{ref} does not exist; the runs in {path.parent} are {names}")
    return "hub", str(ref)


def _runs_in(folder: Path) -> list[str]:
    """The names of the runs in a folder; none if it is not there."""
    try:
        return sorted(child.name for child in folder.iterdir() if (child / "run.json").is_file())
    except OSError:
        return []


def _refuse_python_file(ref: str) -> None:
    """ModelError for Python code that is named by its file, as in vlm.py:Reranker: it is imported as a module."""
    if match := _PYTHON_FILE.fullmatch(ref):
        file = Path(match["file"])
        module = f"{file.stem}:{match['name'] or 'FUNCTION'}"
        where = "" if file.parent == Path() else f", and run the command in {file.parent}"
        raise ModelError(f"{ref} names a Python file, and code is named by its module", hint=f"write {module}{where}")


def _model_folder(path: Path) -> Path:
    """The folder itself, or `model/` in a run folder; ModelError if neither holds a model, or if the run has another
    one's."""
    for folder in (path, path / "model"):
        if (folder / SETTINGS_FILE).exists() or folders.holds_model(folder):
            run = folder.absolute().parent
            if folder.absolute().name == "model" and (run / "run.json").exists():
                run_documents.read_run(run, error=ModelError)
            return folder
    if (path / "run.json").exists():
        raise ModelError(f"the run {path} has no finished model", hint="finish it with --resume")
    if other := artifacts.other_folder_error(path, "model", ACCEPTED, error=ModelError):
        raise other
    content = ", ".join(sorted(child.name for child in path.iterdir())[:6]) or "nothing"
    raise ModelError(f"{path} is no model: it holds {content}, and neither config.json nor model/", hint=ACCEPTED)


def _load_official(path: Path, table: Table) -> FusionScorer:
    """The scorer of an official checkpoint of ViLT, METER or DCD. ModelError names what is missing."""
    from dcdctl.core.models import official
    from dcdctl.core.models.checkpoint import read_checkpoint
    from dcdctl.core.models.official import meter as official_meter
    from dcdctl.core.models.official import vilt as official_vilt

    overrides = read_overrides(table)
    state, hyper = official.unpack(read_checkpoint(path), path)
    is_meter = any(name.startswith("cross_modal_") for name in state)
    check_taken(table, OF_METER if is_meter else OF_VILT, path)
    if is_meter:
        return official_meter.from_state(state, hyper, overrides, path)
    if "transformer.pos_embed" in state:
        return official_vilt.from_state(state, hyper, overrides, path)
    raise ModelError(f"{path} is no official checkpoint of ViLT or METER: it has {', '.join(sorted(state)[:3])}, ...")


def _load_pretrained(ref: str, overrides: Table, kind: ExpectedKind | None) -> Model:
    """The model of a folder or of a Hub id; ModelError for a model of another kind."""
    if Path(ref).is_dir():
        return _load_folder(Path(ref), _family(Path(ref), ref, kind), overrides)
    with _hub_errors(ref, hint=ACCEPTED):
        folder = hub.fetch(ref)
        family = _family(folder, ref, kind)
        # dcdctl.json lists what a model needs besides its small files; other folders need their weights.
        listed = saved_folder.listed_in(folder) if (folder / SETTINGS_FILE).exists() else None
        hub.fetch_more(ref, folder, family.weights if listed is None else lambda paths: sorted({*listed} & {*paths}))
        return _load_folder(folder, family, overrides)


def _family(folder: Path, ref: str | Path, kind: ExpectedKind | None = None) -> Family:
    """The family of the model in a folder; ModelError if neither dcdctl nor an installed package has it, or if it is of
    another kind."""
    model_type = _checked_type(folder)
    if model_type is None:
        raise ModelError(f"{ref} has no model_type in {CONFIG_FILE}", hint=ACCEPTED)
    family = find_family(model_type)
    if family is None and (folder / folders.MODULES_FILE).is_file():
        raise ModelError(
            f"{ref} is a SentenceTransformer over a {model_type}, which embeds texts alone",
            hint="name a CLIP, a SigLIP or another dual encoder, which embeds images too"
            + ("" if kind is not None else "; candidates.model takes a text encoder"),
        )
    if family is None:
        raise ModelError(f"{ref} is a {model_type} model, a family that is not known here", hint=ALWAYS_OPEN)
    _check_kind(ref, family.kind, kind)
    return family


def _load_folder(folder: Path, family: Family, overrides: Table) -> Model:
    saved = saved_folder.read_settings(folder)
    source = folder if family.reads_modules else folders.network_folder(folder)
    with _hub_errors(str(source), hint=ACCEPTED if saved is None else REMAKE):
        model: Any = family.load(str(source), overrides, saved)
    if saved is not None and "logit_bias" in saved:
        model.add_bias(saved["logit_bias"])
    if saved is not None and "space_of" in saved:
        model.space_of = saved["space_of"]
    return model


def _checked_type(folder: Path) -> str | None:
    """The type of the model in a folder, whose deciding files are as they were saved."""
    if (folder / SETTINGS_FILE).exists():
        deciding = {name: seal for name, seal in saved_folder.listed_in(folder).items() if name in folders.DECIDING}
        artifacts.check_files(folder, deciding, error=ModelError, hint=REMAKE)
    return folders.type_of(folder)


def _check_kind(ref: str | Path, actual: Kind, expected: ExpectedKind | None) -> None:
    if expected == "any":
        return
    if actual == "query" and expected != "query":
        raise ModelError(
            f"{ref} is a query encoder, which embeds texts alone", hint=f"name its teacher, and --query-model {ref}"
        )
    if expected not in (None, actual) and (expected != "searchable" or actual == "fusion"):
        hint = "it scores pairs, and has no vectors of images or texts" if actual == "fusion" else ""
        raise ModelError(f"{ref} is {_KINDS[actual]}, expected {_KINDS[str(expected)]}", hint=hint)


def _hub_errors(ref: str, *, hint: str) -> AbstractContextManager[None]:
    from dcdctl.core.models.references.loading import hub_errors

    return hub_errors(ref, hint=hint)
