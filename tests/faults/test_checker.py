"""The checker itself: for each invariant a history that violates it, and one that does not."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventing.job.job import JobId, JobState
from eventing.job.stream import EntryKind, StreamEntry
from tests.faults.checker import Rules, check
from tests.faults.dump import JobDump, StoreDump
from tests.faults.history import History, Kind, Line, read

JOB = JobId("job_" + "1" * 24)
OTHER = JobId("job_" + "2" * 24)
_cursors = count(1)


def entry(kind: EntryKind, attempt: int = 1, **fields: Any) -> StreamEntry:
    return StreamEntry(cursor=f"{next(_cursors)}-0", kind=kind, attempt=attempt, **fields)


def started(attempt: int = 1, index: int = 0) -> StreamEntry:
    return entry(EntryKind.ATTEMPT, attempt, index=index)


def tokens(index: int, *ids: int, attempt: int = 1, text: str = "") -> StreamEntry:
    delta = orjson.dumps([{"index": 0, "delta": {"content": text}}]).decode() if text else ""
    return entry(EntryKind.TOKENS, attempt, index=index, token_ids=ids, delta=delta)


def ended(state: JobState = JobState.COMPLETED, attempt: int = 1) -> StreamEntry:
    return entry(EntryKind.STATE, attempt, state=state)


GOOD = JobDump(
    state="completed",
    attempts=("completed",),
    result_text="to be",
    entries=(
        started(),
        tokens(0, 1, 2, text="to "),
        tokens(2, 3, text="be"),
        ended(),
    ),
)
DEAD = JobDump(
    state="failed",
    attempts=("lost", "lost", "lost"),
    reason="exhausted",
    is_dead_letter=True,
    entries=(started(1), started(2), started(3), ended(JobState.FAILED, 3)),
)
HISTORY = (
    ("invoke", "submit", {"call": "c1"}),
    ("ok", "submit", {"call": "c1", "job_id": JOB, "key": "k", "body": "b", "webhook": True}),
    ("seen", "state", {"job_id": JOB, "state": "completed"}),
    ("seen", "webhook", {"job_id": JOB, "webhook_id": "w", "is_valid": True}),
)


def lines(*events: tuple[str, str, dict[str, Any]]) -> Iterator[Line]:
    for at_s, (kind, operation, fields) in enumerate(events):
        yield Line(kind=Kind(kind), operation=operation, at_s=at_s / 100, fields=fields)


def store(*, job: JobDump = GOOD, **changes: Any) -> StoreDump:
    dead = frozenset({JOB}) if job.is_dead_letter else frozenset()
    return StoreDump(**({"jobs": {JOB: job}, "dead_letters": dead} | changes))


def broken(found: list[Any]) -> set[str]:
    return {violation.invariant for violation in found}


def test_a_good_history_breaks_nothing() -> None:
    assert check(lines(*HISTORY), store()) == []


def test_a_poison_job_that_is_a_dead_letter_breaks_nothing() -> None:
    accepted = ("ok", "submit", {"job_id": JOB, "is_poison": True})

    assert check(lines(accepted), store(job=DEAD)) == []


def test_a_hand_over_and_a_restart_break_nothing() -> None:
    resumed = replace(
        GOOD,
        attempts=("handover", "handover", "handover", "lost", "completed"),
        entries=(
            started(1),
            tokens(0, 1, 2, text="to "),
            started(2, 2),
            tokens(2, 9, text="see", attempt=2),
            started(3, 0),
            tokens(0, 1, 2, 3, text="to be", attempt=3),
            ended(attempt=3),
        ),
    )

    assert check(lines(*HISTORY), store(job=resumed)) == []


BAD_JOBS = {
    "I1 never ended": ("I1", replace(GOOD, state="in_progress", entries=GOOD.entries[:3])),
    "I2 other end than seen": ("I2", replace(GOOD, state="cancelled")),
    "I2 a record that ended in another way than its stream": (
        "I2",
        replace(GOOD, entries=(*GOOD.entries[:3], ended(JobState.CANCELLED))),
    ),
    "I2 a stream that ended before its record": ("I2", replace(GOOD, state="in_progress")),
    "I12 an end that nobody is told": ("I12", replace(GOOD, is_told=False)),
    "I3 two ends": ("I3", replace(GOOD, entries=(*GOOD.entries, ended()))),
    "I3 run after its end": ("I3", replace(GOOD, entries=(*GOOD.entries, started(2, 3)))),
    "I3 too many runs": ("I3", replace(GOOD, attempts=("lost",) * 3 + ("completed",))),
    "I4 a gap": ("I4", replace(GOOD, entries=(started(), tokens(0, 1), tokens(2, 3), ended()))),
    "I4 a repeat": ("I4", replace(GOOD, entries=(started(), tokens(0, 1), tokens(0, 1)))),
    "I4 unannounced attempt": (
        "I4",
        replace(GOOD, entries=(started(), tokens(0, 1), tokens(1, 2, attempt=2), ended())),
    ),
    "I4 resumes elsewhere": (
        "I4",
        replace(GOOD, entries=(started(), tokens(0, 1, 2), started(2, 1), ended(attempt=2))),
    ),
    "I4 other text": ("I4", replace(GOOD, result_text="or not")),
    "I5 no reason": ("I5", replace(DEAD, reason="")),
    "I5 no event": ("I5", replace(DEAD, is_request_kept=False)),
    "I5 healthy and dead": ("I5", DEAD),
    "I6 an older attempt wrote": (
        "I6",
        replace(GOOD, entries=(started(1), started(2), tokens(0, 1, attempt=1), ended())),
    ),
}


@pytest.mark.parametrize(("invariant", "job"), BAD_JOBS.values(), ids=BAD_JOBS.keys())
def test_a_bad_job_is_flagged(invariant: str, job: JobDump) -> None:
    assert invariant in broken(check(lines(*HISTORY), store(job=job)))


POISON = ("ok", "submit", {"job_id": JOB, "is_poison": True})
ZOMBIE = ("fault", "zombie write", {"job_id": JOB})
DOWN, UP = ("fault", "down", {"what": "redis"}), ("fault", "up", {"what": "redis"})
ASKED = ("invoke", "submit", {"call": "c2"})
WAITED: list[tuple[str, str, dict[str, Any]]] = [("seen", "nothing", {})] * 300
BAD_HISTORIES = {
    "I1 gone": ("I1", [("ok", "submit", {"job_id": OTHER})]),
    "I2 two ends seen": ("I2", [*HISTORY, ("seen", "state", {"job_id": JOB, "state": "failed"})]),
    "I2 the cancel said otherwise": (
        "I2",
        [*HISTORY, ("ok", "cancel", {"job_id": JOB, "state": "cancelled"})],
    ),
    "I3 deleted and there": ("I3", [*HISTORY, ("ok", "delete", {"job_id": JOB})]),
    "I4 a whole stream of another text": (
        "I4",
        [*HISTORY, ("seen", "whole stream", {"job_id": JOB, "text": "to"})],
    ),
    "I5 poison that is no dead letter": ("I5", [POISON]),
    "I6 a zombie that nobody counted": ("I6", [*HISTORY, ZOMBIE]),
    "I7 two jobs of a key": ("I7", [*HISTORY, ("ok", "submit", {"job_id": OTHER, "key": "k"})]),
    "I7 two bodies of a key": (
        "I7",
        [*HISTORY, ("ok", "submit", {"job_id": JOB, "key": "k", "body": "other"})],
    ),
    "I8 accepted without a store": (
        "I8",
        [DOWN, ASKED, ("ok", "submit", {"call": "c2", "job_id": JOB})],
    ),
    "I8 a hang": ("I8", [DOWN, ASKED, *WAITED, ("fail", "submit", {"call": "c2", "status": 503})]),
    "I8 no Retry-After": ("I8", [ASKED, ("fail", "submit", {"call": "c2", "status": 503})]),
    "I10 two ids": ("I10", [*HISTORY, ("seen", "webhook", {"job_id": JOB, "webhook_id": "x"})]),
    "I10 wrong signature": (
        "I10",
        [*HISTORY, ("seen", "webhook", {"job_id": JOB, "webhook_id": "w", "is_valid": False})],
    ),
    "I10 refused address": (
        "I10",
        [("seen", "webhook", {"job_id": JOB, "webhook_id": "w", "is_refused_address": True})],
    ),
    "I10 none came": ("I10", HISTORY[:3]),
    "I11 canary": ("I11", [("seen", "canary", {"where": "api.log"})]),
}


@pytest.mark.parametrize(("invariant", "events"), BAD_HISTORIES.values(), ids=BAD_HISTORIES.keys())
def test_a_bad_history_is_flagged(
    invariant: str, events: list[tuple[str, str, dict[str, Any]]]
) -> None:
    assert invariant in broken(check(lines(*events), store()))


BAD_STORES = {
    "I5 in no list": ("I5", store(job=DEAD, dead_letters=frozenset())),
    "I5 listed and not dead": ("I5", store(dead_letters=frozenset({JOB}))),
    "I9 a lease": ("I9", store(leases=1)),
    "I9 pending": ("I9", store(pending=1)),
    "I9 waiting": ("I9", store(waiting=1)),
    "I9 an immortal key": ("I9", store(immortal_keys=frozenset({"torpor:x"}))),
}


@pytest.mark.parametrize(("invariant", "dump"), BAD_STORES.values(), ids=BAD_STORES.keys())
def test_a_bad_store_is_flagged(invariant: str, dump: StoreDump) -> None:
    assert invariant in broken(check(lines(*HISTORY), dump))


def test_each_invariant_has_a_bad_history() -> None:
    covered = {name for name, _ in [*BAD_JOBS.values(), *BAD_HISTORIES.values()]}
    covered |= {name for name, _ in BAD_STORES.values()}

    assert covered == {f"I{number}" for number in range(1, 13)}


def test_a_submit_before_the_fault_may_be_accepted() -> None:
    events = [ASKED, DOWN, ("ok", "submit", {"call": "c2", "job_id": JOB})]

    assert check(lines(*events), store()) == []


def test_a_submit_after_the_healing_may_be_accepted() -> None:
    events = [DOWN, UP, ASKED, ("ok", "submit", {"call": "c2", "job_id": JOB})]

    assert check(lines(*events), store()) == []


def test_a_redriven_job_may_end_otherwise() -> None:
    failed = ("seen", "state", {"job_id": JOB, "state": "failed"})
    redriven = ("ok", "redrive", {"job_id": JOB})

    assert check(lines(failed, redriven, *HISTORY), store()) == []


def test_the_checker_allows_what_a_power_cut_may_lose() -> None:
    events = [("ok", "submit", {"job_id": OTHER, "key": "late"})]

    assert check(lines(*events), store(), Rules(lost_by_design=frozenset({"late"}))) == []


def test_what_a_failover_may_take_is_no_loss_and_no_second_end() -> None:
    cancelled = ("seen", "state", {"job_id": JOB, "state": "cancelled"})
    events = [cancelled, ("ok", "submit", {"job_id": OTHER}), *WAITED, *HISTORY]

    assert check(lines(*events), store(), Rules(lost_s=((0.0, 0.05),))) == []
    assert broken(check(lines(*events), store(), Rules(lost_s=((3.5, 4.0),)))) == {"I1", "I2"}


def test_a_deleted_job_is_no_loss() -> None:
    events = [*HISTORY, ("ok", "delete", {"job_id": JOB})]

    assert check(lines(*events), store(jobs={})) == []


def test_a_history_survives_the_crash_of_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, now_s=lambda: 1.0)
    history.add(Kind.INVOKE, "submit", call="c1")
    with path.open("ab") as file:
        file.write(b'{"kind": "ok", "oper')

    assert read(path) == list(history)
