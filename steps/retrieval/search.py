"""Searches vector stores: embeds the query, ranks, and gives passages of files that are still there.

Called by the steps `search` and `retrieve`. Every search is of one tenant: the index, the records and the files are
all asked for by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eventing.clock import Clock
from eventing.errors import NotFound
from eventing.job.passage import Passage
from eventing.store.vector_store.query import VectorQuery
from eventing.store.vector_store.record import FileStatus, StoreStatus, VectorStore
from eventing.store.vector_store.store import VectorStores
from steps.embedding.embedder import Embedder
from steps.index.filter import parse_filter
from steps.index.index import Hit, Index, Query, Vector
from steps.retrieval import metrics
from steps.retrieval.ingest import FILE

_SPARE: Final = 20
"""Hits beyond those wanted, in place of chunks whose files were just removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDeps:
    """The dependencies of a `VectorSearch`."""

    stores: VectorStores
    index: Index
    embedder: Embedder
    clock: Clock


class VectorSearch:
    """Finds passages in a tenant's vector stores. Raises `Unavailable`."""

    def __init__(self, deps: SearchDeps) -> None:
        self._deps = deps

    async def search(
        self, tenant: str, store_ids: Sequence[str], query: VectorQuery
    ) -> list[Passage]:
        """The best passages of these vector stores, best first. Raises `NotFound` for a vector store that is not
        the tenant's, or has expired.
        """
        stores = [await self._store(tenant, store_id) for store_id in dict.fromkeys(store_ids)]
        vectors = await self._deps.embedder.embed(query.texts) if query.embedding_weight else None
        found: dict[str, Passage] = {}
        for store in stores:
            for place, text in enumerate(query.texts):
                vector = None if vectors is None else vectors[place]
                for id_, passage in await self._of_one(store, text, vector, query):
                    if id_ not in found or found[id_].score < passage.score:
                        found[id_] = passage
        ranked = sorted(found.values(), key=lambda each: -each.score)
        kept = [each for each in ranked if each.score >= query.score_threshold]
        metrics.SEARCHES.labels("found" if kept else "empty").inc()
        return kept[: query.max_num_results]

    async def named(self, tenant: str, names: Sequence[str]) -> list[str]:
        """The tenant's vector stores with one of these names that have not expired, newest first."""
        now_s = self._deps.clock.wall_ms() // 1000
        stores = await self._deps.stores.read(await self._deps.stores.ids(tenant))
        return [
            store.id
            for store in reversed(stores)
            if store.settings.name in names and store.status(now_s) is not StoreStatus.EXPIRED
        ]

    async def _store(self, tenant: str, store_id: str) -> VectorStore:
        store = await self._deps.stores.get(tenant, store_id)
        if store.status(self._deps.clock.wall_ms() // 1000) is StoreStatus.EXPIRED:
            raise NotFound(f"the vector store {store_id} has expired")
        await self._deps.stores.touch(store)
        return store

    async def _of_one(
        self, store: VectorStore, text: str, vector: Vector | None, query: VectorQuery
    ) -> list[tuple[str, Passage]]:
        asked = Query(
            text=text if query.text_weight else "",
            vector=vector,
            k=query.max_num_results + _SPARE,
            filter=parse_filter(query.filters),
            embedding_weight=query.embedding_weight,
            text_weight=query.text_weight,
        )
        hits = await self._deps.index.search(
            store.tenant, store.id, asked, model_revision=self._deps.embedder.revision
        )
        names = list(dict.fromkeys(str(hit.attributes.get(FILE, "")) for hit in hits))
        files = {
            file.id: file
            for file in await self._deps.stores.files(store.id, names)
            if file.status is FileStatus.COMPLETED
        }
        return [
            (
                hit.id,
                Passage(
                    file_id=file.id,
                    filename=file.settings.filename,
                    text=hit.text,
                    score=round(_score(hit, query), 6),
                    attributes=dict(file.settings.attributes),
                ),
            )
            for hit in hits
            if (file := files.get(str(hit.attributes.get(FILE, "")))) is not None
        ]


def _score(hit: Hit, query: VectorQuery) -> float:
    """From 0 to 1: the cosine where only vectors were compared, else the rank score."""
    return hit.fused if query.text_weight else max(0.0, min(1.0, hit.cosine))
