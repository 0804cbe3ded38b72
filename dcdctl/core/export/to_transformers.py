"""A model as a folder that transformers reads without dcdctl.

A dual encoder of one network is a model of transformers with its processor, such as a CLIPModel or a
VisionTextDualEncoderModel. For a dual encoder over two backbones (stages, mean of tokens, normalized features) the
folder has a code file, which transformers runs with `trust_remote_code=True`. A ViLT, BLIP, BLIP-2 or BridgeTower
scorer is a model of transformers with its processor. A co-attention scorer has no class in transformers;
`models.load_fusion` reads its folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from dcdctl.core import files, models
from dcdctl.core.export.check import Check, Samples, compare_logits, embed_in_two_batches
from dcdctl.core.export.target import Target, with_timm
from dcdctl.core.models import ExportSpec, FusionScorer, Model, silence_transformers
from dcdctl.core.scoring import Vectors

PROCESSOR_CODE = "image_processing_encoder_dual"
_ASSETS = files.packaged("assets")


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


class Transformers(Target):
    """A folder for transformers; of a co-attention scorer, the folder of `models.save`."""

    name = "transformers"

    @classmethod
    def require(cls) -> None:
        """Nothing: transformers is installed with dcdctl."""

    def write(self) -> None:
        write(self.model, self.folder)
        models.seal_again(self.folder)

    def embed(self, samples: Samples) -> Vectors:
        spec = self.spec
        network, processor = _read(spec, self.folder)

        def embed_images(images: list[Image.Image]) -> Tensor:
            return network.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output

        def embed_texts(captions: list[str]) -> Tensor:
            tokens = processor(text=captions, return_tensors="pt", **spec.text_options)
            mask = None if spec.padded_length is not None else tokens["attention_mask"]
            return network.get_text_features(input_ids=tokens["input_ids"], attention_mask=mask).pooler_output

        with torch.no_grad():
            return embed_in_two_batches(samples, embed_images, embed_texts)

    def compare(self, samples: Samples) -> tuple[Check, ...]:
        if self.has_vectors:
            return super().compare(samples)
        return (compare_logits(score(self.folder, self.model, samples), scores_of(self.model, samples)),)

    def usage(self) -> str:
        spec, name = self.spec, self.job.name
        model_class, processor_class = _classes(spec)
        classes = {"model_class": model_class, "processor_class": processor_class}
        if not self.has_vectors:
            options = "".join(f", {name}={value}" for name, value in spec.options.items())
            logit = f"return model(**batch{options}).{spec.output}.squeeze(-1)"
            if spec.is_two_rows:
                logit = f"no_match, match = model(**batch{options}).{spec.output}.unbind(dim=1)"
                logit += "\n        return match - no_match"
            template = _CROSS_ENCODER if spec.model_class else _FUSION
            return template.format(name=name, folder=self.folder_code, logit=logit, **classes)
        tokens, arguments = _MASKED, "input_ids=ids, attention_mask=mask"
        if spec.padded_length is not None:
            tokens, arguments = _PADDED.format(length=spec.padded_length), 'input_ids=tokens["input_ids"]'
        return _TRANSFORMERS.format(name=name, tokens=tokens, arguments=arguments, trust=self.trust_code, **classes)

    def requirements(self) -> list[str]:
        # No class of transformers reads a co-attention scorer.
        return with_timm(["transformers>=5", "torch"], self.spec) if self.spec.model_class else ["dcdctl"]


def write(model: Model, folder: Path) -> None:
    """Write into a new folder, whose seal (`models.seal_again`) is left to the caller, who may add files."""
    spec, exported = model.export_spec(), model.export_copy()
    # The copy's files also convert images to RGB and cut captions, which `Preprocess` itself does here.
    models.save(exported, folder)
    if spec.code:
        # The code next to the weights, and the names of its classes in config.json.
        shutil.copyfile(_ASSETS / f"{spec.code}.py", folder / f"{spec.code}.py")
        config = files.read_json(folder / "config.json")
        config_class = f"{spec.model_class.removesuffix('Model')}Config"
        config["architectures"] = [spec.model_class]
        config["auto_map"] = {
            "AutoConfig": f"{spec.code}.{config_class}",
            "AutoModel": f"{spec.code}.{spec.model_class}",
        }
        # transformers loads weights in the dtype that config.json names.
        config["dtype"] = "float32"
        files.write_json(folder / "config.json", config)
    # The files of AutoProcessor, besides the tokenizer's and the image processor's.
    if spec.timm_config is not None:
        write_timm_processor(spec, folder)
        files.write_json(folder / "processor_config.json", {"processor_class": spec.processor_class})
    elif spec.model_class:
        images, tokenizer = exported.preprocess.image_processor, exported.preprocess.tokenizer
        with silence_transformers():
            getattr(transformers, spec.processor_class)(images, tokenizer).save_pretrained(folder)
            # AutoImageProcessor looks for its file here.
            images.save_pretrained(folder)


def _classes(spec: ExportSpec) -> tuple[str, str]:
    """The names of the classes of transformers that read the network and its processor."""
    # The automatic classes alone run the code of a folder.
    return ("AutoModel", "AutoProcessor") if spec.code else (spec.model_class, spec.processor_class)


def _read(spec: ExportSpec, folder: Path) -> tuple[Any, Any]:
    """The network and the processor of a folder, by transformers alone."""
    network, processor = (getattr(transformers, name) for name in _classes(spec))
    options = {"trust_remote_code": True} if spec.code else {}
    with silence_transformers():
        return (
            network.from_pretrained(folder, **options).eval(),
            processor.from_pretrained(folder, backend="pil", **options),
        )


def score(folder: Path, model: FusionScorer, samples: Samples) -> Tensor:
    """The logits of each image with its caption, by a model read from a folder."""
    spec = model.export_spec()
    if not spec.model_class:
        return scores_of(models.load_fusion(folder), samples)
    network, processor = _read(spec, folder)
    batch = processor(images=samples.images, text=samples.captions, padding=True, truncation=True, return_tensors="pt")
    # ViLT in transformers draws the order of its patches from the global random state.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        columns: Tensor = getattr(network(**batch, **spec.options), spec.output)
    return columns[:, 1] - columns[:, 0] if spec.is_two_rows else columns.squeeze(-1)


def scores_of(model: FusionScorer, samples: Samples) -> Tensor:
    """The logits of each image with its caption, by the original model."""
    device, ix = next(iter(model.parameters())).device, torch.arange(len(samples.captions))
    with torch.no_grad():
        images = model.encode_images(model.preprocess.images(samples.images).to(device))
        texts = model.encode_texts(model.preprocess.texts(samples.captions).to(device))
        logits: Tensor = model.score_pairs(images, texts, ix.to(device), ix.to(device)).cpu()
    return logits


def write_timm_processor(spec: ExportSpec, folder: Path) -> None:
    """The image transform of timm as code, and its settings."""
    # transformers has no image processor with the crops and resizing of timm.
    shutil.copyfile(_ASSETS / f"{PROCESSOR_CODE}.py", folder / f"{PROCESSOR_CODE}.py")
    table = {
        "image_processor_type": "TimmImageProcessor",
        "auto_map": {"AutoImageProcessor": f"{PROCESSOR_CODE}.TimmImageProcessor"},
        "architecture": spec.timm_config.architecture,
        "pretrained_cfg": spec.timm_config.pretrained_cfg,
    }
    files.write_json(folder / "preprocessor_config.json", table)
