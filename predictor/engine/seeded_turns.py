"""Scripted answers of the test engine: what a model says and calls in each turn of a tool loop.

Called by `predictor.engine.seeded_tokens` (which parses a request) and `predictor.engine.seeded_engine` (which shows
it). Pure. No small model calls tools sensibly, so a test that needs a certain loop writes it into the request: the
body's `seeded.turns` is a list of `{"text", "reasoning_tokens", "calls": [{"name", "arguments"}], "resumable"}`, from
which the present turn is taken by the number of assistant messages with tool calls after the last message of the user.
A turn without text and calls, and every one after the last, is answered by words from the seed.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import orjson

from predictor.errors import BadRequest, EngineRequestError

_ARGUMENT_CHARS: Final = 4  #: of a call's arguments, in a token


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """One call of a scripted turn; `arguments` is JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ScriptedTurn:
    """One answer of a scripted model."""

    text: str = ""
    reasoning_tokens: int = 0  #: words from the seed before the text
    calls: tuple[ScriptedCall, ...] = ()
    resumable: bool = True  #: the result of `can_resume`, as of an answer that a grammar makes


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token shows: a piece of the text, or of a call's arguments. `name` is that of a call that begins."""

    text: str
    call: int = -1  #: which call, -1 for the text
    name: str = ""

    def token_id(self, position: int) -> int:
        """Its id, by which a run that continues from other ids is found out."""
        said = f"{position}|{self.call}|{self.name}|{self.text}".encode("utf-8", "surrogatepass")
        return 1 + hashlib.blake2b(said, digest_size=1).digest()[0] % 250


def parse_turns(value: object) -> tuple[ScriptedTurn, ...]:
    """The turns in a body's `seeded.turns`. Raises `BadRequest`."""
    if not isinstance(value, list | tuple):
        raise BadRequest("seeded.turns must be a list", field="seeded")
    return tuple(_turn(each) for each in value)


def _turn(value: object) -> ScriptedTurn:
    known = {field.name for field in fields(ScriptedTurn)}
    if not isinstance(value, Mapping) or not value.keys() <= known:
        raise BadRequest(f"a turn has {', '.join(sorted(known))}", field="seeded")
    said = value.get("calls", ())
    if not isinstance(said, list | tuple):
        raise BadRequest("calls of a turn must be a list", field="seeded")
    calls = tuple(_call(each) for each in said)
    return ScriptedTurn(**{**value, "calls": calls})


def _call(value: object) -> ScriptedCall:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise BadRequest("a call of a turn has a name and arguments", field="seeded")
    return ScriptedCall(value["name"], _json(value.get("arguments", {})))


def _json(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()


def turn_of(turns: Sequence[ScriptedTurn], body: Mapping[str, Any]) -> ScriptedTurn | None:
    """The turn that a chat body asks for; without calls where it allows none, with one where it allows no two. None
    after the last.
    """
    number = 0
    for message in body["messages"]:
        if message["role"] == "user":
            number = 0
        number += message["role"] == "assistant" and bool(message.get("tool_calls"))
    if number >= len(turns):
        return None
    turn = turns[number]
    if not body.get("tools") or body.get("tool_choice") == "none":
        return ScriptedTurn(turn.text, turn.reasoning_tokens, (), turn.resumable)
    if body.get("parallel_tool_calls") is False:
        return ScriptedTurn(turn.text, turn.reasoning_tokens, turn.calls[:1], turn.resumable)
    return turn


def pieces_of(turn: ScriptedTurn) -> tuple[Piece, ...]:
    """The tokens of a turn after its thought: words, then the calls one after the other."""
    return (*_words(turn.text), *_calls(turn.calls))


def _words(text: str) -> Iterator[Piece]:
    for place, word in enumerate(text.split(" ") if text else ()):
        yield Piece(f" {word}" if place else word)


def _calls(calls: Sequence[ScriptedCall]) -> Iterator[Piece]:
    for number, call in enumerate(calls):
        yield Piece("", number, call.name)
        for start in range(0, len(call.arguments), _ARGUMENT_CHARS):
            yield Piece(call.arguments[start : start + _ARGUMENT_CHARS], number)


def check_continued(pieces: Sequence[Piece], begin: int, prior: Sequence[int]) -> None:
    """Raise `EngineRequestError` when `prior` is not the beginning of an answer whose pieces begin at `begin`."""
    for position, token_id in enumerate(prior[begin:], begin):
        place = position - begin
        if place < len(pieces) and token_id != pieces[place].token_id(position):
            raise EngineRequestError(f"token {position} is not the one of this turn's script")
