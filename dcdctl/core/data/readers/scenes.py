"""The built-in corpus: scenes are thought up as they are asked for, and drawn when read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dcdctl.core.data import scenes
from dcdctl.core.data.manifest import SPLITS, ScenesSource
from dcdctl.core.data.readers.rows import Listing, RowCheck, SourceRow


@dataclass(frozen=True, slots=True)
class ScenePicture:
    """A picture that is drawn when read."""

    scene: scenes.Scene
    side_px: int

    def read(self) -> bytes:
        return scenes.to_png(scenes.draw_scene(self.scene, self.side_px))

    def stamp(self) -> str:
        return repr(self.scene)


def list_scenes(source: ScenesSource, check: RowCheck) -> Listing:
    """The rows of the built-in corpus."""
    counts = {split: count for split in SPLITS if (count := source.counts.get(split, 0)) and check.wants(split)}
    if check.max_images is not None:
        counts = {split: min(count, check.max_images) for split, count in counts.items()}

    def rows(split: str) -> Iterator[SourceRow]:
        described = scenes.describe_scenes(source.seed, split, source.captions)
        for i in range(counts[split]):
            one = next(described)
            yield SourceRow(
                where=f"scenes {split}[{i}]",
                image_id=f"{split}/{i:06}",
                path=f"{split}/{i:06}.png",
                picture=ScenePicture(one.scene, source.side_px),
                captions=[statement.text for statement in one.statements],
                caption_ids=list(range(i * source.captions, (i + 1) * source.captions)),
            )

    provenance = {"kind": "scenes", "seed": source.seed, "side_px": source.side_px, "captions": source.captions}
    captions = {split: count * source.captions for split, count in counts.items()}
    return Listing(counts=counts, captions=captions, rows=rows, provenance=provenance)
