"""Our own scaling policy: scales on the GPU-seconds of waiting work and uses the time that jobs may wait.

Called by the external scaler (`knative.external_scaler`) and the simulator. Must not know queues or pods.

It uses five things that neither the KPA nor KEDA uses:
* **work instead of requests**: prompt tokens are known, answer lengths are learnt for each class of prompt lengths,
  so ten long jobs weigh more than ten short ones;
* **slack**: a job may wait `p95_wait_s`, and a cold start takes `cold_start_s`; at zero a replica is started when
  the oldest job needs it, and all jobs that arrived meanwhile share the one cold start;
* **an error budget**: a p95 objective lets five jobs in a hundred wait longer; the budget is spent on jobs for
  which alone a replica would be started (`error_budget.py`);
* **classes**: with `batch_wait_s` jobs of the batch lane wait for room that others leave, or for their own deadline
  (`batch.py`); they do not count in the wait objective;
* **the price of a cold start**: how long the last replica stays idle is chosen from the gaps between jobs seen so
  far, for the lowest long-run cost per second (renewal reward), subject to the wait objective.
"""

import math
from dataclasses import dataclass, field, replace

from knative.autoscaling.work import batch, error_budget
from knative.autoscaling.work.batch import BatchJob
from knative.autoscaling.work.error_budget import ErrorBudget, WaitObjective

# Prompt lengths are classed by powers of two.
_CLASSES = 18
# Lengths and rates follow the last so many observations.
_LENGTH_MEMORY = 200
_RATE_WINDOW_S = 60.0
# Gaps are classed in steps of a quarter; less than half a second is no gap.
_GAP_GROWTH = 1.25
_SHORTEST_GAP_S = 0.5
_GAP_CLASSES = 48
_GAP_MEMORY = 400.0
_FEWEST_GAPS = 8
# One cold start too many breaks a strict objective for good: scale to zero only on more evidence.
_FEWEST_GAPS_STRICT = 40
# Of the 5 % that p95 leaves, four fifths may be spent on cold starts.
_COLD_SHARE = 0.04
# Below this many replicas' worth of arriving work, work can be deferred; above, a replica must run.
_DEFERRABLE = 0.5
_NEVER = math.inf


@dataclass(frozen=True, slots=True)
class WorkSpec:
    """The engine's speed and the objective; times in seconds.

    `decode_tokens_per_s` is the rate of the whole batch at `slots` answers. 95 of 100 jobs may wait `p95_wait_s`,
    the others `longest_wait_s`. `margin_s` is subtracted from every slack, for polling delays. A batch job may wait
    `batch_wait_s`; 0: as long as any other.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    slots: int
    cold_start_s: float
    p95_wait_s: float
    min_replicas: int = 0
    max_replicas: int = 100
    max_utilisation: float = 0.85
    margin_s: float = 1.0
    first_guess_tokens: float = 200.0
    late_share: float = 0.05
    longest_wait_s: float = 900.0
    batch_wait_s: float = 0.0

    def work_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """The GPU-seconds of one job in a full batch."""
        reading = prompt_tokens / self.prefill_tokens_per_s
        return reading + output_tokens / self.decode_tokens_per_s

    @property
    def can_hide_cold_start(self) -> bool:
        """True when a job may wait through a whole cold start."""
        return self.p95_wait_s >= self.cold_start_s

    @property
    def lead_s(self) -> float:
        """How long before a job's limit a replica must be requested."""
        return self.cold_start_s + self.margin_s

    @property
    def objective(self) -> WaitObjective:
        """What the jobs allow."""
        return WaitObjective(self.p95_wait_s, self.longest_wait_s, self.late_share, self.lead_s)


@dataclass(frozen=True, slots=True)
class WorkState:
    """What was learnt: answer lengths by prompt class, the rate of arriving work, the gaps between jobs.

    `woken` replicas were requested and are not visible yet: a node that is being provisioned shows nothing, and the
    request must not be withdrawn meanwhile.
    """

    lengths: tuple[tuple[float, float], ...] = ((0.0, 0.0),) * _CLASSES
    work_rate: float = 0.0
    job_rate: float = 0.0
    rate_at: float = 0.0
    gaps: tuple[float, ...] = (0.0,) * _GAP_CLASSES
    jobs: float = 0.0
    idle_since: float | None = None
    less_since: float | None = None
    less_than: int = 0
    less_most: int = 0
    rose_at: float = -_NEVER
    woken: int = 0
    budget: ErrorBudget = field(default_factory=ErrorBudget)


@dataclass(frozen=True, slots=True)
class Observation:
    """The queue and the replicas at one moment.

    `waits_s` has the waiting jobs' waits, oldest first; `deadline_s` is how long the first job with a deadline can
    still wait. `batch` has the batch jobs that wait and are in neither.
    """

    waits_s: tuple[float, ...]
    queued_work_s: float
    running: int
    asked: int
    ready: int
    deadline_s: float = _NEVER
    batch: tuple[BatchJob, ...] = ()

    @property
    def queued(self) -> int:
        """The number of waiting jobs."""
        return len(self.waits_s)


def expected_output(spec: WorkSpec, state: WorkState, prompt_tokens: int) -> float:
    """The expected answer length: the mean of the prompt's class, or of all classes, or a first guess."""
    count, mean = state.lengths[_class_of(prompt_tokens)]
    if count >= 3:
        return mean
    total = sum(n for n, _ in state.lengths)
    if not total:
        return spec.first_guess_tokens
    return sum(n * m for n, m in state.lengths) / total


def batch_job(
    spec: WorkSpec, state: WorkState, prompt_tokens: int, wait_s: float, deadline_s: float
) -> BatchJob:
    """A waiting batch job, whose answer must be complete in `deadline_s`: it starts early enough for an answer of twice
    the expected length in a full batch.
    """
    output = expected_output(spec, state, prompt_tokens)
    answer_s = output * spec.slots / spec.decode_tokens_per_s
    left_s = min(spec.batch_wait_s - wait_s, deadline_s - 2 * answer_s)
    return BatchJob(spec.work_s(prompt_tokens, output), left_s)


def arrived(spec: WorkSpec, state: WorkState, prompt_tokens: int, now: float) -> WorkState:
    """The state after a job arrived; one of the batch lane counts only where `batch_wait_s` is 0."""
    work = spec.work_s(prompt_tokens, expected_output(spec, state, prompt_tokens))
    state = _decayed(state, now)
    state = replace(
        state,
        jobs=state.jobs + 1,
        work_rate=state.work_rate + work / _RATE_WINDOW_S,
        job_rate=state.job_rate + 1 / _RATE_WINDOW_S,
        budget=error_budget.credited(spec.objective, state.budget),
    )
    if state.idle_since is None:
        return state
    return _with_gap(replace(state, idle_since=None), now - state.idle_since)


def finished(
    spec: WorkSpec,
    state: WorkState,
    prompt_tokens: int,
    output_tokens: int,
    now: float,
    *,
    is_last: bool,
) -> WorkState:
    """The state after a job ended; `is_last` when no job runs or waits any more."""
    at = _class_of(prompt_tokens)
    count, mean = state.lengths[at]
    count = min(count + 1, _LENGTH_MEMORY)
    mean += (output_tokens - mean) / count
    lengths = (*state.lengths[:at], (count, mean), *state.lengths[at + 1 :])
    state = replace(state, lengths=lengths)
    if not is_last:
        return state
    return replace(state, idle_since=now)


def decide(
    spec: WorkSpec, state: WorkState, seen: Observation, now: float
) -> tuple[WorkState, int]:
    """The replicas to request at `now`, within the bounds."""
    linger = linger_s(spec, state)
    state = _decayed(state, now)
    budget = error_budget.debited(spec.objective, state.budget, seen.waits_s, now)
    is_seen = seen.asked > 0
    if not is_seen and (seen.queued or seen.batch):
        seen = replace(seen, asked=state.woken)
    if seen.asked == 0:
        budget, must_start = error_budget.must_start(spec.objective, budget, seen.waits_s)
        wanted = _woken(spec, state, seen, now, must_start=must_start)
        wanted = max(wanted, _for_batch(spec, state, seen))
        state = replace(state, less_since=None)
    else:
        wanted = max(
            _for_queue(spec, state, seen, now),
            _for_rate(spec, state),
            _for_running(spec, seen),
            _for_batch(spec, state, seen),
        )
        state, wanted = _held(spec, state, seen, wanted, linger, now)
    wanted = min(max(wanted, spec.min_replicas), spec.max_replicas)
    if wanted > seen.asked:
        state = replace(state, rose_at=now)
    state = replace(state, budget=budget, woken=0 if is_seen else wanted)
    return state, wanted


def linger_s(spec: WorkSpec, state: WorkState) -> float:
    """How long the last replica stays idle: the time with the lowest cost per second that keeps the wait objective.

    With p the share of gaps longer than the idle time and m the mean idle time, a cycle pays one cold start and m/p
    of idling, and gets the rest of a long gap and the slack for free.
    """
    total = sum(state.gaps)
    if total < _FEWEST_GAPS and spec.can_hide_cold_start:
        return 0.0
    if total < _FEWEST_GAPS_STRICT and not spec.can_hide_cold_start:
        return _NEVER
    slack = max(0.0, spec.p95_wait_s - spec.cold_start_s - spec.margin_s)
    best = cheapest = _NEVER
    for choice in range(_longest_seen(state) + 2):
        linger = 0.0 if choice == 0 else _gap_s(choice)
        # Half a gap longer than all seen ones is assumed, since the distribution may change.
        share = max(sum(state.gaps[choice:]), 0.5) / total if choice else 1.0
        if not spec.can_hide_cold_start and not _few_wait(spec, state, share, total):
            continue
        paid, free = _cycle(spec, state, choice, linger, share, total)
        rate = paid / (paid + free + slack)
        if rate < cheapest:
            best, cheapest = linger, rate
    return best


def _longest_seen(state: WorkState) -> int:
    return max(at for at, count in enumerate(state.gaps) if count > 0)


def _cycle(
    spec: WorkSpec, state: WorkState, choice: int, linger: float, share: float, total: float
) -> tuple[float, float]:
    """(paid seconds, free seconds) of one cycle from start to start."""
    waited = sum(count * _gap_s(at) for at, count in enumerate(state.gaps[:choice])) / total
    waited += share * linger
    beyond = sum(
        count * max(0.0, _gap_s(at) - linger) for at, count in enumerate(state.gaps) if at >= choice
    )
    return spec.cold_start_s + waited / share, beyond / (share * total)


def _few_wait(spec: WorkSpec, state: WorkState, share: float, total: float) -> bool:
    """True when few enough jobs meet a cold start: the first one, and all that arrive during it."""
    meet = 1 + state.job_rate * spec.cold_start_s
    jobs_in_cycle = state.jobs / total / share
    return meet / max(meet, jobs_in_cycle) <= _COLD_SHARE


def _woken(
    spec: WorkSpec, state: WorkState, seen: Observation, now: float, *, must_start: bool
) -> int:
    """At zero: none while every job can wait, then enough for all."""
    if not seen.queued:
        return 0
    is_urgent = must_start or seen.deadline_s <= spec.lead_s
    if not is_urgent and state.work_rate < _DEFERRABLE:
        return 0
    return max(1, _for_queue(spec, state, seen, now), _for_rate(spec, state))


def _for_queue(spec: WorkSpec, state: WorkState, seen: Observation, now: float) -> int:
    """The fewest replicas that start every waiting job within its limit, first come first served.

    One more replica helps only jobs that can wait for its cold start. Jobs that cannot count too, unless the
    existing replicas will have started them before a new one is ready.
    """
    more = 0
    for place, wait_s in enumerate(seen.waits_s, start=1):
        can_wait_s = spec.p95_wait_s - wait_s
        by_s = max(can_wait_s, spec.cold_start_s)
        short = place - _started(spec, state, seen, by_s, now)
        if short > 0:
            each_new = spec.slots + (by_s - spec.cold_start_s) / _each_s(spec, seen)
            more = max(more, math.ceil(short / each_new))
    return seen.asked + more if seen.queued else 0


def _started(
    spec: WorkSpec, state: WorkState, seen: Observation, within_s: float, now: float
) -> float:
    """How many waiting jobs the requested replicas start within a time.

    A replica starts as many at once as it has free slots, and then one every `_each_s`.
    """
    waking_s = max(0.0, spec.cold_start_s - (now - state.rose_at))
    waking = max(0, seen.asked - seen.ready)
    free = max(0, seen.ready * spec.slots - seen.running)
    started = free + seen.ready * within_s / _each_s(spec, seen)
    if within_s >= waking_s:
        started += waking * (spec.slots + (within_s - waking_s) / _each_s(spec, seen))
    return started


def _each_s(spec: WorkSpec, seen: Observation) -> float:
    """The seconds between two starts on a full replica, with something in flight."""
    return max(seen.queued_work_s / seen.queued / spec.max_utilisation, 1e-6)


def _for_rate(spec: WorkSpec, state: WorkState) -> int:
    """The replicas for the arriving work, once there is too much of it to defer."""
    if state.work_rate < _DEFERRABLE:
        return 0
    return math.ceil(state.work_rate / spec.max_utilisation)


def _for_batch(spec: WorkSpec, state: WorkState, seen: Observation) -> int:
    """The replicas that start every batch job in time, besides the work that keeps arriving."""
    if not seen.batch:
        return 0
    spare = max(0.0, seen.asked * spec.max_utilisation - state.work_rate)
    return seen.asked + batch.more_replicas(
        seen.batch, spare=spare, lead_s=spec.lead_s, max_utilisation=spec.max_utilisation
    )


def _for_running(spec: WorkSpec, seen: Observation) -> int:
    """The replicas that hold the running jobs: none is drained for lack of slots."""
    return math.ceil(seen.running / spec.slots)


def _held(
    spec: WorkSpec, state: WorkState, seen: Observation, wanted: int, linger: float, now: float
) -> tuple[WorkState, int]:
    """Scale down only after less was wanted for as long as idling costs a cold start."""
    if seen.asked > 1 and linger > spec.cold_start_s:
        wanted = max(
            wanted, 1
        )  # only the last replica stays for `linger_s`; the others for one cold start
    if wanted >= seen.asked:
        return replace(state, less_since=None), wanted
    since, most = state.less_since, max(wanted, state.less_most)
    if since is None or state.less_than != seen.asked:
        since, most = now, wanted
    state = replace(state, less_since=since, less_than=seen.asked, less_most=most)
    # The decision stays until it is followed, since it may be polled at long intervals.
    hold = linger if most == 0 else spec.cold_start_s
    return state, most if now - since >= hold else seen.asked


def _decayed(state: WorkState, now: float) -> WorkState:
    passed = now - state.rate_at
    if passed <= 0:
        return state
    keep = math.exp(-passed / _RATE_WINDOW_S)
    return replace(
        state, work_rate=state.work_rate * keep, job_rate=state.job_rate * keep, rate_at=now
    )


def _with_gap(state: WorkState, gap_s: float) -> WorkState:
    """The state with one more gap; old gaps fade, so that the distribution may change."""
    total = sum(state.gaps)
    fade = 1.0 if total < _GAP_MEMORY else _GAP_MEMORY / (total + 1)
    at = _gap_class(gap_s)
    gaps = tuple(count * fade + (i == at) for i, count in enumerate(state.gaps))
    return replace(state, gaps=gaps, jobs=state.jobs * fade)


def _gap_class(gap_s: float) -> int:
    if gap_s <= _SHORTEST_GAP_S:
        return 0
    at = math.ceil(math.log(gap_s / _SHORTEST_GAP_S) / math.log(_GAP_GROWTH))
    return min(_GAP_CLASSES - 1, at)


def _gap_s(at: int) -> float:
    """The upper edge of a class of gaps."""
    return _SHORTEST_GAP_S * _GAP_GROWTH**at


def _class_of(prompt_tokens: int) -> int:
    return min(_CLASSES - 1, max(0, prompt_tokens).bit_length())
