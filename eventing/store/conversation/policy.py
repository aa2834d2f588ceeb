"""How much of a conversation a prompt is given, as a plan's `memory` step has it. Pure.

Called by the memory step, by what starts summaries, and by checks of plans.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventing.errors import BadRequest

STEP: Final = "memory"
_LIMITS: Final = {
    "window_tokens": (1, 1_000_000),
    "facts_tokens": (0, 1_000_000),
    "summarise_every_messages": (0, 10_000),
    "recall_k": (0, 50),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPolicy:
    """`window_tokens` of the newest messages as they are, and at least six of them; `facts_tokens` of what was said
    word for word; a new summary after `summarise_every_messages` more, 0 for none; `recall_k` older items, 0 for
    none. A token is taken for four bytes.
    """

    window_tokens: int = 2000
    facts_tokens: int = 1000
    summarise_every_messages: int = 20
    recall_k: int = 5


def memory_policy(settings: Mapping[str, Any]) -> MemoryPolicy:
    """The policy in a step's settings. Raises `BadRequest` naming the field."""
    for name, value in settings.items():
        if name not in _LIMITS:
            raise BadRequest(f"{STEP}: {name} is not supported", name)
        least, most = _LIMITS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BadRequest(f"{STEP}: {name} must be a whole number from {least} to {most}", name)
    return MemoryPolicy(**settings)
