"""ViLT (Kim et al., ICML 2021) as a fusion scorer: the weights of transformers, our own forward pass.

Our forward pass gives the scores of transformers' forward pass with less work and without the random state: patches
keep their order instead of being shuffled, and padding patches stay masked. Each image and caption is embedded once and
projected once for the first layer's attention, whatever the number of its pairs. The last layer computes only the class
token.

Shape letters: I images, T texts, P pairs, B aligned pairs, L text tokens, V image tokens (class token first), N = L +
V, D width, H heads, d width of a head, h and w sides of the patch grid.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, ViltConfig, ViltForImageAndTextRetrieval

from dcdctl.core.models.checkpoint import check_complete
from dcdctl.core.models.fusion import FusionScorer
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch, select_rows, unencoded, with_copies
from dcdctl.core.models.model import TransformerSize, seeded
from dcdctl.core.models.networks.attention import Heads, heads_of, into_queries, recomputed, set_hidden_dropout
from dcdctl.core.models.overrides import read_overrides
from dcdctl.core.models.preprocess import Preprocess, fitted_preprocess, load_image_processor, vilt_image_processor
from dcdctl.core.models.protocols import ExportSpec, Table
from dcdctl.core.models.references.loading import FOLDER_HINT, hub_errors
from dcdctl.core.models.tokenizer import load_own_tokenizer

TEXT_EPS = 1e-12
"""LayerNorm epsilon of the text embeddings."""
BLOCK_EPS = 1e-6
"""LayerNorm epsilon of the blocks and the final norm in the official code; converted files on the Hub have 1e-12 in
their configuration."""
EPS_SCALE = 2.0**10
"""Factor of the text embeddings in a network with one epsilon; its square is close to BLOCK_EPS / TEXT_EPS, 1e6."""
TEXT_ROW, IMAGE_ROW = 0, 1
"""Rows of the token type embeddings."""
MAX_TEXT_LEN = 40
"""Tokens of a caption in the official retrieval models."""


@dataclass(frozen=True, kw_only=True)
class ViltSize(TransformerSize):
    """The dimensions of a new ViLT."""

    num_hidden_layers: int = 6


class ViltScorer(FusionScorer):
    """Scores image-caption pairs with a ViLT."""

    network: ViltForImageAndTextRetrieval

    @property
    def layers(self) -> nn.ModuleList:
        """The fusion layers."""
        return self.network.vilt.encoder.layer

    def student(self, layers: Sequence[int]) -> Self:
        layers = self.checked_layers(layers)
        network = copy.deepcopy(self.network)
        network.vilt.encoder.layer = nn.ModuleList([network.vilt.encoder.layer[index] for index in layers])
        network.config.num_hidden_layers = len(layers)
        network.requires_grad_(True)
        return type(self)(network, self.preprocess)

    @property
    def settings(self) -> Table:
        """What dcdctl.json holds."""
        text_eps = self.network.vilt.embeddings.text_embeddings.LayerNorm.eps
        return {**super().settings, "text_layer_norm_eps": text_eps}

    def encode_images(self, images: ImageBatch | States) -> States:
        """Embedded images, I x V x D: the class token, then the patches inside the image, row by row. ValueError for
        features."""
        images = unencoded(images)
        embeddings = self.network.vilt.embeddings
        # On the CPU, because the shapes that follow depend on it.
        pixel_mask = images.mask_on_cpu
        if pixel_mask is None:
            # The image area as the official code guesses it: pixels whose normalized channels do not sum to exactly 0.
            pixel_mask = (images.pixel_values.sum(dim=1) != 0).cpu()
        patches_IDhw = embeddings.patch_embeddings(images.pixel_values)
        # To the nearest pixel, the default, as in the official code; interpolation takes no booleans.
        valid_Ihw = functional.interpolate(pixel_mask[:, None].float(), size=patches_IDhw.shape[2:])[:, 0].bool()
        tokens = patches_IDhw.flatten(2).transpose(1, 2) + self._patch_positions(valid_Ihw)
        tokens, mask_on_cpu = _pack(tokens, valid_Ihw.flatten(1))
        mask_on_cpu = functional.pad(mask_on_cpu, (1, 0), value=True)
        first = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(tokens), -1, -1)
        tokens = embeddings.dropout(torch.cat([first, tokens], dim=1))
        tokens = tokens + embeddings.token_type_embeddings.weight[IMAGE_ROW]
        return with_copies(States(tokens, mask_on_cpu.to(tokens.device, non_blocking=True)), mask_on_cpu=mask_on_cpu)

    def encode_texts(self, texts: TextBatch | States) -> States:
        """Embedded captions, T x L x D. ValueError for features."""
        texts = unencoded(texts)
        embeddings = self.network.vilt.embeddings
        tokens = embeddings.text_embeddings(input_ids=texts.input_ids)
        return texts.states(tokens + embeddings.token_type_embeddings.weight[TEXT_ROW])

    def _patch_positions(self, valid_Ihw: Tensor) -> Tensor:
        """Position vectors, I x (h w) x D: the table resized to each image's own grid, zero outside it. The mask is on
        the CPU."""
        config, table = self.network.config, self.network.vilt.embeddings.position_embeddings
        side = config.image_size // config.patch_size
        square = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        height, width = valid_Ihw.shape[1:]
        # As in the official code, the first column gives an image's height in patches, and the first row its width.
        grid_I2 = torch.stack([valid_Ihw[:, :, 0].sum(dim=1), valid_Ihw[:, 0].sum(dim=1)], dim=1).clamp(min=1)
        grids, grid_ix_I = grid_I2.unique(dim=0, return_inverse=True)
        resized = []
        for rows, columns in grids.tolist():
            positions = functional.interpolate(square, size=(rows, columns), mode="bilinear", align_corners=True)
            resized.append(functional.pad(positions, (0, width - columns, 0, height - rows)))
        return torch.cat(resized).flatten(2).transpose(1, 2)[grid_ix_I.to(table.device, non_blocking=True)]

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""
        head = self.network.rank_output
        pooled_PD = self.network.vilt.pooler(self.fuse(images, texts, image_ix_P, text_ix_P, num_queries=1))
        # Autocast would round the logit itself: to one of 128 steps between 8 and 16 in bfloat16, so that close
        # candidates tie.
        with torch.autocast(pooled_PD.device.type, enabled=False):
            return head(pooled_PD.to(head.weight.dtype)).squeeze(-1)

    def fuse(
        self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor, num_queries: int | None = None
    ) -> Tensor:
        """The first `num_queries` tokens of P pairs after all layers and the final norm; all tokens, P x N x D, if
        None: text first, then image."""
        texts, text_at_P = texts.distinct(text_ix_P)
        images, image_at_P = images.distinct(image_ix_P)
        # Every text and image that was taken is in a pair.
        is_full = texts.is_full and images.is_full
        mask = None if is_full else torch.cat([texts.mask[text_at_P], images.mask[image_at_P]], dim=1)
        tokens_PND = torch.cat([select_rows(texts.tokens, text_at_P), select_rows(images.tokens, image_at_P)], dim=1)

        def first_layer(
            layer: Any, tokens_PND: Tensor, text_TLD: Tensor, image_IVD: Tensor, num_queries: int | None
        ) -> Tensor:
            # No token depends on the other modality yet, so each image and caption is projected once, whatever the
            # number of its pairs.
            projected = []
            for text, image in zip(_project(layer, text_TLD), _project(layer, image_IVD), strict=True):
                projected.append(torch.cat([select_rows(text, text_at_P), select_rows(image, image_at_P)], dim=2))
            query, key, value = projected
            context_PND = _heads(layer).context(query[:, :, :num_queries], key, value, mask)
            return _finish_block(layer, tokens_PND, context_PND)

        for i, layer in enumerate(self.layers):
            count = num_queries if i == len(self.layers) - 1 else None
            if i == 0:
                tokens_PND = recomputed(
                    self.network, first_layer, layer, tokens_PND, texts.tokens, images.tokens, count
                )
            else:
                tokens_PND = recomputed(self.network, run_block, layer, tokens_PND, mask, count)
        return self.network.vilt.layernorm(tokens_PND)

    def set_dropout(self, probability: float) -> None:
        """Set the dropout of embeddings and sublayer outputs; attention has none in the official code either."""
        set_hidden_dropout(self.network, probability)

    def export_spec(self) -> ExportSpec:
        """A class of transformers."""
        return ExportSpec(model_class="ViltForImageAndTextRetrieval", processor_class="ViltProcessor")

    def export_copy(self) -> Self:
        """The same scores from a network with one LayerNorm epsilon, as transformers computes it."""
        return type(self)(_with_one_epsilon(self.network), self.preprocess.self_contained())


def _pack(tokens_IND: Tensor, valid_IN: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens and their mask with the valid ones first, in their order, trimmed to the largest number that any image
    has.

    Both masks are on the CPU.
    """
    if bool(valid_IN.all()):
        return tokens_IND, valid_IN
    # Stable, so that the patches of an image keep their order.
    order = valid_IN.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(valid_IN.sum(dim=1).max())]
    packed = tokens_IND.gather(
        1, order.to(tokens_IND.device, non_blocking=True)[..., None].expand(-1, -1, tokens_IND.shape[2])
    )
    return packed, valid_IN.gather(1, order)


def run_block(layer: Any, tokens_PND: Tensor, mask_PN: Tensor | None, num_queries: int | None = None) -> Tensor:
    """The first `num_queries` tokens after a block; they attend to all tokens, or to those where the mask is True."""
    normed, heads = layer.layernorm_before(tokens_PND), _heads(layer)
    queries_PND = normed[:, :num_queries]
    if heads.is_worth_folding(queries_PND.shape[1], normed.shape[1]):
        return _finish_block(layer, tokens_PND, into_queries(heads, queries_PND, normed, mask_PN))
    query, key, value = heads.query(queries_PND), heads.key(normed), heads.value(normed)
    context_PND = heads.context(heads.split(query), heads.split(key), heads.split(value), mask_PN)
    return _finish_block(layer, tokens_PND, context_PND)


def _project(layer: Any, tokens_PND: Tensor) -> list[Tensor]:
    """Queries, keys and values, P x H x N x d each."""
    normed, heads = layer.layernorm_before(tokens_PND), _heads(layer)
    return [heads.split(linear(normed)) for linear in (heads.query, heads.key, heads.value)]


def _finish_block(layer: Any, tokens_PND: Tensor, context_PND: Tensor) -> Tensor:
    """The block after its attention, for as many of the first tokens as `context_PND` has."""
    # This module of transformers ignores its second argument and leaves the residual to the block.
    tokens = tokens_PND[:, : context_PND.shape[1]] + layer.attention.output(context_PND, None)
    return layer.output(layer.intermediate(layer.layernorm_after(tokens)), tokens)


def _heads(layer: Any) -> Heads:
    return heads_of(layer.attention.attention)


def build_network(config: ViltConfig) -> ViltForImageAndTextRetrieval:
    """An untrained network with the text epsilon of the official code; `config.layer_norm_eps` is that of the
    blocks."""
    network = ViltForImageAndTextRetrieval(config)
    network.vilt.embeddings.text_embeddings.LayerNorm.eps = TEXT_EPS
    return network


def _with_one_epsilon(network: ViltForImageAndTextRetrieval) -> ViltForImageAndTextRetrieval:
    """A copy with the same scores whose text embeddings have the blocks' LayerNorm epsilon, since transformers has one
    epsilon for all.

    Scaling all text embeddings by a factor and the epsilon by its square leaves the normalized values equal; a power of
    two is exact.
    """
    copied = copy.deepcopy(network)
    embeddings = copied.vilt.embeddings.text_embeddings
    if embeddings.LayerNorm.eps != copied.config.layer_norm_eps:
        with torch.no_grad():
            for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
                table.weight.mul_(EPS_SCALE)
        embeddings.LayerNorm.eps = copied.config.layer_norm_eps
    return copied


def new_vilt(size: ViltSize, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> ViltScorer:
    """An untrained ViLT for this tokenizer. Equal seeds give equal weights; the global random state is not touched."""
    config = ViltConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=size.max_text_len,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        intermediate_size=size.intermediate_size,
        image_size=size.image_size,
        patch_size=size.patch_size,
        hidden_dropout_prob=size.hidden_dropout_prob,
        # None, as in the official code.
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=BLOCK_EPS,
    )
    with seeded(seed):
        network = build_network(config)
        # transformers initializes these two with zeros, which leaves all patches alike; timm, and so ViLT, draws them.
        for parameter in (network.vilt.embeddings.cls_token, network.vilt.embeddings.position_embeddings):
            nn.init.trunc_normal_(parameter, std=config.initializer_range)
    processor = vilt_image_processor(size.image_size, size.patch_size, size.image_mean, size.image_std)
    return ViltScorer(
        network, Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=size.max_text_len)
    )


def load(ref: str, table: Table, saved: Table | None = None) -> ViltScorer:
    """The scorer of a transformers folder or Hub id; `table` are the user's overrides, `saved` is dcdctl.json if the
    folder has one."""
    overrides = read_overrides(table)
    with hub_errors(ref, hint=FOLDER_HINT):
        config = ViltConfig.from_pretrained(ref)
        # A converted file, not ours: its one epsilon is that of the text embeddings.
        if saved is None and config.layer_norm_eps == TEXT_EPS:
            config.layer_norm_eps = BLOCK_EPS
        if overrides.num_attention_heads is not None:
            config.num_attention_heads = overrides.num_attention_heads
        network, report = ViltForImageAndTextRetrieval.from_pretrained(
            ref, config=config, dtype=torch.float32, output_loading_info=True
        )
    check_complete(ref, report["missing_keys"], "a ViLT scorer")
    network.vilt.embeddings.text_embeddings.LayerNorm.eps = saved["text_layer_norm_eps"] if saved else TEXT_EPS
    tokenizer = load_own_tokenizer(ref, config, overrides.tokenizer)
    processor = load_image_processor(ref)
    if overrides.image_size is not None:
        processor = vilt_image_processor(overrides.image_size, int(processor.size_divisor))
    length = overrides.max_text_len or (saved["max_text_len"] if saved else None)
    preprocess = fitted_preprocess(tokenizer, processor, config, max_text_len=length, default=MAX_TEXT_LEN)
    return ViltScorer(network, preprocess, tuple(sorted(report["unexpected_keys"])))
