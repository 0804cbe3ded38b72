"""The library of a folder of photos: everything is checked first, then the corpus is prepared, the student trained, and
the index made or brought up to the folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dcdctl.core import data, files, models, search, training
from dcdctl.core.arguments import Ref, many, optional_ref, path, paths
from dcdctl.core.data import PrepareJob
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.photos.job import PhotosJob
from dcdctl.core.progress import Say, Track, Watch, silent, unsaid
from dcdctl.core.search import STUDENT, IndexChange, IndexJob
from dcdctl.core.toml import assignments
from dcdctl.core.training import Distill, Trained

OF_CAPTIONS, OF_POOLS = "photos", "pool-picked"
"""The recipes."""


def make_library(
    job: PhotosJob,
    *,
    track: Track = silent,
    watch: Watch | None = None,
    say: Say = unsaid,
    on_trained: Callable[[Trained], None] = lambda trained: None,
) -> IndexChange:
    """Make photos searchable, or let the index of an earlier call follow their folder; a killed call resumes.
    `on_trained` gets the student, if one is trained, before its index is made.

    Before anything is written: ConfigError for arguments that exclude each other, InputError for places that hold
    something else, StaleError for the library of other photos or of another model, and what `resolve` of the training
    raises.
    """
    _check_arguments(job)
    _check_places(job)
    library, lesson = job.library, _lesson(job)
    library.check_photos(path(job.images))
    library.check_folder()
    with _naming_model(job):
        _check_models(job, lesson)
    if lesson is not None:
        corpus, student = lesson
        data.make_corpus(corpus, track=track, say=say)
        on_trained(training.run_training(student, track=track, watch=watch, say=say))
    if library.has_index:
        return search.sync_index(str(library.index), track=track)
    model = str(job.pretrained) if lesson is None else str(library.run)
    with _naming_model(job):
        made = search.build_index(IndexJob(model, job.images, library.index), track=track, say=say)
    library.write_model(model if lesson is None else STUDENT)
    return made


def _lesson(job: PhotosJob) -> tuple[PrepareJob, Distill] | None:
    """What a student learns from, and its training; None where a pretrained model is taken as it is."""
    library = job.library
    # The same command again continues where it was killed.
    resume, sets = library.has_run, [*assignments(job.overrides)]
    if job.captions is not None:
        student = Distill(OF_CAPTIONS, library.data, library.run, sets=sets, features=library.features, resume=resume)
        return PrepareJob(csv=job.captions, images=job.images, out=library.data), student
    if job.queries is not None:
        sets = [f"model.start={job.pretrained}", *sets]
        student = Distill(OF_POOLS, library.data, library.run, sets=sets, teacher=job.teacher, resume=resume)
        return PrepareJob(images=job.images, queries=job.queries, out=library.data), student
    return None


def _check_models(job: PhotosJob, lesson: tuple[PrepareJob, Distill] | None) -> None:
    """An error for a model that is not there, or that the index was not made with."""
    library = job.library
    if lesson is None:
        if job.model is not None:
            models.check_ref(os.fspath(job.model), kind="searchable")
            library.check_model(os.fspath(job.model))
        return
    library.check_model(STUDENT)
    request = lesson[1].settle()
    if job.captions is not None:
        training.check_new_model(*request)
    else:
        # A Hub id that cannot be fetched is an error here, and not after an hour of preparing.
        for ref in filter(None, (optional_ref(job.teacher), job.pretrained)):
            models.check_found(ref)


def _check_arguments(job: PhotosJob) -> None:
    has_pool = {"--queries": job.queries is not None, "--teacher": job.teacher is not None}
    if job.captions is not None and any(has_pool.values()):
        given = " and ".join(name for name, is_given in has_pool.items() if is_given)
        raise ConfigError(
            f"{given} goes with photos without captions, and {os.fspath(job.captions)} has captions",
            hint="leave one out; docs/tutorial-pools.md says how a student learns from both",
        )
    if job.captions is not None and job.model is not None:
        raise ConfigError(
            f"--model is for photos without captions, and {os.fspath(job.captions)} trains the recipe {OF_CAPTIONS}",
            hint=f"leave the captions out: {job.command(job.images, '--model', job.model)}, or leave --model out; "
            "--set model.vision=DIR and --set model.text=DIR name other encoders",
        )
    if job.queries is None and job.teacher is not None:
        raise ConfigError(
            "--teacher needs texts that it finds photos for", hint="name them with --queries FILE, one text a line"
        )
    if job.queries is not None and job.teacher is None:
        raise ConfigError(
            "--queries needs a model that finds photos for them",
            hint=f"name it with --teacher REF; an index alone needs no queries: {job.command(job.images)}",
        )
    if job.overrides and job.captions is None and job.queries is None:
        raise ConfigError(
            "--set is for the recipe of a training, and nothing is trained here",
            hint=f"name the captions, {job.command(job.images, 'CAPTIONS')}, or a whole model: --model REF",
        )


def _check_places(job: PhotosJob) -> None:
    images, captions = path(job.images), None if job.captions is None else path(job.captions)
    if images.is_file():
        if captions is not None and captions.is_dir():
            problem = f"the folder of the photos comes first, and {images} is a file"
            raise InputError(problem, hint=job.command(captions, images))
        hint = "unpack an archive, and name the folder"
        if images.suffix.lower() in data.TEXT_SUFFIXES:
            hint = f"captions come after the folder: {job.command('FOLDER', images)}"
        raise InputError(f"{images} is a file, and `dcdctl photos` takes a folder of photos", hint=hint)
    for place in (captions, images):
        if place is not None:
            files.check_exists(place)
    for file in paths(job.queries):
        data.check_text_file(file)
        files.check_exists(file)
    if captions is not None and captions.is_dir():
        raise InputError(
            f"{captions} is a folder, and the captions are a CSV file",
            hint=f"for the photos of both folders: {job.command(images)}, then "
            + shlex.join(["dcdctl", "sync", str(job.library.index), "--add", str(captions)]),
        )


@contextmanager
def _naming_model(job: PhotosJob) -> Iterator[None]:
    """Let the error for a model that is not on this machine say what to copy, and what to type then."""
    if job.pretrained is None:
        yield
        return
    words: list[Ref] = ["--model", "DIR"]
    if job.queries is not None and job.teacher is not None:
        for file in many(job.queries):
            words += ["--queries", file]
        words += ["--teacher", job.teacher]
    parts = "config.json, model.safetensors, preprocessor_config.json and the files of the tokenizer"
    uses = {job.pretrained: f"copy DIR ({parts}) to this machine, then type: {job.command(job.images, *words)}"}
    with models.naming_uses(uses):
        yield
