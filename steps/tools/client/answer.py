"""What a tool server answered to a call, whatever its protocol, and how a call can fail. Pure.

Made by the clients, read by what runs calls. The failures say what may have happened, since that decides whether a call
is sent again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from eventing.process.egress import AllowList

CREDENTIAL: Final = "[credential]"
"""What stands in the place of one."""
_SHORTEST_SECRET: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where calls of one server go. `headers` hold its credentials, for `origin` alone."""

    label: str
    url: str
    origin: str
    allowed: AllowList = field(default_factory=AllowList)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The credentials in the headers: some servers repeat them in errors. The longest first."""
        values = [*self.headers.values(), *(v.partition(" ")[2] for v in self.headers.values())]
        found = {each for each in values if len(each) >= _SHORTEST_SECRET}
        return tuple(sorted(found, key=len, reverse=True))

    def masked(self, said: Any) -> Any:
        """What the server said, names in it too, without the credentials that it was sent."""
        if isinstance(said, str):
            for secret in self.secrets:
                said = said.replace(secret, CREDENTIAL)
            return said
        if isinstance(said, Mapping):
            return {self.masked(name): self.masked(each) for name, each in said.items()}
        return [self.masked(each) for each in said] if isinstance(said, list | tuple) else said


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One call as it leaves. `key` is its idempotency key; `answers` and `state` are what a tool asked its user for
    and gets back; `digest` is that of the pinned definition, `list_digest` of the whole list where all of it must be as
    it was.
    """

    tool: str
    arguments: Mapping[str, Any]
    key: str
    timeout_s: float
    digest: str = ""
    list_digest: str = ""
    answers: Mapping[str, Any] | None = None
    state: str | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The tool's result, in MCP's shape. `cut` are the parts that were read of one that is longer than is read."""

    content: Sequence[Mapping[str, Any]] = ()
    structured: Any = None
    is_error: bool = False
    cut: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """The tool answers later: `handle` is asked for after `poll_ms`, or waited for with 0."""

    handle: str
    poll_ms: int = 0
    said: str = ""  #: what a task says of how far it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Asks:
    """The tool asks its user for something, and is called again with the answers and its `state`."""

    requests: Mapping[str, Any]
    state: str | None = None


Answer = Result | Later | Asks
OnProgress = Callable[[float | None, float | None, str | None], None]
"""Hears what a running call says of how far it is: a number, of a total, a text."""


def error_result(text: str) -> Result:
    """A result that says what went wrong."""
    return Result(content=({"type": "text", "text": text},), is_error=True)


class NotSent(Exception):
    """The call was surely not carried out: it may be sent again."""


class Refused(Exception):
    """The call was not sent and will not be; `reason` is a word for it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InDoubt(Exception):
    """The call may have been carried out."""
