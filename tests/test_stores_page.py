"""The section on stores, as it is written: its commands, from a finished run to a search in PostgreSQL, and the lines
for any other engine."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import postgres
import processes
from command_line import run
from paths import DOCS
from PIL import Image
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.cli.views.terminal import printable
from dcdctl.core.search import FolderIndex

PAGE = (DOCS / "indexing.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```\n(createdb .*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0].splitlines()
(READING,) = re.findall(r"^```python\n(import json.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_four_commands_of_the_page_search_in_postgresql(postgres_url, noise_index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(noise_index.parent / "dual", "runs/student")
    shutil.copytree(noise_index.parent / "images", "photos")
    names = sorted(path.relative_to("photos").as_posix() for path in Path("photos").rglob("*.png"))
    rows = [f'"{name}",{2018 + number % 4},{"ann" if number % 3 else "bob"}' for number, name in enumerate(names)]
    Path("photos.csv").write_text("\n".join(["image,year,owner", *rows]), encoding="utf-8")
    # The reader's server is found by libpq itself.
    monkeypatch.setenv("PGHOST", parse_qs(urlsplit(postgres_url).query)["host"][0])
    monkeypatch.setenv("PGUSER", "tester")
    createdb, *commands = map(shlex.split, COMMANDS)
    processes.run([postgres.find_binaries() / createdb[0], *createdb[1:]], check=True)
    assert len(commands) == 3
    for command in commands:
        assert command[0] == "dcdctl"
        result = CliRunner().invoke(app, command[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
    # In rows of four, the third and the fourth are of 2020 and 2021; each third image is bob's.
    expected = {name for number, name in enumerate(names) if number % 4 >= 2 and number % 3}
    assert "4 of 12 images" in result.stderr
    found = [line.split(maxsplit=2)[2] for line in result.stdout.splitlines()[1:] if line.split()[0].isdecimal()]
    assert set(found) == set(map(printable, expected))


def test_the_lines_for_any_other_engine_read_the_images_of_an_index(noise_index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = noise_index.parent
    Path("photos.csv").write_text("image,year\nplain.png,2019\ng.png,2020\n", encoding="utf-8")
    run(f"index {made}/dual --images {made}/images --metadata photos.csv --out photos.index")
    Path("more").mkdir()
    Image.effect_noise((32, 32), 60).convert("RGB").save("more/new.png")
    run("change photos.index --remove plain.png")
    run("sync photos.index --add more")
    read: dict[str, Any] = {}
    exec(READING, read)
    index, images = FolderIndex.open(Path("photos.index")), read["images"]
    assert len(images) == index.num_images == 12
    assert dict(zip(images["image_id"], images["year"], strict=True)).get("g.png") == 2020
    assert images["path"].tolist()[-1] == "new.png"
    for row, image in images.iterrows():
        assert image["image_id"] == index.image_id(row)
        assert np.array_equal(image["vector"], index.stored(np.array([row])).data[0])
