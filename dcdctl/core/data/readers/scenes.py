"""The built-in corpus as a source: scenes are generated when they are listed and drawn when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from dcdctl.core.config import Natural, between, settle_fields
from dcdctl.core.data import scenes
from dcdctl.core.data.readers.rows import SPLITS, Listing, RowCheck, SourceConfig, SourceRow, SplitCounts, check_splits


@dataclass(frozen=True, kw_only=True)
class ScenesSource(SourceConfig):
    """The built-in corpus, see `dcdctl.core.data.scenes`."""

    format: ClassVar[str] = "scenes"
    counts: dict[str, Natural]
    """Images per split; 0 leaves a split out."""
    side_px: Annotated[int, between(16, 4096)] = 128
    seed: int = 0
    captions: Annotated[int, between(1, 20)] = 5
    """Captions per image."""

    def __post_init__(self) -> None:
        check_splits("counts", self.counts)
        settle_fields(self)

    def list_rows(self, check: RowCheck) -> Listing:
        """The first scenes of each split."""
        counts = {split: count for split in SPLITS if (count := self.counts.get(split, 0)) and check.includes(split)}
        if check.max_images is not None:
            counts = {split: min(count, check.max_images) for split, count in counts.items()}

        def rows(split: str) -> Iterator[SourceRow]:
            described = scenes.describe_scenes(self.seed, split, self.captions)
            for i in range(counts[split]):
                item = next(described)
                yield SourceRow(
                    where=f"scenes {split}[{i}]",
                    image_id=f"{split}/{i:06}",
                    path=f"{split}/{i:06}.png",
                    image_file=SceneImageFile(item.scene, self.side_px),
                    captions=[statement.text for statement in item.statements],
                    caption_ids=list(range(i * self.captions, (i + 1) * self.captions)),
                )

        provenance = {"kind": "scenes", "seed": self.seed, "side_px": self.side_px, "captions": self.captions}
        sizes = {split: SplitCounts(images=count, captions=count * self.captions) for split, count in counts.items()}
        return Listing(counts=sizes, rows=rows, provenance=provenance)


@dataclass(frozen=True, slots=True)
class SceneImageFile:
    """A scene, drawn as a PNG when it is read."""

    scene: scenes.Scene
    side_px: int
    # The scene says all of it, and to draw it is the work.
    is_here: ClassVar = False

    def read(self) -> bytes:
        return scenes.to_png(scenes.draw_scene(self.scene, self.side_px))

    def stamp(self) -> str:
        return repr(self.scene)
