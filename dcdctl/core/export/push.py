"""Pushing an exported folder to the Hugging Face Hub with `huggingface_hub`, which reads HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dcdctl.core import data, models
from dcdctl.core.errors import ConfigError, MissingError, SourceError, first_line
from dcdctl.core.progress import Track, silent


def check(repo: str) -> None:
    """Check a push before anything is computed: ConfigError for an invalid name, MissingError without a token."""
    from huggingface_hub import get_token

    # The form only; huggingface_hub itself also accepts names without an owner.
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"--push-to-hub {repo} is not a repository name", hint="use OWNER/NAME")
    if get_token() is None:
        hint = "`hf auth login`, or set HF_TOKEN to a token that may write"
        raise MissingError(f"pushing to {repo} needs a token for the Hub, and there is none", hint=hint)


def push_folder(folder: Path, repo: str, track: Track = silent, *, private: bool = True) -> str:
    """Push a folder, creating the repository if necessary. Returns the address of the commit.

    SourceError if the Hub refuses; ConfigError for a repository that is there and is public where a private one is
    asked for, or the other way round: whether it is seen is changed on the Hub alone.
    """
    from huggingface_hub import HfApi

    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    again = f"the export is in {folder}: `hf upload {repo} {folder} .` pushes it"
    with data.hub_connection(lambda error: _explain(repo, error, again)) as endpoint:
        api = HfApi(endpoint=endpoint)
        # A model may be exported again, with more evaluations on its card.
        api.create_repo(repo, private=private, exist_ok=True)
        is_private = bool(api.model_info(repo).private)
        if is_private != private:
            found, wanted = ("private", "public") if is_private else ("public", "private")
            raise ConfigError(
                f"{repo} is there and is {found}, and the export would be {wanted}",
                hint=f"add --{found}, or change it in the settings of the repository; {again}",
            )
        with track(f"push to {repo}", total=num_bytes, unit="bytes") as advance, models.without_bars():
            commit: Any = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export by dcdctl")
            # At once: huggingface_hub reports its progress to its own bars only.
            advance(num_bytes)
    return str(commit.commit_url)


def _explain(repo: str, error: Exception, again: str) -> SourceError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return SourceError(
            f"the Hub refuses to write to {repo} ({status})", hint=f"set HF_TOKEN to a token that may; {again}"
        )
    reason = first_line(error) if status is None else f"the Hub answers {status}"
    return SourceError(f"{repo} was not pushed: {reason}", hint=again)
