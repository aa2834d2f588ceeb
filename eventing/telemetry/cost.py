"""The cost of inference: busy, idle and starting GPU-seconds, times a price. Pure.

Called by the ledger and the live metrics (GPU time) and by the api (a job's cost, `/v1/usage`). No I/O, no clock of
its own. Every paid second counts, so the main figure is the cost of 1,000 delivered tokens with idle time, starts
and repeated work included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from typing_extensions import TypedDict

MICRO: Final = 1_000_000
"""Money is counted in millionths."""
_HOUR_S: Final = 3600.0
_PLACES: Final = 6


class GpuState(StrEnum):
    """What a replica's GPUs do."""

    WAKING = "waking"  #: started, cannot serve yet
    IDLE = "idle"  #: ready, without a job
    BUSY = "busy"  #: runs at least one job


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMeter:
    """The GPU time of one replica until `at_s` (its own monotonic clock), by state.

    `share_s` is the time divided by the number of jobs running at each moment: its growth during a job is the job's
    share of the GPU.
    """

    at_s: float
    is_ready: bool = False
    in_flight: int = 0
    waking_s: float = 0.0
    idle_s: float = 0.0
    busy_s: float = 0.0
    share_s: float = 0.0

    @property
    def state(self) -> GpuState:
        if not self.is_ready:
            return GpuState.WAKING
        return GpuState.BUSY if self.in_flight else GpuState.IDLE


def advance(
    meter: GpuMeter, now_s: float, *, in_flight: int | None = None, is_ready: bool | None = None
) -> GpuMeter:
    """The meter at `now_s`, with the time since the last call counted under the state until now. A clock that went
    back counts nothing.
    """
    passed_s = max(now_s - meter.at_s, 0.0)
    state = meter.state
    return replace(
        meter,
        at_s=max(now_s, meter.at_s),
        waking_s=meter.waking_s + (passed_s if state is GpuState.WAKING else 0.0),
        idle_s=meter.idle_s + (passed_s if state is GpuState.IDLE else 0.0),
        busy_s=meter.busy_s + (passed_s if state is GpuState.BUSY else 0.0),
        share_s=meter.share_s + (passed_s / meter.in_flight if meter.in_flight else 0.0),
        in_flight=meter.in_flight if in_flight is None else in_flight,
        is_ready=meter.is_ready if is_ready is None else is_ready,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """The price of a replica: `per_gpu_hour` in the operator's currency, times its GPUs."""

    per_gpu_hour: float = 0.0
    gpus: int = 1

    def of(self, replica_s: float) -> float:
        """The cost of so many seconds of one replica."""
        return replica_s * self.gpus * self.per_gpu_hour / _HOUR_S


UNPRICED: Final = Price()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrice:
    """What a provider takes for a million tokens, in the operator's currency."""

    input_per_1m: float = 0.0
    output_per_1m: float = 0.0
    cached_input_per_1m: float | None = (
        None  #: of input that it had in its cache; None: as other input
    )

    def of(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """The cost of so many tokens; the cached ones are among the input."""
        cached = self.input_per_1m if self.cached_input_per_1m is None else self.cached_input_per_1m
        inputs = (input_tokens - cached_tokens) * self.input_per_1m + cached_tokens * cached
        return (inputs + output_tokens * self.output_per_1m) / MICRO


FREE: Final = TokenPrice()


@dataclass(frozen=True, slots=True)
class Prices:
    """Of a predictor, and of the tokens of models that have a price."""

    gpu: Price = UNPRICED
    tokens: Mapping[str, TokenPrice] = field(default_factory=dict)

    def of(self, usage: Mapping[str, Any] | None, model: str, gpu_s: float) -> dict[str, float]:
        """What the tokens of a usage cost by kind; its answer is of `model`."""
        return cost_by_kind(spent_tokens(usage, model), gpu_s, self.gpu, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """Replica-seconds by purpose, and the output that they gave.

    `kept_s` is the part of `busy_s` whose tokens were kept; the tokens of the rest were discarded by an attempt, or
    lost with a predictor that died.
    """

    waking_s: float = 0.0
    idle_s: float = 0.0
    busy_s: float = 0.0
    kept_s: float = 0.0
    jobs: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def paid_s(self) -> float:
        return self.waking_s + self.idle_s + self.busy_s

    @property
    def wasted_s(self) -> float:
        """Busy seconds without kept tokens."""
        return max(self.busy_s - self.kept_s, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A `Spend` in money. Figures per job and per 1,000 tokens are None without jobs or tokens."""

    total: float
    busy: float
    idle: float
    waking: float
    wasted: float
    per_job: float | None
    per_1k_tokens: float | None
    per_1k_tokens_busy: float | None

    def to_dict(self) -> "BillView":
        return {
            "total": round(self.total, 6),
            "busy": round(self.busy, 6),
            "idle": round(self.idle, 6),
            "waking": round(self.waking, 6),
            "wasted": round(self.wasted, 6),
            "per_job": _rounded(self.per_job),
            "per_1k_output_tokens": _rounded(self.per_1k_tokens),
            "per_1k_output_tokens_busy_only": _rounded(self.per_1k_tokens_busy),
        }


class BillView(TypedDict):
    """In money. `total` has everything in it: idle time, wakes and work that was thrown away."""

    total: float
    busy: float
    idle: float
    waking: float
    wasted: float
    per_job: float | None
    per_1k_output_tokens: float | None
    per_1k_output_tokens_busy_only: float | None


def bill(spend: Spend, price: Price) -> Bill:
    """The total cost, and the full cost of one job and of 1,000 delivered output tokens."""
    total, busy = price.of(spend.paid_s), price.of(spend.busy_s)
    return Bill(
        total=total,
        busy=busy,
        idle=price.of(spend.idle_s),
        waking=price.of(spend.waking_s),
        wasted=price.of(spend.wasted_s),
        per_job=_per(total, spend.jobs),
        per_1k_tokens=_per(1000 * total, spend.output_tokens),
        per_1k_tokens_busy=_per(1000 * busy, spend.output_tokens),
    )


def overhead(spend: Spend) -> float | None:
    """Paid seconds for each second whose tokens were kept; None without kept tokens. A tenant's own seconds times
    this include its part of idle time and starts.
    """
    return spend.paid_s / spend.kept_s if spend.kept_s > 0 else None


class JobCost(TypedDict):
    """What one job cost so far; null where no price is set, or nothing is known. `by_kind` has what its answer cost
    (`answer`), and what was spent beside it: `hedged`, `retried`, `repaired`, `cascaded`.
    """

    gpu_seconds: float
    cost: float | None
    cost_per_1k_output_tokens: float | None
    cost_all_in: float | None
    all_in_per_1k_output_tokens: float | None
    by_kind: dict[str, float] | None


ANSWER: Final = "answer"
KINDS: Final = (ANSWER, "hedged", "retried", "repaired", "cascaded")
"""What tokens are spent on."""
_MOST_TOKENS: Final = 2**40
"""Of one job, whatever its engine says."""


@dataclass(frozen=True, slots=True)
class SpentTokens:
    """Tokens of one kind, and the model that they are of."""

    kind: str
    model: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0  #: of the input


def spent_tokens(usage: Mapping[str, Any] | None, model: str) -> list[SpentTokens]:
    """The tokens of a job's usage by kind; the answer's, of `model`, are first. Whatever a provider wrote is read."""
    found: list[SpentTokens] = []
    extra = (usage or {}).get("extra")
    for each in extra if isinstance(extra, list) else ():
        if isinstance(each, Mapping) and each.get("kind") in KINDS:
            of = each.get("model")
            found.append(
                SpentTokens(
                    kind=each["kind"],
                    model=of if isinstance(of, str) and of else model,
                    input_tokens=tokens_in(each, "prompt_tokens"),
                    output_tokens=tokens_in(each, "completion_tokens"),
                )
            )
    inputs = tokens_in(usage, "prompt_tokens") - sum(each.input_tokens for each in found)
    outputs = tokens_in(usage, "completion_tokens") - sum(each.output_tokens for each in found)
    inputs = max(inputs, 0)
    cached = min(cached_tokens(usage), inputs)
    return [SpentTokens(ANSWER, model, inputs, max(outputs, 0), cached), *found]


def cost_by_kind(
    spent: Sequence[SpentTokens], gpu_s: float, price: Price, tokens: Mapping[str, TokenPrice]
) -> dict[str, float]:
    """What each kind of tokens cost: at their provider's price, or, of a model of one's own, its part of the GPU time
    by generated tokens.
    """
    own = [each for each in spent if each.model not in tokens]
    generated = sum(each.output_tokens for each in own)
    costs: dict[str, float] = {}
    for each in spent:
        if (provider := tokens.get(each.model)) is not None:
            cost = provider.of(each.input_tokens, each.output_tokens, each.cached_tokens)
        else:
            cost = price.of(gpu_s) * (each.output_tokens / generated if generated else 0.0)
        costs[each.kind] = costs.get(each.kind, 0.0) + cost
    if not generated:
        costs[ANSWER] = costs.get(ANSWER, 0.0) + price.of(gpu_s)
    return costs


def job_cost(
    gpu_s: float,
    spent: Sequence[SpentTokens],
    price: Price,
    overhead: float | None = None,
    tokens: Mapping[str, TokenPrice] = MappingProxyType({}),
) -> JobCost:
    """The cost of one job: its share of GPU time over all attempts, and what providers take for its tokens; `all_in`
    adds, by `overhead`, its part of idle time, starts and waste.
    """
    output_tokens = sum(each.output_tokens for each in spent)
    uses_gpu = price.per_gpu_hour > 0 and any(each.model not in tokens for each in spent)
    by_kind = cost = all_in = None
    if uses_gpu or any(each.model in tokens for each in spent):
        by_kind = cost_by_kind(spent, gpu_s, price, tokens)
        cost = all_in = sum(by_kind.values())
    if uses_gpu and cost is not None:
        all_in = None if overhead is None else cost + price.of(gpu_s) * (overhead - 1)
    return {
        "gpu_seconds": round(gpu_s * price.gpus, 3),
        "cost": _rounded(cost),
        "cost_per_1k_output_tokens": _rounded(_per_1k(cost, output_tokens)),
        "cost_all_in": _rounded(all_in),
        "all_in_per_1k_output_tokens": _rounded(_per_1k(all_in, output_tokens)),
        "by_kind": None
        if by_kind is None
        else {kind: round(amount, _PLACES) for kind, amount in by_kind.items()},
    }


def tokens_in(record: object, name: str) -> int:
    """The tokens under this name in a usage; 0 for anything that is no count. An engine may write what it will."""
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return min(max(value, 0), _MOST_TOKENS)


def cached_tokens(usage: Mapping[str, Any] | None) -> int:
    """The tokens of a usage's prompt that its engine had in its cache."""
    cached = tokens_in((usage or {}).get("prompt_tokens_details"), "cached_tokens")
    return min(cached, tokens_in(usage, "prompt_tokens"))


def _rounded(money: float | None) -> float | None:
    return None if money is None else round(money, _PLACES)


def _per_1k(cost: float | None, tokens: int) -> float | None:
    return None if cost is None else _per(1000 * cost, tokens)


def spend_of(measures: Mapping[str, int]) -> Spend:
    """A spend from the ledger's measures (milliseconds and counts by name); missing ones are 0."""

    def seconds(name: str) -> float:
        return measures.get(name, 0) / 1000

    return Spend(
        waking_s=seconds("waking_ms"),
        idle_s=seconds("idle_ms"),
        busy_s=seconds("busy_ms"),
        kept_s=seconds("kept_ms"),
        jobs=measures.get("jobs", 0),
        input_tokens=measures.get("input_tokens", 0),
        output_tokens=measures.get("delivered_tokens", 0),
    )


def _per(amount: float, count: int) -> float | None:
    return amount / count if count else None
