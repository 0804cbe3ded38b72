"""`dcdctl export`: a model in the format of another library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import amount, bar, show, show_json
from dcdctl.core.export import ExportJob

if TYPE_CHECKING:
    from dcdctl.core.export import Exported


def export(job: ExportJob, json: Json = False) -> None:
    """Write a model for another library. A model card is added, and the outputs are compared with those of the
    original."""
    from dcdctl.core.export import export_model

    outcome = export_model(job, bar)
    if json:
        return show_json(outcome.to_json())
    _show(outcome)


def _show(outcome: Exported) -> None:
    from dcdctl.core.export import checks_in_words

    show(f"{outcome.kind} model for {outcome.to} -> {outcome.folder} ({amount(outcome.num_bytes, 'bytes')})")
    show(f"checked on {outcome.checked_on}: {checks_in_words(outcome.checks)}")
    if outcome.page is not None:
        show(f"pushed: {outcome.page}")
