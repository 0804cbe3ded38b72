"""A model of open_clip as a folder that open_clip reads without dcdctl: the folder of `models.save`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dcdctl.core import files, models
from dcdctl.core.errors import require_extra
from dcdctl.core.export.check import Samples, Vectors, embed_in_two_batches
from dcdctl.core.models import DualEncoder

EXTRA = "open-clip"


def require() -> None:
    """MissingError if open_clip is not installed."""
    require_extra(EXTRA, "open_clip", needed_by=f"--to {EXTRA}")


def write(model: DualEncoder, folder: Path) -> None:
    """Write into a new folder."""
    models.save(model.export_copy(), folder)


def preprocessing(
    folder: Path,
) -> tuple[Callable[[Sequence[Any]], dict[str, Any]], Callable[[Sequence[Any]], dict[str, Any]]]:
    """The inputs of an image and a text tower by open_clip alone, from the open_clip_config.json of a folder without a
    network."""
    require()
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = files.read_json(folder / "open_clip_config.json")
    transform = image_transform_v2(PreprocessCfg(**config["preprocess_cfg"]), is_train=False)
    with models.quiet_open_clip():
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    return (
        lambda images: {"pixel_values": torch.stack([transform(image) for image in images])},
        lambda captions: {"input_ids": tokenizer(list(captions))},
    )


def embed(folder: Path, model: DualEncoder, samples: Samples) -> Vectors:
    """The vectors of samples by open_clip alone, from a folder."""
    require()
    import open_clip

    with models.quiet_open_clip():
        network, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    network.eval()
    with torch.no_grad():
        return embed_in_two_batches(
            samples,
            lambda images: network.encode_image(torch.stack([transform(image) for image in images]), normalize=True),
            lambda captions: network.encode_text(tokenizer(captions), normalize=True),
        )
