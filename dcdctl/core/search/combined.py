"""Queries of several parts: a text, an image, texts that are added, and texts that count against an image.

    score = sum of w * s(part) / sum of w  -  MINUS * mean of s(text) over the texts that count against

A text that is searched for or added has the weight 1, and an image `IMAGE_WEIGHT`. With a vector per image, s is a
product of unit vectors, so the sum is one vector, which is searched for; its cosine is shown. With token vectors, s is
the sum of the largest products divided by the lengths of the part's tokens, so that a long text or an image with many
tokens counts no more than a short text. Where these lengths are 1, as in all models of our own, s is the MaxSim divided
by the number of tokens.

Shape letters: P parts, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dcdctl.core.errors import ConfigError, InputError

IMAGE_WEIGHT = 0.5
"""Cosines of two images differ more than those of a text and an image, so that an image of weight 1 would decide the
order almost alone (docs/search.md has numbers)."""
MINUS = 0.5
"""At 1, half of the images that the query finds alone are gone."""
MAX_TEXTS = 8
"""Texts of a query. Each further one moves the mean less."""
DEPTH = 200
"""Minimum number of images, the best by the other parts, from which token vectors subtract; at least twice the
number of answers."""


@dataclass(frozen=True)
class CombinedQuery:
    """A query of several parts; ConfigError if there is nothing to find, InputError for texts that contradict each
    other."""

    text: str | None = None
    image: Path | Image.Image | None = None
    also: tuple[str, ...] = ()
    """Texts that are added."""
    without: tuple[str, ...] = ()
    """Texts that count against an image."""

    def __post_init__(self) -> None:
        if self.text is None and self.image is None:
            raise ConfigError("a query that only adds or excludes texts finds nothing", hint="add a text or an image")
        if (count := len(self.wanted) + len(self.without)) > MAX_TEXTS:
            raise InputError(f"the query has {count} texts, at most {MAX_TEXTS} are combined")
        wanted = {text.strip().lower() for text in self.wanted}
        if both := next((text for text in self.without if text.strip().lower() in wanted), None):
            raise InputError(f"{both[:100]!r} is both searched for and excluded", hint="leave one of them out")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The texts that count for an image."""
        return self.also if self.text is None else (self.text, *self.also)

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts, those that count against an image last."""
        return self.wanted + self.without


def question_of(
    text: str | None,
    image: Path | Image.Image | None = None,
    also: Sequence[str] = (),
    without: Sequence[str] = (),
) -> str | Path | Image.Image | CombinedQuery:
    """The query of these parts: the text or the image itself, if it is alone."""
    if not also and not without:
        if image is None and text is not None:
            return text
        if text is None and image is not None:
            return image
    return CombinedQuery(text, image, tuple(also), tuple(without))
