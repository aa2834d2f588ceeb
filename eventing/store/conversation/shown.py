"""An item of a conversation as it leaves the store: an answer from retrieved passages without links that they may have
planted. Pure.

Called by the store for every reader: the api's views, the prompts of later turns, memory and summaries.
"""

from collections.abc import Collection
from typing import Any, Final

import orjson

from eventing.job.passage import without_links
from eventing.store.conversation.conversation import Item

LINK_HOSTS: Final = "link_hosts"
"""The field of a kept item that says where its links may lead (`link_hosts_field` in `_conversation.lua`)."""


def shown_item(raw: bytes) -> Item:
    """The item that is kept as `raw`."""
    item: dict[str, Any] = orjson.loads(raw)
    hosts = item.pop(LINK_HOSTS, None)
    if isinstance(hosts, list) and isinstance(content := item.get("content"), list):
        item["content"] = [_shown_part(part, hosts) for part in content]
    return item


def _shown_part(part: Any, hosts: Collection[str]) -> Any:
    if isinstance(part, dict) and isinstance(text := part.get("text"), str):
        return {**part, "text": without_links(text, hosts)}
    return part
