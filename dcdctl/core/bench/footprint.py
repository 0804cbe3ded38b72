"""The size of a model: parameters, bytes and floating-point operations.

torch counts the operations (`FlopCounterMode`) of the passes that are timed, two for a multiply-add. It counts matrix
products, convolutions and attention. It leaves out softmax, norms, activations, additions, look-ups, interpolation and
the search for the highest scores; these are few in a transformer, but they take time too. Two operations that torch
leaves out are added here: attention on CPUs, and products of a matrix and a vector, such as a query vector with all
vectors of an index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dcdctl.core.bench.result import Flops, Footprint
from dcdctl.core.bench.steps import FLOAT32_BYTES, BenchModel
from dcdctl.core.models import Model

NUM_COUNTED = 4
"""Pairs that operations are counted on, because captions differ in length."""
MILLION = 1_000_000
# Without these, torch counts 70.5 of the 73.4 million operations of a pair of the built-in teacher.
_MISSING_IN_TORCH: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    torch.ops.aten.mv: lambda matrix, *_, **__: 2 * math.prod(matrix),
}


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the work, two for a multiply-add; the module docstring says which are counted.

    >>> count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    60
    """
    counter: Any = FlopCounterMode(display=False, custom_mapping=_MISSING_IN_TORCH)
    with torch.no_grad(), counter:
        work()
    return int(counter.get_total_flops())


def measure_footprint(model: Model, bench_model: BenchModel) -> Footprint:
    """The footprint of a model, measured on its inputs."""
    num_floats = bench_model.steps.index_floats(bench_model.encoded_images)
    weights = [tensor for name, tensor in model.state_dict().items() if _is_saved(name)]
    return Footprint(
        num_parameters=sum(parameter.numel() for name, parameter in model.named_parameters() if _is_saved(name)),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        flops=_flops(bench_model),
        index_bytes_per_million_images={
            "float32": round(MILLION * num_floats * FLOAT32_BYTES),
            "float16": round(MILLION * num_floats * (FLOAT32_BYTES // 2)),
        },
    )


def _is_saved(name: str) -> bool:
    # The calibration of a dual model is for training only.
    return not name.startswith("calibration.")


def _flops(bench_model: BenchModel) -> Flops:
    steps, batch_size = bench_model.steps, bench_model.batch_size
    gallery = bench_model.gallery(batch_size)
    query = steps.encode_texts(bench_model.single(0)[1])
    of_images, of_captions, of_scores = [], [], []
    for image, text in bench_model.singles[:NUM_COUNTED]:
        # Encoded apart, because the operations of scoring are counted alone.
        encoded = steps.encode_images(image), steps.encode_texts(text)
        of_images.append(count_flops(partial(steps.encode_images, image)))
        of_captions.append(count_flops(partial(steps.encode_texts, text)))
        of_scores.append(count_flops(partial(steps.score_matching, *encoded)))
    return Flops(
        per_image=fmean(of_images),
        per_caption=fmean(of_captions),
        per_pair=fmean(of_images) + fmean(of_captions) + fmean(of_scores),
        per_ranked_image=count_flops(lambda: steps.rank(gallery, query)) / batch_size,
    )
