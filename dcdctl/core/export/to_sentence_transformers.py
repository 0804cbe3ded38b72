"""A dual encoder as a folder that `SentenceTransformer(FOLDER)` reads; images and captions are encoded in separate
calls.

It is the folder for transformers with four more small files, in the layout of sentence-transformers from version 5.4:
there its Transformer module calls get_text_features and get_image_features of a model. So no module of dcdctl is
needed. Only a network that transformers has no class for (`ExportSpec.code`) is code in the folder and needs
`trust_remote_code=True`.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from torch import Tensor

from dcdctl.core import files, models
from dcdctl.core.errors import MissingError, install_command, require_extra
from dcdctl.core.export import to_transformers
from dcdctl.core.export.check import Samples, embed_in_two_batches
from dcdctl.core.export.target import Target, with_timm
from dcdctl.core.models import silence_transformers
from dcdctl.core.scoring import Vectors

PACKAGE = "sentence_transformers"
NORMALIZE = "1_Normalize"
# Names from before 5.4, which every version knows; the first module is in the root folder.
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": NORMALIZE, "type": "sentence_transformers.models.Normalize"},
]
MODALITIES = {
    name: {"method": f"get_{name}_features", "method_output_name": "pooler_output"} for name in ("text", "image")
}  # the methods of every dual encoder in transformers


_USAGE = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}"{trust})
images = model.encode([Image.open("photo.png").convert("RGB")])
texts = model.encode(["a dog in the snow"])
scores = model.similarity(texts, images)
"""


class SentenceTransformers(Target):
    """The folder for transformers and four more files."""

    name = "sentence-transformers"
    tags = ("sentence-transformers",)
    task = "sentence-similarity"
    no_fusion = "has no vectors"

    @classmethod
    def require(cls) -> None:
        require_extra(cls.name, PACKAGE, needed_by=f"--to {cls.name}")
        # This package exists from version 5.4 on.
        if importlib.util.find_spec(f"{PACKAGE}.base") is None:
            raise MissingError(
                "the sentence-transformers installed here is older than 5.4", hint=install_command(cls.name)
            )

    def write(self) -> None:
        folder, spec = self.folder, self.spec
        if spec.library == self.name:
            models.save(self.model.export_copy(), folder)
            return
        to_transformers.write(self.model, folder)
        files.write_json(folder / "modules.json", MODULES)
        # Unit vectors, so that `similarity` gives the scores that the model was trained with.
        table: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": {}, "similarity_fn_name": "cosine"}
        files.write_json(folder / "config_sentence_transformers.json", {**table, "default_prompt_name": None})
        module = {
            "transformer_task": "feature-extraction",
            "modality_config": MODALITIES,
            "module_output_name": "sentence_embedding",
        }
        # torchvision, if it is installed, would resize images differently than Pillow.
        module |= {"processor_kwargs": {"backend": "pil"}}
        if spec.padded_length is not None:
            # The library pads captions to the longest of a batch, and hands a mask on where a tokenizer gives one.
            module |= {"processing_kwargs": {"text": {**spec.text_options, "return_attention_mask": False}}}
        files.write_json(folder / models.MODULE_CONFIG_FILE, module)
        files.write_json(folder / NORMALIZE / "config.json", {"module_input_name": "sentence_embedding"})
        models.seal_again(folder)

    def embed(self, samples: Samples) -> Vectors:
        from sentence_transformers import SentenceTransformer

        # Its notes on progress would break the bar of the export.
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
        with silence_transformers():
            encoder = SentenceTransformer(str(self.folder), device="cpu", trust_remote_code=bool(self.spec.code))

        def encode(inputs: list[Any]) -> Tensor:
            return encoder.encode(inputs, show_progress_bar=False, convert_to_tensor=True)

        return embed_in_two_batches(samples, encode, encode)

    def usage(self) -> str:
        return _USAGE.format(name=self.job.name, trust=self.trust_code)

    def requirements(self) -> list[str]:
        return with_timm(["sentence-transformers>=6.0"], self.spec)
