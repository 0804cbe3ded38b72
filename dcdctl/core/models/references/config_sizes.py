"""Sizes in the configuration of a model folder, compared with its weights before a library builds the model.

A library builds as many layers as config.json says, which may take hours, and allocates what the weights lack, which
may take terabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dcdctl.core import files
from dcdctl.core.errors import ModelError
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references.folders import OPEN_CLIP_FILE

WIDTHS = {
    "hidden_size",
    "hidden_sizes",
    "embedding_size",
    "embed_dim",
    "dim",
    "hidden_dim",
    "intermediate_size",
    "projection_dim",
    "num_channels",
    "num_attention_heads",
    "n_heads",
    "num_heads",
    "num_key_value_heads",
}
"""Fields that are a dimension of some weight, or smaller than a dimension."""
ROWS = {"vocab_size", "type_vocab_size", "modality_type_vocab_size", "num_labels"}
"""Fields that count the rows of a table. An encoder may lack the table while its configuration has the library's
default."""
LAYERS = {"num_hidden_layers", "n_layers", "num_layers", "depths"}
"""Fields that count layers, each of which has weights."""
OTHERS = {"max_position_embeddings": 2**22, "image_size": 2**14, "patch_size": 2**14}
"""Fields that may exceed every dimension, with their largest accepted values: rotary positions have no weights, and an
image has more pixels on a side than patches."""
OF_OPEN_CLIP = {
    "width": "hidden_size",
    "head_width": "hidden_size",
    "heads": "num_heads",
    "layers": "num_layers",
    "context_length": "max_position_embeddings",
}
"""Fields that only open_clip_config.json has, and the field above that has the same limit."""
# More than the widest published encoders have (ViT-22B: 6,144), and twice the largest vocabulary (Gemma: 262,144).
LOWEST_WIDTH_LIMIT, LOWEST_ROWS_LIMIT = 2**13, 2**19
"""Accepted whatever the weights are."""
MAX_WIDTH = 2**16
"""The largest accepted width where there are no safetensors, such as for a .bin file: several times that of the widest
encoders."""
MAX_LAYERS = 1000
"""The largest accepted number of layers where there are no safetensors, such as for a .bin file."""
HINT = "restore it, or name another model"


def check_sizes(folder: Path) -> None:
    """ModelError that names the file and the field if a size is no whole number, negative, or too large for the weights
    of the folder.

    Does nothing without a configuration, such as for a Hub id.
    """
    limits: dict[str, int] = {}
    for file, aliases in (("config.json", {}), (OPEN_CLIP_FILE, OF_OPEN_CLIP)):
        path = folder / file
        if not path.is_file():
            continue
        # Read once, and only if there is a configuration.
        if not limits:
            limits = _limits(folder)
        config = files.read_json(path, error=ModelError, hint=HINT)
        for name, value, limit in _sizes(config, aliases, limits):
            # A bool is an int in Python, and true is no size.
            if isinstance(value, bool) or not isinstance(value, int):
                raise ModelError(f"{path}: {name} is {_shown(value)}, expected a whole number", hint=HINT)
            if not 0 <= value <= limit:
                raise ModelError(f"{path}: {name} is {_shown(value)}, expected a number from 0 to {limit:,}", hint=HINT)


def _sizes(root: Table, aliases: Mapping[str, str], limits: Mapping[str, int]) -> Iterator[tuple[str, Any, int]]:
    """The sizes in a configuration and in those of its encoders: dotted name, value and limit; a list gives one for
    each item."""
    # A stack, because a hostile file nests deeper than Python recurses.
    tables: list[tuple[str, Table]] = [("", root)]
    while tables:
        where, table = tables.pop()
        for key, value in table.items():
            name = f"{where}{key}"
            field = aliases.get(key, key)
            if field in limits:
                # Not deeper: a list within a list is given as a value, which the caller refuses.
                for item in value if isinstance(value, list) else [value]:
                    if item is not None:
                        yield name, item, limits[field]
            elif isinstance(value, dict):
                tables.append((f"{name}.", value))


def _limits(folder: Path) -> dict[str, int]:
    """The largest accepted value of each field; names and shapes are read from the safetensors of the folder."""
    sizes: list[int] = []
    num_tensors = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as weights:
            names = list(weights.keys())
            num_tensors += len(names)
            sizes += [size for name in names for size in weights.get_slice(name).get_shape()]
    largest = max(sizes, default=0)
    return {
        **dict.fromkeys(WIDTHS, max(LOWEST_WIDTH_LIMIT, largest) if num_tensors else MAX_WIDTH),
        **dict.fromkeys(ROWS, max(LOWEST_ROWS_LIMIT, largest)),
        **dict.fromkeys(LAYERS, num_tensors or MAX_LAYERS),
        **OTHERS,
    }


def _shown(value: object) -> str:
    # A list or a text in place of a size may have megabytes.
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
