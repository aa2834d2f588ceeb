"""The checker: a pure function from a history and a dump to the violated invariants.

Called after every fault run. `test_checker.py` has a history for each invariant that violates it. The invariants
are those of docs/reliability.md.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from eventing.job.job import JobId
from eventing.job.stream import EntryKind
from tests.faults.dump import JobDump, StoreDump, shown_text
from tests.faults.history import Kind, Line

_TERMINAL: Final = ("completed", "failed", "cancelled", "incomplete")
_NOT_RUN: Final = ("handover",)
"""Outcomes of attempts that cost a job nothing."""
FAIL_CLOSED_S: Final = 2.0
_BUSY_MACHINE_S: Final = 1.0
"""What a client may wait beyond it for a core: 2.3 s were seen with twelve processes a core."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept, by its number."""

    invariant: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a run was set up with."""

    max_attempts: int = 3
    is_drained: bool = True
    may_lose_tail: bool = False
    """The store may have lost its last second: tokens that a reader saw, and the result has, can
    be missing in the stream.
    """
    lost_by_design: frozenset[str] = frozenset()
    """Idempotency keys whose 202 a power cut may take back, if their client asks again; it may then
    get another job.
    """
    lost_s: tuple[tuple[float, float], ...] = ()
    """From when until when answers may have told of what a failover to a lagging replica took back."""

    def may_be_lost(self, line: Line) -> bool:
        return any(since <= line.at_s <= until for since, until in self.lost_s)


def check(history: Iterable[Line], store: StoreDump, rules: Rules | None = None) -> list[Violation]:
    """Everything that was promised and not kept; empty when all was."""
    lines = list(history)
    rules = rules or Rules()
    return [violation for judge in _JUDGES for violation in judge(lines, store, rules)]


def _accepted(lines: Sequence[Line]) -> Iterator[Line]:
    for line in lines:
        if line.operation == "submit" and line.kind is Kind.OK:
            yield line


def _deleted(lines: Sequence[Line]) -> set[str]:
    """Jobs that were deleted, or may have been."""
    return {line.fields["job_id"] for line in lines if line.operation == "delete"}


def _no_loss(lines: Sequence[Line], store: StoreDump, rules: Rules) -> Iterator[Violation]:
    deleted = _deleted(lines)
    for line in _accepted(lines):
        job_id = line.fields["job_id"]
        job = store.jobs.get(job_id)
        if job_id in deleted or rules.may_be_lost(line):
            continue
        if job is None and line.fields.get("key") not in rules.lost_by_design:
            yield Violation("I1", f"{job_id} was accepted and is gone")
        if job is not None and rules.is_drained and job.state not in _TERMINAL:
            yield Violation("I1", f"{job_id} was accepted and is still {job.state}")


def _one_end(lines: Sequence[Line], store: StoreDump, rules: Rules) -> Iterator[Violation]:
    seen: dict[str, str] = {}
    for line in lines:
        if rules.may_be_lost(line):
            continue
        if line.operation == "redrive" and line.kind is Kind.OK:
            seen.pop(line.fields["job_id"], None)
        state = line.fields.get("state", "")
        if line.kind not in (Kind.OK, Kind.SEEN) or state not in _TERMINAL:
            continue
        job_id = line.fields["job_id"]
        if seen.setdefault(job_id, state) != state:
            yield Violation("I2", f"{job_id} was {seen[job_id]} and became {state}")
    for job_id, state in seen.items():
        job = store.jobs.get(JobId(job_id))
        if job is not None and job.state != state:
            yield Violation("I2", f"{job_id} was seen {state} and is {job.state}")


def _whole_transitions(_: Sequence[Line], store: StoreDump, __: Rules) -> Iterator[Violation]:
    """A transition is one script, so a record and its stream say the same, and an end is told."""
    for job_id, job in store.jobs.items():
        states = [entry.state for entry in job.entries if entry.kind is EntryKind.STATE]
        last = states[-1] if states else "queued"
        if job.state in _TERMINAL and last != job.state:
            yield Violation("I2", f"{job_id} is {job.state} and its stream says {last}")
        if job.state not in _TERMINAL and last in _TERMINAL:
            yield Violation("I2", f"{job_id} is {job.state} and its stream says {last}")
        if job.state in _TERMINAL and not job.is_told:
            yield Violation("I12", f"{job_id} is {job.state} and nobody is told")


def _one_effect(lines: Sequence[Line], store: StoreDump, rules: Rules) -> Iterator[Violation]:
    for line in lines:
        if line.operation != "delete" or line.kind is not Kind.OK or rules.may_be_lost(line):
            continue
        if line.fields["job_id"] in store.jobs.keys() | store.orphan_streams:
            yield Violation("I3", f"{line.fields['job_id']} was deleted and lives again")
    for job_id, job in store.jobs.items():
        ends = 0
        for entry in job.entries:
            if entry.kind is EntryKind.STATE:
                ends = ends + 1 if entry.state in _TERMINAL else 0
            elif ends:
                yield Violation("I3", f"{job_id} was run after its end")
        if ends > 1:
            yield Violation("I3", f"{job_id} ended {ends} times")
        runs = sum(outcome not in _NOT_RUN for outcome in _last_life(job))
        if runs > rules.max_attempts:
            yield Violation("I3", f"{job_id} was run {runs} times of {rules.max_attempts}")


def _last_life(job: JobDump) -> tuple[str, ...]:
    """Attempts since the last redrive, which gives them back."""
    lives = sum(e.kind is EntryKind.STATE and e.state == "failed" for e in job.entries[:-1])
    return job.attempts if not lives else ()


def _whole_streams(lines: Sequence[Line], store: StoreDump, _: Rules) -> Iterator[Violation]:
    for line in lines:
        job = store.jobs.get(line.fields.get("job_id", ""))
        if line.operation != "whole stream" or job is None or job.state != "completed":
            continue
        if line.fields["text"] != job.result_text:
            yield Violation("I4", f"{line.fields['job_id']}: a whole stream had another text")


def _tokens(_: Sequence[Line], store: StoreDump, rules: Rules) -> Iterator[Violation]:
    for job_id, job in store.jobs.items():
        expected, attempt = 0, 0
        for entry in job.entries:
            if entry.kind is EntryKind.ATTEMPT:
                if entry.index not in (expected, 0):
                    yield Violation("I4", f"{job_id} goes on at {entry.index}, not {expected}")
                expected, attempt = entry.index, entry.attempt
            elif entry.kind is EntryKind.TOKENS:
                if entry.attempt != attempt:
                    yield Violation("I4", f"{job_id} has tokens of an unannounced attempt")
                if entry.index != expected:
                    yield Violation("I4", f"{job_id} has token {entry.index}, not {expected}")
                expected = entry.index + len(entry.token_ids)
        if job.result_text is None or rules.may_lose_tail:
            continue
        if shown_text(job.entries) != job.result_text:
            yield Violation("I4", f"{job_id} showed another text than it stored")


def _dead_letters(lines: Sequence[Line], store: StoreDump, rules: Rules) -> Iterator[Violation]:
    dead = {job_id for job_id, job in store.jobs.items() if job.is_dead_letter}
    for job_id in dead - store.dead_letters:
        yield Violation("I5", f"{job_id} is a dead letter that no list knows")
    for job_id in store.dead_letters - dead:
        yield Violation("I5", f"{job_id} is listed as a dead letter and is none")
    for job_id in dead:
        job = store.jobs[job_id]
        if not job.reason or not job.is_request_kept:
            yield Violation("I5", f"{job_id} is a dead letter without its reason or its event")
    mended = {line.fields["job_id"] for line in lines if line.fields.get("is_mended")}
    poison = {line.fields["job_id"] for line in _accepted(lines) if line.fields.get("is_poison")}
    mended &= poison
    for job_id in poison - mended - dead if rules.is_drained else ():
        yield Violation("I5", f"{job_id} can never run and is no dead letter")
    healthy = {line.fields["job_id"] for line in _accepted(lines)} - poison
    for job_id in healthy & dead:
        yield Violation("I5", f"{job_id} was healthy and is a dead letter: {store.jobs[job_id]}")


def _fencing(lines: Sequence[Line], store: StoreDump, _: Rules) -> Iterator[Violation]:
    for job_id, job in store.jobs.items():
        newest = 0
        for entry in job.entries:
            if entry.attempt < newest:
                yield Violation("I6", f"{job_id} took a write of attempt {entry.attempt}")
            newest = max(newest, entry.attempt)
    zombies = {line.fields["job_id"] for line in lines if line.operation == "zombie write"}
    for job_id in zombies & store.jobs.keys():
        if not store.jobs[job_id].refused_writes:
            yield Violation("I6", f"{job_id} had a zombie, and no refused write was counted")


def _idempotent(lines: Sequence[Line], _: StoreDump, rules: Rules) -> Iterator[Violation]:
    by_key: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for line in _accepted(lines):
        if rules.may_be_lost(line):
            continue
        if key := line.fields.get("key"):
            by_key[key].add((line.fields["job_id"], line.fields.get("body", "")))
    for key, found in by_key.items():
        if len({job_id for job_id, _ in found}) > 1 and key not in rules.lost_by_design:
            yield Violation("I7", f"key {key} gave {len(found)} jobs")
        if len({body for _, body in found}) > 1:
            yield Violation("I7", f"key {key} was taken with two bodies")


def _fail_closed(lines: Sequence[Line], _: StoreDump, __: Rules) -> Iterator[Violation]:
    began: dict[str, float] = {}
    down_since: dict[str, float] = {}
    for line in lines:
        what = line.fields.get("what", "")
        if line.kind is Kind.FAULT:
            if line.operation == "down":
                down_since[what] = line.at_s
            elif line.operation == "up":
                down_since.pop(what, None)
        if line.operation != "submit":
            continue
        call = line.fields.get("call", "")
        if line.kind is Kind.INVOKE:
            began[call] = line.at_s
            continue
        began_s = began.get(call, line.at_s)
        if line.at_s - began_s > FAIL_CLOSED_S + _BUSY_MACHINE_S and down_since:
            yield Violation("I8", f"submit {call} took {line.at_s - began_s:.1f} s")
        if line.kind is Kind.OK and any(began_s > since for since in down_since.values()):
            yield Violation("I8", f"submit {call} was accepted with {set(down_since)} down")
        if line.fields.get("status") == 503 and not line.fields.get("retry_after"):
            yield Violation("I8", f"submit {call} got a 503 without Retry-After")


def _bounded(_: Sequence[Line], store: StoreDump, rules: Rules) -> Iterator[Violation]:
    if not rules.is_drained:
        return
    for name in ("leases", "pending", "waiting"):
        if left := getattr(store, name):
            yield Violation("I9", f"{left} {name} after the drain")
    for key in store.immortal_keys:
        yield Violation("I9", f"{key} lives for ever")


def _webhooks(lines: Sequence[Line], store: StoreDump, rules: Rules) -> Iterator[Violation]:
    ids: dict[str, set[str]] = defaultdict(set)
    lives: Counter[str] = Counter()
    for line in lines:
        if line.operation == "redrive" and line.kind is not Kind.FAIL:
            lives[line.fields["job_id"]] += 1
        if line.operation != "webhook":
            continue
        ids[line.fields["job_id"]].add(line.fields["webhook_id"])
        if not line.fields.get("is_valid", True):
            yield Violation("I10", f"webhook of {line.fields['job_id']} has a wrong signature")
        if line.fields.get("is_refused_address"):
            yield Violation("I10", f"webhook of {line.fields['job_id']} went where none may go")
    for job_id, found in ids.items():
        # An end that a failover took back may come again, of another attempt.
        if len(found) > 1 + lives[job_id] + len(rules.lost_s):
            yield Violation("I10", f"webhooks of {job_id} have {len(found)} ids")
    for line in _accepted(lines):
        job = store.jobs.get(line.fields["job_id"])
        ended = job is not None and job.state in _TERMINAL and rules.is_drained
        if line.fields.get("webhook") and ended and line.fields["job_id"] not in ids:
            yield Violation("I10", f"{line.fields['job_id']} ended and no webhook came")


def _silence(lines: Sequence[Line], _: StoreDump, __: Rules) -> Iterator[Violation]:
    for line in lines:
        if line.operation == "canary":
            yield Violation("I11", f"a canary was found in {line.fields['where']}")


_JUDGES: Final[tuple[Callable[[Sequence[Line], StoreDump, Rules], Iterator[Violation]], ...]] = (
    _no_loss,
    _one_end,
    _whole_transitions,
    _one_effect,
    _tokens,
    _whole_streams,
    _dead_letters,
    _fencing,
    _idempotent,
    _fail_closed,
    _bounded,
    _webhooks,
    _silence,
)


def summary(violations: Sequence[Violation]) -> str:
    """The violations by number, for a failing test's message."""
    counts = Counter(violation.invariant for violation in violations)
    return f"{dict(counts)}: " + "; ".join(v.what for v in violations[:5])
