"""A model of open_clip as a folder that open_clip reads without dcdctl: the folder of `models.save`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dcdctl.core import files, models
from dcdctl.core.errors import ModelError, require_extra
from dcdctl.core.export.check import Samples, embed_in_two_batches
from dcdctl.core.export.target import Target
from dcdctl.core.scoring import Vectors

PACKAGE = "open_clip_torch>=3.3"
Prepare = Callable[[Sequence[Any]], Mapping[str, Any]]
"""Images or captions as inputs of their tower."""
_USAGE = """\
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


class OpenClip(Target):
    """The folder of `models.save`, for models that open_clip loaded."""

    name = "open-clip"

    @classmethod
    def require(cls) -> None:
        require_extra(cls.name, "open_clip", needed_by=f"--to {cls.name}")

    def check(self) -> None:
        super().check()
        library = self.spec.library or "transformers"
        if library != self.name:
            raise ModelError(
                f"{self.job.ref} is no model of open_clip, which cannot read it", hint=f"export it with --to {library}"
            )

    def write(self) -> None:
        models.save(self.model.export_copy(), self.folder)

    def embed(self, samples: Samples) -> Vectors:
        import open_clip

        with models.quietly():
            network, transform = open_clip.create_model_from_pretrained(f"local-dir:{self.folder}")
            tokenizer = open_clip.get_tokenizer(f"local-dir:{self.folder}")
        # open_clip returns a network in training mode.
        network.eval()
        with torch.no_grad():
            return embed_in_two_batches(
                samples,
                lambda images: network.encode_image(torch.stack(list(map(transform, images))), normalize=True),
                lambda captions: network.encode_text(tokenizer(captions), normalize=True),
            )

    def usage(self) -> str:
        return _USAGE.format(folder=self.folder_code)

    def requirements(self) -> list[str]:
        return [PACKAGE, "pillow"]


def preprocessing(folder: Path) -> tuple[Prepare, Prepare]:
    """The inputs of an image and a text tower by open_clip alone, from the open_clip_config.json of a folder without a
    network."""
    OpenClip.require()
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = files.read_json(folder / "open_clip_config.json")
    transform = image_transform_v2(PreprocessCfg(**config["preprocess_cfg"]), is_train=False)
    with models.quietly():
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    return (
        lambda images: {"pixel_values": torch.stack([transform(image) for image in images])},
        lambda captions: {"input_ids": tokenizer(list(captions))},
    )
