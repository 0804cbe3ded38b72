"""`dcdctl search` without a query: a prompt on a terminal, otherwise one answer per line of stdin."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dcdctl.cli.views.search import View, show_answer, show_failure, show_line
from dcdctl.cli.views.terminal import note, show_error
from dcdctl.core.errors import DcdError

if TYPE_CHECKING:
    from dcdctl.core.search import Answer, Condition, Searcher

PROMPT = "search> "
HISTORY_LENGTH = 1000
HELP = """type a text to find images; a line that begins with a colon is a command:
  :k N           show N images per query
  :hybrid        rank by words too, or no longer
  :where TEXT    only images that meet a condition, such as year >= 2020; without one, all images
  :image FILE    find images that resemble the one in a file
  :html FILE     write the last answer as a page
  :open          open the page of the last answer in a browser
  :help          show this help
  :quit          leave (also Ctrl-D)"""


@dataclass(frozen=True)
class LastAnswer:
    """The last query with its answer, and its page if one was written."""

    question: str | Path
    answer: Answer
    page: Path | None = None


class Session:
    """The state of a prompt."""

    def __init__(
        self, searcher: Searcher, view: View, k: int, where: Condition | None = None, *, hybrid: bool = False
    ) -> None:
        self.searcher, self.view, self.k, self.where, self.is_hybrid = searcher, view, k, where, hybrid
        self.last: LastAnswer | None = None
        self.is_over = False

    def do(self, line: str) -> None:
        """Run one line: a command or a query."""
        words = line.strip()
        if words.startswith(":"):
            name, _, rest = words[1:].partition(" ")
            command = self._commands.get(name)
            if command is None:
                raise DcdError(f":{name} is not a command", hint=":help lists the commands")
            command(self, rest.strip())
        elif words:
            self._ask(words)

    def _ask(self, question: str | Path) -> None:
        answer = self.searcher.ask(question, self.k, self.where, hybrid=self.is_hybrid and isinstance(question, str))
        self.last = LastAnswer(question, answer)
        show_answer(self.view, self.searcher.index, question, answer)

    def _set_k(self, rest: str) -> None:
        if not rest.isdecimal() or int(rest) < 1:
            raise DcdError(f":k expects a number of at least 1, got {rest!r}", hint="for example :k 20")
        self.k = int(rest)

    def _switch_hybrid(self, _: str) -> None:
        from dcdctl.core.search import check_hybrid

        if not self.is_hybrid:
            check_hybrid(self.searcher.index)
        self.is_hybrid = not self.is_hybrid
        note("texts are ranked by vectors and by words" if self.is_hybrid else "texts are ranked by vectors")

    def _set_where(self, rest: str) -> None:
        from dcdctl.core.search import parse_where

        self.where = parse_where(rest, self.searcher.index.columns) if rest else None

    def _ask_image(self, rest: str) -> None:
        if not rest:
            raise DcdError(":image expects a file", hint="for example :image dog.jpg")
        self._ask(Path(rest).expanduser())

    def _write(self, rest: str) -> None:
        if not rest:
            raise DcdError(":html expects a file", hint="for example :html found.html")
        self._write_page(Path(rest).expanduser())

    def _open(self, _: str) -> None:
        page = self._last().page
        if page is None:
            page = Path(tempfile.mkdtemp(prefix="dcdctl-search-")) / "search.html"
            self._write_page(page)
        if not webbrowser.open(page.resolve().as_uri()):
            note("no browser is available")

    def _write_page(self, path: Path) -> None:
        from dcdctl.core import report

        last = self._last()
        report.write_search_page(path, self.searcher.index, last.question, last.answer)
        self.last = replace(last, page=path)
        note(f"page -> {path}")

    def _last(self) -> LastAnswer:
        if self.last is None:
            raise DcdError("there is no answer yet", hint="enter a query first")
        return self.last

    def _help(self, _: str) -> None:
        note(HELP)

    def _quit(self, _: str) -> None:
        self.is_over = True

    _commands: ClassVar[dict[str, Callable[[Session, str], None]]] = {
        "k": _set_k,
        "hybrid": _switch_hybrid,
        "where": _set_where,
        "image": _ask_image,
        "html": _write,
        "open": _open,
        "help": _help,
        "h": _help,
        "quit": _quit,
        "q": _quit,
    }


def run(searcher: Searcher, view: View, k: int, where: Condition | None = None, *, hybrid: bool = False) -> int:
    """Answer the queries of a prompt or of stdin; returns the exit code."""
    session = Session(searcher, view, k, where, hybrid=hybrid)
    return _prompt(session) if sys.stdin.isatty() else _read_lines(session)


def _read_lines(session: Session) -> int:
    """Answer each line of stdin as it arrives; 1 if a line could not be answered, otherwise 0."""
    num_failed, searcher, view = 0, session.searcher, session.view
    # Bytes, because one line that is not UTF-8 must not end the others; files from Windows may begin with a byte order
    # mark.
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        text = raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
        if not text:
            continue
        try:
            show_line(
                view, searcher.index, text, searcher.by_text(text, session.k, session.where, hybrid=session.is_hybrid)
            )
        except DcdError as error:
            num_failed += 1
            show_failure(view, text, error)
            show_error(DcdError(f"line {number:,}: {error}"))
    return int(num_failed > 0)


def _prompt(session: Session) -> int:
    note(f"{session.searcher.index.num_images:,} images; type a text to search, :help for help")
    with _history():
        while not session.is_over:
            try:
                session.do(_read_prompt())
            except EOFError:
                # Ctrl-D leaves the cursor on the line of the prompt.
                note("")
                break
            except KeyboardInterrupt:
                note("\ninterrupted; leave with Ctrl-D")
            except DcdError as error:
                show_error(error)
    return 0


def _read_prompt() -> str:
    """The line typed at the prompt, which is written to stderr if stdout is not a terminal."""
    if sys.stdout.isatty():
        return input(PROMPT)
    sys.stderr.write(PROMPT)
    sys.stderr.flush()
    return input()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Keep a history of queries for the arrow keys, also across sessions; none without readline or if its file cannot
    be written."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dcdctl" / "search-history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LENGTH)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
