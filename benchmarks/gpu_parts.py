"""Parts of benchmarks/gpu.py that train nothing: scores, memory, MaxSim, search, evaluation and speed-up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from gpu_machine import NAMES, Machine, Row, Work, compared, relative, scoring, with_peak
from maxsim import made

import dcdctl
from dcdctl.core import devices, models
from dcdctl.core.bench import BenchConfig
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.models.networks.maxsim import all_maxsims
from dcdctl.core.teacher.make import TOLERANCES

MEMORY_SHARE = 0.25
"""Share of the GPU's memory that the part `memory` may use."""
SCORERS = ("vilt", "meter", "clip", "late")
VLM_LIMITS = {"float32": 1e-3, "bfloat16": 0.25}
"""For scores by a shared prefix; bfloat16 as in `shared_prefix.TOLERANCES`."""
TOKEN_LIMIT = {"float32": 2e-3}
"""For scores by stored tokens, which are float16."""


def random_pairs(corpus: Corpus, count: int) -> tuple[Any, Any]:
    """Images and captions of random pairs."""
    rng = np.random.default_rng(0)
    return rng.integers(0, corpus.num_images, count), rng.integers(0, corpus.num_captions, count)


def parity(machine: Machine) -> Iterator[Row]:
    """The scores of random pairs."""
    corpus, count = Corpus.open(machine.data, "train"), machine.size.pairs
    for name in SCORERS:
        run = scoring(models.load_scorer(machine.model(name)), corpus, *random_pairs(corpus, count))
        yield from compared(machine, Work(model=name, what="score_pairs", run=run, count=count))


def vlm(machine: Machine) -> Iterator[Row]:
    """Captions that share the computation of their image, against the plain way of the library."""
    corpus, scorer = Corpus.open(machine.data, "train"), models.load_scorer(machine.model("vlm"))
    num_images, num_captions = machine.size.vlm_pairs
    image_P, text_P = np.repeat(np.arange(num_images), num_captions), np.tile(np.arange(num_captions), num_images)
    plain_pairs = list(zip(corpus.images(image_P.tolist()), [corpus.captions[text] for text in text_P], strict=True))

    def plain(compute: Compute) -> Any:
        with compute.forward_pass():
            size, encoder = scorer.pairs_per_batch, scorer.to(compute.device)
            pairs = [encoder._pair(*pair) for pair in plain_pairs]
            scores = [encoder._predict(pairs[start : start + size]) for start in range(0, len(pairs), size)]
        return torch.cat(scores).numpy()

    expected = plain(Compute())
    ways = {"CrossEncoder.predict": plain, "one prefix per image": scoring(scorer, corpus, image_P, text_P)}
    for what, run in ways.items():
        reference = "CrossEncoder.predict in fp32", lambda _: expected
        work = Work(model="vlm", what=what, run=run, count=len(image_P), limits=VLM_LIMITS, reference=reference)
        yield from compared(machine, work)
    # A scorer that finds other scores by a prefix warns, and takes the plain way.
    is_plain = float(scorer._shared is None)
    yield Row(model="vlm", what="whether the plain way was taken (1) or the prefix shared (0)", difference=is_plain)


def maxsim(machine: Machine) -> Iterator[Row]:
    """MaxSim of all images with all texts and its gradients, and a search of a late-interaction index."""
    size = machine.size
    inputs = cache(partial(made, size.maxsim))
    for device in (devices.CPU, machine.device):
        inputs(device)

    def with_gradients(compute: Compute) -> Any:
        *sides, mask = inputs(compute.device)
        sides = [side.detach().requires_grad_() for side in sides]
        scores = all_maxsims(sides[0], None, sides[1], mask)
        (scores * scores.detach()).sum().backward()
        return np.concatenate([part.detach().cpu().numpy().ravel() for part in (scores, *(s.grad for s in sides))])

    num_images, _, num_texts, *_ = map(int, size.maxsim.split("x"))
    # MaxSim is float32 under autocast too.
    common: dict[str, Any] = {"count": num_images * num_texts, "precisions": ("float32",)}
    what = f"all_maxsims and its gradients, {size.maxsim}"
    yield from compared(machine, Work(model="late", what=what, run=with_gradients, **common))
    texts, searchers = Corpus.open(machine.data, "test").captions[: size.queries], {}
    for device in {devices.CPU, machine.device}:
        where = {"out": machine.out / "index" / device.type, "split": "test", "device": str(device)}
        index = dcdctl.Index.build(machine.model("late"), machine.data, **where)
        searchers[device] = dcdctl.Searcher(index, device=str(device))

    def search(compute: Compute) -> Any:
        answers = [searchers[compute.device].search(text) for text in texts]
        return np.array([[hit.score for hit in answer] for answer in answers])

    common |= {"count": len(texts), "unit": "queries/s", "limits": TOKEN_LIMIT}
    yield from compared(machine, Work(model="late", what="search of an index", run=search, **common))


def memory(machine: Machine) -> Iterator[Row]:
    """A batch that is too large for the memory is halved, and the scores stay the same."""
    corpus = Corpus.open(machine.data, "train")
    pairs = random_pairs(corpus, 8 * max(machine.size.batch_sizes))
    run = scoring(models.load_scorer(machine.model("vilt")), corpus, *pairs)
    small, whole = (machine.compute(batch_size=size) for size in (min(machine.size.batch_sizes), len(pairs[0])))
    expected, small_mib = with_peak(machine, partial(run, small))
    # The memory of a CPU cannot be limited here, so only a GPU halves the batch.
    with limited_memory(machine):
        found, whole_mib = with_peak(machine, partial(run, whole))
    what = f"{len(pairs[0]):,} pairs as one batch{', halved until they fit' if machine.is_gpu else ''}"
    yield Row(
        model="vilt", what=f"{what}, against batches of {small.batch_size}", difference=relative(found, expected),
        limit=TOLERANCES["float32"], peak_mib=whole_mib, note=f"{small_mib:,.0f} MiB in the small batches",
    )  # fmt: skip


@contextmanager
def limited_memory(machine: Machine) -> Iterator[None]:
    """A share of the memory of a GPU; all of it on a CPU."""
    if machine.is_gpu:
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE, machine.device)
    try:
        yield
    finally:
        if machine.is_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, machine.device)


def evaluate(machine: Machine) -> Iterator[Row]:
    """Seconds of an evaluation."""
    for name in SCORERS:
        for precision in NAMES.values():
            evaluated = partial(dcdctl.evaluate, machine.model(name), machine.data, precision=precision)
            seconds, found = devices.timed(partial(evaluated, device=str(machine.device)), machine.device)
            note = f"RSUM {found.rsum:.1f}"
            yield Row(model=name, what=f"eval, {precision}", value=seconds, unit="s", note=note)


def bench(machine: Machine) -> Iterator[Row]:
    """The speed-up per query that `dcdctl bench` reports."""
    toy = {"num_images": 8, "batch_size": 8, "batch_sizes": (8,), "budget_s": 0.05}
    toy |= {"gallery_sizes": (10,), "reference_gallery": 10}
    config = BenchConfig(is_onnx_timed=False, **(toy if machine.size.is_toy else {}))
    pair = machine.model("clip"), machine.model("vilt")
    for speed_up in dcdctl.bench(*pair, machine.data, config=config, device=str(machine.device)).speed_ups:
        what = f"speed-up against vilt: {speed_up.label}"
        yield Row(model="clip", what=what, value=speed_up.ratio, unit="times")
