"""A job's usage: the tokens of its answer, and those that were spent beside it (`extra`). Pure.

Called by the predictor and the store in memory; `_spent.lua` does the same where a script ends a job.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

Spent = list[dict[str, Any]]
"""Tokens by `kind` (`hedged`, `retried`, `repaired`, `cascaded`, `turn`) and `model`: `prompt_tokens`,
`completion_tokens`; of `turn`, which is an answer that asked for tools, the details of both as well.
"""
TIMES: Final = "times"
"""Field of a turn's usage, as the predictor measured it: `first_token_ms` from the lease to the first token of its last
attempt, which is mostly the reading of the prompt, and `start_ms`, its own cold start.
"""
_COUNTS: Final = ("prompt_tokens", "completion_tokens")


def usage_with(usage: Any, spent: Spent | None) -> Any:
    """The usage with what was spent beside it, in its sums and in `extra`."""
    if not spent or usage is None:
        return usage
    prompt = sum(each["prompt_tokens"] for each in spent)
    completion = sum(each["completion_tokens"] for each in spent)
    extra = [dict(each) for each in spent]
    for each in usage.get("extra") or ():
        _add_spent(extra, each)
    return {
        **usage,
        "prompt_tokens": (usage.get("prompt_tokens") or 0) + prompt,
        "completion_tokens": (usage.get("completion_tokens") or 0) + completion,
        "total_tokens": (usage.get("total_tokens") or 0) + prompt + completion,
        "extra": extra,
    }


def spent_with(usage: Mapping[str, Any], kind: str, model: str) -> Spent:
    """What was spent when an answer of this usage, of a model, is thrown away: all of it."""
    spent = [dict(each) for each in usage.get("extra") or ()]
    own = {"kind": kind, "model": model}
    for name in ("prompt_tokens", "completion_tokens"):
        own[name] = max(0, (usage.get(name) or 0) - sum(each[name] for each in spent))
    _add_spent(spent, own)
    return spent


def own_usage(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """The usage of the answer alone, without what was spent beside it."""
    spent = usage.get("extra") or ()
    own = {name: value for name, value in usage.items() if name != "extra"}
    for name in _COUNTS:
        own[name] = max(0, (usage.get(name) or 0) - sum(each.get(name) or 0 for each in spent))
        kept = usage.get(f"{name}_details")
        if isinstance(kept, Mapping):
            own[f"{name}_details"] = {
                detail: _left(count, [each.get(f"{name}_details") for each in spent], detail)
                for detail, count in kept.items()
            }
    return own | {"total_tokens": own["prompt_tokens"] + own["completion_tokens"]}


def _left(count: Any, spent: Sequence[Any], detail: str) -> Any:
    if not isinstance(count, int):
        return count
    beside = [each.get(detail) for each in spent if isinstance(each, Mapping)]
    return max(0, count - sum(each for each in beside if isinstance(each, int)))


def _add_spent(spent: Spent, entry: Mapping[str, Any]) -> None:
    for each in spent:
        if (each["kind"], each["model"]) == (entry["kind"], entry["model"]):
            each["prompt_tokens"] += entry["prompt_tokens"]
            each["completion_tokens"] += entry["completion_tokens"]
            return
    spent.append(dict(entry))


def times_of(usage: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """`first_token_ms` and `start_ms` in a turn's usage; None where they are not known."""
    times = (usage or {}).get(TIMES)
    if not isinstance(times, Mapping):
        return None
    first, start = times.get("first_token_ms"), times.get("start_ms")
    return (first, start) if isinstance(first, int) and isinstance(start, int) else None
