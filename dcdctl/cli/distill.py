"""`dcdctl distill`: train a student on cached scores."""

from __future__ import annotations

from dcdctl.cli.options import DryRun, Json
from dcdctl.core.training import Distill


def distill(request: Distill, dry_run: DryRun = False, json: Json = False) -> None:
    """Train a student on a teacher's scores. They come from a cache, or from a dual encoder, which needs none."""
    request.check()
    from dcdctl.cli.views.training import train

    train(request, dry_run=dry_run, json=json)
