"""Errors with hints, and errors for missing packages of optional extras."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import typer
from google.protobuf.message import DecodeError
from safetensors import SafetensorError

from dcdctl.core.errors import DcdError, Faults, InputError, ModelError, as_user_error, require_extra


def test_the_hint_follows_the_message():
    assert str(DcdError("no run", hint="make one")) == "no run; make one"
    assert str(DcdError("no run")) == "no run"


def test_faults_are_counted_by_kind_with_three_examples_and_none_is_no_error():
    faults = Faults("the scores do not fit")
    faults.add("rows of unknown images", [], 0)
    faults.check()
    faults.add("rows of unknown images", ["a", "b"], 1200)
    faults.add("scores that are not finite", ["x"], 1)
    faults.add("rows of unknown images", ["c", "d"], 34)
    message = (
        "the scores do not fit: 1,234 rows of unknown images (a; b; c), 1 scores that are not finite (x); "
        "nothing was stored; correct them and try again"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        faults.check()


def os_error(number: int, path: str | None = "a.json") -> OSError:
    return OSError(number, os.strerror(number), path)


FULL = "there is no room left for out/model; make room and try again"
TORCH = "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"


NO_LIBRARY = "there is too little memory to load the libraries of this command"
NO_THREAD = "no further thread can be started, for lack of memory or because of a limit"


class PanicException(BaseException):
    """What a library in Rust raises."""


def unloaded():
    """Errors of imports under a small `ulimit -v`, as libraries raised them."""
    plain = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    yield plain
    yield ImportError("Exception caught: std::bad_alloc")
    yield ImportError(
        "numpy cannot be imported.\nOriginal error was: libscipy.so: cannot allocate memory in static TLS"
    )
    wrapped = ModuleNotFoundError("Could not import module 'AutoImageProcessor'. Are its requirements defined?")
    wrapped.__cause__ = plain
    yield wrapped


def raised_by(function):
    with pytest.raises(RuntimeError) as caught:
        function()
    return caught.value


def threadless():
    yield RuntimeError("can't start new thread")
    yield pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable")
    yield PanicException("The global thread pool has not been initialized.: ThreadPoolBuildError { kind: IOError(")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (os_error(errno.ENOSPC, None), FULL),
        (os_error(errno.ENOSPC, "out/model.00000000-7.partial/x"), FULL),
        (os_error(errno.EDQUOT, None), FULL),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (pa.ArrowException("[Errno 28] Error writing bytes to file"), FULL),
        (OSError("I/O error (os error 28)"), FULL),
        (RuntimeError(TORCH), "out/model cannot be written, perhaps because the disk is full; make room .*"),
        (
            OSError("18544 requested and 16320 written"),
            "out/model cannot be written, perhaps because the disk is full; make room .*",
        ),
        (
            DecodeError("Error parsing message with type 'onnx.ModelProto': Wire format was corrupt"),
            "out/model cannot be written, perhaps because the disk is full; make room .*",
        ),
        (
            os_error(errno.EACCES),
            "a.json cannot be used: Permission denied; change its permissions, or those of the folders above it",
        ),
        (os_error(errno.ENOENT), "a.json cannot be used: No such file or directory; check the path"),
        (os_error(errno.ELOOP), "a.json cannot be used: Too many levels of symbolic links; mend the links"),
        (raised_by(Path("~no-such-user/a.json").expanduser), "a path begins with ~, .*; write the path without ~"),
        (os_error(errno.EMFILE), "a.json cannot be used: Too many open files; raise the limit .*"),
        (
            torch.OutOfMemoryError("Tried to allocate 2 GiB"),
            "the GPU has too little memory for this; .*--batch-size or --precision bf16; .* --accumulate N or "
            "--checkpoint-activations",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "the GPU has too little memory for this; .*--batch-size.*",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "there is too little memory for out/model; .*",
        ),
        (MemoryError(), "there is too little memory for out/model; .*"),
        *((error, f"{NO_LIBRARY}; raise the limit of `ulimit -v`, .*") for error in unloaded()),
        *((error, f"{NO_THREAD}; raise the limits of .*") for error in threadless()),
    ],
)
def test_what_a_user_can_put_right_is_one_line_with_a_next_step(error, message):
    found = as_user_error(error, Path("out/model"))
    assert re.fullmatch(message, str(found)), found
    assert "delete" not in str(found)
    assert isinstance(found, InputError)
    assert isinstance(as_user_error(error, Path("out/model"), kind=ModelError), ModelError)


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("x"),
        ValueError("[Errno 13] Permission denied"),
        AssertionError("No space left on device"),
        RuntimeError("shape mismatch"),
        RecursionError(),
        OSError("no number"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        os_error(errno.EBADF),
        os_error(errno.EACCES, None),
        typer.Exit(3),
        ImportError("cannot import name 'x' from 'y'"),
        ModuleNotFoundError("No module named 'torch'"),
        PanicException("index out of bounds"),
    ],
)
def test_a_bug_is_no_user_error(bug):
    assert as_user_error(bug) is None


def test_a_dangling_link_is_named_with_its_target(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    found = as_user_error(os_error(errno.ENOENT, str(tmp_path / "link")))
    assert str(found) == f"{tmp_path}/link is a link to nowhere, which does not exist; mend the link"


def test_the_check_for_packages_does_not_import_them():
    assert importlib.util.find_spec("this") is not None
    require_extra("serve", "this", "json", needed_by="serving")
    assert "this" not in sys.modules
