"""What comes with dcdctl by name: data sets and published teachers, with all that is known of each."""

from __future__ import annotations

from typing import Any

from dcdctl.core import config, formats, manifest, named_teachers
from dcdctl.core.manifest import Manifest


def document() -> dict[str, Any]:
    """JSON-able: data sets with counts, sources, files and licences, and teachers with their sources and published recalls."""
    return {
        "data_sets": [_data_set(one) for one in manifest.known()],
        "teachers": [{"name": name, "source": one.source, **config.to_table(one)} for name, one in named_teachers.known().items()],
    }


def _data_set(one: Manifest) -> dict[str, Any]:
    names = {kind: name for name, kind in formats.FORMATS.items()}
    head = {key: getattr(one, key) for key in manifest.HEAD}
    return {
        **head,
        "images": [f"{split} {expected.images:,}" for split, expected in one.expected.items()],
        "expected": config.to_table(one.expected),
        "sources": [{"name": name, "format": getattr(source, "form", names[type(source)])} for name, source in one.sources.items()],
        "files": config.to_table(one.files),
    }
