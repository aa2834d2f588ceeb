"""The list of a tool server's tools as a tenant's jobs last read it, and the one that is pinned for the tenant. Pure.

Written by the step `list-tools`; read by the api, which dials no server. A list that is not the pinned one any more is
not used until a person has accepted it: what was trusted once must not become something else between two jobs.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

import orjson

from eventing.job.tools.tool_list import PinnedTool
from eventing.known_fields import known_fields

MOST_KEPT: Final = 512
_DESCRIPTION_CHARS: Final = 500


class ListStatus(StrEnum):
    """What a list that was just read is to its tenant."""

    SAME = "same"  #: the pinned one, or nothing is pinned
    FIRST = "first"  #: it was pinned now
    CHANGED = "changed"  #: another one is pinned


class AcceptStatus(StrEnum):
    """The answer to a person who accepts a list."""

    OK = "ok"
    OTHER = "other"  #: another list was read meanwhile
    MISSING = "missing"  #: no job has read a list of this server


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTool:
    """One tool of a list."""

    name: str
    description: str = ""
    digest: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownList:
    """What a tenant's jobs know of a server. `tools` are the first `MOST_KEPT` of the list that was read last."""

    label: str
    address: str  #: digest of the server's
    digest: str
    read_ms: int
    tools: tuple[ListedTool, ...] = ()
    pinned: str = ""  #: digest of the list that is pinned; empty for none
    pinned_ms: int = 0
    accepted_by: str = ""  #: who accepted it; empty for the first use
    pinned_tools: tuple[ListedTool, ...] = ()

    @property
    def is_changed(self) -> bool:
        """True where the list that was read last is not the pinned one."""
        return self.pinned not in ("", self.digest)

    @property
    def changes(self) -> Mapping[str, Sequence[str]]:
        """The names of tools by what became of them since the list was pinned."""
        before = {tool.name: tool.digest for tool in self.pinned_tools}
        now = {tool.name: tool.digest for tool in self.tools}
        both = before.keys() & now.keys()
        return {
            "added": sorted(now.keys() - before.keys()),
            "changed": sorted(name for name in both if before[name] != now[name]),
            "removed": sorted(before.keys() - now.keys()),
        }


def kept_tools(tools: Sequence[PinnedTool]) -> str:
    """The tools of a list as they are kept."""
    kept = [
        ListedTool(
            name=tool.tool[:_DESCRIPTION_CHARS],
            description=tool.description[:_DESCRIPTION_CHARS],
            digest=tool.digest[:32],
            effect=tool.effect,
        )
        for tool in sorted(tools, key=lambda tool: tool.tool)[:MOST_KEPT]
    ]
    return orjson.dumps([asdict(each) for each in kept]).decode()


def listed_tools(text: str | bytes) -> tuple[ListedTool, ...]:
    """The tools in a record."""
    return tuple(
        ListedTool(**known_fields(ListedTool, each)) for each in orjson.loads(text or "[]")
    )


def address_digest(url: str) -> str:
    """What is kept of a server's address: with another one its list is pinned anew."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]
