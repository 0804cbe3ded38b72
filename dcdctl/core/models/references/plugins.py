"""What a model family is, and the families of other packages, by entry points of the group `dcdctl.models`.

The name of an entry point is the `model_type` in config.json. Its object is a pair: a `Kind`, and a function
`load(ref, overrides, saved)` that returns a `FusionScorer`, a `LateInteraction` or a `DualEncoder`, where `saved` is
dcdctl.json, None where there is no such file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal

from dcdctl.core.errors import ModelError
from dcdctl.core.models import families
from dcdctl.core.models.overrides import OF_METER, OF_TEXTS, check_taken
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references import hub

if TYPE_CHECKING:  # torch takes a second
    from dcdctl.core.models.late import Model

GROUP = "dcdctl.models"
Kind = Literal["fusion", "dual", "late", "query"]
Loader = Callable[[str, Table, Table | None], "Model"]


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
    takes: Sequence[str] = OF_TEXTS
    """The settings of `overrides` that change how its models are loaded."""
    package: str = ""
    """The other package, and its function that loads a model."""
    loader: Loader | None = None

    def load(self, ref: str, overrides: Table, saved: Table | None) -> Model:
        """The model of a folder or Hub id; `saved` is dcdctl.json, None where there is no such file. ModelError for a
        setting that the family does not take."""
        check_taken(overrides, self.takes, ref)
        load: Loader = self.loader or importlib.import_module(f"{families.__name__}.{self.file}").load
        return load(ref, overrides, saved)


def find(model_type: str) -> Family | None:
    """The family of another package; None if no package brings it. ModelError, which names the package, for one that
    cannot be imported."""
    # Of several packages that bring it, the first that Python finds.
    point = next((point for point in entry_points(group=GROUP) if point.name == model_type), None)
    if point is None:
        return None
    package = point.dist.name if point.dist is not None else point.value
    try:
        kind, loader = point.load()
    # The import of another package may fail in any way.
    except Exception as error:
        raise ModelError(
            f"the package {package} brings {model_type}, but {point.value} cannot be used ({error!r})",
            hint=f"update or remove {package}",
        ) from error
    return Family(kind, takes=OF_METER, package=package, loader=loader)
