"""Texts and the vectors that a teacher gives them: what a query student learns from, without images.

    CACHE/plan.json                     written first: the space of the vectors (`models.QuerySpace`), settings of the
        teacher, and the sources of the texts; then the number of texts of each part and of each language
    CACHE/texts-00000.parquet           at most 8,192 texts, in the order given: text, language (or null), vectors
    CACHE/texts-planned-00000.parquet   the same texts without vectors; removed when the cache is finished
    CACHE/texts.json                    completion marker, written last: versions, size and SHA-256 of each part

Vectors are float16: one of unit length per text, or, of a late-interaction model, one per token. Equal texts
(`captions.text_key`) are kept once; one with two vectors that another program gave is an error. One worker encodes a
batch, so the bytes do not depend on their number.

Memory: a part, and a hash of 8 bytes per text; of given vectors, also 8 numbers per text. Shape letters: N texts of a
part, D width.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from dcdctl.core import artifacts, config, data, files, models, scoring
from dcdctl.core.arguments import Settings, optional_path, path
from dcdctl.core.artifacts import Build, Document, Parts
from dcdctl.core.data import Corpus
from dcdctl.core.devices import versions
from dcdctl.core.engines import Compute, Task, whole_shards
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.memory import Fitting
from dcdctl.core.models import QuerySpace, Searchable
from dcdctl.core.places import url_of
from dcdctl.core.progress import Advance, Say, Track, silent, unsaid
from dcdctl.core.teacher.cache_format import TEXTS
from dcdctl.core.teacher.job import TextCacheJob
from dcdctl.core.teacher.make import tolerance

TEXTS_PER_PART = 8192
"""Texts that are written atomically."""
BATCH_SIZE = 256
"""Texts per forward pass, unless the user sets a batch size."""
BATCHES_PER_TASK = 4
"""A task of an engine is less than a part, so that few texts keep several workers busy."""
_ROUNDING = 2**-10
"""Difference of equal numbers of unit vectors that float16 rounds to two sides."""
_HINT = "give a row per text: text, vector (a list of numbers), and language if it is known"
VECTOR = "vector"
Half = NDArray[np.float16]
Row = tuple[str, str | None, Half | None]
"""A text, its language, and its vector where another program gave it."""
GivenRow = tuple[str, str | None, Half | None, str]
"""A `Row`, and where it stands."""


class TextCache:
    """A finished cache, whose parts are read one by one."""

    def __init__(self, folder: Path, plan: Document, seal: Document) -> None:
        self.folder, self.plan, self.seal = folder, plan, seal
        self.space = config.build(QuerySpace, plan["space"])
        """The space of its vectors: one per text (dual), or one per token (late)."""
        self.part_sizes: list[int] = plan["part_sizes"]
        """The number of texts of each part."""
        self.num_texts = sum(self.part_sizes)
        self.fingerprint = files.digest_of(seal["files"])
        """A digest of all texts and vectors."""

    def part(self, number: int) -> list[Row]:
        """The texts of a part, from 0, with their vectors, D, or those of their tokens, L x D; StaleError if it is
        damaged."""
        name = _name(number)
        table = pq.read_table(TEXTS.checked(self.folder / name, self.seal["files"][name]["sha256"]))
        vectors = table["vectors"].combine_chunks()
        if self.space.has_tokens:
            starts = vectors.offsets.to_numpy()[1:-1]
            of_texts = np.split(vectors.flatten().flatten().to_numpy().reshape(-1, self.space.dim), starts)
        else:
            of_texts = vectors.flatten().to_numpy().reshape(-1, self.space.dim)
        return list(zip(table["text"].to_pylist(), table[data.LANGUAGE].to_pylist(), of_texts, strict=True))


def read_text_cache(folder: Path) -> TextCache:
    """The cache in a folder; MissingError if there is no finished one, StaleError if it is damaged."""
    return TextCache(folder, *TEXTS.open(folder))


def text_cache_facts(cache: TextCache) -> list[tuple[str, str]]:
    """What a finished cache has, as pairs of name and value, in words."""
    plan, space = cache.plan, cache.space
    token = "token" if space.has_tokens else "text"
    return [
        ("teacher", space.teacher_name or str(space.teacher)),
        ("texts", f"{cache.num_texts:,}, {space.dim} numbers per {token}"),
        ("sources", ", ".join(source["name"] for source in plan["sources"])),
        ("languages", ", ".join(f"{count:,} {name}" for name, count in plan["languages"].items()) or "not given"),
    ]


def cache_texts(
    job: TextCacheJob, *, compute: Compute | None = None, track: Track = silent, say: Say = unsaid
) -> TextCache:
    """Encode the texts of a job, or take their vectors; or resume. `compute` stands for what the job says of the
    machine, where an engine is open already.

    InputError for a file that cannot be used, ModelError for a teacher without text vectors, StaleError if `out` or
    `extend` is of another teacher or has other settings, or if `out` is of other texts.
    """
    out, teacher, extend = path(job.out), os.fspath(job.teacher or ""), optional_path(job.extend)
    compute = job.compute(say) if compute is None else compute
    TEXTS.check_folder(out)
    sources, width = _sources(job)
    old = None if extend is None else read_text_cache(extend)
    model = None if job.vectors else load_teacher(teacher, job.model_overrides, compute, track)
    settings = _settings_of_given(teacher, width or 0) if model is None else _settings(model, compute.precision)
    if old is not None:
        artifacts.expect(old.folder, old.plan, settings, hint="extend a cache of this teacher")
    plan = {
        **settings,
        "extends": None if old is None else old.fingerprint,
        "sources": [{"name": source.name, "sha256": source.digest} for source in sources],
    }
    build = Build(out, plan, TEXTS)
    with build.lock():
        if "part_sizes" not in build.begin():
            _plan_parts(build, old, sources, track)
        sizes: list[int] = TEXTS.read_plan(out)["part_sizes"]
        parts = Parts(build, [_name(part) for part in range(len(sizes))])
        if model is not None:
            _encode_missing(parts, sizes, model, compute, track)
        parts.seal(lambda listed: {"format": TEXTS.format, "versions": versions(), "files": listed})
    return read_text_cache(out)


def verify_texts(folder: Path, teacher: Searchable, count: int, *, compute: Compute, track: Track = silent) -> float:
    """The largest difference between the vectors of `count` texts of a finished cache, spread over its parts, and the
    same vectors computed again; StaleError if rounding does not explain it, or if the cache is of another teacher."""
    cache = read_text_cache(folder)
    artifacts.expect(folder, cache.plan, _settings(teacher, compute.precision))
    largest, num_parts = 0.0, len(cache.part_sizes)
    with track("encode", total=count, unit="texts") as advance:
        for number in range(min(count, num_parts)):
            # N texts of P parts: N / P of each, and one more of the first ones.
            quota = math.ceil((count - number) / num_parts)
            rows = cache.part(number)[:quota]
            again = np.vstack(_encode(teacher, [text for text, _, _ in rows], compute, advance))
            largest = max(
                largest,
                float(np.abs(again - np.vstack([vectors for _, _, vectors in rows if vectors is not None])).max()),
            )
    if largest > max(tolerance(teacher, compute.precision), _ROUNDING):
        raise StaleError(f"{folder}: vectors differ by {largest:.5f} when they are computed again", hint=TEXTS.remake)
    return largest


def load_teacher(ref: str, settings: Settings | None, compute: Compute, track: Track = silent) -> Searchable:
    """The teacher on its device, in eval mode, since dropout would make its vectors random."""
    overrides = models.parse_overrides(settings)
    models.check_ref(ref, overrides, kind="searchable")
    model: Any = models.load(ref, overrides, track, kind="searchable")
    QuerySpace.of(model)  # an error for a teacher that no query student can stand in for
    return model.to(compute.device).eval()


def _settings(model: Searchable, precision: str) -> Document:
    """Everything that a vector of a model depends on."""
    return {
        "format": TEXTS.format,
        # Before the teacher, whose digest changes with it: the first difference is reported, and a length is plainer.
        "max_text_len": model.preprocess.max_text_len,
        "precision": precision,
        "space": config.to_table(QuerySpace.of(model)),
    }


def _settings_of_given(teacher: str, width: int) -> Document:
    """What is known of vectors from elsewhere, which have no scale."""
    space = QuerySpace(kind="dual", dim=width, logit_scale=1.0, teacher_name=teacher)
    return {"format": TEXTS.format, "max_text_len": None, "precision": None, "space": config.to_table(space)}


@dataclass(frozen=True)
class _Source:
    """A file of texts or of vectors, or a corpus."""

    name: str
    digest: str
    rows: Iterable[GivenRow]
    """Read once."""


def _sources(job: TextCacheJob) -> tuple[list[_Source], int | None]:
    """Each source, and the width of given vectors; InputError for a place that is none, and for the split of a
    file."""
    sources = []
    width = None
    for place in job.vectors or job.texts or ():
        if not job.vectors and _is_corpus(place):
            corpus = Corpus.open(place, job.split)
            rows = zip(corpus.captions, corpus.languages, itertools.repeat(None), itertools.repeat(""))
            sources.append(_Source(f"{corpus.name} {job.split}", corpus.fingerprint, rows))
            continue
        if job.split != "train":
            raise InputError(f"{place} is a file of texts, and has no split {job.split!r}", hint="leave --split out")
        option = "--vectors" if job.vectors else "--texts"
        for named in data.find_named([place], data.TEXT_SUFFIXES, what="file of texts", option=option):
            file = data.local_copy(named)
            if job.vectors and width is None:
                width = _width_of(file)
            sources.append(_Source(named.name, artifacts.sha256_of(file), _rows_of_file(file, width)))
    return sources, width


def _is_corpus(place: str) -> bool:
    """Whether a place is a corpus and no file or pattern of files: a folder of this machine, or another URL."""
    url = url_of(place)
    if url is None:
        return Path(place).expanduser().is_dir()
    return "*" not in url and not url.endswith((*data.TEXT_SUFFIXES, "}"))


def _width_of(path: Path) -> int:
    """The length of the first vector of a file; 0 without one, which is an error when the file is read."""
    first_row = next(data.read_values(path, more=[VECTOR]), None)
    if first_row is None or first_row[2] is None:
        return 0
    return len(first_row[2])


def _rows_of_file(path: Path, width: int | None) -> Iterator[GivenRow]:
    """The rows of a file of texts; of one of vectors, which become unit vectors, if there is a width."""
    columns = [data.LANGUAGE] if width is None else [data.LANGUAGE, VECTOR]
    for where, text, language, *given in data.read_values(path, more=columns):
        text, language = data.check_text(where, text, language)
        yield text, language, None if width is None else _unit_vector(given[0] or (), width, where), where


def _unit_vector(vector: Sequence[Any], width: int, where: str) -> Half:
    """A given vector with length 1; InputError if it has missing values or another width."""
    # No integers beyond those of float64, which JSON has.
    vector_D = [number for number in vector if isinstance(number, int | float) and abs(number) < 1e300]
    if not len(vector_D) == len(vector) == width or not any(vector_D):
        found = f"{len(vector_D)} of the {len(vector)} values of the vector are finite numbers"
        expected = width or "some"
        raise InputError(f"{where}: {found}, expected {expected} that are not all zero", hint=_HINT)
    return (np.array(vector_D) / math.hypot(*vector_D)).astype(np.float16)


def _name(part: int) -> str:
    return f"texts-{part:05d}.parquet"


def _planned_name(part: int) -> str:
    return f"texts-planned-{part:05d}.parquet"


def _plan_parts(build: Build, old: TextCache | None, sources: Sequence[_Source], track: Track) -> None:
    """Write the new texts as planned parts, or as parts where they have vectors; after the parts of an old cache."""
    seen, sizes, languages = SeenTexts(), [], Counter[str]()
    if old is not None:
        sizes, languages = list(old.part_sizes), Counter(old.plan["languages"])
        # Vectors of a teacher that dcdctl runs are not compared.
        origin = str(old.folder) if old.space.teacher is None else None
        taken = Parts(build, [_name(part) for part in range(len(sizes))])
        for number, name in enumerate(taken.names):
            for text, _, vector in old.part(number):
                seen.add(text, vector, origin)
            taken.take(number, old.folder / name)
    unseen = (
        (text, language, vector)
        for source in sources
        for text, language, vector, where in source.rows
        if seen.add(text, vector, where)
    )
    with track("read texts", total=None, unit="texts") as advance:
        while rows := list(itertools.islice(unseen, TEXTS_PER_PART)):
            has_vectors = rows[0][2] is not None
            _write(build, _name(len(sizes)) if has_vectors else _planned_name(len(sizes)), rows)
            sizes.append(len(rows))
            languages.update(language for _, language, _ in rows if language)
            advance(len(rows))
    if not sizes:
        names = ", ".join(source.name for source in sources)
        raise InputError(f"{names} has no text", hint="name files or a corpus with texts")
    build.note(part_sizes=sizes, languages=dict(sorted(languages.items())))


@dataclass(frozen=True)
class Seen:
    """A text with a vector that another program gave it."""

    origin: str
    """Where it stands."""
    digest: int
    """Of its letters."""
    projections: NDArray[np.float64]
    """The products of its vector with `_directions`."""

    def differs_from(self, other: Seen) -> bool:
        """Whether a text of the same letters has another vector; of other letters with the same words, the vector is
        rightly another one."""
        # Along one of eight random directions, unit vectors whose difference has a length of 0.3 differ by 0.1 in
        # 99.99 % of cases; rounding makes less of a difference.
        is_far = np.abs(self.projections - other.projections).max() > 0.1
        return self.digest == other.digest and bool(is_far)


class SeenTexts:
    """The texts that were read, by a hash of their words, and where each with a given vector stands."""

    def __init__(self) -> None:
        # Of 64 bits: of ten million texts, two have one with a chance of 3 in a million.
        self._seen: dict[int, Seen | None] = {}

    def add(self, text: str, vector: Half | None, origin: str | None) -> bool:
        """Whether a text is new; InputError for one that has another vector than before. A vector without an origin is
        not compared."""
        key = hash(data.text_key(text))
        found = None
        if origin and vector is not None:
            found = Seen(origin, hash(text), _directions(len(vector)) @ vector)
        if key not in self._seen:
            self._seen[key] = found
            return True
        before = self._seen[key]
        if found is not None and before is not None and found.differs_from(before):
            raise InputError(
                f"{found.origin} has another vector than its text in {before.origin}", hint="keep one of the two"
            )
        return False


@functools.cache
def _directions(width: int) -> NDArray[np.float64]:
    """Eight random directions, always the same ones."""
    return np.random.default_rng(0).standard_normal((8, width))


def _encode_missing(parts: Parts, sizes: Sequence[int], model: Searchable, compute: Compute, track: Track) -> None:
    """Encode the planned parts; those of an extended cache are there."""
    missing, size = parts.missing(), compute.batch_size or BATCH_SIZE

    def planned(part: int) -> dict[str, list[Any]]:
        return pq.read_table(parts.build.written(_planned_name(part))).to_pydict()

    def tasks() -> Iterator[Task[list[list[str]]]]:
        for part in missing:
            texts = planned(part)["text"]
            batches = [[texts[text] for text in batch] for batch in _batches(texts, size)]
            groups = [batches[start : start + BATCHES_PER_TASK] for start in range(0, len(batches), BATCHES_PER_TASK)]
            for number, group in enumerate(groups):
                inputs: Callable[[], list[list[str]]] = partial(list, group)
                yield Task(part, _name(part), inputs, packed=inputs, part=number, num_parts=len(groups))

    make_worker = partial(_TextWorker.make, model, compute.for_workers())
    with track("encode", total=sum(sizes[part] for part in missing), unit="texts") as advance:
        for part, encoded in whole_shards(compute.engine.map(tasks(), make_worker, advance)):
            columns = planned(part)
            texts = columns["text"]
            vectors: dict[int, Half] = {}
            for batch, of_batch in zip(_batches(texts, size), itertools.chain(*encoded), strict=True):
                vectors |= zip(batch, of_batch, strict=True)
            rows = zip(texts, columns[data.LANGUAGE], (vectors[text] for text in range(len(texts))), strict=True)
            _write(parts.build, parts.names[part], list(rows))


def _batches(texts: Sequence[str], size: int) -> list[list[int]]:
    """The positions of texts in batches; texts of similar length share one, so that little of it is padding."""
    order = sorted(range(len(texts)), key=lambda text: len(texts[text]))
    return [order[start : start + size] for start in range(0, len(order), size)]


@dataclass(frozen=True)
class _TextWorker:
    """Encodes batches of texts."""

    model: Searchable
    compute: Compute
    fitting: Fitting

    @classmethod
    def make(cls, model: Any, compute: Compute) -> _TextWorker:
        """A worker with the model on its device."""
        compute = compute.in_worker()
        return cls(model.to(compute.device).eval(), compute, Fitting())

    def start(self, batches: list[list[str]]) -> Callable[[Advance], list[list[Half]]]:
        """The encoding of batches: of each text its vector, D, or the vectors of its tokens, L x D."""
        return partial(self._encode, batches)

    @torch.inference_mode()
    def _encode(self, batches: list[list[str]], advance: Advance) -> list[list[Half]]:
        model: Any = self.model
        embed: Any = model.embed_texts if model.kind == "dual" else lambda batch: model.encode_texts(batch).tokens
        encoded = []
        for texts in batches:
            tokenized = model.preprocess.texts(texts)
            vectors = scoring.finite_vectors(scoring.embed_batch(embed, tokenized, self.compute, self.fitting))
            # Padding is zeros.
            rows = vectors.half().cpu().numpy()
            encoded.append([row if row.ndim == 1 else row[row.any(axis=1)] for row in rows])
            advance(len(texts))
        return encoded


def _encode(model: Searchable, texts: Sequence[str], compute: Compute, advance: Advance) -> list[Half]:
    """The vector of each text, or the vectors of its tokens, by this process."""
    batches = _batches(texts, compute.batch_size or BATCH_SIZE)
    encoded = _TextWorker.make(model, compute).start([[texts[text] for text in batch] for batch in batches])(advance)
    found: dict[int, Half] = {}
    for batch, vectors in zip(batches, encoded, strict=True):
        found |= zip(batch, vectors, strict=True)
    return [found[text] for text in range(len(texts))]


def _write(build: Build, name: str, rows: Sequence[Row]) -> None:
    """Write texts and their vectors, if they have any."""
    columns: dict[str, Any] = {
        "text": pa.array([text for text, _, _ in rows], pa.string()),
        data.LANGUAGE: pa.array([language for _, language, _ in rows], pa.string()),
    }
    # All rows of a part have a vector, or none has.
    vectors = [vector for _, _, vector in rows if vector is not None]
    if vectors:
        numbers = np.vstack(vectors)
        columns["vectors"] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1])
        if vectors[0].ndim == 2:
            ends = pa.array(np.cumsum([0, *(len(tokens) for tokens in vectors)]), pa.int32())
            columns["vectors"] = pa.ListArray.from_arrays(ends, columns["vectors"])
    with build.write(name) as path:
        pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=[data.LANGUAGE])
