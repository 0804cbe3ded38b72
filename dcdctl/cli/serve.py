"""`dcdctl serve`: search an index over HTTP, with a search page."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dcdctl.cli.options import AnyIndex, Depth, Device, Json, Rerank, RerankSet, StoreModel, Threads
from dcdctl.cli.views.terminal import note, show, show_json

if TYPE_CHECKING:
    from dcdctl.core.serve import Started

Host = Annotated[
    str,
    typer.Option("--host", help="Address to listen on; by default only this machine can connect.", metavar="ADDRESS"),
]
Port = Annotated[
    int, typer.Option("--port", help="Port to listen on; 0 for any free port.", min=0, max=65535, metavar="N")
]
Processes = Annotated[
    int,
    typer.Option(
        "--processes",
        help="Processes behind the port, each with a model of its own; they share the index in memory.",
        min=1,
        max=256,
        metavar="N",
    ),
]
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format", help="Form of the log on stderr: text, or json for one object per line.", metavar="text|json"
    ),
]
AccessLog = Annotated[bool, typer.Option("--access-log", help="Log each request, without its query.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        help="Host name that a proxy uses for the service: search.example.org; repeatable.",
        metavar="NAME",
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a limit: max_k=500; repeatable. docs/deploy.md lists them.", metavar="KEY=VALUE"
    ),
]


def serve(
    index: AnyIndex,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    processes: Processes = 1,
    allow_host: AllowHost = None,
    model: StoreModel = None,
    rerank: Rerank = None,
    rerank_set: RerankSet = None,
    depth: Depth = None,
    device: Device = "auto",
    threads: Threads = None,
    log_format: LogFormat = "text",
    access_log: AccessLog = False,
    limits: Limits = None,
    json: Json = False,
) -> None:
    """Search an index over HTTP, with a search page. The service runs until Ctrl-C."""
    from dcdctl.core.config import apply_sets, build
    from dcdctl.core.serve import Models, ServiceConfig, serve

    if depth is not None and rerank is None:
        raise typer.BadParameter("is the number of candidates to re-rank: add --rerank REF", param_hint="--depth")
    settings = {"host": host, "port": port, "processes": processes, "allowed_hosts": allow_host or []}
    settings |= {"log_format": log_format, "access_log": access_log}
    config = build(ServiceConfig, settings | apply_sets({}, limits or []))
    models = Models(own=model, device=device, threads=threads, rerank=rerank, depth=depth, rerank_set=rerank_set or ())
    serve(index, config, models, on_start=partial(_show_start, json, is_logged=log_format == "json"))


def _show_start(json: bool, started: Started, *, is_logged: bool = False) -> None:
    if json:  # on one line: a program reads it while the service runs
        show_json({"url": started.url, "index": started.index, "images": started.num_images}, indent=None)
    else:
        show(f"{started.num_images:,} images at {started.url}")
    if is_logged:  # stderr has JSON only, and the first record says the same
        return
    if not started.is_loopback:
        if started.has_keys:
            note(
                "warning: the key, queries and images can be read on the network, unless a proxy adds HTTPS "
                "(docs/deploy.md)"
            )
        else:
            note(
                "warning: every machine that can reach this one can search and see the images; there is no key "
                "(docs/deploy.md)"
            )
    note("Ctrl-C stops it")
