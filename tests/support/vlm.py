"""Tiny vision-language models of other libraries, as they save them: a Qwen3-VL as a cross-encoder, like
Qwen3-VL-Reranker, and a ColQwen2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from byte_level import byte_level_bpe
from transformers import (
    PaliGemmaConfig,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessorPil,
)
from transformers.models.colpali import ColPaliConfig, ColPaliForRetrieval, ColPaliProcessor
from transformers.models.colqwen2 import ColQwen2Config, ColQwen2ForRetrieval, ColQwen2Processor

MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "yes",
    "no",
)
PART = (
    "{%- for part in messages | selectattr('role', 'eq', ROLE) | map(attribute='content') | first -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}"
)
TEMPLATE = (
    "<|im_start|>{%- for message in messages if message.role == 'system' -%}{{ message.content[0].text }}{%- endfor "
    "-%} a: "
    + PART.replace("ROLE", "'query'")
    + " is "
    + PART.replace("ROLE", "'document'")
    + "<|im_end|>{{ '\\n' }}<|im_start|>"
)
"""The query, then the document, then a fixed end, as in the template of Qwen3-VL-Reranker."""
CHAT = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }} {% for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}<|im_end|>{%- endfor -%}"
)
"""Any conversation."""
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "deepstack_visual_indexes": [0]}


def save_reranker(
    folder: Path,
    captions: Sequence[str],
    *,
    text: dict[str, Any] = TEXT,
    vision: dict[str, Any] = VISION,
    head_dim: int = 8,
    spread: float = 8.0,
    pixels: tuple[int, int] = (16 * 16, 64 * 64),
    patch_size: int = 8,
    vocab_size: int = 300,
    num_embeddings: int | None = None,
    prompt: str = "Is it a good caption?",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A folder with a random Qwen3-VL and the score yes - no; `spread` scales its weights, so that scores depend on the
    inputs. The network has `num_embeddings` tokens, more than its tokenizer, or as many."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    bare = folder.with_name(f"{folder.name}-bare")
    tokenizer = byte_level_bpe([*captions, f"{prompt} yes no a: is\n", *map(chr, range(32, 127))], vocab_size)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    config = Qwen3VLConfig(
        text_config={
            **text, "head_dim": head_dim, "vocab_size": num_embeddings or len(tokenizer),
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections(head_dim),
            "mrope_interleaved": True},
        },
        vision_config={**vision, "out_hidden_size": text["hidden_size"], "patch_size": patch_size,
        "num_position_embeddings": 64},
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Qwen3VLForConditionalGeneration(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(spread)
    size, common = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}, {"patch_size": patch_size, "merge_size": 2}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, **common),
        tokenizer, Qwen3VLVideoProcessor(**common), chat_template=TEMPLATE,
    )  # fmt: skip
    network.to(dtype).save_pretrained(bare)
    processor.save_pretrained(bare)
    del network  # its weights and the loaded ones need not fit into memory together
    modules = [
        Transformer(str(bare), transformer_task="any-to-any", model_kwargs={"dtype": dtype}),
        LogitScore(ids["yes"], ids["no"]),
    ]
    encoder = CrossEncoder(modules=modules, device="cpu", prompts={"query": prompt}, default_prompt_name="query")
    encoder.save_pretrained(str(folder), create_model_card=False)
    return folder


def save_embedder(folder: Path, captions: Sequence[str]) -> Path:
    """A folder of a SentenceTransformer with a random Qwen3-VL, as Qwen3-VL-Embedding: the last token's state, and a
    prompt for queries."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    bare = save_reranker(folder.with_name("reranker"), captions, spread=4.0).with_name("reranker-bare")
    (bare / "chat_template.jinja").write_text(CHAT)
    modules = [Transformer(str(bare)), Pooling(TEXT["hidden_size"], "lasttoken"), Normalize()]
    encoder = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "Is it a good caption?"})
    encoder.save_pretrained(str(folder), create_model_card=False)
    return folder


def save_colqwen2(folder: Path, captions: Sequence[str]) -> Path:
    """A folder of transformers with a random ColQwen2, a vector of 8 numbers per token."""
    tokenizer = byte_level_bpe([*captions, "Query: Describe the image. user\n", *map(chr, range(32, 127))], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS[:6], "<|endoftext|>"]})
    tokenizer.pad_token = "<|endoftext|>"
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    config = Qwen2VLConfig(
        text_config={
            **TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections(8)},
        },
        vision_config={
            "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8,
            "spatial_merge_size": 2,
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=config, embedding_dim=8)).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(6)
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessor(size=size, patch_size=8, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    network.save_pretrained(folder)
    ColQwen2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def save_colpali(folder: Path, captions: Sequence[str]) -> Path:
    """A folder of transformers with a random ColPali, a vector of 8 numbers per token."""
    tokenizer = byte_level_bpe([*captions, "Question: Describe the image.\n", *map(chr, range(32, 127))], 300)
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"})
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = ColPaliProcessor(images, tokenizer)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = {**small, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 32}
    text = {**small, "model_type": "gemma", "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer)}
    config = PaliGemmaConfig(
        vision_config={**vision, "vision_use_head": False}, text_config=text, projection_dim=32, hidden_size=32,
        image_token_index=processor.image_token_id, vocab_size=len(tokenizer),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = ColPaliForRetrieval(ColPaliConfig(vlm_config=config, embedding_dim=8)).eval()
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_multi_vector(folder: Path, captions: Sequence[str]) -> Path:
    """The same as a MultiVectorEncoder of sentence-transformers, with a mean over tokens and a skip list."""
    from sentence_transformers import MultiVectorEncoder

    bare = save_colqwen2(folder.with_name(f"{folder.name}-bare"), captions)
    encoder = MultiVectorEncoder(str(bare), device="cpu", similarity_fn_name="meanmaxsim")
    encoder[1].skiplist_words, encoder[1].skiplist_tasks = ["a"], ["query"]
    encoder.save_pretrained(str(folder), create_model_card=False)
    return folder


def sections(head_dim: int) -> list[int]:
    """How many of the rotary frequencies belong to time, height and width; Qwen3-VL has 24, 20, 20 of 64."""
    half = head_dim // 2
    side = half * 20 // 64 or 1
    return [half - 2 * side, side, side]
