"""Calls and their twins: the same call with one field changed, and whether that may change the answer."""

import copy
import os
import random
from collections.abc import Callable
from typing import Any, Final

TWINS: Final = int(os.environ.get("TORPOR_CACHE_TWINS", "4000"))
"""How many to try: 100,000 at a desk."""
Body = dict[str, Any]
_WORDS: Final = (
    "turn",
    "on",
    "off",
    "dark",
    "mode",
    "7",
    "7.0",
    "é",
    "é",
    "",
    " ",
    "\u200b",
    "null",
)
_IGNORED: Final = ("stream", "stream_options", "metadata", "user", "store", "background")


_LEAVES: Final[tuple[Any, ...]] = ("1", 1, True, [1], {"1": 1}, None, 0, False, "", [], {})


def _text(source: random.Random) -> str:
    return " ".join(source.choices(_WORDS, k=source.randint(1, 5)))


def body_of(source: random.Random) -> Body:
    """A call with some of the fields that OpenAI's calls have, and some of the engine's."""
    body: Body = {
        "model": source.choice(("m", "M", "m2")),
        "messages": [
            {"role": source.choice(("system", "user", "assistant")), "content": _text(source)}
            for _ in range(source.randint(1, 4))
        ],
        "of_an_engine": {"deep": [{"leaf": source.choice(_LEAVES)}]},
    }
    optional: dict[str, Callable[[], Any]] = {
        "temperature": lambda: source.choice((0, 0.5, 1, 1.5)),
        "top_p": lambda: source.choice((0.1, 0.9, 1)),
        "seed": lambda: source.choice((0, 1, 2**53 + 1, -1)),
        "max_tokens": lambda: source.randint(1, 99),
        "stop": lambda: source.choice((["a"], ["a", "b"], "a")),
        "n": lambda: source.choice((1, 2)),
        "presence_penalty": lambda: source.choice((0, 0.5)),
        "logit_bias": lambda: {"7": source.choice((1, -1, 0.5))},
        "response_format": lambda: {"type": source.choice(("text", "json_object"))},
        "tools": lambda: [{"type": "function", "function": {"name": _text(source) or "f"}}],
        "reasoning_effort": lambda: source.choice(("low", "high")),
        "chat_template_kwargs": lambda: {"enable_thinking": source.choice((True, False, 1, 0))},
        "top_k": lambda: source.choice((-1, 5, 50)),
    }
    for name, make in optional.items():
        if source.random() < 0.4:
            body[name] = make()
    return body


def twin(source: random.Random) -> tuple[Body, Body, str, bool]:
    """A call, the same with one change, what was changed, and whether it asks for the same answer."""
    body = body_of(source)
    changed = copy.deepcopy(body)
    change = source.choice((_ignored, _reordered, _respelled, _field, _message, _leaf))
    return body, changed, *change(source, changed)


def _ignored(source: random.Random, body: Body) -> tuple[str, bool]:
    name = source.choice((*_IGNORED, "prompt_cache_key", "prompt_cache_options"))
    body[name] = source.choice((True, "x", {"a": 1}))
    return name, True


def _reordered(source: random.Random, body: Body) -> tuple[str, bool]:
    items = list(body.items())
    source.shuffle(items)
    body.clear()
    body.update(items)
    return "order", True


def _respelled(source: random.Random, body: Body) -> tuple[str, bool]:
    """Whole numbers as floats, and fields that are null."""
    for name, value in body.items():
        if isinstance(value, int) and abs(value) < 2**53:
            body[name] = float(value)
    body["seed"] = body.get("seed")
    return "spelling", True


def _field(source: random.Random, body: Body) -> tuple[str, bool]:
    """A field that is added, taken away, or given another value."""
    name = source.choice(("temperature", "seed", "max_tokens", "top_k", "of_the_engine", "tools"))
    before = body.get(name)
    body[name] = source.choice((3, 0.25, "x", [1], False, {"a": None}))
    return name, body[name] == before and type(body[name]) is type(before)


def _message(source: random.Random, body: Body) -> tuple[str, bool]:
    messages = body["messages"]
    place = source.randrange(len(messages))
    match source.randrange(4):
        case 0:
            messages[place]["content"] += source.choice((" ", ".", "\u200b", "not"))
        case 1:
            messages[place]["role"] = "tool"
        case 2:
            messages.insert(place, {"role": "user", "content": "and"})
        case _:
            messages[place]["name"] = "n"
    return f"messages[{place}]", False


def _leaf(source: random.Random, body: Body) -> tuple[str, bool]:
    """A value deep inside that becomes another, also one of another type and the same look."""
    inner = body["of_an_engine"]["deep"][0]
    others = [each for each in _LEAVES if repr(each) != repr(inner["leaf"])]
    inner["leaf"] = source.choice(others)
    return "leaf", False
