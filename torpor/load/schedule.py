"""The requests of a load and their times, from a profile or a trace. Pure.

Called by the command and the benches. The same seed gives the same load. Must not know HTTP.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from torpor.simulator.load import Load
from torpor.simulator.workload import Lengths


class ClientKind(StrEnum):
    """How a client waits for its answer."""

    ASYNC = "async"  #: submits a job and polls it
    SSE = "sse"  #: submits a job and follows its events
    SYNC = "sync"  #: OpenAI's call, held open until the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One request of the load: due at `at_s` from the start."""

    at_s: float
    kind: ClientKind
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a load is turned into requests. `speed` runs its clock faster; lengths above a cap are cut to it, since a
    model has a context; `mix` weighs the kinds of clients.
    """

    mix: Mapping[ClientKind, int] = field(default_factory=lambda: dict.fromkeys(ClientKind, 1))
    speed: float = 1.0
    prompt_cap: int = 1024
    output_cap: int = 256
    seed: int = 0


_CHUNK: Final = "torpor "
"""About one token of any tokenizer."""


def shots(load: Load, shape: Shape, *, until_s: float | None = None) -> Iterator[Shot]:
    """The requests of an open loop, in order."""
    rng = random.Random(shape.seed)  # noqa: S311 (a lottery among clients, not a secret)
    for request in load.requests():
        at_s = request.at / shape.speed
        if until_s is not None and at_s >= until_s:
            return
        yield _shot(shape, rng, at_s, request.prompt_tokens, request.output_tokens)


def endless(shape: Shape, lengths: Lengths, user: int) -> Iterator[Shot]:
    """The requests of one user of a closed loop; each is due when the one before has ended."""
    rng = random.Random(shape.seed * 1_000_003 + user)  # noqa: S311
    while True:
        yield _shot(shape, rng, 0.0, *lengths.draw(rng))


def prompt_of(tokens: int) -> str:
    """A prompt of about so many tokens."""
    return (_CHUNK * tokens).strip()


def parse_mix(text: str) -> dict[ClientKind, int]:
    """`async:2,sse:1` as weights. Raises ValueError naming what is wrong."""
    mix: dict[ClientKind, int] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        if name not in list(ClientKind) or not (weight or "1").isdigit():
            kinds = ", ".join(ClientKind)
            raise ValueError(f"{part!r}: clients are {kinds}, each with a whole weight, as sse:2")
        mix[ClientKind(name)] = int(weight or "1")
    if not any(mix.values()):
        raise ValueError("at least one kind of client must have a weight above 0")
    return mix


def _shot(shape: Shape, rng: random.Random, at_s: float, prompt: int, output: int) -> Shot:
    kinds = list(shape.mix)
    return Shot(
        at_s=at_s,
        kind=rng.choices(kinds, [shape.mix[kind] for kind in kinds])[0],
        prompt_tokens=max(1, min(prompt, shape.prompt_cap)),
        output_tokens=max(1, min(output, shape.output_cap)),
    )
