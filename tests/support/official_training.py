"""What DCD's official code computed in training, beside what dcdctl computes: students, losses, gradients, optimizer
steps."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from official import FIXTURES, Comparison, fixture_json, load, load_meter, numbers
from safetensors.torch import load_file
from torch import Tensor, nn

from dcdctl.core.models import ImageBatch, TextBatch
from dcdctl.core.models.official.meter import to_network
from dcdctl.core.training import recipe
from dcdctl.core.training.loop import learning_rate_factor, make_optimizer, set_rates
from dcdctl.core.training.losses import lists, weights
from dcdctl.core.training.losses.official import dcd_official, wsl_official
from dcdctl.core.training.recipe import OptimizerConfig

RECIPE = recipe.load_recipe("meter-flickr30k")
PARTS = ("total", "d_loss", "nll")
"""Names of the loss terms in the fixtures, in the order of `lists.Parts`."""


def students(name: str = "dcd_step_a") -> Iterator[Comparison]:
    """The initial weights of a student, and the learning rate and weight decay of each trained parameter."""
    facts, teacher = fixture_json(name), load_meter(f"{name}_teacher")
    student = teacher.student(RECIPE.model.layers)
    ours, theirs = student.network, teacher.network
    copies = [
        (ours.text_pooler, theirs.text_pooler),
        (ours.image_pooler, theirs.image_pooler),
        (ours.rank_output, theirs.rank_output),
    ]
    for copied in facts["student_init_from_teacher"]["layers_equal_teacher"]:
        stream, new, old = re.fullmatch(r"(text|image)(\d)<-(\d)", copied).groups()
        copies.append((getattr(ours, f"{stream}_layers")[int(new)], getattr(theirs, f"{stream}_layers")[int(old)]))
    for own, copied in copies:
        for student_weight, teacher_weight in zip(own.parameters(), copied.parameters(), strict=True):
            yield Comparison(name, "a student's first weights", student_weight, teacher_weight, bound=0)
    groups = {
        parameter: group
        for group in make_optimizer(student, RECIPE.optimizer).param_groups
        for parameter in group["params"]
    }
    settings = {
        key: torch.tensor(values[:2]) for key, values in facts["optimizer_lr_wd_trainable"].items() if values[2]
    }
    official, _ = to_network(settings)
    trained = {key: parameter for key, parameter in ours.named_parameters() if parameter.requires_grad}
    assert groups.keys() == set(trained.values())
    assert trained.keys() == official.keys()
    for key, parameter in trained.items():
        group, (rate, decay) = groups[parameter], official[key]
        yield Comparison(name, "learning rates", torch.tensor(RECIPE.optimizer.lr * group["lr_factor"]), rate)
        yield Comparison(name, "weight decays", torch.tensor(group["decay"]), decay)


def training_step(name: str = "dcd_step_a") -> Iterator[Comparison]:
    """One step in training mode without dropout, and validation: scores, hardest negatives, losses, gradients."""
    facts, tensors = fixture_json(name), load_file(FIXTURES / f"{name}.safetensors")
    teacher, saved = (
        load_meter(f"{name}_teacher"),
        load(f"{name}_student", image_size=24, **{"text.num_attention_heads": 2}),
    )
    student = teacher.student(RECIPE.model.layers)
    student.network.load_state_dict(saved.network.state_dict())
    ids, mask = tensors["in.text_ids"], tensors["in.text_masks"]
    batch = ImageBatch(tensors["in.pixel_values"]), TextBatch(ids.flatten(0, 1), mask.flatten(0, 1))
    num_images, num_texts = ids.shape[:2]
    every_pair = torch.arange(num_images).repeat_interleave(num_texts), torch.arange(num_images * num_texts)
    with torch.no_grad():
        teacher_BK, student_BK = (
            scorer(*batch, *every_pair).view(num_images, num_texts) for scorer in (teacher, saved)
        )
    yield Comparison(f"{name}_student", "pair scores", student_BK, tensors["out.eval_student_score_all"])
    yield Comparison(f"{name}_student", "pair scores", student_BK[:, 0], tensors["out.eval_student_score_positive"])
    yield Comparison(
        f"{name}_student",
        "validation loss",
        lists.ground_truth(student_BK, "softmax"),
        numbers(facts["validation_loss"]),
    )
    chosen_BN, teacher_BN = weights.select_as_official(teacher_BK, facts["hard_negative"])
    yield Comparison(name, "the teacher's pair scores", teacher_BK, tensors["out.teacher_score_all"])
    yield Comparison(name, "the teacher's pair scores", teacher_BN, tensors["out.teacher_score_selected"])
    yield Comparison(name, "hardest negatives", chosen_BN, tensors["out.selected"], bound=0)
    outputs: dict[str, Tensor] = {}
    student.network.rank_output.register_forward_pre_hook(lambda _, inputs: outputs.update(pooled=inputs[0]))
    for module in student.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    image_ix_B = torch.arange(num_images)
    text_ix_BN = chosen_BN + num_texts * image_ix_B[:, None]
    student_BN = student(*batch, image_ix_B.repeat_interleave(chosen_BN.shape[1]), text_ix_BN.flatten()).view_as(
        chosen_BN
    )
    yield Comparison(name, "pair scores in training", student_BN, tensors["out.student_score"])
    yield Comparison(name, "pooled features", outputs["pooled"], tensors["out.student_cls_feats"])
    parts = dcd_official(student_BN, teacher_BN, alpha=facts["alpha"], temperature=facts["T"])
    yield from _losses(name, parts, facts)
    parts.total.backward()
    yield from _gradients(
        name, {key: parameter.grad for key, parameter in student.network.named_parameters() if parameter.requires_grad}
    )


def _gradients(name: str, own: dict[str, Tensor]) -> Iterator[Comparison]:
    """Some complete gradients, and the norms of all."""
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    gradients, _ = to_network(
        {key.removeprefix("grad."): tensor for key, tensor in tensors.items() if key.startswith("grad.")}
    )
    for key, gradient in gradients.items():
        yield Comparison(name, "gradients", own[key], gradient)
    norms, _ = to_network({key: torch.tensor(norm) for key, norm in fixture_json(name)["grad_norms"].items()})
    assert own.keys() == norms.keys()
    for key in norms:
        # A key's bias adds the same value to all scores of a query. Its gradient is only rounding, small beside that of
        # the key's weight.
        together = [key, f"{key.removesuffix('bias')}weight"] if key.endswith("key.bias") else [key]
        ours, official = (
            torch.stack([own[part].norm() for part in together]),
            torch.stack([norms[part] for part in together]),
        )
        yield Comparison(name, "gradient norms", ours, official)


def _losses(name: str, parts: lists.Parts, official: dict[str, object]) -> Iterator[Comparison]:
    for ours, part in zip(parts, PARTS, strict=True):
        yield Comparison(name, "losses", ours, numbers(official[part]))


def golden_losses(name: str = "dcd_golden_a") -> Iterator[Comparison]:
    """Values and gradients of the loss, including NaN, and the selected negatives."""
    facts = fixture_json(name)
    for case in facts["loss_cases"]:
        yield from _golden_case(name, "", dcd_official, case, case["distillation_loss"])
        yield from _golden_case(name, "the other loss's ", wsl_official, case, case["WSLDistiller"])
    for case in facts["selection_cases"]:
        columns_BN, teacher_BN = weights.select_as_official(numbers(case["teacher_scores"]), 7)
        student_BN = numbers(case["student_scores_all"]).gather(1, columns_BN)
        yield Comparison(name, "hardest negatives", columns_BN, torch.tensor(case["selected_for_student"]), bound=0)
        yield Comparison(name, "hardest negatives", teacher_BN, numbers(case["teacher_scores_given_to_loss"]), bound=0)
        yield Comparison(name, "hardest negatives", student_BN, numbers(case["student_scores_given_to_loss"]), bound=0)
        yield from _losses(name, dcd_official(student_BN, teacher_BN, alpha=0.2), case)
    case = facts["without_teacher"]
    nll = lists.ground_truth(numbers(case["student_scores"]), "softmax")
    yield from _losses(name, lists.Parts(nll, nll.new_zeros(()), nll), case)


def _golden_case(
    name: str, whose: str, loss: Callable[..., lists.Parts], case: dict[str, Any], official: dict[str, Any]
) -> Iterator[Comparison]:
    student_BN = numbers(case["student_scores"]).requires_grad_()
    parts = loss(student_BN, numbers(case["teacher_scores"]), alpha=case["alpha"], temperature=case["T"])
    precise = [numbers(case[f"{who}_scores"], torch.float64) for who in ("student", "teacher")]
    in_float64 = loss(*precise, alpha=case["alpha"], temperature=case["T"])
    for ours, exact, part in zip(parts, in_float64, PARTS, strict=True):
        yield Comparison(name, f"{whose}losses", ours, numbers(official[part]))
        (gradient_BN,) = torch.autograd.grad(ours, student_BN, retain_graph=True)
        yield Comparison(name, f"{whose}gradients", gradient_BN, numbers(official[f"grad_{part}"]))
        # The official code rounds the terms of the NLL to float32 on their way.
        yield Comparison(
            name, f"{whose}losses in float64", exact, numbers(official["float64"][part], torch.float64), bound=1e-7
        )


OPTIMIZER = fixture_json("optim_a")


class Parameters(nn.Module):
    """The parameters of `optim_a`, with those that have the fusion's learning rate in a group of their own."""

    def __init__(self) -> None:
        super().__init__()
        first = OPTIMIZER["steps"][2]["lr"]
        self.names = sorted(OPTIMIZER["initial"], key=lambda name: first[name])
        values = {name: nn.Parameter(torch.tensor(OPTIMIZER["initial"][name])) for name in self.names}
        self.head = nn.ParameterList([values[name] for name in self.names if "cross_modal" not in name])
        self.fusion = nn.ParameterList([values[name] for name in self.names if "cross_modal" in name])


def optimizer_steps(name: str = "optim_a") -> Iterator[Comparison]:
    """Learning rates, and parameters after each step, driven by the official gradients."""
    model, settings = Parameters(), OPTIMIZER["config"]
    config = OptimizerConfig(
        lr=0.01, weight_decay=settings["wd"], warmup_share=settings["warmup"], lr_factors={"fusion": 5.0}
    )
    optimizer = make_optimizer(model, config)
    factors = {parameter: group["lr_factor"] for group in optimizer.param_groups for parameter in group["params"]}
    parameters = dict(zip(model.names, [*model.head, *model.fusion], strict=True))
    for step, official in enumerate(OPTIMIZER["steps"]):
        rate = config.lr * learning_rate_factor(step, settings["max_steps"], config)
        set_rates(optimizer, rate, step + 1)
        for key, parameter in parameters.items():
            parameter.grad = torch.tensor(official["grad"][key])
        optimizer.step()
        for key, parameter in parameters.items():
            yield Comparison(
                name, "learning rates", torch.tensor(rate * factors[parameter]), torch.tensor(official["lr"][key])
            )
            yield Comparison(name, "optimizer steps", parameter.detach().clone(), torch.tensor(official["after"][key]))


COMPARISONS: dict[str, Callable[[], Iterator[Comparison]]] = {
    "dcd_step_a": lambda: itertools.chain(students(), training_step()),
    "dcd_golden_a": golden_losses,
    "optim_a": optimizer_steps,
}
