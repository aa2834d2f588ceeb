"""Traces as people have them: other publishers, other editors, and files that are none."""

from pathlib import Path

import pytest

from torpor.simulator.trace import Trace, TraceError, read_trace

AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.017335+00:00,2399,6
"""
BURST_GPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,230,1317,Conversation log
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46]}
"""
SEMICOLONS = "time;prompt_tokens;output_tokens\n0;10;2\n1.5;11;3\n"


def read(tmp_path: Path, content: str | bytes, name: str = "trace.csv") -> list[tuple[float, int]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(round(r.at, 3), r.prompt_tokens) for r in read_trace(Trace(path))]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (AZURE_2024, [(0.0, 2162), (1.007, 2399)]),
        (BURST_GPT, [(0.0, 472), (40.0, 1087)]),
        (MOONCAKE, [(0.0, 6955), (3.053, 6472)]),
        (SEMICOLONS, [(0.0, 10), (1.5, 11)]),
        (SEMICOLONS.replace(";", "\t"), [(0.0, 10), (1.5, 11)]),
        (b"\xef\xbb\xbf" + SEMICOLONS.encode(), [(0.0, 10), (1.5, 11)]),
        (SEMICOLONS.encode("utf-16"), [(0.0, 10), (1.5, 11)]),
        (SEMICOLONS.replace("\n", "\r\n"), [(0.0, 10), (1.5, 11)]),
        (SEMICOLONS.replace("1.5", "1,5"), [(0.0, 10), (1.5, 11)]),
        ("sep=;\n" + SEMICOLONS, [(0.0, 10), (1.5, 11)]),
        ("\n\n" + SEMICOLONS + ";;\n\n", [(0.0, 10), (1.5, 11)]),
        (SEMICOLONS.encode("utf-16-le"), [(0.0, 10), (1.5, 11)]),
    ],
    ids=[
        "Azure 2024",
        "BurstGPT",
        "Mooncake",
        ";",
        "tab",
        "BOM",
        "UTF-16",
        "CRLF",
        "decimal comma",
        "sep=",
        "empty rows",
        "no mark",
    ],
)
def test_a_trace_is_read_as_it_is_published(
    tmp_path: Path, content: str | bytes, expected: list[tuple[float, int]]
) -> None:
    assert read(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("time,prompt_tokens,output_tokens\n0,inf,1\n", ":2: 'inf' is no number of tokens"),
        ("time,prompt_tokens,output_tokens\nnan,1,1\n", ":2: 'nan' is no time"),
        ("time,prompt_tokens,output_tokens\n0,-1,1\n", ":2: '-1'"),
        ("time,prompt_tokens,output_tokens\n0,1\n", ":2: 2 cells, 3 in the first line"),
        ("when,how much\n0,1\n", "found when, how much"),
        ('{"timestamp": 1, "input_length": 2}\n', "found timestamp, input_length"),
        ("\ntime,prompt_tokens,output_tokens\n\n0,inf,1\n", ":4: 'inf'"),
        ("time,prompt_tokens,output_tokens\n0,1e300,1\n", "'1e300' is no number of tokens"),
        ("time;prompt_tokens;output_tokens\n0;1.234;1\n", "'1.234' is no number of tokens"),
        ("time,prompt_tokens,output_tokens\n0,,1\n", "'' is no number of tokens"),
        ("time,prompt_tokens,output_tokens\n18/11/2023 10:00,1,1\n", "is no time; write"),
        ('{"timestamp": null, "input_length": 2, "output_length": 3}\n', ":1: None is no time"),
        ('{"timestamp": 1, "input_length": true, "output_length": 3}\n', "True is no number"),
        ('[{"timestamp": 1, "input_length": 2, "output_length": 3}]', "one object a line"),
        (b"PAR1rest", "a Parquet file; save it as CSV"),
        (b"\xd0\xcf\x11\xe0rest", "an Excel file; save it as CSV"),
        (b"PK\x03\x04rest", "save it as CSV"),
        (b"\x1f\x8brest", "compressed by gzip"),
        (b"time,prompt_tokens,output_tokens\n\xff\xfa,1,1\n", "not text"),
        ("", "empty file"),
    ],
)
def test_an_invalid_trace_is_refused_with_line_and_reason(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    with pytest.raises(TraceError) as refused:
        read(tmp_path, content)

    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_a_refusal_too(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read"):
        list(read_trace(Trace(tmp_path / "none.csv")))
