"""The encoding of a text file: UTF-8, UTF-16 or UTF-32, or a guess among the encodings that spreadsheets of other
languages write.

A guess is never silent: `prepare` shows it with a caption, and corpus.json has it. Text that is mostly UTF-8 is never
guessed, because a damaged line would turn all other lines into wrong characters.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from charset_normalizer import from_bytes

from dcdctl.core.errors import ConfigError, InputError

CANDIDATES = ("cp1252", "gb18030", "cp932", "cp1251", "big5", "euc_kr", "euc_jp")
"""Encodings that are guessed: Western, Chinese, Japanese (Shift-JIS), Cyrillic, Chinese of Taiwan, Korean, Japanese
(EUC).

If two fit equally, the first one is taken."""
SAMPLE_BYTES = 20_000
"""Bytes of the lines with other letters than ASCII that a guess is made from."""
FORCE = "name the encoding with --encoding, such as --encoding cp1252, or save the file as UTF-8"
_WIDE = {
    (False, True): "utf-16-le",
    (True, False): "utf-16-be",
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
}
"""Encodings by the bytes of a Latin letter that are zero."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def check_encoding(name: str) -> str:
    """The codec name of an encoding; ConfigError if Python has no text encoding of that name."""
    try:
        "".encode(name)
    except LookupError as error:
        raise ConfigError(
            f"unknown encoding {name!r}",
            hint="known: utf-8, utf-16, cp1252, latin-1, shift_jis, gb18030, and Python's others",
        ) from error
    return codecs.lookup(name).name


def find_encoding(path: Path, forced: str | None = None) -> str:
    """The encoding that the whole file decodes in: `forced`, or the one that its bytes show or suggest; utf-8-sig for
    UTF-8.

    InputError if it does not decode, if it is damaged UTF-8, or if no candidate fits.
    """
    data = path.read_bytes()
    if forced is not None:
        name = "utf-8-sig" if forced == "utf-8" else forced
        if wrong := _fault(data, name):
            raise InputError(f"{path} is not {forced} text ({wrong})", hint="leave --encoding out, or name another")
        return name
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            if wrong := _fault(data, name):
                raise InputError(
                    f"{path} is not {name.removesuffix('-sig').upper()} text ({wrong}), and its first bytes say so",
                    hint=FORCE,
                )
            return name
    if (wide := _without_mark(data)) is not None and not _fault(data, wide):
        return wide
    if not (wrong := _fault(data, "utf-8")):
        return "utf-8-sig"
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    guess = (
        None if _are_mostly_utf8(lines) else next((name for name in _guesses(lines) if not _fault(data, name)), None)
    )
    if guess is None:
        raise InputError(f"{path} is not UTF-8 text ({wrong})", hint=FORCE)
    return guess


def is_utf8(encoding: str) -> bool:
    """Whether `find_encoding` found UTF-8."""
    return encoding == "utf-8-sig"


def example_of(texts: Iterable[str]) -> str:
    """The first text with other letters than ASCII, which shows whether the encoding is right; empty if there is
    none."""
    return next((text for text in texts if not text.isascii()), "")


def _fault(data: bytes, encoding: str) -> str:
    """Why bytes do not decode, with the line; empty if they do."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"{error.reason} on line {line:,}"
    except UnicodeError as error:  # a codec of several bytes without their mark
        return str(error)
    return ""


def _without_mark(data: bytes) -> str | None:
    """UTF-16 or UTF-32 by the zero bytes of Latin letters; None for anything else."""
    zeros = tuple(byte == 0 for byte in data[:8])  # a table begins with the name of a column, a line of JSON with {"
    return {zeros_of * (8 // len(zeros_of)): name for zeros_of, name in _WIDE.items()}.get(zeros)


def _are_mostly_utf8(lines: list[bytes]) -> bool:
    """Whether most lines with other letters than ASCII are UTF-8, half of a surrogate pair included: the file is then a
    damaged one."""

    def is_like_utf8(line: bytes) -> bool:
        try:
            line.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return False
        return True

    return 2 * sum(map(is_like_utf8, lines)) >= len(lines)


def _guesses(lines: list[bytes]) -> Iterator[str]:
    """Candidates, the likeliest first."""
    sample, size = [], 0
    for line in lines:
        sample.append(line[:SAMPLE_BYTES])
        size += len(line)
        if size >= SAMPLE_BYTES:
            break
    text = b"\n".join(sample)
    # One chunk of the whole sample: the library's default looks at five short pieces of a file.
    matches = from_bytes(text, steps=1, chunk_size=len(text), cp_isolation=list(CANDIDATES), preemptive_behaviour=False)
    ranked = sorted((match.chaos, -match.coherence, _preferred(match.could_be_from_charset)) for match in matches)
    return (CANDIDATES[number] for _, _, number in ranked)


def _preferred(names: Iterable[str]) -> int:
    """The first of the candidates that give the same text, as cp1251 does for the quotation marks of cp1252."""
    return min(CANDIDATES.index(name) for name in names)
