"""The text side of a dual encoder without torch and transformers: a graph for ONNX Runtime and a tokenizer, opened in
tenths of a second.

    TEXT/model.onnx       input_ids int64, texts x tokens, and attention_mask, the same, unless all texts are padded
        to one length
                          -> vectors float32, texts x D, of length 1
    TEXT/tokenizer.json   the tokenizer, by the library tokenizers
    TEXT/probes.npy       in an index, the vectors of the texts that tell a weak match, float32, texts x D or texts x
        tokens x D
    TEXT/text.json        how texts are cut and padded, the fingerprint of the dual encoder, that of a query encoder
        if it embeds the texts in the dual encoder's place, and the size and SHA-256 of the other files, and of the
        files of weights that the graph reads

Beside a saved model, as in an index, the graph holds no weights that the model's .safetensors files hold: its tensors
are external data of ONNX, ranges of bytes of these files, named relative to the folder above TEXT. ONNX Runtime maps
them into memory. Whoever moves TEXT moves the model with it.

`text_export.export_text_tower` writes such a folder, after it has compared tokens and vectors with those of the model.
Shape letters: T texts, D length of the vectors.
"""

from __future__ import annotations

import html
import string
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dcdctl.core import artifacts, config, files, machine
from dcdctl.core.config import between, settle_fields
from dcdctl.core.errors import ConfigError, DcdError, StaleError, first_line, is_installed, require_extra

GRAPH_FILE, TOKENIZER_FILE, TEXT_FILE, PROBES_FILE = "model.onnx", "tokenizer.json", "text.json", "probes.npy"
FORMAT = 3
PACKAGES = ("onnxruntime", "tokenizers")
"""Import names of the packages that such a folder needs."""
GRAPH_INPUTS, GRAPH_OUTPUT = ("input_ids", "attention_mask"), "vectors"
HINT = "delete the index and make it again with `dcdctl index`"
PATIENCE_S = 30
"""Longest time to read a batch of texts, which takes milliseconds: a regular expression of a tokenizer, and a loop of a
graph, may never end."""
GRAPH_BYTES = 8 << 30
"""Memory for the numbers that graphs compute in this process; weights that they map are not counted."""
PROBE_DIFFERENCE = 1e-3
"""Largest difference of a coordinate of a vector that another machine computes again; a hundred times what was seen."""
Side = Literal["left", "right"]
Id = Annotated[int, between(0, 2**31 - 1)]


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How shorter texts of a batch are filled up."""

    id: Id
    token: str
    type_id: Id
    side: Side
    to_maximum: bool
    """To the maximum number of tokens, whatever the batch, and without a mask."""

    def __post_init__(self) -> None:
        settle_fields(self, "padding")


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """All that decides the tokens of a text besides tokenizer.json."""

    max_text_len: Annotated[int, between(1, 2**17)]
    truncation_side: Side
    padding: Padding
    splits_special_tokens: bool
    """Whether a special token that is written in a text is read as text."""
    special_ids: tuple[Id, ...]
    unknown_id: Id | None = None
    cleaning: Literal["", "whitespace", "lower", "canonicalize"] = ""
    """A key of `CLEANINGS`; empty for texts that the tokenizer reads as they are."""

    def __post_init__(self) -> None:
        settle_fields(self)


def _plain(text: str) -> str:
    """Without wrong encodings, HTML entities and outer spaces, as open_clip cleans every text."""
    import ftfy  # as open_clip does, which needs it

    # Twice, as in open_clip: captions of web pages are often escaped twice.
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _one_line(text: str) -> str:
    return " ".join(_plain(text).split())


def _without_punctuation(text: str) -> str:
    letters = _plain(text).replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(letters.lower().split())


CLEANINGS: dict[str, Callable[[str], str]] = {
    "": str,
    "whitespace": _one_line,
    "lower": lambda text: _one_line(text).lower(),
    "canonicalize": _without_punctuation,
}
"""What is done to a text before it becomes tokens, by the names of open_clip."""


@cache
def _limit_memory() -> None:
    """Let graphs of this process that are opened for it share `GRAPH_BYTES`: a stranger's graph may ask for any."""
    import onnxruntime

    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({"max_mem": GRAPH_BYTES}))


def open_session(
    graph: Path, num_threads: int, providers: list[str], weights: Path | None = None, *, is_limited: bool = False
) -> Any:
    """A session of ONNX Runtime for a file, with so many threads. `weights` is the folder to which the graph's external
    data is relative, if it is not the graph's own; `is_limited` bounds its memory by `GRAPH_BYTES`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4  # its errors are raised, and its warnings are about graphs, for developers
    if is_limited:
        _limit_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
    if weights is None:
        return onnxruntime.InferenceSession(str(graph), options, providers=providers)
    # ONNX Runtime refuses external data outside of the folder of a file, and takes another folder for bytes only.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    try:
        return onnxruntime.InferenceSession(graph.read_bytes(), options, providers=providers)
    except Exception as error:  # those of ONNX Runtime have no class of their own
        raise StaleError(f"ONNX Runtime cannot open {graph}: {first_line(error)[:200]}", hint=HINT) from error


class TextTower:
    """The text side of a dual encoder, run by ONNX Runtime on the CPU: a `TextEncoder`."""

    FILE = TEXT_FILE
    """The file of a folder that has the checksums of the others."""
    FILES = (GRAPH_FILE, TOKENIZER_FILE, TEXT_FILE)
    """The files that every folder has."""
    probes: NDArray[np.float32] | None = None
    """The vectors of the texts that tell a weak match, if `open` found them."""

    def __init__(self, folder: Path, settings: TextSettings, weights: Collection[str] = ()) -> None:
        """A folder whose files were compared with their checksums. `weights` are the files beside it that hold weights
        of the graph."""
        from tokenizers import Tokenizer

        if settings.cleaning:
            require_extra("open-clip", "ftfy", needed_by="the texts of a model of open_clip")
        self.max_text_len, self.unknown_id = settings.max_text_len, settings.unknown_id
        self.special_ids = frozenset(settings.special_ids)
        self._settings, self._clean = settings, CLEANINGS[settings.cleaning]
        self._folder = folder
        with self._reading(TOKENIZER_FILE):
            self._tokenizer = Tokenizer.from_str((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
            self._tokenizer.encode_special_tokens = settings.splits_special_tokens
            self._cut()
            padding = settings.padding
            self._tokenizer.enable_padding(
                length=settings.max_text_len if padding.to_maximum else None,
                direction=padding.side,
                pad_id=padding.id,
                pad_token=padding.token,
                pad_type_id=padding.type_id,
            )
        with self._reading(GRAPH_FILE):
            self._session = open_session(
                folder / GRAPH_FILE,
                machine.num_threads(),
                ["CPUExecutionProvider"],
                folder.parent if weights else None,
                is_limited=True,
            )
            self._inputs = [node.name for node in self._session.get_inputs()]
            outputs = [node.name for node in self._session.get_outputs()]
            if not {*self._inputs} <= {*GRAPH_INPUTS} or GRAPH_OUTPUT not in outputs:
                raise ValueError(f"it reads {', '.join(self._inputs)}, or gives no {GRAPH_OUTPUT}")
        # To count the tokens of a whole text, the tokenizer is changed for a moment.
        self._tokenizing = threading.Lock()
        self._workers = machine.Workers(PATIENCE_S)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """A block in which a file of the folder is at work; StaleError if it fails, or does not end."""
        path = self._folder / name
        try:
            yield
        except TimeoutError as error:
            raise StaleError(f"{path} reads a text for more than {PATIENCE_S} s", hint=HINT) from error
        except BaseException as error:
            # Those of ONNX Runtime and tokenizers have no class of their own; a panic of Rust is not even an Exception.
            if isinstance(error, OSError | DcdError) or not (
                isinstance(error, Exception) or type(error).__name__ == "PanicException"
            ):
                raise
            raise StaleError(f"{path} cannot be used: {first_line(error)[:200]}", hint=HINT) from error

    @staticmethod
    def is_available() -> bool:
        """Whether the packages that it needs are installed."""
        return all(map(is_installed, PACKAGES))

    @staticmethod
    def open(folder: Path, fingerprint: str, probes: Sequence[str] = ()) -> TextTower:
        """The text side in a folder; `probes` are the texts of its probes, none to leave them out. StaleError for a
        damaged file, and for the side of a dual encoder of another fingerprint, MissingError without the packages."""
        require_extra("index", "onnxruntime", needed_by="the text side of an index")
        document = artifacts.read_document(folder / TEXT_FILE, FORMAT, hint=HINT)
        if (actual := document.get("model")) != fingerprint:
            problem = (
                f"{folder} is the text side of the model {str(actual)[:8]}, and the vectors are those of the "
                f"model {fingerprint[:8]}"
            )
            raise StaleError(problem, hint=HINT)
        # Its own files, then the files of weights that the graph reads.
        for key, root in ((artifacts.FILES, folder), ("weights", folder.parent)):
            listed = artifacts.listed_files(folder / TEXT_FILE, {artifacts.FILES: document.get(key)}, hint=HINT)
            artifacts.check_files(root, listed, hint=HINT)
        own = document[artifacts.FILES]
        if missing := {GRAPH_FILE, TOKENIZER_FILE} - set(own):
            raise StaleError(f"{folder / TEXT_FILE} does not list {min(missing)}", hint=HINT)
        try:
            settings = config.build(TextSettings, document["settings"])
        except (KeyError, TypeError, ConfigError) as error:
            raise StaleError(
                f"{folder / TEXT_FILE} is not as this dcdctl writes it: {error}", hint="update dcdctl"
            ) from error
        tower = TextTower(folder, settings, weights=listed)
        if probes and PROBES_FILE in own:
            tower.probes = tower._read_probes(folder / PROBES_FILE, probes)
        return tower

    def _read_probes(self, path: Path, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of the probes; StaleError if the first one is not what this folder gives for its text now: the
        bytes of the weights may be others than when the graph was written."""
        (found,) = self.vectors(self.tokenize(texts[:1])[0])
        lengths = (len(texts), *(None for _ in found.shape[1:]), found.shape[-1])
        try:
            (probes,) = files.map_arrays(path, (np.float32, lengths))
        except ValueError as error:
            raise StaleError(f"{path} is damaged: {error}", hint=HINT) from error
        # Padding is zero.
        now, then = (vector if vector.ndim == 1 else vector[vector.any(axis=1)] for vector in (found, probes[0]))
        if now.shape != then.shape or not np.allclose(now, then, rtol=0, atol=PROBE_DIFFERENCE, equal_nan=True):
            raise StaleError(f"{self._folder} gives another vector for a text than when it was written", hint=HINT)
        return probes

    def tokenize(self, texts: Sequence[str]) -> tuple[dict[str, NDArray[np.int64]], list[list[int]]]:
        """Texts cleaned and cut to `max_text_len`: the inputs of the graph, and the ids of each text."""
        cleaned = list(map(self._clean, texts))
        with self._tokenizing, self._reading(TOKENIZER_FILE):
            encodings = self._workers.do(lambda: self._tokenizer.encode_batch(cleaned))
        # The graph of a model that ignores the mask, or pads all texts alike, lacks that input.
        both = {
            "input_ids": np.array([text.ids for text in encodings], np.int64),
            "attention_mask": np.array([text.attention_mask for text in encodings], np.int64),
        }
        inputs = {name: both[name] for name in self._inputs}
        # A model that is trained with padding reads it, so it counts as read.
        reads_all = self._settings.padding.to_maximum
        read = []
        for text in encodings:
            marked = zip(text.ids, text.attention_mask, strict=True)
            read.append([token for token, is_read in marked if is_read or reads_all])
        return inputs, read

    def num_tokens(self, text: str) -> int:
        """The number of tokens of a whole text, special ones included."""
        cleaned = self._clean(text)
        with self._tokenizing, self._reading(TOKENIZER_FILE):
            self._tokenizer.no_truncation()
            try:
                encoding = self._workers.do(lambda: self._tokenizer.encode(cleaned))
            finally:
                self._cut()
        return sum(encoding.attention_mask)

    def vectors(self, batch: Any) -> NDArray[np.float32]:
        """The vectors of tokenized texts, T x D; `batch` are the inputs that `tokenize` gave."""
        with self._reading(GRAPH_FILE):
            (vectors_TD,) = self._workers.do(lambda: self._session.run([GRAPH_OUTPUT], batch))
            num_texts, length = batch[self._inputs[0]].shape
            is_right = vectors_TD.dtype == np.float32 and vectors_TD.ndim in (2, 3) and len(vectors_TD) == num_texts
            if not is_right or vectors_TD.shape[1:-1] not in ((), (length,)):
                raise ValueError(f"it gives {vectors_TD.dtype} of shape {vectors_TD.shape} for {num_texts} texts")
        return vectors_TD

    def _cut(self) -> None:
        self._tokenizer.enable_truncation(self._settings.max_text_len, direction=self._settings.truncation_side)
