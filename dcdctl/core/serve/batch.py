"""Many texts in one request: `POST /search` with JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dcdctl.core.errors import InputError
from dcdctl.core.serve.service_config import KiB, MiB, ServiceConfig

MAX_BATCH_BYTES = MiB
"""Maximum size of a batch: its JSON is read in the event loop, where nothing else happens meanwhile."""
EXAMPLE = 'for example {"queries": [{"text": "a red bus"}, {"text": "two dogs", "k": 5}]}'


class BatchQuery(BaseModel):
    """A text of a batch."""

    # strict: true is not 1, and "5" is not 5.
    model_config = ConfigDict(strict=True, extra="forbid")

    text: str
    k: int
    where: str | None
    hybrid: bool


class BatchReader:
    """Reads batches within the limits of a service."""

    def __init__(self, config: ServiceConfig, num_slots: int) -> None:
        """At most `num_slots` searches may wait, so a larger batch could never be answered."""

        class Limited(BatchQuery):
            text: str = Field(max_length=config.max_text_chars, description="What the image shows.")
            k: int = Field(config.default_k, ge=1, le=config.max_k, description="Maximum number of images.")
            where: str | None = Field(None, description="Only images whose columns meet this condition: year >= 2020.")
            hybrid: bool = Field(False, description="Rank by the words of captions and file names too.")

        self.model, self.max_queries = Limited, min(config.max_queries, num_slots)

    async def read(self, request: Request) -> list[BatchQuery | str]:
        """The queries of a body in order, each a query or what is wrong with it. InputError if the body is not a
        batch."""
        body = await request.body()
        if len(body) > MAX_BATCH_BYTES:
            raise HTTPException(413, f"the batch is too large, at most {MAX_BATCH_BYTES / KiB:g} KiB are accepted")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InputError("the body is not JSON", hint=EXAMPLE) from error
        queries = document.get("queries") if isinstance(document, dict) else None
        if not isinstance(queries, list) or set(document) != {"queries"}:
            raise InputError("the body must have a list of queries, and nothing else", hint=EXAMPLE)
        if not 0 < len(queries) <= self.max_queries:
            raise InputError(f"a batch must have 1 to {self.max_queries} queries, got {len(queries):,}")
        return [self._checked(query) for query in queries]

    def _checked(self, query: object) -> BatchQuery | str:
        try:
            return self.model.model_validate(query)
        except ValidationError as error:
            return in_words(error.errors())


def in_words(errors: Sequence[Any]) -> str:
    """What pydantic found, on one line."""
    places = [error["loc"][-1] if error["loc"] else "query" for error in errors]
    return "; ".join(f"{place}: {error['msg']}" for place, error in zip(places, errors, strict=True))
