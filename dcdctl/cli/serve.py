"""`dcdctl serve`: an index as a service, with a page to search on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcdctl.cli.options import Device
from dcdctl.cli.views.terminal import note, show

IndexFolder = Annotated[Path, typer.Argument(help="Folder written by `dcdctl index`.", metavar="INDEX")]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; this machine alone if not given.", metavar="ADDRESS")]
Port = Annotated[int, typer.Option("--port", help="Port to listen on; 0 for any that is free.", min=0, max=65535)]
AllowHost = Annotated[
    list[str] | None,
    typer.Option("--allow-host", help="Name by which a proxy asks for the service: search.example.org; repeatable.", metavar="NAME"),
]
Rerank = Annotated[str | None, typer.Option("--rerank", help="Fusion model that re-ranks what a text finds.", metavar="REF")]
Depth = Annotated[int | None, typer.Option("--depth", help="With --rerank: candidates re-ranked of each text (50).", min=1, metavar="N")]
Limits = Annotated[
    list[str] | None,
    typer.Option("--set", help="Another limit: max_k=500; repeatable. docs/deploy.md lists them.", metavar="KEY=VALUE"),
]


def serve(
    index: IndexFolder,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allow_host: AllowHost = None,
    rerank: Rerank = None,
    depth: Depth = None,
    device: Device = "auto",
    limits: Limits = None,
) -> None:
    """Answer searches of an index over HTTP, with a page to search on, until Ctrl-C."""
    from dcdctl.core.config import apply_sets
    from dcdctl.core.serve import build_config, serve

    if depth is not None and rerank is None:
        raise typer.BadParameter("says how many are re-ranked, and nothing is: add --rerank REF", param_hint="--depth")
    binding = {"host": host, "port": port, "allowed_hosts": allow_host or []}
    config = build_config(apply_sets({}, limits or []) | binding)
    serve(index, config, device=device, rerank=rerank, depth=depth, on_start=_show_start)


def _show_start(started: Any) -> None:
    show(f"{started.num_images:,} images at {started.url}")
    if not started.is_loopback:
        note("warning: every machine that reaches this one can search, and see the images; there is no password (docs/deploy.md)")
    note("Ctrl-C stops it")
