"""The lines of Python that load an exported model, as its card and docs/export.md show them; tests run them in processes of their own."""

from __future__ import annotations

from typing import Literal

from dcdctl.core.models import Model

Format = Literal["transformers", "sentence-transformers", "onnx"]
_TRANSFORMERS = '''\
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import {model_class}, {processor_class}

model = {model_class}.from_pretrained("{name}"{trust}).eval()
processor = {processor_class}.from_pretrained("{name}", backend="pil"{trust})


def embed_images(pictures):
    """Unit vectors, one a picture."""
    pixels = processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
    with torch.no_grad():
        return normalize(model.get_image_features(pixel_values=pixels["pixel_values"]).pooler_output, dim=-1)


def embed_texts(captions):
    """Unit vectors, one a caption."""
    tokens = processor(text=captions, padding=True, truncation=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    with torch.no_grad():
        return normalize(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output, dim=-1)


scores = embed_texts(["a dog in the snow"]) @ embed_images([Image.open("photo.png")]).T
'''
_SENTENCE_TRANSFORMERS = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}"{trust})
images = model.encode([Image.open("photo.png").convert("RGB")])
texts = model.encode(["a dog in the snow"])
scores = model.similarity(texts, images)
"""
_ONNX = '''\
import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

{folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder, backend="pil"{trust})
# With int8 weights: folder + "/int8/image.onnx" and folder + "/int8/text.onnx".
image_tower = onnxruntime.InferenceSession(folder + "/image.onnx")
text_tower = onnxruntime.InferenceSession(folder + "/text.onnx")


def run(tower, inputs):
    """Unit vectors of whatever a tower reads."""
    return tower.run(["vectors"], {{one.name: np.asarray(inputs[one.name]) for one in tower.get_inputs()}})[0]


def embed_images(pictures):
    """Unit vectors, one a picture."""
    return run(image_tower, processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="{tensors}"))


def embed_texts(captions):
    """Unit vectors, one a caption."""
    return run(text_tower, tokenizer(captions, padding=True, truncation=True, return_tensors="np"))


scores = embed_texts(["a dog in the snow"]) @ embed_images([Image.open("photo.png")]).T
'''
_CROSS_ENCODER = '''\
import torch
from PIL import Image
from transformers import {model_class}, {processor_class}

model = {model_class}.from_pretrained("{name}").eval()
processor = {processor_class}.from_pretrained("{name}", backend="pil")


def score(pictures, captions):
    """The logit of each picture with the caption in the same place, higher is better."""
    pictures = [picture.convert("RGB") for picture in pictures]
    batch = processor(images=pictures, text=captions, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.squeeze(-1)


scores = score([Image.open("photo.png")] * 2, ["a dog in the snow", "a cat on a mat"])
'''
_FUSION = '''\
import torch
from PIL import Image

from dcdctl.core import models

{folder}
model = models.load_fusion(folder)


def score(pictures, captions):
    """The logit of each picture with the caption in the same place, higher is better; each is encoded once."""
    images = model.encode_images(model.preprocess.images(pictures))
    texts = model.encode_texts(model.preprocess.texts(captions))
    places = torch.arange(len(captions))
    return model.score_pairs(images, texts, places, places)


with torch.no_grad():
    scores = score([Image.open("photo.png")] * 2, ["a dog in the snow", "a cat on a mat"])
'''


def usage(model: Model, to: Format, name: str, *, is_on_hub: bool = False) -> str:
    """The lines that load a model exported as `to`; `name` is its folder, or its repository on the Hub."""
    spec = model.export_spec()
    trust = {"trust": ", trust_remote_code=True" if spec.code else ""}
    folder = f'folder = "{name}"'
    if is_on_hub:
        folder = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{name}")'
    classes = {"model_class": spec.model_class, "processor_class": spec.processor_class}
    if model.kind == "fusion":
        return (_CROSS_ENCODER if spec.model_class else _FUSION).format(name=name, folder=folder, **classes)
    if to == "sentence-transformers":
        return _SENTENCE_TRANSFORMERS.format(name=name, **trust)
    if to == "onnx":
        has_timm = spec.timm_config is not None
        image_code = ", trust_remote_code=True" if has_timm else ""
        return _ONNX.format(folder=folder, trust=image_code, tensors="pt" if has_timm else "np")
    if spec.code:
        classes = {"model_class": "AutoModel", "processor_class": "AutoProcessor"}
    return _TRANSFORMERS.format(name=name, **classes, **trust)


def requirements(model: Model, to: Format) -> list[str]:
    """What has to be installed for it, as pip names it."""
    spec = model.export_spec()
    if not spec.model_class:
        return ["dcdctl"]
    own = {"transformers": ["transformers>=5", "torch"], "sentence-transformers": ["sentence-transformers>=5.4"]}
    # timm's own transform is torchvision's, which comes with it.
    return [*own.get(to, ["onnxruntime", "transformers>=5"]), "pillow", *([] if spec.timm_config is None else ["timm"])]
