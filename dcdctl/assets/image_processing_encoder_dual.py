"""The image transform of a timm model as an image processor with a preprocessor_config.json.

transformers reads the transform of a timm model from config.json; here the timm model is only one of two encoders.
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
        """`pixel_values`, images x 3 x H x W; for images of any mode."""
        several = images if isinstance(images, (list, tuple)) else [images]
        rgb = [image.convert("RGB") if hasattr(image, "convert") else image for image in several]
        return super().preprocess(rgb, return_tensors="pt")
