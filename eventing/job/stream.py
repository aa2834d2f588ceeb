"""A job's token stream: its entries, and the order of its cursors.

Written by the scripts of both stores, read by every live reader. Must not know how entries are stored.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from eventing.job.job import JobState
from eventing.job.plan import StepStatus
from eventing.job.tools.call import CallState


class EntryKind(StrEnum):
    """The kind of a token stream's entry."""

    ATTEMPT = "attempt"  #: a new attempt starts at `index` (0 when it had to start over)
    TOKENS = "tokens"  #: tokens from `index` on
    STATE = "state"  #: the job changed state
    STEP = "step"  #: a step before the predictor has begun or ended
    TURN = "turn"  #: an answer that asked for tools was committed; the next turn begins at `index`
    CALL = "call"  #: a call of a turn changed its state
    ARCHIVED = "archived"  #: the entries before it are in the object store; no reader is given it
    OTHER = "other"  #: written by a newer version; ignored


class StreamEntry(NamedTuple):
    """One entry of a job's token stream. Readers resume after a `cursor`. A NamedTuple, because one is made for
    each live token and a frozen dataclass takes four times as long to make.
    """

    cursor: str
    kind: EntryKind
    attempt: int
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which is not used
    token_ids: tuple[int, ...] = ()
    delta: str = ""
    state: JobState | None = None
    is_restart: bool = False
    at_ms: int = 0
    step: str = ""
    step_status: StepStatus | None = None
    step_ms: int = 0  #: how long an ended one took
    phase: str = ""  #: of a state: what the job waits for in it
    shown: int = (
        -1
    )  #: position up to which the text may be shown, where it is held back; -1 for none said
    turn: int = 0  #: the turn, of a turn or a call
    place: int = 0  #: the call's place in its turn
    calls: str = (
        ""  #: of a turn: its calls as JSON, each with `place`, `name`, `arguments`, `state`
    )
    call_state: CallState | None = None  #: of a call; None for one that a newer version knows
    call_ms: int = 0  #: how long the newest send of an ended call took
    send: int = 0  #: which send of the call
    name: str = ""  #: of a call: the function as the model called it
    output: str = ""  #: of an ended call: the start of its result
    is_error: bool = False  #: the tool said that it failed
    approval_id: str = ""  #: of a call that waits for a decision
    reason: str = ""  #: why a call waits, was not run, was denied, or is in doubt
    progress: str = ""  #: what a running call says of how far it is (JSON)


def calls_of(entry: StreamEntry) -> Sequence[Mapping[str, Any]]:
    """The calls of a turn, in the order in which the model made them."""
    calls: Sequence[Mapping[str, Any]] = orjson.loads(entry.calls or "[]")
    return calls


def cursor_order(cursor: str) -> tuple[int, int]:
    """Where a stream cursor stands: cursors are ordered by their two numbers, the empty one first."""
    milliseconds, _, sequence = cursor.partition("-")
    return int(milliseconds or 0), int(sequence or 0)
