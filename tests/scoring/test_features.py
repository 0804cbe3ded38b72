"""What frozen encoders made of a corpus, on disk: equal to encoding anew but for float16, never another corpus's or
model's."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections import namedtuple
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from encoders import make_pair
from made_caches import build_cache
from open_inputs import OpenInputs
from tiny import contents, make_corpus
from torch.testing import assert_close

from dcdctl.core import artifacts, files, training
from dcdctl.core.engines import Compute
from dcdctl.core.errors import InputError, ModelError, StaleError
from dcdctl.core.progress import byte_size
from dcdctl.core.scoring import CorpusSource, feature_build, features, open_or_build
from dcdctl.core.teacher import CandidateConfig
from dcdctl.core.training import TrainingJob, TrainingOptions

HALF = {"rtol": 2**-10, "atol": 1e-4}
"""Half a unit in the last of float16's 11 digits, and something for numbers near 0."""
LOGITS = {"rtol": 0, "atol": 2e-3}
"""Of scores with a spread of some tenths, from features that were rounded so."""
TRAIN = [
    "model.layers=[0, 2]",
    "batch.size=4",
    "batch.random_negatives=3",
    "batch.hard_negatives=2",
    "optimizer.steps=2",
]


@pytest.fixture(scope="module")
def pair(corpus, tmp_path_factory):
    return make_pair(corpus.captions, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
    monkeypatch.setattr(features, "IMAGES_PER_FILE", 12)
    monkeypatch.setattr(feature_build, "IMAGE_CHUNK", 5)
    monkeypatch.setattr(feature_build, "TEXT_CHUNK", 7)


@pytest.fixture
def kept(root, corpus, pair):
    return open_or_build(root, corpus, pair)


@torch.no_grad()
def test_features_are_those_of_the_encoders(kept, corpus, pair):
    source = CorpusSource(corpus, pair.preprocess)
    image_ix, text_ix = [13, 2, 31, 2], [159, 0, 64, 60, 3, 0]
    for features_read, expected in (
        (kept.images(image_ix), pair.encoders.image_features(source.images(image_ix))),
        (kept.texts(text_ix), pair.encoders.text_features(source.texts(text_ix))),
    ):
        assert features_read.tokens.dtype == torch.float16
        assert torch.equal(features_read.mask, expected.mask)
        assert_close(features_read.tokens.float(), expected.tokens * expected.mask[..., None], **HALF)


def test_a_dual_encoder_may_read_the_first_token_alone(kept):
    image_ix = [5, 0, 31]
    whole, first = kept.images(image_ix), dataclasses.replace(kept, only_first=True).images(image_ix)
    assert torch.equal(first.tokens, whole.tokens[:, :1])
    assert first.mask.shape == (3, 1)


def test_the_size_is_told_before_anything_is_encoded(tmp_path, corpus, pair):
    labels = []

    @contextmanager
    def track(label, *, total, unit):
        labels.append((label, total, sorted(path.name for path in tmp_path.rglob("*-*.npy"))))
        yield lambda count: None

    stored = open_or_build(tmp_path, corpus, pair, track=track)
    size = feature_build.size_in_bytes(stored.plan)
    of_images = [f"images-0000{part}.npy" for part in range(3)]
    assert labels == [
        (f"encode 32 images, then 160 captions, {byte_size(size)} in all", 32, []),
        ("encode 160 captions", 160, of_images),
    ]
    paths = list(stored.folder.glob("*-*.npy"))
    assert sum(np.load(path).nbytes for path in paths) == size


def test_no_room_on_the_disk_is_said_before_anything_is_encoded(tmp_path, corpus, pair, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(InputError, match=r"the features need [\d.]+ KB more in .*, and 1\.0 KB are free"):
        open_or_build(tmp_path, corpus, pair)
    assert not list(tmp_path.rglob("*-*.npy"))


@pytest.mark.parametrize(("after", "num_files"), [(1, 0), (4, 1), (9, 3), (18, 4)])
def test_a_killed_encoding_goes_on_and_ends_with_the_same_bytes(after, num_files, tmp_path, kept, corpus, pair):
    class Killed(BaseException):
        pass

    calls = 0  # 3, 3 and 2 batches of images, then 9, 9 and 6 of captions

    @contextmanager
    def track(label, *, total, unit):
        def advance(count):
            nonlocal calls
            calls += 1
            if calls == after:
                raise Killed

        yield advance

    with pytest.raises(Killed):
        open_or_build(tmp_path, corpus, pair, track=track)
    half_way = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*-*.npy")}
    assert len(half_way) == num_files
    stored = open_or_build(tmp_path, corpus, pair)
    assert {path.name: path.read_bytes() for path in stored.folder.iterdir()} == {
        path.name: path.read_bytes() for path in kept.folder.iterdir()
    }
    assert half_way.items() <= {path.name: path.stat().st_mtime_ns for path in stored.folder.iterdir()}.items()


def test_another_corpus_or_encoder_has_its_own_folder(root, kept, corpus, pair, tmp_path):
    other = make_pair(corpus.captions, tmp_path)
    with torch.no_grad():
        other.network.vision.embeddings.cls_token[0, 0, 0] += 1
    first, second = (
        open_or_build(tmp_path / "features", corpus.subset(4), other),
        open_or_build(tmp_path / "features", corpus.subset(5), other),
    )
    assert len({kept.folder.name, first.folder.name, second.folder.name}) == 3
    assert open_or_build(tmp_path / "features", corpus.subset(4), pair).folder.name not in (
        kept.folder.name,
        first.folder.name,
    )
    # What comes after the encoders may differ: a student reads its teacher's.
    assert open_or_build(root, corpus, pair.student([1])).folder == kept.folder


def test_the_first_images_are_read_from_the_features_of_the_whole_split(kept, root, corpus, pair, monkeypatch):
    first = corpus.subset(17)  # 12 images are in the first file
    monkeypatch.setattr(feature_build, "_build", None)
    found = open_or_build(root, first, pair)
    assert (found.folder, found.corpus) == (kept.folder, first)
    image_ix, text_ix = [16, 0, 12], [first.num_captions - 1, 0, 61, 60]
    for states, expected in (
        (found.images(image_ix), kept.images(image_ix)),
        (found.texts(text_ix), kept.texts(text_ix)),
    ):
        assert torch.equal(states.tokens, expected.tokens)
        assert torch.equal(states.mask, expected.mask)


def runs_of(monkeypatch, pair):
    """Counts the images and captions that the encoders of a kind of model are run on."""
    counts = {"image_features": 0, "text_features": 0}
    for name in counts:
        run = getattr(type(pair.encoders), name)

        def counted(self, batch, name=name, run=run):
            states = run(self, batch)
            counts[name] += len(states.tokens)
            return states

        monkeypatch.setattr(type(pair.encoders), name, counted)
    return counts


def test_the_whole_split_takes_the_full_files_of_its_first_images(tmp_path, kept, corpus, pair, monkeypatch):
    first = open_or_build(tmp_path, corpus.subset(17), pair)
    counts = runs_of(monkeypatch, pair)
    whole = open_or_build(tmp_path, corpus, pair)
    # One file holds 12 of the 17 images. One more image is run to find the number of its tokens.
    assert counts == {"image_features": 1 + 32 - 12, "text_features": 160 - 60}
    assert contents(whole.folder) == contents(kept.folder)
    assert (whole.folder / "images-00000.npy").samefile(first.folder / "images-00000.npy")
    shutil.rmtree(first.folder)
    assert torch.equal(open_or_build(tmp_path, corpus, pair).images([0, 31]).tokens, kept.images([0, 31]).tokens)


@pytest.mark.parametrize("num_images", [32, 24])  # the last file is part full, or full
def test_captions_are_encoded_once_for_all_image_sizes(num_images, tmp_path, corpus, pair, monkeypatch):
    corpus = corpus.subset(num_images)
    first = open_or_build(tmp_path, corpus, pair)
    processor = copy.deepcopy(pair.preprocess.image_processor)
    processor.image_mean = [0.1, 0.2, 0.3]
    other = copy.copy(pair)
    other.preprocess = dataclasses.replace(pair.preprocess, image_processor=processor)
    counts, labels = runs_of(monkeypatch, pair), []

    @contextmanager
    def track(label, *, total, unit):
        labels.append(label)
        yield lambda count: None

    second = open_or_build(tmp_path, corpus, other, track=track)
    assert [label.partition(" in all")[0].rpartition(",")[0] for label in labels] == [f"encode {num_images} images"]
    assert counts == {"image_features": 1 + num_images, "text_features": 0}
    assert second.folder != first.folder
    assert not torch.equal(second.images([3]).tokens, first.images([3]).tokens)
    text_ix = [0, corpus.num_captions - 1]
    assert torch.equal(second.texts(text_ix).tokens, first.texts(text_ix).tokens)
    # Captions that are cut elsewhere are others.
    third = copy.copy(pair)
    third.preprocess = dataclasses.replace(pair.preprocess, max_text_len=pair.preprocess.max_text_len - 1)
    open_or_build(tmp_path, corpus, third)
    assert counts["text_features"] == corpus.num_captions


def test_another_corpus_shares_nothing(tmp_path, pair, monkeypatch):
    one, two = (make_corpus(tmp_path / text, [[text]] * 25) for text in ("a red star", "a blue circle"))
    open_or_build(tmp_path / "features", one, pair)
    counts = runs_of(monkeypatch, pair)
    found = open_or_build(tmp_path / "features", two, pair)
    assert counts == {"image_features": 1 + 25, "text_features": 25}
    open_or_build(tmp_path / "features", two.subset(12), pair)
    assert found.corpus is two
    assert counts["text_features"] == 25


def test_a_damaged_file_of_another_folder_is_not_taken(tmp_path, corpus, pair):
    first = open_or_build(tmp_path, corpus.subset(17), pair)
    path = first.folder / "images-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StaleError, match=r"images-00000\.npy is damaged"):
        open_or_build(tmp_path, corpus, pair)


def test_a_folder_of_encoders_whose_digest_begins_alike_is_refused(root, kept, corpus, pair, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / kept.folder.name
    plan, seal = features.FEATURES.read_plan_and_seal(folder)
    other = {**plan, "encoders": plan["encoders"][:12] + "0" * 52}
    artifacts.write_document(folder / "plan.json", other)
    artifacts.write_document(folder / "features.json", {**seal, artifacts.PLAN_CHECKSUM: files.digest_of(other)})
    with pytest.raises(StaleError, match=rf"with another encoders \({other['encoders']}, not {plan['encoders']}\)"):
        open_or_build(tmp_path, corpus, pair)


def test_features_that_another_run_is_writing_are_awaited_and_not_encoded_again(
    tmp_path, kept, corpus, pair, monkeypatch
):
    folder, labels = tmp_path / kept.folder.name, []

    @contextmanager
    def track(label, *, total, unit):
        labels.append(label)
        shutil.copytree(kept.folder, folder)  # the other run ends
        lock.close()
        yield lambda count: None

    monkeypatch.setattr(feature_build, "_build", None)
    with ExitStack() as lock:
        lock.enter_context(files.lock(folder))
        assert open_or_build(tmp_path, corpus, pair, track=track).parts == kept.parts
    assert labels == [f"wait for another run that is writing to {folder}"]


def test_features_beyond_float16_are_refused(tmp_path, corpus):
    pair = make_pair(corpus.captions, tmp_path / "pair")
    with torch.no_grad():
        pair.network.vision.layernorm.bias.add_(1e6)
    with pytest.raises(ModelError, match="larger than float16 can hold"):
        open_or_build(tmp_path, corpus, pair)
    assert not list(tmp_path.glob("*/images-*"))


def test_batches_that_do_not_fit_are_encoded_in_halves_and_stay_small(tmp_path, kept, corpus, pair, monkeypatch):
    tried: list[int] = []
    for name in ("image_features", "text_features"):
        encode = getattr(type(pair.encoders), name)

        def limited(self, batch, encode=encode):
            tried.append(len(batch))
            if len(batch) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return encode(self, batch)

        monkeypatch.setattr(type(pair.encoders), name, limited)
    stored = open_or_build(tmp_path, corpus, pair)
    assert_close(stored.images(range(32)).tokens, kept.images(range(32)).tokens, **HALF)
    assert_close(stored.texts(range(160)).tokens, kept.texts(range(160)).tokens, **HALF)
    # Images come in batches of 5 and captions in batches of 7, and each kind is too large once.
    assert [count for count in tried if count > 4] == [5, 7]


def test_caches_and_losses_are_those_of_the_encoders(root, corpus, pair, tmp_path):
    config = CandidateConfig(kind="random", per_query=3)
    caches = [
        build_cache(corpus, pair, tmp_path / str(i), config, compute=Compute(features=features_root))
        for i, features_root in enumerate((None, root))
    ]
    np.testing.assert_allclose(caches[1].score_P, caches[0].score_P, **LOGITS)
    with pytest.raises(StaleError, match=r"made with another features \(null, not float16\)"):
        build_cache(corpus, pair, tmp_path / "0", config, compute=Compute(features=root))
    runs = []
    for folder in (None, root):
        inputs, options = OpenInputs(corpus, [caches[0]], pair), TrainingOptions(compute=Compute(features=folder))
        out = tmp_path / f"run {folder is None}"
        run = training.train_model(TrainingJob("distill", "vilt-flickr30k", TRAIN, out), inputs, options=options)
        runs.append([json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()])
    assert runs[1] == pytest.approx(runs[0], abs=2e-3)
    assert len(runs[0]) == 2


def test_a_corpus_of_any_number_of_captions_is_read_back(tmp_path, pair):
    corpus = make_corpus(tmp_path / "corpus", [["a red star"] * (1 + image % 3) for image in range(25)])
    kept = open_or_build(tmp_path, corpus, pair)
    source = CorpusSource(corpus, pair.preprocess)
    everything = range(corpus.num_captions)
    with torch.no_grad():
        assert_close(
            kept.texts(everything).tokens.float(), pair.encoders.text_features(source.texts(everything)).tokens, **HALF
        )
