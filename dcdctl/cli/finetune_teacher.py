"""`dcdctl finetune-teacher`: train a cross-encoder to rank."""

from __future__ import annotations

from dcdctl.cli.options import DryRun, Json
from dcdctl.core.training import FinetuneTeacher


def finetune_teacher(request: FinetuneTeacher, dry_run: DryRun = False, json: Json = False) -> None:
    """Train a cross-encoder to rank. The true caption or image competes with sampled or mined ones."""
    request.check()
    from dcdctl.cli.views.training import train

    train(request, dry_run=dry_run, json=json)
