"""The embedded index: chunks in Redis, ranked in the memory of each process that searches.

Called by the step processes. Before each search a process reads what has changed since its last one, in the round
trip that it makes anyway, so a search finds every put that ended before it began. Rankings of indexes that were not
searched for the longest are dropped when all of them take more than `most_bytes`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from redis.asyncio import Redis

from steps.index.chunk_store import Change, ChunkStore, Head
from steps.index.filter import Filter
from steps.index.index import Chunk, Hit, IndexStats, ModelMismatch, Query
from steps.index.ranking import Ranking

_MOST_BYTES: Final = 1024 * 1024 * 1024


@dataclass(slots=True)
class _View:
    """A ranking, and how far it has followed the index. It changes under its lock only."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ranking: Ranking | None = None
    head: Head = field(default_factory=Head)
    cursor: str = ""


class EmbeddedIndex:
    """An `Index` over one Redis; the client belongs to the caller."""

    def __init__(self, redis: Redis, *, most_bytes: int = _MOST_BYTES) -> None:
        self._store = ChunkStore(redis)
        self._views: OrderedDict[tuple[str, str], _View] = OrderedDict()
        self._most_bytes = most_bytes

    async def aclose(self) -> None:
        """Drop all rankings; what is stored stays."""
        for view in self._views.values():
            _drop(view)
        self._views.clear()

    async def create(self, tenant: str, name: str, *, dim: int, model_revision: str) -> None:
        await self._store.create(tenant, name, dim, model_revision)

    async def put(
        self, tenant: str, name: str, chunks: Sequence[Chunk], *, model_revision: str
    ) -> None:
        await self._store.put(tenant, name, chunks, model_revision)

    async def delete(
        self, tenant: str, name: str, *, ids: Sequence[str] = (), where: Filter | None = None
    ) -> int:
        if not ids and where is None:
            return await self._store.drop(tenant, name)
        found = list(ids)
        if where is not None:
            view = self._view(tenant, name)
            async with view.lock:
                await self._follow(tenant, name, view)
                found += view.ranking.ids_where(where) if view.ranking else []
        return await self._store.delete(tenant, name, list(dict.fromkeys(found)))

    async def search(
        self, tenant: str, name: str, query: Query, *, model_revision: str
    ) -> list[Hit]:
        view = self._view(tenant, name)
        async with view.lock:
            head = await self._follow(tenant, name, view)
            if view.ranking is None:
                return []
            _check(head, query, model_revision)
            scored = await asyncio.to_thread(view.ranking.search, query)
        self._make_room(view)
        chunks = await self._store.texts(tenant, name, [each.id for each in scored])
        return [
            Hit(
                id=each.id,
                text=chunk.text,
                attributes=chunk.attributes,
                cosine=each.cosine,
                bm25=each.bm25,
                fused=each.fused,
            )
            for each in scored
            if (chunk := chunks.get(each.id)) is not None
        ]

    async def version(self, tenant: str, name: str) -> int:
        return (await self._store.head(tenant, name))[0].version

    async def stats(self, tenant: str, name: str) -> IndexStats:
        return await self._store.stats(tenant, name)

    def _view(self, tenant: str, name: str) -> _View:
        """The index's view, as the last one used."""
        view = self._views.setdefault((tenant, name), _View())
        self._views.move_to_end((tenant, name))
        return view

    def _make_room(self, used: _View) -> None:
        """Drop the rankings of the views longest unused, but for the one that is being used."""
        total = sum(view.ranking.size_bytes for view in self._views.values() if view.ranking)
        for key, view in list(self._views.items()):
            if total <= self._most_bytes:
                return
            if view is not used and not view.lock.locked():
                total -= view.ranking.size_bytes if view.ranking else 0
                _drop(view)
                del self._views[key]

    async def _follow(self, tenant: str, name: str, view: _View) -> Head:
        """Bring the view up to date; gives the index as it was read."""
        head, changes = await self._store.changes(tenant, name, view.cursor)
        if not head.born:
            _drop(view)
            return head
        ranking = view.ranking
        if ranking is None or ranking.is_sparse or not _is_next(view, head, changes):
            return await self._build(tenant, name, view)
        if changes:
            put = list(dict.fromkeys(id_ for change in changes for id_ in change.put))
            chunks = await self._store.read(tenant, name, put)
            there = {chunk.id for chunk in chunks}
            gone = [id_ for change in changes for id_ in (*change.deleted, *change.put)]
            await asyncio.to_thread(ranking.delete, [id_ for id_ in gone if id_ not in there])
            await asyncio.to_thread(ranking.put, chunks)
            view.cursor = changes[-1].cursor
            head = replace(head, version=changes[-1].version)
        view.head = head
        return head

    async def _build(self, tenant: str, name: str, view: _View) -> Head:
        """Read the whole index. What changes meanwhile is in the stream after the cursor that is read first."""
        head, cursor = await self._store.head(tenant, name)
        _drop(view)
        if not head.born:
            return head
        ranking = Ranking(head.dim)
        try:
            async for chunks in self._store.all_chunks(tenant, name):
                await asyncio.to_thread(ranking.put, chunks)
        except BaseException:
            ranking.close()
            raise
        view.ranking, view.head, view.cursor = ranking, head, cursor
        return head


def _is_next(view: _View, head: Head, changes: Sequence[Change]) -> bool:
    """True when `changes` lead from the view's version to the index's, or past it, without a gap."""
    versions = [view.head.version, *(change.version for change in changes)]
    is_whole = all(later == one + 1 for one, later in pairwise(versions))
    return head.born == view.head.born and is_whole and versions[-1] >= head.version


def _check(head: Head, query: Query, revision: str) -> None:
    dim = head.dim if query.vector is None else len(query.vector)
    if head.revision != revision or head.dim != dim:
        message = f"the index is built by {head.revision} with {head.dim} dimensions"
        raise ModelMismatch(f"{message}, the query by {revision} with {dim}")


def _drop(view: _View) -> None:
    if view.ranking is not None:
        view.ranking.close()
    view.ranking, view.head, view.cursor = None, Head(), ""
