"""Older items of a conversation that bear on the new input: BM25 and vectors, fused by reciprocal rank.

Called by `steps.memory.memory`. The search is over the raw items of one conversation, which its caller has read by
tenant and id; nothing of another one is in reach. Vectors are kept with the conversation, so that they go with it;
what is missing is computed here.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from eventing.store.conversation.conversation import Conversation, NumberedItem, item_text
from eventing.store.conversation.store import Conversations
from steps.embedding.embedder import Embedder
from steps.memory.ranking import Vector, rank

_MOST_NEW: Final = 128
"""Vectors that one run computes, of the newest items; the others are found by their words until the next."""
_TEXT_CHARS: Final = 4000


class Recall:
    """Finds items. Store and embedder belong to the caller."""

    def __init__(self, conversations: Conversations, embedder: Embedder) -> None:
        self._conversations = conversations
        self._embedder = embedder

    async def find(
        self, found: Conversation, items: Sequence[NumberedItem], query: str, k: int
    ) -> list[NumberedItem]:
        """The `k` items that fit `query` best, in the order in which they were said. Raises `Unavailable`."""
        texts = {each.id: item_text(each.item)[:_TEXT_CHARS] for each in items}
        texts = {item_id: text for item_id, text in texts.items() if text.strip()}
        if not texts or not query.strip() or not k:
            return []
        vectors = await self._vectors(found, texts)
        (wanted,) = await self._embedder.embed([query[:_TEXT_CHARS]])
        known = [vectors.get(item_id) for item_id in texts]
        ranked = await asyncio.to_thread(rank, list(texts.values()), known, query, wanted)
        names = list(texts)
        chosen = {names[row] for row in ranked[:k]}
        return [each for each in items if each.id in chosen]

    async def _vectors(self, found: Conversation, texts: Mapping[str, str]) -> Mapping[str, Vector]:
        """The vectors of the items, by id: those that are kept, and some of those that are missing."""
        mark, size = self._embedder.revision.encode() + b"\0", 4 * self._embedder.dim
        kept = await self._conversations.vectors(found)
        known = {
            item_id: np.frombuffer(raw[-size:], np.float32)
            for item_id, raw in kept.items()
            if raw.startswith(mark) and len(raw) == len(mark) + size
        }
        missing = [item_id for item_id in texts if item_id not in known][-_MOST_NEW:]
        if missing:
            made = await self._embedder.embed([texts[item_id] for item_id in missing])
            new = dict(zip(missing, made, strict=True))
            raw = {item_id: mark + vector.tobytes() for item_id, vector in new.items()}
            await self._conversations.put_vectors(found, raw)
            known |= new
        return known
