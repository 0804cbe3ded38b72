"""Images that the workers of an engine embed: the index is that of one process, to the byte."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from damage import damage_image
from families import FAMILIES, late, with_noise
from image_files import png, put
from made_index import update
from PIL import Image
from sent_tasks import SendingEngine, sent
from tiny import contents

from dcdctl.core import models
from dcdctl.core.data import Corpus, PackedImageFile
from dcdctl.core.engines import Compute
from dcdctl.core.errors import CorpusError, DcdError
from dcdctl.core.search import IndexJob, build_index, embed, follow_folders, part_files
from dcdctl.core.search.embed import PackedFiles
from dcdctl.core.search.part_files import SourceImage

pytestmark = pytest.mark.usefixtures("_duals_read_once")
CAPTIONS = ["a red circle left of a blue square", "a small green triangle", "two dogs"]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(part_files, "ROWS_PER_PART", 7)
    monkeypatch.setattr(part_files, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(embed, "MOST_SENT_IMAGES", 4)


@pytest.fixture(scope="module")
def refs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    dual = FAMILIES["dual"](CAPTIONS, folder)
    models.save(dual, folder / "dual-run")
    models.save(with_noise(late(dual, is_pooled=False, position_norm=0.7)), folder / "late-run")
    return {"dual": folder / "dual-run", "late": folder / "late-run"}


def rotated(seed):
    exif = Image.Exif()
    exif[274], exif[306] = 6, "2024:05:06 07:08:09"
    stream = io.BytesIO()
    Image.open(io.BytesIO(png(seed))).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path):
    """What lies in a folder of photos: rotated ones, a Live Photo, another video, and files that are no images."""
    video = b"\0\0\0\x18ftypqt  " + bytes(40)
    files = {f"{seed:02}.png": png(seed) for seed in range(13)}
    files |= {"04.jpg": rotated(20), "sub/05.jpg": rotated(21), "sub/IMG_1.jpg": rotated(22)}
    files |= {"sub/IMG_1.mov": video, "sub/other.mov": video, "sub/00.txt": b"no image", "sub/00.jpg": png(3)[:300]}
    files |= {"sub/strip.png": png(5, size=(900, 2)), "sub/copy.png": png(0)}
    return put(tmp_path / "photos", files)


def compute(engine=None, batch_size=2):
    given = {} if engine is None else {"engine": engine}
    return Compute(batch_size=batch_size, workers=1, **given)


def built(ref, images, out, split=None, **how):
    job = IndexJob(model=str(ref), images=images, out=out, split=split)
    change = build_index(job, compute=compute(**how))
    return contents(out), change.skipped


@pytest.mark.parametrize(("kind", "batch_size"), [("dual", 2), ("late", 5)])
def test_an_index_of_a_folder_has_the_same_bytes_whoever_embeds(refs, photos, tmp_path, kind, batch_size):
    here, skipped = built(refs[kind], photos, tmp_path / "here", batch_size=batch_size)
    assert {file["path"]: file["kind"] for file in skipped} == {
        "sub/00.txt": "not-image",
        "sub/00.jpg": "damaged",
        "sub/IMG_1.mov": "live-video",
        "sub/other.mov": "video",
        "sub/strip.png": "strip",
    }
    engine = SendingEngine(hidden=photos)
    assert built(refs[kind], photos, tmp_path / "there", engine=engine, batch_size=batch_size)[0] == here
    # What is added has a part of its own, and the bytes that the index has already are not sent.
    more = put(tmp_path / "more", {f"{seed}.png": png(seed) for seed in range(30, 33)} | {"known.png": png(1)})
    added = SendingEngine(hidden=more)
    update(tmp_path / "here", compute=compute(batch_size=batch_size), add=more)
    update(tmp_path / "there", compute=compute(added, batch_size=batch_size), add=more)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert len(added.names) == 1


def test_an_index_of_a_corpus_has_the_same_bytes_whoever_embeds(refs, scenes_corpus_dir, tmp_path):
    here, _ = built(refs["dual"], scenes_corpus_dir, tmp_path / "here", split="val")
    there, _ = built(refs["dual"], scenes_corpus_dir, tmp_path / "there", split="val", engine=SendingEngine())
    assert there == here


def test_files_that_came_and_went_are_followed_by_any_engine(refs, photos, tmp_path):
    for out, engine in (("here", None), ("there", SendingEngine())):
        built(refs["dual"], photos, tmp_path / out, engine=engine)
    put(photos, {"new.png": png(40), "00.png": png(41)})
    (photos / "01.png").unlink()
    for out, engine in (("here", None), ("there", SendingEngine())):
        follow_folders(str(tmp_path / out), compute=compute(engine))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_killed_driver_goes_on_to_the_same_bytes_with_the_parts_that_it_has_not_written(refs, photos, tmp_path):
    here, _ = built(refs["dual"], photos, tmp_path / "here")
    num_repeated = []
    for dies_after in (0, 6):
        out = tmp_path / f"out-{dies_after}"
        with pytest.raises(KeyboardInterrupt):
            built(refs["dual"], photos, out, engine=SendingEngine(dies_after=dies_after))
        written = {f"vectors/{path.name}" for path in (out / "vectors").glob("*.parquet")}
        again = SendingEngine()
        assert built(refs["dual"], photos, out, engine=again)[0] == here
        assert written.isdisjoint(again.names)
        num_repeated.append(len(again.names))
    assert num_repeated[0] > num_repeated[1] > 0


def test_a_task_that_always_fails_costs_its_own_part_alone(refs, photos, tmp_path):
    here, _ = built(refs["dual"], photos, tmp_path / "here")
    with pytest.raises(DcdError, match="failed 4 times"):
        built(
            refs["dual"],
            photos,
            tmp_path / "out",
            engine=SendingEngine(fails="part-00001.parquet", error=DcdError("it failed 4 times")),
        )
    again = SendingEngine()
    assert built(refs["dual"], photos, tmp_path / "out", engine=again)[0] == here
    assert set(again.names) == {"vectors/part-00001.parquet"}


@pytest.mark.parametrize(
    ("sizes", "most_bytes", "expected"),
    [
        ([10] * 9, 1000, [4, 4, 1]),
        ([10] * 9, 45, [4, 4, 1]),
        ([10] * 9, 35, [2, 2, 2, 3]),
        ([10, 10, 90, 90, 10], 50, [2, 2, 1]),
        ([None] * 5, 50, [2, 2, 1]),
        ([], 50, []),
    ],
)
def test_a_task_has_whole_batches_of_few_images_and_bytes(monkeypatch, sizes, most_bytes, expected):
    monkeypatch.setattr(embed, "MOST_SENT_BYTES", most_bytes)
    images = [SourceImage(image_id=str(number), num_bytes=size) for number, size in enumerate(sizes)]
    groups = embed._to_send(embed.in_batches(images, 2), 20)
    assert [len(group) for group in groups] == expected
    assert [image for group in groups for image in group] == images


def test_a_damaged_image_of_a_corpus_has_the_error_of_the_corpus_in_a_worker(scenes_corpus_dir, tmp_path):
    data = Path(shutil.copytree(scenes_corpus_dir, tmp_path / "data"))
    damage_image(data, "val", 1, b"no image")
    corpus = Corpus.open(data, "val")
    image = SourceImage(image_id=corpus.image_ids[1], corpus_row=1)
    read_file = sent(PackedFiles({image.image_id: PackedImageFile(b"no image")}, corpus.place))
    with pytest.raises(CorpusError) as there:
        read_file(image)
    with pytest.raises(CorpusError) as here:
        corpus.image(1)
    assert str(there.value) == str(here.value)
    assert there.value.hint == here.value.hint
