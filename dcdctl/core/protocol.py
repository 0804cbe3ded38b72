"""Whether a test split is the one that the papers report on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dcdctl.core.errors import InputError
from dcdctl.core.manifest import Expected, Manifest

HINT = (
    "results on it could not be compared: find what is missing, or leave the split out with --splits, or give up with --set protocol=none"
)


def serves(manifest: Manifest, found: Mapping[str, Expected], splits: Sequence[str], max_images: int | None) -> str:
    """What results on a corpus with these counts can be compared with; the reason, after "none:", where with nothing.

    InputError if the test split has other counts than the papers' and is not cut short on purpose.
    """
    if manifest.protocol in ("", "none"):
        return "none: the data set names none"
    if max_images is not None:
        return f"none: only the first {max_images:,} images of each split"
    wanted = splits or list(manifest.expected)
    if "test" not in wanted:
        return "none: without the test split"
    if (said := _differs(manifest, found, "test")) is not None:
        raise InputError(f"{manifest.name}: {said}", hint=HINT)
    others = [said for split in wanted if split != "test" and (said := _differs(manifest, found, split)) is not None]
    return "; but ".join([manifest.protocol, *others])


def _differs(manifest: Manifest, found: Mapping[str, Expected], split: str) -> str | None:
    wanted, there = manifest.expected.get(split), found.get(split, Expected(images=0, captions=0))
    if wanted is None or there == wanted:
        return None
    told = f"{there.images:,} images and {there.captions:,} captions"
    return f"split {split!r} has {told}, the papers' has {wanted.images:,} and {wanted.captions:,}"
