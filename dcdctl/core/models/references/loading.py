"""Other libraries read the files of a model: what they raise becomes a ModelError, and what they print is left out."""

from __future__ import annotations

import contextlib
import logging as stdlib_logging
import warnings
from collections.abc import Iterator

from safetensors import SafetensorError
from transformers.utils import logging

from dcdctl.core.errors import DcdError, ModelError, as_user_error, first_line, is_memory_short
from dcdctl.core.models.references import folders, hub
from dcdctl.core.models.references.config_sizes import check_sizes

FOLDER_HINT = "give a folder that holds config.json, model.safetensors, tokenizer and preprocessor_config.json"


@contextlib.contextmanager
def hub_errors(ref: str, *, hint: str, use: str = "") -> Iterator[None]:
    """Turn the errors of libraries for missing or broken files, or an unreachable Hub (`hub.reading`), into a
    ModelError; others pass."""
    path = folders.path_of(ref)
    is_local = path.exists()
    try:
        check_sizes(path)
        with silence_transformers() if is_local else hub.reading(ref, use):
            yield
    except (DcdError, ImportError):  # not about the files; `needing_timm` and `load_tokenizer` name a missing package
        raise
    # transformers raises OSError for missing files, and also where the Hub is unreachable. A setting that it does not
    # know is a KeyError, TypeError or AttributeError, and weights of other shapes are a RuntimeError. For what it
    # cannot read, tokenizers raises a plain Exception, so no list of types is complete.
    except Exception as error:
        is_named = isinstance(error, PermissionError) or is_memory_short(error)
        if is_named and (refusal := as_user_error(error, path, kind=ModelError)) is not None:
            raise refusal from error
        is_clear = isinstance(error, OSError | ValueError | SafetensorError)
        reason = first_line(error) if is_clear else f"{type(error).__name__}: {first_line(error)}"
        kind = "" if is_local else " (no such file or folder here, so it was looked up as a Hugging Face Hub id)"
        raise ModelError(f"cannot load {ref}{kind}: {reason}", hint=hint) from error


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Without the progress bar of transformers for weights and its list of unused entries.

    Local files need no bar, and dcdctl reports missing entries itself. Downloads keep their bar.
    """
    had_bar, handlers = logging.is_progress_bar_enabled(), list(logging.get_logger("transformers").handlers)
    levels = [handler.level for handler in handlers]
    logging.disable_progress_bar()
    # The level of a logger would do as well, but each change of it goes through all loggers of the process, which are
    # thousands.
    for handler in handlers:
        handler.setLevel(stdlib_logging.ERROR)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
        if had_bar:
            logging.enable_progress_bar()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without warnings and with log messages of errors alone: what other libraries say of their progress, and of what
    dcdctl sets itself, is for their developers."""
    # Without a handler, the functions of `logging` set up one of the root logger.
    silent, before = stdlib_logging.NullHandler(), stdlib_logging.root.manager.disable
    stdlib_logging.root.addHandler(silent)
    stdlib_logging.disable(stdlib_logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        stdlib_logging.disable(before)
        stdlib_logging.root.removeHandler(silent)
