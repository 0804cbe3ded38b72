"""A dual encoder, or a late-interaction model over one, as a folder for ONNX Runtime and the
preprocessing of transformers, which need no torch, or that of open_clip.

OUT/image.onnx, OUT/text.onnx             float32, as `models.export_onnx` writes them
OUT/int8/image.onnx, OUT/int8/text.onnx   the same with int8 weights, if requested
OUT/tokenizer.json, ...                   the tokenizer, with the caption length as its limit
OUT/preprocessor_config.json              the image processor of transformers
OUT/open_clip_config.json                 for open_clip: its image transform and the settings of its tokenizer, in place
of that file
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer

from dcdctl.core import models
from dcdctl.core.export import to_open_clip, to_transformers
from dcdctl.core.export.check import Check, Samples, compare_vectors, embed_in_two_batches, vectors_of
from dcdctl.core.export.target import Target, with_timm
from dcdctl.core.export.to_open_clip import Prepare
from dcdctl.core.models import ExportSpec, silence_transformers
from dcdctl.core.scoring import Vectors

INT8 = "int8"
HINTS = {"fp32": "this model cannot be served by ONNX Runtime", INT8: "export it with --no-int8"}
_USAGE = '''\
{imports}

{folder}
{load}
# With int8 weights: folder + "/int8/image.onnx" and folder + "/int8/text.onnx".
image_tower = onnxruntime.InferenceSession(folder + "/image.onnx")
text_tower = onnxruntime.InferenceSession(folder + "/text.onnx")


def run(tower, inputs):
    """The result of a tower."""
    return tower.run(None, {{node.name: np.asarray(inputs[node.name]) for node in tower.get_inputs()}}){part}


def embed_images(images):
    """{vectors} for each image."""
    return run(image_tower, {images})


def embed_texts(captions):
    """{vectors} for each caption."""
    return run(text_tower, {texts})


{score}
'''
_BY_COSINE = {
    "vectors": "A unit vector",
    "part": "[0]",
    "score": """\
scores = embed_texts(["a dog in the snow"]) @ embed_images([Image.open("photo.png")]).T""",
}
_BY_MAXSIM = {
    "vectors": "A unit vector per token, and which are no padding,",
    "part": "",
    "score": '''\
def maxsim(texts, images):
    """Largest products with tokens of an image, as a mean over the tokens of a caption; captions x images."""
    (texts, is_word), (images, is_token) = texts, images
    products = np.einsum("tld,ind->tiln", texts, images)
    largest = np.where(is_token[:, None], products, -1).max(axis=3)
    return (largest * is_word[:, None]).sum(axis=2) / is_word.sum(axis=1, keepdims=True)


scores = maxsim(embed_texts(["a dog in the snow"]), embed_images([Image.open("photo.png")]))''',
}
_BY_TRANSFORMERS = {
    "imports": """\
import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer""",
    "load": """\
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder, backend="pil"{trust})""",
    "images": 'processor(images=[image.convert("RGB") for image in images], return_tensors="{tensors}")',
    "texts": 'tokenizer(captions, {options}, return_tensors="np")',
}
_BY_OPEN_CLIP = {
    "imports": """\
import json
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image""",
    "load": """\
tokenizer = open_clip.get_tokenizer("local-dir:" + folder)
config = json.loads(Path(folder, "open_clip_config.json").read_text())
transform = image_transform_v2(PreprocessCfg(**config["preprocess_cfg"]), is_train=False)""",
    "images": '{{"pixel_values": np.stack([transform(image.convert("RGB")) for image in images])}}',
    "texts": '{{"input_ids": tokenizer(captions)}}',
}


class Onnx(Target):
    """Two towers for ONNX Runtime, in float32 and with int8 weights."""

    name = "onnx"
    tags = ("onnx",)
    no_fusion = "does not export to ONNX: its shapes depend on the data"

    @property
    def no_tokens(self) -> str:
        return ""

    @classmethod
    def require(cls) -> None:
        models.require_onnx()

    def write(self) -> None:
        models.export_onnx(self.model, self.folder)
        if self.job.int8:
            models.quantize_dynamic(self.folder, self.folder / INT8)
        self.model.preprocess.self_contained().save(self.folder)
        if self.spec.timm_config is not None:
            to_transformers.write_timm_processor(self.spec, self.folder)

    def embed(self, samples: Samples, precision: str = "fp32") -> Vectors:
        """By ONNX Runtime and the preprocessing of transformers or open_clip alone."""
        import onnxruntime

        folder = self.folder / INT8 if precision == INT8 else self.folder
        # The only provider that every build of ONNX Runtime has.
        open_tower = partial(onnxruntime.InferenceSession, providers=["CPUExecutionProvider"])
        image_tower, text_tower = (open_tower(str(folder / name)) for name in models.TOWERS)
        if self.spec.library:
            prepare_images, prepare_texts = to_open_clip.preprocessing(self.folder)
        else:
            prepare_images, prepare_texts = _preprocessing(self.folder, self.spec)
        return embed_in_two_batches(
            samples,
            lambda images: _run(image_tower, prepare_images(images)),
            lambda captions: _run(text_tower, prepare_texts(captions)),
        )

    def compare(self, samples: Samples) -> tuple[Check, ...]:
        original, checks = vectors_of(self.model, samples), []
        for precision, hint in HINTS.items():
            if precision != INT8 or self.job.int8:
                checks.append(compare_vectors(precision, self.embed(samples, precision), original, hint=hint))
        return tuple(checks)

    def usage(self) -> str:
        score = _BY_MAXSIM if self.has_tokens else _BY_COSINE
        return _USAGE.format(folder=self.folder_code, **score, **_preprocessing_code(self.spec))

    def requirements(self) -> list[str]:
        if self.spec.library:
            return ["onnxruntime", to_open_clip.PACKAGE, "pillow"]
        return with_timm(["onnxruntime", "transformers>=5"], self.spec)


def _preprocessing_code(spec: ExportSpec) -> dict[str, str]:
    """The parts of the code for ONNX Runtime that prepare images and captions."""
    has_timm = spec.timm_config is not None
    options = []
    for name, value in spec.text_options.items():
        written = json.dumps(value) if isinstance(value, str) else value
        options.append(f"{name}={written}")
    values = {
        # The image transform of timm is a Python file in the folder, and returns torch tensors only.
        "trust": ", trust_remote_code=True" if has_timm else "",
        "tensors": "pt" if has_timm else "np",
        "options": ", ".join(options),
    }
    parts = _BY_OPEN_CLIP if spec.library else _BY_TRANSFORMERS
    return {name: part.format(**values) for name, part in parts.items()}


def _preprocessing(folder: Path, spec: ExportSpec) -> tuple[Prepare, Prepare]:
    """The inputs of the image and the text tower by transformers alone, from a folder."""
    with silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        has_code = spec.timm_config is not None
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=has_code)
    return (
        lambda images: processor(images=images, return_tensors="pt"),
        lambda captions: tokenizer(captions, return_tensors="pt", **spec.text_options),
    )


def _run(session: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    # Only the inputs of the graph: a tower of captions that are padded to one length takes no mask.
    vectors, *_ = session.run(None, {node.name: np.asarray(inputs[node.name]) for node in session.get_inputs()})
    return torch.from_numpy(vectors).flatten(1)
