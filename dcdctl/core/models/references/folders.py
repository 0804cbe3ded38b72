"""The path that a reference names, and the type of the model in a folder, from the small files that its library wrote:
a key of `family_table.FAMILIES`, if the model loads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from dcdctl.core import files
from dcdctl.core.errors import ModelError
from dcdctl.core.models.protocols import Table

CONFIG_FILE, MODULES_FILE = "config.json", "modules.json"
SETTINGS_FILE = "dcdctl.json"
LATE, LATE_FILE = "dcdctl-late", "late_interaction.safetensors"
"""A late-interaction model of ours, and the file that it has beside those of its dual encoder."""
QUERY = "dcdctl-query"
"""A query encoder."""
OPEN_CLIP, OPEN_CLIP_FILE = "open_clip", "open_clip_config.json"
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Names of weights, in the order in which open_clip looks for them."""
CROSS_ENCODER, SENTENCE_TRANSFORMERS_FILE = "CrossEncoder", "config_sentence_transformers.json"
"""The `model_type` in that file; config.json has the type of the network inside."""
SENTENCE_TRANSFORMER = "SentenceTransformer"
MULTI_VECTOR = "MultiVectorEncoder"
MULTI_VECTOR_TYPES = (MULTI_VECTOR, "ColBERT")
"""The `model_type` in that file of sentence-transformers, and of PyLate, whose models it reads."""
MODULE_CONFIG_FILE = "sentence_bert_config.json"
"""The settings of the first module."""
BUILT_IN = files.packaged("built_in")
"""A folder for each built-in model, under its name."""
DECIDING = (LATE_FILE, CONFIG_FILE, OPEN_CLIP_FILE, SENTENCE_TRANSFORMERS_FILE, MODULES_FILE, MODULE_CONFIG_FILE)
"""The files that decide the type."""
Pooling = Literal["mean", "cls"]
"""The vector of a text: the mean of its tokens, or the first one."""


def path_of(ref: str | Path) -> Path:
    """The path that a reference is: of a built-in model its folder, unless something here has the same name."""
    path = Path(ref).expanduser()
    is_built_in = not path.exists() and str(ref) in (folder.name for folder in BUILT_IN.iterdir())
    return BUILT_IN / path if is_built_in else path


def holds_model(folder: Path) -> bool:
    """Whether a folder has one of the files that `type_of` reads."""
    # The networks of sentence-transformers may be in folders of their own.
    has_file = any((folder / name).is_file() for name in (CONFIG_FILE, OPEN_CLIP_FILE, MODULES_FILE))
    return has_file or is_cross_encoder(folder)


def type_of(folder: Path) -> str | None:
    """The type of the model in a folder; None if config.json does not give it. ModelError for a file that cannot be
    read.

    A folder that both transformers and open_clip read, as LAION's are, is one of transformers. A SentenceTransformer
    has the type of its network if it gives that network's own vectors, or embeds texts alone.
    """
    return LATE if (folder / LATE_FILE).is_file() else dual_type(folder)


def dual_type(folder: Path) -> str | None:
    """The type of a folder without late interaction; of a late-interaction model that of its dual encoder."""
    if is_cross_encoder(folder):
        return CROSS_ENCODER
    if _read(folder / SENTENCE_TRANSFORMERS_FILE).get("model_type") in MULTI_VECTOR_TYPES:
        return MULTI_VECTOR
    network = network_folder(folder)
    model_type = _read(network / CONFIG_FILE).get("model_type")
    has_modules = (folder / MODULES_FILE).is_file()
    if has_modules and _embeds_images(folder, network) and not _is_network_alone(folder, model_type):
        return SENTENCE_TRANSFORMER
    if model_type is None and (folder / OPEN_CLIP_FILE).is_file():
        return OPEN_CLIP
    return model_type if isinstance(model_type, str) else None


def open_clip_weights(names: Iterable[str]) -> list[str]:
    """The file of weights that open_clip reads among these; all files of weights, if none has a name that it
    prefers."""
    endings = (".safetensors", ".bin", ".pth", ".pt")
    weights = [name for name in names if "/" not in name and Path(name).suffix in endings]
    return next(([name] for name in OPEN_CLIP_WEIGHTS if name in weights), sorted(weights))


def network_folder(folder: Path) -> Path:
    """The folder of the first network: a SentenceTransformer's first module, else the folder itself."""
    first = next(iter(_modules(folder)), {})
    path = str(first.get("path", ""))
    # The file may be a stranger's: its paths must not lead out of the folder.
    if files.escapes_root(path) or not (folder / path / CONFIG_FILE).is_file():
        return folder
    return folder / path


def module_types(folder: Path) -> list[str]:
    """The dotted names of the classes of a SentenceTransformer's modules."""
    return [str(module.get("type", "")) for module in _modules(folder)]


def text_pooling(folder: Path) -> Pooling:
    """How the tokens of a text encoder become its vector: as its SentenceTransformer does it; the mean if it is none.

    ModelError for a SentenceTransformer that does it in another way, or changes captions or vectors by further modules
    or prompts.
    """
    modules = {str(module.get("type", "")).rpartition(".")[2]: module for module in _modules(folder)}
    others = [name for name in modules if name not in ("Transformer", "Pooling", "Normalize")]
    if prompt := _read(folder / SENTENCE_TRANSFORMERS_FILE).get("default_prompt_name"):
        others.append(f"prompt {prompt}")
    path = str(modules.get("Pooling", {}).get("path", ""))
    config = {} if files.escapes_root(path) or "Pooling" not in modules else _read(folder / path / CONFIG_FILE)
    # Older versions of the library wrote one key for each way.
    ways = [name.split("_")[2] for name, is_on in config.items() if name.startswith("pooling_mode_") and is_on]
    mode = config.get("pooling_mode") or "+".join(ways) or "mean"
    if mode not in ("mean", "cls"):
        others.append(f"pooling {mode}")
    if others:
        raise ModelError(
            f"{folder} is a SentenceTransformer with {', '.join(others)}, which is not computed here",
            hint="name a text encoder with the mean of its tokens or their first one, or a dual encoder",
        )
    return "cls" if mode == "cls" else "mean"


def _modules(folder: Path) -> list[Table]:
    """The entries of modules.json, empty if there is no such file. ModelError if it is no list of tables."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return []
    entries = files.read_json(path, kind=list, error=ModelError, hint="save the model again")
    if not (entries and all(isinstance(entry, dict) for entry in entries)):
        raise ModelError(f"{path} is no list of modules", hint="save the model again")
    return entries


def _embeds_images(folder: Path, network: Path) -> bool:
    """Whether the first module of a SentenceTransformer reads images, as far as its files tell."""
    settings, config = _read(network / MODULE_CONFIG_FILE), _read(network / CONFIG_FILE)
    modalities = settings.get("modality_config")
    if isinstance(modalities, dict):
        reads_images = not {"image", "message"}.isdisjoint(modalities)
    else:
        reads_images = "vision_config" in config
    return reads_images or module_types(folder)[0].endswith((".CLIPModel", ".Router"))


def _is_network_alone(folder: Path, model_type: object) -> bool:
    """Whether the vectors of a SentenceTransformer are those of its network, except for their lengths."""
    # The families of these types are cross-encoders.
    if model_type in ("blip", "blip-2"):
        return False
    first, *others = (name.rpartition(".")[2] for name in module_types(folder))
    settings, prompts = _read(network_folder(folder) / MODULE_CONFIG_FILE), _read(folder / SENTENCE_TRANSFORMERS_FILE)
    modalities = settings.get("modality_config") or {}
    methods = {name: each.get("method") for name, each in modalities.items() if isinstance(each, dict)}
    if first != "CLIPModel" and methods != {"text": "get_text_features", "image": "get_image_features"}:
        return False
    if set(others) - {"Normalize"}:
        return False
    # Such settings cut or change captions, and may cut vectors.
    if settings.get("max_seq_length") or prompts.get("default_prompt_name") or prompts.get("truncate_dim"):
        return False
    if any((prompts.get("prompts") or {}).values()):
        return False
    # dcdctl's own are those of the network, and its file lists the settings with their checksum.
    return not settings.get("processing_kwargs") or (folder / SETTINGS_FILE).is_file()


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder is a CrossEncoder of sentence-transformers."""
    return _read(folder / SENTENCE_TRANSFORMERS_FILE).get("model_type") == CROSS_ENCODER


def _read(path: Path) -> Table:
    """The table of a JSON file, empty if there is no file."""
    return files.read_json(path, error=ModelError, hint="save the model again") if path.is_file() else {}
