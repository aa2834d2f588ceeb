"""The test engine's answers: strict parsing of a request, and tokens as a function of prompt and seed.

Called by `predictor.engine.seeded_engine` only. Pure: no clock, no randomness, no I/O.

Every token depends on all tokens before it, as a model's do: a run that continues from wrong or missing ids gives
another text, so a test that compares texts detects a bad checkpoint.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from eventing.job.job import CHAT_URLS
from predictor.engine.engine import EngineRequest
from predictor.engine.seeded_turns import (
    Piece,
    ScriptedTurn,
    check_continued,
    parse_turns,
    pieces_of,
    turn_of,
)
from predictor.errors import BadRequest, ContextExceeded

COMPLETION_URL: Final = "/v1/completions"
EMBEDDING_URL: Final = "/v1/embeddings"

EOS: Final = 0
BLOCK_TOKENS: Final = 16
_TEXT: Final = """
the one some of in at with light night bird hummingbird torpor sleep wake heart slow quick leaf
flower nectar wing cold warm sun rain tree branch nest day hour breath blood feather über naïve 日本
ключ 🐦 rests hovers drinks waits turns falls climbs dreams counts burns saves and so then but while
until because still . , ; : ? !
"""
WORDS: Final = tuple(_TEXT.split())
EMBEDDING_DIMENSIONS: Final = 8


@dataclass(frozen=True, slots=True)
class SeededParams:
    """The fields of a body's `seeded` object; counts are output token indices."""

    output_tokens: int | None = None  #: length of the answer; else drawn from the seed
    reasoning_tokens: int = 0  #: how many of them are reasoning, not answer
    tokens_per_s: float | None = None  #: overrides the engine's
    stall_at: int | None = None  #: never make this token
    fail_at: int | None = None  #: raise EngineRequestError instead of this token
    engine_dies_at: int | None = None  #: raise EngineDeadError, for all requests, for good
    process_dies_at: int | None = None  #: SIGKILL to our own process before this token
    resumable: bool = True  #: the result of `can_resume`
    turns: tuple[ScriptedTurn, ...] = ()  #: what to say and call (`predictor.engine.seeded_turns`)


@dataclass(frozen=True, slots=True)
class SeededRequest:
    """A parsed request."""

    url: str
    model: str | None
    prompt: tuple[str, ...]
    prompt_field: str
    max_tokens: int | None
    n: int
    seed: int
    knobs: SeededParams
    tool: str = ""  #: the function that the answer calls, none when empty
    script: tuple[
        Piece, ...
    ] = ()  #: what it says after its thought, instead of words from the seed

    @property
    def prompt_tokens(self) -> int:
        """One for each word, and four for each message."""
        return sum(len(part.split()) + 4 for part in self.prompt)

    @property
    def is_chat(self) -> bool:
        return self.url in CHAT_URLS


def parse(request: EngineRequest) -> SeededRequest:
    """Read a body. Raises `BadRequest` naming the first field that is wrong."""
    body = request.body
    chats: list[Any] = []
    match request.url:
        case "/v1/chat/completions":
            prompt, field = _messages(body.get("messages")), "messages"
        case "/v1/chat/completions/batch":
            chats = body["messages"] if isinstance(body.get("messages"), list) else [None]
            prompt, field = tuple(text for chat in chats for text in _messages(chat)), "messages"
        case "/v1/completions":
            prompt, field = _texts(body.get("prompt"), "prompt"), "prompt"
        case "/v1/embeddings":
            prompt, field = _texts(body.get("input"), "input"), "input"
        case _:
            raise BadRequest(f"{request.url} is not served here", field="url")
    limit = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    knobs, script = _scripted(_knobs(_typed(body, "seeded", dict, {})), request)
    return SeededRequest(
        url=request.url,
        model=_typed(body, "model", str, None),
        prompt=prompt,
        prompt_field=field,
        max_tokens=_at_least_one(_typed(body, limit, int, None), limit),
        n=len(chats) if chats else _at_least_one(_typed(body, "n", int, 1), "n") or 1,
        seed=_typed(body, "seed", int, 0),
        knobs=knobs,
        tool="" if knobs.turns else _called_tool(body),
        script=script,
    )


def _scripted(
    knobs: SeededParams, request: EngineRequest
) -> tuple[SeededParams, tuple[Piece, ...]]:
    """The knobs of the present turn, and what it says; a body that is no chat has none."""
    is_chat = request.url == "/v1/chat/completions"
    turn = turn_of(knobs.turns, request.body) if knobs.turns and is_chat else None
    if turn is None:
        return knobs, ()
    resumable = knobs.resumable and turn.resumable
    own = replace(knobs, reasoning_tokens=turn.reasoning_tokens, resumable=resumable)
    return own, pieces_of(turn)


def block_hashes(request: SeededRequest, salt: str) -> list[bytes]:
    """A hash for each whole block of the prompt's tokens, of everything before it too, as vLLM's cache has them. The
    last token is in none: something must be computed for the first one of the answer.
    """
    tokens = [word for part in request.prompt for word in ("<|", "", "|>", "", *part.split())]
    chain, hashes = salt.encode(), []
    for end in range(BLOCK_TOKENS, len(tokens), BLOCK_TOKENS):
        chain = _digest(
            chain + repr(tokens[end - BLOCK_TOKENS : end]).encode("utf-8", "surrogatepass")
        )
        hashes.append(chain)
    return hashes


def output_limit(request: SeededRequest, max_model_len: int) -> int:
    """The largest number of output tokens. Raises `BadRequest` when the context is too short."""
    room = max_model_len - request.prompt_tokens
    if room < 1:
        raise ContextExceeded(
            f"the prompt has {request.prompt_tokens} tokens and the context {max_model_len}",
            field=request.prompt_field,
        )
    if request.max_tokens is not None and request.max_tokens > room:
        raise BadRequest(
            f"max_tokens is {request.max_tokens}, but {request.prompt_tokens} prompt tokens leave "
            f"{room} of the context of {max_model_len}",
            field="max_tokens",
        )
    return request.max_tokens or room


def tokens(request: SeededRequest, choice: int, prior: Sequence[int]) -> Iterator[int]:
    """The ids that follow `prior`, without end except for `EOS`."""
    state = _digest(f"{request.seed}|{choice}|{request.model}|{request.prompt}".encode())
    length = request.knobs.output_tokens or 16 + int.from_bytes(state[:2], "big") % 112
    script, thought = request.script, request.knobs.reasoning_tokens
    if script:
        length = thought + len(script)
        check_continued(script, thought, prior)
    for token_id in prior:
        state = _digest(state + bytes([token_id]))
    position = len(prior)
    while True:
        token_id = EOS if position >= length else 1 + state[0] % len(WORDS)
        if script and thought <= position < length:
            token_id = script[position - thought].token_id(position)
        yield token_id
        state = _digest(state + bytes([token_id]))
        position += 1


def arguments_of(token_id: int, *, is_first: bool) -> str:
    """A token as a piece of a function's arguments, which are JSON once all of them are there."""
    opening, closing = '{"text": "' if is_first else "", '"}' if token_id == EOS else ""
    return opening + text_of(token_id, is_first) + closing


def text_of(token_id: int, is_first: bool) -> str:
    """A token as text: words come with the space before them, but for the first."""
    if token_id == EOS:
        return ""
    word = WORDS[token_id - 1]
    return word if is_first else f" {word}"


def embedding(text: str) -> list[float]:
    """Eight numbers between -1 and 1 that depend on the text."""
    return [byte / 127.5 - 1 for byte in _digest(text.encode())[:EMBEDDING_DIMENSIONS]]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _knobs(given: Mapping[str, Any]) -> SeededParams:
    known = {field.name for field in fields(SeededParams)}
    if unknown := sorted(given.keys() - known):
        raise BadRequest(f"seeded.{unknown[0]} is not a knob of the test engine", field="seeded")
    return SeededParams(**{**given, "turns": parse_turns(given.get("turns", ()))})


def _called_tool(body: Mapping[str, Any]) -> str:
    """A model with tools calls the one that it must, or the first; it answers once it has the result of the call."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools or choice == "none" or body["messages"][-1]["role"] == "tool":
        return ""
    chosen = choice if isinstance(choice, Mapping) else tools[0]
    return str((chosen.get("function") or {}).get("name", ""))


def _messages(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise BadRequest("messages must be a list with at least one message", field="messages")
    return tuple(_message(message, f"messages.{i}") for i, message in enumerate(value))


def _message(message: object, field: str) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest(f"{field} must be an object with a role", field=field)
    said = " ".join(_called(call) for call in message.get("tool_calls") or ())
    match message.get("content"):
        case str(content):
            return f"{content} {said}" if said else content
        case list(parts):
            return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        case None if message["role"] == "assistant":
            return said
        case _:
            raise BadRequest(f"{field}.content must be a text", field=f"{field}.content")


def _called(call: Mapping[str, Any]) -> str:
    """A call of an earlier answer, as the prompt has it."""
    function = call.get("function") or {}
    return f"{function.get('name', '')} {function.get('arguments', '')}"


def _texts(value: object, field: str) -> tuple[str, ...]:
    match value:
        case str(text) if text:
            return (text,)
        case [*items] if items and all(isinstance(item, str) and item for item in items):
            return tuple(str(item) for item in items)
        case _:
            raise BadRequest(f"{field} must be a text that is not empty", field=field)


def _typed(body: Mapping[str, Any], field: str, kind: type, default: Any) -> Any:
    value = body.get(field)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRequest(f"{field} must be of type {kind.__name__}", field=field)
    return value


def _at_least_one(value: int | None, field: str) -> int | None:
    if value is not None and value < 1:
        raise BadRequest(f"{field} must be at least 1", field=field)
    return value
