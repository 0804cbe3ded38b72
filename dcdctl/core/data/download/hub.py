"""Files of repositories on the Hugging Face Hub, through `huggingface_hub`: HF_HOME, HF_ENDPOINT and HF_TOKEN mean what they mean there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dcdctl.core.errors import ConfigError, SourceError
from dcdctl.core.progress import Track

URL = re.compile(
    r"hf://(?P<kind>datasets/)?(?P<repo>(?!datasets/|models/|spaces/)[^/@*]+/[^/@*]+)(@(?P<revision>refs/(?:convert|pr)/[^/*]+|[^/*]+))?/(?P<path>.+)",
)


@dataclass(frozen=True, kw_only=True)
class HubPath:
    """Where a file lies, or with * in its path, several do."""

    url: str
    repo: str
    """OWNER/NAME"""
    kind: str
    """dataset or model, as the Hub calls them."""
    revision: str
    path: str

    @classmethod
    def parse(cls, url: str) -> HubPath:
        """ConfigError if it is not hf://datasets/OWNER/NAME@REVISION/PATH, or without datasets/ for a model; @REVISION may be left out."""
        match = URL.fullmatch(url)
        if match is None:
            raise ConfigError(f"{url} is not hf://datasets/OWNER/NAME@REVISION/PATH, nor hf://OWNER/NAME@REVISION/PATH")
        kind = "dataset" if match["kind"] else "model"
        return cls(url=url, repo=match["repo"], kind=kind, revision=unquote(match["revision"] or "main"), path=match["path"])

    @property
    def folder(self) -> str:
        """The URL without its path, with a slash at its end."""
        return self.url.removesuffix(self.path)

    @property
    def page(self) -> str:
        """Where a browser sees the repository."""
        return f"{_endpoint() or 'https://huggingface.co'}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def get(file: HubPath, *, offline: bool, track: Track) -> Path:
    """Where the Hub's own cache keeps the file, downloaded if it is not there and `offline` allows.

    SourceError says why it cannot be had. A download that is killed starts again: huggingface_hub keeps no half files.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if offline:
        # hf_hub_download with local_files_only may still ask the Hub who is calling.
        found = try_to_load_from_cache(file.repo, file.path, repo_type=file.kind, revision=file.revision, cache_dir=cache_folder())
        if not isinstance(found, str):
            raise SourceError(f"{file.url} is not in the cache of the Hub")
        return Path(found)
    with _connection(file) as endpoint:
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
    """Bytes of each file of the repository at that revision, by path."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _connection(file) as endpoint:
        entries = HfApi(endpoint=endpoint).list_repo_tree(file.repo, repo_type=file.kind, revision=file.revision, recursive=True)
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _connection(file: HubPath) -> AbstractContextManager[str | None]:
    return hub_connection(lambda error: _explain(file, error))


@contextmanager
def hub_connection(explain: Callable[[Exception], SourceError]) -> Iterator[str | None]:
    """The endpoint to talk to; whatever goes wrong on the way leaves as `explain` has it, and nothing else is written to stderr."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError
    from huggingface_hub.utils import logging

    endpoint, verbosity, is_xet_off = _endpoint(), logging.get_verbosity(), constants.HF_HUB_DISABLE_XET
    logging.set_verbosity_error()
    if endpoint is not None and urlsplit(endpoint).hostname != "huggingface.co":
        # Xet storage is another host, told by the Hub: whoever names an endpoint wants that one asked.
        constants.HF_HUB_DISABLE_XET = True
    try:
        yield endpoint
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, EntryNotFoundError, HFValidationError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the Hub
        raise explain(error) from error
    finally:
        constants.HF_HUB_DISABLE_XET = is_xet_off
        logging.set_verbosity(verbosity)


def _explain(file: HubPath, error: Exception) -> SourceError:
    """One line of what the Hub answered, with what to do about it."""
    from huggingface_hub import errors

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    # The repository's name comes before its file's: a missing one is told as a missing file too.
    if isinstance(cause, errors.GatedRepoError):
        hint = f"accept the terms at {file.page} and set HF_TOKEN to a token of that account"
        return SourceError(f"{file.url} is gated ({status})", hint=hint)
    if isinstance(cause, errors.RepositoryNotFoundError):
        hint = f"look at {file.page}; for a private one set HF_TOKEN"
        return SourceError(f"{file.url}: there is no such {file.kind} repository, or it is private ({status})", hint=hint)
    if isinstance(cause, errors.RevisionNotFoundError):
        return SourceError(f"{file.url}: there is no revision {file.revision} ({status})", hint=f"look at {file.page}")
    if isinstance(cause, errors.RemoteEntryNotFoundError):
        return SourceError(f"{file.url}: there is no such file ({status})", hint=f"look at {file.page}/tree/{file.revision}")
    if status in (401, 403):
        return SourceError(f"{file.url} was refused ({status})", hint=f"set HF_TOKEN to a token that may read {file.page}")
    if status is not None:
        return SourceError(f"{file.url}: the Hub answers {status}", hint="run the same command again later")
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    hint = "run the same command again, or with --offline if it is in the cache"
    return SourceError(f"{file.url} cannot be had from {_endpoint() or 'the Hub'} ({reason})", hint=hint)


def _bar_class(label: str, track: Track) -> Any:
    """Our bar in the shape of tqdm's, as far as huggingface_hub uses it."""

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
            """Xet tells what came over the line too, through this or through a second bar; we count what is written."""

        def set_postfix_str(self, *_: object, **__: object) -> None: ...

        def set_transfer_postfix_str(self, *_: object, **__: object) -> None: ...

    return Bar
