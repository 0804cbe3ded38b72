"""`dcdctl serve`: search an index over HTTP, with a search page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli.options import AnyIndex, Json
from dcdctl.cli.search_models import SearchModels
from dcdctl.cli.views.terminal import note, show, show_json
from dcdctl.core.arguments import configures, optional_path, optional_ref
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.serve import Started


@dataclass(frozen=True, kw_only=True)
class Service:
    """Fields of `ServiceConfig` with an option of their own."""

    host: Annotated[
        str, configures("--host", "Address to listen on; by default only this machine can connect.", "ADDRESS")
    ] = "127.0.0.1"
    port: Annotated[int, configures("--port", "Port to listen on; 0 for any free port.", "N", min=0, max=65535)] = 8000
    processes: Annotated[
        int,
        configures(
            "--processes",
            "Processes behind the port, each with a model of its own; they share the index in memory.",
            "N",
            min=1,
            max=256,
        ),
    ] = 1
    allowed_hosts: Annotated[
        list[str] | None,
        configures(
            "--allow-host", "Host name that a proxy uses for the service: search.example.org; repeatable.", "NAME"
        ),
    ] = None


def serve(
    index: AnyIndex,
    service: Service,
    models: SearchModels,
    limits: Annotated[
        list[str] | None,
        configures("--set", "Override a setting: max_k=500; repeatable. docs/deploy.md lists them.", "KEY=VALUE"),
    ] = None,
    watch: Annotated[
        bool, configures("--watch", "Follow the image folders, and show what is new without a restart.")
    ] = False,
    json: Json = False,
) -> None:
    """Search an index over HTTP, with a search page. The service runs until Ctrl-C."""
    from dcdctl.core.config import build
    from dcdctl.core.serve import Job, ServiceConfig, serve
    from dcdctl.core.toml import apply_sets

    models.check_depth()
    # Options first, so that --set wins, as its help says.
    settings = asdict(service) | {"allowed_hosts": service.allowed_hosts or []}
    config = build(ServiceConfig, settings | apply_sets({}, limits or []))
    job = Job(
        index,
        config,
        model_folder=optional_path(models.model),
        device=models.device,
        rerank=optional_ref(models.rerank),
        depth=models.depth,
        rerank_set=models.rerank_overrides,
    )
    serve(job, on_start=partial(_show_start, json, is_logged=config.log_format == "json"), watch=watch)


def _show_start(json: bool, started: Started, *, is_logged: bool = False) -> None:
    if json:  # on one line: a program reads it while the service runs
        show_json({"url": started.url, "index": started.index, "images": started.num_images}, indent=None)
    else:
        show(f"{counted(started.num_images, 'images')} at {started.url}")
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
