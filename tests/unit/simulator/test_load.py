"""Traces and profiles give the same requests every time, and say what is wrong with a file."""

from itertools import pairwise
from pathlib import Path

import pytest

from torpor.simulator.load import Load
from torpor.simulator.trace import Trace, TraceError, read_trace, span_s
from torpor.simulator.workload import Profile, ProfileKind, Request, arrivals

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ROWS = AZURE + "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109"
SHARED = Path(__file__).parents[4] / "shared" / "traces" / "azure_llm_2023_conv.csv"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode())
    return path


def test_an_azure_trace_is_read_as_published(tmp_path: Path) -> None:
    requests = list(read_trace(Trace(written(tmp_path, ROWS))))
    assert requests == [Request(0.0, 374, 44), Request(pytest.approx(4.314579), 396, 109)]


def test_other_column_names_and_plain_seconds_do_too(tmp_path: Path) -> None:
    text = "output_tokens,time,prompt_tokens\n5,10.5,100\n6,12,200\n"
    requests = list(read_trace(Trace(written(tmp_path, text))))
    assert requests == [Request(0.0, 100, 5), Request(1.5, 200, 6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("a,b,c\n", "no column named one of timestamp"),
        (AZURE + "yesterday,1,2\n", ":2: "),
        (AZURE + "5,1\n", ":2: "),
        (AZURE + "5,1,2\n4,1,2\n", ":3: time goes back"),
    ],
    ids=["empty", "columns", "time", "short row", "order"],
)
def test_a_file_that_is_no_trace_says_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        list(read_trace(Trace(written(tmp_path, text))))


def test_a_repeated_trace_fills_its_hours_without_a_collision(tmp_path: Path) -> None:
    trace = Trace(written(tmp_path, ROWS), hours=0.01)
    times = [request.at for request in read_trace(trace)]
    assert span_s(trace) == 36
    assert times == sorted(times)
    assert len(times) == 9
    assert max(times) < 36


@pytest.mark.skipif(not SHARED.is_file(), reason="../shared/traces is not there")
@pytest.mark.parametrize(("share", "rows"), [(1, 19366), (100, 198), (200, 94), (400, 42)])
def test_thinning_keeps_the_rows_that_its_readme_counts(share: int, rows: int) -> None:
    assert sum(1 for _ in read_trace(Trace(SHARED, share=share))) == rows


@pytest.mark.parametrize("kind", list(ProfileKind))
def test_a_profile_comes_at_its_rate_and_twice_the_same(kind: ProfileKind) -> None:
    profile = Profile(kind, 4000, 0.5, 2.0)
    requests = list(arrivals(profile, seed=3))
    expected = {"steady": 0.5, "step": 1.0, "burst": 0.545, "ramp": 1.25, "black-friday": 1.055}
    assert requests == list(Load(profile, seed=3).requests())
    assert len(requests) / 4000 == pytest.approx(expected[kind], rel=0.12)
    assert all(a.at <= b.at for a, b in pairwise(requests))
