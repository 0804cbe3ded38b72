"""Indices of strangers, whose checksums fit: each forgery is one error, never an answer, a wait or gigabytes."""

from __future__ import annotations

import io
import json
import re
import threading
from functools import partial

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import FAMILIES, late, with_noise
from made_index import build_of, searcher_of, unit_vectors, update, write_index
from noise_index import CAPTIONS
from strangers import forged

from dcdctl.core import machine, models
from dcdctl.core.errors import DcdError, StaleError
from dcdctl.core.models import text_tower
from dcdctl.core.search import FolderIndex, StoredTokens, StoredVectors, keywords, parse_where, part_files
from dcdctl.core.search.searcher import IndexModel
from dcdctl.core.search.summary import index_document

SEGMENTS = ("flat_up_to=0", "segment_rows=5")


@pytest.fixture(scope="module")
def made(noise_index, tmp_path_factory):
    """An index of each kind, by name: of a dual encoder with all that an index may have, and of tokens."""
    folder = tmp_path_factory.mktemp("made")
    indices = {"codes": forged(noise_index, folder / "codes")}
    names = FolderIndex.open(noise_index).values("image_id").to_pylist()
    table = pa.table({"image": names, "year": list(range(2000, 2012)), "owner": ["a", "b"] * 6})
    update(indices["codes"], metadata=table, sets=("keywords=true", *SEGMENTS), remove=(names[3],))
    models.save(with_noise(late(FAMILIES["dual"](CAPTIONS, folder), is_pooled=False)), folder / "model")
    indices["late"] = folder / "late"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(part_files, "ROWS_PER_PART", 5)
        build_of(folder / "model", noise_index.parent / "images", indices["late"], *SEGMENTS, "tokens.centroids=7")
    return indices


def read(folder, name):
    """All that a search reads of an index, or what it reads of one file."""
    index = FolderIndex.open(folder)
    if name.startswith("model/"):
        return IndexModel(index, "cpu").load().model
    if name.startswith("text/"):
        return searcher_of(folder).by_text(CAPTIONS[0], 3).hits
    query = np.ones((1, 2, index.dim) if index.document.model.kind == "late" else (1, index.dim))
    found = [index_document(index), index.search(query, 12)]
    if index.has_keywords:
        where = parse_where("year >= 2003 and owner = 'a'", index.columns)
        found += [index.search(query, 4, where), index.hybrid(["plain red"], query, 4)]
        keywords.read_words(folder, index.document.keywords)
    return found


def array(change):
    """The same .npy file with another array."""

    def edit(raw):
        return saved(change(np.load(io.BytesIO(raw))))

    return edit


def saved(*arrays):
    file = io.BytesIO()
    for each in arrays:
        np.save(file, each)
    return file.getvalue()


def header(text):
    """A .npy file that has this header alone."""
    padded = text.encode().ljust(118) + b"\n"
    return lambda _: b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


def centroids(change):
    def edit(raw):
        file = io.BytesIO(raw)
        return saved(*change(np.load(file), np.load(file)))

    return edit


def table(change, **options):
    """The same Parquet file with another table, whose vectors are plain."""

    def edit(raw):
        file = io.BytesIO()
        changed = change(pq.read_table(io.BytesIO(raw)))
        pq.write_table(changed, file, **{"compression": "none", "use_dictionary": False, **options})
        return file.getvalue()

    return edit


def column(name, change):
    def edit(rows):
        values = change(rows[name])
        return rows.set_column(rows.schema.get_field_index(name), name, values)

    return table(edit)


def graph(change):
    """The same ONNX file with another graph."""

    def edit(raw):
        model = onnx.load_from_string(raw)
        change(model.graph)
        model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
        return model.SerializeToString()

    return edit


def after(*nodes, **numbers):
    """A graph whose result passes through more nodes, from "was" to "vectors"."""

    def change(graph_proto):
        for node in graph_proto.node:
            node.output[:] = ["was" if name == "vectors" else name for name in node.output]
        graph_proto.node.extend(onnx.helper.make_node(*node[:3], **node[3]) for node in nodes)
        graph_proto.initializer.extend(
            onnx.numpy_helper.from_array(np.array(each), name) for name, each in numbers.items()
        )

    return graph(change)


def external(key, change):
    def edit(graph_proto):
        tensor = next(each for each in graph_proto.initializer if each.external_data)
        entry = next(each for each in tensor.external_data if each.key == key)
        entry.value = change(entry.value)

    return graph(edit)


def safetensors(change):
    def edit(raw):
        length = 8 + int.from_bytes(raw[:8], "little")
        head = json.loads(raw[8:length])
        change(head, [name for name in head if name != "__metadata__"])
        text = json.dumps(head).encode().ljust(length - 8)
        return len(text).to_bytes(8, "little") + text + raw[length:]

    return edit


def put(name, value):
    """A forged entry of tokenizer.json."""
    return lambda raw: json.dumps(json.loads(raw) | {name: value}).encode()


HUGE = header("{'descr': '<i8', 'fortran_order': False, 'shape': (2684354560,), }")
OBJECTS = (
    b"\x93NUMPY\x01\x00" + (54).to_bytes(2, "little") + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"
)
ARRAYS = {
    "no file": lambda _: b"",
    "20 GB": HUGE,
    "objects": lambda _: OBJECTS,
    "a deep header": header("(" * 50 + ")" * 50),
    "cut off": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"\0",
    "other numbers": array(lambda each: each.astype("f8")),
    "an axis more": array(lambda each: each[None]),
    "no axis": lambda _: saved(np.int64(3)),
    "fewer": array(lambda each: each[:-1]),
    "more": array(lambda each: np.concatenate([each, each[-1:]])),
}
LISTS = {
    "removed-*.npy": {
        "negative": array(lambda each: each - 99),
        "too large": array(lambda each: each + 99),
    },
    "keywords/rows-*.npy": {
        "negative": array(lambda each: each - 99),
        "too large": array(lambda each: each + 99),
    },
    "keywords/starts-*.npy": {
        "descending": array(lambda each: each[::-1].copy()),
        "too large": array(lambda each: each + 1),
    },
    "keywords/scores-*.npy": {
        "NaN": array(lambda each: each * np.float32("nan")),
        "negative": array(lambda each: -each),
    },
    "text/probes.npy": {
        "NaN": array(lambda each: each * np.float32("nan")),
        "others": array(lambda each: -each),
        "none": array(lambda each: each[:0]),
    },
}
CENTROIDS = {
    "NaN": lambda places, codes: (places * np.float16("nan"), codes),
    "of another width": lambda places, codes: (places[:, :-1], codes),
    "in float32": lambda places, codes: (places.astype("f4"), codes),
    "none": lambda places, codes: (places[:0], codes),
    "fewer than codes": lambda places, codes: (places[:2], codes),
    "codes out of range": lambda places, codes: (places, codes + np.uint16(60_000)),
    "codes of fewer rows": lambda places, codes: (places, codes[:, :-1]),
    "codes of more rows": lambda places, codes: (places, np.concatenate([codes, codes], axis=1)),
    "codes of more bytes": lambda places, codes: (places, codes.astype("i8")),
    "images without tokens": lambda places, codes: (places, np.full_like(codes, len(places))),
    "no codes": lambda places, codes: (places, codes[:0]),
    "objects": lambda places, codes: (places.astype("O"), codes),
}
PARTS = {
    "no file": lambda _: b"",
    "cut off": lambda raw: raw[:-20],
    "text": lambda _: b"PAR1hello",
    "zeros": lambda raw: bytes(len(raw)),
    "fewer rows": table(lambda rows: rows.slice(1)),
    "more rows": table(lambda rows: pa.concat_tables([rows, rows])),
    "no rows": table(lambda rows: rows.slice(0, 0)),
    "compressed": table(lambda rows: rows, compression="zstd"),
    "more groups": table(lambda rows: rows, row_group_size=2),
    "no names": table(lambda rows: rows.drop_columns(["image_id"])),
    "names that are numbers": column("image_id", lambda rows: pa.array(range(len(rows)))),
    "names that are no text": column("path", lambda rows: pa.array([b"\xff"] * len(rows))),
    "names that are missing": column("image_id", lambda rows: pa.nulls(len(rows), "string")),
}
VECTORS = {
    "no vectors": table(lambda rows: rows.drop_columns(["vector"])),
    "float32": column("vector", lambda rows: rows.cast(pa.list_(pa.float32(), 8))),
    "shorter": column(
        "vector", lambda rows: pa.array([each[:3] for each in rows.to_pylist()], pa.list_(pa.float16(), 3))
    ),
}
TOKENS = {
    "no counts": table(lambda rows: rows.drop_columns(["num_tokens"])),
    "counts of zero": column("num_tokens", lambda rows: pa.array([0] * len(rows), "int32")),
    "negative counts": column("num_tokens", lambda rows: pa.array([-1] * len(rows), "int32")),
    "large counts": column("num_tokens", lambda rows: pa.array([2**30] * len(rows), "int32")),
}
WORDS = {
    "no words": table(lambda rows: rows.drop_columns(["words"])),
    "fewer rows": table(lambda rows: rows.slice(1)),
    "missing rows": column("words", lambda rows: pa.nulls(len(rows), rows.type)),
}
COLUMNS = {
    "fewer rows": table(lambda rows: rows.slice(1)),
    "a column less": table(lambda rows: rows.drop_columns(["year"])),
    "texts in place of numbers": column("year", lambda rows: pa.array(["x"] * len(rows))),
    "lists": column("owner", lambda rows: pa.array([["x"]] * len(rows))),
    "text": lambda _: b"hello",
}
TOKENIZERS = {
    "empty": lambda _: b"{}",
    "a list": lambda _: b"[]",
    "deep": lambda _: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "no text": lambda _: b"\xff\xfe",
    "no regex": put(
        "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False}
    ),
    "a regex that gives up": put(
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "(?:[a-z ]|[a-z ])+[!x]"}, "behavior": "Isolated", "invert": False},
    ),
    "numbers of no tokens": lambda raw: re.sub(rb'("[a-z]+": )(\d+)', rb"\g<1>9\g<2>", raw),
}
GRAPHS = {
    "empty": lambda _: b"",
    "text": lambda _: b"hello",
    "shifted weights": external("offset", lambda value: str(int(value) + 4)),
    "weights beyond the end": external("offset", lambda value: str(int(value) + 2**40)),
    "weights before the beginning": external("offset", lambda _: "-8"),
    "weights of another file": external("location", lambda _: "model/config.json"),
    "weights outside": external("location", lambda _: "../../../../etc/passwd"),
    "no result": graph(lambda each: each.output.pop()),
    "another input": graph(lambda each: each.input.append(onnx.helper.make_tensor_value_info("more", 1, [1]))),
    "a custom operator": after(("Evil", ["was"], ["vectors"], {"domain": "elsewhere"})),
    "opposite vectors": after(("Neg", ["was"], ["vectors"], {})),
    "zero vectors": after(("Sub", ["was", "was"], ["vectors"], {})),
    "NaN": after(("Add", ["was", "nan"], ["vectors"], {}), nan=np.float32(["nan"])),
    "flat vectors": after(("Reshape", ["was", "flat"], ["vectors"], {}), flat=[-1]),
    "more vectors": after(("Concat", ["was", "was"], ["vectors"], {"axis": 0})),
    "longer vectors": after(("Concat", ["was", "was"], ["vectors"], {"axis": -1})),
    "20 GB": after(
        ("ConstantOfShape", ["size"], ["many"], {}),
        ("ReduceMax", ["many"], ["largest"], {"keepdims": 0}),
        ("Add", ["was", "largest"], ["vectors"], {}),
        size=[5_000_000_000],
    ),
}
WEIGHTS = {
    "no file": lambda _: b"",
    "a header of all bytes": lambda raw: (2**62).to_bytes(8, "little") + raw[8:],
    "no header": lambda raw: bytes(8) + raw[8:],
    "a header of zeros": lambda raw: raw[:8] + bytes(20) + raw[28:],
    "a deep header": lambda raw: (
        raw[:8] + b"[" * int.from_bytes(raw[:8], "little") + raw[8 + int.from_bytes(raw[:8], "little") :]
    ),
    "other numbers": lambda raw: raw[:-4000] + b"\xff\xff\xff\x7f" * 1000,
}
VOCABULARIES = {
    "no text": lambda raw: b"\xff\xfe" + raw,
    "words twice": lambda raw: raw + raw,
    "words without rows": lambda raw: raw + b"more\n",
}
CODES = {
    "a rotation of NaN": lambda arrays: arrays[0].fill(np.nan),
    "another rotation": lambda arrays: arrays.__setitem__(0, arrays[0][:-1]),
    "an endless center": lambda arrays: arrays[1].fill(np.inf),
    "fewer codes": lambda arrays: arrays.__setitem__(2, arrays[2][:-1]),
    "codes of more vectors": lambda arrays: arrays.__setitem__(2, np.tile(arrays[2], 2)),
    "no codes": lambda arrays: arrays.__setitem__(2, arrays[2][:0]),
    "no candidates": lambda arrays: arrays[3].fill(0),
    "candidates without end": lambda arrays: arrays[3].fill(2**62),
    "fewer arrays": lambda arrays: arrays.pop(),
    "more arrays": lambda arrays: arrays.append(arrays[3]),
}


def codes(change):
    """A file of codes whose four arrays were changed."""

    def edit(raw):
        file = io.BytesIO(raw)
        arrays = [np.load(file) for _ in range(4)]
        change(arrays)
        return saved(*arrays)

    return edit


OF_ANOTHER_FORM = {each: ARRAYS[each] for each in ("other numbers", "fewer", "more")}
FORGERIES = {
    ("codes", "removed-*.npy"): {**ARRAYS, **LISTS["removed-*.npy"]},
    ("codes", "keywords/rows-*.npy"): {**OF_ANOTHER_FORM, **LISTS["keywords/rows-*.npy"]},
    ("codes", "keywords/starts-*.npy"): {**OF_ANOTHER_FORM, **LISTS["keywords/starts-*.npy"]},
    ("codes", "keywords/scores-*.npy"): {**OF_ANOTHER_FORM, **LISTS["keywords/scores-*.npy"]},
    ("codes", "keywords/words-*.parquet"): WORDS,
    ("codes", "keywords/vocabulary-*.txt"): VOCABULARIES,
    ("codes", "columns-*.parquet"): COLUMNS,
    ("codes", "vectors/part-00000.parquet"): {**PARTS, **VECTORS},
    ("late", "vectors/part-00000.parquet"): TOKENS,
    ("codes", "ann/codes-000000000000-*"): {each: codes(edit) for each, edit in CODES.items()},
    ("late", "ann/centroids-000000000000-*"): {
        **{each: centroids(edit) for each, edit in CENTROIDS.items()},
        "20 GB": ARRAYS["20 GB"],
        "longer": ARRAYS["longer"],
    },
    ("codes", "text/probes.npy"): {**OF_ANOTHER_FORM, **LISTS["text/probes.npy"]},
    ("codes", "text/tokenizer.json"): TOKENIZERS,
    ("codes", "text/model.onnx"): GRAPHS,
    ("late", "text/model.onnx"): {each: GRAPHS[each] for each in ("shifted weights", "flat vectors", "more vectors")},
    ("codes", "model/model.safetensors"): WEIGHTS,
}
ROWS = [(*place, name, edit) for place, edits in FORGERIES.items() for name, edit in edits.items()]


@pytest.mark.parametrize(
    ("kind", "name", "edit"),
    [(kind, name, edit) for kind, name, _, edit in ROWS],
    ids=[f"{kind} {name} {each}".replace("/", " ") for kind, name, each, _ in ROWS],
)
def test_a_forged_file_is_one_error(made, tmp_path, kind, name, edit):
    folder = forged(made[kind], tmp_path / "index", {name: edit})
    with pytest.raises(DcdError) as raised:
        read(folder, name)
    assert len(str(raised.value).splitlines()) == 1


def entry(path, value):
    """A change of an entry of index.json: a value, or a function of the one there."""

    def change(document):
        *parents, last = path.split(".")
        for key in parents:
            document = document[int(key) if key.isdecimal() else key]
        last = int(last) if last.isdecimal() else last
        document[last] = value(document[last]) if callable(value) else value

    return change


ENTRIES = {
    "generation": [-1, 2**70],
    "images": [-1, 0, lambda count: count + 1, 2**70],
    "model.kind": ["late"],
    "model.dim": [0, -1, lambda dim: dim + 1, 2**16, 2**70],
    "model.fingerprint": ["", "../../x"],
    "settings.dims": [3, 2**70],
    "sources": [[]],
    "sources.0.kind": ["x"],
    "sources.0.path": ["", "a\0b"],
    "removed.count": [0, 2, 2**70],
    "removed.file": ["../removed.npy", None],
    "skipped.count": [1],
    "parts": [[], lambda parts: parts[:-1], lambda parts: [*parts, parts[-1]]],
    "parts.0.file": ["../../x", "part-x.parquet", "/etc/passwd", "a\0b"],
    "parts.0.source": [-1, 1],
    "parts.0.rows": [0, -1, lambda rows: rows + 1, 2**31],
    "parts.0.vectors_at": [[], [-8], lambda places: [place + 2 for place in places], [2**62]],
    "segments": [lambda segments: segments[1:], lambda segments: [*segments, segments[-1]]],
    "segments.0.file": ["../x"],
    "segments.0.first_row": [-1, 1],
    "segments.0.rows": [0, 4, 6, 2**70],
    "columns.rows": [-1, 11, 13],
    "columns.columns.0.name": ["", "image_id", "owner"],
    "columns.columns.0.type": ["x", "double"],
    "text.folder": ["../text", "vectors"],
    "text.files": [lambda files: files[:1]],
    "keywords.num_rows": [11, 13, 2**40],
    "keywords.removed": [0],
}
LATE_ENTRIES = {
    "parts": [lambda parts: parts[::-1]],
    "model.kind": ["dual"],
    "settings.tokens.codes": ["int8"],
    "parts.0.num_tokens": [[], [0], [-1], lambda counts: [counts[0] - 1], lambda counts: [*counts, 1], [2**62]],
    "parts.0.vectors_at": [lambda places: [places[0] + 4]],
}
CHANGES = [("codes", path, value) for path, values in ENTRIES.items() for value in values]
CHANGES += [("late", path, value) for path, values in LATE_ENTRIES.items() for value in values]


@pytest.mark.parametrize(("kind", "path", "value"), CHANGES)
def test_a_forged_entry_is_one_error(made, tmp_path, kind, path, value):
    folder = forged(made[kind], tmp_path / "index", entries=entry(path, value))
    with pytest.raises(DcdError) as raised:
        read(folder, "index.json")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["codes", "late"])
def test_texts_of_another_width_than_the_vectors_are_one_error(made, tmp_path, kind):
    folder = forged(made[kind], tmp_path / "index", entries=entry("model.dim", lambda dim: dim + 1))
    with pytest.raises(StaleError, match=r"has vectors of \d numbers, and its model gives \d; make it again"):
        read(folder, "text/model.onnx")


def test_intact_copies_are_read(made, tmp_path):
    for kind, index in made.items():
        folder = forged(index, tmp_path / kind)
        assert read(folder, "index.json")[1] == read(index, "index.json")[1]
        assert read(folder, "text/model.onnx") == read(index, "text/model.onnx")


@pytest.mark.parametrize("flat_up_to", [0, 99])
def test_a_vector_without_a_direction_is_an_error(flat_up_to, tmp_path):
    vectors = unit_vectors(20, 8)
    index = write_index(tmp_path / "index", [vectors], flat_up_to=flat_up_to, segment_rows=10)

    def edit(raw):
        # The bytes of a row, in place.
        return raw.replace(vectors[13].tobytes(), bytes(16))

    folder = forged(index.folder, tmp_path / "forged", {"vectors/*": edit})
    with pytest.raises(StaleError, match="vectors that are zero"):
        FolderIndex.open(folder).nearest(np.ones((1, 8)), 20)


@pytest.mark.parametrize("vectors", [np.zeros((2, 4)), np.full((2, 4), np.nan), np.full((2, 4), np.inf)])
def test_numbers_of_an_engine_never_rank_by_chance(vectors):
    half = vectors.astype(np.float16)
    for stored in (StoredVectors(half), StoredTokens(half, np.array([1, 1]))):
        if isinstance(stored, StoredTokens) and not half.any():
            continue  # a token may be zero
        query = np.ones((1, 4), np.float32)[0 if isinstance(stored, StoredVectors) else slice(None)]
        with pytest.raises(StaleError, match="zero, NaN or infinite"), np.errstate(invalid="ignore"):
            stored.propose(query, 1)
        with pytest.raises(StaleError, match="zero, NaN or infinite"), np.errstate(invalid="ignore"):
            stored.score(query, np.arange(2))


def test_a_text_that_is_read_without_end_is_one_error(noise_index, monkeypatch):
    monkeypatch.setattr(text_tower, "PATIENCE_S", 0.05)
    searcher, endless = searcher_of(noise_index), threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(searcher.texts, "_tokenizer", Endless(endless))
        for _ in range(2):
            with pytest.raises(StaleError, match=r"tokenizer.json reads a text for more than 0.05 s; delete"):
                searcher.by_text(CAPTIONS[0])
        endless.set()


class Endless:
    """A tokenizer whose regular expression does not end before an event."""

    def __init__(self, event):
        self.event = event

    def encode_batch(self, _):
        self.event.wait()


def test_a_worker_gives_what_the_work_gives_or_raises():
    workers = machine.Workers(30)
    assert [workers.do(partial(divmod, number, 7)) for number in (15, 8)] == [(2, 1), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        workers.do(lambda: 1 // 0)
    assert workers.do(threading.current_thread) != threading.current_thread()
    assert workers.do(threading.current_thread) == workers.do(threading.current_thread)
