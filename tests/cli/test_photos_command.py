"""`dcdctl photos`: photos with and without captions, what does not fit together, and the same command again."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
from pathlib import Path

import encoders
import pytest
from command_line import error_of, run
from duals import save_dual
from every_command import inside
from families import FAMILIES, late
from open_clips import save_open_clip
from PIL import Image

import dcdctl
from dcdctl.core import models
from dcdctl.core.data.scenes import describe_scenes, draw_scene
from dcdctl.core.photos import DEFAULT_MODEL

PHOTOS = "photos photos captions.csv --out mine --set model.vision=vision --set model.text=text"


def write_captions(rows):
    with Path("captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Drawn photos with captions, and two tiny encoders."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "photos").mkdir()
    rows = []
    for number, item in enumerate(itertools.islice(describe_scenes(0, "train"), 12)):
        draw_scene(item.scene, 32).save(folder / "photos" / f"{number}.png")
        rows.append((f"{number}.png", item.statements[0].text))
    with inside(folder):
        write_captions(rows)
    encoders.save_vision("timm map", folder / "vision")
    captions = [caption for _, caption in rows]
    encoders.save_text("bert", captions, folder / "text")
    (folder / "queries.txt").write_text("\n".join(captions), encoding="utf-8")
    save_dual("CLIP", captions, folder / "clip")
    save_dual("SigLIP", captions, folder / "siglip")
    return folder


@pytest.fixture
def here(stage, tmp_path, monkeypatch):
    shutil.copytree(stage, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--set model.vision=vision --set model.text=no-text", "no-text is no file or folder here"),
        ("--set model.vision=no-vision --set model.text=text", "no-vision is no file or folder here"),
        (
            "--set model.vision=text --set model.text=text",
            "text is a bert model and reads input_ids, expected one that reads pixel_values",
        ),
        ("", "timm/tf_efficientnet_lite0.in1k is no file or folder here and not complete in the cache of the Hub"),
    ],
)
def test_encoders_that_are_not_there_are_refused_before_anything_is_prepared(here, monkeypatch, options, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert message in error_of(f"photos photos captions.csv --out mine {options}")
    assert not Path("mine").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no image in"),
        ({"notes.txt": b"x", "1.heic": b"\0\0\0\x18ftypheic"}, "none of 2 files in"),
        ({"film.mp4": b"\0\0\0\x18ftypisom\0\0\0\0isomiso2"}, "1 video: save frames"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        "photos other --out new",
        "photos other captions.csv --out new",
        "photos other --queries queries.txt --teacher some/teacher --out new",
        "index some/model --images other --out new",
        "index some/model --images other --out new --engine files:tasks",
    ],
)
def test_a_folder_without_photos_is_refused_before_a_model_is_looked_for(here, monkeypatch, command, files, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("other").mkdir()
    for name, content in files.items():
        Path("other", name).write_bytes(content)
    assert message in error_of(command)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("command", "what_to_do"),
    [
        (
            "photos photos --queries queries.txt --teacher blip-coco --model clip --out new",
            "name DIR in place of blip-coco",
        ),
        ("study demo-dual --start some/start --teacher scenes-vilt --data data --out new", "give `--start DIR`"),
        ("study demo-dual --start clip --teacher blip-coco --data data --out new", "name DIR in place of blip-coco"),
        (
            "eval vilt-coco --data data",
            "name DIR in place of vilt-coco, with --model-set image_size=384 --model-set max_text_len=40",
        ),
    ],
)
def test_a_model_that_cannot_be_fetched_is_an_error_before_other_work(here, monkeypatch, command, what_to_do):
    run("prepare --csv captions.csv --images photos --hold-out 0.3 --out data")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert error_of(command).endswith(f"{what_to_do}\n")
    assert not Path("new").exists()


def test_the_same_command_again_takes_photos_that_came_or_went_and_refuses_other_captions(here):
    assert "12 images, 512 numbers each" in run(PHOTOS).stdout
    weights = Path("mine/run/model/model.safetensors").read_bytes()
    shutil.copy("photos/3.png", "photos/new.png")
    assert "13 images, 1 copied" in run(PHOTOS).stdout
    Path("photos/new.png").unlink()
    assert "12 images, 1 removed" in run(PHOTOS).stdout
    assert "12 images, 12 unchanged" in run(PHOTOS).stdout
    with Path("captions.csv").open("a", encoding="utf-8") as file:
        file.write("3.png,one more caption\n")
    message = error_of(PHOTOS)
    assert "mine/data holds a finished corpus, data, made from other files or with other options" in message
    assert message.endswith("; name another folder with --out\n")
    assert Path("mine/run/model/model.safetensors").read_bytes() == weights


def make_run(folder, captions):
    """The folder of a run with a dual encoder in it."""
    run(f"photos photos captions.csv --out {folder.parent / 'other'} --set model.vision=vision --set model.text=text")
    return folder.parent / "other" / "run"


MODELS = {
    "a CLIP folder": lambda folder, captions: folder / "clip",
    "open_clip": lambda folder, captions: save_open_clip("open_clip SigLIP", captions, folder),
    "late interaction": lambda folder, captions: save_late(folder, captions),
    "a run": lambda folder, captions: make_run(folder / "run", captions),
}


def save_late(folder, captions):
    models.save(late(FAMILIES["dual"](captions, folder), is_pooled=False), folder / "late")
    return folder / "late"


@pytest.mark.parametrize("kind", MODELS)
def test_photos_without_captions_are_indexed_with_any_searchable_model(here, monkeypatch, kind):
    ref = MODELS[kind](Path.cwd(), Path("queries.txt").read_text(encoding="utf-8").splitlines())
    out = run(f"photos photos --out mine --model {ref}").stdout
    assert "12 images" in out
    assert out.endswith("next: dcdctl serve mine/index\n")
    Image.open("photos/3.png").rotate(90).save("photos/new.png")
    # The model is that of the index, whether it is named again or not.
    assert "13 images, 1 added" in run(f"photos photos --out mine --model {ref}").stdout
    with monkeypatch.context() as without_models:
        without_models.setattr("dcdctl.core.models.load_save.load", None)
        assert "13 images, 13 unchanged" in run(f"photos photos --out mine --model {ref}").stdout
        Path("photos/new.png").unlink()
        assert "12 images, 1 removed" in run("photos photos --out mine").stdout
    assert "a red" in run("search mine/index 'a red circle' --json").stdout


def test_queries_and_a_teacher_train_a_student_that_indexes_the_photos(here):
    words = "photos photos --queries queries.txt --teacher siglip --model clip --out mine"
    shutil.copy("photos/3.png", os.fsdecode(b"photos/caf\xe9.png"))
    result = run(words)
    assert "left out: 1 file or folder that cannot be opened: check permissions and names" in result.output
    assert "12 images, 8 numbers each" in result.stdout
    assert dcdctl.load("mine/run").embedding_dim == 8
    assert dcdctl.load("mine/run").digest == models.load("mine/index/model").digest
    # A finished library follows the folder, and trains nothing again.
    run_json = Path("mine/run/run.json").read_bytes()
    Path("photos/3.png").unlink()
    assert "11 images, 1 removed" in run("photos photos --out mine").stdout
    assert Path("mine/run/run.json").read_bytes() == run_json


CAPTIONED = "photos photos captions.csv --out mine"
"""Captions, and options that are for photos without them."""


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            "photos captions.csv photos --out mine",
            ["the folder of the photos comes first", "; dcdctl photos photos captions.csv --out mine\n"],
        ),
        (
            "photos captions.csv --out mine",
            ["captions.csv is a file, and `dcdctl photos` takes a folder", "dcdctl photos FOLDER captions.csv"],
        ),
        ("photos photos.zip --out mine", ["photos.zip is a file", "; unpack an archive, and name the folder"]),
        ("photos photos --out clip --model clip", ["clip holds config.json, ", "no library of photos; name another"]),
        (
            "photos photos clip --out mine",
            ["clip is a folder, and the captions are a CSV file", "then dcdctl sync mine/index --add clip"],
        ),
        (f"{CAPTIONED} --model clip", ["--model is for photos without captions", "photos photos --model clip --out"]),
        (f"{CAPTIONED} --queries queries.txt", ["--queries goes with photos without captions"]),
        (f"{CAPTIONED} --teacher siglip", ["--teacher goes with photos without captions", "docs/tutorial-pools.md"]),
        ("photos photos --queries queries.txt --out mine", ["name it with --teacher REF", "photos photos --out mine"]),
        ("photos photos --teacher siglip --out mine", ["--teacher needs texts", "name them with --queries FILE"]),
        ("photos photos --set model.vision=vision --out mine", ["--set is for the recipe of a training"]),
        ("photos photos --out photos/mine", ["mine would lie among the photos", "--out ", "photos-library"]),
        ("photos photos --out .", ["photos lie in the library"]),
        ("photos photos --model absent --out mine", ["absent does not exist"]),
        ("photos photos --model vision --out mine", ["vision"]),
        ("photos absent --out mine", ["absent cannot be read: No such file"]),
        ("photos photos --queries absent.txt --teacher siglip --out mine", ["absent.txt cannot be read: No such file"]),
        ("photos photos --queries queries.txt --teacher absent --out mine", ["absent does not exist"]),
        (
            "photos photos --queries queries.txt --teacher siglip --out mine",
            [
                f"{DEFAULT_MODEL} is no",
                "photos --model DIR --queries queries.txt --teacher siglip --out mine",
            ],
        ),
        (f"photos photos --model {DEFAULT_MODEL} --queries queries.txt --teacher siglip --out mine", ["type: dcdctl"]),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_written(here, monkeypatch, words, messages):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.make_archive("photos", "zip", "photos")
    error = error_of(words)
    assert [message for message in messages if message not in error] == []
    assert not Path("mine").exists()
    assert not Path("photos/mine").exists()
    assert not Path("clip/index").exists()


def test_without_a_network_the_error_says_what_to_copy_and_what_to_type_then(here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = error_of("photos photos --out mine")
    assert f"`hf download {DEFAULT_MODEL} --local-dir DIR`, and copy DIR (config.json, model.safetensors, " in error
    assert error.endswith("to this machine, then type: dcdctl photos photos --model DIR --out mine\n")
    assert not Path("mine").exists()


def test_a_library_of_another_model_or_of_other_photos_is_named(here):
    run("photos photos --out mine --model clip")
    message = error_of("photos photos --out mine --model siglip")
    assert "mine/index is an index of " in message
    assert "clip, not of siglip; name another folder" in message
    assert "not of the student mine/run" in error_of(PHOTOS)
    assert "is a library that `dcdctl photos` wrote" in error_of("photos mine --out other --model clip")
    assert not Path("other").exists()
    shutil.copytree("photos", "others")
    message = error_of("photos others --out mine")
    assert "photos, not of " in message
    assert "dcdctl sync mine/index --add " in message
    Path("photos").rename("elsewhere")
    message = error_of("photos elsewhere --out mine")
    assert "if the photos are at another place now: dcdctl sync mine/index --moved " in message
    Path("elsewhere").rename("photos")
    # Written by another program, or by `dcdctl index`: the model is compared by its fingerprint.
    Path("mine/library.json").unlink()
    assert "12 images" in run("photos photos --out mine --model clip").stdout
    index = Path("mine/index/index.json").read_bytes()
    assert "is an index of another model, not of siglip" in error_of("photos photos --out mine --model siglip")
    Path("mine/library.json").write_text("{")
    assert "library.json" in error_of("photos photos --out mine --model clip")
    assert Path("mine/index/index.json").read_bytes() == index


def test_photos_in_python_are_the_index_of_the_command(here):
    index = dcdctl.photos("photos", out="mine", model="clip")
    assert [hit.name for hit in dcdctl.Searcher(index).search("a red circle", k=3)]
    with pytest.raises(dcdctl.DcdError, match="--teacher REF"):
        dcdctl.photos("photos", out="other", queries="queries.txt")
    trained = dcdctl.photos(
        "photos", "captions.csv", out="trained", overrides={"model.vision": "vision", "model.text": "text"}
    )
    assert trained.num_images == 12
