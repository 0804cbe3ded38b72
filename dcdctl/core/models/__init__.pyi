from .attention import checkpoint_activations
from .backbones import TIMM, ProjectionSize, Reading
from .build import dual_student, every_other, fusion_student, scorer_over
from .coattention import FusionSize
from .coattention_scorer import CoAttentionScorer
from .dual import DualModel, DualSize, dual_from_backbones, new_dual
from .frozen_dual import ENCODER_DUAL_TYPE, EncoderDual, dual_over
from .load_save import check_ref, fingerprint, load, load_dual, load_fusion, save
from .onnx import (
    ONNX_OUTPUT,
    OnnxDual,
    Towers,
    check_onnx,
    export_onnx,
    missing_onnx_packages,
    onnxruntime_version,
    quantize_dynamic,
    require_onnx,
)
from .overrides import parse_overrides
from .preprocess import Preprocess, hub_errors, load_image_processor, load_tokenizer, num_text_positions, silence_transformers, word_piece
from .protocols import DualEncoder, FusionScorer, ImageBatch, Preprocessor, States, TextBatch, select_rows
from .published import list_published
from .vilt import ViltScorer, ViltSize, new_vilt

__all__ = [
    "ENCODER_DUAL_TYPE",
    "ONNX_OUTPUT",
    "TIMM",
    "CoAttentionScorer",
    "DualEncoder",
    "DualModel",
    "DualSize",
    "EncoderDual",
    "FusionScorer",
    "FusionSize",
    "ImageBatch",
    "OnnxDual",
    "Preprocess",
    "Preprocessor",
    "ProjectionSize",
    "Reading",
    "States",
    "TextBatch",
    "Towers",
    "ViltScorer",
    "ViltSize",
    "check_onnx",
    "check_ref",
    "checkpoint_activations",
    "dual_from_backbones",
    "dual_over",
    "dual_student",
    "every_other",
    "export_onnx",
    "fingerprint",
    "fusion_student",
    "hub_errors",
    "list_published",
    "load",
    "load_dual",
    "load_fusion",
    "load_image_processor",
    "load_tokenizer",
    "missing_onnx_packages",
    "new_dual",
    "new_vilt",
    "num_text_positions",
    "onnxruntime_version",
    "parse_overrides",
    "quantize_dynamic",
    "require_onnx",
    "save",
    "scorer_over",
    "select_rows",
    "silence_transformers",
    "word_piece",
]
