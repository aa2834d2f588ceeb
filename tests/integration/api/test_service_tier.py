"""OpenAI's `service_tier`: the lane that a call goes to, and the tier that its answer says."""

import json

import pytest

from eventing.job.job import JobId, Lane
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakeEngine


def chat(**more: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}


@pytest.mark.parametrize(
    ("tier", "lane", "used"),
    [
        ("auto", Lane.INTERACTIVE, "default"),
        ("default", Lane.INTERACTIVE, "default"),
        ("flex", Lane.BATCH, "flex"),
        ("priority", Lane.INTERACTIVE, "priority"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
async def test_a_call_goes_to_the_lane_of_its_tier_and_its_answer_says_which(
    rig: Rig, engine: FakeEngine, tier: str, lane: Lane, used: str, is_stream: bool
) -> None:
    body = chat(service_tier=tier, stream=is_stream)
    answer = await rig.client.post("/v1/chat/completions", json=body)
    (job,) = engine.played
    assert job.lane is lane
    assert "service_tier" not in job.request.body
    if is_stream:
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        told = {json.loads(line)["service_tier"] for line in lines}
        assert told == {used}
    else:
        assert answer.json()["service_tier"] == used


async def test_a_response_in_the_background_says_its_tier(rig: Rig) -> None:
    body = {"model": "m", "input": "hi", "background": True, "service_tier": "flex"}
    answer = (await rig.client.post("/v1/responses", json=body)).json()
    assert answer["service_tier"] == "flex"
    job = await rig.store.get(JobId("job_" + answer["id"].removeprefix("resp_")))
    assert job is not None
    assert job.lane is Lane.BATCH


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_tier_that_openai_does_not_have_is_refused(rig: Rig, path: str) -> None:
    answer = await rig.client.post(path, json=chat(input="hi", service_tier="gold"))
    assert answer.status_code in (400, 422)
    assert "service_tier" in answer.text
