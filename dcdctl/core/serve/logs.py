"""What a service writes to stderr: its errors, and on request a line for each request; as text, or as one JSON object
per line.

Neither paths, queries nor keys are logged.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from dcdctl.core.serve.service_config import ServiceConfig

MAX_RECORD_CHARS = 8_000
"""Maximum length of a log record: a traceback through the web framework has about 6,000 characters."""
ACCESS = logging.getLogger("dcdctl.access")
"""The logger of requests."""
SERVICE = logging.getLogger("dcdctl")


def printable(line: str) -> str:
    """A line whose control characters are escaped, because it may quote what a client has sent."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def _shortened(text: str) -> str:
    # A traceback names the request at its beginning, and the error at its end.
    half = MAX_RECORD_CHARS // 2
    return text if len(text) <= MAX_RECORD_CHARS else f"{text[:half]} ... {text[-half:]}"


class TextFormatter(logging.Formatter):
    """Log records of bounded length without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value}" for name, value in getattr(record, "facts", {}).items())
        time = f"{_time(record)} " if record.name == ACCESS.name else ""
        return _shortened(time + super().format(record) + (f" {facts}" if facts else ""))

    def formatMessage(self, record: logging.LogRecord) -> str:
        # uvicorn's messages end with a line break before the traceback.
        return printable(super().formatMessage(record).rstrip("\n"))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, the process, and what the record adds."""

    def __init__(self, process: int) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        fields |= {"message": _shortened(record.getMessage().rstrip("\n"))}
        if self._process:
            fields["process"] = self._process
        fields |= getattr(record, "facts", {})
        if record.exc_info:
            fields["traceback"] = _shortened(self.formatException(record.exc_info))
        return json.dumps(fields)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def to_stderr(config: ServiceConfig, process: int = 0) -> Iterator[None]:
    """Write records to stderr as the settings say, unless the program has set up logging itself."""
    root, level = logging.getLogger(), ACCESS.level
    if root.handlers:
        yield
        return
    handler, is_json = logging.StreamHandler(sys.stderr), config.log_format == "json"
    handler.setFormatter(JsonFormatter(process) if is_json else TextFormatter())
    root.addHandler(handler)
    if is_json:
        logging.captureWarnings(True)
    if config.access_log or is_json:
        ACCESS.setLevel(logging.INFO)
        SERVICE.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ACCESS.setLevel(level)
        SERVICE.setLevel(logging.NOTSET)
        if is_json:
            logging.captureWarnings(False)
