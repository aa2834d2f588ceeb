"""The start of a job's prompt: as lists show it and searches read it, and as hashes of what an engine may have seen.
Pure.

Called by `eventing.store`, and by the queue, whose claim prefers the job with the longest match of hashes
(docs/adr/0325). A prompt can be a megabyte; its start is stored beside it when the job is recorded.
"""

import secrets
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final

import orjson

from eventing.job.job import DEFAULT_TENANT, JobRequest
from eventing.job.store import NewJob

PROMPT_CHARS: Final = 160
BLOCK_BYTES: Final = 1024
MOST_BLOCKS: Final = 16
PASS_MS: Final = 500
"""How long a job is left to the engine that may have seen its prompt; `claim.lua` has the same number."""
LEFT_MS: Final = 30
"""How long a job is left to an engine that holds its prefix; `claim.lua` has the same number."""
_READ_FIELDS: Final = ("role", "content", "text", "tool_calls", "function", "name", "arguments")
_DEEPEST: Final = 5
_MOST_SEEN: Final = 1024
_MOST_DEFERRED: Final = 64


def prompt_start(request: JobRequest) -> str:
    """The first characters of what the caller asked last, on one line; empty for token ids and images."""
    body = request.body
    asked = body.get("prompt") or body.get("input") or ""
    messages = body.get("messages")
    if isinstance(messages, list):
        asked = _last_of_user(messages)
    taken, left = [], 4 * PROMPT_CHARS
    for text in _texts(asked):
        taken.append(text[:left])
        left -= len(text)
        if left <= 0:
            break
    return " ".join(" ".join(taken).split())[:PROMPT_CHARS]


def is_match(words: str, *texts: str) -> bool:
    """Whether each of the words is in one of the texts, whatever its case."""
    where = "\n".join(texts).casefold()
    return all(word in where for word in words.casefold().split())


def _last_of_user(messages: list[Any]) -> Any:
    asked = [m for m in messages if isinstance(m, dict)]
    of_user = [m for m in asked if m.get("role") == "user"] or asked
    return of_user[-1].get("content") or "" if of_user else ""


def _texts(value: Any) -> Iterator[str]:
    """The texts in a prompt; parts of other kinds have none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        yield from _texts(value.get("text") or "")


def prompt_prefix(new: NewJob) -> str:
    """The hashes of the first whole blocks, each of everything before it too, and then those of the keys: of
    `prompt_cache_key` and of the conversation. Separated by commas; empty for a short prompt without keys.
    """
    # Of one tenant: another's prompt is nothing to its engine's cache (`predictor.engine.engine.cache_salt`), and the
    # same key may mean something else.
    owner = f"{new.tenant or DEFAULT_TENANT}\0"
    words, chain = [], owner.encode("utf-8", "surrogatepass")
    text = _first_bytes(new.request.body)
    for at in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
        chain = _digest(chain + text[at : at + BLOCK_BYTES])
        words.append(chain.hex())
    named = {"k": new.request.body.get("prompt_cache_key"), "c": new.turn.id if new.turn else None}
    for kind, key in named.items():
        if isinstance(key, str) and key:
            owned = f"{owner}{key}".encode("utf-8", "surrogatepass")
            words.append(kind + _digest(owned).hex())
    return ",".join(words)


class SeenPrefixes:
    """What one engine has seen, newest last, and what it is to be given again."""

    def __init__(self) -> None:
        self.forget()
        self._deferred: OrderedDict[str, None] = OrderedDict()

    def forget(self) -> None:
        """The engine has gone, and what it held with it."""
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.holder = secrets.token_hex(4)  #: the engine's name among the holders of prefixes

    def claim(self, ticket: str, prefix: str) -> bool:
        """Count the prompt of a claimed job as seen; whether its start, or a key of it, was before."""
        self._deferred.pop(ticket, None)
        words = prefix.split(",") if prefix else []
        is_hit = any(word in self._seen for word in words)
        # The first block last: without it the others match nothing.
        for word in reversed(words):
            _keep(self._seen, word, _MOST_SEEN)
        return is_hit

    def defer(self, ticket: str, *, is_ours: bool) -> None:
        """Remember the ticket of a job that this engine may have begun; forget one that is for any."""
        self._deferred.pop(ticket, None)
        if is_ours:
            _keep(self._deferred, ticket, _MOST_DEFERRED)

    def words(self, *, with_prefixes: bool) -> str:
        """All of it as `claim.lua` searches it: the tickets and, after a bar, the prefixes. Those are left out where
        nothing waits to be chosen from, and there is no bar for an engine that has seen nothing.
        """
        tickets = "".join(f"{ticket}," for ticket in self._deferred)
        seen = "".join(f"{word}," for word in self._seen) if with_prefixes else ""
        bar = "|" if self._seen else ""
        return f",{tickets}{bar}{',' if seen else ''}{seen}"


def _keep(kept: OrderedDict[str, None], word: str, most: int) -> None:
    kept[word] = None
    kept.move_to_end(word)
    if len(kept) > most:
        kept.popitem(last=False)


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=4).digest()


def _first_bytes(body: Mapping[str, Any]) -> bytes:
    """The start of what the engine reads: tools before messages, as chat templates put them."""
    most, text = BLOCK_BYTES * MOST_BLOCKS, b""
    for part in _parts(body):
        text += part[:most].encode("utf-8", "surrogatepass")
        if len(text) >= most:
            break
    return text[:most]


def _parts(body: Mapping[str, Any]) -> Iterator[str]:
    messages = body.get("messages")
    if isinstance(messages, list):
        if tools := body.get("tools"):
            yield orjson.dumps(tools).decode()
        for message in messages:
            yield from _read_texts(message)
    else:
        yield from _read_texts(body.get("prompt"))


def _read_texts(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts in a value and, of a message, whose it is; no deeper than the arguments of a tool's call lie."""
    if isinstance(value, str):
        yield value
    elif depth == _DEEPEST:
        return
    elif isinstance(value, dict):
        for name in _READ_FIELDS:
            yield from _read_texts(value.get(name), depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _read_texts(inner, depth + 1)
