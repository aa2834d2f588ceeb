"""What keeping a predictor between the turns of tool loops costs, and what letting it sleep does."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from torpor.simulator.load import Load
from torpor.simulator.trace import Trace
from torpor.tool_loops import (
    Between,
    JobsError,
    asleep,
    expected,
    held,
    loop_notes,
    measured,
    read_jobs,
)


def turn(ended_s: float, *tools_s: float, prompt: int, answer: int = 100, **more: Any) -> Any:
    """A turn with a call of `web.fetch` for each time."""
    calls = [
        {
            "server": "web",
            "tool": "fetch",
            "sent_ms": int(1000 * ended_s),
            "ended_ms": int(1000 * (ended_s + each)),
            "approval_id": None,
        }
        for each in tools_s
    ]
    usage = {"prompt_tokens": prompt, "completion_tokens": answer}
    plain = {"read_tokens": None, "first_token_ms": None}
    return {"ended_ms": int(1000 * ended_s), "usage": usage, "calls": calls, **plain, **more}


def job(*turns: Any, cached: int = 0) -> Any:
    prompt = sum(each["usage"]["prompt_tokens"] for each in turns)
    details = {"cached_tokens": cached}
    usage = {"prompt_tokens": prompt, "prompt_tokens_details": details}
    return {"state": "completed", "usage": usage, "turns": list(turns)}


def test_each_way_between_turns_costs_what_its_formula_says() -> None:
    loop = job(
        turn(10, 2, prompt=1000),
        turn(20, 2, 4, prompt=1500),
        turn(90, 60, prompt=2000),
        turn(200, prompt=2500),
    )
    loops = measured([loop])

    assert [gap.tool_s for gap in loops.gaps] == [2, 4, 60]
    assert [gap.again_tokens for gap in loops.gaps] == [1100, 1600, 2100]
    assert loops.tools_s == {"web.fetch": 3}
    assert held(loops) == Between(66, 0)
    waking_s = 3 * 30 + 4800 / 100
    assert asleep(loops, 30, 100) == Between(waking_s, waking_s)
    # The median is 3 s: each is waited for 6 s, and then the third wakes it.
    assert expected(loops, 30, 100) == Between(2 + 4 + 6 + 30 + 21, 30 + 21)


def test_a_tool_that_takes_long_is_waited_for_no_longer_than_waking_takes() -> None:
    loops = measured([job(turn(1, 600, prompt=900), turn(700, prompt=2000))])

    assert expected(loops, 10, 100) == Between(10 + 20 + 10 + 10, 10 + 10)


def test_a_turn_in_which_a_person_was_asked_is_left_out() -> None:
    asked = turn(1, 500, prompt=100)
    asked["calls"][0]["approval_id"] = "mcpr_1"

    assert measured([job(asked, turn(600, prompt=200))]).gaps == ()


def test_the_reading_speed_is_what_turns_with_long_prompts_measured() -> None:
    long = turn(1, 1, prompt=4000, read_tokens=3000, first_token_ms=500)
    short = turn(9, prompt=4100, read_tokens=12, first_token_ms=300)

    assert measured([job(long, short)]).tokens_per_s == 6000
    assert measured([job(short)]).tokens_per_s is None


def test_the_notes_say_cached_tokens_and_the_source_of_the_speed() -> None:
    loop = job(turn(1, 2, prompt=900), turn(5, prompt=1100), cached=1000)
    plain = {"state": "completed", "usage": {"prompt_tokens": 500}}

    cached, jobs, *ways = loop_notes(measured([loop, plain]), 30, 100, 3600)

    assert cached.startswith("cached: 1,000 of 2,500 prompt tokens (40.0 %)")
    assert "at 100 tokens/s (the engine's, as no turn says it)" in cached
    assert jobs.startswith("1 jobs with 2 turns, 2.0 s in tools")
    assert [each.partition(":")[0] for each in ways] == [
        "held through all tools",
        "asleep between all turns",
        "held as long as a tool is expected",
    ]
    assert "40.0 GPU-seconds between turns, cost 40.0000, a job 40.0 s later" in ways[1]
    assert loop_notes(measured([plain]), 30, 100, 1)[1] == "no job has a turn after tools"


@pytest.mark.parametrize("text", ["[1]", "{", '{"id": 1}'])
def test_a_file_that_has_no_jobs_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(f'\n{{"state": "queued"}}\n{text}\n')

    with pytest.raises(JobsError, match=r"jobs\.jsonl:3: "):
        read_jobs(path)


def test_prompts_that_begin_alike_are_counted_by_their_blocks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1000, "output_length": 1, "hash_ids": [1, 2]},
        {"timestamp": 10, "input_length": 1200, "output_length": 1, "hash_ids": [1, 2, 3]},
        {"timestamp": 20, "input_length": 900, "output_length": 1, "hash_ids": [4, 2]},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))

    assert Load(Trace(path)).cached_prefixes() == (800, 3100)
    repeated = Load(Trace(path, hours=0.059 / 3600)).cached_prefixes()
    assert repeated == (1600, 6200)  # a repetition asks for other things
    rows = [
        {name: row[name] for name in ("timestamp", "input_length", "output_length")} for row in rows
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert Load(Trace(path)).cached_prefixes() is None
