"""Errors that the user can fix. The command line shows each as one line, without a traceback.

DcdError
├── InputError    a file, folder or row that the user gave: a missing image, a caption that is not text, a full disk
├── SourceError   a download: refused, interrupted, or another file than expected
├── ConfigError   a recipe or a `--set`: an unknown key, a value out of range
├── CorpusError   a prepared corpus: missing, unfinished, or without the requested split
├── ModelError    a model reference: not found, of another kind, or a checkpoint with missing keys
├── StaleError    two things that do not belong together, such as a cache and another corpus, or a damaged file of ours
└── MissingError  a score, a run or a package that is required and not there

A message says what was found and what was expected; `hint` gives the next step.
"""

from __future__ import annotations

import importlib.util
import sys


class DcdError(Exception):
    """Base of all errors that the command line shows as one line; `hint` is the next step, empty for none."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}; {self.hint}" if self.hint else message


class InputError(DcdError):
    """A file, folder or row that the user gave cannot be used."""


class SourceError(DcdError):
    """A download failed, or gave another file than expected."""


class ConfigError(DcdError):
    """A recipe or an override is wrong."""


class CorpusError(DcdError):
    """A prepared corpus cannot be read as requested."""


class ModelError(DcdError):
    """A model reference cannot be loaded as requested."""


class StaleError(DcdError):
    """Two files do not belong together, or a file was changed after it was written."""


class MissingError(DcdError):
    """Something required is missing."""


def require_extra(extra: str, *modules: str, needed_by: str, or_else: str = "") -> None:
    """MissingError if a package of an optional extra is not installed; it names `needed_by`, the package and the command to run.

    `modules` are import names. `or_else` is what the user may do instead.
    """
    if missing := [module.replace("_", "-") for module in modules if not _is_installed(module)]:
        reason = f"{needed_by} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed"
        raise MissingError(reason, hint=install_command(extra) + (f", or {or_else}" if or_else else ""))


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra."""
    return f"pip install 'dcdctl[{extra}]'"


def _is_installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    # Before find_spec, which raises ValueError for a loaded module without a spec.
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
