"""Matryoshka representation learning: losses of several widths of the same vectors (Kusupati et al., NeurIPS 2022,
arXiv 2205.13147)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dcdctl.core.models import prefix_vectors

Terms = dict[str, Tensor]


def mean_over_widths(
    outputs: Sequence[Tensor], dims: Sequence[int], terms_of: Callable[[Sequence[Tensor]], Terms]
) -> Terms:
    """Each term as the mean of its values on the first numbers of the vectors, for each width; all widths weigh the
    same.

    The paper's sum would multiply the learning rate by the number of widths. `outputs` are the gathered vectors of the
    whole batch, so the widths are exact in micro-batches and several processes too.

    When to use it: for a dual student whose index will store shorter vectors (`loss.dims`).
    """
    of_each: dict[str, list[Tensor]] = {}
    for width in dims:
        prefixes = [prefix_vectors(side, width) for side in outputs]
        for name, term in terms_of(prefixes).items():
            of_each.setdefault(name, []).append(term)
    return {name: torch.stack(terms).mean() for name, terms in of_each.items()}
