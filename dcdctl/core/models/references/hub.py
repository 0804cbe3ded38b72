"""Models of the Hugging Face Hub, OWNER/NAME or OWNER/NAME@REVISION: which files are fetched, and the one error if they
cannot be read.

A model is fetched into the cache of huggingface_hub and then read as a folder: tokenizer, image processor and weights
are of one commit, and no Python file is fetched unless dcdctl itself saved it there, which never runs it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from glob import escape
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_cached_repo_tree, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub import errors as hub
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from dcdctl.core import data
from dcdctl.core.errors import ModelError, first_line
from dcdctl.core.models.naming import NAMED
from dcdctl.core.models.references import folders
from dcdctl.core.progress import byte_size

TIMEOUT_S = 10.0
"""How long the Hub may take to answer the first request, before the copy in its cache is read instead."""
LONG_DOWNLOAD = 50_000_000
"""Bytes from which a download is announced: at least several seconds."""
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>\w[\w./-]*))?")
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", folders.LATE_FILE)
"""Configurations and tokenizers, and the weights that tell a late-interaction model from its dual encoder."""
_WEIGHTS = (
    re.compile(r"(.*/)?model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"(.*/)?pytorch_model(-\d+-of-\d+)?\.bin"),
)
"""Files of weights, and those that stand in for them. Files for other number types or runtimes have other names."""


def is_id(ref: str) -> bool:
    """Whether a reference has the form OWNER/NAME or OWNER/NAME@REVISION."""
    # The Hub has a few models without an owner, none of them a scorer. A misspelt run name should not wait for the
    # network.
    match = _ID.fullmatch(ref)
    return match is not None and "/" in match["repo"]


def hub_source(ref: str) -> dict[str, str]:
    """The first arguments of `from_pretrained`: the folder or repository, and its revision, a branch, tag or commit."""
    path = folders.path_of(ref)
    if path.exists():
        return {"pretrained_model_name_or_path": str(path)}
    match = _ID.fullmatch(ref)
    if match is None or match["revision"] is None:
        return {"pretrained_model_name_or_path": ref}
    return {"pretrained_model_name_or_path": match["repo"], "revision": match["revision"]}


def fetch(ref: str) -> Path:
    """The folder in the cache with the small files of a repository. Call it within `reading`."""
    repo, revision = _parts(ref)
    # A bar for each of a dozen small files says nothing; weights keep theirs.
    with without_bars():
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(SMALL_FILES), endpoint=constants.ENDPOINT)
        )


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of huggingface_hub, which shows one per file."""
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def fetch_more(ref: str, folder: Path, choose: Callable[[Sequence[str]], Sequence[str]]) -> None:
    """Add to a folder of `fetch` the files that `choose` picks from the commit's files."""
    try:
        tree = get_cached_repo_tree(_parts(ref)[0], revision=folder.name)
    except (OSError, hub.CachedRepoTreeNotFoundError):
        return  # another program has filled the cache, and the Hub is not asked
    listed = {entry.path: getattr(entry, "size", 0) for entry in tree}
    # Escaped, because `allow_patterns` are globs. The name of the folder is its commit, so all files are of one commit.
    if chosen := [path for path in choose(list(listed))]:
        _announce(ref, sum(listed[path] for path in chosen if not (folder / path).exists()))
        patterns = [escape(path) for path in chosen]
        snapshot_download(_parts(ref)[0], revision=folder.name, allow_patterns=patterns, endpoint=constants.ENDPOINT)


def _announce(ref: str, num_bytes: int) -> None:
    """Say how large a long download is and where it stays, before it begins."""
    if num_bytes >= LONG_DOWNLOAD:
        logging.getLogger("dcdctl").warning(
            "%s: downloading %s, once, into %s", ref, byte_size(num_bytes), constants.HF_HUB_CACHE
        )


def weights_among(paths: Sequence[str]) -> list[str]:
    """The files of weights that transformers reads, of each folder the safetensors if there are any.

    >>> weights_among(["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin"])
    ['model.safetensors', '2_Dense/pytorch_model.bin']
    """
    chosen: list[str] = []
    for folder in dict.fromkeys(path.rpartition("/")[0] for path in paths):
        inside = [path for path in paths if path.rpartition("/")[0] == folder]
        for pattern in _WEIGHTS:
            if matching := [path for path in inside if pattern.fullmatch(path)]:
                chosen += matching
                break
    return chosen


def _parts(ref: str) -> tuple[str, str | None]:
    match = _ID.fullmatch(ref)
    assert match is not None  # `reading` checks it
    return match["repo"], match["revision"]


_outer_problem: ContextVar[str] = ContextVar("outer_problem", default="")
"""Why the Hub is not asked, in an inner `reading`: the outer one has made huggingface_hub work offline."""


@contextmanager
def reading(ref: str, use: str = "") -> Iterator[None]:
    """The files of a repository are downloaded in the block; where the Hub does not answer, they are read from its
    cache.

    ModelError if there is no such repository, or if the Hub does not answer and the cache lacks a file; `use` says how
    a folder is named then. huggingface_hub logs nothing: it would try each file five times, and say so.
    """
    if not _ID.fullmatch(ref):
        raise ModelError(
            f"{ref} does not exist", hint="name a folder, or a model of the Hugging Face Hub as OWNER/NAME"
        )
    was_offline = constants.HF_HUB_OFFLINE
    with data.hub_requests():
        why_offline = _outer_problem.get() or "HF_HUB_OFFLINE is set"
        problem = why_offline if was_offline else _problem(ref, constants.ENDPOINT)
        token = _outer_problem.set(problem)
        constants.HF_HUB_OFFLINE = bool(problem)
        try:
            yield
        except Exception as error:
            if problem and _is_not_cached(error):
                raise _unreachable(ref, problem, use) from error
            raise
        finally:
            constants.HF_HUB_OFFLINE = was_offline
            _outer_problem.reset(token)


# Once per process: tokenizer, image processor and weights are each read in a block of their own.
@lru_cache
def _problem(ref: str, endpoint: str) -> str:
    """Why the Hub cannot be asked for a repository; empty if it can. ModelError if the Hub has none of this name, or
    refuses it."""
    repo, revision = _parts(ref)
    page = f"{endpoint}/{repo}"
    try:
        get_hf_file_metadata(
            hf_hub_url(repo, constants.CONFIG_NAME, revision=revision, endpoint=endpoint), timeout=TIMEOUT_S
        )
    except hub.EntryNotFoundError:
        return ""  # a repository without config.json, as the caller finds out
    except hub.HfHubHTTPError as error:
        if refused := data.hub_refusal(error, f"{ref} (no file or folder here)", page):
            raise ModelError(refused[0], hint=refused[1]) from error
        return f"it answered {error.response.status_code}"
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        return first_line(error)
    return ""


def _is_not_cached(error: BaseException | None) -> bool:
    """Whether an error comes from a file that is not in the cache of the Hub; transformers raises OSError for some of
    them."""
    while error is not None:
        if isinstance(error, OSError | hub.OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False


def _unreachable(ref: str, problem: str, use: str) -> ModelError:
    repo, revision = _parts(ref)
    page, download = f"{constants.ENDPOINT}/{repo}", f"hf download {repo}"
    if revision:
        download += f" --revision {revision}"
    message = (
        f"{ref} is no file or folder here and not complete in the cache of the Hub, and {page} was not read ({problem})"
    )
    use = use or NAMED.format(ref=ref)
    return ModelError(message, hint=f"on a machine with a network run `{download} --local-dir DIR`, and {use}")
