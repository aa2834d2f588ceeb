"""What handlers of steps may be made of.

Made by `steps.server`, which closes what belongs to it. Must not know the handlers.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from eventing.clock import Clock
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.store.steps.redis_tools import RedisToolStore
from steps.embedding.embedder import Embedder
from steps.index.index import Index
from steps.settings import StepsSettings
from steps.tools.make import ToolParts


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of one process. `background` takes what runs beside the steps until the process ends, `at_end` what
    is closed then. `at_drain` ends within a grace what is under way.
    """

    settings: StepsSettings
    redis: SharedRedis
    store: RedisToolStore
    tools: ToolParts
    clock: Clock
    embedder: Embedder
    index: Index
    background: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    at_drain: list[Callable[[float], Awaitable[None]]] = field(default_factory=list)
    at_end: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
