"""Teachers for benchmarks/reliability.py, as Python functions: one that tells pairs apart, and hostile ones."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

Images, Texts = Sequence[Image.Image], Sequence[str]


def judge(images: Images, texts: Texts) -> list[float]:
    """Scores from -5 to 5 that depend on nothing but the pixels and the text, so that every image is a text's best."""
    return [_judge(image, text) for image, text in zip(images, texts, strict=True)]


def _judge(image: Image.Image, text: str) -> float:
    digest = hashlib.blake2b(image.tobytes() + text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32 * 10 - 5


def by_image(images: Images, texts: Texts) -> list[float]:
    """The same for every text."""
    return [_judge(image, "") for image in images]


def by_text(images: Images, texts: Texts) -> list[float]:
    """The same for every image."""
    return [_judge(Image.new("RGB", (1, 1)), text) for text in texts]


def inverted(images: Images, texts: Texts) -> list[float]:
    return [-score for score in judge(images, texts)]


def equal(images: Images, texts: Texts) -> list[float]:
    return [0.5] * len(texts)


def negative(images: Images, texts: Texts) -> list[float]:
    """Far below any threshold."""
    return [score - 1e6 for score in judge(images, texts)]


def one_best(images: Images, texts: Texts) -> list[float]:
    """One pair in many differs."""
    return [float(score > 4.9) for score in judge(images, texts)]


def huge(images: Images, texts: Texts) -> list[float]:
    """The largest float32 numbers of both signs: their differences, sums and squares are infinite."""
    return [math.copysign(3.4e38, score) for score in judge(images, texts)]


def large(images: Images, texts: Texts) -> list[float]:
    """Their squares are infinite."""
    return [score * 1e20 for score in judge(images, texts)]


def tiny(images: Images, texts: Texts) -> list[float]:
    """Below the smallest normal number."""
    return [score * 1e-42 for score in judge(images, texts)]


def integers(images: Images, texts: Texts) -> list[int]:
    return [round(score) for score in judge(images, texts)]


def booleans(images: Images, texts: Texts) -> list[bool]:
    return [score > 0 for score in judge(images, texts)]


def grad(images: Images, texts: Texts) -> torch.Tensor:
    """A tensor that still has its graph."""
    return torch.tensor(judge(images, texts), requires_grad=True) * 1.0


def doubles(images: Images, texts: Texts) -> np.ndarray[Any, Any]:
    return np.array(judge(images, texts), dtype=np.float64)


def reversed_view(images: Images, texts: Texts) -> np.ndarray[Any, Any]:
    """An array with a negative stride, which torch does not take."""
    return np.array(judge(images, texts), dtype=np.float32)[::-1]


def spoils_its_lists(images: list[Image.Image], texts: list[str]) -> list[float]:
    """Changes what it was given."""
    scores = judge(images, texts)
    for image in images:
        image.paste((0, 0, 0), (0, 0, *image.size))
    images.clear()
    texts.clear()
    return scores


def prints(images: Images, texts: Texts) -> list[float]:
    """Writes to both streams."""
    sys.stdout.write("x" * 1000 + "\n")
    sys.stderr.write("error: not mine\n")
    return judge(images, texts)


ACCEPTED: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(judge, by_image, by_text, inverted, equal, negative, one_best, huge, large, tiny, integers, booleans),
        *(grad, doubles, spoils_its_lists, prints),
    )
}
"""Teachers whose scores are numbers; a training may still refuse what it cannot learn from."""


def _some(value: Any, every: int = 7) -> Callable[[Images, Texts], list[Any]]:
    """A teacher that gives a value for one pair in some."""

    def score(images: Images, texts: Texts) -> list[Any]:
        return [value if int(abs(each) * 1e6) % every == 0 else each for each in judge(images, texts)]

    return score


def _all(make: Callable[[int], Any]) -> Callable[[Images, Texts], Any]:
    """A teacher that gives the same for as many pairs."""

    def score(images: Images, texts: Texts) -> Any:
        return make(len(texts))

    return score


def leaves(images: Images, texts: Texts) -> None:
    sys.exit(0)


REFUSED: dict[str, Callable[..., Any]] = {
    "all_nan": _all(lambda count: [math.nan] * count),
    "all_inf": _all(lambda count: [math.inf] * count),
    "all_negative_inf": _all(lambda count: [-math.inf] * count),
    "some_nan": _some(math.nan),
    "some_inf": _some(math.inf),
    "some_negative_inf": _some(-math.inf),
    "some_none": _some(None),
    "some_text": _some("0.5"),
    "too_large_for_float32": _some(1e300),
    "too_large_an_integer": _some(10**400),
    "complex_numbers": _some(1j),
    "one_nan": _some(math.nan, 97),
    "nothing": _all(lambda count: None),
    "an_empty_list": _all(lambda count: []),
    "one_too_few": _all(lambda count: [0.0] * (count - 1)),
    "one_too_many": _all(lambda count: [0.0] * (count + 1)),
    "a_column": _all(lambda count: [[0.0]] * count),
    "a_row": _all(lambda count: [[0.0] * count]),
    "a_square": _all(lambda count: np.zeros((count, count))),
    "a_number": _all(lambda count: 0.5),
    "a_text": _all(lambda count: "0.5"),
    "bytes_of_numbers": _all(lambda count: bytes(4 * count)),
    "a_table": _all(lambda count: {number: 0.0 for number in range(count)}),
    "a_generator": _all(lambda count: (0.0 for _ in range(count))),
    "words": _all(lambda count: ["high"] * count),
    "objects": _all(lambda count: np.array([object()] * count)),
    "a_sparse_tensor": _all(lambda count: torch.zeros(count, 2).to_sparse()),
    "tensors_of_two_types": _all(lambda count: [torch.zeros(2)] * count),
    "leaves": leaves,
    "reversed_view": reversed_view,
}
"""Teachers that must be named. The last one may be: torch takes no such array."""
globals().update(REFUSED)
