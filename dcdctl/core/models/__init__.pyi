from .catalog import list_families
from .checkpoint import check_finite
from .dual import DualEncoder, prefix_vectors
from .dual_scorer import DualScorer, pair_products, vector_states
from .families.coattention import FusionSize
from .families.coattention_scorer import CoAttentionScorer
from .families.frozen_dual import FrozenDual, new_frozen_dual, new_image_student
from .families.late_dual import new_late
from .families.new_coattention import new_coattention
from .families.query import QuerySize, new_query, with_queries
from .families.raw_pairs import RawPairScorer, RawPreprocess
from .families.vilt import ViltScorer, ViltSize, new_vilt
from .families.vision_text_dual import DualSize, dual_from_backbones, new_dual
from .fusion import FusionScorer
from .inputs import ImageBatch, PairBatch, RefusedTextError, States, TextBatch
from .late import LateInteraction, Model, Scorer, Searchable
from .load_save import (
    check_found,
    check_ref,
    convert,
    digest_of_files,
    is_function,
    kind_of,
    load,
    load_dual,
    load_fusion,
    load_scorer,
    load_searchable,
    save,
    text_pooling,
)
from .lora import require_peft
from .naming import naming_fields, naming_uses
from .networks.backbones import FeatureSpec
from .networks.over_encoders import Encoders
from .networks.projections import ProjectionSize, masked_mean
from .networks.query_text import OWN_POOLING
from .networks.token_pooling import pool_tokens
from .networks.towers import TrainedParts
from .onnx import check_onnx, export_onnx, quantize_dynamic, tower_outputs
from .onnx_towers import TOWERS, OnnxTowers, require_onnx
from .overrides import parse_overrides
from .preprocess import Preprocess
from .protocols import ExportSpec, Preprocessor
from .query import QuerySpace
from .references.folders import MODULE_CONFIG_FILE, SETTINGS_FILE, path_of
from .references.hub import hub_source, without_bars
from .references.loading import hub_errors, quietly, silence_transformers
from .references.published import PublishedRow, list_teachers, published_rows
from .run_documents import expect_run, read_run, run_of
from .saved_folder import find_damages, saved_fingerprint, seal_again
from .text_export import TEXT_PACKAGES, export_text_tower, exports_text_towers
from .text_tower import PATIENCE_S, TextTower
from .tokenizer import load_tokenizer, num_text_positions, word_piece

__all__ = [
    "MODULE_CONFIG_FILE",
    "OWN_POOLING",
    "PATIENCE_S",
    "SETTINGS_FILE",
    "TEXT_PACKAGES",
    "TOWERS",
    "CoAttentionScorer",
    "DualEncoder",
    "DualScorer",
    "DualSize",
    "Encoders",
    "ExportSpec",
    "FeatureSpec",
    "FrozenDual",
    "FusionScorer",
    "FusionSize",
    "ImageBatch",
    "LateInteraction",
    "Model",
    "OnnxTowers",
    "PairBatch",
    "Preprocess",
    "Preprocessor",
    "ProjectionSize",
    "PublishedRow",
    "QuerySize",
    "QuerySpace",
    "RawPairScorer",
    "RawPreprocess",
    "RefusedTextError",
    "Scorer",
    "Searchable",
    "States",
    "TextBatch",
    "TextTower",
    "TrainedParts",
    "ViltScorer",
    "ViltSize",
    "check_finite",
    "check_found",
    "check_onnx",
    "check_ref",
    "convert",
    "digest_of_files",
    "dual_from_backbones",
    "expect_run",
    "export_onnx",
    "export_text_tower",
    "exports_text_towers",
    "find_damages",
    "hub_errors",
    "hub_source",
    "is_function",
    "kind_of",
    "list_families",
    "list_teachers",
    "load",
    "load_dual",
    "load_fusion",
    "load_scorer",
    "load_searchable",
    "load_tokenizer",
    "masked_mean",
    "naming_fields",
    "naming_uses",
    "new_coattention",
    "new_dual",
    "new_frozen_dual",
    "new_image_student",
    "new_late",
    "new_query",
    "new_vilt",
    "num_text_positions",
    "pair_products",
    "parse_overrides",
    "path_of",
    "pool_tokens",
    "prefix_vectors",
    "published_rows",
    "quantize_dynamic",
    "quietly",
    "read_run",
    "require_onnx",
    "require_peft",
    "run_of",
    "save",
    "saved_fingerprint",
    "seal_again",
    "silence_transformers",
    "text_pooling",
    "tower_outputs",
    "vector_states",
    "with_queries",
    "without_bars",
    "word_piece",
]
