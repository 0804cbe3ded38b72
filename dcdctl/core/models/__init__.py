"""Teachers and students: loading, saving, scoring and embedding."""

from dcdctl.core.models.activations import checkpoint_activations
from dcdctl.core.models.coattention import CoAttentionNetwork, FusionSize
from dcdctl.core.models.dual import DualModel, DualSize, dual_from_backbones, new_dual
from dcdctl.core.models.encoder_dual import EncoderDual, dual_over
from dcdctl.core.models.encoder_pair import scorer_over
from dcdctl.core.models.encoders import Reading
from dcdctl.core.models.meter import CoAttentionScorer
from dcdctl.core.models.overrides import parse_overrides
from dcdctl.core.models.preprocess import Preprocess
from dcdctl.core.models.projections import ProjectionSize
from dcdctl.core.models.protocols import DualEncoder, FusionScorer, ImageBatch, Preprocessor, States, TextBatch
from dcdctl.core.models.store import fingerprint, load, load_dual, load_fusion, save
from dcdctl.core.models.students import dual_student, every_other, fusion_student
from dcdctl.core.models.tokenizer import word_piece
from dcdctl.core.models.vilt import ViltScorer, ViltSize, new_vilt

__all__ = [
    "CoAttentionNetwork",
    "CoAttentionScorer",
    "DualEncoder",
    "DualModel",
    "DualSize",
    "EncoderDual",
    "FusionScorer",
    "FusionSize",
    "ImageBatch",
    "Preprocess",
    "Preprocessor",
    "ProjectionSize",
    "Reading",
    "States",
    "TextBatch",
    "ViltScorer",
    "ViltSize",
    "checkpoint_activations",
    "dual_from_backbones",
    "dual_over",
    "dual_student",
    "every_other",
    "fingerprint",
    "fusion_student",
    "load",
    "load_dual",
    "load_fusion",
    "new_dual",
    "new_vilt",
    "parse_overrides",
    "save",
    "scorer_over",
    "word_piece",
]
