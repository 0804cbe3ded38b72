"""How sure the recalls of a model are, and whether another's are better: the bootstrap over images.

Images are drawn with replacement, as many as there are, each with its captions, and the recalls are taken anew of what was drawn; the
middle 95 % of many draws is the interval (Efron & Tibshirani 1993, chapter 13: the percentile interval). Two models are compared on the
same draws, so that images that are hard for both do not blur their difference. The gallery is not drawn: ranks stay what they are. So
an interval says how much hangs on which images are in the split. Runs that differ in the seed are averaged query by query beforehand,
not drawn: how much hangs on the seed is not in it.

Shape letters: I images, T texts (captions); R draws, B those of a block; C columns: hits by direction and K, then captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.retrieval import KS

LEVEL = 0.95
"""Share of the draws that an interval holds."""
BLOCK_IMAGES = 1 << 16
"""Images drawn at a time, over all draws of a block: few enough for a processor's cache."""
HINT = "`dcdctl eval ... --ranks FILE` writes such a table"
_SCHEMA = pa.schema({"direction": pa.string(), "query": pa.int64(), "image_id": pa.string(), "caption_id": pa.int64(), "rank": pa.int64()})


@dataclass(frozen=True)
class RankTable:
    """The rank of every query of a run, from 1; every image has a caption."""

    image_ids: tuple[str, ...]
    caption_ids: NDArray[np.int64]
    """(T,): the source's number of each caption."""
    caption_image: NDArray[np.int64]
    """(T,): the image index of each caption."""
    text_ranks: NDArray[np.int64]
    """(I,): of the best own caption of each image."""
    image_ranks: NDArray[np.int64]
    """(T,): of the image of each caption."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    value: float
    """Of all images."""
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """RSUM and recalls in percent, or differences of them in percentage points; names as in `retrieval.Recalls`."""

    rsum: Estimate
    text_retrieval: dict[str, Estimate]
    image_retrieval: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    difference: Estimates
    """Our recalls less those of the base."""
    p_value: float
    """Two-sided, of no difference in RSUM: twice the share of draws on the rarer side of zero, each side counting one draw more and
    the draws at zero; at least 2 / (R + 1)."""
    num_images: int
    num_resamples: int
    num_our_runs: int
    num_base_runs: int


def read_ranks(path: Path) -> RankTable:
    """The table that `evaluation_files.write_ranks` has written; InputError where there is none."""
    if not path.is_file():
        raise InputError(f"there is no file {path}, a table of ranks is wanted", hint=HINT)
    try:
        with pq.ParquetFile(path) as file:
            if missing := set(_SCHEMA.names) - set(file.schema_arrow.names):
                raise InputError(f"{path} is not a table of ranks: it has no column {min(missing)!r}", hint=HINT)
            table = file.read(_SCHEMA.names).select(_SCHEMA.names).cast(_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a table of ranks ({error})", hint=HINT) from error
    text, image = (table.filter(pc.field("direction") == direction) for direction in ("text", "image"))
    if fault := _fault(table, text, image):
        raise InputError(f"{path} is not a table of ranks: {fault}", hint=HINT)
    image_ids = tuple(text["image_id"].to_pylist())
    caption_image = pc.index_in(image["image_id"], value_set=text["image_id"]).to_numpy().astype(np.int64)
    return RankTable(image_ids, image["caption_id"].to_numpy(), caption_image, text["rank"].to_numpy(), image["rank"].to_numpy())


def compare(ours: Sequence[RankTable], base: Sequence[RankTable], *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """How much better we retrieve than the base, by runs on the same queries; both sides are measured on the same draws.

    InputError for a side without runs, StaleError for ranks of other queries.

    >>> run = RankTable(("a", "b"), np.arange(2), np.arange(2), np.array([1, 1]), np.array([1, 7]))
    >>> found = compare([run], [run])
    >>> found.difference.rsum, found.p_value
    (Estimate(value=0.0, interval=Interval(low=0.0, high=0.0)), 1.0)
    """
    _check_queries({"ours": ours, "the base": base})
    # Whole numbers, so that draws without a difference are at zero to the bit.
    hits_I6 = _hits(ours) * len(base) - _hits(base) * len(ours)
    difference, rsum_R = _estimate(hits_I6, ours[0], len(ours) * len(base), resamples, seed)
    rarer = int(min(np.count_nonzero(rsum_R <= 0), np.count_nonzero(rsum_R >= 0)))
    p_value = min(1.0, 2 * (rarer + 1) / (resamples + 1))
    return Comparison(difference, p_value, len(hits_I6), resamples, num_our_runs=len(ours), num_base_runs=len(base))


def bootstrap(tables: Sequence[RankTable], *, resamples: int = 10_000, seed: int = 0) -> Estimates:
    """The recalls of one side, averaged over its runs; errors as of `compare`."""
    _check_queries({"this side": tables})
    return _estimate(_hits(tables), tables[0], len(tables), resamples, seed)[0]


def _fault(table: pa.Table, text: pa.Table, image: pa.Table) -> str | None:
    """What is wrong with a table that has the right columns."""
    if 0 in (text.num_rows, image.num_rows) or text.num_rows + image.num_rows != table.num_rows:
        return f"its directions are {table['direction'].unique().to_pylist()}, text and image are wanted"
    for part in (text.drop_columns("caption_id"), image):
        if empty := [name for name in part.column_names if part[name].null_count]:
            return f"its column {empty[0]!r} has empty fields"
        if part["query"].to_pylist() != list(range(part.num_rows)):
            return f"its {part['direction'][0]} queries are not numbered from 0 to {part.num_rows - 1}"
    if (lowest := pc.min(table["rank"]).as_py()) < 1:
        return f"it has the rank {lowest}, ranks start at 1"
    image_ids = set(text["image_id"].to_pylist())
    if len(image_ids) != text.num_rows:
        return f"its {text.num_rows} images have {len(image_ids)} different ids"
    alone = image_ids ^ set(image["image_id"].to_pylist())
    return f"the image {min(alone)!r} is in one direction only" if alone else None


def _check_queries(sides: dict[str, Sequence[RankTable]]) -> None:
    if empty := [side for side, tables in sides.items() if not tables]:
        raise InputError(f"there is no table of ranks for {empty[0]}, at least one is wanted", hint=HINT)
    (first_name, first), *others = [(f"run {i} of {side}", one) for side, tables in sides.items() for i, one in enumerate(tables, 1)]
    for name, table in others:
        odds = (f"{one}, not {other}" for one, other in zip(_queries(table), _queries(first), strict=False) if one != other)
        if found := next(odds, None):
            raise StaleError(f"{name} has other queries than {first_name}: {found}", hint="evaluate both on the same corpus and split")


def _queries(table: RankTable) -> list[str]:
    """How many there are, then the name of each."""
    owners = zip(table.caption_image.tolist(), table.caption_ids.tolist(), strict=True)
    captions = [f"caption {number} of {table.image_ids[image]!r}" for image, number in owners]
    return [f"{len(table.image_ids):,} images and {len(captions):,} captions", *map("image {!r}".format, table.image_ids), *captions]


def _hits(tables: Sequence[RankTable]) -> NDArray[np.int64]:
    """(I, 6): hits of each image by direction and K, summed over runs, those of image retrieval over the image's captions too."""
    hits_I6 = np.zeros((len(tables[0].image_ids), 2 * len(KS)), dtype=np.int64)
    for table in tables:
        hits_I6[:, : len(KS)] += table.text_ranks[:, None] <= KS
        np.add.at(hits_I6[:, len(KS) :], table.caption_image, table.image_ranks[:, None] <= KS)
    return hits_I6


def _estimate(
    hits_I6: NDArray[np.int64], table: RankTable, num_runs: int, resamples: int, seed: int
) -> tuple[Estimates, NDArray[np.float64]]:
    """Recalls and RSUM by hits that are sums over `num_runs`, and RSUM of each draw."""
    columns_IC = np.column_stack([hits_I6, np.bincount(table.caption_image)]).astype(np.float64)
    sums_RC = np.vstack([columns_IC.sum(axis=0), _draw(columns_IC, resamples, seed)])
    text_R3, image_R3, captions_R1 = np.split(sums_RC, [len(KS), 2 * len(KS)], axis=1)
    rsum_R1 = text_R3.sum(axis=1, keepdims=True) / len(hits_I6) + image_R3.sum(axis=1, keepdims=True) / captions_R1
    percent_R7 = 100 / num_runs * np.hstack([text_R3 / len(hits_I6), image_R3 / captions_R1, rsum_R1])
    bounds_27 = np.quantile(percent_R7[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    *recalls, rsum = [Estimate(value, Interval(*bounds)) for value, *bounds in np.vstack([percent_R7[0], bounds_27]).T.tolist()]
    text, image = ({f"R@{k}": one for k, one in zip(KS, part, strict=True)} for part in (recalls[: len(KS)], recalls[len(KS) :]))
    return Estimates(rsum=rsum, text_retrieval=text, image_retrieval=image), percent_R7[1:, -1]


def _draw(columns_IC: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """(R, C): the sums of the columns over the images of each draw."""
    if resamples < 1:
        raise ValueError(f"{resamples} draws, at least one is wanted")
    rng, num_images, sums = np.random.default_rng(seed), len(columns_IC), []
    block = max(1, BLOCK_IMAGES // num_images)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        image_BI = rng.integers(num_images, size=(size, num_images)) + num_images * np.arange(size)[:, None]
        # Counting draws gives multinomial numbers ten times faster than drawing such numbers.
        times_BI = np.bincount(image_BI.ravel(), minlength=image_BI.size).reshape(image_BI.shape)
        sums.append(times_BI.astype(np.float64) @ columns_IC)
    return np.concatenate(sums)
