"""A co-attention scorer over two encoders that the user already has: METER's fusion, with nothing of METER in it but the way it is made."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models import backbones
from dcdctl.core.models.backbones import AS_IT_IS, Reading
from dcdctl.core.models.coattention import CoAttentionNetwork, FusionSize
from dcdctl.core.models.coattention_scorer import CoAttentionScorer
from dcdctl.core.models.dual import DualModel, DualSize, new_dual
from dcdctl.core.models.frozen_dual import EncoderDual
from dcdctl.core.models.load_save import FusionModel, load_dual
from dcdctl.core.models.preprocess import Preprocess, check_vocabulary, load_tokenizer, num_text_positions, word_piece
from dcdctl.core.models.vilt import ViltScorer

MAX_TEXT_LEN = 40


def scorer_over(
    vision_ref: str,
    text_ref: str,
    size: FusionSize,
    *,
    max_text_len: int = MAX_TEXT_LEN,
    reading: Reading = AS_IT_IS,
    seed: int = 0,
    cosine: str | None = None,
) -> CoAttentionScorer:
    """A scorer whose encoders are pretrained (folders or Hub ids) and whose fusion is new.

    `vision` is any backbone of transformers or timm that gives tokens or a feature map, `text` any text model of AutoModel; of a CLIP-like
    model the side is taken. `reading` is how the vision encoder is read. `cosine` names a dual encoder over the same encoders, whose logit
    is added and is all there is at first. The same weights for the same seed, the global random state untouched. ModelError if they do not
    go together.
    """
    vision, text = backbones.load_vision(vision_ref, reading), backbones.load_text(text_ref)
    tokenizer = load_tokenizer(text_ref, "model.text wants a text model with its tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = CoAttentionNetwork(vision, text, size)
    check_vocabulary(tokenizer, network.text_config.vocab_size)
    preprocess = Preprocess(
        tokenizer=tokenizer,
        image_processor=backbones.load_processor(vision_ref, network.vision_config),
        max_text_len=min(max_text_len, num_text_positions(network.text_config)),
    )
    scorer = CoAttentionScorer(network, preprocess)
    if cosine is not None:
        _start_from_dual(scorer, cosine, f"{vision_ref} and {text_ref}")
    _try_out(scorer, vision_ref, text_ref)
    return scorer


def _start_from_dual(scorer: CoAttentionScorer, ref: str, own: str) -> None:
    """Let a scorer add a dual encoder's logit; ModelError if their encoders, or what they make of pictures and captions, differ."""
    dual = load_dual(ref)
    if not isinstance(dual, EncoderDual):
        hint = "train one with model.kind dual, model.start new, model.vision, model.text and model.frozen_encoders"
        raise ModelError(f"{ref} is a dual encoder whose own encoders were trained, wanted one over {own} as they are", hint=hint)
    if dual.encoders_digest != scorer.encoders_digest:
        found, wanted = dual.encoders_digest[:8], scorer.encoders_digest[:8]
        hint = "give both the same model.vision, vision_levels, vision_size, text and max_text_len"
        raise ModelError(f"{ref} is a dual encoder over other encoders ({found}) than {own} ({wanted})", hint=hint)
    scorer.network.start_from(dual.network.projections)


@torch.no_grad()
def _try_out(scorer: CoAttentionScorer, vision_ref: str, text_ref: str) -> None:
    """ModelError if a picture or a caption does not pass through its encoder."""
    size = scorer.preprocess.image_size_px
    sides = {
        vision_ref: lambda: scorer.encode_images(scorer.preprocess.images([Image.new("RGB", (size, size))])),
        text_ref: lambda: scorer.encode_texts(scorer.preprocess.texts(["a"])),
    }
    for ref, encode in sides.items():
        try:
            encode()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            hint = "vision: a backbone that gives tokens or a feature map; text: an encoder such as BERT, RoBERTa or CLIP's"
            raise ModelError(f"{ref} cannot be one side of a co-attention model: {reason[0]}", hint=hint) from error


def fusion_student(teacher: FusionModel, layers: Sequence[int]) -> FusionModel:
    """A scorer with only these of the teacher's fusion layers, the weights copied, all of it trainable.

    Of a co-attention teacher only the layers, the poolers and the head are its own, as in DCD: both encoders, the transforms and the
    modality's vectors are the teacher's very tensors, and frozen from now on.
    """
    wanted = _checked_layers(layers, len(teacher.layers))
    if isinstance(teacher, CoAttentionScorer):
        return _co_attention_student(teacher, wanted)
    network = copy.deepcopy(teacher.network)
    network.vilt.encoder.layer = nn.ModuleList([network.vilt.encoder.layer[index] for index in wanted])
    network.config.num_hidden_layers = len(wanted)
    network.requires_grad_(True)
    return ViltScorer(network, teacher.preprocess)


def _co_attention_student(teacher: CoAttentionScorer, layers: list[int]) -> CoAttentionScorer:
    whole = teacher.network
    shared = {id(module): module for module in whole.shared_modules}
    # What stands in the memo is taken as copied already.
    network = copy.deepcopy(whole, memo=dict(shared))
    network.requires_grad_(True)
    for module in shared.values():
        module.requires_grad_(False)
    network.text_layers, network.image_layers = (
        nn.ModuleList([stream[index] for index in layers]) for stream in (network.text_layers, network.image_layers)
    )
    network.size = dataclasses.replace(whole.size, num_layers=len(layers))
    return CoAttentionScorer(network, teacher.preprocess)


def _checked_layers(layers: Sequence[int], count: int) -> list[int]:
    wanted = list(layers)
    if not wanted:
        raise ModelError("a student needs at least one layer", hint=f"the teacher has layers 0 to {count - 1}")
    strange = [index for index in wanted if not 0 <= index < count]
    if strange:
        raise ModelError(f"the teacher has no layer {strange[0]}", hint=f"it has layers 0 to {count - 1}")
    if any(later <= earlier for earlier, later in itertools.pairwise(wanted)):
        raise ModelError(f"student layers must ascend without repeats, got {wanted}")
    return wanted


def every_other(num_layers: int) -> list[int]:
    """Half of the layers, evenly spread, the first and the last among them: what DCD takes of 6, and DistilBERT of 12.

    >>> every_other(6)
    [0, 3, 5]
    >>> every_other(12)
    [0, 2, 4, 7, 9, 11]
    """
    count = (num_layers + 1) // 2
    return [int(index * (num_layers - 1) / max(count - 1, 1) + 0.5) for index in range(count)]


def dual_student(size: DualSize, captions: Iterable[str], *, vocab_size: int = 2000, seed: int = 0) -> DualModel:
    """An untrained dual encoder with a tokenizer trained on these captions."""
    return new_dual(size, word_piece(captions, vocab_size), seed)
