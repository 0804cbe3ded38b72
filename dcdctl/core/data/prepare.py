"""Preparation of a corpus from raw files: threads decode every image once, to find damaged ones; rows keep the source's
order.

A shard holds a fixed range of source rows. `prepare.json` notes the finished shards, so that a killed run resumes.
`corpus.json` is written last, and `prepare.json` is removed then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dcdctl.core import config, files, machine
from dcdctl.core.arguments import optional_path, paths
from dcdctl.core.artifacts import Build, seal_of
from dcdctl.core.data import decontamination, images, near_duplicates, source_files
from dcdctl.core.data.columns import ImageColumns
from dcdctl.core.data.corpus_json import (
    CORPUS,
    CORPUS_FILE,
    CorpusDocument,
    CorpusFile,
    CorpusSplit,
    ShardFile,
    SkippedRow,
    read_corpus_json,
    split_to_measure,
)
from dcdctl.core.data.decontamination import HeldOut
from dcdctl.core.data.job import PrepareJob
from dcdctl.core.data.manifest import Manifest, check_protocol, choose_manifest
from dcdctl.core.data.near_duplicates import Leakage, LeftOut
from dcdctl.core.data.readers import list_source
from dcdctl.core.data.readers.rows import Listing, RowCheck, SplitCounts, empty_split_hint
from dcdctl.core.data.shards import RowFacts, fingerprint_of, text_digest, write_texts
from dcdctl.core.data.source_files import LocatedSource, SourceOptions
from dcdctl.core.data.split_writer import PrepareOptions, ShardNote, write_splits
from dcdctl.core.engines import Engine, EngineChoice, ThisProcess, open_engine
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.progress import Say, Track, counted, silent, unsaid

# Of 500 images 50 are held out, and each of them is 2 points of recall.
FEW = 500
_HERE = ThisProcess()


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """The result of a preparation."""

    name: str
    folder: str
    splits: dict[str, dict[str, Any]]
    """By split: images, captions (the texts of a pool), fingerprint, shards, is_pool."""
    protocol: str
    """The published protocol that the corpus reproduces, or "none: " and the reason."""
    leakage: Leakage
    """Images that splits share."""
    skipped: tuple[SkippedRow, ...]
    left_out_by_kind: dict[str, int]
    """How many of `skipped` have an image of a kind that cannot be read."""
    notes: tuple[str, ...]
    """Where the files came from and how they were checked; how a table was read and divided."""
    already_there: bool

    def __repr__(self) -> str:
        counts = ", ".join(f"{split} {counted(entry['images'], 'images')}" for split, entry in self.splits.items())
        return f"CorpusSummary({self.folder!r}: {counts})"

    def __fspath__(self) -> str:
        return self.folder

    @property
    def next_step(self) -> str:
        """A command that reads a split of this corpus: a training on train, or an evaluation where there is none."""
        train = self.splits.get("train", {"is_pool": False})
        if train["is_pool"]:
            if not train["images"]:
                return f"dcdctl inspect {self.folder}"
            if not train["captions"]:
                return f"dcdctl index MODEL --images {self.folder} --out INDEX"
            recipes = {"pool-distilled": "a CLIP or a SigLIP", "pool-picked": "any other, such as a reranker"}
            ways = [
                f"dcdctl distill {recipe} --data {self.folder} --teacher TEACHER --out RUN, if TEACHER is {kind}"
                for recipe, kind in recipes.items()
            ]
            return "; or ".join(ways)
        if "pool" in self.splits:
            return f"dcdctl distill RECIPE --data {self.folder} --pool {self.folder} --out RUN"
        if "train" in self.splits:
            return f"dcdctl distill RECIPE --data {self.folder} --out RUN"
        split = split_to_measure(Path(self.folder), "train")
        command = f"dcdctl eval MODEL --data {self.folder}"
        return command if split == "test" else f"{command} --split {split}"

    def __str__(self) -> str:
        done = "already prepared in" if self.already_there else "prepared in"
        lines = [f"{self.name}: {done} {self.folder}"]
        for split, entry in self.splits.items():
            counts = f"{counted(entry['images'], 'images')}, {counted(entry['captions'], 'captions')}"
            if entry["is_pool"]:
                counts = f"{counted(entry['images'], 'images')}, {counted(entry['captions'], 'texts')} without pairing"
            lines.append(f"  {split:<5} {counts}, fingerprint {entry['fingerprint'][:8]}")
            if split == "train" and entry["images"] < FEW:
                lines.append(f"  few images: under {FEW}, each image of a tenth held out is 2 points of recall or more")
            if entry["is_pool"] and not entry["captions"]:
                lines.append(
                    "  no texts: nothing learns from images alone, add --queries FILE or captions (--csv FILE); "
                    "`dcdctl photos` and `dcdctl index` need neither"
                )
        lines.append(f"  protocol: {self.protocol}")
        lines += [f"  {name}: {value}" for name, value in self.leakage.facts()]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {line}" for line in images.left_out_lines(self.left_out_by_kind)]
        if self.skipped:
            first = self.skipped[0].reason
            lines.append(f"  {len(self.skipped):,} rows skipped, listed in {CORPUS_FILE}; the first: {first}")
        lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)


def make_corpus(job: PrepareJob, *, track: Track = silent, say: Say = unsaid) -> CorpusSummary:
    """Write the corpus of a job, unless it is finished; what `prepare_corpus` does, with what the user names.

    InputError unless exactly one data set is named; SourceError without its files.
    """
    # Images are decoded without a GPU, which the workers of a model get by default.
    engine_choice = EngineChoice.parse(job.engine)
    if engine_choice.is_files:
        raise ConfigError("prepare writes no tasks", hint="--engine files:DIR is for cache-teacher, index and sync")
    engine = open_engine(replace(engine_choice, gpus=0), say)
    manifest, out = choose_manifest(job), optional_path(job.out)
    options = {
        "splits": job.splits,
        "max_images": job.max_images,
        "image_size_px": job.image_size,
        # Every core, since decoding images is the work here; nothing else computes meanwhile.
        "workers": job.workers or (1 if engine.sends_tasks else machine.num_cores()),
        "on_error": job.on_error,
    }
    return prepare_corpus(
        manifest,
        out or Path("data") / manifest.name,
        options=config.build(PrepareOptions, options),
        source_options=SourceOptions(source=job.source, placed=optional_path(job.placed), offline=job.offline),
        decontaminate=paths(job.decontaminate),
        engine=engine,
        track=track,
    )


def prepare_corpus(
    manifest: Manifest,
    out: Path,
    *,
    options: PrepareOptions | None = None,
    source_options: SourceOptions | None = None,
    decontaminate: Sequence[Path] = (),
    engine: Engine = _HERE,
    track: Track = silent,
) -> CorpusSummary:
    """Write a corpus, or resume an interrupted one; does nothing if the corpus is finished. The workers of `engine`
    check its images.

    A pool is left without the images and texts of val and test, and of those of the corpora to `decontaminate` from.
    InputError if a row cannot be used, or if the test split is not the one of the manifest's protocol; StaleError if
    another run is writing to the folder, or if the folder holds something else.
    """
    options = options or PrepareOptions()
    CORPUS.check_folder(out)
    located = source_files.locate(manifest, source_options or SourceOptions(), track)
    listing = list_source(
        located.source,
        RowCheck(splits=options.splits, max_images=options.max_images, skip_bad=options.on_error == "skip"),
    )
    # Before any image is read, and again below, because damaged images may be skipped.
    check_protocol(manifest, listing.counts, options.splits, options.max_images)
    measured, listing = decontamination.open_measured(decontaminate, listing)
    digest = _plan_digest(manifest, listing, options)
    # Shards of other library versions are not mixed, because their bytes may differ. A finished corpus is valid with
    # any version.
    plan = {"format": CORPUS.format, "plan": digest, "pillow": PIL.__version__, "pyarrow": pa.__version__}
    build = Build(out, plan, CORPUS)
    with build.lock():
        if build.is_sealed:
            return _already_there(out, digest)
        held_out = decontamination.read_measured(measured, options.workers, track) if measured else HeldOut()
        shards, rows = write_splits(listing, build, options, held_out, engine, track)
        pools, left_out = decontamination.leave_texts_out(listing, held_out)
        entries = {split: _entry(out, split, shards[split], rows[split], pools.get(split, {})) for split in rows}
        skipped = tuple(skip for notes in shards.values() for note in notes for skip in note.skipped)
        document = replace(
            _document(manifest, located, listing, entries, (*listing.skipped, *skipped), options),
            plan=digest,
            leakage=_leakage(shards, rows, left_out),
            columns={} if listing.columns is None else _write_columns(out, listing.columns, rows),
        )
        parts = [*document.columns.values(), *(shard for split in document.splits.values() for shard in split.parts)]
        build.seal(config.to_table(document), [part.file for part in parts])
    return _summary(out, document, (*located.notes, *_column_notes(listing)), already_there=False)


def _plan_digest(manifest: Manifest, listing: Listing, options: PrepareOptions) -> str:
    """Identifies what a corpus is made from: a folder resumes, and takes, only the corpus of the same digest."""
    return files.digest_of(
        {
            "format": CORPUS.format,
            "name": manifest.name,
            "licence": manifest.license,
            "citation": manifest.citation,
            "source": dict(listing.provenance),
            "counts": {split: count.images for split, count in listing.counts.items()},
            "options": options.to_plan(),
        }
    )


def _document(
    manifest: Manifest,
    located: LocatedSource,
    listing: Listing,
    entries: dict[str, CorpusSplit],
    skipped: tuple[SkippedRow, ...],
    options: PrepareOptions,
) -> CorpusDocument:
    """The content of corpus.json, without columns, leakage and the digest of the plan; InputError for an empty
    split."""
    for split, entry in entries.items():
        if not entry.images and not entry.captions:
            raise InputError(f"split {split!r} is empty", hint=empty_split_hint(skipped))
    written = {split: SplitCounts(images=entry.images, captions=entry.captions) for split, entry in entries.items()}
    # A manifest without named files has one source, which is the user's own.
    origin = {"name": located.name, "urls": located.urls} if manifest.files else {}
    return CorpusDocument(
        format=CORPUS.format,
        name=manifest.name,
        splits=entries,
        protocol=check_protocol(manifest, written, options.splits, options.max_images),
        source={**listing.provenance, **origin, "options": options.to_plan()},
        license=manifest.license,
        citation=manifest.citation,
        homepage=manifest.homepage,
        skipped=skipped,
    )


def _leakage(
    shards: Mapping[str, Sequence[ShardNote]],
    rows: Mapping[str, Sequence[RowFacts]],
    texts: Mapping[str, Sequence[str]],
) -> Leakage:
    """The images that splits share, and what the pools are left without: images by the notes, and these texts."""
    left_out = {}
    for split, unwanted in texts.items():
        matches = [match for note in shards[split] for match in note.left_out]
        examples = tuple(unwanted[: near_duplicates.NUM_EXAMPLES])
        left_out[split] = LeftOut.of(matches, texts=len(unwanted), example_texts=examples)
    return replace(near_duplicates.find_leakage(rows), left_out=left_out)


def _entry(
    out: Path, split: str, notes: Sequence[ShardNote], rows: Sequence[RowFacts], texts: Mapping[str, tuple[int, str]]
) -> CorpusSplit:
    """A split as corpus.json names it; writes the texts of a pool."""
    file = None
    if texts:
        path = out / f"texts-{split}.parquet"
        numbers, languages = [number for number, _ in texts.values()], [language for _, language in texts.values()]
        write_texts(path, list(texts), numbers, languages)
        file = ShardFile(file=path.name, **seal_of(path, rows=len(texts)))
    return CorpusSplit(
        images=len(rows),
        captions=sum(row.num_captions for row in rows) + len(texts),
        fingerprint=fingerprint_of(
            [*(row.digest for row in rows), *(text_digest(text, language) for text, (_, language) in texts.items())]
        ),
        shards=tuple(note.entry for note in notes),
        texts=file,
    )


def _write_columns(out: Path, columns: ImageColumns, rows: Mapping[str, Sequence[RowFacts]]) -> dict[str, CorpusFile]:
    """Write the columns of each split's images, in their order."""
    written = {}
    for split, facts in rows.items():
        path = out / f"columns-{split}.parquet"
        ids = pa.array([row.image_id for row in facts], "string")
        places = pc.index_in(ids, value_set=pa.array(columns.images, "string"))
        with files.atomic_path(path) as partial:
            pq.write_table(columns.table.take(places), partial, compression="zstd")
        written[split] = CorpusFile(file=path.name, **seal_of(path))
    return written


def _already_there(out: Path, digest: str) -> CorpusSummary:
    document = read_corpus_json(out)
    if document.plan != digest:
        raise InputError(
            f"{out} holds a finished corpus, {document.name}, made from other files or with other options",
            hint="name another folder with --out",
        )
    for split in document.splits.values():
        for part in split.parts:
            CORPUS.check_part(out, part.file, part.bytes)
    # A run that is killed after the seal leaves the plan.
    (out / CORPUS.plan_file).unlink(missing_ok=True)
    return _summary(out, document, already_there=True)


def _summary(out: Path, document: CorpusDocument, notes: Sequence[str] = (), *, already_there: bool) -> CorpusSummary:
    splits = {}
    for name, split in document.splits.items():
        splits[name] = config.to_table(split) | {"shards": len(split.shards), "is_pool": split.is_pool}
    return CorpusSummary(
        name=document.name,
        folder=str(out),
        splits=splits,
        protocol=document.protocol,
        leakage=document.leakage,
        skipped=document.skipped,
        left_out_by_kind=images.count_kinds(row.kind for row in document.skipped if row.kind),
        notes=(*notes, *_source_notes(document.source)),
        already_there=already_there,
    )


def _column_notes(listing: Listing) -> Iterator[str]:
    """Which columns of a table are kept."""
    if listing.label_columns:
        named = ", ".join(name.removeprefix("caption_") for name in listing.label_columns)
        yield f"captions have {named}, from the columns of these names"
    if listing.columns is not None:
        yield f"columns: {', '.join(listing.columns.table.column_names)}"
        yield from listing.columns.notes


def _source_notes(source: Mapping[str, Any]) -> Iterator[str]:
    """How a table without splits was divided, and in which encoding a table was read."""
    what = "images and texts" if source.get("kind") == "pool" else "images"
    if (hold_out := source.get("hold_out")) is not None:
        names = " and ".join(hold_out["splits"]) or "nothing"
        names += f", {hold_out['share']:.0%} of the {what} each"
        if without := hold_out.get("synthetic_left_out"):
            names += f", without {without:,} synthetic captions"
        yield f"held out: {names}, by {hold_out['by']}; --hold-out 0 keeps all in train"
        if empty := hold_out.get("empty"):
            lacking = "images or texts" if source.get("kind") == "pool" else "images"
            yield (
                f"{' and '.join(empty)} without {lacking}: the hashes alone decide, and these are few; add some, or "
                "change --hold-out"
            )
    if (caption := source.get("only_caption")) is not None:
        yield (
            f"warning: every caption is {caption!r}, so nothing can be learned from them; the column named caption is "
            "read, give that name to another one"
        )
    if (encoding := source.get("encoding")) is not None:
        yield f"{encoding['file']} was read as {encoding['name']}; --set encoding=NAME names another"
    if repeated := source.get("queries", {}).get("repeated"):
        yield f"repeated texts: {repeated:,}, each kept once"
