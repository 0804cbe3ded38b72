"""Late-interaction models over a dual encoder, which are trained here, as new ones and as dcdctl saved them: the folder
of the dual encoder, with projections of its tokens beside.

Shape letters: I images, T texts, N tokens of an image, L tokens of a text, D length of a token vector.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models.checkpoint import check_complete, save_state
from dcdctl.core.models.dual import DualEncoder, unit_vectors
from dcdctl.core.models.fingerprint import digest_of
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.late import LateInteraction
from dcdctl.core.models.model import Calibration, seeded
from dcdctl.core.models.networks.over_encoders import Encoders, FrozenTowers
from dcdctl.core.models.networks.projections import FIRST_LOGIT_SCALE, MAX_LOGIT_SCALE
from dcdctl.core.models.protocols import ExportSpec, Table
from dcdctl.core.models.references import folders
from dcdctl.core.models.references.family_table import find_family
from dcdctl.core.models.references.folders import LATE_FILE
from dcdctl.core.models.saved_folder import REMAKE


class TokenProjections(nn.Module):
    """A linear map for the tokens of each side, vectors for the places of an image's tokens if there are any, and the
    scale of the scores."""

    def __init__(self, image_width: int, text_width: int, token_dim: int, positions_ND: Tensor | None = None) -> None:
        super().__init__()
        self.images = nn.Linear(image_width, token_dim, bias=False)
        self.texts = nn.Linear(text_width, token_dim, bias=False)
        self.positions = None if positions_ND is None else nn.Parameter(positions_ND)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(FIRST_LOGIT_SCALE)))

    @staticmethod
    def vectors(projection: nn.Linear, states: States, positions_ND: Tensor | None = None) -> States:
        """Unit vectors of the tokens, zeros for padding, float32, also under autocast."""
        with torch.autocast(states.tokens.device.type, enabled=False):
            projected = unit_vectors(projection(states.tokens.to(projection.weight.dtype)))
            if positions_ND is not None:
                projected = unit_vectors(projected + positions_ND)
            return states.with_tokens(projected * states.mask[:, :, None], states.vectors)


class LateDual(LateInteraction):
    """A dual encoder with a projection of the tokens of each side. The scale is learned; if `is_pooled`, the dual
    encoder's own logit is added."""

    def __init__(self, dual: DualEncoder, tokens: TokenProjections, *, is_pooled: bool, token_pooling: int = 1) -> None:
        """The dual encoder is shared, not copied."""
        # In a tuple, because a module lists the parameters of the modules among its attributes, here a second time.
        # Before the rest, whose eval mode reaches it.
        self._duals = (dual,)
        network = nn.ModuleDict({"dual": dual.network, "tokens": tokens})
        super().__init__(network, dual.preprocess, dual.unused_keys)
        self.calibration = Calibration()
        self.is_pooled, self.token_pooling = is_pooled, token_pooling
        self.token_dim = tokens.images.out_features

    def __repr__(self) -> str:
        return f"LateDual({self.as_dual!r}, {self.token_dim} numbers per token)"

    @property
    def as_dual(self) -> DualEncoder:
        """The dual encoder, whose vectors may choose the candidates of a search."""
        return self._duals[0]

    @property
    def tokens(self) -> TokenProjections:
        """The projections."""
        return self.network.tokens

    @property
    def logit_scale(self) -> Tensor:
        """Factor from MaxSim to logit; learned, 0-dimensional, at most 100."""
        return self.tokens.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    @property
    def vectors_scale(self) -> Tensor | None:
        """The dual encoder's scale; its offset changes no ranking."""
        return self.as_dual.logit_scale if self.is_pooled else None

    @property
    def config(self) -> Table:
        """The dual encoder's."""
        return self.as_dual.config

    @property
    def settings(self) -> Table:
        """The dual encoder's, the width of the token vectors, whether its logit counts, and token pooling."""
        pooling = {} if self.token_pooling == 1 else {"token_pooling": self.token_pooling}
        of_tokens = {"kind": self.kind, "token_dim": self.token_dim, "is_pooled": self.is_pooled, **pooling}
        return {**self.as_dual.settings, **of_tokens}

    @property
    def digest(self) -> str:
        """SHA-256 of weights and settings; with adapters, that of the model that they are merged into."""
        tokens = digest_of(self.tokens, config={}, preprocess={}, settings=self.settings)
        return digest_of(
            nn.Module(), config={"dual": self.as_dual.digest, "tokens": tokens}, preprocess={}, settings={}
        )

    @property
    def encoders(self) -> Encoders | None:
        """The dual encoder's, with all tokens as features; None if the whole vectors count too, which these do not
        give, and if padding would be stored."""
        encoders = self.as_dual.encoders
        if not isinstance(encoders, FrozenTowers):
            return encoders
        has_all = not self.is_pooled and self.as_dual.export_spec().padded_length is None
        return dataclasses.replace(encoders, pools_texts=False) if has_all else None

    def encode_images(self, images: ImageBatch | States) -> States:
        """The token vectors of I images, of their features, or of images that are encoded already."""
        if isinstance(images, States) and images.vectors is not None:
            return images
        return self.tokens.vectors(self.tokens.images, self.as_dual.image_tokens(images), self.tokens.positions)

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The token vectors of T captions, of their features, or of captions that are encoded already."""
        if isinstance(texts, States) and texts.vectors is not None:
            return texts
        return self.tokens.vectors(self.tokens.texts, self.as_dual.text_tokens(texts))

    def train(self, mode: bool = True) -> Self:
        """Train mode, except for what the dual encoder keeps in eval mode."""
        super().train(mode)
        self.as_dual.train(mode)
        return self

    def set_dropout(self, probability: float) -> None:
        """Set the dropout of the dual encoder."""
        self.as_dual.set_dropout(probability)

    def checkpoint_activations(self) -> None:
        """Compute activations of the encoders again in the backward pass."""
        self.as_dual.checkpoint_activations()

    def export_spec(self) -> ExportSpec:
        """The dual encoder's: its class gives the states of the tokens."""
        return self.as_dual.export_spec()

    def export_copy(self) -> LateDual:
        """The same model over the dual encoder's copy."""
        return LateDual(
            self.as_dual.export_copy(), self.tokens, is_pooled=self.is_pooled, token_pooling=self.token_pooling
        )

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write the dual encoder's own files, which other libraries read as that, and the projections of tokens."""
        self.as_dual.save_network(folder, half=half)
        save_state(self.tokens, folder / LATE_FILE, half=half)


@torch.no_grad()
def new_late(
    dual: DualEncoder,
    token_dim: int,
    *,
    is_pooled: bool,
    position_norm: float = 0.0,
    token_pooling: int = 1,
    seed: int = 0,
) -> LateDual:
    """A late-interaction model over the encoders of a dual encoder, with new projections of tokens and, if they have a
    length, positions for those of an image. Equal seeds give equal weights; the global random state is not touched.
    ModelError for a dual encoder without token states, and for positions in images of variable resolution."""
    side = dual.preprocess.image_size_px
    image = dual.preprocess.images([Image.new("RGB", (side, side))])
    if position_norm and image.grid is not None:
        raise ModelError(
            f"model.position_norm is {position_norm}, and the images of this model have grids of several sizes",
            hint="set it to 0, or start from a model with images of one size",
        )
    _, num_tokens, width = dual.image_tokens(image).tokens.shape
    text_width = dual.text_tokens(dual.preprocess.texts(["a"])).tokens.shape[2]
    with seeded(seed):
        tokens = TokenProjections(width, text_width, token_dim)
        if position_norm:
            std = position_norm / math.sqrt(token_dim)
            tokens.positions = nn.Parameter(torch.randn(num_tokens, token_dim) * std)
    # An offset changes no ranking, and no logit of this model has it.
    dual.sigmoid_bias = None
    return LateDual(dual, tokens, is_pooled=is_pooled, token_pooling=token_pooling)


def load(ref: str, table: Table, saved: Table | None) -> LateDual:
    """The model of a folder that `load_save.save` wrote; `table` are the user's overrides, `saved` is its
    dcdctl.json."""
    if saved is None:
        raise ModelError(f"{ref} has {folders.LATE_FILE} and no {folders.SETTINGS_FILE}", hint=REMAKE)
    family = find_family(folders.dual_type(Path(ref)) or "")
    assert family is not None
    dual = family.load(ref, table, saved)
    assert isinstance(dual, DualEncoder)
    state = {name: tensor.float() for name, tensor in load_file(Path(ref) / folders.LATE_FILE).items()}
    check_complete(ref, {"images.weight", "texts.weight", "logit_scale"} - set(state), "a late-interaction model")
    tokens = TokenProjections(
        image_width=state["images.weight"].shape[1],
        text_width=state["texts.weight"].shape[1],
        token_dim=saved["token_dim"],
        positions_ND=state.get("positions"),
    )
    tokens.load_state_dict(state)
    return LateDual(dual, tokens, is_pooled=saved["is_pooled"], token_pooling=saved.get("token_pooling", 1))
