"""A dual encoder or a late-interaction model over one as two ONNX files, and ONNX Runtime as a model that reads them.

FOLDER/image.onnx    pixel_values float32, images x 3 x H x W                         ->  vectors float32, images x D
FOLDER/text.onnx     input_ids int64, attention_mask int64, texts x tokens each       ->  vectors float32, texts x D

Vectors have length 1; a logit is their cosine times `logit_scale`, plus `logit_bias` if there is one. Both numbers are
in the metadata of both files. Numbers of images, texts and tokens may vary; H and W are those of the model's image
processor. A model that was trained on captions of one padded length (SigLIP, open_clip) takes no mask, and only that
number of tokens. SigLIP 2 with variable resolution takes patches: pixel_values float32, images x patches x values,
pixel_attention_mask int32, images x patches, and spatial_shapes int64, images x 2, where the number of patches may
vary.

The files of a late-interaction model give a vector for each token: vectors float32, images x N x D and texts x L x D,
and mask bool, images x N and texts x L, which is false for padding. Vectors of padding are zero. With `model.pooled` a
third output, pooled, is the dual encoder's vectors, and the logit is MaxSim times `logit_scale` plus the cosine of
these vectors times `vectors_scale`.

Preprocessing is not in the files: it needs the tokenizer and the image processor of the saved model. Fusion models
cannot be exported. Their computation depends on the data (which pairs share an image, the length of the longest
caption), and an ONNX file is one fixed graph.

`text_export.export_text_tower` writes the text side alone, with its tokenizer, for `text_tower.TextTower`, which needs
neither torch nor transformers.

Shape letters: I images, T texts, D length of the vectors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from dcdctl.core import files
from dcdctl.core.errors import ModelError, first_line
from dcdctl.core.models import text_tower
from dcdctl.core.models.inputs import ImageBatch, TextBatch
from dcdctl.core.models.late import LateInteraction, Model
from dcdctl.core.models.onnx_towers import TOWERS, OnnxTowers, image_inputs, require_onnx
from dcdctl.core.models.references.loading import quietly

LARGEST_DIFFERENCE = 1e-4
"""Largest accepted difference of a coordinate between torch and ONNX Runtime in float32, which sum in another order."""
ONNX_OUTPUTS = (text_tower.GRAPH_OUTPUT, "mask", "pooled")
"""Outputs of a file. A dual encoder has the first; a late-interaction model two, or all with `model.pooled`."""
NO_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
EXTERNAL_FROM_BYTES = 1_800_000_000
"""A single ONNX file may have at most 2 GiB; larger weights are written to a file beside it."""


class _ImageTower(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, spatial_shapes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        mask = None if pixel_attention_mask is None else pixel_attention_mask.bool()
        return tower_outputs(self.model, ImageBatch(pixel_values, mask, spatial_shapes))


class TextSide(nn.Module):
    def __init__(self, model: Model, compute: Callable[[TextBatch], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.compute(TextBatch(input_ids, mask))


def tower_outputs(model: Model, batch: ImageBatch | TextBatch) -> tuple[Tensor, ...]:
    """What a file gives of a dual encoder or a late-interaction model, in the order of `ONNX_OUTPUTS`."""
    if model.has_one_vector:
        vectors = model.embed_images(batch) if isinstance(batch, ImageBatch) else model.embed_texts(batch)
        return (vectors,)
    states = model.encode_images(batch) if isinstance(batch, ImageBatch) else model.encode_texts(batch)
    assert isinstance(model, LateInteraction)
    if model.vectors_scale is None:
        return states.tokens, states.mask
    assert states.vectors is not None
    return states.tokens, states.mask, states.vectors


def export_onnx(model: Model, folder: Path) -> None:
    """Write both files of a dual encoder, or of a late-interaction model over one, in float32, into a new folder,
    atomically.

    ModelError for other models, for a model that torch cannot export, and for a folder that is not empty.
    """
    require_onnx()
    if model.as_dual is None:
        raise ModelError(
            f"this {model.kind} model does not export to ONNX: its shapes depend on the data",
            hint="export a dual student",
        )
    spec = model.export_spec()
    if reason := spec.refusals.get("onnx"):
        raise ModelError(f"this model does not export to ONNX: {reason}", hint=f"export it with --to {spec.library}")
    if not files.is_vacant(folder):
        raise ModelError(f"{folder} is not empty, a new folder is expected", hint="name another folder")
    device = next(iter(model.parameters())).device
    with eval_mode(model), files.atomic_folder(folder) as partial:
        image_name, text_name = TOWERS
        # Two of each, since torch takes a size of 1 as fixed.
        images = model.preprocess.images([Image.new("RGB", (64, 64))] * 2).to(device)
        texts = model.preprocess.texts(["a b c", "a"]).to(device)
        patches = {} if images.grid is None else {1: "patches"}
        free = {
            "pixel_values": {0: "images", **patches},
            "pixel_attention_mask": {0: "images", **patches},
            "spatial_shapes": {0: "images"},
        }
        text_inputs = {"input_ids": texts.input_ids}
        if spec.padded_length is None:
            free |= {name: {0: "texts", 1: "tokens"} for name in ("input_ids", "attention_mask")}
            text_inputs["attention_mask"] = texts.attention_mask
        else:
            free["input_ids"] = {0: "texts"}
        write_graph(_ImageTower(model), image_inputs(images), free, partial / image_name)
        write_graph(TextSide(model, lambda batch: tower_outputs(model, batch)), text_inputs, free, partial / text_name)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A model in eval mode, and in its own mode afterwards."""
    was_training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(was_training)


def largest_difference(vectors: Tensor, expected: Tensor) -> float:
    """The largest difference of a coordinate between two sets of vectors."""
    return float((vectors.float() - expected.float()).abs().max())


def check_onnx(onnx: OnnxTowers, model: Model, images: ImageBatch, texts: TextBatch) -> float:
    """The largest difference of a coordinate from torch's vectors, or of masks; ModelError if it exceeds
    `LARGEST_DIFFERENCE`."""
    differences = []
    for batch in (images, texts):
        with torch.no_grad():
            expected = tower_outputs(model, batch)
        for output, wanted in zip(onnx.outputs(batch), expected, strict=True):
            differences.append(largest_difference(output, wanted.cpu()))
    difference = max(differences)
    # Written this way, NaN fails too.
    if not difference <= LARGEST_DIFFERENCE:
        problem = f"ONNX Runtime's vectors differ from torch's by {difference:.1e}"
        raise ModelError(
            f"{problem}, expected at most {LARGEST_DIFFERENCE:.0e}", hint="this model cannot be served by ONNX Runtime"
        )
    return difference


def quantize_dynamic(folder: Path, target: Path) -> None:
    """Write the two files of a folder to `target`, with int8 weights and dynamically quantized activations.

    Vectors change by more than rounding; `dcdctl export` compares them (docs/export.md).
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    for name in TOWERS:
        with files.atomic_path(target / name) as partial, quietly():
            model = onnx.load(folder / name)
            # Until torch 2.10 it has the shapes of weights too, which are wrong once the quantizer has transposed them.
            del model.graph.value_info[:]
            # Unsigned weights: on x86 without VNNI, sums of two products of unsigned and signed bytes overflow 16 bits,
            # and cosines fall from 0.99 to 0.91. One scale per column, since columns of a matrix differ. The
            # convolution that makes patches stays float32: ONNX Runtime lacks its int8 form on some processors.
            quantize(
                model, partial, weight_type=QuantType.QUInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
            )


@contextmanager
def exporting(path: Path) -> Iterator[None]:
    """Without messages of the exporter, whose errors become a ModelError; those of files stay as they are."""
    before = os.environ.get(NO_CHECKS)
    # Without the checks of transformers that compare values of tensors: ONNX has no operator that fails.
    os.environ[NO_CHECKS] = "1"
    try:
        with quietly():
            yield
    except OSError:  # such as a full disk, which says nothing about the model
        raise
    # The errors of torch's exporter have no common class, and the reason is the cause of the outer one.
    except Exception as error:
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(cause)[:200]}"
        side = "image" if path.stem == "image" else "text"
        raise ModelError(f"torch cannot export this model's {side} side to ONNX: {reason}") from error
    finally:
        if before is None:
            del os.environ[NO_CHECKS]
        else:
            os.environ[NO_CHECKS] = before


def write_graph(
    tower: _ImageTower | TextSide, example: Mapping[str, Tensor], free: Mapping[str, dict[int, str]], path: Path
) -> None:
    """Write one file; `free` names the dimensions of each input that may vary."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tower.state_dict().values())
    shapes = tuple(free[name] for name in example)
    with exporting(path):
        program = torch.onnx.export(
            tower,
            tuple(example.values()),
            dynamo=True,
            input_names=list(example),
            output_names=list(ONNX_OUTPUTS),
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None
        # The numbers that turn a cosine into a logit.
        for name in ("logit_scale", "logit_bias", "vectors_scale"):
            if (number := getattr(tower.model, name, None)) is not None:
                program.model.metadata_props[name] = repr(float(number))
        program.save(path, external_data=weights > EXTERNAL_FROM_BYTES)
