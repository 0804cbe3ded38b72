"""A new co-attention scorer over two pretrained encoders, and its start from a dual encoder over the same ones."""

from __future__ import annotations

import copy

from torch import nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models.families.coattention import CoAttentionNetwork, FusionSize
from dcdctl.core.models.families.coattention_scorer import MAX_TEXT_LEN, CoAttentionScorer
from dcdctl.core.models.families.frozen_dual import FrozenDual
from dcdctl.core.models.load_save import load_dual
from dcdctl.core.models.model import seeded
from dcdctl.core.models.networks import backbones
from dcdctl.core.models.networks.backbones import AS_IT_IS, FeatureSpec


def new_coattention(
    vision_ref: str,
    text_ref: str,
    size: FusionSize,
    *,
    max_text_len: int = MAX_TEXT_LEN,
    features: FeatureSpec = AS_IT_IS,
    seed: int = 0,
    dual_init: str | None = None,
) -> CoAttentionScorer:
    """A co-attention scorer over two pretrained encoders (folders or Hub ids); the fusion is new. ModelError if they do
    not fit together.

    `vision_ref` names any backbone of transformers or timm that gives tokens or a feature map, `text_ref` any text
    model of AutoModel; of a CLIP-like model one side is taken. `features` says which outputs of the vision encoder are
    read. `dual_init` names a dual encoder over the same encoders: its logit is added to the fusion's, which starts at
    0. Equal seeds give equal weights; the global random state is not touched.
    """
    vision, text, preprocess = backbones.load_pair(vision_ref, text_ref, features, max_text_len)
    with seeded(seed):
        scorer = CoAttentionScorer(CoAttentionNetwork(vision, text, size), preprocess)
    if dual_init is not None:
        _start_from_dual(scorer, dual_init, f"{vision_ref} and {text_ref}")
    backbones.check_sides(preprocess, (vision_ref, scorer.encode_images), (text_ref, scorer.encode_texts))
    return scorer


def _start_from_dual(scorer: CoAttentionScorer, ref: str, encoders: str) -> None:
    """Let a scorer add a dual encoder's logit. ModelError if the two have different encoders, or features."""
    dual = load_dual(ref)
    if not isinstance(dual, FrozenDual):
        hint = "train one with model.kind dual, model.start new, model.vision, model.text and model.frozen_encoders"
        raise ModelError(
            f"{ref} is a dual encoder whose own encoders were trained, expected one over frozen {encoders}", hint=hint
        )
    actual, expected = dual.encoders.digest, scorer.encoders.digest
    if actual != expected:
        hint = (
            "give both the same model.vision, model.text, model.vision_levels, model.vision_size and model.max_text_len"
        )
        raise ModelError(
            f"{ref} is a dual encoder over other encoders ({actual[:8]}) than {encoders} ({expected[:8]})", hint=hint
        )
    network = scorer.network
    network.cosine = copy.deepcopy(dual.network.projections).requires_grad_(True)
    # At first the cosine is the whole logit.
    nn.init.zeros_(network.rank_output.weight)
    nn.init.zeros_(network.rank_output.bias)
