"""Search in Python: an index that is built, changed and opened, a searcher, and answers that a notebook shows with
their images."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

import pyarrow as pa
from PIL import Image

from dcdctl.api import arguments as api
from dcdctl.api import views
from dcdctl.api.arguments import say, takes
from dcdctl.api.views import Query
from dcdctl.core import search, stores, training
from dcdctl.core.arguments import Overrides, Ref, optional_path, optional_ref, path
from dcdctl.core.errors import ConfigError
from dcdctl.core.search import (
    Browse,
    Changes,
    CombinedQuery,
    Condition,
    Embedding,
    Hit,
    IndexChange,
    IndexJob,
    SearchAnswer,
    parse_order,
    question_of,
)


class Index(search.FolderIndex):
    """Indexed images; the row of an image never changes.

    `add` and `remove` change the folder and then this object: let no other thread search with it meanwhile.
    """

    @classmethod
    def open(cls, folder: Ref) -> Index:
        """The index in a folder. MissingError if there is none or a file is missing."""
        return super().open(path(folder))

    @staticmethod
    @takes(IndexJob)
    def build(job: IndexJob) -> Index:
        """Embed the images of a folder, or of a corpus or its `split`, with a dual encoder, and make them searchable in
        `out`.

        Columns are set as by `set_columns`.
        """
        training.say_of_query_model(job.query_model, say)
        search.build_index(job, track=api.track(job.progress), say=say)
        return Index.open(job.out)

    def upload(self, url: str, *, replace: bool = False, progress: bool = False) -> stores.Upload:
        """Make a store hold these images (docs/indexing.md); `replace` fills it again, in place of the images of
        another index."""
        store = stores.open_store(url)
        # A command ends with its process; a notebook would keep the connection.
        try:
            return stores.upload_index(self, store, replace=replace, track=api.track(progress))
        finally:
            store.close()

    def add(
        self,
        images: Ref,
        *,
        split: str | None = None,
        engine: str | None = None,
        workers: int | None = None,
        batch_size: int = 32,
        device: str = "auto",
        progress: bool = False,
    ) -> IndexChange:
        """Add the new images of a folder or a corpus; returns how many, and the files that could not be read."""
        how = Embedding(engine=engine, workers=workers, batch_size=batch_size, device=device, progress=progress)
        added = search.add_images(
            str(self.folder), path(images), split=split, compute=how.compute(say), track=api.track(how.progress)
        )
        return self._after(added)

    def remove(self, *names: str) -> IndexChange:
        """Remove images by name or pattern ("2019/*")."""
        return self._change(Changes(remove=list(names) or None))

    def sync(
        self,
        *,
        engine: str | None = None,
        workers: int | None = None,
        batch_size: int = 32,
        device: str = "auto",
        progress: bool = False,
    ) -> IndexChange:
        """Follow the image folders: add what is new, read again what changed, remove what is gone, and fill columns.

        A file of the same bytes under another name keeps its vectors and columns. If a folder has no images any more,
        nothing of it is removed, and the notes say so. The model is loaded only for images that it has not seen.
        """
        how = Embedding(engine=engine, workers=workers, batch_size=batch_size, device=device, progress=progress)
        followed = search.sync_index(str(self.folder), compute=lambda: how.compute(say), track=api.track(how.progress))
        return self._after(followed)

    def watch(self, on_change: Callable[[IndexChange], None], *, stop: threading.Event | None = None) -> None:
        """Follow the image folders until `stop` is set, in this thread; `on_change` gets each change, the first at
        once. What cannot be done now is said to the logger `dcdctl`, and tried again. MissingError without the package
        watchfiles."""

        def take(change: IndexChange) -> None:
            self._open(change.index.document)
            on_change(change)

        search.watch_index(str(self.folder), take, lambda error: say(str(error)), stop=stop)

    def moved(self, old: Ref, new: Ref) -> IndexChange:
        """Say that an image folder, or one above it, is at another place now; nothing is embedded. InputError if the
        index has no such folder, or if its images are not at the new place."""
        return self._after(search.move_images(str(self.folder), path(old), path(new)))

    def duplicates(self) -> list[search.SameImages]:
        """The groups of images that are copies of each other, or look alike."""
        return search.find_copies(self)

    def set_query_model(self, ref: Ref) -> IndexChange:
        """Embed texts by a query encoder from now on, in place of the model of the index; no image is embedded again.

        StaleError for a query encoder of another model.
        """
        training.say_of_query_model(ref, say)
        return self._change(Changes(query_model=ref))

    def set_columns(
        self,
        metadata: Ref | pa.Table | None = None,
        *,
        exif: Literal["camera", "place", "none"] | None = None,
        drop: Sequence[str] = (),
        progress: bool = False,
    ) -> IndexChange:
        """Set columns that conditions read, such as year and owner; nothing is embedded again. Its `notes` name images
        without values.

        `metadata` names the image of each row in a column `image`, `image_id`, `path` or `filepath`. The
        date and the camera are read from the image files as long as `exif` is not "none", with "place" also the place.
        `drop` removes columns.
        """
        sets = None if exif is None else [f"exif={exif}"]
        changes = Changes(sets=sets, drop_columns=list(drop) or None, metadata=metadata)
        return self._change(changes, progress=progress)

    def _change(self, changes: Changes, *, progress: bool = False) -> IndexChange:
        return self._after(search.change_index(str(self.folder), changes, track=api.track(progress)))

    def _after(self, change: IndexChange) -> IndexChange:
        """The change, which this object has too."""
        # In place, so that all who hold this index see the change.
        self._open(change.index.document)
        return change


@dataclass(frozen=True, repr=False)
class Answer(SearchAnswer):
    """The hits of a query, best first: a sequence of them, and in a notebook their images."""

    query: views.AnyQuery = field(kw_only=True)
    index: search.ImageIndex = field(kw_only=True, compare=False)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: int) -> Hit:
        return self.hits[place]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def image(self, place: int = 0) -> Image.Image | None:
        """The image of a hit, upright and RGB; None if its file is gone."""
        return search.image_of(self.index, self.hits[place].row)

    def __repr__(self) -> str:
        which = "first" if isinstance(self.query, Browse) else "best"
        best = f", the {which} {self.hits[0].name!r}" if self.hits else ""
        return f"Answer({views.query_text(self.query)}: {len(self.hits)} images{best})"

    def _repr_html_(self) -> str:
        return views.answer_html(self.query, self, self.index)


class Searcher:
    """An index, or the URL of a store, with the models that search it.

    `rerank` names a model that orders the first `depth` candidates (50) of a text again. `model` is the folder of the
    dual encoder of a store, if it is not where the store was filled.
    """

    def __init__(
        self,
        index: Ref | search.FolderIndex,
        *,
        model: Ref | None = None,
        rerank: Ref | None = None,
        depth: int | None = None,
        rerank_overrides: Overrides | None = None,
        device: str = "auto",
    ) -> None:
        self.index: search.ImageIndex
        if isinstance(index, search.FolderIndex):
            self.index = index
        else:
            self.index = stores.open_index(os.fspath(index), optional_path(model))
        self._searcher = search.IndexSearcher.for_index(
            self.index,
            device=device,
            rerank=optional_ref(rerank),
            depth=depth,
            rerank_set=rerank_overrides,
        )

    @overload
    def search(
        self, query: list[str] | tuple[str, ...], k: int = 10, *, where: str | None = None, hybrid: bool = False
    ) -> list[Answer]: ...

    @overload
    def search(
        self,
        query: Query,
        k: int = 10,
        *,
        image: Image.Image | Ref | None = None,
        also: str | Sequence[str] = (),
        without: str | Sequence[str] = (),
        where: str | None = None,
        hybrid: bool = False,
    ) -> Answer: ...

    def search(
        self,
        query: Query | list[str] | tuple[str, ...],
        k: int = 10,
        *,
        image: Image.Image | Ref | None = None,
        also: str | Sequence[str] = (),
        without: str | Sequence[str] = (),
        where: str | None = None,
        hybrid: bool = False,
    ) -> Answer | list[Answer]:
        """The k images nearest to a text, to the image in a file (a Path), or to an image of Pillow; for a list of
        texts a list of answers, whose texts are read together. InputError for an empty text.

        `image` is an image beside a text, `also` are texts that are added, and `without` are texts that count against
        an image (docs/search.md has the weights).

        `where` is a condition on the columns of the images, such as "year >= 2020 and owner = 'x'"; InputError if it
        cannot be read.

        With `hybrid`, a text is searched by the words of captions and file names too; MissingError for an index without
        words.
        """
        condition, added, excluded = self._condition(where), api.texts(also), api.texts(without)
        if isinstance(query, list | tuple):
            if image is not None or added or excluded:
                raise ConfigError("a list of texts has no other parts", hint="search for each text by itself")
            texts = api.texts(query)
            answers = self._searcher.by_texts(texts, k, condition, hybrid=hybrid)
            return [self._answer(text, answer) for text, answer in zip(texts, answers, strict=True)]
        question = self._question(query, image, added, excluded)
        answer = self._searcher.ask(question, k, condition, hybrid=hybrid)
        return self._answer(question if isinstance(question, CombinedQuery) else query, answer)

    def _question(
        self, query: Query, image: Image.Image | Ref | None, also: Sequence[str], without: Sequence[str]
    ) -> str | Path | Image.Image | CombinedQuery:
        text = query if isinstance(query, str) else None
        if not isinstance(query, str):
            if image is not None:
                raise ConfigError("the query is an image, and `image` is another one", hint="give one of them a text")
            image = query
        given = Path(image) if isinstance(image, str | os.PathLike) else image
        return question_of(text, given, also, without)

    def browse(self, k: int = 10, *, where: str | None = None, order: str | None = None, offset: int = 0) -> Answer:
        """The images that meet a condition, without a query and scores: `k` of them after the first `offset`, of the
        `total` that there are.

        The newest come first, if the index has a column `taken`. `order` is another column, such as "year", or "year
        desc" for the greatest first; images without a value come last. InputError for a store, and for an unknown
        column.
        """
        by = None if order is None else parse_order(order, self.index.columns)
        answer = self._searcher.browse(k, self._condition(where), by, offset=offset)
        return self._answer(Browse(where, order), answer)

    def _condition(self, where: str | None) -> Condition | None:
        return None if where is None else search.parse_where(where, self.index.columns)

    def _answer(self, query: views.AnyQuery, answer: SearchAnswer) -> Answer:
        return Answer(**vars(answer), query=query, index=self.index)

    def __repr__(self) -> str:
        reranker = self._searcher.reranker
        then = "" if reranker is None else f", re-ranked by {reranker.ref}"
        return f"Searcher({self.index!r}{then})"
