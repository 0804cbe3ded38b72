"""`dcdctl photos`: from a folder of photos to an index, by the commands of each step."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from dcdctl.cli import options
from dcdctl.cli.declare import path
from dcdctl.cli.distill import Distill
from dcdctl.cli.index import IndexOptions, NewIndex, index
from dcdctl.cli.options import argument
from dcdctl.cli.prepare import Prepare
from dcdctl.cli.training_options import Text, Vision
from dcdctl.cli.views.terminal import bar, show


def photos(
    images: Annotated[Path, argument("Folder of the photos.", "FOLDER")],
    captions: Annotated[Path, argument("CSV file with one caption per row: image,caption.", "CAPTIONS")],
    out: options.Out,
    vision: Vision = None,
    text: Text = None,
) -> None:
    """Make captioned photos searchable. It prepares, trains the recipe photos and indexes; without captions,
    `dcdctl index` takes a model that you have."""
    from dcdctl.cli.views.training import run_training
    from dcdctl.core import files
    from dcdctl.core.search import INDEX_FILE
    from dcdctl.core.training import check_new_model

    folder = path(out)
    data, run, made = folder / "data", folder / "run", folder / "index"
    # The same command again continues where it was killed.
    student = Distill("photos", data, run, features=folder / "features", vision=vision, text=text, resume=run.exists())
    request = student.request("distill")
    # What is not there is refused before anything is prepared.
    for place in (captions, images):
        files.check_exists(path(place))
    check_new_model(*request)
    Prepare(csv=captions, images=images, out=data).run(bar)
    run_training(*request, dry_run=False, json=False)
    if (made / INDEX_FILE).exists():
        # Finished by an earlier run: photos without captions may have come or gone since.
        # As on the command line: a change of an index has neither images nor a folder.
        change = NewIndex(made, None, None)  # type: ignore[arg-type]
        index(change, IndexOptions(add=images, remove_gone=True))
    else:
        index(NewIndex(run, images, made), IndexOptions())
    show(f"next: dcdctl serve {shlex.quote(str(made))}")
