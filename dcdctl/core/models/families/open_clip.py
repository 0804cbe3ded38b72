"""Models of open_clip as dual encoders: folders with open_clip_config.json, such as MobileCLIP 2 and the ViTs of LAION.

open_clip builds the network, transforms images and tokenizes captions, so vectors and scores are its own. Its weights
are read without running code of the folder.

Shape letters: I images, T texts, D length of the vectors, L tokens of a caption.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig

from dcdctl.core import files
from dcdctl.core.errors import ModelError, require_extra
from dcdctl.core.models.checkpoint import check_complete, save_state
from dcdctl.core.models.dual import DualEncoder, unit_vectors
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch, unencoded
from dcdctl.core.models.networks.attention import enable_checkpointing
from dcdctl.core.models.networks.backbones import in_kernel_order
from dcdctl.core.models.networks.open_clip_towers import find_towers
from dcdctl.core.models.networks.towers import TrainedParts, freeze_others
from dcdctl.core.models.open_clip_tokenizer import ClipTokens, OpenClipTokenizer, read_tokenizer
from dcdctl.core.models.overrides import Overrides, read_overrides
from dcdctl.core.models.protocols import ExportSpec, Table
from dcdctl.core.models.references.folders import OPEN_CLIP, OPEN_CLIP_FILE, OPEN_CLIP_WEIGHTS, open_clip_weights
from dcdctl.core.models.references.loading import hub_errors, quietly
from dcdctl.core.models.tokenizer import TOKENIZER_HINT, check_words

WEIGHTS_FILE = OPEN_CLIP_WEIGHTS[0]
TEXT_CONFIG = "hf_text_config"
"""Folder of the configuration of a text encoder of transformers, which open_clip_config.json gives only as a Hub id."""
HINT = (
    f"an open_clip folder holds {OPEN_CLIP_FILE}, {WEIGHTS_FILE} and the files of its tokenizer, unless that is "
    "CLIP's own"
)


@dataclass(frozen=True, kw_only=True)
class OpenClipPreprocess:
    """Images and captions to tensors by the transform and the tokenizer of open_clip."""

    tokenizer: ClipTokens | OpenClipTokenizer
    image_config: Table
    """The fields of open_clip's PreprocessCfg: size, mean, std, interpolation, resize_mode, ..."""
    text_config: Table
    """The `text_cfg` of open_clip_config.json."""
    vocab_size: int
    is_alone: bool = False
    """Whether `save` also writes an open_clip_config.json, for a folder without the network."""
    image_processor: Any = None
    """None: open_clip's transform is none of transformers."""

    @property
    def max_text_len(self) -> int:
        """Tokens of every caption: shorter ones are padded, longer ones are cut."""
        return self.tokenizer.model_max_length

    @property
    def image_size_px(self) -> int:
        """Shorter side of a preprocessed image."""
        size = self.image_config["size"]
        return int(size if isinstance(size, int) else min(size))

    @cached_property
    def _transform(self) -> Any:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(**self.image_config), is_train=False)

    def images(self, images: Sequence[Image.Image]) -> ImageBatch:
        """Images of any size and mode as one batch, I x 3 x H x W."""
        return ImageBatch(torch.stack([self._transform(image) for image in images]))

    def texts(self, texts: Sequence[str]) -> TextBatch:
        """Captions as token ids, T x L, all cut and padded to L tokens; ModelError for an id that the model has no
        embedding of."""
        ids = self.tokenizer.tokenizer(list(texts))
        if (largest := int(ids.max())) >= self.vocab_size:
            problem = (
                f"the tokenizer gives the id {largest:,}, but the model's embedding table has {self.vocab_size:,} rows"
            )
            raise ModelError(
                problem, hint="use the tokenizer the model was trained with: `--model-set tokenizer=FOLDER`"
            )
        return TextBatch(ids, torch.ones_like(ids))

    @property
    def settings(self) -> Table:
        """Everything that decides the tensors of an image and a caption, JSON-able; part of a model's digest."""
        return {"image": dict(self.image_config), "tokenizer": self.tokenizer.settings}

    def save(self, folder: Path) -> None:
        """Write the files of a tokenizer of transformers; the settings of images are in open_clip_config.json."""
        self.tokenizer.save(folder)
        if self.is_alone:
            text = {name: value for name, value in self.text_config.items() if name != "hf_model_name"}
            files.write_json(
                folder / OPEN_CLIP_FILE, {"model_cfg": {"text_cfg": text}, "preprocess_cfg": dict(self.image_config)}
            )

    def self_contained(self) -> Self:
        """A copy whose saved files are enough for open_clip's tokenizer and image transform."""
        return dataclasses.replace(self, is_alone=True)


class OpenClipDual(DualEncoder):
    """Embeds images and captions with a CLIP or CustomTextCLIP of open_clip."""

    network: Any  # open_clip's classes have no common base
    preprocess: OpenClipPreprocess

    def __init__(
        self,
        network: nn.Module,
        preprocess: OpenClipPreprocess,
        table: Table,
        unused_keys: tuple[str, ...] = (),
    ) -> None:
        """`table` is the content of open_clip_config.json."""
        super().__init__(network, preprocess, unused_keys)
        self.table = copy.deepcopy(dict(table))
        self.embedding_dim = int(self.table["model_cfg"]["embed_dim"])

    @property
    def config(self) -> Table:
        """open_clip_config.json, and the configuration of a text encoder of transformers in place of its name."""
        config = {"model_type": OPEN_CLIP, **copy.deepcopy(self.table)}
        if (text := self._text_config) is not None:
            config["model_cfg"]["text_cfg"]["hf_model_name"] = text.to_dict()
        return config

    @property
    def _text_config(self) -> Any:
        return getattr(getattr(self.network, "text", None), "config", None)

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D. ValueError for features."""
        pixels = in_kernel_order(self.network.visual, unencoded(images).pixel_values)
        return unit_vectors(self.network.encode_image(pixels))

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D. ValueError for features."""
        return unit_vectors(self.network.encode_text(unencoded(texts).input_ids))

    def image_tokens(self, images: ImageBatch | States) -> States:
        """The states of the patches, or of the positions of the last map, before pooling, I x N x W; and the unit
        vectors."""
        visual = self.network.visual
        # The final norm of a CoCa comes after its pooling, at another width.
        has_norm = getattr(visual, "attn_pool", None) is None
        output = self.network.forward_intermediates(
            in_kernel_order(visual, unencoded(images).pixel_values), image_indices=1, normalize_intermediates=has_norm
        )
        return States.of_full(output["image_intermediates"][-1].flatten(2).mT, output["image_features"])

    def text_tokens(self, texts: TextBatch | States) -> States:
        """The last hidden states, T x L x W, and the unit vectors."""
        texts = unencoded(texts)
        if self._text_config is None:
            output = self.network.forward_intermediates(
                text=texts.input_ids, text_indices=1, normalize_intermediates=True
            )
            return self._states_of(texts, output["text_intermediates"][-1], output["text_features"])
        # open_clip's class for encoders of transformers gives no intermediate states.
        encoder = self.network.text
        mask = (texts.input_ids != self._text_config.pad_token_id).long()
        output = encoder.transformer(input_ids=texts.input_ids, attention_mask=mask)
        vectors = unit_vectors(encoder.proj(encoder.pooler(output, mask)))
        return self._states_of(texts, output.last_hidden_state, vectors)

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        return self.network.visual, getattr(self.network, "text", self.network)

    def set_trained(self, parts: TrainedParts) -> None:
        """Let training change only these parts; ModelError for adapters and for an encoder without a list of layers."""
        if parts.which == "lora":
            # PEFT adds adapters of nn.MultiheadAttention to its weights before each pass and subtracts them after it;
            # the rounding adds up.
            problem = (
                "model.trained is lora, and the attention of open_clip has no linear layers that adapters could "
                "stand beside"
            )
            raise ModelError(problem, hint="set model.trained to last-layers, or name a start of transformers")
        # All weights need no towers, which not every encoder has.
        freeze_others(self, () if parts.which == "all" else find_towers(self.network), parts)
        self.train(self.training)

    def set_dropout(self, probability: float) -> None:
        """ModelError: open_clip's encoders have no dropout of embeddings and sublayer outputs."""
        raise ModelError(
            "no encoder of this dual encoder has dropout that can be set (open_clip)", hint="leave model.dropout out"
        )

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass."""
        if self._text_config is None:
            self.network.set_grad_checkpointing()
        else:  # open_clip calls a name that transformers has deprecated
            self.network.visual.set_grad_checkpointing()
            enable_checkpointing([self.network.text.transformer])

    def export_spec(self) -> ExportSpec:
        """No class of transformers: open_clip reads the saved folder."""
        refusals = {
            "transformers": "transformers has no class for the networks and image transforms of open_clip",
            "sentence-transformers": "sentence-transformers reads networks of transformers",
        }
        return ExportSpec(library="open-clip", padded_length=self.preprocess.max_text_len, refusals=refusals)

    def export_copy(self) -> Self:
        """The same network: its folder needs no dcdctl."""
        return type(self)(self.network, self.preprocess, self.table)

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write open_clip_config.json and the weights, as open_clip reads them."""
        files.write_json(folder / OPEN_CLIP_FILE, self.table)
        save_state(self.network, folder / WEIGHTS_FILE, half=half)
        if self._text_config is not None:
            self._text_config.save_pretrained(folder / TEXT_CONFIG)


def load(ref: str, table: Table, saved: Table | None = None) -> OpenClipDual:
    """The dual encoder of an open_clip folder; `table` are the user's overrides, `saved` is dcdctl.json, which adds
    nothing here.

    MissingError if open_clip is not installed, ModelError for a folder that it cannot read.
    """
    require_extra("open-clip", "open_clip", needed_by=f"{ref}, a model of open_clip,")
    from open_clip.transform import PreprocessCfg

    overrides, folder = read_overrides(table), Path(ref)
    with hub_errors(ref, hint=HINT), quietly():
        config = files.read_json(folder / OPEN_CLIP_FILE, error=ModelError, hint=HINT)
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config.get("model_cfg", {})):
            raise ModelError(
                f"{folder / OPEN_CLIP_FILE} has no model_cfg with embed_dim, vision_cfg and text_cfg", hint=HINT
            )
        network = _build(folder, config)
        unused = _load_weights(network, folder)
        transform = asdict(PreprocessCfg(**network.visual.preprocess_cfg))
        preprocess = OpenClipPreprocess(
            tokenizer=read_tokenizer(_tokenizer(folder, config, overrides)),
            # Lists, as a saved file has them.
            image_config={key: list(value) if isinstance(value, tuple) else value for key, value in transform.items()},
            text_config=config["model_cfg"]["text_cfg"],
            vocab_size=int((network if hasattr(network, "vocab_size") else network.text).vocab_size),
        )
    return OpenClipDual(network, preprocess, config, unused)


def _build(folder: Path, config: Table) -> Any:
    """The network of a configuration, with random weights."""
    import open_clip

    text, changes = config["model_cfg"]["text_cfg"], {}
    if name := text.get("hf_model_name"):
        source = str(folder / TEXT_CONFIG) if (folder / TEXT_CONFIG).is_dir() else str(name)
        with hub_errors(source, hint=f"fetch config.json of {name}, and put it into {folder / TEXT_CONFIG}"):
            # open_clip would let transformers ask whether to run code of this repository; a type that is known here has
            # none.
            AutoConfig.from_pretrained(source, trust_remote_code=False)
        changes["text_cfg"] = {**text, "hf_model_name": source, "hf_model_pretrained": False}
    # Without weights: `_load_weights` reads them, and names what is missing.
    return open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, **changes)


def _load_weights(network: nn.Module, folder: Path) -> tuple[str, ...]:
    """Read the weights of a folder into a network; the names of those that it does not need. ModelError if there are
    none, or several files of unknown names."""
    import open_clip

    weights = open_clip_weights(path.name for path in folder.iterdir())
    if len(weights) != 1:
        listed = ", ".join(weights) or "no weights"
        raise ModelError(
            f"{folder} holds {listed}, expected one file of weights", hint=f"name the right one {WEIGHTS_FILE}"
        )
    path = folder / weights[0]
    report = open_clip.load_checkpoint(network, str(path), strict=False)
    check_complete(path, report.missing_keys, "a model of open_clip")
    return tuple(sorted(report.unexpected_keys))


def _tokenizer(folder: Path, config: Table, overrides: Overrides) -> Any:
    """The tokenizer of open_clip for a folder; ModelError if it draws the tokens of long captions at random."""
    import open_clip

    text = config["model_cfg"]["text_cfg"]
    if reduction := (text.get("tokenizer_kwargs") or {}).get("reduction_mask"):
        raise ModelError(
            f"{folder} cuts long captions by reduction_mask={reduction}, which is for training",
            hint=f"remove reduction_mask from tokenizer_kwargs in {OPEN_CLIP_FILE}: captions are then cut at their end",
        )
    if not text.get("hf_tokenizer_name"):
        if overrides.tokenizer is not None:
            raise ModelError(
                f"{folder} has CLIP's own tokenizer, which takes no other vocabulary",
                hint="leave --model-set tokenizer out",
            )
        return open_clip.get_tokenizer(f"local-dir:{folder}")
    # Without these files transformers would make a tokenizer that knows no word.
    has_own = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    source = overrides.tokenizer or (str(folder) if has_own else str(text["hf_tokenizer_name"]))
    with hub_errors(source, hint=TOKENIZER_HINT):
        tokenizer = open_clip.tokenizer.HFTokenizer(
            source,
            context_length=text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
            tokenizer_mode=text.get("tokenizer_mode"),
            **{**(text.get("tokenizer_kwargs") or {}), "trust_remote_code": False},
        )
    check_words(tokenizer.tokenizer, source, TOKENIZER_HINT)
    return tokenizer
