"""What a model family is, and the families of other packages, by entry points of the group `dcdctl.models`.

The name of an entry point is the `model_type` in config.json. Its object is a pair: a `Kind`, and a function
`load(ref, overrides, saved)` that returns a `FusionScorer` or a `DualEncoder`, where `saved` is dcdctl.json, None where
there is no such file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, get_args

from dcdctl.core.errors import ModelError
from dcdctl.core.models import families
from dcdctl.core.models.references import hub

if TYPE_CHECKING:  # torch takes a second
    from dcdctl.core.models.dual import Model

GROUP = "dcdctl.models"
Kind = Literal["fusion", "dual", "late", "query"]
Loader = Callable[[str, Mapping[str, Any], Mapping[str, Any] | None], "Model"]


@dataclass(frozen=True)
class Family:
    """A model family: models of one architecture, loaded by one file of dcdctl, or by another package."""

    kind: Kind
    file: str = ""
    """A file of `families`, imported when a model of the family is loaded: the classes of transformers take seconds to
    import. Empty for a family of another package."""
    extra: str = ""
    """Optional extra of dcdctl that has its library; empty if transformers is enough."""
    module: str = ""
    """The module of that library."""
    weights: Callable[[Sequence[str]], list[str]] = hub.weights_among
    """Which files of a Hub repository hold its weights."""
    reads_modules: bool = False
    """Whether its library reads the whole folder of several modules; others read the folder of the first network."""
    takes_prompt: bool = False
    """Whether it takes the settings of a cross-encoder, `overrides.OF_CROSS_ENCODERS`."""
    package: str = ""
    """The other package, and its function that loads a model."""
    loader: Loader | None = None

    def load(self, ref: str, overrides: Mapping[str, Any], saved: Mapping[str, Any] | None) -> Model:
        """The model of a folder or Hub id; `saved` is dcdctl.json, None where there is no such file.

        ModelError for a model of another kind than its package declares.
        """
        load: Loader = self.loader or importlib.import_module(f"{families.__name__}.{self.file}").load
        model = load(ref, overrides, saved)
        # A query encoder is a dual encoder or a late-interaction model, without images.
        if getattr(model, "kind", None) != self.kind != "query":
            problem = (
                f"the package {self.package} loads {ref} as {getattr(model, 'kind', type(model).__name__)}, and "
                f"declares {self.kind}"
            )
            raise ModelError(problem, hint=f"report it to the authors of {self.package}")
        return model


def find(model_type: str) -> Family | None:
    """The family of another package; None if no package brings it. ModelError, which names the package, for one that
    cannot be used."""
    points = [point for point in entry_points(group=GROUP) if point.name == model_type]
    if not points:
        return None
    if len(points) > 1:
        raise ModelError(
            f"several packages bring {model_type}: {', '.join(sorted(map(_package, points)))}",
            hint="remove all but one",
        )
    (point,) = points
    hint = f"update or remove {_package(point)}"
    try:
        family = point.load()
    # The import of another package may fail in any way.
    except Exception as error:
        problem = (
            f"the package {_package(point)} brings {model_type}, but {point.value} cannot be imported "
            f"({type(error).__name__}: {error})"
        )
        raise ModelError(problem, hint=hint) from error
    if not (isinstance(family, tuple) and len(family) == 2 and family[0] in get_args(Kind) and callable(family[1])):
        problem = (
            f"the package {_package(point)} brings {model_type}, but {point.value} is {family!r}, expected a "
            "kind and a function"
        )
        raise ModelError(problem, hint=hint)
    return Family(family[0], package=_package(point), loader=family[1])


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
