"""A dual encoder over two frozen encoders: one linear layer for each modality, trained in seconds from stored features.
A training that starts from one may train the encoders too.

Shape letters: I images, T texts, V image tokens, L text tokens, D length of the vectors.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dcdctl.core.errors import ModelError
from dcdctl.core.models.dual import DualEncoder
from dcdctl.core.models.families.vision_text_dual import PADS_TEXTS, VisionTextDual
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.model import seeded
from dcdctl.core.models.networks import backbones
from dcdctl.core.models.networks.backbones import AS_IT_IS, EncoderPair, FeatureSpec, NetworkOverEncoders
from dcdctl.core.models.networks.lower_layers import LowerLayers
from dcdctl.core.models.networks.over_encoders import ModelOverEncoders, load_weights, read_folder
from dcdctl.core.models.networks.projections import EncoderProjections, ProjectionSize
from dcdctl.core.models.networks.towers import Tower, TrainedParts
from dcdctl.core.models.overrides import read_overrides
from dcdctl.core.models.preprocess import Preprocess, fitted_preprocess
from dcdctl.core.models.protocols import ExportSpec, Table
from dcdctl.core.models.tokenizer import load_tokenizer
from dcdctl.core.models.tower_dual import TowerDual

POOLED_TEXTS = ("clip", "metaclip_2", *PADS_TEXTS, "vision-text-dual-encoder")
"""Types of dual encoders in which one linear layer maps the pooled output of the text encoder to vectors, or nothing
does, as in SigLIP. ALIGN and Chinese-CLIP take the state of the first token."""


class FrozenDualNetwork(NetworkOverEncoders):
    """Two encoders and two projections; the projections are untrained."""

    def __init__(self, vision: PreTrainedModel, text: PreTrainedModel, size: ProjectionSize) -> None:
        super().__init__(vision, text, pools_texts=size.texts == "pooled")
        text_width = backbones.pooled_width(text) if self.pools_texts else text.config.hidden_size
        self.projections = EncoderProjections(self.image_width, text_width, size)

    def to_table(self) -> Table:
        """The contents of config.json, besides the model's type."""
        return {**super().to_table(), "projection": dataclasses.asdict(self.projections.size)}


class FrozenDual(ModelOverEncoders, TowerDual):
    """Embeds images and captions, or their features; created in eval mode with frozen encoders."""

    model_type = "dcdctl-encoder-dual"
    network: FrozenDualNetwork

    def __init__(self, network: FrozenDualNetwork, preprocess: Preprocess, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__(network, preprocess, unused_keys)
        self.embedding_dim = network.projections.size.projection_dim
        self._lower: LowerLayers | None = None
        # Here, so that a loaded model is frozen as a new one is.
        self.encoders.freeze()

    @property
    def towers(self) -> tuple[Tower, Tower]:
        """The image and the text encoder."""
        network = self.network
        vision = Tower("image", "network.vision", network.vision, layers_name=backbones.layers_name(network.vision))
        return vision, Tower("text", "network.text", network.text)

    @property
    def encoders(self) -> EncoderPair | LowerLayers:
        """Both encoders; or what lies below their last layers while only these are trained."""
        return self._lower or self.encoder_pair

    def set_trained(self, parts: TrainedParts) -> None:
        """Let training change only these parts of both towers."""
        super().set_trained(parts)
        trains_texts = self.space_of is None
        if not trains_texts:
            self.freeze_texts()
        trained = self.towers if trains_texts else self.towers[:1]
        shallower = min(len(tower.layers[1]) for tower in trained) if parts.which == "last-layers" else 0
        # What a CLIP pools follows from the ids, which a state has not.
        has_lower = parts.num_layers < shallower and not (trains_texts and self.network.pools_texts)
        self._lower = (
            LowerLayers(self.encoder_pair, self.towers, parts.num_layers, trains_texts=trains_texts)
            if has_lower
            else None
        )

    def freeze_texts(self) -> None:
        """Leave the text side unchanged in training, with the logit scale and the bias."""
        projections = self.network.projections
        frozen = [*self.network.text.parameters(), *projections.text_projection.parameters(), projections.logit_scale]
        for parameter in [*frozen, *([] if self.sigmoid_bias is None else [self.sigmoid_bias])]:
            parameter.requires_grad_(False)
        self.train(self.training)

    def set_dropout(self, probability: float) -> None:
        """Set the dropout of the features."""
        projections = self.network.projections
        projections.size = dataclasses.replace(projections.size, dropout=probability)
        projections.dropout.p = probability

    @property
    def logit_scale(self) -> Tensor:
        """Factor from cosine to logit; learned, 0-dimensional, at most 100, but with a bias."""
        projections = self.network.projections
        return projections.scale if self.logit_bias is None else projections.logit_scale.exp()

    def embed_images(self, images: ImageBatch | States) -> Tensor:
        """Unit vectors, I x D, of images or of their features."""
        return self.network.projections.project_images(self._image_output(images).tokens)

    def embed_texts(self, texts: TextBatch | States) -> Tensor:
        """Unit vectors, T x D, of captions or of their features."""
        features = self._text_output(texts)
        return self.network.projections.project_texts(features.tokens, features.mask)

    def image_tokens(self, images: ImageBatch | States) -> States:
        """The features of images, I x V x W, and the unit vectors."""
        features = self._image_output(images)
        return features.with_tokens(features.tokens, self.network.projections.project_images(features.tokens))

    def text_tokens(self, texts: TextBatch | States) -> States:
        """The features of captions, T x L x W, and the unit vectors."""
        features = self._text_output(texts)
        vectors = self.network.projections.project_texts(features.tokens, features.mask)
        return features.with_tokens(features.tokens, vectors)

    def _image_output(self, images: ImageBatch | States) -> States:
        """The output of the image encoder, from pixels or from features."""
        return self._lower.image_output(images) if self._lower and isinstance(images, States) else self.features(images)

    def _text_output(self, texts: TextBatch | States) -> States:
        return self._lower.text_output(texts) if self._lower and isinstance(texts, States) else self.features(texts)

    def export_spec(self) -> ExportSpec:
        """A class in a file of code: no class of transformers reads stages, the mean of tokens and normalized
        features."""
        config = self.network.vision.config
        return ExportSpec(
            model_class="EncoderDualModel",
            processor_class="VisionTextDualEncoderProcessor",
            code="modeling_encoder_dual",
            padded_length=self.preprocess.max_text_len if self.preprocess.pads_texts else None,
            timm_config=config if config.model_type == backbones.TIMM else None,
        )


def new_frozen_dual(
    vision_ref: str,
    text_ref: str,
    size: ProjectionSize,
    *,
    max_text_len: int,
    features: FeatureSpec = AS_IT_IS,
    seed: int = 0,
) -> FrozenDual:
    """A dual encoder over two pretrained encoders (folders or Hub ids), which are frozen; only the two projections are
    new.

    Arguments as in `build.new_coattention`. Equal seeds give equal weights; the global random state is not touched.
    """
    vision, text, preprocess = backbones.load_pair(vision_ref, text_ref, features, max_text_len)
    with seeded(seed):
        dual = FrozenDual(FrozenDualNetwork(vision, text, size), preprocess)
    # Only a pass shows whether an encoder takes what its processor makes.
    backbones.check_sides(preprocess, (vision_ref, dual.embed_images), (text_ref, dual.embed_texts))
    return dual


def new_image_student(
    vision_ref: str, teacher: DualEncoder, *, features: FeatureSpec = AS_IT_IS, seed: int = 0
) -> FrozenDual:
    """A dual encoder over a pretrained vision encoder, whose texts are the teacher's: a copy of its text side that no
    training changes. Only the projection of images is new.

    ModelError for a teacher whose text side is not an encoder and one linear layer.
    """
    if not isinstance(teacher, FrozenDual) and teacher.config["model_type"] not in POOLED_TEXTS:
        raise ModelError(
            f"model.text is teacher, and the text side of a {teacher.config['model_type']} cannot be copied",
            hint="name a CLIP, a SigLIP or a dual encoder over two encoders with --teacher, such as a run of photos",
        )
    assert isinstance(teacher, FrozenDual | VisionTextDual)
    vision, text = backbones.load_vision(vision_ref, features), copy.deepcopy(teacher.towers[1].module)
    size, projection = _text_side(teacher)
    with seeded(seed):
        network = FrozenDualNetwork(vision, text, size)
    network.projections.text_projection.load_state_dict(projection)
    network.projections.logit_scale.data.copy_(teacher.log_scale.reshape(()))
    preprocess = dataclasses.replace(
        teacher.preprocess, image_processor=backbones.load_processor(vision_ref, vision.config)
    )
    student = FrozenDual(network, preprocess)
    if teacher.logit_bias is not None:
        student.add_bias(teacher.logit_bias.item())
    student.space_of = teacher.space_of or teacher.digest
    student.freeze_texts()
    backbones.check_sides(preprocess, (vision_ref, student.embed_images), ("the teacher", student.embed_texts))
    return student


def _text_side(teacher: FrozenDual | VisionTextDual) -> tuple[ProjectionSize, Table]:
    """How the student projects texts, and the weights of that."""
    if isinstance(teacher, FrozenDual):
        sides = teacher.network.projections
        return dataclasses.replace(sides.size, dropout=0.0), sides.text_projection.state_dict()
    size = ProjectionSize(projection_dim=teacher.embedding_dim, dropout=0.0, texts="pooled")
    # SigLIP has the projection inside its text encoder, whose pooled outputs are vectors.
    projection = getattr(teacher.network, "text_projection", None)
    return size, {"weight": torch.eye(teacher.embedding_dim)} if projection is None else projection.state_dict()


def load(ref: str, table: Table, saved: Table | None) -> FrozenDual:
    """The dual encoder of a folder that `load_save.save` wrote; `table` are the user's overrides, `saved` is its
    dcdctl.json."""
    assert saved is not None
    folder, overrides = Path(ref), read_overrides(table)
    config, weights = read_folder(ref)
    network = FrozenDualNetwork(*backbones.new_pair(config, folder), ProjectionSize(**config["projection"]))
    load_weights(network, weights, folder, "a dual encoder")
    tokenizer = load_tokenizer(overrides.tokenizer or ref)
    processor = backbones.load_processor(ref, network.vision.config)
    length = overrides.max_text_len or saved["max_text_len"]
    preprocess = fitted_preprocess(tokenizer, processor, network.text.config, max_text_len=length)
    # The mean of tokens is that of real ones, also over the text encoder of a SigLIP.
    pads_texts = network.pools_texts and network.text.config.model_type.removesuffix("_text_model") in PADS_TEXTS
    return FrozenDual(network, dataclasses.replace(preprocess, pads_texts=pads_texts))
