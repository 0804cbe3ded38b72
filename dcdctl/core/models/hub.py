"""Models of the Hugging Face Hub: what is read of them, and the one error of a repository that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub import errors as hub

from dcdctl.core import data
from dcdctl.core.errors import ModelError

TIMEOUT_S = 10.0
"""How long the Hub may take to answer the first request, before the copy in its cache is read instead."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


_outer_problem: ContextVar[str] = ContextVar("outer_problem", default="")
"""Why the Hub is not asked, in an inner `reading`: the outer one has made huggingface_hub work offline."""


@contextmanager
def reading(ref: str) -> Iterator[None]:
    """The files of a repository are downloaded in the block; where the Hub does not answer, they are read from its cache.

    ModelError if there is no such repository, or if the Hub does not answer and the cache lacks a file. huggingface_hub logs nothing: it
    would try each file five times, and say so.
    """
    if not _ID.fullmatch(ref):
        raise ModelError(f"{ref} does not exist", hint="name a folder, or a model of the Hugging Face Hub as OWNER/NAME")
    was_offline = constants.HF_HUB_OFFLINE
    with data.hub_requests():
        problem = (_outer_problem.get() or "HF_HUB_OFFLINE is set") if was_offline else _problem(ref, constants.ENDPOINT)
        token = _outer_problem.set(problem)
        constants.HF_HUB_OFFLINE = bool(problem)
        try:
            yield
        except Exception as error:
            if problem and _is_not_cached(error):
                raise _unreachable(ref, problem) from error
            raise
        finally:
            constants.HF_HUB_OFFLINE = was_offline
            _outer_problem.reset(token)


@lru_cache
def _problem(ref: str, endpoint: str) -> str:
    """Why the Hub cannot be asked for a repository; empty if it can. ModelError if the Hub has none of this name, or refuses it."""
    page = f"{endpoint}/{ref}"
    try:
        get_hf_file_metadata(hf_hub_url(ref, constants.CONFIG_NAME, endpoint=endpoint), timeout=TIMEOUT_S)
    except hub.EntryNotFoundError:
        return ""  # a repository without config.json, as the caller finds out
    # First, because it is a subclass of RepositoryNotFoundError.
    except hub.GatedRepoError as error:
        hint = f"accept the terms at {page}, and set HF_TOKEN to a token of that account"
        raise ModelError(f"{ref} is gated on the Hub ({_status(error)})", hint=hint) from error
    except hub.RepositoryNotFoundError as error:
        found = f"{ref} is no file or folder here, and {page} does not exist or is private ({_status(error)})"
        raise ModelError(found, hint="check the name; for a private model set HF_TOKEN") from error
    except hub.HfHubHTTPError as error:
        if _status(error) in (401, 403):
            raise ModelError(f"{page} was refused ({_status(error)})", hint="set HF_TOKEN to a token that may read it") from error
        return f"it answered {_status(error)}"
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def _status(error: hub.HfHubHTTPError) -> int:
    return int(error.response.status_code)


def _is_not_cached(error: BaseException | None) -> bool:
    """Whether an error comes from a file that is not in the cache of the Hub; transformers raises OSError for some of them."""
    while error is not None:
        if isinstance(error, OSError | hub.OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False


def _unreachable(ref: str, problem: str) -> ModelError:
    found = (
        f"{ref} is no file or folder here and not complete in the cache of the Hub, and {constants.ENDPOINT}/{ref} was not read ({problem})"
    )
    hint = f"on a machine with a network run `hf download {ref} --local-dir DIR`, and give DIR in place of {ref}, such as `--teacher DIR`"
    return ModelError(found, hint=hint)
