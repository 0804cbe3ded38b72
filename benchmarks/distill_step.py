"""Time of one DCD optimization step with cached teacher scores, against the procedure of the released code.

    python benchmarks/distill_step.py [--captions 64] [--hard 7] [--repeats 1] [--threads 2] [--device cpu]

METER at full size with random weights, 384 px, float32, and its 3-layer student; one image per step. As released: the
teacher scores the captions online, each pair from its pixels and 40 padded tokens; the student then scores the positive
and the hardest negatives, and runs its frozen image encoder for each of these pairs. Cached: the teacher's scores are
given, and the image is encoded once or its stored features are read. Image, hard negatives, loss and optimizer are the
same in all variants. The cost of the cache itself is reported beside them, in seconds per image. Ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from scoring import PLAIN_BATCH, RELEASED_TEXT_LEN, factorized, meter, plain, processor

from dcdctl.core.devices import Compute
from dcdctl.core.models import CoAttentionScorer, ImageBatch, States, TextBatch
from dcdctl.core.training.loop import make_optimizer, set_rates
from dcdctl.core.training.losses import lists, weights
from dcdctl.core.training.recipe import OptimizerConfig

LAYERS = [0, 3, 5]
CACHE = "the cache, once for all epochs"


class Step:
    """One image with its captions, and the variants of an optimization step on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.teacher = meter(6).to(options.device).eval()
        self.image = torch.randn(1, 3, 384, 384, device=options.device)
        self.ids = torch.randint(5, 1000, (options.captions, options.text_len), device=options.device)
        self.num_hard = options.hard
        self.optimizers: dict[CoAttentionScorer, torch.optim.Optimizer] = {}
        self.scores = self.cache()
        self.features = self.encode()

    def student(self) -> CoAttentionScorer:
        """An untrained student, without dropout, so that the losses of the variants can be compared."""
        student = self.teacher.student(LAYERS).eval()
        self.optimizers[student] = make_optimizer(student, OptimizerConfig())
        set_rates(self.optimizers[student], 1e-4, update=1)
        return student

    @torch.inference_mode()
    def cache(self) -> Tensor:
        """The teacher's scores of all captions, factorized, as `cache-teacher` computes them once for all epochs."""
        return factorized(self.teacher, self.image, self.ids, Compute(device=self.image.device, batch_size=16)).to(
            self.ids.device
        )

    @torch.inference_mode()
    def encode(self) -> tuple[States, States]:
        """The frozen encoders' outputs for the image and the captions, which --features stores."""
        texts = self.teacher.encoders.text_features(TextBatch(self.ids, torch.ones_like(self.ids)))
        images = self.teacher.encoders.image_features(ImageBatch(self.image))
        return States(images.tokens.clone(), images.mask.clone()), States(texts.tokens.clone(), texts.mask.clone())

    def as_released(self, student: CoAttentionScorer) -> float:
        with torch.inference_mode():
            scores = plain(self.teacher, self.image, self.ids)
        columns = weights.select_hardest(scores.clone()[None], self.num_hard)
        ids = torch.nn.functional.pad(self.ids[columns[0]], (0, RELEASED_TEXT_LEN - self.ids.shape[1]), value=1)
        mask = torch.zeros_like(ids)
        mask[:, : self.ids.shape[1]] = 1
        logits = [
            student.score(self.image.expand(len(part), -1, -1, -1), part, mask[start : start + len(part)])
            for start, part in ((start, ids[start : start + PLAIN_BATCH]) for start in range(0, len(ids), PLAIN_BATCH))
        ]
        return self._update(student, torch.cat(logits), scores.clone(), columns)

    def cached(self, student: CoAttentionScorer, *, from_features: bool) -> float:
        columns = weights.select_hardest(self.scores[None], self.num_hard)
        hard_ids = self.ids[columns[0]]
        images: ImageBatch | States = ImageBatch(self.image)
        texts: TextBatch | States = TextBatch(hard_ids, torch.ones_like(hard_ids))
        if from_features:
            images, stored_texts = self.features
            texts = States(stored_texts.tokens[columns[0]], stored_texts.mask[columns[0]])
        text_ix = torch.arange(len(hard_ids), device=self.ids.device)
        logits = student(images, texts, torch.zeros_like(text_ix), text_ix)
        return self._update(student, logits, self.scores, columns)

    def _update(self, student: CoAttentionScorer, logits: Tensor, scores: Tensor, columns: Tensor) -> float:
        loss = lists.dcd(logits[None], scores[None].gather(1, columns), alpha=0.2, temperature=1.0)
        loss.backward()
        self.optimizers[student].step()
        return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--text-len", type=int, default=16, help="tokens per caption, including special tokens")
    parser.add_argument("--hard", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    step = Step(options)
    students = [step.student() for _ in range(3)]
    variants: dict[str, Callable[[], float]] = {
        "cached scores and features": lambda: step.cached(students[0], from_features=True),
        "cached scores": lambda: step.cached(students[1], from_features=False),
        "as released": lambda: step.as_released(students[2]),
        CACHE: lambda: float(step.cache()[0]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    losses: dict[str, float] = {}
    for _ in range(options.repeats):
        for name, work in variants.items():
            started = time.perf_counter()
            losses[name] = work()
            if options.device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
            sys.stdout.write(f"{name}: {seconds[name][-1]:.2f} s\n")
            sys.stdout.flush()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    cached = medians["cached scores"]
    report = {
        "machine": processor(),
        "torch": torch.__version__,
        **vars(options),
        "seconds_per_image": medians,
        "speed_up": medians["as released"] / cached,
        "speed_up_with_features": medians["as released"] / medians["cached scores and features"],
        "loss": {name: value for name, value in losses.items() if name != CACHE},
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
