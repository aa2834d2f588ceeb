"""What an exact cache would save on a trace that says which prompts are equal."""

from dataclasses import replace
from pathlib import Path

import pytest

from torpor.simulator.candidate import fixed_candidate
from torpor.simulator.command import Settings, cache_note
from torpor.simulator.load import CacheSavings, Load
from torpor.simulator.trace import Trace

CSV = """time,prompt_tokens,output_tokens,prompt_hash
0,10,100,a
1,10,100,a
2,20,50,b
30,10,100,a
90,10,100,a
95,10,7,
96,10,7,
"""


def load_of(folder: Path, text: str, name: str = "trace.csv", hours: float | None = None) -> Load:
    path = folder / name
    path.write_text(text)
    return Load(Trace(path, hours=hours))


def test_equal_prompts_within_the_lifetime_are_answered_once(tmp_path: Path) -> None:
    load = load_of(tmp_path, CSV)
    assert load.savings(60) == CacheSavings(7, 2, 464, 200)
    assert load.savings(3600) == CacheSavings(7, 3, 464, 300)
    assert [r.at for r in replace(load, cache_ttl_s=60).requests()] == [0, 2, 90, 95, 96]


def test_a_trace_without_hashes_says_nothing_of_a_cache(tmp_path: Path) -> None:
    assert load_of(tmp_path, "time,prompt_tokens,output_tokens\n0,1,1\n1,1,1\n").savings(60) is None


def test_hashes_of_blocks_in_mooncakes_form_are_compared_as_a_whole(tmp_path: Path) -> None:
    rows = [
        '{"timestamp": 0, "input_length": 9, "output_length": 4, "hash_ids": [1, 2]}',
        '{"timestamp": 1000, "input_length": 9, "output_length": 4, "hash_ids": [1, 2]}',
        '{"timestamp": 2000, "input_length": 8, "output_length": 4, "hash_ids": [1, 2]}',
        '{"timestamp": 3000, "input_length": 9, "output_length": 4, "hash_ids": [1, 3]}',
    ]
    assert load_of(tmp_path, "\n".join(rows), "trace.jsonl").savings(60) == CacheSavings(
        4, 1, 16, 4
    )


@pytest.mark.parametrize("hours", [0.1])
def test_a_repeated_trace_asks_for_other_things(tmp_path: Path, hours: float) -> None:
    savings = load_of(tmp_path, CSV, hours=hours).savings(3600)
    assert savings is not None
    assert savings.hits == 3 * (savings.requests // 7) + 1


def test_the_note_of_a_plan_says_requests_tokens_and_cost(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(CSV)
    settings = Settings(trace=path, tail_s=10)
    note = cache_note(settings, fixed_candidate(1), 1.0, 3600)
    assert note.startswith("an exact cache answers 3 of 7 requests (42.9 %) and saves 300 output")
    assert "cost 1.000 becomes" in note
