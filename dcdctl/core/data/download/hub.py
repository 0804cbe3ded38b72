"""Files in repositories on the Hugging Face Hub, through `huggingface_hub`, which also reads HF_HOME, HF_ENDPOINT and
HF_TOKEN."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dcdctl.core.errors import ConfigError, SourceError, first_line
from dcdctl.core.files import escapes_root
from dcdctl.core.progress import Track

# Revisions have no slash here, except refs/convert/NAME and refs/pr/NUMBER.
URL = re.compile(
    r"hf://(?P<kind>datasets/)?(?P<repo>(?!datasets/|models/|spaces/)[^/@*]+/[^/@*]+)(@(?P<revision>refs/(?:convert|pr)/[^/*]+|[^/*]+))?/(?P<path>.+)",
)


@dataclass(frozen=True, kw_only=True)
class HubPath:
    """The place of a file on the Hub, or of several if the path contains a *."""

    url: str
    repo: str
    """OWNER/NAME"""
    kind: str
    """dataset or model, the repository types of the Hub."""
    revision: str
    path: str

    @classmethod
    def parse(cls, url: str) -> HubPath:
        """The parts of hf://datasets/OWNER/NAME@REVISION/PATH, without datasets/ for a model; @REVISION is optional.
        Else ConfigError."""
        match = URL.fullmatch(url)
        if match is None:
            raise ConfigError(f"{url} must be hf://datasets/OWNER/NAME@REVISION/PATH or hf://OWNER/NAME@REVISION/PATH")
        if escapes_root(match["path"]):
            raise ConfigError(f"{url} leads out of its repository", hint="name a file in it")
        kind = "dataset" if match["kind"] else "model"
        return cls(
            url=url, repo=match["repo"], kind=kind, revision=unquote(match["revision"] or "main"), path=match["path"]
        )

    @property
    def folder(self) -> str:
        """The URL without the path; ends with a slash."""
        return self.url.removesuffix(self.path)

    def matching(self, paths: Iterable[str]) -> list[str]:
        """The paths that this one names, sorted; * matches any part of a name within one folder."""
        names = re.compile("[^/]*".join(map(re.escape, self.path.split("*"))))
        return [path for path in sorted(paths) if names.fullmatch(path)]

    @property
    def page(self) -> str:
        """The web page of the repository."""
        site = _endpoint() or "https://huggingface.co"
        return f"{site}/datasets/{self.repo}" if self.kind == "dataset" else f"{site}/{self.repo}"


def get(file: HubPath, *, offline: bool, track: Track) -> Path:
    """The file in the cache of huggingface_hub, downloaded if it is not there, unless `offline`.

    SourceError gives the reason if it is not available. A killed download starts again, because huggingface_hub keeps
    no partial files.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if offline:
        # Not hf_hub_download with local_files_only, which may still make a request to the Hub.
        cached = try_to_load_from_cache(file.repo, file.path, repo_type=file.kind, revision=file.revision)
        # Besides None, the result may be an object that stands for a file known not to exist.
        if not isinstance(cached, str):
            raise SourceError(f"{file.url} is not in the cache of the Hub")
        return Path(cached)
    with hub_connection(partial(_explain, file)) as endpoint:
        return Path(
            hf_hub_download(
                file.repo,
                file.path,
                repo_type=file.kind,
                revision=file.revision,
                endpoint=endpoint,
                tqdm_class=_bar_class(f"download {file.path.rpartition('/')[2]}", track),
            )
        )


def sizes(file: HubPath) -> dict[str, int]:
    """The size in bytes of each file of the repository at that revision, by path."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with hub_connection(partial(_explain, file)) as endpoint:
        entries = HfApi(endpoint=endpoint).list_repo_tree(
            file.repo, repo_type=file.kind, revision=file.revision, recursive=True
        )
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


@contextmanager
def hub_connection(explain: Callable[[Exception], SourceError]) -> Iterator[str | None]:
    """`hub_requests`; errors of the block become what `explain` makes of them."""
    import httpx2
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        with hub_requests() as endpoint:
            yield endpoint
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, EntryNotFoundError, HFValidationError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk, not of the Hub
        raise explain(error) from error


@contextmanager
def hub_requests() -> Iterator[str | None]:
    """The endpoint of the Hub, to which all requests of the block go; huggingface_hub logs nothing to stderr."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    endpoint, verbosity, is_xet_off = _endpoint(), logging.get_verbosity(), constants.HF_HUB_DISABLE_XET
    logging.set_verbosity_error()
    if endpoint is not None and urlsplit(endpoint).hostname != "huggingface.co":
        # Xet storage is on another host, which the Hub gives: with an endpoint of the user's choice, all requests go
        # there.
        constants.HF_HUB_DISABLE_XET = True
    try:
        yield endpoint
    finally:
        constants.HF_HUB_DISABLE_XET = is_xet_off
        logging.set_verbosity(verbosity)


def _explain(file: HubPath, error: Exception) -> SourceError:
    """The answer of the Hub in one line, with a hint."""
    from huggingface_hub import errors

    # huggingface_hub reports an unreachable or refusing Hub as a missing local file; the cause holds the reason.
    cause = (isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__) or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if refused := hub_refusal(cause, file.url, file.page):
        return SourceError(refused[0], hint=refused[1])
    if isinstance(cause, errors.RemoteEntryNotFoundError):
        return SourceError(
            f"{file.url}: there is no such file ({status})", hint=f"see {file.page}/tree/{file.revision}"
        )
    if status is not None:
        return SourceError(f"{file.url}: the Hub answered {status}", hint="run the same command again later")
    site = _endpoint() or "the Hub"
    return SourceError(
        f"{file.url} is not available from {site} ({first_line(cause)})",
        hint="run the same command again, or with --offline if it is in the cache",
    )


def hub_refusal(error: BaseException, name: str, page: str) -> tuple[str, str] | None:
    """Why the Hub has no repository for the user, with what helps; None for another error. `name` is as messages call
    the repository."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    # First, because it is a subclass of RepositoryNotFoundError.
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated ({status})", f"accept the terms at {page} and set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: {page} does not exist or is private ({status})",
            "check the name; for a private one set HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: {page} has no such revision ({status})", f"see {page}/tree/main"
    if status in (401, 403):
        return f"{name} was refused ({status})", f"set HF_TOKEN to a token that may read {page}"
    return None


def _bar_class(label: str, track: Track) -> Any:
    """A progress bar with the interface of tqdm, as far as huggingface_hub uses it."""

    class Bar:
        def __init__(self, *_: object, total: int | None = None, **__: object) -> None:
            self.open = ExitStack()
            self.advance = self.open.enter_context(track(label, total=total, unit="bytes"))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def update(self, count: float | None = 1) -> None:
            self.advance(int(count or 0))

        def close(self) -> None:
            self.open.close()

        def update_transfer(self, count: float) -> None:
            """Called by Xet with the bytes that were transferred; the bar counts those that are written to disk."""

        def set_postfix_str(self, *_: object, **__: object) -> None: ...

        def set_transfer_postfix_str(self, *_: object, **__: object) -> None: ...

    return Bar
