"""Images and texts that a pool must not train on, because something is measured on them: those of val and test of the
same corpus, and of other corpora.

An image of a pool is left out if its file is one of theirs or looks like one (`near_duplicates`), a text if its words
are (`captions.text_key`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from dcdctl.core.data import images
from dcdctl.core.data.captions import text_key
from dcdctl.core.data.corpus import Corpus
from dcdctl.core.data.corpus_json import read_corpus_json
from dcdctl.core.data.near_duplicates import SeenImages
from dcdctl.core.data.readers.rows import HELD_OUT, Listing
from dcdctl.core.errors import InputError
from dcdctl.core.machine import read_in_threads
from dcdctl.core.progress import Track


class HeldOut(SeenImages):
    """What is measured on, as far as it is known yet: a pool is written last."""

    def __init__(self) -> None:
        super().__init__()
        self.text_keys: set[str] = set()

    def add_texts(self, texts: Iterable[str]) -> None:
        """Add captions, or texts of a pool."""
        self.text_keys.update(map(text_key, texts))


def open_measured(folders: Sequence[Path], listing: Listing) -> tuple[list[Corpus], Listing]:
    """The splits of prepared corpora that are measured on, which are val and test, or all splits of a corpus that has
    neither; and the listing, with their fingerprints."""
    opened = []
    for folder in folders:
        splits = list(read_corpus_json(folder).splits)
        measured = [name for name in splits if name in HELD_OUT] or splits
        opened += [Corpus.open(folder, split) for split in measured]
    if not opened:
        return opened, listing
    if not trained_pools(listing):
        raise InputError(
            "--decontaminate leaves images and texts out of a pool, and there is none to train on",
            hint="add --queries, or leave --decontaminate out",
        )
    fingerprints = [[f"{corpus.name} {corpus.split}", corpus.fingerprint] for corpus in opened]
    return opened, replace(listing, provenance={**listing.provenance, "decontaminate": fingerprints})


def read_measured(corpora: Sequence[Corpus], workers: int, track: Track) -> HeldOut:
    """The images of other corpora, which are decoded, and their texts."""
    held_out = HeldOut()
    with track("decontaminate", total=sum(corpus.num_images for corpus in corpora), unit="images") as advance:

        def hashed(data: bytes) -> tuple[bytes, int]:
            return hashlib.sha256(data).digest(), images.check_image(data).hash

        for corpus in corpora:
            # One thread reads: each of several would read the row group of an image again.
            files = map(corpus.image_bytes, range(corpus.num_images))
            with closing(read_in_threads(hashed, files, 0 if workers == 1 else workers)) as results:
                for image_id, (digest, hash_bits) in zip(corpus.image_ids, results, strict=True):
                    held_out.add(f"{image_id} of {corpus.name} {corpus.split}", digest, hash_bits)
                    advance(1)
            held_out.add_texts(corpus.captions)
    return held_out


def trained_pools(listing: Listing) -> list[str]:
    """The splits of a listing that are pools to train on."""
    return [split for split in listing.pools if split not in HELD_OUT]


def leave_texts_out(
    listing: Listing, held_out: HeldOut
) -> tuple[dict[str, Mapping[str, tuple[int, str]]], dict[str, list[str]]]:
    """The texts that each pool keeps, as in the listing; and those that each pool to train on is left without."""
    pools = dict(listing.pools)
    left_out: dict[str, list[str]] = {}
    for split in trained_pools(listing):
        left_out[split] = [text for text in pools[split] if text_key(text) in held_out.text_keys]
        unwanted = set(left_out[split])
        pools[split] = {text: label for text, label in pools[split].items() if text not in unwanted}
    return pools, left_out
