"""Compiled encoders: one graph for all batches, the outputs of the encoder, and errors where they differ or cannot be
compiled.

The backend "eager" traces an encoder as torch.compile does, and runs it without generating code.
"""

from __future__ import annotations

import copy

import pytest
import torch
from duals import keep_one_layer
from families import FAMILIES, with_noise
from torch import nn
from torch.testing import assert_close

from dcdctl.core import devices
from dcdctl.core.devices import CPU, Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.models import DualScorer, require_compiled_sides
from dcdctl.core.models.networks import compiled
from dcdctl.core.models.networks.compiled import run_encoder

COMPILED = Compute(compile=True)


@pytest.fixture
def num_graphs(monkeypatch):
    """A function that counts the graphs that were compiled since the test began."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(compiled, "BACKEND", "eager")
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


class Encoder(nn.Module):
    """Two layers over 3 numbers, with dropout between them."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.dropout, self.second = nn.Linear(3, 4), nn.Dropout(dropout), nn.Linear(4, 2)

    def forward(self, rows):
        return self.second(self.dropout(self.first(rows).tanh()))


def encode(encoder, rows):
    return encoder(rows)


def twelve_rows():
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def test_batches_of_every_size_are_computed_by_one_graph(num_graphs):
    encoder, rows = Encoder().eval(), twelve_rows()
    with torch.inference_mode(), COMPILED.forward_pass():
        # Too few rows to compile, the shape that is compiled, the same with padding, and too few to pad.
        for count in (1, 12, 9, 12, 8, 11):
            assert_close(run_encoder("image", encoder, encode, rows[:count]), encoder(rows[:count]))
    assert num_graphs() == 1


def test_a_pass_that_does_not_ask_compiles_nothing(num_graphs):
    encoder, rows = Encoder().eval(), twelve_rows()
    with torch.inference_mode(), Compute().forward_pass():
        run_encoder("image", encoder, encode, rows)
    with COMPILED.forward_pass():
        pass
    run_encoder("image", encoder, encode, rows)
    assert num_graphs() == 0


def test_a_copy_with_other_weights_is_compiled_for_itself(num_graphs):
    encoder, rows = Encoder().eval(), twelve_rows()
    with torch.inference_mode(), COMPILED.forward_pass():
        run_encoder("image", encoder, encode, rows)
        twin = copy.deepcopy(encoder)
        twin.second.bias += 1
        assert_close(run_encoder("image", twin, encode, rows), encoder(rows) + 1)
    assert num_graphs() == 2


def test_a_compiled_training_step_has_the_gradient_and_the_dropout_of_the_encoder(num_graphs):
    encoder, rows = Encoder(dropout=0.5).train(), twelve_rows()[:11]

    def gradient(compute):
        encoder.zero_grad()
        torch.manual_seed(1)
        with compute.forward_pass():
            # A row of padding would draw dropout too: 16 rows are computed in both.
            padded = rows if compute.compile else torch.cat([rows, rows[-1:].expand(5, 3)])
            run_encoder("image", encoder, encode, padded)[:11].square().sum().backward()
        return encoder.first.weight.grad.clone()

    assert_close(gradient(COMPILED), gradient(Compute()))
    assert num_graphs() == 1


def test_both_towers_of_a_siglip_are_one_graph_each(num_graphs, captions, pil_images, tmp_path):
    model = with_noise(FAMILIES["SigLIP"](captions, tmp_path))
    keep_one_layer(model)
    images, texts = model.preprocess.images((pil_images * 8)[:10]), model.preprocess.texts((captions * 8)[:10])
    with torch.inference_mode():
        expected = model.embed_images(images), model.embed_texts(texts)
        with COMPILED.forward_pass():
            for count in (10, 9, 2):
                assert_close(model.embed_images(images[:count]), expected[0][:count])
                assert_close(model.embed_texts(texts[:count]), expected[1][:count])
    assert num_graphs() == 2


def wrong_by(factor):
    """A backend whose results are too large."""

    def backend(graph, inputs):
        return lambda *values: tuple(factor * result for result in graph.forward(*values))

    return backend


@pytest.mark.parametrize(("precision", "factor"), [("float32", 1 + 1e-4), ("bfloat16", 1.1)])
def test_outputs_that_differ_by_more_than_rounding_are_an_error(monkeypatch, precision, factor):
    monkeypatch.setattr(compiled, "BACKEND", wrong_by(factor))
    compute = Compute(compile=True, precision=precision)
    with (
        torch.inference_mode(),
        compute.forward_pass(),
        pytest.raises(ModelError, match=r"compiled Encoder differs.* is rounding"),
    ):
        run_encoder("image", Encoder().eval(), encode, twelve_rows())


def test_an_encoder_that_cannot_be_compiled_is_an_error_with_the_reason(num_graphs):
    def branches(encoder, rows):
        return encoder(rows) if rows.sum() > 0 else rows

    with (
        torch.inference_mode(),
        COMPILED.forward_pass(),
        pytest.raises(ModelError, match=r"Encoder cannot be compiled: .*branching"),
    ):
        run_encoder("image", Encoder().eval(), branches, twelve_rows())


def test_a_model_without_an_encoder_of_one_shape_is_refused(captions, tmp_path):
    vilt, clip = (FAMILIES[name](captions, tmp_path) for name in ("vilt", "CLIP"))
    with pytest.raises(ModelError, match="ViltScorer: no encoder has inputs of one shape"):
        require_compiled_sides(vilt)
    require_compiled_sides(vilt, DualScorer(clip))


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)  # torch imports it itself
def test_a_machine_without_a_compiler_is_told_what_is_missing():
    from torch._inductor import config

    said = []
    with config.patch({"cpp.cxx": (None, "/absent/g++"), "force_disable_caches": True}):
        assert not devices.can_compile(CPU, said.append)
    assert said[0].startswith(
        "--compile is left out: PyTorch cannot compile here, which needs a C++ compiler such as g++"
    )
