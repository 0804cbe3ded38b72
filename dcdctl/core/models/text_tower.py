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

`onnx.export_text_tower` writes such a folder, after it has compared tokens and vectors with those of the dual encoder.
Shape letters: T texts, D length of the vectors.
"""

from __future__ import annotations

import html
import string
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dcdctl.core import artifacts, config, machine
from dcdctl.core.errors import ConfigError, StaleError, first_line, is_installed, require_extra

GRAPH_FILE, TOKENIZER_FILE, TEXT_FILE, PROBES_FILE = "model.onnx", "tokenizer.json", "text.json", "probes.npy"
FORMAT = 3
PACKAGES = ("onnxruntime", "tokenizers")
"""Import names of the packages that such a folder needs."""
GRAPH_OUTPUT = "vectors"
HINT = "delete the index and make it again with `dcdctl index`"


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How shorter texts of a batch are filled up."""

    id: int
    token: str
    type_id: int
    side: str
    to_maximum: bool
    """To the maximum number of tokens, whatever the batch, and without a mask."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """All that decides the tokens of a text besides tokenizer.json."""

    max_text_len: int
    truncation_side: str
    padding: Padding
    splits_special_tokens: bool
    """Whether a special token that is written in a text is read as text."""
    special_ids: tuple[int, ...]
    unknown_id: int | None = None
    cleaning: Literal["", "whitespace", "lower", "canonicalize"] = ""
    """A key of `CLEANINGS`; empty for texts that the tokenizer reads as they are."""


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


def open_session(graph: Path, num_threads: int, providers: list[str], weights: Path | None = None) -> Any:
    """A session of ONNX Runtime for a file, with so many threads. `weights` is the folder to which the graph's external
    data is relative, if it is not the graph's own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors: its warnings are about graphs, for developers
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
    probes: NDArray[np.float32] | None = None
    """The vectors of the texts that tell a weak match, if `open` found them."""

    def __init__(
        self, folder: Path, settings: TextSettings, threads: int | None = None, weights: Collection[str] = ()
    ) -> None:
        """A folder whose files were compared with their checksums; `threads` as in `machine.num_threads`. `weights` are
        the files beside it that hold weights of the graph."""
        from tokenizers import Tokenizer

        if settings.cleaning:
            require_extra("open-clip", "ftfy", needed_by="the texts of a model of open_clip")
        self.max_text_len, self.unknown_id = settings.max_text_len, settings.unknown_id
        self.special_ids = frozenset(settings.special_ids)
        self._settings, self._clean = settings, CLEANINGS[settings.cleaning]
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
        self._session = open_session(
            folder / GRAPH_FILE,
            machine.num_threads(threads),
            ["CPUExecutionProvider"],
            folder.parent if weights else None,
        )
        self._inputs = [node.name for node in self._session.get_inputs()]
        # To count the tokens of a whole text, the tokenizer is changed for a moment.
        self._tokenizing = threading.Lock()

    @staticmethod
    def is_available() -> bool:
        """Whether the packages that it needs are installed."""
        return all(map(is_installed, PACKAGES))

    @staticmethod
    def open(folder: Path, fingerprint: str, threads: int | None = None) -> TextTower:
        """The text side in a folder. StaleError for a damaged file, and for the side of a dual encoder of another
        fingerprint, MissingError without the packages."""
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
        try:
            settings = config.build(TextSettings, document["settings"])
        except (KeyError, ConfigError) as error:
            raise StaleError(
                f"{folder / TEXT_FILE} is not as this dcdctl writes it: {error}", hint="update dcdctl"
            ) from error
        tower = TextTower(folder, settings, threads, weights=listed)
        if PROBES_FILE in document[artifacts.FILES]:
            tower.probes = np.load(folder / PROBES_FILE, allow_pickle=False)
        return tower

    def tokenize(self, texts: Sequence[str]) -> tuple[dict[str, NDArray[np.int64]], list[list[int]]]:
        """Texts cleaned and cut to `max_text_len`: the inputs of the graph, and the ids of each text."""
        with self._tokenizing:
            encodings = self._tokenizer.encode_batch(list(map(self._clean, texts)))
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
        with self._tokenizing:
            self._tokenizer.no_truncation()
            try:
                encoding = self._tokenizer.encode(self._clean(text))
            finally:
                self._cut()
        return sum(encoding.attention_mask)

    def vectors(self, batch: Any) -> NDArray[np.float32]:
        """The vectors of tokenized texts, T x D; `batch` are the inputs that `tokenize` gave."""
        (vectors_TD,) = self._session.run([GRAPH_OUTPUT], batch)
        return vectors_TD

    def _cut(self) -> None:
        self._tokenizer.enable_truncation(self._settings.max_text_len, direction=self._settings.truncation_side)
