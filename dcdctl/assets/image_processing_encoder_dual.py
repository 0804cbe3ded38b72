"""A timm model's own image transform as an image processor that is described in a preprocessor_config.json.

transformers keeps that of timm's models in the model's config.json; here a timm model is one half of a model.
"""

from __future__ import annotations

from typing import Any

from transformers import BaseImageProcessor, TimmWrapperImageProcessor


class TimmImageProcessor(TimmWrapperImageProcessor):
    """Needs timm and torchvision."""

    def __init__(self, pretrained_cfg: dict[str, Any], architecture: str | None = None, **rest: Any) -> None:
        super().__init__(pretrained_cfg, architecture=architecture)
        self.pretrained_cfg = pretrained_cfg

    @classmethod
    def get_image_processor_dict(cls, folder: Any, **options: Any) -> Any:
        """The table in preprocessor_config.json."""
        return BaseImageProcessor.get_image_processor_dict.__func__(cls, folder, **options)

    def preprocess(self, images: Any, return_tensors: Any = "pt", **_: Any) -> Any:
        """`pixel_values`, images x 3 x H x W; pictures of any mode."""
        pictures = images if isinstance(images, (list, tuple)) else [images]
        rgb = [picture.convert("RGB") if hasattr(picture, "convert") else picture for picture in pictures]
        return super().preprocess(rgb, return_tensors="pt")
