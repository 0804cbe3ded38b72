"""One's own scorer: a Python function, or an object with `score`, from images and captions to scores. It is code of the
user, and it runs.

`module:function` takes a list of P PIL images (RGB) and a list of P captions, and returns P numbers, higher is better.
`module:Class` makes an object with such a `score`, which may have `version`, `fingerprint` and `pairs_per_batch`.
Pairs of one image follow each other as one object, all in one call unless they exceed `pairs_per_batch`.

Shape letters: P pairs.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dcdctl.core import files
from dcdctl.core.config import MOST
from dcdctl.core.errors import ModelError
from dcdctl.core.models.families.raw_pairs import RawPairScorer, RawPreprocess
from dcdctl.core.models.overrides import check_taken
from dcdctl.core.models.protocols import Table

FIND = "run the command in its folder, or install its package"
EXAMPLE = "def score(images, texts): return one number per pair, higher is better"


class PythonScorer(RawPairScorer):
    """Scores pairs with a callable of the user."""

    def __init__(self, ref: str, target: Any, declared: Table, max_text_len: int = 0) -> None:
        """`declared` is what decides the scores: digests of source files, and what the object says of itself."""
        super().__init__(nn.Module(), RawPreprocess(max_text_len=max_text_len))
        self.ref, self.call, self.declared = ref, getattr(target, "score", target), dict(declared)
        self.noun = f"the function {ref}"
        # Not a parameter of the call, since only the author knows what fits the memory.
        self.pairs_per_batch = getattr(target, "pairs_per_batch", type(self).pairs_per_batch)
        if not isinstance(self.pairs_per_batch, int) or not 0 < self.pairs_per_batch <= MOST:
            raise ModelError(
                f"{ref} has pairs_per_batch {self.pairs_per_batch!r:.40}, expected a whole number from 1 to {MOST}",
                hint="correct it, or leave it out",
            )

    @property
    def settings(self) -> Table:
        """All of the code that the digest covers. What the code reads at run time is not known here."""
        return {"kind": "fusion", "python": self.declared}

    def _score(self, images: list[Image.Image], texts: list[str], image_ix: list[int], text_ix: list[int]) -> Tensor:
        pairs = [images[image] for image in image_ix], [texts[text] for text in text_ix]
        try:
            with _ends_nothing(self.ref):
                result = self.call(*pairs)
        except Exception as error:
            # The traceback of the user's code is what the user needs; it stays as it is.
            error.add_note(f"{self.ref} was called with {len(text_ix)} pairs; the first caption is {pairs[1][0]!r}")
            raise
        try:
            scores = torch.as_tensor(result, dtype=torch.float32, device="cpu").detach()
        except (TypeError, ValueError, RuntimeError):
            scores = torch.empty(0)
        if scores.shape != (len(text_ix),) or not scores.isfinite().all():
            returned = " ".join(str(result).split())[:100]
            raise ModelError(
                f"{self.ref} returned {returned} for captions such as {pairs[1][0]!r}, expected {len(text_ix)} finite "
                "numbers, one for each pair",
                hint=EXAMPLE,
            )
        return scores


def check(ref: str) -> None:
    """ModelError if the module of module:function is not there; runs no code of it."""
    # Modules of the current folder can be imported, as with `python -m`; a console script does not see them.
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    # The module may be younger than Python's list of the folder's files.
    importlib.invalidate_caches()
    top = ref.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise ModelError(f"there is no Python module {top} for {ref}", hint=FIND)


def load(ref: str, table: Table) -> PythonScorer:
    """The scorer of module:function; `table` are the user's overrides. Imports the module, which runs its code.

    ModelError if there is no such module, or if the name is no scorer.
    """
    check_taken(table, ("max_text_len",), ref)
    check(ref)
    module_name, _, name = ref.partition(":")
    try:
        with _ends_nothing(ref):
            module: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(str(error.name)):
            raise  # an import of the user's module, whose traceback shows it
        raise ModelError(f"there is no Python module {module_name}", hint=FIND) from error
    target = getattr(module, name, None)
    scorer = _make(ref, target) if inspect.isclass(target) else target
    if not callable(getattr(scorer, "score", scorer)):
        raise ModelError(f"{ref} is no function or class of a scorer", hint=EXAMPLE)
    return PythonScorer(ref, scorer, _declared(ref, module, scorer), table.get("max_text_len") or 0)


def _make(ref: str, target: type) -> Any:
    """An object of a class of the user; ModelError for a class that is made with arguments."""
    # Some classes of C have no signature; their own error is as good.
    with suppress(ValueError):
        try:
            inspect.signature(target).bind()
        except TypeError as error:
            raise ModelError(f"the class {ref} cannot be made without arguments: {error}", hint=EXAMPLE) from error
    with _ends_nothing(ref):
        return target()


@contextmanager
def _ends_nothing(ref: str) -> Iterator[None]:
    """ModelError where code of the user ends the program: the command would end without a word, perhaps with the exit
    code of a success."""
    try:
        yield
    except SystemExit as error:
        raise ModelError(
            f"the code of {ref} ends the program (exit code {error.code})", hint="remove the exit"
        ) from error


def _declared(ref: str, module: Any, scorer: Any) -> Table:
    """What the digest of the scorer covers: the name, the source files of its module and class, and what it
    declares."""
    said = {name: str(getattr(scorer, name)) for name in ("name", "version", "fingerprint") if hasattr(scorer, name)}
    # A function or a class may come from another file than the module that names it.
    modules = {module, inspect.getmodule(scorer if inspect.isfunction(scorer) else type(scorer))}
    paths = {Path(each.__file__) for each in modules if getattr(each, "__file__", None)}
    sources = sorted(files.sha256_of(path) for path in paths if path.suffix == ".py")
    if not sources and "fingerprint" not in said:
        raise ModelError(f"{ref} has no source file to tell versions apart", hint="give the object a `fingerprint`")
    return {"function": ref.partition(":")[2], "sources": sources, **said}
