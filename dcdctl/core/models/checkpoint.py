"""What the readers of official checkpoints, ViLT's and METER's, have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from dcdctl.core.errors import ModelError
from dcdctl.core.models.overrides import Overrides
from dcdctl.core.models.preprocess import Preprocess, check_text_length, check_vocabulary, load_tokenizer, num_text_positions

MATCH_ROW = 1
"""The row of the two-way matching head that says "match"."""
MAX_TEXT_LEN = 40
"""Of retrieval, where a file does not say."""


def ranking_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head that ranks: `rank_output`, and in a pre-training checkpoint, which has none, the matching row of its matching head."""
    head = {name: state[name] for name in ("rank_output.weight", "rank_output.bias") if name in state}
    for part in ("weight", "bias"):
        matching = state.get(f"itm_score.fc.{part}")
        if matching is not None:
            head.setdefault(f"rank_output.{part}", matching[MATCH_ROW : MATCH_ROW + 1].clone())
    return head


def check_complete(source: object, missing: Iterable[str], what: str) -> None:
    """ModelError that lists the parameters of `what` that a checkpoint lacks, if there are any."""
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise ModelError(f"{source} lacks {len(names)} parameters of {what}: {', '.join(names[:8])}{more}")


def preprocess_as_told(
    wanted: Overrides,
    hyper: Mapping[str, Any],
    text_config: Any,
    image_processor: Any,
    *,
    tokenizer: str,
    image_transform: Literal["", "meter"] = "",
) -> Preprocess:
    """What comes before a checkpoint's model: as the user sets it, or else as the run's configuration says, or else as released.

    `tokenizer` is the released one; `text_config` tells how many words and positions the model knows.
    """
    words = load_tokenizer(wanted.tokenizer or tokenizer)
    check_vocabulary(words, text_config.vocab_size)
    most = num_text_positions(text_config)
    length = wanted.max_text_len or int(hyper.get("max_text_len") or min(MAX_TEXT_LEN, most))
    return Preprocess(
        tokenizer=words,
        image_processor=image_processor,
        max_text_len=check_text_length(length, most),
        image_transform=image_transform,
    )
