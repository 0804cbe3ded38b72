"""The page of a comparison, as a file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from made_runs import scores_of, write_evaluation

from dcdctl.core.data import Corpus
from dcdctl.core.evaluation import Comparison, comparison_tables
from dcdctl.core.evaluation.compare import compare_systems
from dcdctl.core.report import compare_page


def page_of(comparison: Comparison, path: Path, corpus: Corpus | None = None) -> dict[str, str]:
    """The headings of a page, with what follows each."""
    compare_page.write_comparison_page(path, comparison, corpus)
    _, *parts = path.read_text().split("<h2>")
    return dict(part.split("</h2>", 1) for part in parts)


@pytest.fixture(scope="module")
def compared(split, tmp_path_factory):
    """A comparison of two systems with a base, and its page."""
    root = tmp_path_factory.mktemp("compared")
    for name, skill in (("base", 1), ("better", 4), ("alike", 1.1)):
        write_evaluation(root / name, split, scores_of(split, skill))
    comparison = compare_systems([str(root / name) for name in ("base", "better", "alike")], resamples=50)
    return comparison, page_of(comparison, root / "page.html")


def test_every_pair_has_a_table_of_its_measures_under_the_names_of_both(compared):
    comparison, page = compared
    _, *tables = comparison_tables(comparison)
    assert list(page)[:3] == ["RSUM", "better compared with base", "alike compared with base"]
    for heading, table in zip(list(page)[1:3], tables, strict=True):
        cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page[heading], re.DOTALL)
        assert [cell for row in table.rows for cell in row if cell not in cells] == []
        assert len(re.findall("<tr", page[heading])) == len(table.rows) + 1


@pytest.mark.parametrize(("limit", "shown"), [(24, 3), (5, 1)], ids=["a share", "at least one"])
def test_queries_are_shown_up_to_a_limit_that_all_pairs_share(compared, tmp_path, monkeypatch, limit, shown):
    comparison, _ = compared
    # Over two pairs, two directions, better and worse.
    monkeypatch.setattr(compare_page, "MAX_QUERIES", limit)
    page = page_of(comparison, tmp_path / "page.html")
    (heading,) = [one for one in page if one.startswith("better better than base, image retrieval")]
    assert heading.endswith(f": {shown} of {comparison.comparisons[0].shifts['image'].num_better:,} captions")
    assert page[heading].count('<section class="beside">') == shown


def test_an_image_is_small_and_in_its_place_stands_its_first_caption(compared, split, tmp_path, monkeypatch):
    # Below the 64 pixels of a scene.
    monkeypatch.setattr(compare_page, "QUERY_PX", 48)
    monkeypatch.setattr(compare_page, "ANSWER_PX", 24)
    page = page_of(compared[0], tmp_path / "page.html", split)
    found = re.findall(r'<img alt="([^"]*)" width="(\d+)" height="(\d+)"', "".join(page.values()))
    first = {split.captions[np.flatnonzero(split.caption_image == image)[0]] for image in range(split.num_images)}
    assert {alt for alt, _, _ in found} <= first
    # Those of queries, and those of first answers.
    assert {max(int(width), int(height)) for _, width, height in found} == {48, 24}
