"""What an export refuses: numbers that differ from those of the model, and names of the Hub."""

from __future__ import annotations

from functools import partial

import pytest
import refusals
import torch
from refusals import Refusal

from dcdctl.core.errors import ConfigError, MissingError, ModelError
from dcdctl.core.export import ExportJob, check, push
from dcdctl.core.export.export import resolve
from dcdctl.core.scoring import Vectors

EAST, NORTH = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
LOGITS = torch.tensor([3.0, -2.0])


def of_vectors(precision: str, texts: torch.Tensor):
    """Compare these vectors of texts with `EAST`."""
    return partial(check.compare_vectors, precision, Vectors(EAST, texts), Vectors(EAST, EAST), hint="export again")


def without_token(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    push.check("me/dual")


ROWS = [
    *(
        Refusal(f"{precision} of another model", of_vectors(precision, texts), ModelError, says)
        for precision, texts, says in (
            ("int8", NORTH, r"int8 model have a cosine of 0\.60000 with those of the model, it must be at least 0\.98"),
            ("fp32", NORTH, r"fp32 model have a cosine of 0\.60000 with those of the model, it must be .* 0\.9999"),
            ("fp32", EAST * torch.nan, "a cosine of nan"),
        )
    ),
    Refusal(
        "logits of another model",
        partial(check.compare_logits, LOGITS - 0.01, LOGITS),
        ModelError,
        "differ from those of the model by 1.0e-02, at most 1e-03 is allowed",
    ),
    Refusal(
        "no token",
        without_token,
        MissingError,
        "pushing to me/dual needs a token for the Hub, and there is none; `hf auth login`, or",
    ),
    *(
        Refusal(f"name {name}", partial(push.check, name), ConfigError, "--push-to-hub .*; use OWNER/NAME")
        for name in ("dual", "me/du al", "me/dual/three")
    ),
    Refusal(
        "--public alone",
        lambda tmp_path: resolve(ExportJob("scenes-vilt", tmp_path / "out", to="transformers", private=False)),
        ConfigError,
        "--public is for a repository of the Hub, and none is named; add --push-to-",
    ),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
