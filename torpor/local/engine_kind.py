"""Which engine a stack runs: light, for the help of the commands."""

from enum import StrEnum


class EngineKind(StrEnum):
    """What makes the tokens."""

    VLLM = "vllm"  #: the real engine
    UPSTREAM = "upstream"  #: a provider's endpoint
    SEEDED = "seeded"  #: the test engine: tokens from a seed, no model
