"""The artifact of stored features; `features` writes and reads it.

torch is not imported here, because `dcdctl verify` compares files without it.
"""

from __future__ import annotations

from dcdctl.core.artifacts import Kind

FEATURES = Kind(
    name="features",
    format=3,
    seal_file="features.json",
    files=("lengths.npy", "images-*.npy", "texts-*.npy"),
    make="run the command with --features",
    make_again="run the same command again",
)
