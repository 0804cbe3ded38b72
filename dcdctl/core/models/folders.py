"""The type of the model in a folder, from the small files that its library wrote: a key of `load_save.FAMILIES`, if the model loads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dcdctl.core import files
from dcdctl.core.errors import ModelError

CONFIG_FILE = "config.json"
OPEN_CLIP, OPEN_CLIP_FILE = "open_clip", "open_clip_config.json"
OPEN_CLIP_WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
"""Names of weights, in the order in which open_clip looks for them."""
CROSS_ENCODER, SENTENCE_TRANSFORMERS_FILE = "CrossEncoder", "config_sentence_transformers.json"
"""The `model_type` in that file; config.json has the type of the network inside."""
DECIDING = (CONFIG_FILE, OPEN_CLIP_FILE, SENTENCE_TRANSFORMERS_FILE)
"""The files that decide the type."""


def holds_model(folder: Path) -> bool:
    """Whether a folder has one of the files that `type_of` reads."""
    # The network of a cross-encoder may be in a folder of its own.
    return any((folder / name).is_file() for name in (CONFIG_FILE, OPEN_CLIP_FILE)) or is_cross_encoder(folder)


def type_of(folder: Path) -> str | None:
    """The type of the model in a folder; None if config.json does not give it. ModelError for a file that cannot be read.

    A folder that both transformers and open_clip read, as LAION's are, is one of transformers.
    """
    if is_cross_encoder(folder):
        return CROSS_ENCODER
    found = _read(folder / CONFIG_FILE).get("model_type")
    if found is None and (folder / OPEN_CLIP_FILE).is_file():
        return OPEN_CLIP
    return found if isinstance(found, str) else None


def open_clip_weights(names: Iterable[str]) -> list[str]:
    """The file of weights that open_clip reads among these; all files of weights, if none has a name that it prefers."""
    found = [name for name in names if "/" not in name and Path(name).suffix in (".safetensors", ".bin", ".pth", ".pt")]
    return next(([name] for name in OPEN_CLIP_WEIGHTS if name in found), sorted(found))


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder is a CrossEncoder of sentence-transformers."""
    return _read(folder / SENTENCE_TRANSFORMERS_FILE).get("model_type") == CROSS_ENCODER


def _read(path: Path) -> dict[str, Any]:
    """The table of a JSON file, empty if there is no file."""
    return files.read_json(path, error=ModelError, hint="save the model again") if path.is_file() else {}
