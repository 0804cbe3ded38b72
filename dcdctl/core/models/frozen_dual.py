"""A dual encoder over two encoders that stay as they are: one linear layer a side, trained in seconds from features on disk.

Shape letters: I images, T texts, V image tokens, L text tokens, D length of the vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from dcdctl.core import files
from dcdctl.core.errors import ModelError
from dcdctl.core.models import backbones
from dcdctl.core.models.backbones import AS_IT_IS, Projections, ProjectionSize, Reading
from dcdctl.core.models.checkpoint import check_complete, digest_of_model
from dcdctl.core.models.dual import DualModel
from dcdctl.core.models.overrides import check_no_text_encoder, read_overrides
from dcdctl.core.models.preprocess import Preprocess, check_text_length, check_vocabulary, hub_errors, load_tokenizer, num_text_positions
from dcdctl.core.models.protocols import ImageBatch, States, TextBatch

ENCODER_DUAL_TYPE = "dcdctl-encoder-dual"
WEIGHTS_FILE = "model.safetensors"


class EncoderDualNetwork(nn.Module):
    """Two encoders and two projections; the projections are untrained."""

    def __init__(self, vision: nn.Module, text: nn.Module, size: ProjectionSize) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        for encoder in (vision, text):
            backbones.drop_pooler(encoder)
        self.image_width = backbones.image_width(vision)
        self.projections = Projections(self.image_width, self.text_config.hidden_size, size)

    @property
    def vision_config(self) -> Any:
        return self.vision.config

    @property
    def text_config(self) -> Any:
        return self.text.config

    def to_table(self) -> dict[str, Any]:
        """What config.json holds."""
        sides = {"vision": self.vision_config.to_dict(), "text": self.text_config.to_dict()}
        for told in sides.values():
            told.pop("_name_or_path", None)  # where the encoder once came from, perhaps a folder of this machine
        return {**sides, "projection": dataclasses.asdict(self.projections.size)}


class EncoderDual(DualModel):
    """Embeds images and captions, or what its encoders made of them, into one space; made in eval mode, its encoders frozen."""

    def __init__(self, network: EncoderDualNetwork, preprocess: Preprocess) -> None:
        super().__init__(network, preprocess)
        for side in (network.vision, network.text):
            side.requires_grad_(False)

    @property
    def settings(self) -> dict[str, Any]:
        """What the files of a saved model do not say without us."""
        return {"kind": "dual", "max_text_len": self.preprocess.max_text_len}

    @property
    def digest(self) -> str:
        """The fingerprint of all weights and all settings that change a score."""
        return digest_of_model(self, {**self.settings, **self.preprocess.settings, "heads": self._heads}, without="calibration")

    @property
    def encoders_digest(self) -> str:
        """The fingerprint of all that decides what the encoders make of a picture and a caption: that of a co-attention model over both."""
        sides = nn.ModuleDict({"vision": self.network.vision, "text": self.network.text})
        return digest_of_model(sides, {**self.preprocess.settings, "transform": self.preprocess.image_transform, "heads": self._heads})

    @property
    def _heads(self) -> list[Any]:
        """What the shapes of the weights do not show."""
        configs = (self.network.vision_config, self.network.text_config)
        return [*(getattr(config, "num_attention_heads", None) for config in configs), *backbones.reading_of(configs[0])]

    @property
    def is_frozen(self) -> bool:
        """Always: its encoders are not trained."""
        return True

    @property
    def embedding_dim(self) -> int:
        return int(self.network.projections.size.projection_dim)

    @property
    def logit_scale(self) -> Tensor:
        """What cosines are multiplied by to be logits."""
        return self.network.projections.scale

    def train(self, mode: bool = True) -> Self:
        """As always, except for the encoders, which stay in eval mode."""
        super().train(mode)
        self.network.vision.eval()
        self.network.text.eval()
        return self

    def image_features(self, images: ImageBatch) -> States:
        """What the vision encoder makes of images, I x V x its width."""
        with torch.no_grad():
            tokens = backbones.vision_tokens(self.network.vision, images.pixel_values, self.network.image_width)
        return States(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def text_features(self, texts: TextBatch) -> States:
        """What the text encoder makes of captions, T x L x its width."""
        with torch.no_grad():
            found = self.network.text(input_ids=texts.input_ids, attention_mask=texts.attention_mask)
        return States(found.last_hidden_state, texts.attention_mask.bool())

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D, of images or of their features."""
        features = self.image_features(images) if isinstance(images, ImageBatch) else images
        return self.network.projections.project_images(features.tokens)

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D, of captions or of their features."""
        features = self.text_features(texts) if isinstance(texts, TextBatch) else texts
        return self.network.projections.project_texts(features.tokens, features.mask)

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights."""
        dtype = torch.float16 if half else torch.float32
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in self.network.state_dict().items()}
        files.write_json(folder / "config.json", {"model_type": ENCODER_DUAL_TYPE, **self.network.to_table()})
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS_FILE)


def dual_over(
    vision_ref: str, text_ref: str, size: ProjectionSize, *, max_text_len: int, reading: Reading = AS_IT_IS, seed: int = 0
) -> EncoderDual:
    """A dual encoder over two pretrained encoders (folders or Hub ids) that are not trained; only the two projections are new.

    `vision`, `text` and `reading` are what `encoder_pair.scorer_over` takes. The same weights for the same seed, the global random state
    untouched.
    """
    vision, text = backbones.load_vision(vision_ref, reading), backbones.load_text(text_ref)
    tokenizer = load_tokenizer(text_ref, "model.text wants a text model with its tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = EncoderDualNetwork(vision, text, size)
    check_vocabulary(tokenizer, network.text_config.vocab_size)
    processor = backbones.load_processor(vision_ref, network.vision_config)
    length = min(max_text_len, num_text_positions(network.text_config))
    return EncoderDual(network, Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=length))


def from_folder(folder: Path, overrides: Mapping[str, Any], told: Mapping[str, Any]) -> EncoderDual:
    """The dual encoder of a folder that `save_network` and `Preprocess.save` wrote; `told` is its dcdctl.json."""
    wanted = read_overrides(overrides)
    check_no_text_encoder(wanted, folder)
    for name in ("image_size", "num_attention_heads"):
        if getattr(wanted, name) is not None:
            raise ModelError(f"{folder} is a dual encoder, whose {name} is fixed by its weights")
    table = files.read_json(folder / "config.json", error=ModelError, hint="save the model again")
    with hub_errors(str(folder), hint="save the model again"):
        weights = load_file(folder / WEIGHTS_FILE)
    with backbones.needing_timm(folder):
        vision, text = (AutoModel.from_config(AutoConfig.for_model(**table[name])) for name in ("vision", "text"))
    network = EncoderDualNetwork(vision, text, ProjectionSize(**table["projection"]))
    own = network.state_dict()
    check_complete(folder, set(own) - set(weights), "a dual encoder")
    network.load_state_dict({name: weights[name].to(own[name].dtype) for name in own})
    tokenizer = load_tokenizer(wanted.tokenizer or str(folder))
    check_vocabulary(tokenizer, network.text_config.vocab_size)
    processor = backbones.load_processor(str(folder), network.vision_config)
    length = check_text_length(wanted.max_text_len or told["max_text_len"], num_text_positions(network.text_config))
    return EncoderDual(network, Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=length))
