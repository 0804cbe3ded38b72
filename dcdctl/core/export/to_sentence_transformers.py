"""A dual encoder as a folder that `SentenceTransformer(FOLDER)` reads: it encodes captions, and pictures in a call of their own.

It is the folder for transformers with four more small files, in the layout of sentence-transformers from 5.4 on, when its Transformer
module learned to call a model's get_text_features and get_image_features. So no module of ours is needed, neither in the folder nor
installed; only a network that transformers has no class for (`ExportSpec.code`) is code in the folder and needs
`trust_remote_code=True`.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch

from dcdctl.core import files
from dcdctl.core.errors import MissingError
from dcdctl.core.export import to_transformers
from dcdctl.core.export.check import Samples, Vectors
from dcdctl.core.models import DualEncoder, silence_transformers

PACKAGE = "sentence_transformers"
NORMALIZE = "1_Normalize"
# The names of before 5.4, which every version knows; the first folder is the root.
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": NORMALIZE, "type": "sentence_transformers.models.Normalize"},
]
SIDES = {
    side: {"method": f"get_{side}_features", "method_output_name": "pooler_output"} for side in ("text", "image")
}  # of a VisionTextDualEncoderModel


def require() -> None:
    """MissingError where sentence-transformers is not installed, or too old to read what is written."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingError("sentence-transformers is not installed here", hint="pip install 'dcdctl[sentence-transformers]'")
    if importlib.util.find_spec(f"{PACKAGE}.base") is None:
        raise MissingError("this sentence-transformers is older than 5.4", hint="pip install 'dcdctl[sentence-transformers]'")


def write(model: DualEncoder, folder: Path) -> None:
    """Fill a folder that is not there yet."""
    to_transformers.write(model, folder)
    files.write_json(folder / "modules.json", MODULES)
    table: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": {}, "similarity_fn_name": "cosine"}
    files.write_json(folder / "config_sentence_transformers.json", {**table, "default_prompt_name": None})
    module = {"transformer_task": "feature-extraction", "modality_config": SIDES, "module_output_name": "sentence_embedding"}
    # Torchvision, where it is installed, would resize pictures in another way than Pillow.
    files.write_json(folder / "sentence_bert_config.json", {**module, "processor_kwargs": {"backend": "pil"}})
    files.write_json(folder / NORMALIZE / "config.json", {"module_input_name": "sentence_embedding"})


def embed(folder: Path, model: DualEncoder, samples: Samples) -> Vectors:
    """The vectors of samples by what sentence-transformers reads from a folder, and nothing else of ours."""
    require()
    from sentence_transformers import SentenceTransformer

    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    with silence_transformers():
        encoder = SentenceTransformer(str(folder), device="cpu", trust_remote_code=bool(model.export_spec().code))
    sides = (encoder.encode(side, show_progress_bar=False) for side in (samples.pictures, samples.captions))
    return Vectors(*(torch.from_numpy(vectors) for vectors in sides))
