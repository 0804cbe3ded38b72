"""The index that a service answers from, as it is now."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from dcdctl.core.errors import DcdError
from dcdctl.core.index import Index
from dcdctl.core.index_files import INDEX_FILE
from dcdctl.core.search import Searcher

Stamp = tuple[int, int, int]


class LiveSearcher:
    """A searcher whose index is opened anew when it has changed on disk, so that what was removed is not served on. For any thread."""

    def __init__(self, searcher: Searcher) -> None:
        self._path = searcher.index.folder / INDEX_FILE
        self._searcher = searcher
        # The index may have changed since it was opened: at first it is not known to be what is on disk.
        self._stamp: Stamp | None = None
        self._lock = threading.Lock()

    def now(self) -> Searcher:
        """The searcher of the index as it is on disk; while that is being changed, or cannot be used, of the index as it was."""
        if (stamp := self._found()) not in (None, self._stamp):
            with self._lock:
                if stamp != self._stamp:
                    self._searcher, self._stamp = self._opened(), stamp
        return self._searcher

    def _found(self) -> Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_ino, found.st_size)

    def _opened(self) -> Searcher:
        try:
            index = Index.open(self._path.parent)
            index.expect(self._searcher.index.fingerprint)
        except DcdError as error:
            logging.getLogger("dcdctl").error("the index has changed, and the service answers from what it was: %s", error)
            return self._searcher
        return replace(self._searcher, index=index)
