"""Results of tools: what the model is shown, what is kept, and that a credential is in neither."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.job.tools.call import CallState, ToolCall
from eventing.job.tools.limits import ToolLimits
from eventing.store.objects.object_store import ObjectStore
from steps.tools.client.answer import Result, Target
from steps.tools.client.function_client import result_of
from steps.tools.results import ToolResults, _without, text_of

LIMITS = ToolLimits(shown_bytes=100)
TARGET = Target(
    label="a", url="https://a", origin="https://a", headers={"authorization": "Bearer canary-123"}
)
CALL = ToolCall(turn=2, place=1, call_id="c", name="n", arguments="{}", state=CallState.SENT)
JOB = Job(
    id=JobId("job_1"),
    state=JobState.IN_PROGRESS,
    request=JobRequest(url="/v1/chat/completions", body={"model": "m"}),
)


async def test_a_long_result_is_shown_by_its_head_and_tail_and_kept_whole(tmp_path: Path) -> None:
    objects = ObjectStore(f"file://{tmp_path}")
    text = "head é " + "x" * 300 + " the end"
    result = Result(content=({"type": "text", "text": text},))
    shown = await ToolResults(objects).shown(JOB, CALL, result, LIMITS, TARGET)
    whole = text.encode()
    assert shown.output.startswith("head é xxx")
    assert shown.output.endswith("xxx the end")
    assert f"of {len(whole)} bytes" in shown.output
    assert "ref '2.1'" in shown.output
    assert shown.output_bytes == len(whole)
    assert shown.object_ref == f"2.1 sha256:{hashlib.sha256(whole).hexdigest()}"
    assert (tmp_path / "job_1" / "2.1").read_bytes() == whole


async def test_a_short_result_is_shown_whole_and_kept_nowhere(tmp_path: Path) -> None:
    result = Result(content=({"type": "text", "text": "you sent Bearer canary-123"},))
    objects = ObjectStore(f"file://{tmp_path}")
    shown = await ToolResults(objects).shown(JOB, CALL, result, LIMITS, TARGET)
    assert (shown.output, shown.object_ref) == ("you sent [credential]", "")
    assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=60), st.binary(max_size=60), st.lists(st.integers(1, 20), max_size=20))
def test_a_credential_is_found_however_the_answer_comes_in_parts(
    before: bytes, after: bytes, sizes: list[int]
) -> None:
    whole, parts = before + b"canary-123" + after, []
    for size in sizes:
        parts.append(whole[:size])
        whole = whole[size:]
    parts.append(whole)
    joined = b"".join(parts)
    given_parts = list(parts)
    found = b"".join(_without(parts, [b"canary-123"]))
    assert b"canary-123" not in found
    assert found == joined.replace(b"canary-123", b"[credential]")
    assert (parts, b"".join(given_parts)) == ([], joined)


@pytest.mark.parametrize(
    ("data", "text", "is_error"),
    [
        (b'{"content": [{"type": "text", "text": "a"}], "isError": true}', "a", True),
        (b'{"structuredContent": {"x": 1}}', '{"x":1}', False),
        (b'{"x": 1}', '{"x":1}', False),
        (b"plain", "plain", False),
        (b"[1]", "[1]", False),
        (b'{"content": "a text", "isError": "yes"}', "a text", False),
        (b'{"content": 7}', "", False),
        (b"\xff\xfe", "\ufffd\ufffd", False),
    ],
)
def test_a_functions_answer_is_read_whatever_its_form(
    data: bytes, text: str, is_error: bool
) -> None:
    result = result_of(data)
    assert (text_of(result), result.is_error) == (text, is_error)
