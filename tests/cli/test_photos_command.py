"""`dcdctl photos`: captioned photos, their encoders, and the same command again."""

from __future__ import annotations

import csv
import itertools
import shutil
from pathlib import Path

import encoders
import pytest
from command_line import error_of, run
from every_command import inside

from dcdctl.core.data.scenes import describe_scenes, draw_scene

PHOTOS = "photos photos captions.csv --out mine --vision vision --text text"


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
    encoders.save_text("bert", [caption for _, caption in rows], folder / "text")
    return folder


@pytest.fixture
def here(stage, tmp_path, monkeypatch):
    shutil.copytree(stage, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--vision vision --text no-text", "no-text is no file or folder here"),
        ("--vision no-vision --text text", "no-vision is no file or folder here"),
        ("--vision text --text text", "text is a bert model and reads input_ids, expected one that reads pixel_values"),
        ("", "timm/tf_efficientnet_lite0.in1k is no file or folder here and not complete in the cache of the Hub"),
    ],
)
def test_encoders_that_are_not_there_are_refused_before_anything_is_prepared(here, monkeypatch, options, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert message in error_of(f"photos photos captions.csv --out mine {options}")
    assert not Path("mine").exists()


def test_the_same_command_again_takes_photos_that_came_or_went_and_refuses_other_captions(here):
    assert "12 images, 512 numbers each" in run(PHOTOS).stdout
    weights = Path("mine/run/model/model.safetensors").read_bytes()
    shutil.copy("photos/3.png", "photos/new.png")
    assert "13 images, 1 added" in run(PHOTOS).stdout
    Path("photos/new.png").unlink()
    assert "12 images, 1 removed" in run(PHOTOS).stdout
    assert "12 images, 512" in run(PHOTOS).stdout
    with Path("captions.csv").open("a", encoding="utf-8") as file:
        file.write("3.png,one more caption\n")
    message = error_of(PHOTOS)
    assert "mine/data holds a finished corpus, data, made from other files or with other options" in message
    assert message.endswith("; name another folder with --out\n")
    assert Path("mine/run/model/model.safetensors").read_bytes() == weights
