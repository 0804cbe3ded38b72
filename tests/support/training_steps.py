"""One training step of a tiny student and its gradients, by one process or by several that share the batch."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import recipe_batches
from open_inputs import OpenInputs
from safetensors.torch import save_file
from torch import Tensor, nn

from dcdctl.core import distributed, models
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.teacher import read_cache
from dcdctl.core.training import InputRefs, Run, TrainingJob, TrainingOptions, initial_model, train_model
from dcdctl.core.training import recipe as training_recipe
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.grad_cache import Step, backward
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import Recipe


def distill(
    data: InputRefs | OpenInputs | Corpus,
    out: Path,
    *sets: str,
    recipe: str = "tiny-student",
    resume: bool = False,
    **more: Any,
) -> Run:
    """The run of a student; a corpus stands for a training without cache and teacher."""
    inputs = OpenInputs(data, [], None) if isinstance(data, Corpus) else data
    return train_model(
        TrainingJob("distill", recipe, sets, out, resume), inputs, **{"options": TrainingOptions(), **more}
    )


class KilledError(Exception):
    """What ends a training in the middle."""


def killed_after(steps: int) -> Callable[..., Any]:
    """What watches a training, and ends it after so many steps."""

    @contextmanager
    def watch(**_: Any) -> Iterator[Any]:
        def on_step(done: int, _: Any) -> None:
            if done == steps:
                raise KilledError

        yield on_step

    return watch


TINY_DUAL = [
    *("model.kind=dual", "model.start=new", "model.layers=[]", "model.hidden_size=32", "model.num_layers=1"),
    *("model.num_text_layers=1", "model.projection_dim=16", "model.vocab_size=200", "batch.size=8"),
    "loss.terms={ infonce = 1.0 }",
]
"""A new dual student that trains in a moment."""
BATCH = [
    "batch.size=8",
    "batch.random_negatives=7",
    "batch.hard_negatives=3",
    "candidates.kind=blocks",
    "candidates.block_size=8",
]
FUSION = ["model.layers=[0, 2]", *BATCH]
DUAL = [
    *(
        "model.kind=dual",
        "model.start=new",
        "model.layers=[]",
        "model.hidden_size=32",
        "model.num_layers=1",
        "model.num_text_layers=1",
    ),
    *("model.projection_dim=16", "model.vocab_size=200", *BATCH),
]
LATE = [*DUAL, "model.kind=late", "model.token_dim=8"]
KINDS = {
    "fusion lists": [*FUSION, "loss.terms={ dcd = 1.0 }"],
    "fusion all pairs": [*FUSION, "loss.terms={ kl = 1.0 }"],
    "dual all pairs": [*DUAL, "loss.terms={ infonce = 1.0, dcd-kl = 0.5 }"],
    "dual sigmoid": [*DUAL, "loss.terms={ sigmoid = 1.0, sigmoid-kl = 0.5 }"],
    "dual calibrated": [*DUAL, "loss.terms={ margin-mse = 0.1 }"],
    # Groups of 3, 3 and 2 lists: no number of micro-batches or processes splits a batch of 8 like that.
    "dual lists": [*DUAL, "loss.terms={ dcd = 1.0 }", "loss.weight_group=3"],
    "dual hard": [*DUAL, "loss.terms={ infonce-hard = 1.0 }"],
    "dual widths": [*DUAL, "loss.terms={ infonce = 1.0, margin-mse = 0.1 }", "loss.dims=[4, 16]"],
    "dual widths of lists": [*DUAL, "loss.terms={ dcd = 1.0 }", "loss.dims=[4, 16]"],
    "late dual all pairs": [*LATE, "loss.terms={ infonce = 1.0, margin-mse = 0.1 }"],
    "late dual lists": [*LATE, "loss.terms={ dcd = 1.0 }", "model.pooled=true", "model.position_norm=0.7"],
}
"""Recipes by what their loss works on."""
STARTED = ["model.kind=dual", "model.layers=[]", *BATCH]
STARTS = {
    "CLIP": [*STARTED, "loss.terms={ infonce = 1.0, kl = 1.0 }"],
    "CLIP last layer": [
        *STARTED,
        "loss.terms={ infonce = 1.0, kl = 1.0 }",
        "model.trained=last-layers",
        "model.trained_layers=1",
    ],
    "CLIP LoRA": [*STARTED, "loss.terms={ infonce = 1.0, kl = 1.0 }", "model.trained=lora", "model.lora_rank=2"],
    # Squared errors of logits have a gradient with respect to the bias, which a softmax cancels.
    "CLIP late": [*STARTED, "model.kind=late", "model.pooled=true", "loss.terms={ infonce = 1.0, kl = 1.0 }"],
    "CLIP late LoRA": [
        *STARTED,
        "model.kind=late",
        "loss.terms={ infonce = 1.0, kl = 1.0 }",
        "model.trained=lora",
        "model.lora_rank=2",
    ],
    "SigLIP": [*STARTED, "loss.terms={ ranking = 1.0, mse = 0.1 }"],
    "SigLIP LoRA": [
        *STARTED,
        "loss.terms={ ranking = 1.0, mse = 0.1 }",
        "model.trained=lora",
        "model.lora_rank=2",
    ],
}
"""Recipes of students that start from a model; the first word is the family, and the name of the folder of its tiny
model."""


Student = tuple[models.Model, Recipe]


def gradients_of(
    inputs: OpenInputs,
    student: Student,
    plan: MicroBatchPlan,
    *,
    step: int = 1,
    precision: str = "float32",
    objective: type[PairObjective] = PairObjective,
    scale: float | None = None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The loss and the gradients of one step; in several processes those of all of them. The student keeps its
    weights."""
    model, recipe = student
    model.zero_grad()
    if scale is not None:
        weight = (model.tokens if model.kind == "late" else model.network).logit_scale.data
        own_scale = weight.clone()
        weight.fill_(math.log(scale))
    batch = recipe_batches(CorpusSource(inputs.corpus, model.preprocess), recipe, inputs.caches[0], plan)[step]
    computed = Step(number=step, seed=0, compute=Compute(precision=precision), micro_batch_plan=plan)
    values = backward(model, objective(recipe.loss), batch, computed)
    if scale is not None:
        weight.copy_(own_scale)
    return values, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def make_student(inputs: OpenInputs, kind: str, starts: Path) -> Student:
    """The student of a kind in training mode, without dropout, and its recipe.

    A kind of `STARTS` starts from the model in `starts`, whose CLIPs have no dropout.
    """
    own = (
        [*KINDS[kind], "model.dropout=0.0"]
        if kind in KINDS
        else [*STARTS[kind], f"model.start={starts / kind.split()[0]}"]
    )
    recipe = training_recipe.load_recipe("tiny-student", own)
    model = initial_model.make_model(recipe, inputs.corpus.captions, inputs.teacher).train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            # It starts at 0, where the gradient of the other factor is 0.
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model, recipe


def save_shared_gradients(data: str, teacher: str, cache: str, students: str, out: str) -> None:
    """Write the gradients of each pickled student, split into one and two micro-batches per process, to
    OUT/KIND-COUNT-RANK.safetensors."""
    corpus = Corpus.open(Path(data), "train")
    inputs = OpenInputs(corpus, [read_cache(Path(cache))], models.load_fusion(teacher))
    Path(out).mkdir(exist_ok=True)
    save_shared_tensors(out)
    # Some tens of thousands of numbers in several buckets of several parameters.
    distributed.BUCKET_SIZE = 5_000
    rank, num_processes = distributed.rank(), distributed.world_size()
    for kind, student in pickle.loads(Path(students).read_bytes()).items():
        for count in (1, 2):
            plan = MicroBatchPlan(num_processes * count, range(rank * count, (rank + 1) * count))
            _, gradients = gradients_of(inputs, student, plan)
            save_file(gradients, Path(out) / f"{kind}-{count}-{rank}.safetensors")


def save_shared_tensors(out: str) -> None:
    """Write what two processes with different weights and gradients share, to OUT/shared-RANK.safetensors."""
    rank = distributed.rank()
    model = nn.Linear(2, 3)
    model.register_buffer("mean", torch.zeros(2))
    model.register_buffer("count", torch.tensor(rank))
    for tensor in model.state_dict().values():
        tensor.fill_(rank + 1)
    distributed.broadcast_weights(model)
    shared = {f"weights.{name}": tensor for name, tensor in model.state_dict().items()}
    # Gradients in both processes, in the second, in none, and of a parameter that is not trained; several buckets.
    parameters = {
        name: nn.Parameter(torch.zeros(size))
        for name, size in (("both", 3), ("second", 2), ("none", 1), ("scalar", ()))
    }
    parameters["frozen"] = nn.Parameter(torch.zeros(2), requires_grad=False)
    parameters["both"].grad, parameters["scalar"].grad = torch.full((3,), rank + 1.0), torch.tensor(rank + 0.5)
    parameters["second"].grad = torch.tensor([4.0, 5.0]) if rank else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "BUCKET_SIZE", 4)
        distributed.sum_gradients(parameters.values())
    shared |= {
        f"gradient.{name}": parameter.grad for name, parameter in parameters.items() if parameter.grad is not None
    }
    save_file(shared, Path(out) / f"shared-{rank}.safetensors")


def relative_differences(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """For each parameter, the length of the difference of two gradients over the length of the expected one."""
    return {name: float((gradients[name] - gradient).norm() / gradient.norm()) for name, gradient in expected.items()}
