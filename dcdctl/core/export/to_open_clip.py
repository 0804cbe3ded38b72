"""A model of open_clip as a folder that open_clip reads without dcdctl: the folder of `models.save`."""

from __future__ import annotations

from pathlib import Path

import torch

from dcdctl.core import models
from dcdctl.core.errors import require_extra
from dcdctl.core.export.check import Samples, Vectors
from dcdctl.core.models import DualEncoder

EXTRA = "open-clip"


def require() -> None:
    """MissingError if open_clip is not installed."""
    require_extra(EXTRA, "open_clip", needed_by=f"--to {EXTRA}")


def write(model: DualEncoder, folder: Path) -> None:
    """Write into a new folder."""
    models.save(model.export_copy(), folder)


def embed(folder: Path, model: DualEncoder, samples: Samples) -> Vectors:
    """The vectors of samples by open_clip alone, from a folder."""
    require()
    import open_clip

    with models.quiet_open_clip():
        network, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    network.eval()
    with torch.no_grad():
        images = network.encode_image(torch.stack([transform(image) for image in samples.images]), normalize=True)
        texts = network.encode_text(tokenizer(samples.captions), normalize=True)
    return Vectors(images, texts)
