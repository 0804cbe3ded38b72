"""Commands as forks of this process, which has imported dcdctl: a command then costs some 6 s of a processor less."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path
from typing import TextIO

import torch

ROOMS = ("data", "models", "scoring", "evaluation", "teacher", "training")


def import_all() -> None:
    """Import what the commands of a plan import, so that forks share it, and let each compute with one thread."""
    torch.set_num_threads(1)
    for room in ROOMS:
        package = importlib.import_module(f"dcdctl.core.{room}")
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    transformers = importlib.import_module("transformers")
    for name in ("AutoConfig", "AutoImageProcessor", "AutoModel", "AutoTokenizer", "BertModel", "TimmWrapperModel"):
        getattr(transformers, name)
    if importlib.util.find_spec("peft"):
        importlib.import_module("peft")
    importlib.import_module("dcdctl.cli.app")


def start(words: list[str], folder: Path, output: TextIO) -> int:
    """Start `dcdctl` with these words in a fork, in a folder and with its output in a file. Returns the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(folder)
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        sys.argv = ["dcdctl", *words]
        try:
            importlib.import_module("dcdctl.cli.app").main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # A fork ends here, without the cleanup of the process that it was made from.
        os._exit(code)
