"""Late-interaction models that dcdctl saved: the folder of a dual encoder, with projections of its tokens beside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from dcdctl.core.errors import ModelError
from dcdctl.core.models.checkpoint import check_complete
from dcdctl.core.models.late import LateInteraction, TokenProjections
from dcdctl.core.models.references import folders
from dcdctl.core.models.saved_folder import REMAKE


def load(ref: str, table: Mapping[str, Any], saved: Mapping[str, Any] | None) -> LateInteraction:
    """The model of a folder that `load_save.save` wrote; `table` are the user's overrides, `saved` is its
    dcdctl.json."""
    from dcdctl.core.models.load_save import FAMILIES  # it imports no family by itself

    if saved is None:
        raise ModelError(f"{ref} has {folders.LATE_FILE} and no {folders.SETTINGS_FILE}", hint=REMAKE)
    dual: Any = FAMILIES[folders.dual_type(Path(ref)) or ""].load(ref, table, saved)
    state = load_file(Path(ref) / folders.LATE_FILE)
    check_complete(ref, {"images.weight", "texts.weight", "logit_scale"} - set(state), "a late-interaction model")
    tokens = TokenProjections(state["images.weight"].shape[1], state["texts.weight"].shape[1], saved["token_dim"])
    tokens.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return LateInteraction(dual, tokens, is_pooled=saved["is_pooled"])
