"""The towers of a network of open_clip: where the layers of each encoder are, and its projection."""

from __future__ import annotations

from typing import Any

from torch import nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models.networks.towers import Tower

TIMM_LAYERS = ("blocks", "stages")
"""What encoders of timm call their layers: the blocks of a ViT, the stages of a convolutional encoder such as
MobileCLIP's FastViT."""


def find_towers(network: Any) -> tuple[Tower, Tower]:
    """The image and the text encoder; ModelError for an image encoder without a list of layers, such as a ResNet of
    OpenAI."""
    return _image_tower(network.visual), _text_tower(network)


def _image_tower(visual: Any) -> Tower:
    if not hasattr(visual, "trunk"):
        if not hasattr(visual, "transformer"):
            raise _without_layers(visual)
        # open_clip's ViT holds its projection, as a parameter.
        return Tower(
            "image", "network.visual", visual, projection="network.visual.proj", layers_name="transformer.resblocks"
        )
    # An encoder of timm. Its classifier is the projection, if it has one; otherwise the projection lies behind the
    # encoder.
    trunk, name = visual.trunk, "network.visual.trunk"
    classifier = trunk.default_cfg.get("classifier")
    lists = [each for each in TIMM_LAYERS if isinstance(getattr(trunk, each, None), nn.Sequential | nn.ModuleList)]
    if not lists or not isinstance(classifier, str):
        raise _without_layers(trunk)
    return Tower("image", name, trunk, projection=f"{name}.{classifier}", layers_name=lists[0])


def _text_tower(network: Any) -> Tower:
    text = getattr(network, "text", None)
    if text is None:
        # open_clip's CLIP: the parts of its text encoder are members of the network, beside the image encoder. Here in
        # the order in which they compute, which is not that of the network.
        parts = nn.Module()
        for name in ("token_embedding", "positional_embedding", "transformer", "ln_final"):
            setattr(parts, name, getattr(network, name))
        return Tower("text", "network", parts, layers_name="transformer.resblocks")
    if getattr(text, "config", None) is not None:
        # An encoder of transformers, with the projection behind it.
        return Tower("text", "network.text.transformer", text.transformer)
    return Tower(
        "text", "network.text", text, projection="network.text.text_projection", layers_name="transformer.resblocks"
    )


def _without_layers(encoder: nn.Module) -> ModelError:
    return ModelError(
        f"the image encoder ({type(encoder).__name__}) has no list of layers", hint="set model.trained to all"
    )
