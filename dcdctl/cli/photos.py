"""`dcdctl photos`: from a folder of photos to an index, by the commands of each step."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli import options
from dcdctl.cli.declare import Overrides, Ref, Refs, assignments, many, optional_ref, path
from dcdctl.cli.distill import Distill
from dcdctl.cli.index import NewIndex
from dcdctl.cli.options import argument, configures, reads, reads_model
from dcdctl.cli.prepare import Prepare
from dcdctl.cli.views.index import show_change, show_sync
from dcdctl.cli.views.terminal import bar, note, show

if TYPE_CHECKING:
    from dcdctl.core.progress import Say, Track
    from dcdctl.core.search import IndexChange, Library
    from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions

DEFAULT_MODEL = "google/siglip2-base-patch32-256"
"""docs/models.md says why: its license, its published recalls and what a photo costs."""
OF_CAPTIONS, OF_POOLS = "photos", "pool-picked"
"""The recipes."""


@dataclass(frozen=True)
class Lesson:
    """What a student learns from, and how."""

    corpus: Prepare
    student: Distill
    sets: tuple[str, ...] = ()

    def request(self) -> tuple[TrainingJob, InputRefs, TrainingOptions]:
        """The training."""
        return self.student.request("distill", self.sets)


@dataclass(frozen=True)
class Photos:
    """A folder of photos, what is known about them, and the library that they become."""

    images: Annotated[Ref, argument("Folder of the photos.", "FOLDER"), Path]
    captions: Annotated[
        Ref | None, argument("CSV file with one caption per row, image,caption: train on them.", "CAPTIONS"), Path
    ] = None
    _: KW_ONLY
    out: options.Out
    model: Annotated[
        Ref | None,
        reads(
            "--model",
            "Without captions: the pretrained model, a folder, run or Hub id; with --teacher the start.",
            "REF",
            show_default=f"{DEFAULT_MODEL}; that of the index if there is one",
        ),
        str,
    ] = None
    queries: Annotated[
        Refs | None,
        reads("--queries", "With --teacher: texts without an image, such as a log; repeatable.", "FILE"),
        list[Path],
    ] = None
    teacher: Annotated[
        Ref | None,
        reads_model("--teacher", "With --queries: the model that finds photos for them, any reference.", "REF"),
        str,
    ] = None
    overrides: Annotated[
        Overrides | None,
        configures(
            "--set",
            "With a training: override a recipe field, model.vision=DIR; repeatable (`dcdctl recipes photos --all`).",
            "KEY=VALUE",
        ),
        list[str],
    ] = None
    progress: bool = False
    """Show bars. The command always shows them."""

    @property
    def library(self) -> Library:
        """Where all of it goes."""
        from dcdctl.core.search import Library

        return Library(path(self.out))

    @property
    def lesson(self) -> Lesson | None:
        """The training; None where a pretrained model is taken as it is."""
        library = self.library
        # The same command again continues where it was killed.
        resume, sets = library.has_run, assignments(self.overrides)
        if self.captions is not None:
            student = Distill(OF_CAPTIONS, library.data, library.run, features=library.features, resume=resume)
            return Lesson(Prepare(csv=self.captions, images=self.images, out=library.data), student, sets)
        if self.queries is not None:
            return Lesson(
                Prepare(images=self.images, queries=self.queries, out=library.data),
                Distill(OF_POOLS, library.data, library.run, teacher=self.teacher, resume=resume),
                (f"model.start={self.pretrained}", *sets),
            )
        return None

    @property
    def pretrained(self) -> str | None:
        """The model whose weights are taken as they are, or as the start of a training; None with captions, from which
        a model over two encoders learns."""
        if self.captions is not None:
            return None
        return DEFAULT_MODEL if self.model is None else os.fspath(self.model)

    def check(self) -> None:
        """An error for what cannot be, before anything is written; ConfigError for options that exclude each other."""
        from dcdctl.core import models
        from dcdctl.core.search import STUDENT

        self._check_options()
        self._check_places()
        library, lesson = self.library, self.lesson
        library.check_photos(path(self.images))
        library.check_folder()
        with self._naming_model():
            if lesson is not None:
                from dcdctl.core.training import check_new_model

                library.check_model(STUDENT)
                request = lesson.request()
                if self.captions is not None:
                    check_new_model(*request)
                else:
                    # A Hub id that cannot be fetched is an error here, and not after an hour of preparing.
                    for ref in filter(None, (optional_ref(self.teacher), self.pretrained)):
                        models.check_found(ref)
            elif self.model is not None:
                models.check_ref(os.fspath(self.model), kind="searchable")
                library.check_model(os.fspath(self.model))

    def index(self, say: Say, track: Track) -> IndexChange:
        """The index, made or brought up to the folder."""
        from dcdctl.core import search
        from dcdctl.core.search import STUDENT

        library = self.library
        if library.has_index:
            return search.sync_index(str(library.index), track=track)
        is_trained = self.lesson is not None
        model = str(library.run) if is_trained else str(self.pretrained)
        new = NewIndex(model, path(self.images), library.index)
        with self._naming_model():
            made = search.build_index(new.job(say), track=track)
        library.write_model(STUDENT if is_trained else model)
        return made

    def command(self, *words: Ref) -> str:
        """A command line of `photos` for this library."""
        return shlex.join(["dcdctl", "photos", *(os.fspath(word) for word in words), "--out", os.fspath(self.out)])

    def _check_options(self) -> None:
        from dcdctl.core.errors import ConfigError

        has_pool = {"--queries": self.queries is not None, "--teacher": self.teacher is not None}
        if self.captions is not None and any(has_pool.values()):
            given = " and ".join(name for name, is_given in has_pool.items() if is_given)
            raise ConfigError(
                f"{given} goes with photos without captions, and {os.fspath(self.captions)} has captions",
                hint="leave one out; docs/tutorial-pools.md says how a student learns from both",
            )
        if self.captions is not None and self.model is not None:
            raise ConfigError(
                f"--model is for photos without captions, and {os.fspath(self.captions)} trains the recipe "
                f"{OF_CAPTIONS}",
                hint=f"leave the captions out: {self.command(self.images, '--model', self.model)}, or leave --model "
                "out; --set model.vision=DIR and --set model.text=DIR name other encoders",
            )
        if self.queries is None and self.teacher is not None:
            raise ConfigError(
                "--teacher needs texts that it finds photos for", hint="name them with --queries FILE, one text a line"
            )
        if self.queries is not None and self.teacher is None:
            raise ConfigError(
                "--queries needs a model that finds photos for them",
                hint=f"name it with --teacher REF; an index alone needs no queries: {self.command(self.images)}",
            )
        if self.overrides and self.captions is None and self.queries is None:
            raise ConfigError(
                "--set is for the recipe of a training, and nothing is trained here",
                hint=f"name the captions, {self.command(self.images, 'CAPTIONS')}, or a whole model: --model REF",
            )

    def _check_places(self) -> None:
        from dcdctl.core import data, files
        from dcdctl.core.errors import InputError

        images, captions = path(self.images), None if self.captions is None else path(self.captions)
        if images.is_file():
            if captions is not None and captions.is_dir():
                problem = f"the folder of the photos comes first, and {images} is a file"
                raise InputError(problem, hint=self.command(captions, images))
            hint = "unpack an archive, and name the folder"
            if images.suffix.lower() in data.TEXT_SUFFIXES:
                hint = f"captions come after the folder: {self.command('FOLDER', images)}"
            raise InputError(f"{images} is a file, and `dcdctl photos` takes a folder of photos", hint=hint)
        for place in (captions, images):
            if place is not None:
                files.check_exists(place)
        for file in map(path, many(self.queries)):
            data.check_text_file(file)
            files.check_exists(file)
        if captions is not None and captions.is_dir():
            raise InputError(
                f"{captions} is a folder, and the captions are a CSV file",
                hint=f"for the photos of both folders: {self.command(images)}, then "
                + shlex.join(["dcdctl", "sync", str(self.library.index), "--add", str(captions)]),
            )

    @contextmanager
    def _naming_model(self) -> Iterator[None]:
        """Let the error for a model that is not on this machine say what to copy, and what to type then."""
        from dcdctl.core.config import naming_uses

        if self.pretrained is None:
            yield
            return
        words: list[Ref] = ["--model", "DIR"]
        if self.queries is not None and self.teacher is not None:
            for file in many(self.queries):
                words += ["--queries", file]
            words += ["--teacher", self.teacher]
        parts = "config.json, model.safetensors, preprocessor_config.json and the files of the tokenizer"
        uses = {self.pretrained: f"copy DIR ({parts}) to this machine, then type: {self.command(self.images, *words)}"}
        with naming_uses(uses):
            yield


def photos(arguments: Photos) -> None:
    """Make photos searchable, without captions or with them. A pretrained model indexes them; captions, or queries and
    a teacher, train a model of yours first. Run it again after photos came or went."""
    from dcdctl.cli.views.training import run_training

    arguments.check()
    if (lesson := arguments.lesson) is not None:
        lesson.corpus.run(bar, note)
        run_training(*lesson.request(), dry_run=False, json=False)
    show_it = show_sync if arguments.library.has_index else show_change
    show_it(arguments.index(note, bar))
    show(f"next: dcdctl serve {shlex.quote(str(arguments.library.index))}")
