"""A co-attention scorer over two encoders that the user already has: METER's fusion, with nothing of METER in it but the way it is made."""

from __future__ import annotations

import torch
from PIL import Image

from dcdctl.core.errors import ModelError
from dcdctl.core.models import encoders
from dcdctl.core.models.coattention import CoAttentionNetwork, FusionSize
from dcdctl.core.models.encoder_dual import EncoderDual
from dcdctl.core.models.encoders import AS_IT_IS, Reading
from dcdctl.core.models.meter import CoAttentionScorer
from dcdctl.core.models.preprocess import Preprocess, check_vocabulary, load_tokenizer, num_text_positions
from dcdctl.core.models.store import load_dual

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
    vision, text = encoders.load_vision(vision_ref, reading), encoders.load_text(text_ref)
    tokenizer = load_tokenizer(text_ref, "model.text wants a text model with its tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = CoAttentionNetwork(vision, text, size)
    check_vocabulary(tokenizer, network.text_config.vocab_size)
    preprocess = Preprocess(
        tokenizer=tokenizer,
        image_processor=encoders.load_processor(vision_ref, network.vision_config),
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
