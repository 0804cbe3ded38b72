"""The text side of a model for ONNX Runtime, which an index holds so that a search needs no torch: traced, given the
weights of the saved model beside it, and compared with torch (`text_tower` reads it)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core import artifacts, config, files
from dcdctl.core.errors import ModelError, StaleError, first_line, is_installed, require_extra
from dcdctl.core.models import onnx_towers, saved_folder, text_tower
from dcdctl.core.models.late import Searchable
from dcdctl.core.models.onnx import (
    LARGEST_DIFFERENCE,
    TextSide,
    eval_mode,
    exporting,
    largest_difference,
    write_graph,
)
from dcdctl.core.models.protocols import Preprocessor
from dcdctl.core.models.references.folders import SETTINGS_FILE
from dcdctl.core.models.text_tower import Padding, TextSettings, TextTower

TEXT_PACKAGES = ("onnx", "onnxruntime")
"""The packages that write and compare a text side. A search by it needs those of `TextTower` only."""
SHARED_FROM_BYTES = 1024
"""Smaller tensors stay in a graph, because ONNX Runtime may need their values to find shapes."""
COMPARED_BYTES = 1 << 24
"""Bytes of a tensor that are compared at once."""
COMPARED_EVERY = 8
"""Every so many of `PROBES` are compared together, whatever their length: a model that pads all texts to its maximum
takes a tenth of a second for each."""
PROBES = (
    "a",
    ".",
    "?!",
    "a b c",
    "\u00a0",
    "dog",
    "A DOG in the Snow",
    "two dogs run on a beach",
    "a red circle left of a blue square",
    "caf\u00e9",
    "cafe\u0301",
    "\u72d7\u5728\u96ea\u5730\u91cc",
    "\u0641\u064a \u0627\u0644\u062b\u0644\u062c",
    "\U0001f415 \u2744\ufe0f",
    "\ufb01re",
    "na\u00efve \u0130stanbul stra\u00dfe",
    "qzxv wkrjh",
    "antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x" * 300,
    "12,345.67 % of 3/4",
    "it's the dog's",
    "tabs\tand\nlines",
    "  spaces   inside  ",
    "[SEP] [UNK] [PAD]",
    "<s> </s> <pad> <unk>",
    "<|endoftext|> <|startoftext|>",
    "&amp; <b>bold</b>",
    "a, b; c: d.",
    "don\u2019t \u201cquote\u201d \u2014 dash",
    "under_score-and-hyphen",
    "e-mail@example.org",
    "#hashtag @name",
    "\u200bzero\u200dwidth",
    *(" ".join(["a small dog and a large cat"] * count) for count in (2, 8, 40)),
)
"""Texts that show whether the text side is equal: short, long, in other scripts, with words and signs that tokenizers
treat differently."""


def exports_text_towers() -> bool:
    """Whether the packages are installed that `export_text_tower` needs."""
    return all(map(is_installed, TEXT_PACKAGES))


def export_text_tower(
    model: Searchable,
    folder: Path,
    space: str | None = None,
    saved: Path | None = None,
    probes: Sequence[str] = (),
    *,
    fingerprint: str | None = None,
) -> None:
    """Write the text side of a model as `text_tower` describes, atomically, compared with torch on `PROBES`.

    `space` is for a query encoder: the digest of the model that embeds the images. `saved` is a saved model beside
    `folder`: weights in its files are read from there and not written again. `probes` are texts whose vectors are
    written too, `fingerprint` is the model's if it was computed before.

    ModelError for a model whose texts cannot be prepared or computed without it, and if its tokens differ from the
    model's, or its vectors by more than `LARGEST_DIFFERENCE`. MissingError without the packages of
    `exports_text_towers`, InputError for a full disk.
    """
    require_extra("index", *TEXT_PACKAGES, needed_by="the text side for ONNX Runtime")
    if reason := model.export_spec().refusals.get("onnx"):
        raise ModelError(f"its text side does not export to ONNX: {reason}")
    settings = _text_settings(model)
    # A copy, because a tokenizer keeps how it cut and padded its last texts, and would be saved with that.
    preprocess = copy.deepcopy(model.preprocess)
    with eval_mode(model), files.atomic_folder(folder) as partial:
        preprocess.tokenizer.backend_tokenizer.save(str(partial / text_tower.TOKENIZER_FILE))
        weights = _export_text_graph(model, preprocess, settings, folder=partial, saved=saved)
        if probes:
            tower = TextTower(partial, settings, weights=weights)
            tokens, _ = tower.tokenize(probes)
            np.save(partial / text_tower.PROBES_FILE, tower.vectors(tokens))
        names = sorted(path.name for path in partial.iterdir())
        digest = fingerprint or model.digest
        document = {
            "format": text_tower.FORMAT,
            "model": space or digest,
            "query_model": None if space is None else digest,
            "settings": config.to_table(settings),
            artifacts.FILES: artifacts.list_files(partial, names),
            "weights": {} if saved is None else _listed(saved, weights),
        }
        artifacts.write_document(partial / text_tower.TEXT_FILE, document)


def _listed(saved: Path, names: Sequence[str]) -> dict[str, artifacts.Document]:
    """The entries of files of a saved model, named from the folder above it."""
    if not (saved / SETTINGS_FILE).exists():  # another library's
        return artifacts.list_files(saved.parent, names)
    # As they were saved: to hash a large model again takes a second.
    entries = {f"{saved.name}/{name}": entry for name, entry in saved_folder.listed_in(saved).items()}
    return {name: entries[name] for name in names}


def _text_settings(model: Searchable) -> TextSettings:
    """How a model's texts become tokens; ModelError if anything but a tokenizer of the library tokenizers takes
    part."""
    tokenizer = model.preprocess.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"its tokenizer, {type(tokenizer).__name__}, is Python code, and no file of the library tokenizers holds it"
        )
    return TextSettings(
        max_text_len=model.preprocess.max_text_len,
        truncation_side=tokenizer.truncation_side,
        padding=Padding(
            id=tokenizer.pad_token_id,
            token=tokenizer.pad_token,
            type_id=tokenizer.pad_token_type_id,
            side=tokenizer.padding_side,
            to_maximum=model.export_spec().padded_length is not None,
        ),
        splits_special_tokens=bool(tokenizer.split_special_tokens),
        # For transformers the unknown token is special too, but it stands for a word of the text.
        special_ids=tuple(sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})),
        unknown_id=tokenizer.unk_token_id,
        cleaning=getattr(tokenizer, "cleaning", ""),
    )


def _export_text_graph(
    model: Searchable, preprocess: Preprocessor, settings: TextSettings, *, folder: Path, saved: Path | None
) -> list[str]:
    """Write the graph of the text side, compared with torch. Returns the files of the saved model that it reads."""
    texts = preprocess.texts(PROBES[-2:]).to(next(iter(model.parameters())).device)
    inputs = {"input_ids": texts.input_ids}
    if not settings.padding.to_maximum:
        inputs["attention_mask"] = texts.attention_mask
    axes = {0: "texts"} if settings.padding.to_maximum else {0: "texts", 1: "tokens"}
    free = dict.fromkeys(inputs, axes)
    graph = folder / text_tower.GRAPH_FILE
    # In eval mode, because tracing ends by setting the tower's mode on the model in it.
    tower = TextSide(model, model.embed_texts).eval()
    refusal = ModelError("no exporter")
    # Tracing takes a second where the newer exporter takes several, and does not need onnxscript. It writes constants
    # where the computation depends on sizes, which the comparison on texts of many lengths finds.
    exporters: list[Callable[[TextSide, Mapping[str, Tensor], Mapping[str, dict[int, str]], Path], None]] = [_trace]
    if all(map(is_installed, onnx_towers.PACKAGES)):
        exporters.append(write_graph)
    for write in exporters:
        for path in folder.glob(f"{graph.name}*"):
            path.unlink()
        try:
            write(tower, inputs, free, graph)
            weights = _link_weights(graph, tower.state_dict(), saved)
            _compare_texts(TextTower(folder, settings, weights=weights), model, preprocess)
            return weights
        except ModelError as error:
            refusal = error
        except OSError:
            raise
        except Exception as error:  # those of ONNX Runtime have no class of their own
            reason = error.__cause__ if isinstance(error, StaleError) and error.__cause__ else error
            refusal = ModelError(f"ONNX Runtime does not run its text side: {first_line(reason)[:200]}")
    raise refusal


@dataclass(frozen=True)
class _SavedTensor:
    """Where a tensor is in a .safetensors file."""

    file: str
    """Relative to the folder above the saved model."""
    start: int
    bytes_N: NDArray[np.uint8]

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether it has the bytes of an array."""
        bytes_N = array.reshape(-1).view(np.uint8)
        if len(bytes_N) != len(self.bytes_N):
            return False
        # In blocks: all at once would take as much memory again.
        blocks = range(0, len(bytes_N), COMPARED_BYTES)
        return all(
            np.array_equal(bytes_N[at : at + COMPARED_BYTES], self.bytes_N[at : at + COMPARED_BYTES]) for at in blocks
        )


def _saved_tensors(saved: Path) -> dict[str, _SavedTensor]:
    """The tensors of a saved model by name.

    A .safetensors file is the length of its header, 8 bytes, the header in JSON, and the tensors as they are in memory.
    """
    found = {}
    for path in sorted(saved.rglob("*.safetensors")):
        bytes_N = np.memmap(path, np.uint8, mode="r")
        start = 8 + int.from_bytes(bytes_N[:8].tobytes(), "little")
        for name, entry in json.loads(bytes_N[8:start].tobytes()).items():
            # The entry of metadata has no offsets.
            if "data_offsets" in entry:
                first, stop = (start + offset for offset in entry["data_offsets"])
                found[name] = _SavedTensor(path.relative_to(saved.parent).as_posix(), first, bytes_N[first:stop])
    return found


def _link_weights(graph: Path, weights: Mapping[str, Tensor], saved: Path | None) -> list[str]:
    """Give a graph the weights that are its inputs, as `_trace` leaves them: those that a file of a saved model holds,
    byte for byte, are read from there, others are in the graph. Returns the paths of these files, relative to the
    folder above the saved model."""
    import onnx

    proto = onnx.load(graph)
    tensors = {} if saved is None else _saved_tensors(saved)
    inputs, files_read = [], set()
    for value in proto.graph.input:
        if value.name not in weights:
            inputs.append(value)
            continue
        array = weights[value.name].detach().cpu().contiguous().numpy()
        # A saved model lacks the names of what is around the network.
        parts = value.name.split(".")
        names = (".".join(parts[start:]) for start in range(len(parts)))
        place = next((tensors[name] for name in names if name in tensors and tensors[name].holds(array)), None)
        if place is None or array.nbytes < SHARED_FROM_BYTES:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
            continue
        tensor = proto.graph.initializer.add()
        tensor.name, tensor.data_type = value.name, value.type.tensor_type.elem_type
        tensor.dims.extend(array.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, entry in (("location", place.file), ("offset", place.start), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(entry))
        files_read.add(place.file)
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    graph.write_bytes(proto.SerializeToString())
    return sorted(files_read)


def _compare_texts(tower: TextTower, model: Searchable, preprocess: Preprocessor) -> None:
    """ModelError if the tokens of a text of `PROBES` differ from the model's, or a coordinate of a vector too much from
    torch's: of texts of every length, each alone, and of some together."""
    device = next(iter(model.parameters())).device
    by_length: dict[int, str] = {}
    for text in PROBES:
        ids = _same_tokens(tower, preprocess, [text])["input_ids"]
        # Of the whole text, where the tokens are cut to the maximum.
        if tower.num_tokens(text) != len(preprocess.tokenizer(text, verbose=False)["input_ids"]):
            raise _other_tokens(text)
        by_length.setdefault(ids.shape[1], text)
    together = list(dict.fromkeys([*by_length.values(), *PROBES[::COMPARED_EVERY]]))
    difference = 0.0
    for texts in (*([text] for text in by_length.values()), together):
        tokens = _same_tokens(tower, preprocess, texts)
        with torch.no_grad():
            expected = model.embed_texts(preprocess.texts(texts).to(device)).cpu()
        difference = max(difference, largest_difference(torch.from_numpy(tower.vectors(tokens)), expected))
    if not difference <= LARGEST_DIFFERENCE:  # NaN fails too
        raise ModelError(
            f"ONNX Runtime's vectors of texts differ from torch's by {difference:.1e}, more than "
            f"{LARGEST_DIFFERENCE:.0e}"
        )


def _same_tokens(tower: TextTower, preprocess: Preprocessor, texts: Sequence[str]) -> Mapping[str, NDArray[np.int64]]:
    """The tokens of texts; ModelError if the model reads other ones."""
    tokens, _ = tower.tokenize(texts)
    if tokens["input_ids"].tolist() != preprocess.texts(texts).input_ids.tolist():
        raise _other_tokens(texts[0])
    return tokens


def _other_tokens(text: str) -> ModelError:
    return ModelError(
        f"the library tokenizers alone reads {text[:40]!r} as other tokens than the model's preprocessing"
    )


def _trace(tower: TextSide, example: Mapping[str, Tensor], free: Mapping[str, dict[int, str]], path: Path) -> None:
    """Write one file by following the computation of an example. Weights are inputs, by the names of the tower: a large
    model's would be written, read and written again. Constants are not folded, so that weights stay as the model has
    them; ONNX Runtime folds them as it opens the file."""
    with exporting(path):
        torch.onnx.export(
            tower,
            tuple(example.values()),
            str(path),
            dynamo=False,
            input_names=list(example),
            output_names=[text_tower.GRAPH_OUTPUT],
            dynamic_axes={**free, text_tower.GRAPH_OUTPUT: {0: "texts"}},
            do_constant_folding=False,
            export_params=False,
        )
