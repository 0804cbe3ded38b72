"""What many tests need: a tiny corpus, a tiny dual student, and its ONNX files, which take seconds to make."""

from __future__ import annotations

import itertools
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import object_store
import postgres
import pytest
from made_runs import write_run
from noise_index import make_index
from processes import IS_PLAIN, make_once
from quick_libraries import operators_once
from tiny import contents, make_teacher, make_wide_dual

from dcdctl.core import artifacts, files, models
from dcdctl.core.data import Corpus, PrepareOptions, manifest, prepare_corpus
from dcdctl.core.data.download import http
from dcdctl.core.evaluation import EvalJob, evaluate
from dcdctl.core.export import ExportJob, export
from dcdctl.core.export.export import Exported
from dcdctl.core.models import text_export


@pytest.fixture(scope="session", autouse=True)
def _text_sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The text side of a model is exported only once, because many tests build an index; test_text_tower.py tests the
    export."""
    if IS_PLAIN:
        yield
        return
    kept = tmp_path_factory.mktemp("text-sides")

    def export_once(
        model: models.DualEncoder,
        folder: Path,
        space: str | None = None,
        saved: Path | None = None,
        probes: Sequence[str] = (),
        *,
        fingerprint: str | None = None,
    ) -> None:
        assert fingerprint in (None, model.digest)
        # Beside a saved model, a text side reads weights of its files.
        weights = (
            sorted((path.name, artifacts.sha256_of(path)) for path in saved.rglob("*.safetensors")) if saved else None
        )
        exported = kept / files.digest_of([model.digest, space, weights, *probes]) / "text"
        if not exported.exists():
            if saved is not None:
                saved = Path(shutil.copytree(saved, exported.with_name(saved.name), dirs_exist_ok=True))
            text_export.export_text_tower(model, exported, space, saved, probes)
        with files.atomic_folder(folder) as partial:
            shutil.copytree(exported, partial, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "export_text_tower", export_once)
        yield


@pytest.fixture(scope="module")
def _duals_read_once() -> Iterator[None]:
    """A dual encoder is the one that was read from files of the same bytes, unless it was changed since; for modules
    that train none."""
    if IS_PLAIN:
        yield
        return

    def read_once(read: Callable[..., Any]) -> Callable[..., Any]:
        def load(ref: str | Path) -> Any:
            if not Path(ref).is_dir():
                return read(ref)
            key = pickle.dumps(contents(Path(ref)))
            model, digest = _DUALS.get(key, (None, ""))
            if model is None or model.digest != digest:
                model = read(ref)
                _DUALS[key] = model, model.digest
            return model

        return load

    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_dual", "load_searchable"):
            patch.setattr(models, name, read_once(getattr(models, name)))
        yield


_DUALS: dict[bytes, tuple[Any, str]] = {}
"""Models and their digests by their files."""


class Logged(logging.Handler):
    """The records of all loggers while a test runs."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.levels: dict[logging.Logger, int] = {}
        """Levels before the test, of the loggers that it changed."""

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def text(self) -> str:
        """The messages and tracebacks."""
        return "\n".join(map(self.format, self.records))

    def set_level(self, level: int, logger: str | None = None) -> None:
        """Change the level of a logger, of the root by default, until the test ends."""
        changed = logging.getLogger(logger)
        self.levels.setdefault(changed, changed.level)
        changed.setLevel(level)


@pytest.fixture
def logged() -> Iterator[Logged]:
    """What is logged. Loggers that pass nothing on, such as those of uvicorn, are included."""
    found = Logged()
    known = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    heard = [logging.root, *(one for one in known if not one.propagate)]
    for logger in heard:
        logger.addHandler(found)
    yield found
    for logger in heard:
        logger.removeHandler(found)
    for logger, level in found.levels.items():
        logger.setLevel(level)


@pytest.fixture(scope="session")
def scenes_corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in corpus, small: train 32, val 8, test 16 images of 64 x 64 pixels, five captions each. Not to be
    written to."""
    sets = ["counts.train=32", "counts.val=8", "counts.test=16", "side_px=64"]
    folder = tmp_path_factory.mktemp("corpus") / "scenes"
    prepare_corpus(manifest.find_manifest("scenes", sets), folder, options=PrepareOptions(workers=1))
    return folder


@pytest.fixture(scope="module")
def corpus(scenes_corpus_dir: Path) -> Corpus:
    """Its train split."""
    return Corpus.open(scenes_corpus_dir, "train")


@pytest.fixture(scope="session")
def dual_run(scenes_corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a random dual student, evaluated on the test split; it resizes the images and truncates most
    captions."""
    gallery = Corpus.open(scenes_corpus_dir, "test")
    run = write_run(tmp_path_factory.mktemp("runs") / "dual", "demo-dual-alone")
    models.save(make_wide_dual(gallery.captions), run / "model", run=models.run_of(run))
    evaluate.run_evaluation(EvalJob(model=str(run), data=scenes_corpus_dir, batch_size=64))
    return run


@pytest.fixture(scope="session")
def onnx_student(dual_run: Path, scenes_corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """That student, exported to ONNX. Not to be written to."""

    def make(folder: Path) -> Exported:
        with operators_once():
            return export.export_model(
                ExportJob(model=str(dual_run), out=folder / "dual-onnx", to="onnx", data=scenes_corpus_dir)
            )

    return make_once(tmp_path_factory, "dual-onnx", make)


@pytest.fixture(scope="module")
def teacher(corpus: Corpus) -> models.ViltScorer:
    """A random ViLT for it."""
    return make_teacher(corpus.captions)


@pytest.fixture(scope="session")
def noise_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of twelve images, as `noise_index.make_index` makes it. Not to be written to."""
    return make_index(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a database of a PostgreSQL server with pgvector; a table is to be added as `&table=NAME`."""
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.server() as url:
        yield url


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[object_store.Store]:
    """A new bucket of an S3 server, with the settings of a user who may read and write it; requests are repeated
    without a wait."""
    store = object_store.start()
    store.begin(f"birds-{next(_BUCKETS)}")
    for setting, value in object_store.settings(store).items():
        monkeypatch.setenv(setting, value)
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.0)
    yield store
    store.end()


_BUCKETS = itertools.count()
