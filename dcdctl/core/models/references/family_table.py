"""The table of model families that load, by the type of a folder's model."""

from __future__ import annotations

from dcdctl.core.models.overrides import OF_CROSS_ENCODERS, OF_METER, OF_VILT
from dcdctl.core.models.references import folders, plugins
from dcdctl.core.models.references.folders import CROSS_ENCODER, OPEN_CLIP, SENTENCE_TRANSFORMER
from dcdctl.core.models.references.plugins import Family

_SENTENCE_TRANSFORMERS = ("sentence-transformers", "sentence_transformers")
"""The extra, and the module that it brings."""
FAMILIES = {
    "vilt": Family("fusion", "vilt", takes=OF_VILT),
    **dict.fromkeys(
        ("vision-text-dual-encoder", "clip", "metaclip_2", "siglip", "siglip2", "chinese_clip", "align"),
        Family("dual", "vision_text_dual"),
    ),
    "dcdctl-co-attention": Family("fusion", "coattention_scorer", takes=OF_METER),
    "dcdctl-encoder-dual": Family("dual", "frozen_dual"),
    "blip": Family("fusion", "blip"),
    "blip-2": Family("fusion", "blip2"),
    "bridgetower": Family("fusion", "bridgetower"),
    CROSS_ENCODER: Family("fusion", "cross_encoder", *_SENTENCE_TRANSFORMERS, takes=OF_CROSS_ENCODERS),
    OPEN_CLIP: Family(
        "dual",
        "open_clip",
        extra="open-clip",
        module="open_clip",
        weights=folders.open_clip_weights,
        takes=("tokenizer",),
    ),
    folders.LATE: Family("late", "late_dual"),
    folders.QUERY: Family("query", "query", takes=()),
    **dict.fromkeys(
        (folders.MULTI_VECTOR, "colpali", "colqwen2", "colmodernvbert"),
        Family("late", "multi_vector", *_SENTENCE_TRANSFORMERS, reads_modules=True, takes=()),
    ),
    SENTENCE_TRANSFORMER: Family("dual", "sentence_transformer", *_SENTENCE_TRANSFORMERS, reads_modules=True, takes=()),
}
"""Families by the type of a folder's model (`folders.type_of`). A model is saved by its own `save_network`."""
_NAMES = ", ".join(name for name in FAMILIES if not name.startswith("dcdctl-"))
ACCEPTED = (
    "a model is a run folder, a folder or Hub id (owner/name or owner/name@revision) of a family that loads "
    f"({_NAMES}), an official ViLT or METER .ckpt, "
    f"module:function (Python code of yours), or a name that `dcdctl models` shows"
)
ALWAYS_OPEN = (
    f"these families load: {_NAMES}, and other dual encoders of transformers; any other model is a teacher by a "
    "Python function (`--teacher module:function`), or by its scores (`dcdctl cache-teacher --engine files:DIR`, then "
    "`--scores`)"
)
"""The hint for a model whose family does not load."""


def find_family(model_type: str) -> Family | None:
    """The family of a type: dcdctl's, an installed package's, or that of all dual encoders of transformers; None for
    any other."""
    if family := FAMILIES.get(model_type) or plugins.find(model_type):
        return family
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    if model_type not in CONFIG_MAPPING or (config := CONFIG_MAPPING[model_type]) not in MODEL_MAPPING:
        return None
    has_towers = {"vision_config", "text_config"} <= config.sub_configs.keys()
    has_methods = {"get_image_features", "get_text_features"} <= set(dir(MODEL_MAPPING[config]))
    return FAMILIES["clip"] if has_towers and has_methods else None
