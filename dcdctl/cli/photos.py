"""`dcdctl photos`: from a folder of photos to an index."""

from __future__ import annotations

import shlex
from functools import partial

from dcdctl.cli.views.index import show_change, show_sync
from dcdctl.cli.views.terminal import bar, note, show
from dcdctl.core.photos import PhotosJob


def photos(job: PhotosJob) -> None:
    """Make photos searchable, without captions or with them. A pretrained model indexes them; captions, or queries and
    a teacher, train a model of yours first. Run it again after photos came or went."""
    from dcdctl.cli.views.training import show_trained, view
    from dcdctl.core.photos import make_library

    show_it = show_sync if job.library.has_index else show_change
    show_it(make_library(job, track=bar, watch=view, say=note, on_trained=partial(show_trained, kind="distill")))
    show(f"next: dcdctl serve {shlex.quote(str(job.library.index))}")
