"""A batching inference engine as speeds: prefill one prompt at a time, decode all answers together.

Called by the world (`world.py`), one `SimulatedReplica` a predictor. It must not know queues, policies or nodes.

All answers of a batch get the same share of the engine, so each replica keeps one count of tokens "per answer"
(`_tokens`); an answer ends when that count has grown by its length. Joining and leaving cost O(log batch) and no
answer is touched in between.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class EngineModel:
    """Speeds of one predictor.

    `decode` are (batch size, tokens a second of the whole batch), linear in between; `max_batch` is how many
    answers it works on at once. While a prompt is read, answers go on at `decode_during_prefill` of their speed.
    """

    prefill_tokens_per_s: float
    decode: tuple[tuple[int, float], ...]
    max_batch: int
    decode_during_prefill: float = 0.5
    source: str = ""

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.decode]
        if not sizes or sizes[0] != 1 or sizes != sorted(set(sizes)):
            raise ValueError(f"decode needs rising batch sizes that begin with 1, got {sizes}")
        if min(rate for _, rate in self.decode) <= 0 or self.prefill_tokens_per_s <= 0:
            raise ValueError("speeds must be above 0")
        if self.max_batch < 1 or not 0 < self.decode_during_prefill <= 1:
            raise ValueError("max_batch must be at least 1 and decode_during_prefill in (0, 1]")

    def batch_rate(self, batch: int) -> float:
        """Tokens a second of a whole batch; beyond the last measured size it grows no more."""
        before = self.decode[0]
        for size, rate in self.decode:
            if batch == size:
                return rate
            if batch < size:
                share = (batch - before[0]) / (size - before[0])
                return before[1] + share * (rate - before[1])
            before = (size, rate)
        return before[1]

    def alone_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """How long one request takes with the engine to itself."""
        decoding = max(0, output_tokens - 1) / self.batch_rate(1)
        return prompt_tokens / self.prefill_tokens_per_s + decoding

    def work_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """The engine's share that one request takes in a full batch: GPU-seconds of work."""
        best = max(self.batch_rate(size) for size in range(1, self.max_batch + 1))
        return prompt_tokens / self.prefill_tokens_per_s + output_tokens / best


# From the measurements on two CPU threads that the design folder records: float32, eager.
CPU_SMALL = EngineModel(
    450.0, ((1, 17.0), (4, 77.0), (16, 188.0)), max_batch=16, source="measured on 2 CPU threads"
)
# An assumption to plan with until `--engine` says better: an 8B model on one large GPU.
GPU_ASSUMED = EngineModel(
    20_000.0,
    ((1, 100.0), (8, 700.0), (32, 2200.0), (64, 3500.0)),
    max_batch=64,
    source="assumed, not measured: 8B model, one large GPU",
)
ENGINES = {"cpu-small": CPU_SMALL, "gpu-assumed": GPU_ASSUMED}


@dataclass(slots=True)
class SimulatedJob:
    """One request on its way; times in seconds, `None` until it happened.

    `remaining` are the output tokens still to make: a job that was handed over keeps the others. A batch job's answer
    must be complete at `void_at`.
    """

    id: int
    arrived: float
    prompt_tokens: int
    output_tokens: int
    remaining: int
    started: float | None = None
    first_token: float | None = None
    attempts: int = 0
    finish_at: float = 0.0
    void_at: float | None = None


@dataclass(slots=True)
class SimulatedReplica:
    """One predictor's engine; the caller advances it before it asks or changes anything."""

    id: int
    rates: Sequence[float]
    prefill_tokens_per_s: float
    decode_during_prefill: float
    slots: int
    busy_s: float = 0.0
    version: int = 0
    _now: float = 0.0
    _tokens: float = 0.0
    _decoding: list[tuple[float, int, SimulatedJob]] = field(default_factory=list)
    _prompts: deque[SimulatedJob] = field(default_factory=deque)
    _prompt_left: float = 0.0

    @property
    def running(self) -> int:
        """How many jobs it works on."""
        return len(self._decoding) + len(self._prompts)

    @property
    def is_full(self) -> bool:
        """Whether it can take no more."""
        return len(self._decoding) + len(self._prompts) >= self.slots

    def advance(self, now: float) -> None:
        """Work until `now`; no job may end or begin to decode on the way (see `next_change`)."""
        passed = now - self._now
        self._now = now
        if passed <= 0:
            return
        decoding = len(self._decoding)
        if self._prompts:
            self._prompt_left -= passed * self.prefill_tokens_per_s
            self.busy_s += passed
            passed *= self.decode_during_prefill
        elif decoding:
            self.busy_s += passed
        if decoding:
            self._tokens += passed * self.rates[decoding] / decoding

    def take(self, job: SimulatedJob, now: float) -> None:
        """Begin a job; advance first. A resumed job reads its prompt and its own tokens again."""
        if not self.running:
            self._now = now
        self._prompts.append(job)
        if len(self._prompts) == 1:
            self._prompt_left = self._prompt_of(job)

    def next_change(self) -> float:
        """When the next job ends or has read its prompt, if nothing else happens."""
        soonest = NEVER
        slow = 1.0
        if self._prompts:
            soonest = self._now + max(0.0, self._prompt_left) / self.prefill_tokens_per_s
            slow = self.decode_during_prefill
        decoding = len(self._decoding)
        if decoding:
            left = self._decoding[0][0] - self._tokens
            rate = self.rates[decoding] * slow / decoding
            soonest = min(soonest, self._now + max(0.0, left) / rate)
        return soonest

    def settle(self, now: float) -> list[SimulatedJob]:
        """The jobs that end at `now`; prompts that were read begin to decode. Advance first."""
        ended: list[SimulatedJob] = []
        # Half a thousandth of a token: what floating point leaves over after a long advance.
        while self._decoding and self._decoding[0][0] - self._tokens <= 5e-4:
            ended.append(heapq.heappop(self._decoding)[2])
        if not self._decoding:
            self._tokens = 0.0
        while self._prompts and self._prompt_left <= 5e-4:
            job = self._prompts.popleft()
            if self._prompts:
                self._prompt_left = self._prompt_of(self._prompts[0])
            if job.first_token is None:
                job.first_token = now
            job.remaining -= 1
            if job.remaining <= 0:
                ended.append(job)
            else:
                job.finish_at = self._tokens + job.remaining
                heapq.heappush(self._decoding, (job.finish_at, job.id, job))
        return ended

    def hand_over(self, *, does_resume: bool) -> list[SimulatedJob]:
        """Everything it works on, oldest first; without `does_resume` an answer starts over."""
        jobs = [*self._prompts, *(job for _, _, job in self._decoding)]
        for _, _, job in self._decoding:
            left = job.finish_at - self._tokens
            job.remaining = max(1, min(job.remaining, -int(-left // 1)))
        self._prompts.clear()
        self._decoding.clear()
        if not does_resume:
            for job in jobs:
                job.remaining = job.output_tokens
        return sorted(jobs, key=lambda job: job.id)

    def _prompt_of(self, job: SimulatedJob) -> float:
        return float(job.prompt_tokens + job.output_tokens - job.remaining)


def rates_of(model: EngineModel, slots: int) -> tuple[float, ...]:
    """The batch rate for every number of answers up to `slots`, ready to look up."""
    return (0.0, *(model.batch_rate(size) for size in range(1, slots + 1)))
