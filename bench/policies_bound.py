"""What no policy can pay less than: a lower bound on GPU-seconds for one who knows every arrival.

Called by `policies_table.py`. For a list of requests, a cold start C and a wait target T that at
least 95 of 100 requests keep:

* Replicas are up in one or more stretches. A stretch whose first kept request came at `a` is ready
  at `a + T` at the latest, lasts at least until its last request could be done with the engine to
  itself, and costs C besides. Requests in between ride for nothing. Any 5 % may be served for
  nothing (they may wait for ever). The cheapest cut into stretches is found by dynamic programming.
* Besides, all work must be done once, at the engine's best batch rate, and somebody must wake once.

The larger of the two is the bound. Real schedules also batch at lower rates, so nobody reaches it.
"""

import math
from collections.abc import Sequence

from knative.simulator.engine import EngineModel
from knative.simulator.workload import Request


def lower_bound_s(
    requests: Sequence[Request],
    engine: EngineModel,
    slots: int,
    start_s: float,
    wait_s: float,
    *,
    kept_share: float = 0.95,
) -> float:
    """GPU-seconds that any policy pays to start `kept_share` of `requests` within `wait_s`."""
    best_rate = max(engine.batch_rate(size) for size in range(1, slots + 1))
    work = sum(
        r.prompt_tokens / engine.prefill_tokens_per_s + (r.output_tokens - 1) / best_rate
        for r in requests
    )
    return max(_stretches_s(requests, engine, start_s, wait_s, kept_share), start_s + work)


def _stretches_s(
    requests: Sequence[Request],
    engine: EngineModel,
    start_s: float,
    wait_s: float,
    kept_share: float,
) -> float:
    count = len(requests)
    late = count - math.ceil(kept_share * count)
    alone = [engine.alone_s(r.prompt_tokens, r.output_tokens) for r in requests]
    # cheapest[k] of the first p requests with k of them left out.
    table = [[math.inf] * (late + 1) for _ in range(count + 1)]
    table[0][0] = 0.0
    for p in range(count):
        row = table[p]
        following = table[p + 1]
        for k in range(late):
            following[k + 1] = min(following[k + 1], row[k])
        if min(row) == math.inf:
            continue
        ready = requests[p].at + wait_s
        for last in range(p, count):
            end = max(requests[last].at + alone[last], ready + alone[p])
            cost = start_s + end - ready
            target = table[last + 1]
            for k in range(late + 1):
                if row[k] + cost < target[k]:
                    target[k] = row[k] + cost
    return min(table[count])
