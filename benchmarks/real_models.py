"""Models of published sizes with random weights, and photos of a usual size, for benchmarks/real_sizes.py.

Widths, layers, patches, pixels and vocabularies are those of the published models; a time does not depend on weights.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dcdctl  # before torch: it sets how long torch's threads spin

# isort: split

import numpy as np
import torch
from PIL import Image
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    RobertaConfig,
    ViltConfig,
)

from dcdctl.core import models
from dcdctl.core.models.families.blip import BlipScorer
from dcdctl.core.models.families.coattention import CoAttentionNetwork
from dcdctl.core.models.families.vilt import BLOCK_EPS, build_network
from dcdctl.core.models.preprocess import Preprocess, square_image_processor, vilt_image_processor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

PHOTO_PX = (500, 375)
"""Most photos of Flickr8k and Flickr30K are as large."""
CAPTIONS = (
    "a brown dog runs after a red ball on the wet beach",
    "two women in long coats wait for the bus in the rain",
    "a boy jumps from a wooden pier into the cold lake",
    "a man with a yellow helmet climbs a steep wall of rock",
    "three children play football on a green field behind the school",
    "a girl in a white dress holds a cup of tea with both hands",
    "an old man reads a newspaper on a bench under a large tree",
    "a black horse and a small foal stand behind a white fence",
)
"""11 to 13 words each, as the captions of Flickr8k on average."""
VIT_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BERT_VOCABULARY, ROBERTA_VOCABULARY, CLIP_VOCABULARY, QWEN_VOCABULARY = 30_522, 50_265, 49_408, 151_936
TOY = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_heads": 2, "num_layers": 2, "projection_dim": 16, "image_size": 64, "vocab_size": 300,
}  # fmt: skip
TOKEN_DIM = 128
"""Numbers of a token vector, as in ColBERT and ColPali."""
RERANKER_PROMPT = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no". Instruct: Given a search query, retrieve relevant candidates that answer it.'
)
RERANKER_PIXELS = (64 * 64, 1800 * 32 * 32)
"""A photo is enlarged, and made smaller, to between these."""


@dataclass(frozen=True)
class Maker:
    """Writes models into folders, at their published sizes or tiny."""

    is_toy: bool

    def sized(self, **sizes: Any) -> dict[str, Any]:
        """Published sizes, or tiny ones in their place."""
        return {**sizes, **{name: TOY[name] for name in sizes if self.is_toy and name in TOY}}

    @property
    def tokenizer(self) -> Any:
        """Each word of the captions is one token, as the usual words are in the published vocabularies."""
        return models.word_piece(CAPTIONS, 300)

    def vilt(self, folder: Path) -> None:
        """ViLT-B/32."""
        sizes = self.sized(**VIT_B, image_size=384, vocab_size=BERT_VOCABULARY)
        config = ViltConfig(**sizes, patch_size=32, max_position_embeddings=40, layer_norm_eps=BLOCK_EPS)
        processor = vilt_image_processor(config.image_size, config.patch_size, 0.5, 0.5)
        preprocess = Preprocess(tokenizer=self.tokenizer, image_processor=processor, max_text_len=40)
        models.save(models.ViltScorer(build_network(config), preprocess), folder)

    def meter(self, folder: Path, image_px: int) -> None:
        """METER with 11 blocks of CLIP ViT-B/16, RoBERTa-base and 6 fusion layers."""
        vision = self.sized(**{**VIT_B, "num_hidden_layers": 11}, image_size=image_px)
        text = self.sized(**VIT_B, vocab_size=ROBERTA_VOCABULARY)
        fusion = self.sized(hidden_size=768, num_layers=6, num_heads=12)
        network = CoAttentionNetwork.from_configs(
            CLIPVisionConfig(**vision, patch_size=16, hidden_act="quick_gelu"),
            RobertaConfig(**text, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5),
            models.FusionSize(**fusion),
        )
        processor = square_image_processor(vision["image_size"])
        preprocess = Preprocess(tokenizer=self.tokenizer, image_processor=processor, max_text_len=50)
        models.save(models.CoAttentionScorer(network, preprocess), folder)

    def blip(self, folder: Path) -> None:
        """BLIP large with its matching head: ViT-L/16 at 384 px, and a text encoder of 12 layers."""
        sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision = self.sized(**sizes, image_size=384)
        text = self.sized(**VIT_B, vocab_size=30_524)
        config = BlipConfig(
            vision_config={**vision, "patch_size": 16, "initializer_range": 0.02},
            # The ids of the marks in the tokenizer above.
            text_config={**text, "bos_token_id": 2, "sep_token_id": 3},
        )
        side = {"height": vision["image_size"], "width": vision["image_size"]}
        processor = BlipImageProcessorPil(size=side)
        preprocess = Preprocess(tokenizer=self.tokenizer, image_processor=processor, max_text_len=35)
        models.save(BlipScorer(BlipForImageTextRetrieval(config), preprocess), folder)

    def reranker(self, folder: Path) -> None:
        """The sizes of Qwen3-VL-2B as a reranker of sentence-transformers, saved in bfloat16."""
        from vlm import save_reranker

        sizes: dict[str, Any] = {}
        if not self.is_toy:
            sizes = {
                "text": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
                "num_attention_heads": 16, "num_key_value_heads": 8},
                "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "depth": 24,
                "deepstack_visual_indexes": [5, 11, 17]},
                "head_dim": 128, "patch_size": 16, "pixels": RERANKER_PIXELS, "num_embeddings": QWEN_VOCABULARY,
            }  # fmt: skip
        save_reranker(
            folder,
            CAPTIONS,
            **sizes,
            spread=1.0,
            vocab_size=2000,
            prompt=RERANKER_PROMPT,
            dtype=torch.bfloat16,
        )
        shutil.rmtree(folder.with_name(f"{folder.name}-bare"))

    def clip(self, folder: Path, patch_px: int) -> None:
        """CLIP ViT-B at 224 px."""
        text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
        vision = self.sized(**VIT_B, image_size=224)
        config = CLIPConfig(
            vision_config={**vision, "patch_size": patch_px},
            # The ids of the marks in the tokenizer above.
            text_config={**self.sized(**text, vocab_size=CLIP_VOCABULARY), "max_position_embeddings": 77,
            "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0},
            **self.sized(projection_dim=512),
        )  # fmt: skip
        side = vision["image_size"]
        processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        for part in (CLIPModel(config), self.tokenizer, processor):
            part.save_pretrained(folder)

    def late(self, folder: Path, dual: Path) -> None:
        """Late interaction over a CLIP."""
        models.save(models.new_late(models.load_dual(dual), TOKEN_DIM, is_pooled=False), folder)

    def query(self, folder: Path, dual: Path) -> None:
        """A static query student of a CLIP, of the size of `query-static`."""
        space = models.QuerySpace.of(models.load_dual(dual))
        models.save(
            models.new_query(space, models.QuerySize(num_layers=0, hidden_size=384), tokenizer=self.tokenizer), folder
        )


def photos(folder: Path, count: int) -> Path:
    """A corpus of noise photos with a caption each, in the split `test`."""
    corpus, files = folder / "data", folder / "photos"
    if corpus.exists():
        return corpus
    files.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(0), ["image,caption,split"]
    for number in range(count):
        blocks = rng.integers(0, 256, (PHOTO_PX[1] // 25, PHOTO_PX[0] // 25, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(PHOTO_PX, Image.Resampling.BICUBIC).save(files / f"{number}.jpg")
        lines.append(f"{number}.jpg,{CAPTIONS[number % len(CAPTIONS)]},test")
    (folder / "captions.csv").write_text("\n".join(lines), encoding="utf-8")
    dcdctl.prepare(csv=folder / "captions.csv", images=[files], out=corpus)
    return corpus


Make = Callable[[Maker, Path], None]
TEACHERS: dict[str, Make] = {
    "vilt": Maker.vilt,
    "meter-288": partial(Maker.meter, image_px=288),
    "meter-384": partial(Maker.meter, image_px=384),
    "blip-large": Maker.blip,
    "reranker-2b": Maker.reranker,
}
