"""The Python code that loads an exported model, as its card and docs/export.md show it. Tests run this code in separate
processes."""

from __future__ import annotations

import json
from typing import Literal

from dcdctl.core.models import ExportSpec, Model

Format = Literal["transformers", "sentence-transformers", "open-clip", "onnx"]
# backend="pil", because torchvision, if it is installed, would resize images differently than Pillow.
_TRANSFORMERS = '''\
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import {model_class}, {processor_class}

model = {model_class}.from_pretrained("{name}"{trust}).eval()
processor = {processor_class}.from_pretrained("{name}", backend="pil"{trust})


def embed_images(images):
    """A unit vector for each image."""
    pixels = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    with torch.no_grad():
        return normalize(model.get_image_features(**pixels).pooler_output, dim=-1)


def embed_texts(captions):
    """A unit vector for each caption."""
{tokens}
    with torch.no_grad():
        return normalize(model.get_text_features({arguments}).pooler_output, dim=-1)


scores = embed_texts(["a dog in the snow"]) @ embed_images([Image.open("photo.png")]).T
'''
_MASKED = """\
    tokens = processor(text=captions, padding=True, truncation=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]"""
_PADDED = """\
    # The model was trained on captions of this length, and attends to the padding.
    tokens = processor(text=captions, padding="max_length", max_length={length}, truncation=True,
    return_tensors="pt")"""
_SENTENCE_TRANSFORMERS = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}"{trust})
images = model.encode([Image.open("photo.png").convert("RGB")])
texts = model.encode(["a dog in the snow"])
scores = model.similarity(texts, images)
"""
_OPEN_CLIP = """\
import open_clip
import torch
from PIL import Image

{folder}
model, transform = open_clip.create_model_from_pretrained("local-dir:" + folder)
model.eval()
tokenizer = open_clip.get_tokenizer("local-dir:" + folder)

with torch.no_grad():
    images = model.encode_image(torch.stack([transform(Image.open("photo.png").convert("RGB"))]), normalize=True)
    texts = model.encode_text(tokenizer(["a dog in the snow"]), normalize=True)
scores = texts @ images.T
"""
_ONNX = '''\
{imports}

{folder}
{load}
# With int8 weights: folder + "/int8/image.onnx" and folder + "/int8/text.onnx".
image_tower = onnxruntime.InferenceSession(folder + "/image.onnx")
text_tower = onnxruntime.InferenceSession(folder + "/text.onnx")


def run(tower, inputs):
    """The unit vectors of a tower."""
    return tower.run(["vectors"], {{node.name: np.asarray(inputs[node.name]) for node in tower.get_inputs()}})[0]


def embed_images(images):
    """A unit vector for each image."""
    return run(image_tower, {images})


def embed_texts(captions):
    """A unit vector for each caption."""
    return run(text_tower, {texts})


scores = embed_texts(["a dog in the snow"]) @ embed_images([Image.open("photo.png")]).T
'''
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
_CROSS_ENCODER = '''\
import torch
from PIL import Image
from transformers import {model_class}, {processor_class}

model = {model_class}.from_pretrained("{name}").eval()
processor = {processor_class}.from_pretrained("{name}", backend="pil")


def score(images, captions):
    """The logit of each image with the caption of the same index; higher is better."""
    images = [image.convert("RGB") for image in images]
    batch = processor(images=images, text=captions, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        {logit}


scores = score([Image.open("photo.png")] * 2, ["a dog in the snow", "a cat on a mat"])
'''
_FUSION = '''\
import torch
from PIL import Image

from dcdctl.core import models

{folder}
model = models.load_fusion(folder)


def score(images, captions):
    """The logit of each image with the caption of the same index; higher is better. Each is encoded once."""
    image_states = model.encode_images(model.preprocess.images(images))
    text_states = model.encode_texts(model.preprocess.texts(captions))
    index = torch.arange(len(captions))
    return model.score_pairs(image_states, text_states, index, index)


with torch.no_grad():
    scores = score([Image.open("photo.png")] * 2, ["a dog in the snow", "a cat on a mat"])
'''


def usage(model: Model, to: Format, name: str, *, is_on_hub: bool = False) -> str:
    """The code that loads a model exported as `to`; `name` is its folder, or its repository on the Hub."""
    spec = model.export_spec()
    trust = {"trust": ", trust_remote_code=True" if spec.code else ""}
    folder = f'folder = "{name}"'
    if is_on_hub:
        folder = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{name}")'
    classes = {"model_class": spec.model_class, "processor_class": spec.processor_class}
    if model.kind == "fusion":
        template = _CROSS_ENCODER if spec.model_class else _FUSION
        return template.format(name=name, folder=folder, logit=_logit(spec), **classes)
    if to == "sentence-transformers":
        return _SENTENCE_TRANSFORMERS.format(name=name, **trust)
    if to == "open-clip":
        return _OPEN_CLIP.format(folder=folder)
    if to == "onnx":
        return _ONNX.format(folder=folder, **_onnx_preprocessing(spec))
    if spec.code:
        classes = {"model_class": "AutoModel", "processor_class": "AutoProcessor"}
    tokens, arguments = _MASKED, "input_ids=ids, attention_mask=mask"
    if spec.padded_length is not None:
        tokens, arguments = _PADDED.format(length=spec.padded_length), 'input_ids=tokens["input_ids"]'
    return _TRANSFORMERS.format(name=name, tokens=tokens, arguments=arguments, **classes, **trust)


def _onnx_preprocessing(spec: ExportSpec) -> dict[str, str]:
    """The parts of the code for ONNX Runtime that prepare images and captions."""
    has_timm = spec.timm_config is not None
    options = ", ".join(
        f"{name}={json.dumps(value) if isinstance(value, str) else value}" for name, value in spec.text_options.items()
    )
    values = {
        "trust": ", trust_remote_code=True" if has_timm else "",
        "tensors": "pt" if has_timm else "np",
        "options": options,
    }
    parts = _BY_OPEN_CLIP if spec.library else _BY_TRANSFORMERS
    return {name: part.format(**values) for name, part in parts.items()}


def _logit(spec: ExportSpec) -> str:
    """The statements that return the logits of a batch."""
    output = f"model(**batch{''.join(f', {name}={value}' for name, value in spec.options.items())}).{spec.output}"
    if not spec.is_two_rows:
        return f"return {output}.squeeze(-1)"
    return f"no_match, match = {output}.unbind(dim=1)\n        return match - no_match"


def requirements(model: Model, to: Format) -> list[str]:
    """The packages that the code needs, by their names for pip."""
    spec = model.export_spec()
    if to == "open-clip":
        return ["open_clip_torch>=3.3", "pillow"]
    if not spec.model_class and not spec.library:
        return ["dcdctl"]
    own = {"transformers": ["transformers>=5", "torch"], "sentence-transformers": ["sentence-transformers>=5.4"]}
    if to == "onnx" and spec.library:
        return ["onnxruntime", "open_clip_torch>=3.3", "pillow"]
    # timm's image transform needs torchvision, which is installed with timm.
    return [*own.get(to, ["onnxruntime", "transformers>=5"]), "pillow", *([] if spec.timm_config is None else ["timm"])]
