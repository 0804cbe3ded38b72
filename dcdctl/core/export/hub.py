"""Pushing an exported folder to the Hugging Face Hub with `huggingface_hub`, which reads HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core import data
from dcdctl.core.errors import ConfigError, MissingError, SourceError
from dcdctl.core.progress import Track, silent

COMMIT_MESSAGE = "Export by dcdctl"


@dataclass(frozen=True)
class Push:
    """The repository for an export."""

    repo: str
    """OWNER/NAME."""
    is_private: bool = False
    """Whether a new repository is visible to its owner only."""


def push_options(repo: str | None, *, is_private: bool) -> Push | None:
    """The push that the command line asks for; ConfigError for --private without a repository."""
    if repo is None and is_private:
        raise ConfigError("--private applies to a push, and there is none", hint="add --push-to-hub OWNER/NAME")
    return None if repo is None else Push(repo, is_private)


def check(push: Push) -> None:
    """Check a push before anything is computed: ConfigError for an invalid name, MissingError without a token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(push.repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {push.repo} is not a repository name", hint="use OWNER/NAME") from error
    # huggingface_hub also accepts names without an owner.
    if push.repo.count("/") != 1:
        raise ConfigError(f"--push-to-hub {push.repo} names no owner", hint="use OWNER/NAME")
    if get_token() is None:
        hint = "`hf auth login`, or set HF_TOKEN to a token that may write"
        raise MissingError(f"pushing to {push.repo} needs a token for the Hub, and there is none", hint=hint)


def push_folder(folder: Path, push: Push, track: Track = silent) -> str:
    """Push a folder, creating the repository if necessary. Returns the address of the commit.

    SourceError if the Hub refuses, and for an existing public repository if a private one is requested: its visibility
    is not changed.
    """
    from huggingface_hub import HfApi

    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    again = f"the export is in {folder}: `hf upload {push.repo} {folder} .` pushes it"
    with data.hub_connection(lambda error: _explain(push, error, again)) as endpoint:
        api = HfApi(endpoint=endpoint)
        api.create_repo(push.repo, private=push.is_private, exist_ok=True)
        if push.is_private and not api.repo_info(push.repo).private:
            raise SourceError(
                f"{push.repo} exists and is public, but --private was given",
                hint=f"name another repository; the export is in {folder}",
            )
        with track(f"push to {push.repo}", total=num_bytes, unit="bytes") as advance, _without_bars():
            commit: Any = api.upload_folder(repo_id=push.repo, folder_path=folder, commit_message=COMMIT_MESSAGE)
            advance(num_bytes)
    return str(commit.commit_url)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the progress bars of huggingface_hub, which shows one per file."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def _explain(push: Push, error: Exception, again: str) -> SourceError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return SourceError(
            f"the Hub refuses to write to {push.repo} ({status})", hint=f"set HF_TOKEN to a token that may; {again}"
        )
    reason = (
        f"the Hub answers {status}"
        if status is not None
        else (str(error).strip().splitlines() or [type(error).__name__])[0]
    )
    return SourceError(f"{push.repo} was not pushed: {reason}", hint=again)
