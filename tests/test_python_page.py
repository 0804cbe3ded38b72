"""The page on Python: its blocks run in order, and it names everything that `import dcdctl` offers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from captioned_photos import CAPTIONS, DATA, NAMES, SPLITS
from paths import DOCS

import dcdctl
from dcdctl.core.bench import QUICK, footprint
from dcdctl.core.evaluation import cascade
from dcdctl.core.study import study

PAGE = DOCS / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
BUDGET = "budget_s=0.1", "budget_s=0.01, num_images=4, batch_size=4, batch_sizes=(4,)"
"""Of a benchmark: that of the page, and that of the test, which looks at no time."""
STUDY_BENCH = replace(QUICK, budget_s=0.01, num_repeats=3, num_images=4, batch_size=4, batch_sizes=(4,))
"""Of the study, which has no argument for it."""


def write_photos() -> None:
    """The photos and captions that the page takes as the reader's."""
    for folder, names in (("photos", NAMES), ("more-photos", ["d.jpg", "e.jpeg"])):
        Path(folder).mkdir()
        for name, data in zip(names, DATA, strict=False):
            Path(folder, name).write_bytes(data)
    rows = [
        f"{name},{caption!r},{split}"
        for name, captions, split in zip(NAMES, CAPTIONS, SPLITS, strict=True)
        for caption in captions
    ]
    Path("captions.csv").write_text("\n".join(["image,caption,split", *rows]).replace("'", '"'), encoding="utf-8")


def test_the_blocks_of_the_page_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "QUICK", STUDY_BENCH)
    monkeypatch.setattr(cascade, "MAX_ROUNDS", 3)
    monkeypatch.setattr(footprint, "NUM_COUNTED", 1)
    write_photos()
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block.replace(*BUDGET), str(PAGE), "exec"), names)
    assert sum(block.count(BUDGET[0]) for block in BLOCKS) == 1
    said = capsys.readouterr().out
    index = names["index"]
    assert isinstance(index, dcdctl.Index)
    # d.jpg has the bytes of a.jpg, and e.jpeg, which was removed, is there again after the index was synced.
    assert "('a.jpg', 'd.jpg') True" in said
    found = {hit.name: hit.copies for hit in dcdctl.Searcher(index).search("birds", k=9)}
    assert sorted({*found, *(name for names in found.values() for name in names)}) == [
        "a.jpg",
        "b c.jpg",
        "d.jpg",
        "e.jpeg",
        "ü.jpg",
    ]
    assert len(found) == 3
    assert "2 ['two birds', 'birds, flying'] (24, 16)" not in said
    assert "1 ['two birds', 'birds, flying'] (24, 16)" in said
    assert "torch.Size([2, 256])" in said
    assert "dcdctl index" in said  # the hint of the error
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["alone", "by-dual", "student", "teacher"]
    assert (tmp_path / "compared.html").exists()
    assert (tmp_path / "study" / "runs" / "distilled-seed0" / "bench.json").exists()


@pytest.mark.parametrize("name", sorted(set(dcdctl.__all__)))
def test_the_page_names_everything_that_is_public(name):
    assert re.search(rf"(?<![\w.]){name}\b|dcdctl\.{name}\b|`{name}\b", PAGE.read_text(encoding="utf-8"))
