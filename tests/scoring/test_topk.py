"""The best candidates of each query: those of a full sort, block by block."""

from __future__ import annotations

import pytest
import torch

from dcdctl.core.scoring import topk


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Of 5 queries and of 40 gallery entries."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 6, generator=generator), torch.randn(40, 6, generator=generator)


@pytest.mark.parametrize(("block", "gallery_block", "group"), [(256, 16384, 64), (2, 7, 64), (2, 13, 2)])
@pytest.mark.parametrize("k", [1, 3, 40, 50])
def test_the_best_are_those_of_a_full_sort_in_blocks_of_any_size(vectors, monkeypatch, k, block, gallery_block, group):
    for name, value in (("BLOCK", block), ("GALLERY_BLOCK", gallery_block), ("GROUP", group), ("CHECKED", 3)):
        monkeypatch.setattr(topk, name, value)
    queries_QD, gallery_GD = vectors
    # The caller's default device holds neither queries nor gallery.
    with torch.device("meta"):
        scores_QK, index_QK = topk.top_k(queries_QD, gallery_GD, k)
    sorted_QG = (queries_QD @ gallery_GD.T).sort(dim=1, descending=True)
    assert index_QK.tolist() == sorted_QG.indices[:, :k].tolist()
    torch.testing.assert_close(scores_QK, sorted_QG.values[:, :k])
