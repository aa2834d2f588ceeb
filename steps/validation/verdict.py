"""What a check of an answer found, and what a check is.

Implemented once for each kind of check and called by `steps.validation.step`, whose table has them by the name of
their setting.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steps.handler import StepCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one check found. `problems` say what is wrong, for the model that is asked to correct it; they may quote its
    answer and are shown to no caller. `may_repair`: asking again can help; without, the answer is one that must not be
    shown. `detail` is shown to the caller.
    """

    problems: tuple[str, ...] = ()
    may_repair: bool = True
    detail: Mapping[str, Any] = field(default_factory=dict)


def not_allowed(categories: Iterable[str]) -> tuple[str, ...]:
    """The problems of an answer with something of these categories in it."""
    return tuple(f"It has something in it that is not allowed: {name}." for name in categories)


Check = Callable[[StepCall], Awaitable[Verdict]]
"""Judges an answer. Raises `Unavailable` to be called again later."""
