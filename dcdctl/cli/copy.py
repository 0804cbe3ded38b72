"""`dcdctl copy`: copies finished artifacts to a URL, from a URL, or to another folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dcdctl.cli.options import Json, argument
from dcdctl.cli.views.terminal import bar, show, show_json

Source = Annotated[Path, argument("Corpus, cache, features, index, run or model: a folder, or its URL.", "SOURCE")]
Target = Annotated[Path, argument("New folder, or the URL of one: s3://BUCKET/NAME.", "TARGET")]


def copy(source: Source, target: Target, json: Json = False) -> None:
    """Copy a finished artifact to or from a URL. Each file is compared with its checksum, and a repeated command copies
    what is missing."""
    from dcdctl.core.integrity import copy as copy_artifact

    copied = copy_artifact(source, target, bar)
    if json:
        show_json(copied.to_json())
    else:
        show(f"{copied.num_copied:,} of {copied.num_files:,} files copied -> {copied.target}")
