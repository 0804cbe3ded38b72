"""What can go wrong that the user can put right.

DcdError
├── InputError    a file or row the user gave: a missing image, a caption that is not text
├── SourceError   a download: refused, cut off, or another file than expected
├── ConfigError   a recipe or a `--set`: an unknown key, a value out of range
├── CorpusError   a prepared corpus: absent, unfinished, without the split asked for
├── ModelError    a model reference: not found, of another kind, a checkpoint with missing keys
├── StaleError    two things that do not belong together: a cache of another corpus or another teacher
└── MissingError  a score, a run, a package that is needed and not there

Every message says what was found and what was wanted; `hint` names the next step.
"""

from __future__ import annotations


class DcdError(Exception):
    """Base of all errors that the command line shows as one line; `hint` is the next step, or empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}; {self.hint}" if self.hint else message


class InputError(DcdError):
    """A file or a row the user gave cannot be used."""


class SourceError(DcdError):
    """A file from elsewhere cannot be had, or is not the one that was expected."""


class ConfigError(DcdError):
    """A recipe or an override is wrong."""


class CorpusError(DcdError):
    """A prepared corpus cannot be read as asked."""


class ModelError(DcdError):
    """A model reference cannot be loaded as asked."""


class StaleError(DcdError):
    """Two artefacts were not made for each other."""


class MissingError(DcdError):
    """Something needed is not there."""
