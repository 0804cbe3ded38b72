"""Cross-encoders of sentence-transformers that read images, such as Qwen3-VL-Reranker, as teachers and re-rankers.

A score is the raw output of `CrossEncoder.predict`, without its sigmoid. Captions of one image share the computation of
the image where the model allows it (`shared_prefix`).

Shape letters: P pairs.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dcdctl.core.errors import MissingError, ModelError, first_line, install_command, require_extra
from dcdctl.core.models.families.raw_pairs import RawPairScorer, RawPreprocess, check_read, processor_table
from dcdctl.core.models.families.shared_prefix import TOLERANCES, Pair, SharedPrefix, SharingError
from dcdctl.core.models.overrides import IMAGE_FIRST, Overrides, read_overrides
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references.loading import hub_errors, quietly

EXTRA = "sentence-transformers"
NUM_CHECKED = 2
"""Captions whose scores are compared with those of the plain way before a prefix is shared."""


class CrossEncoderScorer(RawPairScorer):
    """A CrossEncoder with images; `ref` is where it was loaded from, for messages."""

    network: Any
    """The CrossEncoder of the library: a list of modules."""
    # A pair has hundreds of tokens, and 16 of them fill a processor or a small GPU.
    pairs_per_batch = 16

    def __init__(
        self, encoder: nn.Module, preprocess: RawPreprocess, *, ref: str, prompt: str, order: str = IMAGE_FIRST
    ) -> None:
        super().__init__(encoder, preprocess)
        self.noun = "a cross-encoder of sentence-transformers"
        self.ref, self.prompt, self.order = ref, prompt, order
        self._shared: SharedPrefix | None = None
        self._is_checked = False
        if order == IMAGE_FIRST:
            try:
                with _named_errors(ref):
                    self._shared = SharedPrefix(encoder, self._pair, prompt)
            except SharingError as reason:
                self._share_no_more(reason)

    @property
    def config(self) -> Table:
        """The configuration of the network of transformers."""
        config: Table = self.network[0].model.config.to_dict()
        return config

    @property
    def settings(self) -> Table:
        """All further settings of the cross-encoder that decide a score."""
        transformer = self.network[0]
        return {
            "kind": "fusion",
            "prompt": self.prompt,
            "order": self.order,
            "dtype": str(transformer.model.dtype),
            "modules": [[type(module).__name__, module.get_config_dict()] for module in self.network],
            "float32_modules": getattr(self.network, "keep_in_fp32_modules", None),
            "max_seq_length": self.network.max_seq_length,
            "chat_template": [transformer.processor.chat_template, transformer.tokenizer.chat_template],
            **processor_table(transformer.processor),
        }

    def _pair(self, image: Image.Image, text: str) -> Pair:
        # As dictionaries: a caption that is the path or the address of an image would be read as that image.
        pair = {"image": image}, {"text": text}
        return pair if self.order == IMAGE_FIRST else pair[::-1]

    @torch.inference_mode()
    def _score(self, images: list[Image.Image], texts: list[str], image_ix: list[int], text_ix: list[int]) -> Tensor:
        scores_P = torch.empty(len(image_ix))
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for pair, image in enumerate(image_ix):
            groups[image].append(pair)
        rest: list[int] = []
        for image, group in groups.items():
            fitting = [pair for pair in group if self._shared is not None and self._shared.fits(texts[text_ix[pair]])]
            shared = self._score_shared(images[image], [texts[text_ix[pair]] for pair in fitting])
            if shared is None:
                rest += group
                continue
            scores_P[fitting] = shared
            rest += sorted(set(group) - set(fitting))
        if rest:
            scores_P[rest] = self._predict([self._pair(images[image_ix[pair]], texts[text_ix[pair]]) for pair in rest])
        return scores_P

    def _predict(self, pairs: list[Pair]) -> Tensor:
        """The logits of pairs by the library's own way, in one batch, on the CPU."""
        with _named_errors(self.ref):
            scores: Tensor = self.network.predict(
                pairs,
                prompt=self.prompt,
                batch_size=len(pairs),
                # The library's sigmoid would saturate.
                activation_fn=nn.Identity(),
                convert_to_tensor=True,
                show_progress_bar=False,
            )
        return scores.float().cpu()

    def _score_shared(self, image: Image.Image, captions: list[str]) -> Tensor | None:
        """The logits of captions of one image by a shared prefix; None where the plain way is taken."""
        if self._shared is None or not captions or (len(captions) == 1 and not self._shared.has_prefix_of(image)):
            return None
        try:
            with _named_errors(self.ref):
                scores = self._shared.scores(image, captions).cpu()
        except SharingError as reason:
            self._share_no_more(reason)
            return None
        if not self._is_checked:
            self._is_checked = True
            plain = self._predict([self._pair(image, caption) for caption in captions[:NUM_CHECKED]])
            difference = float(((scores[:NUM_CHECKED] - plain).abs() / plain.abs().clamp(min=1)).max())
            device = self.network.device.type
            cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
            # Written this way, NaN fails too.
            if not difference <= max(TOLERANCES[cast], TOLERANCES[self.network[0].model.dtype]):
                self._share_no_more(f"scores would differ by {difference:.1e}")
                return None
        return scores

    def _share_no_more(self, reason: object) -> None:
        """Score all further pairs in the plain way, and say so."""
        self._shared = None
        message = "%s: captions do not share the computation of their image, so scoring is slower: %s"
        logging.getLogger("dcdctl").warning(message, self.ref, reason)


def load(ref: str, table: Table, saved: Table | None = None) -> CrossEncoderScorer:
    """The cross-encoder of a folder or Hub id; `table` are the user's settings. No code of the folder is run."""
    overrides = read_overrides(table)
    require_extra(EXTRA, "sentence_transformers", needed_by=f"the cross-encoder {ref}")
    encoder = _load_encoder(ref, overrides)
    _check(encoder, ref)
    if overrides.max_pixels is not None:
        _cap_pixels(encoder, overrides.max_pixels, ref)
    prompt = overrides.prompt
    if prompt is None:
        prompt = encoder.prompts[encoder.default_prompt_name] if encoder.default_prompt_name is not None else ""
    marks = (getattr(encoder[0].processor, f"{kind}_token", None) for kind in ("image", "video"))
    preprocess = RawPreprocess(
        tokenizer=encoder[0].tokenizer,
        max_text_len=overrides.max_text_len or 0,
        refused=tuple(mark for mark in marks if isinstance(mark, str)),
    )
    scorer = CrossEncoderScorer(encoder, preprocess, ref=ref, prompt=prompt, order=overrides.order or IMAGE_FIRST)
    # One pair shows whether processor and chat template can carry an image with a caption.
    scorer._predict([scorer._pair(Image.new("RGB", (64, 64)), "a")])
    return scorer


def _load_encoder(ref: str, overrides: Overrides) -> Any:
    from sentence_transformers import CrossEncoder

    with (
        quietly(),
        hub_errors(
            ref, hint=f"{ref} is a cross-encoder of sentence-transformers; try `CrossEncoder(...)` of that library"
        ),
    ):
        try:
            return CrossEncoder(
                ref,
                device="cpu",
                trust_remote_code=False,
                # What a folder lacks must not be taken from the Hub.
                local_files_only=Path(ref).is_dir(),
                model_kwargs={"dtype": getattr(torch, overrides.dtype or "float32")},
                activation_fn=nn.Identity(),
            )
        except ImportError as error:
            raise MissingError(
                f"{ref} needs a package that is not installed: {first_line(error)}", hint=install_command(EXTRA)
            ) from error


def _check(encoder: Any, ref: str) -> None:
    """ModelError unless a cross-encoder scores pairs of an image and a text, with one number, from weights that were
    all saved."""
    if not {"image", "message"} <= set(encoder.modalities):
        modalities = ", ".join(map(str, encoder.modalities))
        raise ModelError(
            f"{ref} is a cross-encoder without images: it reads {modalities}", hint="take one such as Qwen3-VL-Reranker"
        )
    if encoder.num_labels != 1:
        raise ModelError(f"{ref} gives {encoder.num_labels} scores for a pair, expected one")
    check_read(encoder[0].model, ref, "a cross-encoder")


def _cap_pixels(encoder: Any, max_pixels: int, ref: str) -> None:
    """Set the largest number of pixels of a resized image; ModelError if the processor has no such bound."""
    processor: Any = getattr(encoder[0].processor, "image_processor", None)
    if "max_pixels" not in getattr(getattr(processor, "valid_kwargs", None), "__annotations__", {}):
        raise ModelError(
            f"the image processor of {ref} has no bounds for the number of pixels", hint="leave max_pixels out"
        )
    # In Qwen's processors these names hold numbers of pixels.
    if (least := processor.size["shortest_edge"]) > max_pixels:
        raise ModelError(f"max_pixels is {max_pixels:,}, and the processor of {ref} makes at least {least:,} pixels")
    processor.size = {"shortest_edge": least, "longest_edge": max_pixels}


@contextlib.contextmanager
def _named_errors(ref: str) -> Iterator[None]:
    """Turn the errors of a processor for a pair that it cannot read into a ModelError."""
    try:
        yield
    except ValueError as error:
        raise ModelError(
            f"{ref} cannot score a pair: {first_line(error)}", hint="the model's processor or chat template refuses it"
        ) from error
