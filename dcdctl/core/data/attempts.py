"""Requests to servers that are repeated with increasing waits, and what their failures mean for the user.

Messages name the place and the code of the answer. They quote no text of a library or a server: there may be queries,
keys or signatures in it.
"""

from __future__ import annotations

import itertools
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from dcdctl.core.data.download import http
from dcdctl.core.errors import DcdError, SourceError, StaleError
from dcdctl.core.places import shown

T = TypeVar("T")
_LIBRARIES = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs")
"""Packages under fsspec. Many of their errors are neither an OSError nor have a base class that all protocols share."""
_REGION_CODES = {
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
_SETTINGS_HINTS = {
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "PartialCredentialsError": "set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "ProfileNotFound": "set AWS_PROFILE to a profile of the AWS settings",
    "NoRegionError": "set AWS_DEFAULT_REGION",
    "InvalidRegionError": "set AWS_DEFAULT_REGION to the name of a region, such as eu-west-1",
    "ParamValidationError": "check the name of the bucket",
    "DefaultCredentialsError": "set GOOGLE_APPLICATION_CREDENTIALS",
    "ClientAuthenticationError": "set the credentials of the Azure account",
}
"""By the name of an error that no repetition mends: which setting does."""
# A request that arrived too slowly; S3 answers 400 for it.
_RETRIED_CODES = {"RequestTimeout"}


def attempted(request: Callable[[], T], url: str) -> T:
    """The result of a request, repeated with increasing waits; SourceError if it fails for good, or as often as a
    download may. StaleError if the file is not the one that was opened."""
    for attempt in itertools.count(1):
        try:
            return request()
        except DcdError:
            raise
        except Exception as error:
            if not _is_of_a_request(error):
                raise
            if (final := _final_error(error, url)) is not None:
                raise final from error
            if attempt == http.ATTEMPTS:
                raise SourceError(
                    f"{shown(url)}: gave up after {attempt} attempts ({_reason(error)})",
                    hint="run the command again later",
                ) from error
            time.sleep(http.FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _is_of_a_request(error: Exception) -> bool:
    """Whether an error is of a server, a connection or the answer; the others are defects."""
    import httpx2

    of_answers = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, httpx2.HTTPError, http.RetryError)
    if isinstance(error, RecursionError):  # botocore follows a redirect by calling itself
        return True
    return isinstance(error, of_answers) or any(
        kind.__module__.partition(".")[0] in _LIBRARIES for kind in type(error).__mro__
    )


def _final_error(error: Exception, url: str) -> DcdError | None:
    """The error for the user if another attempt cannot help; None if it may."""
    place, name, (code, status, headers) = shown(url), type(error).__name__, _answer_of(error)
    because = f" ({code})" if code else ""
    # The condition of a request, and that of a file object of s3fs inside an archive.
    if code == "PreconditionFailed" or name == "FileExpired":
        return changed_error(url)
    if name in _SETTINGS_HINTS:
        return SourceError(f"{place} cannot be requested ({name})", hint=_SETTINGS_HINTS[name])
    if isinstance(error, RecursionError):
        return SourceError(f"{place} is redirected without end", hint="check the region and the endpoint")
    if code in _REGION_CODES:
        region = headers.get("x-amz-bucket-region", "")
        hint = f"set AWS_DEFAULT_REGION to {region or 'the region of the bucket'}, and the endpoint of that region"
        return SourceError(f"{place} is in another region{because}", hint=hint)
    if isinstance(error, FileNotFoundError):
        hint = "check the name of the bucket, and the endpoint" if code == "NoSuchBucket" else "check the URL"
        return SourceError(f"{place} does not exist{because}", hint=hint)
    is_refusal = 400 <= status < 500 and status not in http.RETRY_STATUS and code not in _RETRIED_CODES
    if isinstance(error, PermissionError) or is_refusal:
        return SourceError(f"{place} was refused{because}", hint="check the credentials and the region of its protocol")
    return None


def changed_error(url: str) -> StaleError:
    """The error for a file that was replaced while it was read."""
    return StaleError(f"{shown(url)} has changed while it was read", hint="run the command again")


def _reason(error: Exception) -> str:
    """Why an attempt failed: the code of an answer, or the name of an error."""
    if isinstance(error, http.RetryError):
        return str(error)
    return _answer_of(error)[0] or type(error).__name__


def _answer_of(error: BaseException) -> tuple[str, int, dict[str, Any]]:
    """Code, status and headers of the answer of an S3 server; empty and 0 for other errors."""
    for link in _causes(error):
        answer = getattr(link, "response", None)
        if isinstance(answer, dict):
            metadata = answer.get("ResponseMetadata", {})
            code = str(answer.get("Error", {}).get("Code", ""))
            return code, int(metadata.get("HTTPStatusCode", 0)), dict(metadata.get("HTTPHeaders", {}))
    return "", 0, {}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those it was raised from; s3fs raises some without a cause, while it handles that of botocore."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
