"""Numbers that are not finite, found in a file of weights without torch: as torch finds them, in every number type."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from dcdctl.core.errors import ModelError, StaleError
from dcdctl.core.models import check_finite, check_finite_file, weights_file

FINITE = [0.0, -0.0, 1.0, -3.5, 6e-8, 3e38]
BAD = [float("nan"), float("inf"), float("-inf"), -float("nan")]
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def values(*numbers: float, dtype: torch.dtype) -> torch.Tensor:
    """Numbers as this type; the largest that are finite in it in place of larger ones."""
    limit = torch.finfo(dtype).max
    return torch.tensor(
        [max(-limit, min(limit, each)) if abs(each) < float("inf") else each for each in numbers], dtype=dtype
    )


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bad", BAD)
def test_a_number_that_is_not_finite_is_found_and_counted_as_torch_counts_it(dtype, bad, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_file, "CHUNK", 4)
    # Of odd lengths, so that the tensors of wider types do not begin at multiples of their width.
    state = {
        "a": torch.ones(3, dtype=torch.uint8),
        "b": values(*FINITE, dtype=dtype),
        "c": values(*FINITE, bad, 1.0, bad, dtype=dtype),
    }
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as expected:
        check_finite(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as found:
        check_finite_file(tmp_path / "model.safetensors")
    assert str(found.value) == str(expected.value)
    assert "2 of 9 numbers of the weights c" in str(found.value)


def test_finite_numbers_of_every_type_pass(tmp_path):
    state = {str(dtype): values(*FINITE, dtype=dtype) for dtype in TYPES} | {
        "count": torch.tensor(2**62),
        "none": torch.zeros(0, 4),
    }
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt", "dtype": "F32"})
    check_finite_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_file_that_is_cut_off_is_refused_by_name(cut, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StaleError, match=r"model\.safetensors cannot be read"):
        check_finite_file(path, error=StaleError)
